"""The file `lock`: who may write this store.

What lives here: `StoreLock`, RocketMQ's own exclusion: the four bytes "lock" and an exclusive POSIX
record lock on byte 0, which a Java FileLock takes as well, so that a real broker and shmq exclude
each other. The kernel gives it up when its process ends, however it ends.

POSIX record locks have two traps. A process may lock again what it has locked: so a second
StoreLock of one process is refused by a table here. And closing *any* fd of the file drops the
lock: so the file is never opened while the table has it, and nobody else may open it in a process
that holds the store.

Which process: the broker for its life; fsck for as long as it looks. What may fail:
StoreLockedError naming the holder's pid; StoreError if the folder cannot be written.
"""

import fcntl
import os
import struct
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from shmq.errors import OwnerError, StoreLockedError
from shmq.store.durable_file import FILE_MODE, disk_error, fsync_folder, write_fully

__all__ = ["LOCK_FILE", "StoreLock", "lock_holder"]

LOCK_FILE = "lock"
_CONTENTS = b"lock"
# struct flock of 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid.
_FLOCK = struct.Struct("hh4xqqi4x")

_held: set[tuple[int, int]] = set()  # (st_dev, st_ino) of the lock files that this process holds
_held_guard = threading.Lock()
os.register_at_fork(after_in_child=_held.clear)  # record locks stay with the parent


class StoreLock:
    """The right to write one store. A context manager; not inherited by children.

    Args:
        store_path: an existing folder.

    Raises:
        StoreLockedError: another process, or this one, has the store open.
        StoreError: the lock file cannot be made.
    """

    __slots__ = ("_fd", "_key", "_path", "_pid")

    def __init__(self, store_path: Path) -> None:
        self._path = store_path / LOCK_FILE
        with _held_guard:
            self._refuse_second()
            try:
                self._fd = os.open(
                    self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE
                )
            except OSError as error:
                raise disk_error(f"open {self._path}", error) from error
            try:
                self._take()
            except BaseException:
                os.close(self._fd)
                raise
            status = os.fstat(self._fd)
            if status.st_uid != os.geteuid():  # root: files it made there would be out of its reach
                os.close(self._fd)
                raise OwnerError(
                    f"open the store {self._path.parent}: it is uid {status.st_uid}'s, and this is "
                    f"uid {os.geteuid()}",
                    hint="run as its owner, or chown the whole store",
                )
            self._key = (status.st_dev, status.st_ino)
            self._pid = os.getpid()
            _held.add(self._key)

    def _refuse_second(self) -> None:
        try:
            status = os.lstat(self._path)
        except OSError:
            return
        if (status.st_dev, status.st_ino) in _held:
            raise StoreLockedError(
                f"lock {self._path}: this process ({os.getpid()}) has the store open already"
            )

    def _take(self) -> None:
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
        except (BlockingIOError, PermissionError) as error:  # EAGAIN or EACCES, says POSIX
            pid = _holder(self._fd)
            holder = f"process {pid}" if pid else "another process"
            raise StoreLockedError(f"lock {self._path}: {holder} has the store open") from error
        except OSError as error:
            raise disk_error(f"lock {self._path}", error) from error
        try:
            if os.pread(self._fd, len(_CONTENTS), 0) != _CONTENTS:
                write_fully(self._fd, _CONTENTS, 0)
                os.fsync(self._fd)
                fsync_folder(self._path.parent)
        except OSError as error:
            raise disk_error(f"write {self._path}", error) from error

    @property
    def is_held(self) -> bool:
        """Whether this process holds the lock: False after release and in a forked child."""
        return self._fd >= 0 and self._pid == os.getpid()

    def release(self) -> None:
        """Give the store up; the file stays. Twice does nothing."""
        with _held_guard:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                _held.discard(self._key)
                os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def lock_holder(store_path: Path) -> int | None:
    """Return the pid of the process that has the store open, or None if nobody has.

    Asks only: it takes nothing and works where the folder may only be read. 0 stands for a holder
    in another pid namespace. The answer may be old when it is read.
    """
    path = store_path / LOCK_FILE
    with _held_guard:
        try:
            status = os.lstat(path)
            if (status.st_dev, status.st_ino) in _held:
                return os.getpid()
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise disk_error(f"read {path}", error) from error
        try:
            return _holder(fd)
        finally:
            os.close(fd)


def _holder(fd: int) -> int | None:
    """Return who holds a lock on byte 0 that excludes a writer, or None."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
    kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    if kind == fcntl.F_UNLCK:
        return None
    return max(0, int(pid))
