"""What a broker tells exporters that its append thread does not count: groups, slaves, the machine.

What lives here: `StatsService`. Once a second it goes through the groups' offsets, the slaves and
the counters of the broker's parts and says what has changed in the stats object (store.stats);
exporters read it there, and no request comes from them. A round that takes long makes the next one
come later, so that all of it stays below a hundredth of a core. The loop's thread owns it; what may
need the disk runs in a worker thread. May fail: nothing; what cannot be asked is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, NamedTuple

from shmq.errors import ShmqError, TopicNotExistError
from shmq.shm.fds import OpenFiles, open_files
from shmq.shm.memory import MemoryRoom, memory_room
from shmq.store.config_files import offset_key, split_offset_key
from shmq.store.quarantine import Quarantine
from shmq.store.retention import DiskState, disk_state
from shmq.store.stats import Progress
from shmq.topic import SCHEDULE_TOPIC, retry_topic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shmq.broker.broker import Broker
    from shmq.store.queues import QueueHandle

__all__ = ["ROUND_MAX_S", "StatsService"]

_log = logging.getLogger("shmq.broker")

_ROUND_S = 1.0
"""Between two rounds."""
_SHARE = 100
"""A round may take one part in so many of the time."""
ROUND_MAX_S = 10.0
"""But the next one comes within this time: `shmq check` warns at half as much again, and the alert
takes three times that for a hang."""
_MACHINE_NS = 2_000_000_000
"""Between two looks at what the machine gives: the disk, memory, open files."""
_LOOKUPS_MAX = 256
"""Messages whose store time is looked up in one round; what is left comes in later ones."""


class _Place(NamedTuple):
    """A group in a queue."""

    group: str
    topic: str
    queue_id: int
    handle: QueueHandle
    consumer_offset: int
    is_behind: bool


class _Seen(NamedTuple):
    """What was known of it in the last round."""

    consumer_offset: int
    passed_count: int
    waiting_since: int


class _Given(NamedTuple):
    """What the machine gives us; None is what could not be asked."""

    disk: DiskState | None = None
    hole_count: int = 0
    memory: MemoryRoom | None = None
    files: OpenFiles | None = None


class StatsService:
    """The stats of one broker.

    Args:
        broker: loaded; its parts are asked in each round.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._stats = broker.store.stats
        self._seen: dict[tuple[str, QueueHandle], _Seen] = {}
        self._given = _Given()
        self._given_due_ns = 0
        self._holes: tuple[int, int] = (0, 0)
        """st_mtime_ns of the quarantine list, and how many places it had then."""

    async def run(self) -> None:
        """Go round; until the broker stops."""
        clock = self._broker.clock
        while True:
            begin_ns = clock.monotonic_ns()
            await self.round()
            took_s = (clock.monotonic_ns() - begin_ns) / 1e9
            await asyncio.sleep(min(max(_ROUND_S, _SHARE * took_s), ROUND_MAX_S))

    async def round(self) -> None:
        """One round."""
        places: list[_Place] = []
        if not self._broker.is_slave:
            self._broker.claims.harvest()
            places = list(self._places())
        unknown = self._unknown(places)
        times: dict[tuple[str, QueueHandle], int] = {}
        now_ns = self._broker.clock.monotonic_ns()
        if now_ns >= self._given_due_ns:
            self._given_due_ns = now_ns + _MACHINE_NS
            self._given = await asyncio.to_thread(self._look_at_machine)
        if unknown:
            times = await asyncio.to_thread(self._look_up, unknown)
        self._say_progress(places, times)
        self._say_values(self._given)
        self._stats.end_round()

    # ---- groups ------------------------------------------------------------------------------

    def _places(self) -> Iterator[_Place]:
        queues = self._broker.store.queues
        for key, offsets in self._broker.offsets.table.items():
            names = split_offset_key(key)
            if names is None:
                continue
            topic, group = names
            for queue_id, consumer_offset in offsets.items():
                with contextlib.suppress(TopicNotExistError):  # its offsets outlive it, in files
                    handle = queues.find(topic, queue_id)
                    is_behind = consumer_offset < queues.offsets(handle).visible_max
                    yield _Place(group, topic, queue_id, handle, consumer_offset, is_behind)
        for group in self._broker.groups.configs:
            topic = retry_topic(group)
            for queue_id, handle in self._broker.unread_retries(group):
                consumer_offset = queues.offsets(handle).min_queue_offset
                yield _Place(group, topic, queue_id, handle, consumer_offset, True)

    def _unknown(self, places: list[_Place]) -> list[_Place]:
        """Those whose next message's time has to be looked up, as many as one round may."""
        found = []
        for place in places:
            seen = self._seen.get((place.group, place.handle))
            is_known = seen is not None and seen.consumer_offset == place.consumer_offset
            if place.is_behind and not (is_known and seen is not None and seen.waiting_since):
                found.append(place)
                if len(found) == _LOOKUPS_MAX:
                    break
        return found

    def _say_progress(
        self, places: list[_Place], times: dict[tuple[str, QueueHandle], int]
    ) -> None:
        before, self._seen = self._seen, {}
        begun = self._broker.offsets.take_begun()
        for place in places:
            key = place.group, place.handle
            seen = before.get(key)
            if seen is None:
                named = offset_key(place.topic, place.group), place.queue_id
                seen = _Seen(begun.get(named, place.consumer_offset), 0, 0)
            waiting_since = 0
            if place.is_behind:
                # A time that was not looked up yet is that of an older message.
                waiting_since = times.get(key, seen.waiting_since)
            passed = max(0, place.consumer_offset - seen.consumer_offset)
            now = Progress(place.consumer_offset, seen.passed_count + passed, waiting_since)
            self._seen[key] = _Seen(*now)
            self._stats.progress(place.group, place.handle, now)

    # ---- what may need the disk --------------------------------------------------------------

    def _look_up(self, places: list[_Place]) -> dict[tuple[str, QueueHandle], int]:
        lookup = self._broker.store.lookup
        times = {}
        for place in places:
            with contextlib.suppress(ShmqError):  # deleted meanwhile, or a file that is damaged
                found = lookup.first_store_timestamp(
                    place.topic, place.queue_id, place.consumer_offset
                )
                if found is not None:
                    times[place.group, place.handle] = found
        return times

    def _look_at_machine(self) -> _Given:
        disk = memory = files = None
        with contextlib.suppress(OSError):
            disk = disk_state(self._broker.store.config.store_path)
        with contextlib.suppress(ShmqError):
            memory = memory_room()
        with contextlib.suppress(OSError):
            files = open_files()
        return _Given(disk, self._hole_count(), memory, files)

    def _hole_count(self) -> int:
        path = Quarantine.path(self._broker.store.config.store_path)
        try:
            changed_ns = path.stat().st_mtime_ns
            if changed_ns != self._holes[0]:
                self._holes = changed_ns, len(Quarantine.load(path).holes)
        except (OSError, ShmqError):
            return self._holes[1]
        return self._holes[1]

    # ---- single numbers ----------------------------------------------------------------------

    def _say_values(self, given: _Given) -> None:
        broker, say = self._broker, self._stats.value
        say("broker_id", broker.config.broker_id)  # no metric: the label; memory is inherited
        say("shmq_start_time_seconds", broker.begin_ms)
        say("shmq_ha_role", 1, "slave" if broker.is_slave else "master")
        say("shmq_problem", int(broker.has_problem))
        say("shmq_sessions_lost", len(broker.store.sessions.lost))
        broker.sessions.reaped.look()
        say("shmq_sessions_reaped_total", broker.sessions.reaped.count)
        say("shmq_clients", len(broker.registry))
        retention = broker.store.retention
        say("shmq_expired_files_total", retention.expired_file_count)
        say("shmq_expired_bytes_total", retention.expired_bytes)
        for group, count in broker.expired_unread.counts.items():
            say("shmq_expired_unread_messages_total", count, group)
        say("shmq_corrupt_records", given.hole_count)
        cuts = broker.cuts.counts()
        for outcome in ("Resent", "Present", "Lost"):
            say("shmq_cut_messages_total", cuts[f"cut{outcome}Total"], outcome.lower())
        say("shmq_cut_pending_bytes", cuts["cutPendingBytes"])
        self._say_given(given)
        if not broker.is_slave:
            self._say_masters()

    def _say_given(self, given: _Given) -> None:
        say = self._stats.value
        if given.disk is not None:
            usage = given.disk.usage
            say("shmq_store_disk_free_bytes", usage.free_bytes)
            say("shmq_store_disk_size_bytes", usage.used_bytes + usage.free_bytes)
            if given.disk.file_max:
                say("shmq_store_disk_free_files", given.disk.free_files)
                say("shmq_store_disk_size_files", given.disk.file_max)
            say("shmq_store_read_only", int(given.disk.is_read_only))
        if given.memory is not None:
            say("shmq_memory_free_bytes", given.memory.left_bytes)
            say("shmq_memory_size_bytes", given.memory.limit_bytes)
        if given.files is not None:
            say("shmq_open_files", given.files.open_count)
            say("shmq_open_files_limit", given.files.limit)

    def _say_masters(self) -> None:
        broker, say = self._broker, self._stats.value
        for group in broker.groups.configs:
            say("shmq_consumer_members", len(broker.registry.consumers(group)), group)
        if broker.retries is not None:
            say("shmq_retries_total", broker.retries.retry_count)
            say("shmq_dead_letters_total", broker.retries.dead_letter_count)
        if broker.schedule is not None:
            say("shmq_delayed_messages", self._delayed_count())
            say("shmq_delayed_delivered_total", broker.schedule.delivered_count)
            say("shmq_delayed_dropped_total", broker.schedule.dropped_count)
        if broker.ha is not None:
            committed = broker.store.positions.committed_position
            in_sync = broker.ha.sync_state_set
            say("shmq_ha_in_sync_replicas", 1 + len(in_sync))
            for replica in broker.ha.replicas:
                position = broker.store.replica_set.positions(replica.index).committed_position
                name = str(replica.broker_id)
                say("shmq_ha_replica_lag_bytes", max(0, committed - position), name)
                say("shmq_ha_replica_in_sync", int(replica.broker_id in in_sync), name)

    def _delayed_count(self) -> int:
        assert self._broker.schedule is not None
        queues = self._broker.store.queues
        delivered = self._broker.schedule.offsets().offsets
        count = 0
        for level in range(1, len(self._broker.config.delay_levels_ms) + 1):
            with contextlib.suppress(TopicNotExistError):
                now = queues.offsets(queues.find(SCHEDULE_TOPIC, level - 1))
                begin = max(delivered.get(level, 0), now.min_queue_offset)
                count += max(0, now.visible_max - begin)
        return count
