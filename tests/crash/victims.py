"""Processes that make one kind of send each, for a stepper to hold at any instruction of it."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, NamedTuple

from tests.crash.stepping import Points, Stepper, address_of, learn_until_sure
from tests.crash.worker import Worker
from tests.support.store_process import wait_until
from tests.support.zygote import ForkedStore, Zygote

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shmq.store.queues import QueueHandle

FIRST_VICTIM = 1000
Fates = dict[int, tuple[int, bool]]
"""By victim: what it had sent before, and whether it has published since."""


class Scene(NamedTuple):
    """A way to send."""

    how: str
    """The Lane's verb."""
    function: str
    """The C function behind it."""
    size: int
    """Bytes of a body."""
    room: int = 0
    """The ring's tail is so near to the ring's end before; 0: anywhere."""
    chunk_bytes: int = 0
    """Chunk memory for large bodies."""
    stride: int = 60
    """Instructions between two deaths, by default."""
    outcomes: frozenset[bool] = frozenset({True, False})
    """Whether a victim killed in it has published, over all its instructions."""


SCENES = {
    "send": Scene("send", "lane_send", 40),
    "put around the end of the ring": Scene("put", "lane_put", 700, room=600),
    "put_many": Scene("put_many", "shmq_lane_put_many", 40, stride=150),
    "loan": Scene("loan", "shmq_lane_loan", 200, stride=100, outcomes=frozenset({False})),
    "commit of a loan": Scene("loan", "loan_commit", 200, stride=40),
    "put through chunk memory": Scene("put", "lane_put", 6000, chunk_bytes=65536, stride=800),
}


class Victims:
    """Makes victims that stand before the first instruction of their send."""

    def __init__(
        self, zygote: Zygote, store: ForkedStore, queue: QueueHandle, scene: Scene
    ) -> None:
        self._zygote = zygote
        self._store = store
        self._queue = queue
        self._scene = scene
        self._count = 0

    @contextlib.contextmanager
    def victim(self, stepper: Stepper) -> Iterator[Victim]:
        number = FIRST_VICTIM + self._count
        self._count += 1
        with Worker(self._zygote, self._store, consumer=False, map_log=False) as worker:
            worker.grant(self._store, self._queue)
            if self._scene.chunk_bytes:
                worker.grant_chunk(self._store, self._scene.chunk_bytes)
            queue = list(self._queue)
            sent = worker.call("fill", queue=queue, producer=number, room=self._scene.room or 2**40)
            if not sent:  # once at full speed: what is resolved lazily is resolved
                worker.call("send", how="send", queue=queue, sent=[number, 0, 0], size=40)
                sent = 1
            assert worker.call("drain") == 0
            tail = worker.ring_tail()
            stepper.seize(worker.pid)
            stepper.plant(address_of(worker.pid, self._scene.function))
            worker.begin(
                "send",
                how=self._scene.how,
                queue=queue,
                sent=[number, 0, sent],
                size=self._scene.size,
            )
            stepper.hit()
            yield Victim(number, worker, sent, tail)
        wait_until(lambda: self._store.call("is_drained", session=worker.offer.session)[0])
        self._store.call("close_session", session=worker.offer.session)

    def points(self, stepper: Stepper, stride: int, fates: Fates) -> Points:
        """Every `stride`th instruction of the verb, which victims that live show first."""

        def learn() -> list[int]:
            with self.victim(stepper) as victim:
                way = stepper.learn()
                stepper.go()
                victim.worker.answer()
                assert victim.worker.call("drain") == 0
                fates[victim.number] = victim.sent, victim.has_published()
            return way

        ways = learn_until_sure(learn)
        return Points(stepper, ways, itertools.count(0, stride), is_every=stride == 1)


class Victim(NamedTuple):
    number: int
    worker: Worker
    sent: int
    """What it had sent before."""
    tail: int
    """Its ring's tail before."""

    def has_published(self) -> bool:
        return self.worker.ring_tail() != self.tail
