"""The process of a master dies, and another member takes its place: nothing is lost, nothing twice.

Two members of one broker_name, supervised. Until members copy their master's log, the second one
begins with an empty log, which is a prefix of any that is still in memory from its first byte, and
is given the master's configuration by the test.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

import shmq
from shmq.clock import SYSTEM_CLOCK
from shmq.errors import ConfigError, ServiceNotAvailableError
from shmq.shm.mastership import Mastership, load_record
from shmq.shm.reaper import reap
from tests.cluster.sender import Sender
from tests.support.cluster import wait_for
from tests.support.invariants import Got, History, Sent, Stored
from tests.support.scale import scaled
from tests.support.supervised import NAME, Pair

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(scaled(180, 7200))]


@pytest.fixture
def pair(tmp_path: Path, cluster_name: str) -> Iterator[Pair]:
    made = Pair(tmp_path, cluster_name)
    yield made
    made.close()
    reap(sorted(made.runtime.glob("broker-*.d")), [], dry_run=False)


def test_switch_over_and_back_under_load_fails_no_send(pair: Pair) -> None:
    with shmq.connect(pair.runtime) as client, shmq.Admin(pair.runtime) as admin:
        pair.master(client)
        client.create_topic("t", queues=1)
        pair.await_both()
        pair.copy_config("a0", "a1")
        sender = Sender(client)
        sender.start()
        sender.go_on()
        for to_id in (1, 0, None):
            wait_for(lambda: len(admin.ha_members(NAME)) == 2, "both members")
            member = admin.switch_master(NAME, to_id)
            assert member.broker_id == (1 if to_id is None else to_id)
            sender.go_on()
            assert [one.is_master for one in admin.ha_members(NAME)].count(True) == 1
        sender.stop()
        assert [epoch for epoch, _ in admin.epochs(NAME, 1)] == [1, 2, 3, 4]
        wait_for(lambda: len(admin.ha_members(NAME)) == 2, "both members")
        with pytest.raises(ConfigError, match="7: it does not answer; members that wait: 0; see "):
            admin.switch_master(NAME, 7)
        with pytest.raises(ConfigError, match="to broker_id 1: it is master already"):
            admin.switch_master(NAME, 1)
        items = pair.members().values()
        assert [item["restartCount"] for item in items] == [0, 0]


class Crowd:
    """Producers and push consumers, and what they were told and given."""

    def __init__(self, runtime: Path) -> None:
        self.history = History()
        self._stack = contextlib.ExitStack()
        self._stopping = threading.Event()
        self._failed: list[BaseException] = []
        clients = [self._stack.enter_context(shmq.connect(runtime)) for _ in range(6)]
        clients[0].create_topic("orders", queues=4)
        for client in clients[:4]:
            consumer = client.push_consumer("g", self._hear, threads=2)
            self._stack.enter_context(consumer)
            consumer.subscribe("orders")
        self._threads = [
            threading.Thread(target=self._send, args=(clients[4 + number % 2], number), daemon=True)
            for number in range(8)
        ]
        for thread in self._threads:
            thread.start()

    def _hear(self, message: shmq.Message) -> None:
        key = bytes(message.body)
        self.history.got[key].append(Got(SYSTEM_CLOCK.monotonic_ns(), message.reconsume_times))

    def _send(self, client: shmq.Client, number: int) -> None:
        """Every fourth waits for each send, others have eight under way."""
        try:
            with client.producer() as producer:
                under_way: deque[tuple[bytes, int, Future[shmq.SendResult]]] = deque()
                sequence = 0
                while not self._stopping.is_set() or under_way:
                    if not self._stopping.is_set():
                        key = b"%d-%d" % (number, sequence)
                        sequence += 1
                        future = producer.send_async("orders", key, timeout=60.0)
                        under_way.append((key, SYSTEM_CLOCK.monotonic_ns(), future))
                    if len(under_way) == (1 if number % 4 == 0 else 8) or self._stopping.is_set():
                        key, begin_ns, future = under_way.popleft()
                        future.result()
                        self.history.sent[key] = Sent(begin_ns, 0, is_acked=True)
                    self._stopping.wait(0.002)
        except BaseException as error:  # noqa: BLE001 # shown in the test's thread
            self._failed.append(error)

    def go_on(self, count: int = 200) -> None:
        until = len(self.history.sent) + count
        wait_for(lambda: self._failed or len(self.history.sent) >= until, "sends that go on")
        assert not self._failed

    def end(self) -> History:
        """Stop sending; once every message has come."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        assert not self._failed
        wait_for(lambda: self.history.sent.keys() <= self.history.got.keys(), "every message")
        self._stack.close()
        return self.history


