"""Producers and readers at full work on a store that is killed, and what its log must hold."""

from __future__ import annotations

import contextlib
import random
from typing import TYPE_CHECKING, Any, NamedTuple

from shmq.status import FlushDiskType
from tests.crash.ledger import Found, check_once_and_in_order
from tests.crash.scene import wipe
from tests.crash.worker import Worker, await_progress
from tests.support.zygote import ForkedStore, Zygote

if TYPE_CHECKING:
    from shmq.config import StoreConfig

SIZES = [24, 100, 3000, 40, 400]
PRODUCERS = 3
READERS = 2


class Mortal(NamedTuple):
    """A producer that was killed."""

    number: int
    acked_count: int


class Load(contextlib.ExitStack):
    """The store, its clients, and their deaths."""

    def __init__(
        self,
        zygote: Zygote,
        config: StoreConfig,
        rng: random.Random,
        *,
        is_member: bool = False,
    ) -> None:
        super().__init__()
        self._zygote = zygote
        self.config = config
        self._rng = rng
        self.store = ForkedStore(zygote, config, is_member=is_member)
        self.callback(lambda: (self.store.abandon(), wipe(config)))
        self.queues = [
            self.store.add_queue("load", 0, level=FlushDiskType.ASYNC_FLUSH),
            self.store.add_queue("load", 1, level=FlushDiskType.SYNC_FLUSH),
        ]
        self._rows = [list(handle) for handle in self.queues]
        self.producers = [self._producer(number) for number in range(PRODUCERS)]
        self.readers = [self._reader() for _ in range(READERS)]
        self.killed: list[Mortal] = []
        self._next_number = PRODUCERS
        self.mortal = self._replace_mortal()

    def _producer(self, number: int) -> Worker:
        worker = self.enter_context(Worker(self._zygote, self.store, consumer=False, map_log=False))
        worker.grant(self.store, *self.queues)
        worker.call("produce", producer=number, queues=self._rows, sizes=SIZES, burst=4)
        return worker

    def _reader(self) -> Worker:
        worker = self.enter_context(Worker(self._zygote, self.store, producer=False))
        worker.subscribe(self.store, *self.queues)
        worker.call("consume", queues=self._rows)
        return worker

    @property
    def survivors(self) -> list[Worker]:
        return [*self.producers, *self.readers]

    @property
    def workers(self) -> list[Worker]:
        return [*self.survivors, self.mortal]

    def _replace_mortal(self) -> Worker:
        self.mortal = self._producer(self._next_number)
        self._next_number += 1
        return self.mortal

    def pass_time(self) -> None:
        """Let all go on, and then some, to a moment that nobody chose."""
        await_progress(self.workers, by=self._rng.randrange(1, 40))

    def kill_mortal(self) -> None:
        self.mortal.kill()
        self.killed.append(Mortal(self._next_number - 1, self.mortal.count()))

    def kill_store(self, *, and_mortal: bool) -> None:
        self.store.kill()
        self.succeed(self.store.config, and_mortal=and_mortal)

    def succeed(self, config: StoreConfig, *, and_mortal: bool = False) -> None:
        """Go on with a successor, of the same folder or another member's."""
        if and_mortal:
            self.kill_mortal()
        self.store = self.store.restart(config)
        assert self.store.is_adopted
        assert self.store.lost == sorted(worker.offer.session for worker in self.workers)
        for worker in self.survivors if and_mortal else self.workers:
            worker.resume(self.store)
        if and_mortal:
            self.store.call("forget_lost", session=self.mortal.offer.session)
            self._replace_mortal()

    def kill_only_mortal(self) -> None:
        self.kill_mortal()
        self.store.call("close_session", session=self.mortal.offer.session)
        self._replace_mortal()

    def finish(self) -> dict[int, dict[str, Any]]:
        """End in order; what each living producer reports."""
        reports = {
            number: worker.finish()
            for number, worker in [*enumerate(self.producers), (self._next_number - 1, self.mortal)]
        }
        offsets = [row[3]["visible_max"] for row in self.store.facts()["queues"]]
        for report in [worker.finish() for worker in self.readers]:
            assert report["next"] == offsets, report
            assert report["lost"] == 0, report
        for worker in self.workers:
            worker.close()
        self.store.stop()
        return reports


def check_log(load: Load, found: list[Found], reports: dict[int, dict[str, Any]]) -> None:
    """Hold the log to what its producers were told."""
    counts = check_once_and_in_order(found)
    place = {message.sent: message for message in found}
    for number, report in reports.items():
        assert not report["refused"], report
        for queue, sent in enumerate(report["sent"]):
            assert counts.pop((number, queue), 0) == sent
            last = report["last_acked"][queue]
            if last is not None:
                message = place[number, queue, last[0]]
                assert message.queue_offset == last[1]
    for number, acked_count in load.killed:
        there = sum(counts.pop((number, queue), 0) for queue in range(2))
        assert there >= acked_count, (
            f"producer {number} was told of {acked_count}, {there} are there"
        )
    assert not counts
