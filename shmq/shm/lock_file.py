"""Lock files: an exclusive flock that says that a living process has something, and nothing else.

What lives here: `LockFile`, held from `try_take` until `release` or the end of the process, however
it ends; a stopped process keeps it, which is right: it may go on. The fd is never passed to
anybody, is closed on exec, and a forked child closes its copy.

Which processes: any of one uid, in a folder that nobody else can enter. Written: empty files. What
may fail: a folder or file that is not ours alone (OwnerError), no fd (LimitError).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shmq.errors import OwnerError, ShmError
from shmq.shm.fds import is_open_in, open_error

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LockFile", "holder_of", "open_private"]

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
# A file that vanishes between open and lock was removed by whoever held it; more often than this in
# a row means that something else removes files here.
_REPLACED_LIMIT = 100
_LOCKS_PATH: Final = Path("/proc/locks")
_FLOCK: Final = re.compile(r": FLOCK +ADVISORY +WRITE +([1-9]\d*) [^ :]+:[^ :]+:(\d+) ")
"""Of a lock that is held; behind an arrow stand those who wait for it."""


class LockFile:
    """One lock that is held."""

    __slots__ = ("__weakref__", "_fd", "_folder", "_name", "_what")

    def __init__(self, fd: int, folder: Path, name: str, what: str) -> None:
        """Not for callers: see `try_take`."""
        self._fd = fd
        self._folder = folder
        self._name = name
        self._what = what
        _LOCKS.add(self)

    @classmethod
    def try_take(cls, folder: Path, name: str, *, what: str, make: bool = True) -> LockFile | None:
        """Take the lock if nobody holds it; never waits.

        Args:
            folder: existing, mode 0700, owned by the effective uid.
            name: of the file.
            what: what it stands for, for messages.
            make: make the file if it is absent; otherwise absence gives None.

        Returns:
            The lock, or None if it is held (or absent, with `make` false).

        Raises:
            OwnerError: the folder or file is not ours alone.
            LimitError: no fd is left.
            ShmError: the folder is not there or not usable.
        """
        path = folder / name
        flags = _FILE_FLAGS | (os.O_CREAT if make else 0)
        with open_private(folder) as folder_fd:
            for _ in range(_REPLACED_LIMIT):
                try:
                    fd = os.open(name, flags, 0o600, dir_fd=folder_fd)
                except FileNotFoundError:
                    return None
                except OSError as error:
                    raise open_error(f"take {what} {path}", error) from error
                with contextlib.ExitStack() as undo:
                    undo.callback(os.close, fd)
                    _check_file(fd, path, what)
                    try:
                        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        return None
                    # The file may have been removed between open and lock: the lock then is on one
                    # that nobody finds any more.
                    if _is_at(fd, name, folder_fd):
                        undo.pop_all()
                        return cls(fd, folder, name, what)
        raise ShmError(
            f"take {what} {path}: the file vanished {_REPLACED_LIMIT} times; does something clean"
            " this folder?"
        )

    @property
    def is_held(self) -> bool:
        """True until `release`, and in the process that took it only."""
        return self._fd >= 0

    def is_in_place(self) -> bool:
        """Whether it is held, and whoever opens its path finds this very file.

        Raises:
            OwnerError, LimitError, ShmError: the folder cannot be looked at.
        """
        if self._fd < 0:
            return False
        with open_private(self._folder) as folder_fd:
            return _is_at(self._fd, self._name, folder_fd)

    def release(self) -> None:
        """Give the lock up; the file stays. Twice does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def remove(self) -> None:
        """Remove the file and give the lock up.

        Raises:
            ShmError: the folder refuses.
        """
        try:
            with open_private(self._folder) as folder_fd:
                os.unlink(self._name, dir_fd=folder_fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise open_error(f"remove {self._what} {self._folder / self._name}", error) from error
        finally:
            self.release()


@contextlib.contextmanager
def open_private(path: Path, *, owner_uid: int | None = None) -> Iterator[int]:
    """Open a folder that nobody but the effective uid can enter, for the block.

    Args:
        path: the folder.
        owner_uid: whose it must be instead: root may look into another's.

    Raises:
        OwnerError, LimitError, ShmError: it is another's or open to others, or cannot be opened.
    """
    wanted_uid = os.geteuid() if owner_uid is None else owner_uid
    try:
        fd = os.open(path, _FOLDER_FLAGS)
    except OSError as error:
        raise open_error(f"open the runtime folder {path}", error) from error
    try:
        status = os.fstat(fd)
        mode = stat.S_IMODE(status.st_mode)
        if status.st_uid != wanted_uid or mode & 0o077:
            raise OwnerError(
                f"open the runtime folder {path}: mode {mode:04o}, owner uid {status.st_uid};"
                f" wanted 0700, uid {wanted_uid}: chmod 0700 it, or name another folder"
            )
        yield fd
    finally:
        os.close(fd)


def _check_file(fd: int, path: Path, what: str) -> None:
    """Return if the file is one that only we could have made."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_nlink > 1:
        raise OwnerError(f"take {what} {path}: not a plain file of ours; remove it")


def _is_at(fd: int, name: str, folder_fd: int) -> bool:
    """Say whether the open file is still the one at that name."""
    try:
        there = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), there)


def _close_in_child() -> None:
    """Close a forked child's copies: with one open, the lock would outlive its holder."""
    for lock in list(_LOCKS):
        lock.release()


_LOCKS: weakref.WeakSet[LockFile] = weakref.WeakSet()
os.register_at_fork(after_in_child=_close_in_child)


def holder_of(path: Path) -> int | None:
    """The process that holds the lock of a file, as the kernel lists it (proc_locks(5)); None:
    nobody does, or a process of another pid namespace. Takes no lock and asks nobody.

    Raises:
        ShmError: it cannot be looked at.
    """
    try:
        status = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise open_error(f"look at {path}", error) from error
    try:
        lines = _LOCKS_PATH.read_text("ascii").splitlines()
    except OSError as error:
        raise ShmError(f"read {_LOCKS_PATH}: {error}; mount /proc where shmq runs") from error
    for line in lines:
        match = _FLOCK.search(line)
        if match is None or int(match[2]) != status.st_ino:
            continue
        pid = int(match[1])
        if is_open_in(pid, status):  # inodes of other file systems have the same numbers
            return pid
    return None
