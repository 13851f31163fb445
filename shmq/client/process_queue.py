"""One queue of a consumer: what was handed out, what is settled, what may be reported.

What lives here: `ProcessQueue`, a state machine whose only I/O is the word in the consumer page
that it reports its progress in. That progress is the lowest queue_offset that is not settled, so
that nothing handed out is lost when the consumer dies. Which process: the program's; any thread
settles, the consumer's own thread takes. Nothing fails: a queue that was dropped takes no notice.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Protocol

from shmq.errors import ForkError, ShmqError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from shmq.client.broker_link import BrokerLink
    from shmq.core import core
    from shmq.result import MessageQueue

__all__ = ["ProcessQueue", "QueueOwner"]

UNSETTLED_COUNT_MAX = 1000
"""RocketMQ's pullThresholdForQueue."""
UNSETTLED_BYTES_MAX = 100 << 20
"""RocketMQ's pullThresholdSizeForQueue, 100 MiB of bodies."""
SPAN_MAX = 2000
"""RocketMQ's consumeConcurrentlyMaxSpan: one message that is never settled does not let all that
come behind it pile up."""


class QueueOwner(Protocol):
    """The consumer, as its queues see it."""

    def deliver_again(self, queue: ProcessQueue, message: core.Message) -> None:
        """Processing it failed."""

    def room_again(self, queue: ProcessQueue) -> None:
        """A queue that was full is not any more."""


