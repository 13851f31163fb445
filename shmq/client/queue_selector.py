"""Which queue a message goes to.

What lives here: `Target`, the queues of one topic as a producer has them, and the ways to choose:
in turn, by key, by the program's own function, a certain queue, or the least loaded. A key's queue
is counted over all queues that the topic is configured to have, those of a broker that is away
included, so that it never moves. Which process: the program's, any thread. Writes nothing. May
fail: TopicNotExistError where the chosen queue does not exist.
"""

from __future__ import annotations

import functools
import itertools
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from shmq.clock import SYSTEM_CLOCK
from shmq.errors import TopicNotExistError
from shmq.result import MessageQueue
from shmq.subscription import java_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from shmq.client.broker_link import BrokerLink
    from shmq.client.fault_table import LatencyFaultTable
    from shmq.core import core

    QueueSelector = (
        MessageQueue | Callable[[Sequence[MessageQueue]], MessageQueue] | Literal["least-loaded"]
    )

__all__ = ["LEAST_LOADED", "SendQueue", "Target"]

LEAST_LOADED = "least-loaded"
"""The queue whose broker has the fewest messages of ours under way."""

_key_hash = functools.lru_cache(maxsize=65_536)(java_hash)


@dataclass(eq=False, slots=True)
class SendQueue:
    """One queue that messages may be sent to."""

    message_queue: MessageQueue
    """Which."""
    link: BrokerLink | None
    """The session with its broker; None: its broker was never there."""
    link_generation: int
    """Of that session."""
    lane: core.Lane | None
    """The ring that all messages to this queue go through, so that they stay in order, whichever
    thread sends them."""
    row: int
    """Its row."""
    generation: int
    """Generation of the row."""

    @property
    def place(self) -> tuple[object, ...]:
        """Equal where a send goes the same way."""
        return (self.message_queue, self.link, self.link_generation, self.row, self.generation)

    @property
    def is_up(self) -> bool:
        """Whether its broker is there, as far as anybody has noticed."""
        return self.link is not None and self.link.is_up


_Turn = tuple["core.Lane", int, int, SendQueue]


class Target:
    """The queues of one topic, in order of broker and queue id; at least one."""

    __slots__ = ("_faults", "message_queues", "queues", "turn")

    def __init__(self, queues: list[SendQueue], faults: LatencyFaultTable) -> None:
        self.queues = queues
        """All of them."""
        self.message_queues = [queue.message_queue for queue in queues]
        """The same, as programs name them."""
        self._faults = faults
        self.turn: Iterator[_Turn]
        """Gives (lane, row, generation, queue) for ever: the queues of brokers that are well, in
        turn. Threads may share it."""
        self.renew()

    def has(self, queues: Sequence[SendQueue]) -> bool:
        """Whether these are its queues, in the same sessions."""
        return [queue.place for queue in self.queues] == [queue.place for queue in queues]

    def renew(self) -> None:
        """Some broker came, went, or is to be avoided."""
        now_ns = SYSTEM_CLOCK.monotonic_ns()
        there = [queue for queue in self.queues if queue.lane is not None]
        up = [queue for queue in there if queue.is_up]
        well = [
            queue
            for queue in up
            if not self._faults.is_avoided(queue.message_queue.broker_name, now_ns)
        ]
        # With nobody up, a send waits in the ring of whoever comes back.
        turns = [
            (queue.lane, queue.row, queue.generation, queue)
            for queue in (well or up or there)
            if queue.lane is not None
        ]
        begin = random.randrange(len(turns)) if turns else 0  # programs do not begin in step
        cycle = itertools.cycle(turns[begin:] + turns[:begin])
        until_ns = self._faults.next_change_ns(now_ns)
        self.turn = cycle if until_ns is None else _Until(self, cycle, until_ns)

    def by_key(self, key: str) -> SendQueue:
        """RocketMQ's SelectMessageQueueByHash.

        Raises:
            TypeError: a key that is no str.
        """
        if not isinstance(key, str):
            raise TypeError(f"send: key {key!r}: wanted a str; write it as text")
        return self.queues[abs(_key_hash(key)) % len(self.queues)]

    def choose(self, selector: QueueSelector) -> SendQueue:
        """As the program wants.

        Raises:
            TopicNotExistError: there is no such queue.
            TypeError: no queue, and nothing that chooses one.
        """
        if isinstance(selector, str) and selector == LEAST_LOADED:
            return self._least_loaded()
        wanted = selector(self.message_queues) if callable(selector) else selector
        if not isinstance(wanted, MessageQueue):
            given = f"{wanted!r}, of the function" if callable(selector) else repr(wanted)
            raise TypeError(
                f"send: queue {given}: wanted one of Producer.queues(topic), a function that "
                f"chooses one, or {LEAST_LOADED!r}"
            )
        for queue in self.queues:
            if queue.message_queue == wanted:
                return queue
        topic = self.queues[0].message_queue.topic
        raise TopicNotExistError(
            f"send to {wanted!r}: {topic} has no such queue",
            hint="take one of Producer.queues(topic)",
        )

    def _least_loaded(self) -> SendQueue:
        loads: dict[BrokerLink, int] = {}
        best: SendQueue | None = None
        best_load = 0
        for _ in range(len(self.queues)):
            queue = next(self.turn)[3]  # in turn among equals
            link = queue.link
            assert link is not None
            load = loads.get(link)
            if load is None:
                load = loads[link] = sum(
                    lane.next_sequence - lane.done_sequence for lane in link.lanes
                )
            if best is None or load < best_load:
                best, best_load = queue, load
        assert best is not None
        return best


class _Until:
    """A turn that ends when a broker need not be avoided any more."""

    __slots__ = ("_cycle", "_target", "_until_ns")

    def __init__(self, target: Target, cycle: Iterator[_Turn], until_ns: int) -> None:
        self._target = target
        self._cycle = cycle
        self._until_ns = until_ns

    def __iter__(self) -> _Until:
        return self

    def __next__(self) -> _Turn:
        if SYSTEM_CLOCK.monotonic_ns() >= self._until_ns:
            self._target.renew()
        return next(self._cycle)
