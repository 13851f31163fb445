"""Named shared memory: made, grown, attached to and unlinked here and nowhere else.

What lives here: `Segment` (an open object: fd, name, size) and the verbs on it; the only module
that imports posix_ipc. Nothing is mapped here: the core maps from the fd, writes the header (magic
last) and is the one to read the words in it.

Which processes: the broker creates, grows and unlinks; brokers, slaves and tools attach; clients
are passed read-only fds and never come here. What may fail: no room (ShmFullError), no fd
(LimitError), somebody else's object (OwnerError), another layout (LayoutVersionError), memory that
is not what its name says (ShmError). Each leaves nothing behind.

Every byte is allocated at creation: on a full mount a sparse object would kill its writer with
SIGBUS at the first touch, an allocated one is refused here with a message.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

import posix_ipc

from shmq.errors import (
    ClosedError,
    ForkError,
    LimitError,
    OwnerError,
    ShmError,
    ShmFullError,
)
from shmq.shm.fds import open_error
from shmq.shm.header import GROWING_KINDS, HEADED_KINDS, SegmentHeader
from shmq.shm.incarnation import boot_id
from shmq.shm.memory import require_memory

if TYPE_CHECKING:
    from types import TracebackType

    from shmq.shm.names import ObjectName

__all__ = [
    "SHM_FOLDER",
    "Segment",
    "attach",
    "create",
    "grow",
    "open_readonly",
    "unlink",
]

SHM_FOLDER = "/dev/shm"
"""Where glibc and musl keep POSIX shared memory; there is no way to ask them."""

_SIZE_LIMIT = 1 << 62


class Segment:
    """An open named object. Owns its fd; a context manager; not usable after fork.

    Threads may share one. Closing it takes nothing from whoever has mapped it.
    """

    __slots__ = ("_fd", "_header", "_is_readonly", "_name", "_pid", "_size_bytes")

    def __init__(
        self,
        name: ObjectName,
        fd: int,
        *,
        size_bytes: int,
        is_readonly: bool,
        header: SegmentHeader | None = None,
    ) -> None:
        self._name = name
        self._fd = fd
        self._size_bytes = size_bytes
        self._is_readonly = is_readonly
        self._header = header
        self._pid = os.getpid()

    @property
    def name(self) -> ObjectName:
        """Its name; after `unlink` nobody finds it by that any more."""
        return self._name

    @property
    def size_bytes(self) -> int:
        """Bytes allocated when it was created, attached to or last grown through this handle."""
        return self._size_bytes

    @property
    def is_readonly(self) -> bool:
        """True if the fd allows no writable mapping."""
        return self._is_readonly

    @property
    def header(self) -> SegmentHeader | None:
        """What the header said at `attach`; None on a created segment and on a hot one."""
        return self._header

    def fileno(self) -> int:
        """Return the fd, which stays this segment's own.

        Raises:
            ClosedError: the segment is closed.
            ForkError: called in a child of the process that opened it.
        """
        if self._fd < 0:
            raise ClosedError(f"use {self._name}: the segment is closed; attach again")
        if self._pid != os.getpid():
            raise ForkError(
                f"use {self._name}: opened by process {self._pid}, used by its child"
                f" {os.getpid()}; attach in the process that uses it"
            )
        return self._fd

    def close(self) -> None:
        """Close the fd; a second call does nothing. The object and its mappings live on."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Segment:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._fd < 0 else f"fd {self._fd}"
        return f"<Segment {self._name} {self._size_bytes} bytes, {state}>"


def create(name: ObjectName, *, size_bytes: int, mode: int = 0o600) -> Segment:
    """Make a new object of `size_bytes` zero bytes, all of them allocated, and open it to write.

    The core writes the header into it; until the magic is stored nobody can attach. May block for
    0.1 to 0.3 s per GiB, without the GIL. Allocated pages still cost 1.7 us each at the first touch
    (zeroing and page table; measured): who cannot wait then maps with MAP_POPULATE.

    Args:
        name: from `StoreName.object`; must not exist.
        size_bytes: 1 or more.
        mode: exact permission bits, whatever the umask.

    Raises:
        ShmFullError: the mount or the memory group has no room.
        LimitError: no fd is left.
        ShmError: the name exists, or the kernel refuses for another reason.
    """
    if not 0 < size_bytes < _SIZE_LIMIT:
        raise ShmError(f"create {name}: {size_bytes} bytes, wanted 1 to {_SIZE_LIMIT - 1}")
    fd = _open_new(name, size_bytes=size_bytes)
    with contextlib.ExitStack() as undo:
        # An interrupt (Ctrl-C in a long allocation) undoes as much as an error.
        undo.callback(os.close, fd)
        undo.callback(unlink, name)
        # shm_open's mode is cut by the umask; fchmod's is not.
        os.fchmod(fd, mode)
        _allocate(fd, name, place=0, size_bytes=size_bytes, verb="create")
        undo.pop_all()
    return Segment(name, fd, size_bytes=size_bytes, is_readonly=False)


