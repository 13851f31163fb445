"""The numbers of all brokers of a host, read now from their shared memory: names, labels, values.

What lives here: `Monitor`. Nothing is kept between two looks but what is mapped, so numbers of what
is gone are gone. In whatever process watches brokers: the exporter, the command line. Asks nobody,
writes nothing, does not wait. May fail: nothing; a broker whose memory cannot be read in full is in
`Monitor.problems`.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from shmq.clock import SYSTEM_CLOCK, Clock
from shmq.core import core
from shmq.errors import ShmError, ShmqError
from shmq.metrics import BROKER_LABELS, METRICS, MetricScope
from shmq.monitor.broker_pages import (
    BrokerPages,
    Latency,
    StatsLook,
    find_stores,
    hidden_folders,
    segment_sizes,
)
from shmq.monitor.services import services_in
from shmq.topic import DLQ_PREFIX, DLQ_REPLAY_GROUP

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from shmq.monitor.broker_pages import GroupProgress, QueueRow
    from shmq.shm.names import StoreName

__all__ = ["Monitor", "Take"]

_STATUS_NAMES = {-number: name for name, (number, _) in core.STATUS.items()}
_BOUNDS = [f"{bound / 1e9:g}" for bound in core.LATENCY_BOUNDS_NS]
_COUNTERS = {
    "shmq_turns_total": "turns",
    "shmq_sessions_ended_total": "sessions_ended",
    "shmq_wakeups_total": "wakeups_sent",
    "shmq_append_sleeps_total": "sleeps",
    "shmq_files_rolled_total": "files_rolled",
    "shmq_log_full_turns_total": "log_full_turns",
    "shmq_arena_full_turns_total": "arena_full_turns",
}
"""Metrics that are a field of `counters` in the control segment."""


class Take(Protocol):
    """Takes the numbers as they are read."""

    def __call__(
        self, name: str, labels: dict[str, str], value: float, *, suffix: str = ""
    ) -> None:
        """One number.

        Args:
            name: one of METRICS.
            labels: those of the metric, with BROKER_LABELS and a histogram's `le`. Several
                numbers may share them: not to be written into.
            value: in the metric's unit.
            suffix: `_bucket`, `_sum` or `_count` for the parts of a histogram.
        """


@dataclass(slots=True)
class _Total:
    kept: int = 0
    messages_in: int = 0
    bytes_in: int = 0


@dataclass(slots=True)
class _Lag:
    messages: int = 0
    seconds: float = 0.0
    passed: int = 0


class Monitor:
    """Looks at all brokers of a runtime folder. One thread at a time.

    Args:
        runtime: the runtime folder.
        has_queues: whether numbers of single queues are read.
        clock: monotonic and wall time.

    Attributes:
        runtime: the runtime folder.
        problems: stores that could not be read in full at the last look, and why.
        hidden: folders of brokers that this user may not look into, one line each.
    """

    def __init__(
        self, runtime: Path, *, has_queues: bool = False, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self.problems: dict[StoreName, str] = {}
        self.hidden: list[str] = []
        self.runtime = runtime
        self._has_queues = has_queues
        self._clock = clock
        self._pages: dict[StoreName, BrokerPages] = {}

    def look(self, take: Take) -> None:
        """Read everything once."""
        for service in services_in(self.runtime):
            take("shmq_service_up", {"service": service.name}, service.pid is not None)
        sizes = segment_sizes()
        stores = find_stores(self.runtime) & sizes.keys()  # a mark may outlive its memory
        for store in self._pages.keys() - stores:
            self._pages.pop(store).close()
        self.problems = {}
        self.hidden = hidden_folders(self.runtime)
        looks: dict[StoreName, _BrokerLook] = {}
        for store in sorted(stores, key=str):
            pages = self._pages.setdefault(store, BrokerPages(store))
            with self._noting_problems(store):
                look = _BrokerLook(take, pages, sizes[store], self._clock)
                look.add_broker()
                looks[store] = look
        # Of all brokers first what there is least of: a cap takes from the many.
        for store, look in looks.items():
            with self._noting_problems(store):
                look.add_groups()
        for look in looks.values():
            look.add_topics()
        if self._has_queues:
            for look in looks.values():
                look.add_queues()

    @contextmanager
    def _noting_problems(self, store: StoreName) -> Iterator[None]:
        try:
            yield
        except ShmqError as error:
            self.problems[store] = str(error)

    def close(self) -> None:
        """Let go of all memory."""
        while self._pages:
            self._pages.popitem()[1].close()


class _BrokerLook:
    """One broker, now."""

    def __init__(
        self, take: Take, pages: BrokerPages, sizes: Mapping[str, int], clock: Clock
    ) -> None:
        self._take = take
        self._pages = pages
        self._sizes = sizes
        self._clock = clock
        pages.look()
        self._is_up = pages.owner().is_alive()
        try:
            self._stats = pages.stats()
        except ShmError:
            if self._is_up:  # it makes that object a moment after its memory
                raise
            self._stats = StatsLook()
        (broker_id,) = self._stats.values.get("broker_id", {"": pages.store.broker_id}).values()
        values = (pages.store.cluster, pages.store.broker, str(broker_id))
        self._labels = dict(zip(BROKER_LABELS, values, strict=True))
        self._is_master = "master" in self._stats.values.get("shmq_ha_role", ())
        self._rows: Mapping[int, QueueRow] = {}
        self._topics: dict[str, _Total] = {}

    def _add(self, name: str, value: float, **labels: str) -> None:
        self._take(name, self._labels | labels, value)

    # ---- the broker --------------------------------------------------------------------------

    def add_broker(self) -> None:
        """What is one number of it, or a few."""
        self._add("shmq_broker_up", self._is_up)
        if not self._is_up:
            return
        self._add_positions()
        for name, field in _COUNTERS.items():
            self._add(name, self._pages.ints("counters")[field])
        self._add("shmq_sessions", self._pages.session_states().count(core.SESSION_LIVE))
        for kind, size in self._sizes.items():
            self._add("shmq_segment_bytes", size, kind=kind)
        self._add_stats()

    def _add_positions(self) -> None:
        append, flush = self._pages.ints("append_positions"), self._pages.ints("flush_positions")
        # Read one after the other: the flusher may have passed what was committed a moment ago.
        committed = append["committed_position"]
        self._add("shmq_master_epoch", self._pages.ints("segment_header")["master_epoch"])
        self._add("shmq_store_writable", append["store_status"] == 0)
        if append["store_status"]:
            name = _STATUS_NAMES.get(append["store_status"], str(append["store_status"]))
            self._add("shmq_store_waits", 1, status=name)
        self._add("shmq_log_appended_bytes_total", committed)
        self._add("shmq_log_kept_bytes", committed - append["min_position"])
        self._add("shmq_log_hot_bytes", committed - append["hot_min_position"])
        self._add("shmq_flush_behind_bytes", max(0, committed - flush["flushed_position"]))

    def _add_stats(self) -> None:
        stats = self._stats
        age_ns = max(0, self._clock.monotonic_ns() - stats.looked_ns)
        self._add("shmq_heartbeat_age_seconds", age_ns / 1e9)
        for status, count in stats.refusals.items():
            name = _STATUS_NAMES.get(status, str(status))
            self._add("shmq_records_refused_total", count, status=name)
        self._add_latency("shmq_send_duration_seconds", stats.send)
        self._add_latency("shmq_fsync_duration_seconds", stats.flush)
        self._add("shmq_ring_full_total", stats.head["ring_full_count"])
        capacity = stats.head["ring_capacity_bytes"]
        used = stats.head["ring_used_bytes_max"]
        self._add("shmq_ring_used_ratio", used / capacity if capacity else 0)
        for name, by_label in stats.values.items():
            metric = METRICS.get(name)
            if metric is not None and (self._is_master or metric.scope is MetricScope.BROKER):
                for label, value in by_label.items():
                    labels = dict.fromkeys(metric.labels, label)
                    self._add(name, value * metric.scale, **labels)

    def _add_latency(self, name: str, latency: Latency) -> None:
        count = 0
        for bound, added in zip([*_BOUNDS, "+Inf"], latency.counts, strict=True):
            count += added
            self._take(name, self._labels | {"le": bound}, count, suffix="_bucket")
        self._take(name, self._labels, latency.sum_ns / 1e9, suffix="_sum")
        self._take(name, self._labels, count, suffix="_count")

    # ---- groups, topics, queues --------------------------------------------------------------

    def add_groups(self) -> None:
        """Read the queues; how many there are, and what is about groups."""
        if not self._is_up:
            return
        rows = self._pages.queue_rows()
        for row in rows.values():
            total = self._topics.get(row.topic)
            if total is None:
                total = self._topics[row.topic] = _Total()
            total.kept += _kept(row)
            total.messages_in += row.messages_in
            total.bytes_in += row.bytes_in
        self._add("shmq_topics", len(self._topics))
        self._add("shmq_queues", len(rows))
        if self._is_master:
            self._rows = rows
            self._add_lags()

    def _add_lags(self) -> None:
        rows = self._rows
        lags: defaultdict[tuple[str, str], _Lag] = defaultdict(_Lag)
        now_ms = self._clock.wall_ms()
        age_s = max(0, self._clock.monotonic_ns() - self._stats.looked_ns) / 1e9
        letters = {
            index: _kept(row) for index, row in rows.items() if row.topic.startswith(DLQ_PREFIX)
        }
        for progress in self._stats.groups:
            row = rows.get(progress.queue_row)
            if row is None or row.generation != progress.row_generation:
                continue  # the queue went after the broker's last round
            messages = _before(progress, row)
            if progress.group == DLQ_REPLAY_GROUP:
                letters[progress.queue_row] = messages
                continue
            lag = lags[progress.group, row.topic]
            lag.messages += messages
            lag.passed += progress.passed_count
            if messages:
                # Without a time it came since the broker's last round, or was not looked up yet.
                since_ms = progress.waiting_since_ms
                seconds = max(0, now_ms - since_ms) / 1e3 if since_ms else age_s
                lag.seconds = max(lag.seconds, seconds)
        waiting: defaultdict[str, int] = defaultdict(int)
        for index, count in letters.items():
            waiting[rows[index].topic.removeprefix(DLQ_PREFIX)] += count
        for group, count in waiting.items():
            self._add("shmq_dead_letters_waiting", count, group=group)
        for (group, topic), lag in lags.items():
            self._add("shmq_consumer_lag_messages", lag.messages, group=group, topic=topic)
            self._add("shmq_consumer_lag_seconds", lag.seconds, group=group, topic=topic)
            self._add("shmq_messages_out_total", lag.passed, group=group, topic=topic)

    def add_topics(self) -> None:
        """What is about topics, of a master; behind add_groups."""
        if not self._is_master:
            return
        take = self._take
        for topic, total in self._topics.items():
            labels = self._labels | {"topic": topic}
            take("shmq_messages_in_total", labels, total.messages_in)
            take("shmq_bytes_in_total", labels, total.bytes_in)
            take("shmq_topic_messages", labels, total.kept)

    def add_queues(self) -> None:
        """What is about single queues, of a master; behind add_groups."""
        take = self._take
        for row in self._rows.values():
            labels = self._labels | {"topic": row.topic, "queue": str(row.queue_id)}
            take("shmq_queue_messages_in_total", labels, row.messages_in)
            take("shmq_queue_messages", labels, _kept(row))
        for progress in self._stats.groups:
            found = self._rows.get(progress.queue_row)
            if found is None or found.generation != progress.row_generation:
                continue
            if progress.group != DLQ_REPLAY_GROUP:
                self._add(
                    "shmq_queue_consumer_lag_messages",
                    _before(progress, found),
                    group=progress.group,
                    topic=found.topic,
                    queue=str(found.queue_id),
                )


def _before(progress: GroupProgress, row: QueueRow) -> int:
    """Messages that a group has before it in a queue."""
    return max(0, row.visible_max - max(progress.consumer_offset, row.min_queue_offset))


def _kept(row: QueueRow) -> int:
    kept = row.visible_max - row.min_queue_offset
    return kept if kept > 0 else 0  # the two words were not read at one moment
