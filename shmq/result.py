"""What a call gives back, as values that never change.

Tuples, because a send makes one per message: a NamedTuple takes half the time of a frozen
dataclass (measured). Pure words: nothing here writes, blocks or fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from shmq.status import GetMessageStatus, PullStatus, PutMessageStatus, SendStatus

if TYPE_CHECKING:
    from shmq.core import core

__all__ = ["GetMessageResult", "MessageQueue", "PullResult", "PutMessageResult", "SendResult"]


class MessageQueue(NamedTuple):
    """One queue of a topic on one broker; sorts as RocketMQ's does."""

    topic: str
    """The topic."""
    broker_name: str
    """The broker_name that master and slaves share."""
    queue_id: int
    """The queue, from 0."""


class PutMessageResult(NamedTuple):
    """The store's answer to one put_message."""

    status: PutMessageStatus
    """What became of the message."""
    queue_offset: int
    """Its place in its queue; -1 if it is not stored."""
    physical_offset: int
    """Byte position of its record in the CommitLog; -1 if it is not stored."""
    size_bytes: int
    """Bytes of its record; 0 if it is not stored."""


class GetMessageResult(NamedTuple):
    """The store's answer to one get_message: where to read, never the bytes."""

    status: GetMessageStatus
    """Whether messages were found, and if not, why."""
    next_begin_offset: int
    """The queue_offset to ask for next."""
    min_offset: int
    """First queue_offset kept."""
    max_offset: int
    """The next queue_offset to be assigned."""


class SendResult(NamedTuple):
    """What a completed send gives its caller."""

    send_status: SendStatus
    """What is promised; in every case the message is stored."""
    message_id: str
    """The producer's id of the message (UNIQ_KEY), 32 hexadecimal digits."""
    message_queue: MessageQueue
    """The queue it is in."""
    queue_offset: int
    """Its place in that queue."""


class PullResult(NamedTuple):
    """What a pull found, and where it ended."""

    pull_status: PullStatus
    """Whether messages were found, and if not, why."""
    next_begin_offset: int
    """The queue_offset to pull next."""
    min_offset: int
    """First queue_offset kept."""
    max_offset: int
    """The queue_offset behind the last message that may be read."""
    messages: list[core.Message]
    """What was found, in order."""
