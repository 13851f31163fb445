"""What is shown when Prometheus asks: every broker's numbers, read now.

What lives here: `Collector`, a collector of prometheus_client. Nothing is kept between two asks but
what is mapped, so series of what is gone are gone. One look at a time. May fail: nothing; a broker
whose memory cannot be read counts in shmq_exporter_problems and is in the log.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING

from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector as BaseCollector
from prometheus_client.samples import Sample

from shmq.clock import SYSTEM_CLOCK, Clock
from shmq.metrics import METRICS
from shmq.monitor.monitor import Monitor
from shmq.shm.segment import SHM_FOLDER
from shmq.version import version_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

__all__ = ["Collector", "SERIES_MAX"]

_log = logging.getLogger("shmq.exporter")

SERIES_MAX = 50_000
"""As many as RocketMQ's broker shows at most."""


class _Page:
    """The samples of one look, by metric; no more than so many."""

    def __init__(self, series_max: int) -> None:
        self._left = series_max
        self.dropped = 0
        self.count = 0
        self.families: dict[str, Family] = {}

    def add(self, name: str, labels: dict[str, str], value: float, *, suffix: str = "") -> None:
        """Show a number, unless there are too many already."""
        if self._left <= 0:
            self.dropped += 1
            return
        self._left -= 1
        self.count += 1
        family = self.families.get(name)
        if family is None:
            metric = METRICS[name]
            # prometheus_client puts _total behind the name of a counter itself.
            plain = name.removesuffix("_total")
            family = self.families[name] = Family(plain, metric.text, metric.kind.value)
        family.samples.append(Sample(name + suffix, labels, value))


class Collector(BaseCollector):
    """Reads all brokers of a runtime folder each time it is asked.

    Args:
        runtime: the runtime folder.
        has_queues: whether series by queue are shown.
        series_max: series shown at most.
        clock: monotonic and wall time.
    """

    def __init__(
        self,
        runtime: Path,
        *,
        has_queues: bool = False,
        series_max: int = SERIES_MAX,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._monitor = Monitor(runtime, has_queues=has_queues, clock=clock)
        self._series_max = series_max
        self._clock = clock
        self._told: dict[str, str] = {}
        """What is in the log already: a store and its problem, or what is hidden from us."""
        self._lock = threading.Lock()

    def collect(self) -> Iterable[Family]:
        """Every metric there is now, in the order of METRICS.

        What this scrape took comes last, and is measured when it is asked for: whoever writes each
        down before asking for the next sees the writing in it.
        """
        with self._lock:
            begin_ns = self._clock.monotonic_ns()
            page = _Page(self._series_max)
            self._monitor.look(page.add)
            self._tell_problems()
            mount = os.statvfs(SHM_FOLDER)
            own = _Page(self._series_max)
            for name, value in (
                ("shmq_dev_shm_free_bytes", mount.f_bavail * mount.f_frsize),
                ("shmq_dev_shm_size_bytes", mount.f_blocks * mount.f_frsize),
                ("shmq_exporter_series", page.count),
                ("shmq_exporter_series_dropped", page.dropped),
                (
                    "shmq_exporter_problems",
                    len(self._monitor.problems) + len(self._monitor.hidden),
                ),
            ):
                own.add(name, {}, value)
            own.add("shmq_build_info", {"version": version_text()}, 1)
            families = page.families | own.families
            return self._until_now(
                [families[name] for name in METRICS if name in families], begin_ns
            )

    def _until_now(self, families: Iterable[Family], begin_ns: int) -> Iterator[Family]:
        yield from families
        took_s = (self._clock.monotonic_ns() - begin_ns) / 1e9
        last = _Page(self._series_max)
        last.add("shmq_exporter_scrape_seconds", {}, took_s)
        yield from last.families.values()

    def close(self) -> None:
        """Let go of all memory."""
        with self._lock:
            self._monitor.close()

    def _tell_problems(self) -> None:
        now = {str(store): problem for store, problem in self._monitor.problems.items()}
        for store, problem in now.items():
            if self._told.get(store) != problem:
                _log.warning("broker not shown in full store=%s: %s", store, problem)
        for hidden in self._monitor.hidden:
            if hidden not in self._told:
                _log.warning("brokers not shown: %s", hidden)
        self._told = now | dict.fromkeys(self._monitor.hidden, "")
