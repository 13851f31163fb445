"""What a monitor read at one moment, to be asked for by name: the ground of `shmq top` and `check`.

Pure but for `read`, which looks at shared memory, asks nobody and does not wait.
"""

from __future__ import annotations

import os
from collections import defaultdict
from typing import TYPE_CHECKING

from shmq.clock import SYSTEM_CLOCK, Clock
from shmq.metrics import BROKER_LABELS
from shmq.shm.segment import SHM_FOLDER
from shmq.store.retention import DiskUsage, disk_usage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from shmq.client.ha import HaMember
    from shmq.monitor.monitor import Monitor

__all__ = ["Broker", "Reading"]

_Labels = tuple[tuple[str, str], ...]
Broker = tuple[str, str, str]
"""Values of BROKER_LABELS: cluster, broker, broker_id."""


class Reading:
    """The numbers of one look.

    Attributes:
        taken_ns: when, CLOCK_MONOTONIC.
        dev_shm: room in /dev/shm.
        wanted_brokers: how many brokers are to be there; 0: nobody said.
        runtime: the runtime folder that was looked into.
        problems: what of the brokers' memory could not be read, one line each.
        members: of replica sets, as they say themselves; empty unless somebody asked them.
        answers: seconds in which NameServers and Controllers that live answered, by name, infinity
            where one did not; empty unless somebody asked them.
    """

    def __init__(
        self,
        taken_ns: int,
        dev_shm: DiskUsage,
        wanted_brokers: int = 0,
        runtime: str | os.PathLike[str] = "",
    ) -> None:
        self.runtime = runtime
        self.taken_ns = taken_ns
        self.dev_shm = dev_shm
        self.wanted_brokers = wanted_brokers
        self.problems: list[str] = []
        self.members: list[HaMember] = []
        self.answers: dict[str, float] = {}
        self._numbers: defaultdict[str, dict[_Labels, float]] = defaultdict(dict)

    @classmethod
    def read(
        cls, monitor: Monitor, clock: Clock = SYSTEM_CLOCK, *, wanted_brokers: int = 0
    ) -> Reading:
        """Look at everything now."""
        reading = cls(clock.monotonic_ns(), disk_usage(SHM_FOLDER), wanted_brokers, monitor.runtime)
        monitor.look(reading.take)
        reading.problems = [
            *monitor.hidden,
            *(f"{store}: {text}" for store, text in monitor.problems.items()),
        ]
        return reading

    def take(self, name: str, labels: dict[str, str], value: float, *, suffix: str = "") -> None:
        """Keep one number; of two with the same labels the sum."""
        numbers = self._numbers[name + suffix]
        key = tuple(sorted(labels.items()))
        numbers[key] = numbers.get(key, 0) + value

    def of(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        """All numbers of a name: (labels, value)."""
        for labels, value in self._numbers.get(name, {}).items():
            yield dict(labels), value

    def by(self, name: str, *keys: str) -> dict[tuple[str, ...], float]:
        """Sums by the values of some labels."""
        sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
        for labels, value in self.of(name):
            sums[tuple(labels[key] for key in keys)] += value
        return dict(sums)

    def by_broker(self, name: str) -> dict[Broker, float]:
        """Sums by broker."""
        return {
            (cluster, broker, broker_id): value
            for (cluster, broker, broker_id), value in self.by(name, *BROKER_LABELS).items()
        }

    def rates(self, before: Reading, name: str, *keys: str) -> dict[tuple[str, ...], float]:
        """What a counter grew by in a second since an earlier reading; 0 where it began anew."""
        seconds = max(self.taken_ns - before.taken_ns, 1) / 1e9
        old: Mapping[tuple[str, ...], float] = before.by(name, *keys)
        return {
            key: max(0.0, value - old[key]) / seconds if key in old else 0.0
            for key, value in self.by(name, *keys).items()
        }

    def quantile(self, before: Reading, name: str, broker: Broker, share: float) -> float | None:
        """The bound below which `share` of what a histogram counted since an earlier reading is.

        Returns:
            a bound of the histogram in its unit, infinity for what is above all; None: nothing was
            counted.
        """
        grown = []
        old = before.by(f"{name}_bucket", *BROKER_LABELS, "le")
        for key, count in self.by(f"{name}_bucket", *BROKER_LABELS, "le").items():
            if key[:-1] == broker:
                grown.append((float(key[-1]), count - old.get(key, 0)))
        grown.sort()
        if not grown or grown[-1][1] <= 0:
            return None
        return next(bound for bound, count in grown if count >= share * grown[-1][1])
