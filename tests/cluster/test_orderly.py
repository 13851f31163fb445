"""Orderly consumption: each key in strict order and by one listener at a time, while members come,
go, are stopped and killed and brokers are killed."""

import random
import signal
import threading
import time
from pathlib import Path

import pytest

import shmq
from shmq.client.queue_locks import QueueLocks
from shmq.errors import ConfigError
from shmq.subscription import SubscriptionGroupConfig
from tests.support.cluster import Cluster, Program, wait_for
from tests.support.order import BEGIN, END, Event, check_order, read_events
from tests.support.scale import scaled

pytestmark = pytest.mark.cluster

KILLS = scaled(6, 200)
KEYS = 24
SUSPEND = shmq.ConsumeOrderlyStatus.SUSPEND_CURRENT_QUEUE_A_MOMENT
MEMBERS = 3

MEMBER = """
import json, os, struct, sys, time, shmq
from tests.support.order import BEGIN, END, note
folder, path, number, work_ms = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
fd = os.open(path, os.O_WRONLY | os.O_APPEND)

def listener(message, context):
    key, at = struct.unpack("<II", bytes(message))
    note(fd, BEGIN, number, key, at)
    # The work; now and then so long that a queue is taken away in the middle of it.
    time.sleep(0.06 if at % 31 == 30 else work_ms / 1000)
    if at % 97 == 96 and not context.reconsume_times:
        context.suspend = 0.02
        return shmq.ConsumeOrderlyStatus.SUSPEND_CURRENT_QUEUE_A_MOMENT
    note(fd, END, number, key, at)

with (
    shmq.connect(folder) as client,
    client.push_consumer("g", listener, threads=4, orderly=True) as consumer,
):
    consumer.subscribe("t")
    print(json.dumps(client.client_id), flush=True)
    sys.stdin.read()
"""


class Sender:
    """Sends numbers to all keys in turn until it is stopped, in a thread."""

    def __init__(self, client: shmq.Client, path: Path) -> None:
        self.sent = [0] * KEYS
        self._client = client
        self._stopped = threading.Event()
        self._failed: list[Exception] = []
        self._path = path
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._client.producer() as producer:
                while not self._stopped.is_set():
                    for key in range(KEYS):
                        body = key.to_bytes(4, "little") + self.sent[key].to_bytes(4, "little")
                        producer.send_oneway("t", body, key=str(key))
                        self.sent[key] += 1
                    # No more ahead than members are worth being killed in.
                    while not self._stopped.is_set() and self._ahead() > 20 * KEYS:
                        time.sleep(0.01)
                producer.drain(60.0)
        except Exception as error:  # noqa: BLE001 # the test raises it
            self._failed.append(error)

    def _ahead(self) -> int:
        done = self._path.stat().st_size // 20 // 2  # records of a begin and an end
        return sum(self.sent) - done

    def stop(self) -> list[int]:
        self._stopped.set()
        self._thread.join()
        assert not self._failed, self._failed
        return self.sent


class Team:
    """The members that live; another for each that is killed or leaves."""

    def __init__(self, cluster: Cluster, path: Path) -> None:
        self._cluster = cluster
        self._path = path
        self._number = 0
        self.living: list[Program] = []

    def join(self) -> None:
        self._number += 1
        member = Program(MEMBER, self._cluster.runtime, self._path, self._number, 0.5)
        self.living.append(member)

    def ready(self) -> None:
        self.living[-1].hear()

    def close(self) -> None:
        for member in self.living:
            member.__exit__()


def shake(rng: random.Random, cluster: Cluster, team: Team) -> str:
    """Do something to a member or a broker; what."""
    what = rng.choice(("member", "member", "member", "broker", "both", "leave", "stop"))
    member = rng.choice(team.living)
    broker = rng.choice(cluster.brokers)
    if what in ("broker", "both"):
        broker.kill()
    if what in ("member", "both"):
        member.kill()
    if what in ("broker", "both"):
        broker.restart()
    if what == "stop":
        member.process.send_signal(signal.SIGSTOP)
        time.sleep(rng.random() / 5)
        member.process.send_signal(signal.SIGCONT)
    if what == "leave":
        assert member.end() == 0
    if what in ("member", "both", "leave"):
        team.living.remove(member)
        member.__exit__()
        team.join()
        team.ready()
    return what


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.timeout(scaled(120, 1800))
def test_each_key_stays_in_order_through_kills_of_members_and_brokers(
    tmp_path: Path, cluster_name, rng: random.Random, record_property
):
    path = tmp_path / "order"
    path.touch()
    with Cluster(tmp_path, cluster_name, brokers=2) as cluster, cluster.connect() as client:
        client.create_topic("t", queues=4)
        team = Team(cluster, path)
        sender = Sender(client, path)
        try:
            for _ in range(MEMBERS):
                team.join()
            for member in team.living:
                member.hear()
            kills = 0
            while kills < KILLS:
                size = path.stat().st_size
                wait_for(lambda size=size: path.stat().st_size > size, "a message between kills")
                time.sleep(rng.random() / 20)
                what = shake(rng, cluster, team)
                kills += {"member": 1, "broker": 1, "both": 2}.get(what, 0)
            sent = sender.stop()
            wait_for(lambda: done_of(path) == sent, "the rest")
        finally:
            sender.stop()
            team.close()
        found = check_order(read_events(path))
    record_property("again", found.again_count)
    print(
        f"orderly: {sum(sent)} messages of {KEYS} keys, {kills} kills, "
        f"{found.step_back_count} steps back, {found.again_count} consumed again"
    )


