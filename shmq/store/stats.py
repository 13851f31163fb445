"""What a store's broker tells exporters beside what the append thread counts: rows by name.

What lives here: `Stats`, the writing side of the stats object (core/include/shmq/stats.h). A key
has a row as long as it is wanted; each round says all that hold, and what it leaves out is free.
Which process: the broker, the thread of its loop. Writes: the stats object. May fail: ShmFullError
where rows cannot grow: the numbers that found no row are left out, and a line says so.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from shmq.core import core
from shmq.errors import ShmError

if TYPE_CHECKING:
    from shmq.store.memory import StoreMemory
    from shmq.store.queues import QueueHandle

__all__ = ["Progress", "Stats"]

_log = logging.getLogger("shmq.store")

LABEL_SIZE_MAX = 256


class Progress(NamedTuple):
    """How far a group is in a queue."""

    consumer_offset: int
    """Next queue_offset to consume."""
    passed_count: int
    """queue_offsets that it has passed since the broker began."""
    waiting_since: int
    """Store time of the message at consumer_offset, ms since 1970; 0: there was none."""


class Stats:
    """The stats object of one store.

    Args:
        memory: of the store; the object is made here.
        appender: of the store; counts into it from now on.
    """

    def __init__(self, memory: StoreMemory, appender: core.Appender) -> None:
        self._memory = memory
        self._appender = appender
        mapping = memory.create_stats()
        appender.set_stats(mapping)
        self._rows = core.StatsRows(mapping)
        self._indexes: dict[tuple[int, bytes, int, int], int] = {}
        self._known: dict[int, tuple[int, ...]] = {}
        self._wanted: set[tuple[int, bytes, int, int]] = set()
        self._free: list[int] = []
        self._next = 0
        self._is_full = False

    # ---- one round ---------------------------------------------------------------------------

    def value(self, metric: str, value: int, label: str = "") -> None:
        """Say a number, 0 to 2**64 - 1, of a metric that has no label, or one with this value."""
        text = f"{metric}\n{label}".encode("utf-8", "surrogateescape")[:LABEL_SIZE_MAX]
        self._set((core.STATS_VALUE, text, 0, 0), (value,))

    def progress(self, group: str, handle: QueueHandle, now: Progress) -> None:
        """Say how far a group is in a queue."""
        text = group.encode("utf-8", "surrogateescape")[:LABEL_SIZE_MAX]
        self._set((core.STATS_CONSUMER_OFFSET, text, *handle), now)

    def _set(self, key: tuple[int, bytes, int, int], values: tuple[int, ...]) -> None:
        self._wanted.add(key)
        index = self._indexes.get(key)
        if index is None:
            index = self._take(key)
            if index is None:
                return
        if self._known.get(index) != values:
            self._known[index] = values
            self._rows.set(index, *values)

    def _take(self, key: tuple[int, bytes, int, int]) -> int | None:
        kind, label, queue_row, row_generation = key
        index = self._free.pop() if self._free else self._next
        while True:  # twice at most: a row more is there, or there is none
            try:
                self._rows.put(
                    index, kind, label, queue_row=queue_row, row_generation=row_generation
                )
                break
            except ValueError:  # beyond the last
                try:
                    self._memory.grow_stats_rows()
                except ShmError as error:
                    if not self._is_full:
                        _log.warning("exporters see not all: %s", error)
                    self._is_full = True
                    return None
        self._next = max(self._next, index + 1)
        self._indexes[key] = index
        return index

    def end_round(self) -> None:
        """Free the rows of what was not said in this round, and take what producers counted."""
        for key in self._indexes.keys() - self._wanted:
            index = self._indexes.pop(key)
            self._known.pop(index, None)
            self._rows.put(index, core.STATS_FREE, b"")
            self._free.append(index)
        self._wanted.clear()
        self._appender.look()

    def close(self) -> None:
        """Let go of it; nobody finds it any more. What the Appender still counts, nobody reads."""
        self._rows.close()
        self._memory.drop_stats()
