"""What a call gives back, as values that never change.

Tuples, because a send makes one per message: a NamedTuple takes half the time of a frozen
dataclass (measured). Pure words: nothing here writes, blocks or fails.
"""

from __future__ import annotations

import bisect
import itertools
import operator
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, overload

from shmq.status import GetMessageStatus, PullStatus, PutMessageStatus, SendStatus

if TYPE_CHECKING:
    from shmq.core import core

__all__ = [
    "GetMessageResult",
    "MessageQueue",
    "PullResult",
    "PutMessageResult",
    "SendResult",
    "SendResults",
    "StoredResults",
]


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


class _Results(Sequence[SendResult]):
    """Equal to any sequence of the same results."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]

    def _at(self, index: int) -> SendResult:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> SendResult: ...
    @overload
    def __getitem__(self, index: slice) -> list[SendResult]: ...
    def __getitem__(self, index: int | slice) -> SendResult | list[SendResult]:
        count = len(self)
        if isinstance(index, slice):
            return [self._at(at) for at in range(*index.indices(count))]
        if not -count <= index < count:
            raise IndexError(f"result {index} of {count}")
        return self._at(index % count)

    def __iter__(self) -> Iterator[SendResult]:
        return map(self._at, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(map(operator.eq, self, other))

    def __repr__(self) -> str:
        return repr(list(self))

    def __reduce__(self) -> tuple[type[list[SendResult]], tuple[list[SendResult]]]:
        """Copied and pickled as a list, which it is made of then: the numbers stay here."""
        return list, (list(self),)


class StoredResults(_Results):
    """Of messages of one send_many that all ended alike. Each is made when it is looked at: that
    takes longer than the message.
    """

    __slots__ = ("_completions", "_message_queue", "_send_status")

    def __init__(
        self, send_status: SendStatus, message_queue: MessageQueue, completions: core.Completions
    ) -> None:
        """By send_many."""
        self._send_status = send_status
        self._message_queue = message_queue
        self._completions = completions

    def __len__(self) -> int:
        return len(self._completions)

    def _at(self, index: int) -> SendResult:
        _, queue_offset, message_id = self._completions[index]
        return SendResult(self._send_status, message_id or "", self._message_queue, queue_offset)


class SendResults(_Results):
    """Of one send_many that took several looks at the ring."""

    __slots__ = ("_ends", "_parts")

    def __init__(self, parts: Sequence[Sequence[SendResult]]) -> None:
        """By send_many."""
        self._parts = parts
        self._ends = list(itertools.accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _at(self, index: int) -> SendResult:
        part = bisect.bisect_right(self._ends, index)
        return self._parts[part][index - (self._ends[part - 1] if part else 0)]


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
