"""Delay, retries and dead letters while brokers, producers and consumers are killed at random and
the wall clock is set by years: never early, late by a bound, never lost."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

import shmq
from shmq.topic import dlq_topic
from tests.support.cluster import Cluster, Program, wait_for
from tests.support.invariants import Got, History, Sent, Stored
from tests.support.scale import scaled
from tests.support.wall_clock import WallClock

pytestmark = [pytest.mark.cluster, pytest.mark.crash, pytest.mark.timeout(scaled(120, 7200))]

COUNT = scaled(1_200, 1_000_000)
"""Messages, of all producers."""
RATE = scaled(400, 1_500)
"""Messages a second."""
S = 1_000_000_000
LATE_NS = scaled(30, 60) * S
"""Restarts and a loaded machine; without either it is milliseconds (test_delay.py)."""
_SENT = struct.Struct("<IIqqB")
_GOT = struct.Struct("<IIqI")
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
record = struct.Struct("<IIqI")
notes = open(spool, "ab", buffering=0)
def listen(message):
    number, sequence = struct.unpack("<II", message.body)
    notes.write(record.pack(number, sequence, time.monotonic_ns(), message.reconsume_times))
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


def _records(paths: Iterable[Path], record: struct.Struct) -> Iterable[tuple[int, ...]]:
    for path in paths:
        data = path.read_bytes()
        yield from record.iter_unpack(data[: len(data) // record.size * record.size])


def _history(folder: Path) -> History:
    history = History()
    for number, sequence, begin_ns, level, is_acked in _records(folder.glob("sent-*"), _SENT):
        key = struct.pack("<II", number, sequence)
        history.sent[key] = Sent(begin_ns, DELAYS_S[level] * S, bool(is_acked))
    for number, sequence, at_ns, times in _records(folder.glob("got-*"), _GOT):
        history.got[struct.pack("<II", number, sequence)].append(Got(at_ns, times))
    return history


def _stored(client: shmq.Client, topic: str) -> list[Stored]:
    found = []
    with client.pull_consumer(topic) as consumer:
        for queue in consumer.queues():
            at = consumer.min_offset(queue)
            end = consumer.max_offset(queue)
            while at < end:
                result = consumer.pull(queue, at, 256)
                found += [
                    Stored(topic, m.queue_id, m.queue_offset, bytes(m)) for m in result.messages
                ]
                at = result.next_begin_offset
    return found


class _Crowd:
    """Producers one after the other, two consumers; what they note goes into files."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster = cluster
        self._folder = folder
        self._number = 0
        self.left = COUNT
        self.producer: Program | None = None
        self.consumers: list[Program] = []

    def produce(self) -> None:
        """The next producer, for what is left."""
        if self.producer is not None:
            self.producer.__exit__()
        acked = sum(row[4] for row in _records(self._folder.glob("sent-*"), _SENT))
        self.left = COUNT - acked
        self.producer = self._start(PRODUCER, "sent", self._number, max(self.left, 0), RATE)
        self._number += 1

    def consume(self) -> None:
        self.consumers.append(self._start(CONSUMER, "got"))

    def _start(self, source: str, spool: str, *arguments: object) -> Program:
        path = self._folder / f"{spool}-{time.monotonic_ns()}"
        program = Program(source, self._cluster.runtime, path, *arguments)
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


def test_delays_and_retries_under_kills_and_clock_jumps(
    tmp_path: Path, cluster_name: str, rng: random.Random, record_property
) -> None:
    clock = WallClock(tmp_path)
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
        client.create_topic("t", queues=4)
        crowd = _Crowd(cluster, tmp_path)
        harms: list[str] = []
        pause = time.monotonic()
        try:
            for _ in range(2):
                crowd.consume()
            crowd.produce()
            assert crowd.producer is not None
            while crowd.producer.process.poll() is None:
                if time.monotonic() - pause > scaled(1, 5) / 2:
                    harms.append(_harm(crowd, cluster, clock, rng))
                    pause = time.monotonic()
                time.sleep(0.02)

            def ended() -> bool:
                history = _history(tmp_path)
                acked = {key for key, sent in history.sent.items() if sent.is_acked}
                tries = {
                    key: max(c.reconsume_times for c in history.got[key])
                    for key in acked & history.got.keys()
                }
                return len(tries) == len(acked) and all(
                    times >= (_sequence(key) % 5 == 0) for key, times in tries.items()
                )

            wait_for(ended, "the rest")
            doomed = {
                key
                for key, sent in _history(tmp_path).sent.items()
                if sent.is_acked and _sequence(key) % 20 == 0
            }
            wait_for(lambda: doomed <= _dead(client), "the dead letters")
        finally:
            crowd.close()
        history = _history(tmp_path)
        history.stored = _stored(client, "t")
        history.check_acked_is_delivered()
        history.check_nothing_is_invented()
        history.check_queues_are_whole()
        late_ns = history.check_delays(retry_delay_ns=2 * S, late_ns=LATE_NS)
        history.check_drained({key for key, sent in history.sent.items() if sent.is_acked})
        assert _dead(client) <= history.sent.keys()
        figures = f"{len(history.sent)} sent, {len(harms)} faults {sorted(set(harms))}, "
        figures += f"{history.doubled_count()} doubled, at most {late_ns / S:.2f} s late"
        record_property("figures", figures)
        print(figures)


def _sequence(key: bytes) -> int:
    return int(struct.unpack("<II", key)[1])


def _dead(client: shmq.Client) -> set[bytes]:
    try:
        return {stored.key for stored in _stored(client, dlq_topic("g"))}
    except shmq.ShmqError:
        return set()
