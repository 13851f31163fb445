"""Messages that could not be processed: to the group's retry topic, at last to its dead letters.

What lives here: `RetryService`, RocketMQ's sendMessageBack. The message is read again by its place
in its queue, which nobody can forge, and put into %RETRY%<group> with a delay, or into %DLQ%<group>
once it has failed too often (putting.py): it is stored before the answer, and the consumer settles
it only then: a message is never lost in between, and may come twice.

Which process: the broker. Writes: nothing of its own. May fail: OffsetIllegalError for a message
that is not there any more, and as a send.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shmq.broker.putting import properties_of
from shmq.core import core
from shmq.errors import CorruptMessageError, OffsetIllegalError
from shmq.topic import dlq_topic, retry_topic

if TYPE_CHECKING:
    from shmq.broker.putting import Putter
    from shmq.broker.topics import TopicTable
    from shmq.store.message_store import MessageStore

__all__ = ["RetryService", "SendBack"]

FIRST_RETRY_LEVEL = 3
"""RocketMQ's: the first retry comes after 10 s, the next after 30 s, then 1 m, 2 m, ..."""
_OK = core.STATUS["OK"][0]
_DLQ_NOTES = ("DLQ_ORIGIN_TOPIC", "DLQ_ORIGIN_MESSAGE_ID")
_DROPPED = ("DELAY", "REAL_TOPIC", "REAL_QID")


@dataclass(frozen=True, slots=True)
class SendBack:
    """One message that failed."""

    group: str
    """Whose consumer could not process it."""
    topic: str
    """The topic it was read from: its own, or the group's retry topic."""
    queue_id: int
    """Its queue there."""
    queue_offset: int
    """Its place."""
    delay_level: int
    """How long it waits; 0: longer each time; below 0: it is a dead letter."""
    max_reconsume_times: int
    """Failures after the first before it is a dead letter."""


class RetryService:
    """Puts messages back. Its coroutine is the loop's.

    Args:
        store: running.
        topics: of the broker.
        putter: of the broker.
        level_count: delay levels there are.
    """

    def __init__(
        self, store: MessageStore, topics: TopicTable, putter: Putter, level_count: int
    ) -> None:
        self._store = store
        self._topics = topics
        self._level_count = level_count
        self._putter = putter
        self.retry_count = 0
        """Messages put into retry topics by this broker."""
        self.dead_letter_count = 0
        """Messages put into dead letter topics by this broker."""

    async def send_back(self, wanted: SendBack, retry_queue_nums: int) -> str:
        """Put a message back; the topic it is in now. Returns once it is stored.

        Raises:
            OffsetIllegalError: there is no such message (any more). CorruptMessageError: damaged.
            ShmqError: as a send.
        """
        loop = asyncio.get_running_loop()
        frame, physical_offset = await loop.run_in_executor(None, self._read, wanted)
        status, reason, said = core.parse_frame(frame, physical_offset=physical_offset)
        if status != _OK or said is None:
            raise CorruptMessageError(
                f"send back {wanted.topic} queue {wanted.queue_id} at {wanted.queue_offset}: "
                f"{core.MESSAGE_REASONS[reason][1]}"
            )
        times = int(said["reconsumeTimes"])
        is_dead = wanted.delay_level < 0 or times >= wanted.max_reconsume_times
        if is_dead:
            await self._topics.ensure_dlq_topic(wanted.group)
            topic = dlq_topic(wanted.group)
        else:
            await self._topics.ensure_retry_topic(wanted.group, retry_queue_nums)
            topic = retry_topic(wanted.group)
        _, handle = random.choice(self._topics.send_queues(topic))
        properties = self._properties(wanted, said, physical_offset, is_dead=is_dead)
        if not is_dead:
            level = wanted.delay_level or FIRST_RETRY_LEVEL + times
            properties["DELAY"] = str(min(level, self._level_count))
        await self._putter.put(
            handle,
            said,
            properties,
            reconsume_times=times + 1,
            what=f"send back to {topic}",
        )
        if is_dead:
            self.dead_letter_count += 1
        else:
            self.retry_count += 1
        return topic

    def _read(self, wanted: SendBack) -> tuple[bytes, int]:
        lookup = self._store.lookup
        entry = lookup.entry(wanted.topic, wanted.queue_id, wanted.queue_offset)
        frame = lookup.read_log(entry.physical_offset, entry.size) if entry else None
        if entry is None or not frame:
            raise OffsetIllegalError(
                f"send back {wanted.topic} queue {wanted.queue_id} at {wanted.queue_offset}: it is "
                "not there any more"
            )
        return frame, entry.physical_offset

    def _properties(
        self, wanted: SendBack, said: dict[str, Any], physical_offset: int, *, is_dead: bool
    ) -> dict[str, str]:
        """The message's own, and RocketMQ's notes of where it came from."""
        store_host = said["storeHost"]
        properties = properties_of(said)
        for name in _DROPPED:
            properties.pop(name, None)
        message_id = (store_host + physical_offset.to_bytes(8, "big")).hex().upper()
        properties.setdefault("RETRY_TOPIC", wanted.topic)
        properties.setdefault("ORIGIN_MESSAGE_ID", message_id)
        for name in _DLQ_NOTES:
            properties.pop(name, None)
        if is_dead:
            properties["DLQ_ORIGIN_TOPIC"] = properties["RETRY_TOPIC"]
            properties["DLQ_ORIGIN_MESSAGE_ID"] = properties["ORIGIN_MESSAGE_ID"]
        return properties
