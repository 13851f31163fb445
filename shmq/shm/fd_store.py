"""systemd's file descriptor store: memory without a name that outlives the process that made it.

What lives here: `FdStore`. A unit with FileDescriptorStoreMax= hands descriptors to systemd, which
keeps them while the process dies and passes them to the next one (sd_pid_notify_with_fds(3),
sd_listen_fds(3)). So a ring whose client died together with the broker is still there.

What comes back is as good as the name that it was kept under says; whoever takes it holds it
against what it must be. In the main process of the unit, from any thread. Written: systemd's notify
socket. Nothing fails: without systemd, or with its store full, nothing is kept.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from typing import TYPE_CHECKING

from shmq.service import notify

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["FdStore"]

_FIRST_FD = 3
"""SD_LISTEN_FDS_START."""


class FdStore:
    """What systemd keeps for this process; one in a process.

    Args:
        environ: says what was passed and where systemd listens. What it names is taken: the
            descriptors are ours from here, and closed on exec.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._is_there = bool(environ.get("NOTIFY_SOCKET"))
        self._lock = threading.Lock()
        self._left: defaultdict[str, list[int]] = defaultdict(list)
        if environ.get("LISTEN_PID") != str(os.getpid()):
            return
        count = int(environ.get("LISTEN_FDS", "0"))
        names = environ.get("LISTEN_FDNAMES", "").split(":")
        for fd, name in zip(range(_FIRST_FD, _FIRST_FD + count), names, strict=False):
            os.set_inheritable(fd, False)
            self._left[name].append(fd)

    def keep(self, name: str, fds: Iterable[int]) -> None:
        """Have systemd keep these under a name, which may have others; ours stay ours.

        Args:
            name: at most 255 characters, no colon.
            fds: of memory; one that systemd has already is kept once.
        """
        if self._is_there:
            for fd in fds:
                notify("FDSTORE=1", f"FDNAME={name}", fds=(fd,))

    def drop(self, name: str) -> None:
        """Have systemd let go of all that it keeps under a name."""
        if self._is_there:
            notify("FDSTOREREMOVE=1", f"FDNAME={name}")

    def take(self, name: str) -> list[int]:
        """What our predecessor kept under a name, the caller's to close; systemd keeps it, too."""
        with self._lock:
            return self._left.pop(name, [])

    def drop_others(self) -> None:
        """Let go of what our predecessor kept and nobody has taken."""
        with self._lock:
            left = dict(self._left)
            self._left.clear()
        for name, fds in left.items():
            for fd in fds:
                os.close(fd)
            self.drop(name)
