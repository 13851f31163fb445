"""Descriptors: what a refused open means, and which process has a file open.

What lives here: `open_error`, for every open in this room: no descriptor left is a limit to raise,
the rest is named as it is; `is_open_in`, by `/proc`; `open_files`, how many there are and may be;
`require_descriptors`, which keeps some for the process itself. In whichever process; nothing is
written.
"""

from __future__ import annotations

import errno
import os
import resource
import sys
from typing import NamedTuple

from shmq.errors import LimitError, ShmError, SystemBusyError

__all__ = [
    "OpenFiles",
    "RESERVED_MAX",
    "descriptors_for_others",
    "is_open_in",
    "open_error",
    "open_files",
    "require_descriptors",
]

RESERVED_MAX = 64
"""Descriptors that a process keeps for its own files."""
_RESERVED_SHARE = 8
"""Of a small limit one in so many is kept."""


def open_error(what: str, error: OSError) -> ShmError:
    """Return what to raise for a failed open.

    Args:
        what: verb and object, such as "attach /shmq...".
        error: as caught. posix_ipc leaves errno unset when there is no fd left.

    Returns:
        LimitError where fds or memory ran out, else ShmError with the kernel's reason.
    """
    if error.errno in {None, errno.EMFILE, errno.ENFILE}:
        return LimitError(
            f"{what}: no file descriptor left; raise LimitNOFILE= in the unit, or ulimit -n"
        )
    if error.errno == errno.ENOMEM:
        return LimitError(
            f"{what}: the kernel has no memory for it; raise MemoryMax= in the unit, or docker"
            " --memory"
        )
    return ShmError(f"{what}: {error.strerror}")


class OpenFiles(NamedTuple):
    """Descriptors of a process."""

    open_count: int
    """Open now."""
    limit: int
    """How many there may be: RLIMIT_NOFILE, the soft one."""


def open_files(pid: int | None = None) -> OpenFiles:
    """How many descriptors a process has, and may have.

    Args:
        pid: of the process; None: this one.

    Raises:
        OSError: it has ended, or is another user's.
    """
    soft, _ = resource.prlimit(0 if pid is None else pid, resource.RLIMIT_NOFILE)
    folder = f"/proc/{pid or 'self'}/fd"
    count = os.stat(folder).st_size  # since Linux 6.2; needs no descriptor
    if not count:
        try:
            count = len(os.listdir(folder)) - (pid is None)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            count = soft
    return OpenFiles(count, soft)


def descriptors_for_others() -> int:
    """The first descriptor number that a process keeps for its own files, whoever connects.

    A new descriptor is the lowest number that is free: one from there on says that all below are
    taken. The limit is asked each time: prlimit(1) changes it under a process that runs.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    return soft - min(RESERVED_MAX, soft // _RESERVED_SHARE)


def require_descriptors(what: str, count: int) -> None:
    """Return if so many can be opened for somebody else.

    Args:
        what: verb and object for the message, such as "attach client 7".
        count: how many.

    Raises:
        SystemBusyError: only what the process needs itself is left.
    """
    bound = descriptors_for_others()
    try:
        fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        fd = bound
    else:
        os.close(fd)
    if fd + count > bound:
        raise SystemBusyError(
            f"{what}: this process has no descriptors left for clients, of the {bound} that it may"
            " have for them; raise LimitNOFILE= in its unit, or prlimit --nofile",
            hint="try again when others have left, or the limit is raised",
        )


def is_open_in(pid: int, wanted: os.stat_result) -> bool:
    """Whether a process has a file open, as far as we may see; one that has ended has not."""
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:  # ended, or another user's
        return False
    return any(_is_there(f"{folder}/{name}", wanted) for name in names)


def _is_there(link: str, wanted: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(link), wanted)
    except OSError:  # closed meanwhile
        return False
