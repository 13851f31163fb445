"""Finding messages from the broker's side: the entry of a queue_offset, the time of a frame.

What lives here: `Lookup`, for the few requests that ask by time or want a timestamp; consumers read
entries and frames themselves. It reads the ConsumeQueue arena as every reader does (the block's
generation before and after, consume_queue.h), files behind it, and frames in memory or their file.

Which process: the broker, any thread. Writes nothing. Blocks for the disk where memory does not
have it. May fail: StoreError for a file that cannot be read.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, NamedTuple

from shmq.core import core
from shmq.core.fields import field_place, struct_size
from shmq.errors import StoreError

if TYPE_CHECKING:
    from shmq.store.derive import DeriveService
    from shmq.store.hot_log import HotLog
    from shmq.store.log_files import LogFiles
    from shmq.store.memory import StoreMemory
    from shmq.store.queues import QueueHandle, Queues

__all__ = ["Entry", "Lookup"]

_ENTRY = struct.Struct("<QqQ")
_READ_RETRIES = 100
_STEP_MAX = 64
"""Halvings of a search: a queue_offset has 64 bits."""
_HOLES_MAX = 1024
"""Lost entries passed over to find one with a time."""

# RocketMQ's record up to its storeTimestamp; the bornHost before it has 8 or 20 bytes.
_FRAME_HEAD_SIZE = 76
_PHYSICAL_OFFSET_PLACE = 28
_SYS_FLAG_PLACE = 36
_STORE_TIMESTAMP_PLACE = 56
_BORN_HOST_V6 = 0x10
_V6_EXTRA = 12


class Entry(NamedTuple):
    """One ConsumeQueue entry."""

    physical_offset: int
    """Start of the frame."""
    tags_code: int
    """Hash of the tag."""
    size: int
    """Bytes of the frame; 0: the message is lost."""


class Lookup:
    """Reads of one store. Threads may share it."""

    def __init__(
        self,
        memory: StoreMemory,
        queues: Queues,
        hot_log: HotLog,
        files: LogFiles,
        derive: DeriveService,
    ) -> None:
        self._memory = memory
        self._queues = queues
        self._hot_log = hot_log
        self._files = files
        self._derive = derive

    def find_by_time(self, topic: str, queue_id: int, timestamp_ms: int) -> int:
        """The queue_offset of the first visible message stored at or after a time, or visible_max.

        Lost messages have no time; they are passed over, and where very many follow each other the
        answer may be one before them.

        Raises:
            TopicNotExistError: there is no such queue.
            StoreError and its kin: a file cannot be read.
        """
        now = self._queues.offsets(self._queues.find(topic, queue_id))
        low, high = now.min_queue_offset, now.visible_max
        for _ in range(_STEP_MAX):
            if low >= high:
                break
            middle = (low + high) // 2
            timed = self._first_timed(topic, queue_id, middle, high)
            if timed is None or timed[1] >= timestamp_ms:
                high = middle
            else:
                low = timed[0] + 1
        return low

    def first_store_timestamp(self, topic: str, queue_id: int, queue_offset: int) -> int | None:
        """When the first message from there on was stored that is not lost, ms since 1970; None
        without one. Errors as `find_by_time`.
        """
        timed = self._first_timed(topic, queue_id, queue_offset, self.span(topic, queue_id)[1])
        return None if timed is None else timed[1]

    def _first_timed(
        self, topic: str, queue_id: int, queue_offset: int, end: int
    ) -> tuple[int, int] | None:
        """(queue_offset, store time in ms) of the first message from there on that is not lost."""
        for at in range(queue_offset, min(end, queue_offset + _HOLES_MAX)):
            store_timestamp = self.store_timestamp(topic, queue_id, at)
            if store_timestamp is not None:
                return at, store_timestamp
        return None

    def store_timestamp(self, topic: str, queue_id: int, queue_offset: int) -> int | None:
        """When a message was stored, ms since 1970; None if it is lost, expired or yet to come.

        Raises:
            TopicNotExistError, StoreError: as `find_by_time`.
        """
        entry = self.entry(topic, queue_id, queue_offset)
        if entry is None or entry.size < _FRAME_HEAD_SIZE:
            return None
        head = self.read_log(entry.physical_offset, _FRAME_HEAD_SIZE)
        if head is None:
            return None
        (physical_offset,) = struct.unpack_from(">Q", head, _PHYSICAL_OFFSET_PLACE)
        if physical_offset != entry.physical_offset:
            return None
        (sys_flag,) = struct.unpack_from(">i", head, _SYS_FLAG_PLACE)
        place = _STORE_TIMESTAMP_PLACE + (_V6_EXTRA if sys_flag & _BORN_HOST_V6 else 0)
        return int(struct.unpack_from(">q", head, place)[0])

    def span(self, topic: str, queue_id: int) -> tuple[int, int]:
        """(min_queue_offset, visible_max) of a queue; TopicNotExistError: there is none."""
        now = self._queues.offsets(self._queues.find(topic, queue_id))
        return now.min_queue_offset, now.visible_max

    def entry(self, topic: str, queue_id: int, queue_offset: int) -> Entry | None:
        """The entry of a visible message, from memory or files; None if there is none (any more).

        Raises:
            TopicNotExistError, StoreError: as `find_by_time`.
        """
        handle = self._queues.find(topic, queue_id)
        now = self._queues.offsets(handle)
        if not now.min_queue_offset <= queue_offset < now.visible_max:
            return None
        hot = self.hot_entries(handle, queue_offset, 1)
        if hot is not None:
            return Entry(*_ENTRY.unpack(hot))
        cold = self._derive.read(topic, queue_id, queue_offset, 1)
        if cold is None or cold[0] != queue_offset:
            return None
        return Entry(*_ENTRY.unpack_from(cold[1]))

    # ---- memory ----------------------------------------------------------------------------------

    def hot_entries(self, handle: QueueHandle, queue_offset: int, count: int) -> bytes | None:
        """Visible entries from queue_offset on, 24 bytes each, as far as its block has them and at
        most `count`; None if the first is not in memory.
        """
        for _ in range(_READ_RETRIES):
            now = self._queues.offsets(handle)
            count = min(count, now.visible_max - queue_offset)
            if queue_offset < now.hot_min_queue_offset or count <= 0:
                return None
            found = self._walk(handle, queue_offset, count)
            if found is not None:
                return found
        return None

    def _walk(self, handle: QueueHandle, queue_offset: int, count: int) -> bytes | None:
        """Entries, by walking back from the chain's tail; None if the chain changed meanwhile."""
        arena = self._memory.arena
        number = self._queues.tail_block(handle)
        for _ in range(arena.size_bytes // core.BLOCK_SIZE):  # no chain has more blocks than that
            base = number * core.BLOCK_SIZE
            if number == 0 or base + core.BLOCK_SIZE > arena.size_bytes:
                return None
            generation = arena.load64(base)
            first = arena.load64(base + _FIRST)
            owner = arena.load32(base + _ROW), arena.load32(base + _ROW_GENERATION)
            previous, skip = arena.load32(base + _PREVIOUS), arena.load32(base + _SKIP)
            if generation & 1 or owner != handle:
                return None
            index = queue_offset - first
            if index >= 0:
                if index >= core.BLOCK_ENTRIES:
                    return None
                place = base + _HEAD + index * _ENTRY.size
                end = place + min(count, core.BLOCK_ENTRIES - index) * _ENTRY.size
                words = [arena.load64(at) for at in range(place, end, 8)]
                # Loads are acquire: the words came before this look at the generation.
                if arena.load64(base) != generation:
                    return None
                return struct.pack(f"<{len(words)}Q", *words)
            if arena.load64(base) != generation:
                return None
            number = previous
            if self._is_between(skip, handle, queue_offset, first):
                number = skip
        return None

    def _is_between(self, number: int, handle: QueueHandle, low: int, high: int) -> bool:
        """Whether a block is of this queue still, and begins at `low` or behind, but before `high`:
        a skip may lead to a block that was freed since, and is the chain's tail by now.
        """
        arena = self._memory.arena
        base = number * core.BLOCK_SIZE
        if number == 0 or base + core.BLOCK_SIZE > arena.size_bytes:
            return False
        generation = arena.load64(base)
        first = arena.load64(base + _FIRST)
        owner = arena.load32(base + _ROW), arena.load32(base + _ROW_GENERATION)
        is_whole = generation & 1 == 0 and arena.load64(base) == generation
        return is_whole and owner == handle and low <= first < high

    # ---- frames ----------------------------------------------------------------------------------

    def read_log(self, physical_offset: int, size: int) -> bytes | None:
        """Bytes of one file of the log; None if it is not kept (any more)."""
        data = self._hot_log.read(physical_offset, size)
        if data is not None:
            return data
        file_position = physical_offset - physical_offset % self._hot_log.file_size_bytes
        try:
            fd = self._files.open(file_position, readonly=True)
        except StoreError:
            return None
        try:
            data = os.pread(fd, size, physical_offset - file_position)
        finally:
            os.close(fd)
        return data if len(data) == size else None


_HEAD = struct_size("block_header")
_FIRST = field_place("block_header", "first_queue_offset")
_ROW = field_place("block_header", "queue_row")
_ROW_GENERATION = field_place("block_header", "row_generation")
_PREVIOUS = field_place("block_header", "previous_block")
_SKIP = field_place("block_header", "skip_block")
