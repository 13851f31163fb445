"""The NameServer of a private cluster, as a child process.

What lives here: `start_namesrv`. Standard library only, for the guard's sake (shmq.client.guard).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

__all__ = ["LOG", "start_namesrv"]

LOG = "cluster.log"
"""Where in its folder a private cluster logs."""


def start_namesrv(root: Path, run: Path) -> subprocess.Popen[bytes]:
    """A NameServer that supervises the brokers of the cluster file; returns at once.

    Args:
        root: folder of cluster.toml, the stores and the log.
        run: the runtime folder.
    """
    with open(root / LOG, "ab") as log:
        return subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "shmq.namesrv",
                "--runtime",
                str(run),
                "--cluster",
                str(root / "cluster.toml"),
            ],
            stdin=subprocess.DEVNULL,
            stderr=log,
        )
