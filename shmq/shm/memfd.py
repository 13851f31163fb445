"""Sealed memory without a name: the objects that a client may write.

What lives here: making them (the broker, for an ingress ring, a consumer page or chunk memory) and
judging one that a client hands back to a restarted broker (RESUME). A named object could be
truncated under the broker by whoever may write to it, which is SIGBUS for the broker, and cannot be
sealed; a memfd sealed against shrinking and growing cannot, and it goes with its last fd.

Which process: the broker. What may fail: no memory (ShmFullError), no fd (LimitError), a foreign fd
(ShmError). The contents are never looked at here: they are hostile and belong to the core.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat

from shmq.errors import ShmError, ShmFullError
from shmq.shm.fds import open_error
from shmq.shm.memory import require_memory

__all__ = ["create_sealed", "verify_sealed"]

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
# Linux 6.3: no execution from this memory, ever. Older kernels answer EINVAL and do without.
_MFD_NOEXEC_SEAL = 0x0008
_F_SEAL_EXEC = 0x0020
_MODE = 0o600
_LABEL_SIZE_MAX = 64


def create_sealed(label: str, *, size_bytes: int) -> int:
    """Return the fd of new, zeroed, allocated memory whose size nobody can change. Caller closes.

    Args:
        label: for people, shown in /proc/<pid>/maps; at most 64 characters.
        size_bytes: 1 or more.

    Raises:
        ShmFullError: no memory left (memory cgroup or RAM); nothing is left behind.
        LimitError: no fd is left.
        ShmError: the kernel refuses for another reason.
    """
    if size_bytes <= 0:
        raise ShmError(f"create memfd {label}: {size_bytes} bytes, wanted 1 or more")
    # No mount bounds a memfd: too large a one would have the kernel kill some process for memory.
    require_memory(f"create memfd {label}", wanted_bytes=size_bytes)
    with contextlib.ExitStack() as undo:
        fd = _create(label[:_LABEL_SIZE_MAX])
        undo.callback(os.close, fd)
        try:
            # A memfd starts out as 0777: without this any process of any uid that is passed it
            # read-only could open it anew, to write, through /proc/self/fd.
            os.fchmod(fd, _MODE)
            os.posix_fallocate(fd, 0, size_bytes)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except OSError as error:
            what = f"create memfd {label}: {size_bytes} bytes wanted"
            if error.errno in {errno.ENOSPC, errno.ENOMEM}:
                raise ShmFullError(
                    f"{what}, the kernel has no memory for them; raise MemoryMax= or docker"
                    " --memory, or let fewer clients connect"
                ) from error
            raise ShmError(f"{what}: {error.strerror}") from error
        undo.pop_all()
    return fd


def verify_sealed(fd: int, *, size_bytes: int, inode: int, uid: int) -> None:
    """Return if `fd` is the very memory that `create_sealed` made for a session; else raise.

    The facts to compare with come from the session slot in the broker's own control segment, never
    from the client. The fd stays the caller's.

    Args:
        fd: as received from the client.
        size_bytes: exact size.
        inode: st_ino at creation.
        uid: who made it: the broker's own.

    Raises:
        ShmError: it is not; one line says what differs.
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        status = os.fstat(fd)
        memfd_device = _memfd_device()
    except OSError as error:
        # F_GET_SEALS fails on everything that is neither tmpfs nor hugetlbfs.
        raise ShmError(f"resume: the fd is no memfd of ours ({error.strerror})") from error
    for what, seen, wanted in (
        # An object in /dev/shm carries F_SEAL_SEAL alone and can never get the others.
        ("seals", f"{seals & ~_F_SEAL_EXEC:#x}", f"{_SEALS:#x}"),
        ("file type", stat.S_IFMT(status.st_mode), stat.S_IFREG),
        ("device", status.st_dev, memfd_device),
        ("inode", status.st_ino, inode),
        ("size", status.st_size, size_bytes),
        ("uid", status.st_uid, uid),
        ("mode", f"{stat.S_IMODE(status.st_mode):04o}", f"{_MODE:04o}"),
        ("link count", status.st_nlink, 0),
        ("access", flags & os.O_ACCMODE, os.O_RDWR),
    ):
        if seen != wanted:
            raise ShmError(f"resume: {what} {seen}, wanted {wanted}; the fd is no memfd of ours")


def _create(label: str) -> int:
    """Return a new memfd that can be sealed, closed on exec, not executable where that exists."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        try:
            return os.memfd_create(label, flags | _MFD_NOEXEC_SEAL)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return os.memfd_create(label, flags)
    except OSError as error:
        raise open_error(f"create memfd {label}", error) from error


def _memfd_device() -> int:
    """Return st_dev of all memfds: the kernel's own tmpfs, where nobody else can put an inode."""
    fd = _create("shmq-device")
    try:
        return os.fstat(fd).st_dev
    finally:
        os.close(fd)
