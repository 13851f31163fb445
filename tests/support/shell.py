"""`shmq`, the command, run for one cluster: what it prints, its exit codes, its errors."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from tests.support.repository import ROOT

SHMQ = [sys.executable, "-m", "shmq.tools.cli"]


class Shell:
    """Runs `shmq` for one cluster."""

    def __init__(self, runtime: Path) -> None:
        self.runtime = runtime
        self.environ = {**os.environ, "SHMQ_NAMESRV": str(runtime)}

    def run(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*SHMQ, *arguments],
            env=self.environ,
            input=stdin,
            capture_output=True,
            cwd=ROOT,
            timeout=60,
            check=False,
        )

    def out(self, *arguments: str, stdin: bytes = b"") -> str:
        """What it prints; it must succeed."""
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def json(self, *arguments: str) -> Any:
        return orjson.loads(self.out(*arguments, "--json"))

    def fails(self, *arguments: str, code: int, stdin: bytes = b"") -> str:
        """What it says; it must end with that exit code."""
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == code, done.stdout.decode() + done.stderr.decode()
        return done.stderr.decode()


@contextlib.contextmanager
def dev_cluster(runtime: Path, *options: str) -> Iterator[list[str]]:
    """A cluster under `shmq dev`, which must end in order; what it said when it was up."""
    with subprocess.Popen(
        [*SHMQ, "dev", *options, "--runtime", str(runtime)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as dev:
        assert dev.stdout is not None
        said = [next(dev.stdout)]
        while "Ctrl-C" not in said[-1]:
            said.append(next(dev.stdout))
        yield said
        dev.send_signal(signal.SIGINT)
        assert dev.stdout.read() == "stopping\n"
    assert dev.returncode == 0
