"""Writes one file of the store off the event loop, once for all who changed it meanwhile.

What lives here: `Saver`. A change is made in memory, then `save` is awaited: it returns when a
write that began after the change is on disk. Changes that come while a write runs share the next
one, so that a thousand new topics cost a few writes. The loop's thread owns it; the write runs in a
worker thread on a snapshot. May fail: DiskFullError, StoreError; the old file stands, the change
stays in memory and goes with the next write.
"""

import asyncio
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

__all__ = ["Files", "Saver"]

_C = TypeVar("_C")
_C_contra = TypeVar("_C_contra", contravariant=True)


class Files(Protocol[_C_contra]):
    """Where it goes: the store's ConfigFiles, or whoever else writes a file as a whole."""

    def store(self, contents: _C_contra, /) -> None:
        """Replace the file, durably. Blocks."""


class Saver(Generic[_C]):
    """One file.

    Args:
        files: writes it.
        snapshot: gives what the file shall hold, which nobody changes afterwards.
    """

    def __init__(self, files: Files[_C], snapshot: Callable[[], _C]) -> None:
        self._files = files
        self._snapshot = snapshot
        self._waiting: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    async def save(self) -> None:
        """Return when everything changed so far is on disk.

        Raises:
            DiskFullError, StoreError: it is not.
        """
        if self._waiting is None:
            self._waiting = asyncio.get_running_loop().create_future()
            self._waiting.add_done_callback(_looked_at)
            if self._task is None:
                self._task = asyncio.create_task(self._write())
        await asyncio.shield(self._waiting)

    def save_now(self) -> None:
        """The same from a thread without a loop, while no loop runs. Blocks for the disk."""
        self._files.store(self._snapshot())

    async def _write(self) -> None:
        while self._waiting is not None:
            future, self._waiting = self._waiting, None
            try:
                await asyncio.to_thread(self._files.store, self._snapshot())
            except Exception as error:  # noqa: BLE001 - whoever waits has it, whatever it is
                future.set_exception(error)
            except BaseException:
                self._task = None
                future.cancel()
                raise
            else:
                future.set_result(None)
        self._task = None


def _looked_at(future: asyncio.Future[None]) -> None:
    """Whoever awaited it has the exception; where nobody did, it is not worth a log line."""
    if not future.cancelled():
        future.exception()
