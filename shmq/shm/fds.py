"""What a refused open means: no descriptor left is a limit to raise, the rest is named as it is.

What lives here: `open_error`, for every open in this room, in whichever process. Pure.
"""

from __future__ import annotations

import errno

from shmq.errors import LimitError, ShmError

__all__ = ["open_error"]


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
