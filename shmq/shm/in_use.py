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

import os
import time
from typing import TYPE_CHECKING

from shmq.clock import SYSTEM_CLOCK
from shmq.errors import OwnerError, ShmError
from shmq.shm.lock_file import LockFile, open_private
from shmq.shm.names import StoreName, parse_store

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

__all__ = ["InUseMark", "marked_stores"]

_SUFFIX = ".lock"
_RETRY_INTERVAL_S = 0.005


class InUseMark:
    """The right to create, adopt and remove one store's objects. A context manager."""

    __slots__ = ("_folder", "_lock", "_store")

    def __init__(self, lock: LockFile, folder: Path, store: StoreName) -> None:
        """Not for callers: see `take` and `try_take`."""
        self._lock = lock
        self._folder = folder
        self._store = store

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
        lock = LockFile.try_take(
            runtime_folder, f"{store}{_SUFFIX}", what="the in-use mark", make=make
        )
        return None if lock is None else cls(lock, runtime_folder, store)

    @property
    def store(self) -> StoreName:
        """Whose memory it stands for."""
        return self._store

    @property
    def is_held(self) -> bool:
        """True until `release`, and in the process that took it only."""
        return self._lock.is_held

    def release(self) -> None:
        """Give the mark up; the file stays and says whose memory it was. Twice does nothing."""
        self._lock.release()

    def remove(self) -> None:
        """Remove the file and give the mark up: the store has no memory left.

        Raises:
            ShmError: the mark was released before, or the folder refuses.
        """
        if not self.is_held:
            raise ShmError(f"remove the in-use mark of {self._store}: it is not held")
        self._lock.remove()

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


def marked_stores(runtime_folder: Path, *, owner_uid: int | None = None) -> set[StoreName]:
    """Return the stores that have a mark file in the folder, held or not.

    Args:
        runtime_folder: of one broker.
        owner_uid: whose it must be, if not the effective uid's.

    Raises:
        OwnerError, ShmError: the folder cannot be trusted or read.
    """
    with open_private(runtime_folder, owner_uid=owner_uid) as folder_fd:
        names = os.listdir(folder_fd)
    stores = (parse_store(name.removesuffix(_SUFFIX)) for name in names if name.endswith(_SUFFIX))
    return {store for store in stores if store is not None}
