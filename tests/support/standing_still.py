"""SIGSTOP that has taken hold.

What lives here: `stop_process` and `stopped`. The signal stops a process thread by thread, each
when it comes to run: on a busy machine one of them goes on for a while, and what a test does
meanwhile is not done beside a process that stands still.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from tests.support.store_process import wait_until


def stop_process(pid: int) -> None:
    """SIGSTOP, and wait until every thread stands still."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: is_stopped(pid))


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process stands still for the block."""
    try:
        stop_process(pid)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def is_stopped(pid: int) -> bool:
    """Whether SIGSTOP holds every thread of the process."""
    try:
        return all(
            task.joinpath("stat").read_text("utf-8").rpartition(")")[2].split()[0] == "T"
            for task in Path(f"/proc/{pid}/task").iterdir()
        )
    except (FileNotFoundError, ProcessLookupError):  # a thread has ended meanwhile
        return False
