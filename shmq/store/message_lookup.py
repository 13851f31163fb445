"""Messages looked up from the broker's side: by key, by id, by place, by time.

What lives here: `MessageLookup`. An answer names messages by their places; their bytes are read in
pieces of the caller's size, so that no message makes the broker hold more of it. A message is found
if a consumer could still read it: its frame stands where its queue's entry says. So nothing of an
unfinished, a deleted or an expired message shows, and bytes that only look like a frame (a body may
hold anything) are none.

Which process: the broker, threads of requests. Writes nothing but index files (index_service.py).
Blocks for the disk. May fail: StoreError for a file that cannot be read, SystemBusyError where a
search takes too long. CRCs are left to whoever takes the whole message.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, NamedTuple

from shmq.core import core
from shmq.errors import ServiceNotAvailableError, TopicNotExistError
from shmq.store.consume_queue_files import topic_text
from shmq.store.index_files import key_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shmq.clock import Clock
    from shmq.store.index_service import IndexService
    from shmq.store.lookup import Lookup
    from shmq.store.message_store import LogPositions

__all__ = ["FoundMessage", "MessageLookup"]

SEARCH_TIME_S = 3.0
"""How long a search by key may take: less than whoever asks waits for an answer."""
_HEAD_BYTES = 1024
"""Read first: mostly the whole frame."""
_HEAD_BYTES_MIN = 8
_HOLES_MAX = 1024
"""Lost messages passed over in a queue on the way to one that is asked for."""


class FoundMessage(NamedTuple):
    """Where a message is."""

    topic: str
    queue_id: int
    queue_offset: int
    physical_offset: int
    """Start of its frame."""
    size: int
    """Bytes of its frame."""
    store_timestamp: int
    """ms since 1970."""


class _Frame(NamedTuple):
    """A frame by what stands before and behind its body."""

    message: FoundMessage
    properties: bytes


class MessageLookup:
    """Lookups in one store. Threads may share it."""

    def __init__(
        self,
        lookup: Lookup,
        index: IndexService | None,
        *,
        positions: Callable[[], LogPositions],
        file_size_bytes: int,
        clock: Clock,
    ) -> None:
        """Nothing happens yet.

        Args:
            lookup: of entries and bytes.
            index: of keys; None: the store has none.
            positions: how far the log is.
            file_size_bytes: of a CommitLog file.
            clock: for the time that a search may take.
        """
        self._clock = clock
        self._lookup = lookup
        self._index = index
        self._positions = positions
        self._file_size_bytes = file_size_bytes

    # ---- by place --------------------------------------------------------------------------------

    def at(self, physical_offset: int) -> FoundMessage | None:
        """The message whose frame begins there; None if there is none that can be consumed.

        Raises:
            StoreError: a file cannot be read.
        """
        frame = self._frame(physical_offset)
        return None if frame is None else frame.message

    def read(self, message: FoundMessage, begin: int, size: int) -> bytes | None:
        """Bytes of a message's frame; None if it expired meanwhile.

        Args:
            message: as it was found.
            begin: byte in the frame.
            size: at most so many.
        """
        size = min(size, message.size - begin)
        return self._lookup.read_log(message.physical_offset + begin, size) if size > 0 else b""

    def in_queue(
        self, topic: str, queue_id: int, queue_offset: int, message_count: int
    ) -> list[FoundMessage]:
        """Messages of a queue from `queue_offset` on; lost ones are passed over.

        Raises:
            TopicNotExistError: there is no such queue.
            StoreError: a file cannot be read.
        """
        found: list[FoundMessage] = []
        low, high = self._lookup.span(topic, queue_id)
        first = max(queue_offset, low)
        for at in range(first, min(high, first + message_count + _HOLES_MAX)):
            if len(found) == message_count:
                break
            message = self._of_entry(topic, queue_id, at)
            if message is not None:
                found.append(message)
        return found

    def _of_entry(self, topic: str, queue_id: int, queue_offset: int) -> FoundMessage | None:
        entry = self._lookup.entry(topic, queue_id, queue_offset)
        return None if entry is None or not entry.size else self.at(entry.physical_offset)

    # ---- by time ---------------------------------------------------------------------------------

    def between(
        self,
        topic: str,
        queue_ids: Iterable[int],
        *,
        begin_ms: int,
        end_ms: int,
        message_count: int,
    ) -> list[FoundMessage]:
        """The newest messages stored in a span of time, the newest first.

        Args:
            topic: the topic.
            queue_ids: of these queues.
            begin_ms: stored then or later, ms since 1970.
            end_ms: stored then or before.
            message_count: at most.

        Raises:
            TopicNotExistError: there is no such queue.
            StoreError: a file cannot be read.
        """
        found: list[FoundMessage] = []
        for queue_id in queue_ids:
            low = self._lookup.find_by_time(topic, queue_id, begin_ms)
            high = self._lookup.find_by_time(topic, queue_id, end_ms + 1)
            count = 0
            for at in range(high - 1, max(low, high - message_count - _HOLES_MAX) - 1, -1):
                if count == message_count:
                    break
                message = self._of_entry(topic, queue_id, at)
                if message is not None:
                    found.append(message)
                    count += 1
        return heapq.nlargest(message_count, found, key=_newest)

    # ---- by key ----------------------------------------------------------------------------------

    def by_key(
        self,
        topic: str | None,
        key: str,
        *,
        begin_ms: int,
        end_ms: int,
        message_count: int,
        is_unique_key: bool = False,
        queue_id: int | None = None,
    ) -> list[FoundMessage]:
        """The newest messages with a key, the newest first.

        Args:
            topic: only of this topic; None only with `is_unique_key`: of all topics.
            key: a word of KEYS, or the UNIQ_KEY.
            begin_ms: stored then or later, ms since 1970.
            end_ms: stored then or before.
            message_count: at most.
            is_unique_key: the key is the UNIQ_KEY.
            queue_id: only of this queue; None: of all.

        Raises:
            ServiceNotAvailableError: this store keeps no index.
            SystemBusyError: it takes too long.
            StoreError: a file cannot be read, or not be indexed.
        """
        if self._index is None:
            raise ServiceNotAvailableError(
                f"look up key {key}: this broker keeps no index (message_index_enable is false)",
                hint="set message_index_enable and restart it; what is stored is indexed then",
            )
        assert topic is not None or is_unique_key
        found: list[FoundMessage] = []
        seen = set()
        for physical_offset in self._index.find(
            key_hash(None if is_unique_key else topic, key),
            begin_ms=begin_ms,
            end_ms=end_ms,
            deadline_ns=self._clock.monotonic_ns() + int(SEARCH_TIME_S * 1e9),
        ):
            if physical_offset in seen:  # a message may name a key twice
                continue
            seen.add(physical_offset)
            frame = self._frame(physical_offset)
            if (
                frame is not None
                and topic in (None, frame.message.topic)
                and queue_id in (None, frame.message.queue_id)
                and begin_ms <= frame.message.store_timestamp <= end_ms
                and _has_key(frame.properties, key, is_unique_key)
            ):
                found.append(frame.message)
                if len(found) == message_count:
                    break
        return found

    # ---- frames ----------------------------------------------------------------------------------

    def _frame(self, physical_offset: int) -> _Frame | None:
        now = self._positions()
        if not now.min_position <= physical_offset < now.committed_position:
            return None
        room = self._file_size_bytes - physical_offset % self._file_size_bytes
        available = min(room, now.committed_position - physical_offset)
        head = self._lookup.read_log(physical_offset, min(_HEAD_BYTES, available))
        if head is None or len(head) < _HEAD_BYTES_MIN:
            return None
        said = core.frame_head(head, physical_offset=physical_offset, room=available)
        if said is None:
            return None
        size, tail_place, tail_size, is_v2, queue_id, queue_offset, store_timestamp = said
        tail: bytes | None = head[tail_place : tail_place + tail_size]
        if tail is None or len(tail) < tail_size:
            tail = self._lookup.read_log(physical_offset + tail_place, tail_size)
        if tail is None or len(tail) < tail_size:
            return None
        width = 1 + is_v2
        topic_end = width + int.from_bytes(tail[:width], "big")
        properties = tail[topic_end + 2 :]
        if len(properties) != int.from_bytes(tail[topic_end : topic_end + 2], "big"):
            return None
        topic = topic_text(tail[width:topic_end])
        message = FoundMessage(
            topic, queue_id, queue_offset, physical_offset, size, store_timestamp
        )
        return _Frame(message, properties) if self._is_in_queue(message) else None

    def _is_in_queue(self, message: FoundMessage) -> bool:
        try:
            entry = self._lookup.entry(message.topic, message.queue_id, message.queue_offset)
        except TopicNotExistError:
            return False
        return (
            entry is not None
            and entry.physical_offset == message.physical_offset
            and entry.size == message.size
        )


def _newest(message: FoundMessage) -> tuple[int, int]:
    return message.store_timestamp, message.physical_offset


def _has_key(properties: bytes, key: str, is_unique_key: bool) -> bool:
    wanted = key.encode("utf-8", "surrogateescape")
    name = b"UNIQ_KEY\x01" if is_unique_key else b"KEYS\x01"
    value = b""
    for pair in properties.split(b"\x02"):  # of a name that comes twice the last counts
        if pair.startswith(name):
            value = pair[len(name) :]
    return value == wanted if is_unique_key else wanted in value.split(b" ")
