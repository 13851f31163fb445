"""Limits of other processes, set as an administrator would."""

from __future__ import annotations

import subprocess

from tests.support.require import require_program


def set_open_files(pid: int, limit: int) -> None:
    """How many files a process may have open: the soft limit; the hard one stays."""
    prlimit = require_program("prlimit", "util-linux")
    subprocess.run([prlimit, f"--pid={pid}", f"--nofile={limit}:"], check=True)