def test_rolling_upgrade_fails_no_send_and_doubles_nothing(pair: Pair) -> None:
    """Switch over, restart the one that waits, switch back, restart the other."""
    with shmq.Admin(pair.runtime) as admin:
        wait_for(lambda: admin.ha_members(NAME), "a member")
        pair.await_both()
        with shmq.connect(pair.runtime) as client:
            pair.master(client)
        crowd = Crowd(pair.runtime)
        for number in range(scaled(2, 100)):
            crowd.go_on()
            pair.await_in_sync()
            old = next(one for one in admin.ha_members(NAME) if one.is_master)
            assert admin.switch_master(NAME).broker_id != old.broker_id, number
            crowd.go_on()
            os.kill(old.pid, signal.SIGTERM)
            wait_for(lambda old=old: not Path(f"/proc/{old.pid}").exists(), "the end of it")
            pair.await_both()
        crowd.go_on()
        history = crowd.end()
    history.check_acked_is_delivered()
    history.check_nothing_is_invented()
    assert history.doubled_count() == 0
    with shmq.connect(pair.runtime) as client, client.pull_consumer("orders") as pull:
        for queue in pull.queues():
            at = pull.min_offset(queue)
            while at < pull.max_offset(queue):
                found = pull.pull(queue, at)
                history.stored += [
                    Stored("orders", queue.queue_id, one.queue_offset, bytes(one.body))
                    for one in found.messages
                ]
                at = found.next_begin_offset
    history.check_queues_are_whole(begin=0)
    assert sorted(one.key for one in history.stored) == sorted(history.sent)


def test_client_goes_to_no_master_of_an_older_epoch(pair: Pair) -> None:
    with shmq.connect(pair.runtime) as client:
        first = pair.master(client)
        client.create_topic("t", queues=1)
        pair.await_both()
        pair.copy_config("a0", "a1")
        # The refusal ends a session with a send in it, whose fate the client cannot learn.
        sender = Sender(client, may_double=True)
        sender.start()
        sender.go_on()
        link = client.link(NAME)
        assert link.master_epoch == 1
        link.master_epoch = 100  # as if it had been with a later one
        os.kill(pair.pid_of(first), signal.SIGKILL)
        wait_for(lambda: not link.is_up, "the end of the connection")
        pair.await_both()
        wait_for(lambda: client.routes.brokers().get(NAME), "a master again")
        with pytest.raises(ServiceNotAvailableError, match=r"master epoch \d, it was 100 before"):
            link.reconnect(pair.master(client))
        link.master_epoch = 1
        sender.go_on()
        sender.stop()
        assert link.master_epoch in (1, 2)  # the first one, restarted, may have been told


def test_deleted_lock_is_made_again_and_a_master_that_lost_it_ends(pair: Pair) -> None:
    """The files of mastership are deleted while the master lives: it makes them again. Where
    another process was quicker, the master ends; a member is master once that process lets go.
    """
    folder = pair.runtime / "broker-broker-a-0.d"
    files = [folder / "mastership.lock", folder / "mastership.json"]
    with shmq.connect(pair.runtime) as client:
        pid = pair.pid_of(pair.master(client))
        client.create_topic("t", queues=1)
        pair.await_both()
        pair.copy_config("a0", "a1")
        sender = Sender(client)
        sender.start()
        sender.go_on()
        before = load_record(folder)
        for path in files:
            path.unlink()
        wait_for(lambda: load_record(folder) == before, "the files again")
        assert Mastership.try_take(folder) is None

        taken = None
        while taken is None:  # between two looks of the master
            for path in files:
                path.unlink(missing_ok=True)
            taken = Mastership.try_take(folder)
        wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the end of the master that lost it")
        taken.release()
        sender.go_on()
        sender.stop()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_sends_and_consumers_go_on_at_the_member_that_takes_over(
    pair: Pair, number: signal.Signals
) -> None:
    with shmq.connect(pair.runtime) as client, shmq.connect(pair.runtime) as other:
        first = pair.master(client)
        assert first == "broker-broker-a-0"
        masters = set()
        client.create_topic("t", queues=1)
        pair.await_both()
        pair.copy_config("a0", "a1")
        sender = Sender(client)
        sender.start()
        seen: list[bytes] = []
        consumer = other.consumer("t", "g")
        reading = threading.Thread(
            target=lambda: [seen.append(bytes(message.body)) for message in consumer], daemon=True
        )
        reading.start()
        sender.go_on()
        for _ in range(scaled(3, 200) if number is signal.SIGKILL else 1):
            pid = pair.pid_of(pair.master(client))
            os.kill(pid, number)
            sender.go_on()
            masters.add(pair.master(client))
            assert pair.pid_of(pair.master(client)) != pid
            pair.await_both()
        assert masters != {first}, "nobody took another's place"
        sender.stop()
        wait_for(lambda: len(seen) >= sender.count, "all at the consumer")
        consumer.close()
        reading.join()
        assert list(map(int, seen)) == list(range(sender.count))
        pull = client.pull_consumer("t")
        (queue,) = pull.queues()
        found: list[bytes] = []
        while len(found) < sender.count:
            found += [bytes(message.body) for message in pull.pull(queue, len(found)).messages]
        assert found == [b"%d" % at for at in range(sender.count)]
