"""Delay, retries and dead letters while brokers, producers and consumers are killed at random and
the wall clock is set by years: never early, late by a bound, never lost."""

from __future__ import annotations

import random
import struct
import time
from collections import Counter
from pathlib import Path

import pytest

import shmq
from shmq.errors import TopicNotExistError
from shmq.tools.fsck import fsck
from shmq.topic import dlq_topic, retry_topic
from tests.support.cluster import Cluster, Program, wait_for
from tests.support.invariants import Got, History, Place, Sent, Stored
from tests.support.scale import scaled
from tests.support.spools import Spools
from tests.support.wall_clock import WallClock

pytestmark = [pytest.mark.cluster, pytest.mark.crash, pytest.mark.timeout(scaled(120, 7200))]

TOPIC, GROUP = "t", "g"
RETRY = retry_topic(GROUP)
COUNT = scaled(1_200, 1_000_000)
"""Messages, of all producers."""
RATE = scaled(400, 3_000)
"""Messages a second."""
S = 1_000_000_000
LATE_NS = scaled(30, 10) * S
"""Restarts and a loaded machine (docs/internals/chaos.md); without either it is milliseconds
(test_delay.py). Between faults of the default set, five times as often, nothing settles."""
IN_FLIGHT_MAX = 5 * 1000
"""Messages taken and not settled, of four queues and the retry topic's."""
_SENT = struct.Struct("<IIqqB")
_GOT = struct.Struct("<IIqIIQ")
_KEY = struct.Struct("<II")
DELAYS_S = {0: 0, 1: 1, 2: 2}

PRODUCER = """
import struct, sys, time, shmq
folder, spool, number, count, rate = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
record = struct.Struct("<IIqqB")
with (
    shmq.connect(folder) as client,
    client.producer() as producer,
    open(spool, "ab", buffering=0) as notes,
):
    print("true", flush=True)
    for sequence in range(count):
        level = sequence % 3
        begin_ns = time.monotonic_ns()
        notes.write(record.pack(number, sequence, begin_ns, level, 0))
        producer.send("t", struct.pack("<II", number, sequence), delay_level=level, timeout=60.0)
        notes.write(record.pack(number, sequence, begin_ns, level, 1))
        time.sleep(1 / rate)
"""

CONSUMER = """
import struct, sys, threading, time, shmq
folder, spool = sys.argv[1:]
record = struct.Struct("<IIqIIQ")
notes = open(spool, "ab", buffering=0)
def listen(message):
    number, sequence = struct.unpack("<II", message.body)
    place = message.queue_id, message.queue_offset
    notes.write(record.pack(number, sequence, time.monotonic_ns(), message.reconsume_times, *place))
    if sequence % 20 == 0 or (sequence % 5 == 0 and message.reconsume_times == 0):
        return shmq.ConsumeStatus.RECONSUME_LATER
with (
    shmq.connect(folder) as client,
    client.push_consumer("g", listen, threads=4, max_reconsume_times=1) as consumer,
):
    consumer.subscribe("t")
    print("true", flush=True)
    sys.stdin.read()
"""


class _Notes:
    """What producers and consumers have noted in their files so far; each is read once."""

    def __init__(self, folder: Path) -> None:
        self._sent = Spools(folder, "sent-*", _SENT.size)
        self._got = Spools(folder, "got-*", _GOT.size)
        self.history = History()
        self.acked_count = 0
        self.waiting: set[bytes] = set()
        """Messages whose producer was told that they are stored, and that have a try to come."""
        self._tries: dict[bytes, int] = {}

    def read(self) -> None:
        """What was noted since."""
        history = self.history
        for data in self._sent.read():
            for number, sequence, begin_ns, level, is_acked in _SENT.iter_unpack(data):
                key = _KEY.pack(number, sequence)
                history.sent[key] = Sent(begin_ns, DELAYS_S[level] * S, bool(is_acked))
                if is_acked:
                    self.acked_count += 1
                    if self._tries.get(key, -1) < _last_try(sequence):
                        self.waiting.add(key)
        for data in self._got.read():
            for number, sequence, at_ns, times, queue_id, queue_offset in _GOT.iter_unpack(data):
                key = _KEY.pack(number, sequence)
                history.got[key].append(Got(at_ns, times))
                history.seen[Place(RETRY if times else TOPIC, queue_id, queue_offset)] = key
                self._tries[key] = max(times, self._tries.get(key, -1))
                if self._tries[key] >= _last_try(sequence):
                    self.waiting.discard(key)


def _last_try(sequence: int) -> int:
    """reconsume_times of the last call that a message gets: CONSUMER knows it as well."""
    return int(sequence % 5 == 0)


def _is_doomed(key: bytes) -> bool:
    """Whether CONSUMER never takes a message."""
    return bool(_KEY.unpack(key)[1] % 20 == 0)


class _Queues:
    """A topic's queues as a reader finds them; each message is read once."""

    def __init__(self, client: shmq.Client, topic: str) -> None:
        self._client = client
        self._topic = topic
        self._next: dict[shmq.MessageQueue, int] = {}
        self.stored: list[Stored] = []

    def read(self) -> list[Stored]:
        """All that is there; a topic that is not there yet is empty."""
        try:
            consumer = self._client.pull_consumer(self._topic)
        except TopicNotExistError:
            return self.stored
        with consumer:
            for queue in consumer.queues():
                at = self._next.get(queue, 0)
                while at < consumer.max_offset(queue):
                    result = consumer.pull(queue, at, 256)
                    self.stored += [
                        Stored(self._topic, m.queue_id, m.queue_offset, bytes(m))
                        for m in result.messages
                    ]
                    at = self._next[queue] = result.next_begin_offset
        return self.stored

    def keys(self) -> set[bytes]:
        return {stored.key for stored in self.read()}


