"""A group whose members join, leave, are killed and stopped while messages flow: each message is
consumed at least once, none is lost, and no more come twice than were in flight."""

import json
import random
import signal
import statistics
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, wait_for
from tests.support.invariants import Got, History, Sent
from tests.support.repository import ROOT
from tests.support.scale import scaled
from tests.support.spools import Spools

pytestmark = [pytest.mark.cluster, pytest.mark.crash]

_BODY = struct.Struct("8s")
COUNT = scaled(50_000, 1_000_000)
MEMBER_MAX = 8
QUEUES = 8
BATCH = 64
IN_FLIGHT_MAX = 1000
"""Messages of a queue that a member may have taken and not settled."""

MEMBER = """
import struct, sys, threading, shmq
folder, spool, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
with (
    shmq.connect(folder) as client,
    client.consumer("t", "g") as consumer,
    open(spool, "ab", buffering=0) as notes,
):
    print(client.client_id, flush=True)
    while not stop.is_set():
        messages = consumer.receive(batch, timeout=0.05)
        # noted before they are settled, by asking for the next
        notes.write(b"".join(bytes(message) for message in messages))
    for message in consumer.receive(batch, timeout=0.0):  # settles those before
        notes.write(bytes(message))
        consumer.settle(message)
"""


class Member:
    """A member in a process of its own; what it received goes into a file."""

    def __init__(self, cluster: Cluster, spool: Path) -> None:
        self.spool = spool
        self.process = subprocess.Popen(
            [sys.executable, "-c", MEMBER, str(cluster.runtime), str(spool), str(BATCH)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def leave(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(60) == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            if not stream.closed:
                stream.close()


class Crowd:
    """One to eight members."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster = cluster
        self._folder = folder
        self._spools = Spools(folder, "member-*", _BODY.size)
        self.history = History()
        self.all: list[Member] = []
        self.living: list[Member] = []
        self.killed_count = 0
        self.moved_count = 0

    def join(self) -> Member:
        member = Member(self._cluster, self._folder / f"member-{len(self.all)}")
        self.all.append(member)
        assert member.ready()
        self.living.append(member)
        self.moved_count += 1
        return member

    def leave(self, member: Member) -> None:
        self.living.remove(member)
        member.leave()
        self.moved_count += 1

    def kill(self, member: Member) -> None:
        self.living.remove(member)
        member.kill()
        self.killed_count += 1

    def read(self) -> History:
        """What was sent, and what has come so far."""
        for data in self._spools.read():
            for (key,) in _BODY.iter_unpack(data):
                self.history.got[key].append(Got(0, 0))  # nobody notes when
        return self.history

    def close(self) -> None:
        for member in self.all:
            member.close()


@pytest.mark.slow
@pytest.mark.timeout(scaled(180, 1800))
def test_members_come_and_go_and_every_message_is_consumed(
    tmp_path: Path, cluster_name, rng: random.Random, record_property
):
    with (
        Cluster(tmp_path, cluster_name, brokers=2) as cluster,
        cluster.connect() as client,
        client.producer() as producer,
    ):
        client.create_topic("t", queues=QUEUES // 2)
        crowd = Crowd(cluster, tmp_path)
        sent = threading.Event()
        failed: list[Exception] = []

        def send() -> None:
            try:
                for number in range(COUNT):
                    body = number.to_bytes(8)
                    crowd.history.sent[body] = Sent(0, 0, is_acked=True)  # by drain()
                    producer.send_oneway("t", body, key=str(number % 97))
                    if number % 500 == 499:
                        time.sleep(0.05)  # so that they flow while members come and go
                producer.drain(60.0)
            except Exception as error:  # noqa: BLE001 # the test raises it
                failed.append(error)
            finally:
                sent.set()

        sender = threading.Thread(target=send)
        try:
            crowd.join()
            sender.start()
            while not sent.is_set():
                what = rng.choice(("join", "join", "leave", "kill", "stop"))
                if what == "join" and len(crowd.living) < MEMBER_MAX:
                    crowd.join()
                elif len(crowd.living) < 2:
                    continue
                elif what == "leave":
                    crowd.leave(rng.choice(crowd.living))
                elif what == "kill":
                    crowd.kill(rng.choice(crowd.living))
                elif what == "stop":
                    member = rng.choice(crowd.living)
                    member.process.send_signal(signal.SIGSTOP)
                    sent.wait(0.2)
                    member.process.send_signal(signal.SIGCONT)
                sent.wait(0.1)
            sender.join()
            assert not failed, failed
            wait_for(lambda: len(crowd.read().got) == COUNT, "the rest")
            for member in list(crowd.living):
                crowd.leave(member)
        finally:
            sent.wait(60)
            crowd.close()
        history = crowd.read()
        history.check_acked_is_delivered()
        history.check_nothing_is_invented()
        # Whoever dies leaves what it had taken; whoever comes or goes, what the others had in hand.
        changes = crowd.killed_count + crowd.moved_count
        doubled = history.check_doubled(changes * QUEUES * IN_FLIGHT_MAX)
        record_property("doubled", doubled)
        record_property("killed", crowd.killed_count)
        record_property("moved", crowd.moved_count)
        print(f"churn: {COUNT} messages, {crowd.moved_count} came or went,", end=" ")
        print(f"{crowd.killed_count} killed, {doubled} doubled")


@pytest.mark.slow
def test_queues_of_a_killed_member_are_taken_over_at_once(
    tmp_path: Path, cluster_name, record_property
):
    """How long it takes is recorded, in ms from the kill to the last queue's new owner."""
    with Cluster(tmp_path, cluster_name, brokers=2) as cluster, cluster.connect() as client:
        client.create_topic("t", queues=QUEUES // 2)
        figures = []
        with client.consumer("t", "g") as consumer:
            for number in range(scaled(5, 50)):
                member = Member(cluster, tmp_path / f"member-{number}")
                try:
                    assert member.ready()
                    wait_for(lambda: len(consumer.assigned) == QUEUES // 2, "equal shares")
                    begin_ns = time.monotonic_ns()
                    member.kill()
                    while len(consumer.assigned) < QUEUES:
                        time.sleep(0.0005)
                        assert time.monotonic_ns() - begin_ns < 60e9
                    figures.append((time.monotonic_ns() - begin_ns) / 1e6)
                finally:
                    member.close()
        figures.sort()
        record_property("reassigned_ms", json.dumps(figures))
        print(
            f"re-assigned after {statistics.median(figures):.1f} ms (median), "
            f"{figures[-1]:.1f} at most"
        )
