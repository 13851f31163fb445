"""Small files replaced as a whole, durably, and what a failed system call on a store file means.

What lives here: the one way in which the store writes a file that is not the log (temporary file,
fsync, rename, fsync of the folder), and the translation of an errno into an error that says what to
do. A crash at any step leaves the old file or the new one, and perhaps a `.tmp` beside it that the
next write overwrites.

Which process: whoever holds the store's lock. What may fail: DiskFullError for no room, quota or a
file size limit; DiskReadOnlyError; LimitError without a descriptor; StoreError for everything else.
"""

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from shmq.errors import DiskFullError, DiskReadOnlyError, LimitError, ShmqError, StoreError

__all__ = [
    "BACKUP_SUFFIX",
    "FILE_MODE",
    "FOLDER_MODE",
    "disk_error",
    "fsync_folder",
    "make_folder",
    "read_file",
    "replace_file",
    "write_fully",
]

FILE_MODE = 0o640
"""Files of the store: the broker writes, its group may read."""
FOLDER_MODE = 0o750
BACKUP_SUFFIX = ".bak"
"""Where RocketMQ keeps the version before."""

_NO_ROOM = {
    errno.ENOSPC: "the file system is full (df -h, df -i); free space there",
    errno.EDQUOT: "the disk quota is used up; free space or raise it",
    errno.EFBIG: "larger than this process may write; raise the limit (ulimit -f, LimitFSIZE=)",
}
_T = TypeVar("_T")


def disk_error(what: str, error: OSError) -> ShmqError:
    """Return what to raise for a failed system call on a file of the store.

    Args:
        what: what was tried, on what: "prepare /store/shmq/prepare/0...0".
        error: as the kernel gave it.
    """
    if error.errno in _NO_ROOM:
        return DiskFullError(f"{what}: {_NO_ROOM[error.errno]}")
    if error.errno == errno.EROFS:
        return DiskReadOnlyError(
            f"{what}: the file system is read-only; see the kernel's log for why, then remount it"
        )
    if error.errno in {errno.EMFILE, errno.ENFILE}:
        return LimitError(
            f"{what}: no file descriptor left; raise LimitNOFILE= in the unit, or ulimit -n"
        )
    if error.errno in {errno.EACCES, errno.EPERM}:
        return StoreError(
            f"{what}: no right for uid {os.geteuid()}", hint="run as the user that owns the store"
        )
    return StoreError(f"{what}: {error.strerror or error}")


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Blocks for the sync; OSError as the kernel gave it."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing; each name is durable afterwards.

    Raises:
        DiskFullError, StoreError: it cannot be made, or a file has its name.
    """
    try:
        missing = []
        at = folder
        while not at.is_dir():
            missing.append(at)
            at = at.parent
        for path in reversed(missing):
            path.mkdir(mode=FOLDER_MODE, exist_ok=True)
            fsync_folder(path.parent)
    except OSError as error:
        raise disk_error(f"make the folder {folder}", error) from error


def read_file(path: Path, *, size_max: int) -> bytes | None:
    """Return the bytes of a plain file, or None if there is none.

    Args:
        path: the file; a symbolic link in its place is refused.
        size_max: bytes; a larger file cannot be what it should be.

    Raises:
        StoreError: it cannot be read, is not a plain file or is too large.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise disk_error(f"read {path}", error) from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise StoreError(f"read {path}: not a plain file; not one of ours")
        with open(fd, "rb", closefd=False) as file:
            # As much as there is: room for size_max would be taken before the first byte is read.
            data = file.read(min(status.st_size, size_max) + 1)
    except OSError as error:
        raise disk_error(f"read {path}", error) from error
    finally:
        os.close(fd)
    if len(data) > size_max:
        raise StoreError(f"read {path}: more than {size_max} bytes; not a file of ours")
    return data


def write_fully(fd: int, data: bytes | memoryview, place: int) -> None:
    """Write all of `data` at byte `place`; a short write goes on where it ended."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, place)
        view = view[written:]
        place += written


def replace_file(
    path: Path, data: bytes, *, keep_backup: bool = False, is_synced: bool = True
) -> None:
    """Replace the file at `path`, durably. Blocks for two fsyncs.

    Args:
        path: in a folder that exists.
        data: the new contents.
        keep_backup: the old file becomes `<name>.bak` first; it is never absent meanwhile.
        is_synced: otherwise it blocks for none, and a power cut may leave a file that does not
            hold: only for what was synced a moment ago, or is of this boot alone.

    Raises:
        DiskFullError, StoreError: the old file stands and nothing is left behind.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC

    def replace() -> None:
        fd = os.open(temporary, flags, FILE_MODE)
        try:
            write_fully(fd, data, 0)
            if is_synced:
                os.fsync(fd)
        finally:
            os.close(fd)
        if keep_backup:
            _keep_backup(path)
        os.rename(temporary, path)
        if is_synced:
            fsync_folder(path.parent)

    _undoing(replace, temporary, f"write {path}")


def _keep_backup(path: Path) -> None:
    """Let `<name>.bak` be the present file: a second name for it, so that no byte is copied."""
    backup = path.with_name(f"{path.name}{BACKUP_SUFFIX}")
    temporary = path.with_name(f"{path.name}{BACKUP_SUFFIX}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary, follow_symlinks=False)
    except FileNotFoundError:
        return  # the first version has none before it
    except OSError:  # a file system without hard links
        shutil.copyfile(path, temporary)
    os.rename(temporary, backup)


def _undoing(action: Callable[[], _T], temporary: Path, what: str) -> _T:
    """Run `action`; where the system refuses, leave no temporary file and say what to do."""
    try:
        return action()
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise disk_error(what, error) from error