class ProcessQueue:
    """One queue that is being consumed. `core.Reader.read` gives it to its messages as keeper."""

    __slots__ = (
        "_batches",
        "_lock",
        "_owner",
        "_settled",
        "_taken",
        "claim",
        "fails",
        "generation",
        "held",
        "is_dropped",
        "is_full",
        "link",
        "message_queue",
        "next_offset",
        "reader",
        "retry_ns",
        "row",
        "settled_offset",
        "slot",
        "unsettled_bytes",
    )

    def __init__(
        self,
        owner: QueueOwner,
        link: BrokerLink,
        reader: core.Reader,
        message_queue: MessageQueue,
        row: int,
        generation: int,
        *,
        slot: int,
        claim: int,
        begin_offset: int,
    ) -> None:
        """Begin to consume at begin_offset; slot -1: progress is not reported to the broker."""
        self._owner = owner
        self.link = link
        """The session through which it is read."""
        self.reader = reader
        """The consumer's reader in that session."""
        self.message_queue = message_queue
        """Which queue."""
        self.row = row
        """Its row."""
        self.generation = generation
        """Generation of the row."""
        self.slot = slot
        """Claim slot in the consumer page; -1: none."""
        self.claim = claim
        """Claim number."""
        self.next_offset = begin_offset
        """queue_offset to read next."""
        self.settled_offset = begin_offset
        """Everything below it is settled; what is reported."""
        self.unsettled_bytes = 0
        """Bytes of bodies handed out and not settled, by whole batches."""
        self.is_dropped = False
        """It is another's now: settling changes nothing any more."""
        self.is_full = False
        """Nothing is read until something is settled."""
        self.retry_ns = 0
        """Monotonic time before which a read that failed is not tried again."""
        self.held: set[int] = set()
        """Offsets that only the program itself settles: process() has begun."""
        self.fails: dict[int, int] = {}
        """How often processing failed, of those that are to be delivered again."""
        self._taken: deque[int] = deque()
        self._settled: set[int] = set()
        self._batches: deque[tuple[int, int]] = deque()
        self._lock = threading.Lock()

    # ---- the consumer's thread -------------------------------------------------------------------

    @property
    def unsettled_count(self) -> int:
        """Messages handed out and not settled."""
        return len(self._taken) - len(self._settled)

    def room(self) -> int:
        """How many messages may be read now; marks the queue full where there is no room."""
        room = self._room()
        if room <= 0:
            self.is_full = True
            room = self._room()  # what was settled meanwhile may have looked before the mark
            self.is_full = room <= 0
        return max(room, 0)

    def _room(self) -> int:
        if self.unsettled_bytes >= UNSETTLED_BYTES_MAX:
            return 0
        return min(UNSETTLED_COUNT_MAX - self.unsettled_count, SPAN_MAX - len(self._taken))

    def take(self, offsets: Sequence[int], body_bytes: int, next_offset: int) -> None:
        """These offsets are handed out, in order; reading goes on at next_offset."""
        with self._lock:
            self.next_offset = next_offset
            if offsets:
                self._taken.extend(offsets)
                self._batches.append((next_offset, body_bytes))
                self.unsettled_bytes += body_bytes
            elif not self._taken:
                self._report(next_offset)  # what lies between was filtered out, or is lost

    # ---- any thread ------------------------------------------------------------------------------

    def settle(self, message: core.Message) -> None:
        """The message is done with."""
        offset = message.queue_offset
        self.held.discard(offset)
        self.fails.pop(offset, None)
        self.settle_offset(offset)

    def settle_offset(self, queue_offset: int) -> None:
        """One message is done with, by its place."""
        with self._lock:
            taken = self._taken
            if taken and taken[0] == queue_offset:
                taken.popleft()
                settled = self._settled
                while settled and taken and taken[0] in settled:
                    settled.discard(taken.popleft())
                self._report(taken[0] if taken else self.next_offset)
            elif queue_offset >= self.settled_offset:
                self._settled.add(queue_offset)
        if self.is_full and self._room() > 0:
            self._owner.room_again(self)

    def settle_run(self, offsets: Sequence[int]) -> None:
        """Several, in order: quicker than one by one where they are the first that were taken."""
        if not offsets:
            return
        with self._lock:
            taken, count = self._taken, len(offsets)
            if (
                not self._settled
                and count <= len(taken)
                and taken[0] == offsets[0]
                and taken[count - 1] == offsets[-1]
            ):
                if count == len(taken):
                    taken.clear()
                else:
                    for _ in range(count):
                        taken.popleft()
                self._report(taken[0] if taken else self.next_offset)
                offsets = ()
        for queue_offset in offsets:
            self.settle_offset(queue_offset)
        if self.is_full and self._room() > 0:
            self._owner.room_again(self)

    def process(self, message: core.Message) -> _Processing:
        """As Message.process."""
        return _Processing(self, message)

    def failed(self, message: core.Message) -> None:
        """Processing it did not succeed: it stays unsettled and comes again."""
        self.fails[message.queue_offset] = self.fails.get(message.queue_offset, 0) + 1
        self._owner.deliver_again(self, message)

    def commit(self, queue_offset: int) -> None:
        """All below it is settled, as whoever counts on his own says."""
        with self._lock:
            self._report(queue_offset)

    def report(self) -> None:
        """Report what is settled, though nothing new is."""
        with self._lock:
            self._report(self.settled_offset)

    def drop(self) -> None:
        """It is another's from now on."""
        with self._lock:
            self.is_dropped = True

    def _report(self, settled_offset: int) -> None:
        """Under the lock, so that a later report is never overtaken by an earlier one."""
        self.settled_offset = settled_offset
        batches = self._batches
        while batches and batches[0][0] <= settled_offset:
            self.unsettled_bytes -= batches.popleft()[1]
        if self.slot >= 0 and not self.is_dropped:
            try:
                self.reader.report(self.slot, settled_offset)
            except ForkError:
                raise  # a child's settling is lost: it must not think that it was done
            except ShmqError:  # the session has ended: its successor begins anew
                pass  # a context manager takes longer than the report


class _Processing:
    """What Message.process() gives."""

    __slots__ = ("_message", "_queue")

    def __init__(self, queue: ProcessQueue, message: core.Message) -> None:
        self._queue = queue
        self._message = message

    def __enter__(self) -> core.Message:
        self._queue.held.add(self._message.queue_offset)
        return self._message

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None:
            self._queue.settle(self._message)
        else:
            self._queue.failed(self._message)