class _Crowd:
    """Producers one after the other, two consumers; what they note goes into files."""

    def __init__(self, cluster: Cluster, clock: WallClock, folder: Path, notes: _Notes) -> None:
        self._cluster = cluster
        self._clock = clock
        self._folder = folder
        self._notes = notes
        self._number = 0
        self.producer: Program | None = None
        self.consumers: list[Program] = []

    def produce(self) -> None:
        """The next producer, for what is left."""
        if self.producer is not None:
            self.producer.__exit__()
        self._notes.read()
        left = max(COUNT - self._notes.acked_count, 0)
        self.producer = self._start(PRODUCER, "sent", self._number, left, RATE)
        self._number += 1

    def consume(self) -> None:
        self.consumers.append(self._start(CONSUMER, "got"))

    def _start(self, source: str, spool: str, *arguments: object) -> Program:
        path = self._folder / f"{spool}-{time.monotonic_ns()}"
        environment = self._clock.environment
        program = Program(source, self._cluster.runtime, path, *arguments, environment=environment)
        program.hear()
        return program

    def close(self) -> None:
        for program in (*self.consumers, *filter(None, [self.producer])):
            program.__exit__()


def _harm(crowd: _Crowd, cluster: Cluster, clock: WallClock, rng: random.Random) -> str:
    what = rng.choice(("broker", "consumer", "producer", "clock", "clock"))
    if what == "broker":
        cluster.brokers[0].kill()
        cluster.brokers[0].restart()
    elif what == "consumer":
        crowd.consumers.pop(0).__exit__()
        crowd.consume()
    elif what == "producer":
        assert crowd.producer is not None
        crowd.producer.kill()
        crowd.produce()
    else:
        clock.set(days=rng.uniform(-3650, 3650))
    return what


def _wait_drained(notes: _Notes) -> None:
    """Until everything has had its last try; as long as it goes on, however much there is."""
    left_count = -1
    while left_count:

        def is_less(than: int = left_count) -> bool:
            notes.read()
            return not notes.waiting or len(notes.waiting) < than

        if left_count > 0:
            wait_for(is_less, f"the rest, {left_count} messages,")
        notes.read()
        left_count = len(notes.waiting)


def test_delays_and_retries_under_kills_and_clock_jumps(
    tmp_path: Path, cluster_name: str, rng: random.Random, record_property
) -> None:
    clock = WallClock(tmp_path)
    notes = _Notes(tmp_path)
    begin = time.monotonic()
    with (
        Cluster(
            tmp_path,
            cluster_name,
            message_delay_level="1s 2s",
            environment=clock.environment,
            clean_resource_interval_ms="3600000",
        ) as cluster,
        cluster.connect() as client,
    ):
        client.create_topic(TOPIC, queues=4)
        crowd = _Crowd(cluster, clock, tmp_path, notes)
        dead = _Queues(client, dlq_topic(GROUP))
        harms: Counter[str] = Counter()
        pause = time.monotonic()
        try:
            for _ in range(2):
                crowd.consume()
            crowd.produce()
            assert crowd.producer is not None
            while crowd.producer.process.poll() is None:
                if time.monotonic() - pause > scaled(1, 5) / 2:
                    harms[_harm(crowd, cluster, clock, rng)] += 1
                    pause = time.monotonic()
                time.sleep(0.02)
            _wait_drained(notes)
            history = notes.history
            acked = {key for key, sent in history.sent.items() if sent.is_acked}
            doomed = {key for key in acked if _is_doomed(key)}
            wait_for(lambda: doomed <= dead.keys(), "the dead letters")
        finally:
            crowd.close()
        notes.read()  # what came to consumers after all were through
        history.stored = _Queues(client, TOPIC).read() + _Queues(client, RETRY).read()
        history.check_acked_is_delivered()
        history.check_nothing_is_invented()
        history.check_queues_are_whole()
        history.check_seen_is_kept()
        history.check_delays(retry_delay_ns=2 * S, late_ns=LATE_NS)
        history.check_drained(acked)
        assert dead.keys() <= history.sent.keys()
        assert all(map(_is_doomed, dead.keys())), "a message is a dead letter that was processed"
        doubled = history.check_doubled(sum(harms.values()) * IN_FLIGHT_MAX)
        late = history.late_ns()
        figures = f"{len(acked)} acknowledged in {time.monotonic() - begin:.0f} s, "
        figures += f"{sum(harms.values())} faults {dict(sorted(harms.items()))}, "
        figures += f"{doubled} doubled, {len(dead.keys())} dead letters, late "
        figures += ", ".join(
            f"{name} {late[min(int(len(late) * part), len(late) - 1)] / 1e6:.1f} ms"
            for name, part in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("at most", 1.0))
        )
        record_property("figures", figures)
        print(figures)
    assert fsck(tmp_path / "store-broker-a").findings == []  # I13