def grow(segment: Segment, *, size_bytes: int) -> None:
    """Make the object `size_bytes` large; what is there stays. Never shrinks.

    Whoever has it mapped sees the new part by mapping again. The core stores the new size in the
    header afterwards. May block as `create` does.

    Args:
        segment: opened to write.
        size_bytes: at least the present size.

    Raises:
        ShmFullError: no room; the object keeps its old size.
        ShmError: smaller than before, or opened read-only.
    """
    fd = segment.fileno()
    if segment.is_readonly:
        raise ShmError(f"grow {segment.name}: opened read-only")
    if not segment.size_bytes <= size_bytes < _SIZE_LIMIT:
        raise ShmError(
            f"grow {segment.name}: to {size_bytes} bytes, wanted {segment.size_bytes} or more;"
            " memory that others have mapped never shrinks"
        )
    old_size_bytes = segment.size_bytes
    if size_bytes > old_size_bytes:
        _allocate(
            fd,
            segment.name,
            place=old_size_bytes,
            size_bytes=size_bytes - old_size_bytes,
            verb="grow",
        )
        segment._size_bytes = size_bytes


def attach(
    name: ObjectName,
    *,
    readonly: bool,
    owner_uid: int | None = None,
    size_bytes: int | None = None,
    any_boot: bool = False,
) -> Segment:
    """Open an existing object after checking that it is what its name says.

    Checked: regular file, owner, mode (nobody but the owner may write), size, and the header (kind,
    number, layout version, boot id, store generation) where the kind has one.

    Args:
        name: parsed or made by `names`.
        readonly: open for reading only.
        owner_uid: who must own it; None = the calling process's effective uid.
        size_bytes: the size it must have, where the caller knows (a manifest, the file size of a
            hot segment); control, topics and arena segments may have grown beyond it.
        any_boot: the boot id does not count. For who only watches: in a container that has a boot
            id of its own (systemd-nspawn) a unit with ProtectKernelTunables= sees the kernel's,
            and everybody else the container's.

    Raises:
        LayoutVersionError: another release of shmq wrote it.
        OwnerError: of another uid, boot or store generation, or others may write to it.
        LimitError: no fd is left.
        ShmError: not there, unfinished, of another kind, number or size.
    """
    wanted_uid = os.geteuid() if owner_uid is None else owner_uid
    # Looked at before it is opened: the folder is open to all, and opening a stranger's FIFO
    # blocks.
    _check_owner(name, _status(name), wanted_uid=wanted_uid)
    fd = _open_existing(name, readonly=readonly)
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, fd)
        status = os.fstat(fd)
        _check_owner(name, status, wanted_uid=wanted_uid)
        if size_bytes is not None and status.st_size != size_bytes:
            may_be_larger = name.kind in GROWING_KINDS and status.st_size > size_bytes
            if not may_be_larger:
                raise ShmError(f"attach {name}: {status.st_size} bytes, wanted {size_bytes}")
        header = None
        if name.kind in HEADED_KINDS:
            header = SegmentHeader.read(fd, name=str(name))
            boot = header.boot_id if any_boot else boot_id()
            header.check(name, boot_id=boot, object_size_bytes=status.st_size)
        elif not any_boot and name.store.boot8 != boot_id().hex()[:8]:
            raise OwnerError(f"attach {name}: memory of another boot; remove it")
        undo.pop_all()
    return Segment(name, fd, size_bytes=status.st_size, is_readonly=readonly, header=header)


def open_readonly(segment: Segment) -> int:
    """Return a new read-only fd of the very object, for passing to a client. The caller closes it.

    It goes through /proc/self/fd, so it is the same object even if its name was unlinked or taken
    anew. Another uid cannot make it writable again (mode 0600); the same uid can, as it could open
    the object itself: within one uid protection is against accident only.

    Raises:
        LimitError: no fd is left.
        ShmError: /proc is not mounted.
    """
    path = f"/proc/self/fd/{segment.fileno()}"
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise open_error(f"open {segment.name} read-only", error) from error


def unlink(name: ObjectName) -> bool:
    """Remove the name; the memory goes with its last fd and mapping.

    Returns:
        True if it was there.

    Raises:
        OwnerError: another uid owns it.
    """
    try:
        posix_ipc.unlink_shared_memory(str(name))
    except posix_ipc.ExistentialError:
        return False
    except posix_ipc.PermissionsError as error:
        raise OwnerError(f"unlink {name}: another uid owns it") from error
    return True


