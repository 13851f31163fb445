"""Descriptors: what a refused open means, and which process has a file open.

What lives here: `open_error`, for every open in this room: no descriptor left is a limit to raise,
the rest is named as it is; `is_open_in`, by `/proc`. In whichever process; nothing is written.
"""

from __future__ import annotations

import errno
import os

from shmq.errors import LimitError, ShmError

__all__ = ["is_open_in", "open_error"]


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
