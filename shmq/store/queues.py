"""The queues of a store: which row of shared memory stands for which topic and queue_id.

What lives here: `Queues` and `QueueHandle`. It mirrors the rows of the control and topics segments,
which say the truth; a restarted broker reads them back. Which process: the broker's control thread
(and recovery before it). Writes: rows, through the Appender. May fail: ShmFullError where rows
cannot grow; StoreError for a queue that is not there.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

from shmq.core import core
from shmq.core.fields import control_place, field_place, read_ints, read_rows, struct_size
from shmq.errors import StoreError, TopicNotExistError
from shmq.topic import check_topic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shmq.store.memory import StoreMemory

__all__ = ["QueueHandle", "QueueOffsets", "Queues"]

_FULL = core.STATUS["FULL"][0]
_QUEUE_ID_MAX = 2**31 - 1  # a record has a signed 32-bit number


class QueueHandle(NamedTuple):
    """What a record carries instead of topic and queue id."""

    row: int
    """Index of the queue row."""
    generation: int
    """Generation of the row: a handle to a deleted queue is stale, never another queue's."""


class QueueOffsets(NamedTuple):
    """Where a queue begins and ends."""

    min_queue_offset: int
    """First queue_offset kept."""
    hot_min_queue_offset: int
    """First queue_offset whose entry is in memory."""
    max_queue_offset: int
    """Of the next message."""
    visible_max: int
    """Consumers read below it."""


_OFFSET_PLACES = [field_place("queue_row", name) for name in QueueOffsets._fields]
_STATE_PLACE = field_place("queue_row", "state")
_FLAGS_PLACE = field_place("queue_row", "flags")


