"""Waiting in line: tasks that go one after the other, in the order in which they came.

What lives here: `Lines`. A send that cannot be put at once stands in the line of its queue, and
all that come behind it in that queue wait there too: that is what keeps them in order. Which
process: the program's, one loop. Writes nothing. May fail: CancelledError of who waits; it leaves.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["Lines", "Place"]

K = TypeVar("K", bound="Hashable")


class Place(Generic[K]):
    """One task's place in a line. An async context manager: its turn has come inside."""

    __slots__ = ("_future", "_key", "_lines")

    def __init__(self, lines: Lines[K], key: K, future: asyncio.Future[None]) -> None:
        self._lines = lines
        self._key = key
        self._future = future

    async def __aenter__(self) -> None:
        try:
            await self._future
        except asyncio.CancelledError:
            self.leave()
            raise

    async def __aexit__(self, *exc_info: object) -> None:
        self.leave()

    async def comes_within(self, timeout_s: float) -> bool:
        """Whether its turn comes in so many seconds; if not, it has left the line."""
        if self._future.done():
            return True
        try:
            await asyncio.wait({self._future}, timeout=timeout_s)
        except asyncio.CancelledError:
            self.leave()
            raise
        if self._future.done():
            return True
        self.leave()
        return False

    def leave(self) -> None:
        """Whoever is next has the turn."""
        self._lines.leave(self._key, self._future)


class Lines(Generic[K]):
    """A line for each key that somebody waits for."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lines: dict[K, deque[asyncio.Future[None]]] = {}

    def __contains__(self, key: K) -> bool:
        return key in self._lines

    def __bool__(self) -> bool:
        return bool(self._lines)

    def enter(self, key: K) -> Place[K]:
        """Stand in line, behind all that are there; never waits."""
        future: asyncio.Future[None] = self._loop.create_future()
        line = self._lines.setdefault(key, deque())
        line.append(future)
        if len(line) == 1:
            future.set_result(None)
        return Place(self, key, future)

    def leave(self, key: K, future: asyncio.Future[None]) -> None:
        """Stand there no more, wherever in it."""
        line = self._lines[key]
        line.remove(future)
        if not line:
            del self._lines[key]
        elif not line[0].done():
            line[0].set_result(None)
