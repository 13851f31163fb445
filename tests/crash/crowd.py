"""Two producers and a reader that go on whatever happens to others, and the log they leave."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.crash.ledger import Found, read_frames
from tests.crash.worker import Worker, await_progress
from tests.support.rocketmq_decoder import decode_commit_log

if TYPE_CHECKING:
    from shmq.store.queues import QueueHandle
    from tests.support.store_process import StoreProcess
    from tests.support.zygote import Zygote

TOPIC = "crowd"


class Crowd(contextlib.ExitStack):
    """Producers 1 and 2 send to their own queues, a reader reads those. A context manager."""

    def __init__(self, zygote: Zygote, store: StoreProcess, **pace: Any) -> None:
        super().__init__()
        self.queues: list[QueueHandle] = [store.add_queue(TOPIC, number) for number in range(2)]
        rows = [list(handle) for handle in self.queues]
        self.producers = [
            self.enter_context(Worker(zygote, store, consumer=False, map_log=False))
            for _ in range(2)
        ]
        for number, producer in enumerate(self.producers):
            producer.grant(store, self.queues[number])
            producer.call(
                "produce", producer=number + 1, queues=[rows[number]], sizes=[24, 100, 40], **pace
            )
        self.reader = self.enter_context(Worker(zygote, store, producer=False))
        self.reader.subscribe(store, *self.queues)
        self.reader.call("consume", queues=rows)

    @property
    def workers(self) -> list[Worker]:
        return [*self.producers, self.reader]

    def await_progress(self) -> None:
        """Return once each of them has gone on from here."""
        await_progress(self.workers)

    def finish(self) -> list[int]:
        """Let them end in order; how many messages each producer had answered."""
        counts = []
        for producer in self.producers:
            report = producer.finish()
            assert not report["refused"], report
            assert report["sent"] == [report["count"]], report
            counts.append(report["count"])
        report = self.reader.finish()
        assert report["next"] == counts, report
        assert report["lost"] == 0, report
        return counts


def read_log(store_path: Path) -> list[Found]:
    """Every message in the files of a store, in order, checked to the byte."""
    return read_frames(decode_commit_log(store_path / "commitlog"))
