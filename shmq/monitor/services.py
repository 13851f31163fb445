"""NameServers and Controllers of a host, seen without asking them.

What lives here: `services_in`. A service holds the lock beside its socket as long as it lives,
however it ends, and removes the socket at an orderly end: a socket whose lock nobody holds is that
of one that died. In whatever process watches; writes nothing, takes no lock, does not wait. One
that hangs lives: whoever wants to know whether it answers has to ask it.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, NamedTuple

from shmq.errors import ShmError
from shmq.shm.lock_file import holder_of

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Service", "services_in"]

_KINDS = ("namesrv", "controller")


class Service(NamedTuple):
    """One NameServer or Controller that was not stopped."""

    name: str
    """That of its socket: "namesrv-ns0"."""
    pid: int | None
    """Its process; None: it died."""


def services_in(runtime: Path) -> list[Service]:
    """Those of a runtime folder, sorted by name; without those of another user, unless we are root:
    whether they live is not ours to see.
    """
    found = []
    for kind in _KINDS:
        for path in sorted(runtime.glob(f"{kind}-*.sock")):
            lock = path.with_suffix(".lock")
            with contextlib.suppress(ShmError, OSError):  # gone meanwhile, or /proc is not there
                if os.geteuid() in (0, path.lstat().st_uid):
                    found.append(Service(path.stem, holder_of(lock)))
    return found