def _open_new(name: ObjectName, *, size_bytes: int) -> int:
    """Return a writable fd of the new, empty object `name`."""
    # size=0: posix_ipc would only ftruncate, which reserves nothing.
    try:
        return int(posix_ipc.SharedMemory(str(name), posix_ipc.O_CREX, mode=0o600, size=0).fd)
    except posix_ipc.ExistentialError as error:
        raise ShmError(
            f"create {name}: it exists; a broker with the same name runs, or one died here: its"
            " restart adopts the memory, `shmq shm clean` removes it"
        ) from error
    except posix_ipc.PermissionsError as error:
        raise OwnerError(f"create {name}: no right to write in {SHM_FOLDER}") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            what = _full_message(f"create {name}", wanted_bytes=size_bytes)
            raise ShmFullError(what) from error
        raise open_error(f"create {name}", error) from error


def _open_existing(name: ObjectName, *, readonly: bool) -> int:
    """Return an fd of the object `name`, whatever it holds."""
    try:
        return int(posix_ipc.SharedMemory(str(name), 0, read_only=readonly).fd)
    except posix_ipc.ExistentialError as error:
        raise ShmError(f"attach {name}: no such object in {SHM_FOLDER}") from error
    except posix_ipc.PermissionsError as error:
        raise OwnerError(f"attach {name}: no right for uid {os.geteuid()}") from error
    except OSError as error:
        raise open_error(f"attach {name}", error) from error


def _status(name: ObjectName) -> os.stat_result:
    """Return what stands at the name, without opening it."""
    try:
        return os.stat(f"{SHM_FOLDER}{name}", follow_symlinks=False)
    except FileNotFoundError as error:
        raise ShmError(f"attach {name}: no such object in {SHM_FOLDER}") from error


def _check_owner(name: ObjectName, status: os.stat_result, *, wanted_uid: int) -> None:
    """Return if it is a plain object of `wanted_uid` that nobody else may write to."""
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISREG(status.st_mode):
        raise ShmError(f"attach {name}: not a shared memory object; look who made it")
    if status.st_uid != wanted_uid:
        raise OwnerError(
            f"attach {name}: owned by uid {status.st_uid}, wanted {wanted_uid}; run as the user"
            " that made it, or remove it as that user"
        )
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OwnerError(
            f"attach {name}: mode {mode:04o} lets others write, wanted 0600; somebody changed it:"
            " stop the broker, remove the object, start again"
        )


def _allocate(fd: int, name: ObjectName, *, place: int, size_bytes: int, verb: str) -> None:
    """Allocate a range of the object, growing it; on failure the object is as before."""
    require_memory(f"{verb} {name}", wanted_bytes=size_bytes)
    try:
        os.posix_fallocate(fd, place, size_bytes)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.ENOMEM}:
            what = f"{verb} {name}"
            raise ShmFullError(
                _full_message(what, wanted_bytes=size_bytes, errno_seen=error.errno)
            ) from error
        if error.errno == errno.EFBIG:
            raise LimitError(
                f"{verb} {name}: {size_bytes} bytes wanted, over the file size limit; raise"
                " LimitFSIZE= in the unit, or ulimit -f"
            ) from error
        raise ShmError(f"{verb} {name}: {error.strerror}") from error


def _full_message(what: str, *, wanted_bytes: int, errno_seen: int = errno.ENOSPC) -> str:
    """Say that `what` did not fit, what is there, and what to change.

    Args:
        what: verb and object, such as "create /shmq...".
        wanted_bytes: what was asked for.
        errno_seen: ENOSPC (the mount is full) or ENOMEM (the memory group is).
    """
    mount = os.statvfs(SHM_FOLDER)
    free_bytes = mount.f_bavail * mount.f_frsize
    total_bytes = mount.f_blocks * mount.f_frsize
    if errno_seen == errno.ENOMEM:
        return (
            f"{what}: {wanted_bytes} bytes wanted, the kernel has no memory for them (memory cgroup"
            " or RAM); raise MemoryMax= or docker --memory, or lower hot_segment_count"
        )
    if mount.f_files and not mount.f_favail:
        return (
            f"{what}: {SHM_FOLDER} has no inode left; mount -o remount,nr_inodes=..., {SHM_FOLDER}"
        )
    return (
        f"{what}: {wanted_bytes} bytes wanted, {free_bytes} of {total_bytes} free in {SHM_FOLDER};"
        f" mount -o remount,size=... {SHM_FOLDER}, docker --shm-size, or lower hot_segment_count"
        " or commit_log_file_size_bytes"
    )