def done_of(path: Path) -> list[int]:
    done = check_order(read_events(path)).done
    return [done.get(key, 0) for key in range(KEYS)]


# ---- giving up and taking over -------------------------------------------------------------------


class Held:
    """A listener that holds the first message it gets until it is let go."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.go_on = threading.Event()
        self.bodies: list[bytes] = []

    def __call__(self, message: shmq.Message, context: shmq.ConsumeOrderlyContext) -> None:
        self.began.set()
        assert self.go_on.wait(60)
        self.bodies.append(bytes(message))


def hand_over(cluster: Cluster, patience_s: float) -> tuple[list[bytes], list[bytes]]:
    """One queue moves while its listener is in the middle of a message; what the new member got
    before that returned, if it did so in the time, and what in all."""
    first, second = Held(), Held()
    second.go_on.set()
    with cluster.connect() as one, cluster.connect() as two, one.producer() as producer:
        one.create_topic("h", queues=1)
        # The only queue is of the member whose client id comes first.
        new, old = sorted((one, two), key=lambda client: client.client_id)
        with (
            old.push_consumer("g", first, orderly=True) as consumer,
            new.push_consumer("g", second, orderly=True) as other,
            shmq.Admin(one.namesrv) as admin,
        ):
            consumer.subscribe("h")
            producer.send("h", b"1")
            producer.send("h", b"2")
            assert first.began.wait(60)
            assert admin.lag("g", topic="h")[0].locked_by == old.client_id
            other.subscribe("h")
            second.began.wait(patience_s)
            early = list(second.bodies)
            first.go_on.set()
            wait_for(lambda: first.bodies and b"2" in second.bodies, "both")
            wait_for(lambda: admin.lag("g", topic="h")[0].locked_by == new.client_id, "the lock")
            return early, second.bodies


@pytest.mark.slow
def test_the_next_member_begins_when_the_listener_of_the_one_before_has_returned(
    tmp_path: Path, cluster_name
):
    with Cluster(tmp_path, cluster_name) as cluster:
        early, late = hand_over(cluster, 0.5)
    assert early == []
    assert late == [b"2"]


@pytest.mark.slow
def test_a_consumer_that_gives_queues_up_in_the_middle_of_a_message_is_found_out(
    tmp_path: Path, cluster_name, monkeypatch
):
    """The planted bug: what the tests above would see if nobody waited for the listener."""
    monkeypatch.setattr(QueueLocks, "leave", lambda _self, keys: set(keys))
    monkeypatch.setattr(QueueLocks, "is_calling", lambda _self, _key: False)
    with Cluster(tmp_path, cluster_name) as cluster:
        early, _ = hand_over(cluster, 60.0)
    assert early[:1] == [b"1"], "it began what the other had not finished"


# ---- failing -------------------------------------------------------------------------------------


@pytest.fixture
def orders(client, topic) -> str:
    """A topic of two queues."""
    client.create_topic(topic, queues=2)
    return topic


def test_a_failed_message_suspends_its_queue_and_no_other(client, orders, group):
    seen: list[tuple[int, int, int]] = []
    other_went_on = threading.Event()

    def listener(message: shmq.Message, context: shmq.ConsumeOrderlyContext) -> None:
        queue_id = context.message_queue.queue_id
        seen.append((queue_id, message.queue_offset, context.reconsume_times))
        if queue_id == 1 and message.queue_offset == 4:
            other_went_on.set()
        if queue_id == 0 and message.queue_offset == 1 and context.reconsume_times < 2:
            assert other_went_on.wait(60), "threads of other queues go on"
            context.suspend = 0.01
            raise RuntimeError("not this time")

    with client.producer() as producer:
        for _ in range(5):
            for queue_id in range(2):
                producer.send(orders, b"x", queue=shmq.MessageQueue(orders, "broker-a", queue_id))
    with client.push_consumer(group, listener, orderly=True, threads=2) as consumer:
        consumer.subscribe(orders)
        wait_for(lambda: len(seen) == 12)
    assert [row[1:] for row in seen if row[0] == 0] == [
        (0, 0), (1, 0), (1, 1), (1, 2), (2, 0), (3, 0), (4, 0)
    ]  # fmt: skip
    assert [row[1:] for row in seen if row[0] == 1] == [(at, 0) for at in range(5)]


def test_a_message_that_fails_too_often_is_a_dead_letter_and_those_behind_it_get_on(
    client, orders, group
):
    seen: list[tuple[bytes, int]] = []

    def listener(message: shmq.Message, context: shmq.ConsumeOrderlyContext) -> str:
        seen.append((bytes(message), context.reconsume_times))
        is_done = bytes(message) != b"bad"
        return shmq.ConsumeOrderlyStatus.SUCCESS if is_done else SUSPEND

    queue = shmq.MessageQueue(orders, "broker-a", 0)
    with client.producer() as producer:
        for body in (b"1", b"bad", b"2"):
            producer.send(orders, body, queue=queue)
    with client.push_consumer(
        group, listener, orderly=True, suspend=0.01, max_reconsume_times=2
    ) as consumer:
        consumer.subscribe(orders)
        wait_for(lambda: len(seen) == 5)
    assert seen == [(b"1", 0), (b"bad", 0), (b"bad", 1), (b"bad", 2), (b"2", 0)]
    with client.consumer(f"%DLQ%{group}", f"{group}-undertaker") as dead:
        assert [bytes(message) for message in dead.receive(timeout=60.0)] == [b"bad"]


def test_more_queues_than_threads_all_get_their_turn(client, topic, group):
    client.create_topic(topic, queues=16)
    seen: list[tuple[int, int]] = []

    def listener(message: shmq.Message, context: shmq.ConsumeOrderlyContext) -> None:
        seen.append((context.message_queue.queue_id, message.queue_offset))

    with client.producer() as producer:
        for number in range(16 * 100):
            producer.send_oneway(
                topic, b"x", queue=shmq.MessageQueue(topic, "broker-a", number % 16)
            )
        producer.drain(60.0)
    with client.push_consumer(group, listener, orderly=True, threads=2) as consumer:
        consumer.subscribe(topic)
        wait_for(lambda: len(seen) == 1600)
    for queue_id in range(16):
        assert [at for one, at in seen if one == queue_id] == list(range(100))


def test_every_member_of_a_broadcasting_group_gets_all_in_order(client, orders, group):
    seen: list[int] = []
    with client.producer() as producer:
        for _ in range(50):
            producer.send(orders, b"x", queue=shmq.MessageQueue(orders, "broker-a", 0))
    with client.push_consumer(
        group, lambda message, _context: seen.append(message.queue_offset), orderly=True
    ) as consumer:
        consumer.subscribe(orders, model=shmq.MessageModel.BROADCASTING)
        wait_for(lambda: len(seen) == 50)
    assert seen == list(range(50))


def test_a_group_that_consumes_in_order_refuses_members_that_do_not(client, orders, group):
    with shmq.Admin(client.namesrv) as admin:
        admin.create_group(SubscriptionGroupConfig(group_name=group, consume_message_orderly=True))
    with pytest.raises(
        ConfigError, match=f"claim queue 0 of {orders} for {group}: its consumeMessageOrderly"
    ):
        client.consumer(orders, group)
    with client.push_consumer(group, lambda _message, _context: None, orderly=True) as consumer:
        consumer.subscribe(orders)


def test_what_an_orderly_consumer_cannot_use_is_refused(client, group):
    with pytest.raises(TypeError, match=r"called with \(message, context\)"):
        client.push_consumer(group, lambda _message: None, orderly=True)
    for suspend in (0.001, 31.0, float("nan")):
        with pytest.raises(ConfigError, match=r"suspend .*, wanted 0.01 to 30 seconds"):
            client.push_consumer(group, lambda _m, _c: None, orderly=True, suspend=suspend)


# ---- the checker ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("history", "wrong"),
    [
        ([(BEGIN, 1, 0, 0), (BEGIN, 2, 0, 0), (END, 1, 0, 0)], "two listeners at a time"),
        ([(BEGIN, 1, 0, 0), (BEGIN, 2, 0, 1)], "one before it is not done"),
        ([(BEGIN, 1, 0, 1)], "one before it is not done"),
        (
            [(kind, 1, 0, at) for at in (0, 1, 0, 2) for kind in (BEGIN, END)],
            "some in between are passed over",
        ),
    ],
)
def test_histories_that_are_out_of_order_are_found(history, wrong):
    with pytest.raises(AssertionError, match=wrong):
        check_order([Event(*row) for row in history])


def test_what_a_killed_member_was_at_may_come_again():
    history = [(BEGIN, 1, 0, 0), (END, 1, 0, 0), (BEGIN, 1, 0, 1), (BEGIN, 2, 0, 0), (END, 2, 0, 0)]
    found = check_order([Event(*row) for row in [*history, (BEGIN, 2, 0, 1), (END, 2, 0, 1)]])
    assert (found.done, found.again_count, found.step_back_count) == ({0: 2}, 1, 1)
