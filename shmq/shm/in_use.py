"""The in-use mark: the one sign that a living process holds a store's memory.

What lives here: `InUseMark`, an exclusive flock on a file named after the store in its broker's
runtime folder. The kernel drops it when the process ends, however it ends, and keeps it while the
process is stopped, which is right: it may go on. The fd is never passed to anybody, is closed on
exec, and a forked child closes its copy.

Which processes: the broker takes it before it makes, adopts or lists any object and holds it for
life; the reaper takes it while it removes a dead store's objects. Written: the empty mark file.
What may fail: the mark is held (OwnerError), the folder is not ours alone (OwnerError), no fd
(LimitError).

The file's presence says something too: this folder's broker made that memory. The reaper touches no
memory without such a file, because a crashed broker in a folder that it was not told about may
still come back for its messages.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
import weakref
from typing import TYPE_CHECKING

from shmq.clock import SYSTEM_CLOCK
from shmq.errors import OwnerError, ShmError
from shmq.shm.fds import open_error
from shmq.shm.names import StoreName, parse_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

__all__ = ["InUseMark", "marked_stores"]

_SUFFIX = ".lock"
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
# A mark file that vanishes between open and lock was removed by a reaper; more often than this in a
# row means that something else removes files here.
_REPLACED_LIMIT = 100
_RETRY_INTERVAL_S = 0.005


class InUseMark:
    """The right to create, adopt and remove one store's objects. A context manager."""

    __slots__ = ("__weakref__", "_fd", "_folder", "_store")

    def __init__(self, fd: int, folder: Path, store: StoreName) -> None:
        """Not for callers: see `take` and `try_take`."""
        self._fd = fd
        self._folder = folder
        self._store = store
        _MARKS.add(self)

    @classmethod
    def take(cls, runtime_folder: Path, store: StoreName, *, timeout_ms: int) -> InUseMark:
        """Take the mark, waiting up to `timeout_ms` for a reaper that happens to look.

        Args:
            runtime_folder: the broker's own, existing, mode 0700, owned by the effective uid.
            store: whose memory.
            timeout_ms: 0 = do not wait.

        Raises:
            OwnerError: another process holds it, or the folder or file is not ours alone.
            LimitError: no fd is left.
            ShmError: the folder is not there or not usable.
        """
        deadline_ns = SYSTEM_CLOCK.monotonic_ns() + timeout_ms * 1_000_000
        while True:
            mark = cls.try_take(runtime_folder, store)
            if mark is not None:
                return mark
            if SYSTEM_CLOCK.monotonic_ns() >= deadline_ns:
                raise OwnerError(
                    f"take the in-use mark of {store} in {runtime_folder}: held by another process"
                    f" for {timeout_ms} ms; is this broker running already?"
                )
            time.sleep(_RETRY_INTERVAL_S)

    @classmethod
    def try_take(
        cls, runtime_folder: Path, store: StoreName, *, make: bool = True
    ) -> InUseMark | None:
        """Take the mark if nobody holds it; never waits.

        Args:
            runtime_folder: as in `take`.
            store: whose memory.
            make: make the file if it is absent; otherwise absence gives None.

        Returns:
            The mark, or None if it is held (or absent, with `make` false).

        Raises:
            OwnerError, LimitError, ShmError: as `take`.
        """
        file_name = f"{store}{_SUFFIX}"
        flags = _FILE_FLAGS | (os.O_CREAT if make else 0)
        with _open_folder(runtime_folder) as folder_fd:
            for _ in range(_REPLACED_LIMIT):
                try:
                    fd = os.open(file_name, flags, 0o600, dir_fd=folder_fd)
                except FileNotFoundError:
                    return None
                except OSError as error:
                    raise open_error(
                        f"take the in-use mark {runtime_folder / file_name}", error
                    ) from error
                with contextlib.ExitStack() as undo:
                    undo.callback(os.close, fd)
                    _check_file(fd, runtime_folder / file_name)
                    try:
                        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        return None
                    # A reaper may have removed the file between open and lock: the lock then is on
                    # a file that nobody finds any more.
                    if _is_at(fd, file_name, folder_fd):
                        undo.pop_all()
                        return cls(fd, runtime_folder, store)
        raise ShmError(
            f"take the in-use mark {runtime_folder / file_name}: the file vanished"
            f" {_REPLACED_LIMIT} times; does something clean this folder?"
        )

    @property
    def store(self) -> StoreName:
        """Whose memory it stands for."""
        return self._store

    @property
    def is_held(self) -> bool:
        """True until `release`, and in the process that took it only."""
        return self._fd >= 0

    def release(self) -> None:
        """Give the mark up; the file stays and says whose memory it was. Twice does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def remove(self) -> None:
        """Remove the file and give the mark up: the store has no memory left.

        Raises:
            ShmError: the mark was released before, or the folder refuses.
        """
        if self._fd < 0:
            raise ShmError(f"remove the in-use mark of {self._store}: it is not held")
        try:
            with _open_folder(self._folder) as folder_fd:
                os.unlink(f"{self._store}{_SUFFIX}", dir_fd=folder_fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise open_error(f"remove the in-use mark of {self._store}", error) from error
        finally:
            self.release()

    def __enter__(self) -> InUseMark:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<InUseMark {self._store} in {self._folder}, {'held' if self.is_held else 'free'}>"


def marked_stores(runtime_folder: Path) -> set[StoreName]:
    """Return the stores that have a mark file in the folder, held or not.

    Raises:
        OwnerError, ShmError: the folder cannot be trusted or read.
    """
    with _open_folder(runtime_folder) as folder_fd:
        names = os.listdir(folder_fd)
    stores = (parse_store(name.removesuffix(_SUFFIX)) for name in names if name.endswith(_SUFFIX))
    return {store for store in stores if store is not None}


@contextlib.contextmanager
def _open_folder(path: Path) -> Iterator[int]:
    """Open a runtime folder that nobody but the effective uid can enter."""
    try:
        fd = os.open(path, _FOLDER_FLAGS)
    except OSError as error:
        raise open_error(f"open the runtime folder {path}", error) from error
    try:
        status = os.fstat(fd)
        mode = stat.S_IMODE(status.st_mode)
        if status.st_uid != os.geteuid() or mode & 0o077:
            raise OwnerError(
                f"open the runtime folder {path}: mode {mode:04o}, owner uid {status.st_uid};"
                f" wanted 0700, uid {os.geteuid()}: chmod 0700 it, or name another folder"
            )
        yield fd
    finally:
        os.close(fd)


def _check_file(fd: int, path: Path) -> None:
    """Return if the mark file is one that only we could have made."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_nlink > 1:
        raise OwnerError(f"take the in-use mark {path}: not a plain file of ours; remove it")


def _is_at(fd: int, file_name: str, folder_fd: int) -> bool:
    """Say whether the open file is still the one at that name."""
    try:
        there = os.stat(file_name, dir_fd=folder_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), there)


def _close_in_child() -> None:
    """Close a forked child's copies: with one open, the mark would outlive the broker."""
    for mark in list(_MARKS):
        mark.release()


_MARKS: weakref.WeakSet[InUseMark] = weakref.WeakSet()
os.register_at_fork(after_in_child=_close_in_child)
