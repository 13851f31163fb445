"""A client that remembers what it was told and saw, to hold a store to it after a power cut.

What lives here: `Witness`. It sends to an ASYNC_FLUSH and a SYNC_FLUSH topic and reads them both.
What it was told of the SYNC one, or saw there, must be in the log for good, where it was.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from shmq.core import core
from shmq.status import FlushDiskType
from tests.crash.ledger import BODY_MIN, Sent, body_of, parse_body
from tests.support.store_process import StoreClient

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable

    from tests.support.store_process import StoreProcess

_OK = core.STATUS["OK"][0]
_FLUSH_FAILED = core.STATUS["FLUSH_FAILED"][0]
ASYNC, SYNC = range(2)
TOPICS = ("async", "sync")
_LEVELS = (FlushDiskType.ASYNC_FLUSH, FlushDiskType.SYNC_FLUSH)
WINDOW = 48
"""Most messages under way."""


class Known(NamedTuple):
    """A message of the SYNC topic that somebody was told of or saw."""

    sent: Sent
    size: int
    """Bytes of its body."""
    queue_offset: int
    physical_offset: int
    moment: int
    """When that was; what `moment` of the Witness gave."""


class Witness:
    """One client after another, of one store process after another."""

    def __init__(self, chance: random.Random, *, moment: Callable[[], int] = lambda: 0) -> None:
        """Nothing is sent yet.

        Args:
            chance: decides sizes and topics.
            moment: asked after each answer or message when that was, in whatever unit.
        """
        self._chance = chance
        self._moment = moment
        self._sequences = [0, 0]
        self.known: dict[int, Known] = {}
        """By queue_offset."""
        self.refused_count = 0
        self._under_way: deque[tuple[int, Sent, int]] = deque()

    def attach(self, store: StoreProcess) -> None:
        """Go on with this store: what was under way is forgotten, reading begins anew."""
        self._queues = []
        for topic, level in zip(TOPICS, _LEVELS, strict=True):
            self._queues.append(store.add_queue(topic, level=level))
            # A queue that recovery found has the store's level until it is told another.
            store.call("set_queue", topic=topic, queue_id=0, level=level, is_writable=True)
        self._client = StoreClient(store)
        self._client.grant(*self._queues)
        self._under_way.clear()
        self._next = [0, 0]

    def resume(self, store: StoreProcess) -> None:
        """Go on with the successor that has adopted the store's memory."""
        self._client.resume(store)

    def detach(self) -> None:
        """Leave; nothing of the store's files is mapped any more."""
        self._client.close()
        self._client.log_map.close()

    def put(self, count: int) -> None:
        """So many messages more under way."""
        for _ in range(count):
            while len(self._under_way) >= WINDOW:
                self._take(self._client.lanes[0].wait(self._under_way[0][0], 30.0)[:3])
            topic = self._chance.choice((ASYNC, SYNC, SYNC))
            sent = Sent(0, topic, self._sequences[topic])
            size = self._chance.choice((BODY_MIN, 100, 700, 3000))
            sequence = self._client.lanes[0].put(
                *self._queues[topic], body_of(sent, size), keep=True, timeout=30.0
            )
            assert sequence >= 0, sequence
            self._sequences[topic] += 1
            self._under_way.append((sequence, sent, size))

    def look(self) -> None:
        """Take what is answered by now, and read what is visible by now."""
        while self._under_way:
            outcome = self._client.lanes[0].take(self._under_way[0][0])
            if outcome is None:
                break
            self._take(outcome[:3])
        self._read()

    def settle(self) -> None:
        """Wait until all is answered, and read all."""
        while self._under_way:
            self._take(self._client.lanes[0].wait(self._under_way[0][0], 30.0)[:3])
        self._read()

    def _take(self, outcome: Iterable[int]) -> None:
        _, sent, size = self._under_way.popleft()
        status, queue_offset, physical_offset = outcome
        if status == _FLUSH_FAILED:
            self.refused_count += 1
            return
        assert status == _OK, (sent, status)
        if sent.queue == SYNC:
            self._know(sent, size, queue_offset, physical_offset)

    def _read(self) -> None:
        for topic, handle in enumerate(self._queues):
            while True:  # to the end of what is visible
                _, messages, self._next[topic] = self._client.reader.read(
                    *handle, self._next[topic], 64, verify=True, timeout=0.0
                )
                if not messages:
                    break
                for message in messages:
                    sent = parse_body(message.body)
                    if topic == SYNC:
                        where = message.queue_offset, message.physical_offset
                        self._know(sent, len(message.body), *where)

    def _know(self, sent: Sent, size: int, queue_offset: int, physical_offset: int) -> None:
        last = self.known.get(queue_offset)
        if last is None:
            moment = self._moment()
            self.known[queue_offset] = Known(sent, size, queue_offset, physical_offset, moment)
        else:
            is_same = (last.sent, last.physical_offset) == (sent, physical_offset)
            assert is_same, f"offset {queue_offset} was {last}, is {sent} at {physical_offset}"
