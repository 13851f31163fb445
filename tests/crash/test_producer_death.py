"""A producer dies, or is stopped for good, at every instruction of a send of the shipped extension.

The victim is a real Python process; the stepper holds its thread from the first instruction of the
verb to its return. Two other producers and a reader go on meanwhile: their progress is awaited
while the victim stands or is gone. What the victim had published is in the log once, what it had
not is nowhere. Every instruction in a full run, evenly spread ones by default.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.crash.crowd import Crowd, read_log
from tests.crash.stepping import Points, Stepper, address_of, learn_until_sure
from tests.crash.worker import Worker
from tests.support.scale import scaled
from tests.support.standing_still import is_stopped
from tests.support.store_process import wait_until
from tests.support.zygote import ForkedStore, Zygote

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shmq.config import StoreConfig
    from shmq.store.queues import QueueHandle

pytestmark = [pytest.mark.crash, pytest.mark.timeout(scaled(120, 7200))]

FIRST_VICTIM = 1000
ROUND = 60  # victims that stand still at a time


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
scenes = pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)


Fates = dict[int, tuple[int, bool]]
"""By victim: what it had sent before, and whether it has published since."""


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


def check_log(store: ForkedStore, fates: Fates, sent: list[int]) -> None:
    """The log holds what was published, once and in order, and nothing else."""
    store.stop()
    sequences: dict[int, list[int]] = defaultdict(list)
    for message in read_log(store.config.store_path):
        sequences[message.sent.producer].append(message.sent.sequence)
    for number, (before, has_published) in fates.items():
        count = len(sequences[number])
        assert sequences.pop(number) == list(range(count)), f"victim {number}"
        assert (count > before) == has_published, f"victim {number}: {count} of {before}"
        assert count >= before
    assert sequences == {number + 1: list(range(count)) for number, count in enumerate(sent)}


@scenes
def test_producer_killed_at_any_instruction_of_a_send_has_sent_or_not(
    zygote: Zygote, config: StoreConfig, scene: Scene
) -> None:
    learnt: Fates = {}
    fates: Fates = {}
    with (
        ForkedStore(zygote, config) as store,
        Crowd(zygote, store) as crowd,
        Stepper() as stepper,
    ):
        victims = Victims(zygote, store, store.add_queue("victims"), scene)
        points = victims.points(stepper, scaled(scene.stride, 1), learnt)
        while not points.is_over:
            with victims.victim(stepper) as victim:
                points.reach()
                stepper.kill()
                crowd.await_progress()
                fates[victim.number] = victim.sent, victim.has_published()
        sent = crowd.finish()
        check_log(store, learnt | fates, sent)
    points.report("killed")
    assert {has_published for _, has_published in fates.values()} == scene.outcomes


@scenes
def test_producer_stopped_at_any_instruction_of_a_send_delays_nobody(
    zygote: Zygote, config: StoreConfig, scene: Scene
) -> None:
    """One victim stands at one instruction after the other while the others go on."""
    with ForkedStore(zygote, config) as store, Crowd(zygote, store, pause_ms=0.1) as crowd:
        victims = Victims(zygote, store, store.add_queue("victims"), scene)
        with Stepper() as stepper, victims.victim(stepper) as victim:
            is_over = False
            while not is_over:
                _, is_over = stepper.walk(scaled(max(5, scene.stride // 8), 1))
                crowd.await_progress()
            stepper.go()
            victim.worker.answer()
            assert victim.worker.call("drain") == 0
            fates = {victim.number: (victim.sent, victim.has_published())}
        sent = crowd.finish()
        check_log(store, fates, sent)


@scenes
def test_producers_stopped_for_the_rest_of_the_run_delay_nobody(
    zygote: Zygote, config: StoreConfig, scene: Scene
) -> None:
    fates: Fates = {}
    with (
        ForkedStore(zygote, config) as store,
        Crowd(zygote, store) as crowd,
        Stepper() as stepper,
    ):
        victims = Victims(zygote, store, store.add_queue("victims"), scene)
        points = victims.points(stepper, scaled(scene.stride * 8, 1), fates)
        while not points.is_over:
            with contextlib.ExitStack() as standing:
                for _ in range(ROUND):
                    victim = standing.enter_context(victims.victim(stepper))
                    points.reach()
                    stepper.stop()
                    wait_until(lambda pid=victim.worker.pid: is_stopped(pid))
                    fates[victim.number] = victim.sent, victim.has_published()
                    if points.is_over:
                        break
                    crowd.await_progress()
                crowd.await_progress()
        sent = crowd.finish()
        check_log(store, fates, sent)
    points.report("stopped for good")