class Queues:
    """All queues of one store. Threads may share it."""

    def __init__(self, appender: core.Appender, memory: StoreMemory) -> None:
        self._appender = appender
        self._memory = memory
        config = read_ints(memory.control, "control_config", struct_size("segment_header"))
        self._rows_place = config["queue_rows_place"]
        self._topic_rows: dict[str, int] = {}
        self._handles: dict[tuple[str, int], QueueHandle] = {}
        self._names: dict[int, tuple[str, int]] = {}
        self._ids: dict[str, set[int]] = {}
        """Queues of each topic."""
        self._lock = threading.RLock()
        self._load()

    def _load(self) -> None:
        append = read_ints(
            self._memory.control, "append_positions", control_place("append_positions")
        )
        names: dict[int, str] = {}
        for index in range(append["topic_row_count"]):
            place = core.TOPIC_ROWS_PLACE + index * struct_size("topic_row")
            topic_row = read_ints(self._memory.topics, "topic_row", place)
            if topic_row["state"] == core.ROW_ACTIVE:
                begin = place + field_place("topic_row", "topic")
                with memoryview(self._memory.topics) as view:
                    raw = bytes(view[begin : begin + topic_row["topic_size"]])
                names[index] = raw.decode("utf-8", "surrogateescape")
                self._topic_rows[names[index]] = index
        rows = read_rows(
            self._memory.control, "queue_row", self._rows_place, append["queue_row_count"]
        )
        for row, fields in enumerate(rows):
            if fields["state"] in (core.ROW_ACTIVE, core.ROW_READ_ONLY):
                key = names[fields["topic_row"]], fields["queue_id"]
                self._handles[key] = QueueHandle(row, fields["generation"])
                self._names[row] = key
                self._ids.setdefault(key[0], set()).add(key[1])

    # ---- making and changing ---------------------------------------------------------------------

    def add(
        self,
        topic: str,
        queue_id: int,
        *,
        flags: int = 0,
        first_queue_offset: int = 0,
        is_in_log: bool = False,
    ) -> QueueHandle:
        """The handle of a queue, made if it is not there. Flags count for a new one only.

        Args:
            topic: its name.
            queue_id: from 0 on.
            flags: core.ROW_* bits.
            first_queue_offset: of its first message.
            is_in_log: recovery found messages of it: its name is taken as it is.

        Raises:
            IllegalTopicError: no topic may have this name.
            ShmFullError: no memory for more rows.
        """
        with self._lock:
            handle = self._handles.get((topic, queue_id))
            if handle is not None:
                return handle
            if not is_in_log:
                _check(topic, queue_id)
            topic_row = self._topic_rows.get(topic)
            if topic_row is None:
                name = topic.encode("utf-8", "surrogateescape")
                try:
                    topic_row = self._appender.add_topic(name)
                except core.CoreError as error:
                    if error.args[0] != _FULL:
                        raise
                    self._memory.grow_topic_rows()
                    topic_row = self._appender.add_topic(name)
                self._topic_rows[topic] = topic_row
            try:
                made = self._appender.add_queue(topic_row, queue_id, flags, first_queue_offset)
            except core.CoreError as error:
                if error.args[0] != _FULL:
                    raise
                self._memory.grow_queue_rows()
                made = self._appender.add_queue(topic_row, queue_id, flags, first_queue_offset)
            handle = QueueHandle(*made)
            self._handles[topic, queue_id] = handle
            self._names[handle.row] = topic, queue_id
            self._ids.setdefault(topic, set()).add(queue_id)
            return handle

    def set(self, topic: str, queue_id: int, *, flags: int, is_writable: bool = True) -> None:
        """Change the level of a queue (core.ROW_* flags) and whether it takes messages.

        Raises:
            TopicNotExistError: there is no such queue.
        """
        state = core.ROW_ACTIVE if is_writable else core.ROW_READ_ONLY
        with self._lock:
            self._appender.set_queue(self.find(topic, queue_id).row, state, flags)

    def delete(self, topic: str, queue_id: int) -> None:
        """Delete a queue: its handles are stale, its entries gone; the log keeps its messages until
        retention takes them.

        Raises:
            TopicNotExistError: there is no such queue.
        """
        with self._lock:
            handle = self.find(topic, queue_id)
            self._appender.delete_queue(handle.row)
            del self._handles[topic, queue_id]
            del self._names[handle.row]
            self._ids[topic].remove(queue_id)
            if not self._ids[topic]:
                del self._ids[topic]
                self._appender.delete_topic(self._topic_rows.pop(topic))

    def set_min(self, row: int, min_queue_offset: int) -> None:
        """What lies below min_queue_offset is not kept."""
        self._appender.set_min(row, min_queue_offset)

    def raise_min(self, topic: str, queue_id: int, min_queue_offset: int) -> int | None:
        """Retention takes what lies below min_queue_offset; where the queue began before, None if
        there is no such queue, or if it began there already.
        """
        with self._lock:
            handle = self._handles.get((topic, queue_id))
            if handle is None:
                return None
            before = self.offsets(handle).min_queue_offset
            if before >= min_queue_offset:
                return None
            self._appender.set_min(handle.row, min_queue_offset)
            return before

    # ---- looking up ------------------------------------------------------------------------------

    def find(self, topic: str, queue_id: int) -> QueueHandle:
        """The handle of a queue.

        Raises:
            TopicNotExistError: there is no such queue.
        """
        with self._lock:
            handle = self._handles.get((topic, queue_id))
        if handle is None:
            raise TopicNotExistError(
                f"find queue {queue_id} of topic {topic}: this broker has no such queue; "
                "create the topic, or refresh the route"
            )
        return handle

    def of(self, topic: str) -> list[tuple[int, QueueHandle]]:
        """The queues of one topic, (queue_id, handle) in order; none if there is no such topic."""
        with self._lock:
            ids = sorted(self._ids.get(topic, ()))
            return [(queue_id, self._handles[topic, queue_id]) for queue_id in ids]

    def name(self, row: int) -> tuple[str, int]:
        """Topic and queue_id of a row.

        Raises:
            StoreError: the row stands for no queue.
        """
        with self._lock:
            name = self._names.get(row)
        if name is None:
            raise StoreError(f"name queue row {row}: it stands for no queue")
        return name

    def __iter__(self) -> Iterator[tuple[str, int, QueueHandle]]:
        """All queues: topic, queue_id, handle."""
        with self._lock:
            items = tuple(self._handles.items())
        for (topic, queue_id), handle in items:
            yield topic, queue_id, handle

    def __len__(self) -> int:
        return len(self._handles)

    def offsets(self, handle: QueueHandle) -> QueueOffsets:
        """Where a queue begins and ends, as of now."""
        base = self._rows_place + handle.row * struct_size("queue_row")
        load = self._memory.control.load64
        return QueueOffsets(*[load(base + place) for place in _OFFSET_PLACES])

    def expired_ends(self) -> dict[str, dict[int, int]]:
        """Where the next message stands, by topic and queue_id, of the queues that had messages of
        which none is kept any more.
        """
        ends: dict[str, dict[int, int]] = {}
        for topic, queue_id, handle in self:
            now = self.offsets(handle)
            if now.min_queue_offset == now.max_queue_offset > 0:
                ends.setdefault(topic, {})[queue_id] = now.max_queue_offset
        return ends

    def hot_min(self, handle: QueueHandle) -> int:
        """First queue_offset whose entry is in memory."""
        place = self._rows_place + handle.row * struct_size("queue_row")
        return self._memory.control.load64(place + field_place("queue_row", "hot_min_queue_offset"))

    def state(self, handle: QueueHandle) -> tuple[bool, int]:
        """(whether it takes messages, its core.ROW_* flags)."""
        base = self._rows_place + handle.row * struct_size("queue_row")
        load = self._memory.control.load32
        return load(base + _STATE_PLACE) == core.ROW_ACTIVE, load(base + _FLAGS_PLACE)

    def tail_block(self, handle: QueueHandle) -> int:
        """The last block of a queue's chain in the arena; 0: none."""
        base = self._rows_place + handle.row * struct_size("queue_row")
        return self._memory.control.load32(base + field_place("queue_row", "tail_block"))


def _check(topic: str, queue_id: int) -> None:
    check_topic(topic)
    if not 0 <= queue_id <= _QUEUE_ID_MAX:
        raise StoreError(f"add queue {queue_id} of {topic}: wanted 0 to {_QUEUE_ID_MAX}")
