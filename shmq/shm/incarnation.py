"""Which boot of the kernel this is, and which life of a process: facts a number cannot fake.

What lives here: the boot id and `Incarnation` (pid + start time). A pid alone says nothing, since
Linux hands it out again after 32768 forks; a pid with the start time of its process, counted in
clock ticks since the boot, names one life and no other as long as the boot id is the same.

Who uses it: every process. Nothing is written. What may fail: `/proc` not mounted (ShmError).
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from shmq.errors import ShmError

__all__ = ["Incarnation", "boot_id"]

_BOOT_ID_PATH = Path("/proc/sys/kernel/random/boot_id")
# Fields of proc_pid_stat(5), counted from the one behind the command's closing parenthesis.
_STATE_FIELD = 0
_THREAD_COUNT_FIELD = 17
_START_TIME_FIELD = 19
_DEAD_STATES = frozenset("ZX")


def boot_id() -> bytes:
    """Return the 16 bytes that name this boot of the kernel; the same in every container.

    Raises:
        ShmError: `/proc` is not mounted or holds no boot id.
    """
    try:
        return uuid.UUID(_BOOT_ID_PATH.read_text("ascii").strip()).bytes
    except (OSError, ValueError) as error:
        raise ShmError(f"read {_BOOT_ID_PATH}: {error}; mount /proc where shmq runs") from error


@dataclass(frozen=True, slots=True)
class Incarnation:
    """One life of one process. Comparable; says nothing across boots or pid namespaces."""

    pid: int
    """Process id in our own pid namespace."""
    start_time: int
    """Start of the process in clock ticks since the boot (field 22 of /proc/<pid>/stat)."""

    @classmethod
    def current(cls) -> Incarnation:
        """Return the calling process's incarnation.

        Raises:
            ShmError: `/proc` is not mounted.
        """
        pid = os.getpid()
        fields = _stat_fields(pid)
        if fields is None:
            raise ShmError(f"read /proc/{pid}/stat: not there; mount /proc where shmq runs")
        return cls(pid, int(fields[_START_TIME_FIELD]))

    @classmethod
    def of(cls, pid: int) -> Incarnation | None:
        """Return the life that has this pid now, or None where no process has it.

        Raises:
            ShmError: `/proc` cannot be read.
        """
        fields = _stat_fields(pid)
        return None if fields is None else cls(pid, int(fields[_START_TIME_FIELD]))

    def is_alive(self) -> bool:
        """Say whether this very life still runs; a zombie does not, a stopped process does.

        A process of another pid namespace cannot be seen and counts as dead: whoever shares
        /dev/shm across namespaces is protected by the in-use mark, not by this.
        """
        fields = _stat_fields(self.pid)
        if fields is None or int(fields[_START_TIME_FIELD]) != self.start_time:
            return False
        # A leader that ended while its threads run on shows as a zombie with threads to its name.
        is_over = fields[_STATE_FIELD] in _DEAD_STATES and int(fields[_THREAD_COUNT_FIELD]) <= 1
        return not is_over


def _stat_fields(pid: int) -> list[str] | None:
    """Return what follows the command in /proc/<pid>/stat, or None where there is no such pid."""
    if pid <= 0:
        return None
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    except OSError as error:
        raise ShmError(f"read /proc/{pid}/stat: {error}") from error
    # The command may hold spaces and parentheses; its own closing one is the last.
    return text.rpartition(")")[2].split()
