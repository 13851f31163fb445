"""What a store must show, in plain Python: dicts and lists, no memory, no files, no threads.

What lives here: `Truth`. The machine in test_store_machine.py tells it what it sent and what it
read; it says whether that may be. It knows four things that can happen to a store: nothing; the
death of its process (everything stays); a stop and start (what was not taken yet is dropped); a
loss of its memory (what was not on disk may be gone, from the end on, and not on SYNC queues).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

QueueName = tuple[str, int]
TAGS = (None, "a", "b")


class Sent(NamedTuple):
    """One message, by what its bytes follow from."""

    ident: int
    """Number of its own; its tag follows from it."""
    size: int
    """Bytes of the body, at least eight."""

    @property
    def tag(self) -> str | None:
        return TAGS[self.ident % len(TAGS)]

    def body(self) -> bytes:
        head = self.ident.to_bytes(8, "big")
        return (head * (self.size // 8 + 1))[: self.size]


class Seen(NamedTuple):
    """One message as a reader has seen it."""

    sent: Sent
    physical_offset: int


@dataclass
class QueueTruth:
    """One queue: all its messages in order, those below `floor` from before it was made again."""

    is_sync: bool
    floor: int = 0
    """First queue_offset that readers of this queue see."""
    seen: list[Seen] = field(default_factory=list)
    """By queue_offset, from 0 on."""

    @property
    def end(self) -> int:
        return len(self.seen)


@dataclass
class Truth:
    """The model of one store."""

    queues: dict[QueueName, QueueTruth] = field(default_factory=dict)
    deleted: dict[QueueName, QueueTruth] = field(default_factory=dict)
    """What the log still has of queues that are gone."""
    underway: dict[tuple[int, QueueName], deque[Sent]] = field(default_factory=dict)
    """By (lane, queue): put, in this order, and not seen in the queue yet."""
    acknowledged: dict[int, QueueName] = field(default_factory=dict)
    """Idents that a SYNC send returned OK for, until they are seen."""
    sent_count: int = 0

    # ---- sending ---------------------------------------------------------------------------------

    def new_message(self, size: int) -> Sent:
        self.sent_count += 1
        return Sent(self.sent_count, size)

    def put(self, lane: int, queue: QueueName, sent: Sent) -> None:
        """It was published in a lane's ring."""
        self.underway.setdefault((lane, queue), deque()).append(sent)

    def acknowledge(self, queue: QueueName, sent: Sent) -> None:
        """Its send returned OK."""
        if self.queues[queue].is_sync:
            self.acknowledged[sent.ident] = queue

    @property
    def underway_count(self) -> int:
        return sum(map(len, self.underway.values()))

    # ---- reading ---------------------------------------------------------------------------------

    def read(
        self, queue: QueueName, queue_offset: int, body: bytes, tag: str | None, position: int
    ) -> None:
        """A reader of the queue sees this at that queue_offset."""
        truth = self.queues[queue]
        where = (queue, queue_offset)
        assert truth.floor <= queue_offset <= truth.end, (where, truth.floor, truth.end)
        if queue_offset < truth.end:
            seen = truth.seen[queue_offset]
            assert body == seen.sent.body(), ("another message than before", where)
            assert tag == seen.sent.tag, where
            assert position == seen.physical_offset, ("moved in the log", where)
            return
        sent = self._next(queue, int.from_bytes(body[:8], "big"))
        assert sent is not None, ("nobody sent this, or not now", where, body[:16])
        assert body == sent.body(), ("not the bytes that were sent", where)
        assert tag == sent.tag, where
        if truth.seen:
            assert position > truth.seen[-1].physical_offset, where
        truth.seen.append(Seen(sent, position))
        self.acknowledged.pop(sent.ident, None)

    def _next(self, queue: QueueName, ident: int) -> Sent | None:
        """Take the message from its lane, where it must be the next for this queue."""
        for (_, name), messages in self.underway.items():
            if name == queue and messages and messages[0].ident == ident:
                return messages.popleft()
        return None

    def settled(self) -> None:
        """All that was put must have been seen by now."""
        left = {key: list(messages) for key, messages in self.underway.items() if messages}
        assert not left, ("put and never seen", left)
        assert not self.acknowledged, ("acknowledged and never seen", self.acknowledged)

    # ---- queues ----------------------------------------------------------------------------------

    def add_queue(self, queue: QueueName, *, is_sync: bool) -> int:
        """Make a queue; the queue_offset with which it must begin."""
        truth = self.deleted.pop(queue, None) or QueueTruth(is_sync)
        truth.is_sync = is_sync
        truth.floor = truth.end
        self.queues[queue] = truth
        return truth.floor

    def delete_queue(self, queue: QueueName) -> None:
        self.deleted[queue] = self.queues.pop(queue)

    # ---- what happens to the store ---------------------------------------------------------------

    def lose_memory(
        self, contents: dict[QueueName, list[tuple[int, bytes, int]]], flushed: int, end: int
    ) -> None:
        """The store came back from its files with these contents.

        Args:
            contents: per queue (queue_offset, body, physical_offset), all that is readable.
            flushed: physical_offset below which all was on disk when memory went.
            end: where the log ends now.
        """
        for queue in contents.keys() - self.queues.keys() - self.deleted.keys():
            raise AssertionError(f"{queue} was never made")
        for queue, truth in (*self.queues.items(), *self.deleted.items()):
            found = contents.get(queue, [])
            self._survive(queue, truth, found, flushed, end)
        lost = self.acknowledged
        assert not lost, ("a SYNC send was acknowledged and its message is gone", lost)
        self.underway.clear()
        for truth in self.queues.values():
            truth.floor = 0

    def _survive(
        self,
        queue: QueueName,
        truth: QueueTruth,
        found: list[tuple[int, bytes, int]],
        flushed: int,
        end: int,
    ) -> None:
        assert [item[0] for item in found] == list(range(len(found))), (queue, "offsets have gaps")
        for (queue_offset, body, position), seen in zip(found, truth.seen, strict=False):
            where = (queue, queue_offset)
            assert body == seen.sent.body(), ("another message than before", where)
            assert position == seen.physical_offset, where
        for queue_offset, seen in enumerate(truth.seen[len(found) :], len(found)):
            where = (queue, queue_offset)
            assert not truth.is_sync, ("visible on a SYNC queue, and gone", where)
            assert seen.physical_offset >= flushed, ("on disk, and gone", where)
            assert seen.physical_offset >= end, ("below the end of the log, and gone", where)
        for queue_offset, body, position in found[truth.end :]:
            sent = self._next(queue, int.from_bytes(body[:8], "big"))
            assert sent is not None, ("nobody sent this", queue, queue_offset)
            assert body == sent.body(), (queue, queue_offset)
            self.acknowledged.pop(sent.ident, None)
            truth.seen.append(Seen(sent, position))
        del truth.seen[len(found) :]

    def log(self) -> Iterable[tuple[int, QueueName, int, Sent]]:
        """All messages that the CommitLog must have: (physical_offset, queue, queue_offset,
        message), in its order.
        """
        return sorted(
            (seen.physical_offset, queue, queue_offset, seen.sent)
            for queue, truth in (*self.queues.items(), *self.deleted.items())
            for queue_offset, seen in enumerate(truth.seen)
        )
