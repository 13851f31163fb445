"""Delayed messages in whole clusters: when they come, and what deaths and clocks do to them."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from pathlib import Path

import pytest

import shmq
from shmq.errors import IllegalPropertyError, IllegalTopicError, PermissionDeniedError
from shmq.topic import SCHEDULE_TOPIC
from tests.support.cluster import Cluster, wait_for
from tests.support.wall_clock import WallClock

pytestmark = pytest.mark.cluster

LEVELS = "1s 2s 3s"
TIMEOUT_S = 30.0


def _collect(consumer: shmq.Consumer, count: int) -> dict[bytes, list[float]]:
    """When each of so many messages came, monotonic, by body."""
    came: dict[bytes, list[float]] = defaultdict(list)
    while len(came) < count:
        message = consumer.try_next(TIMEOUT_S)
        assert message is not None, f"{len(came)} of {count}"
        came[message.body_bytes].append(time.monotonic())
    return came


def _delay_offsets(cluster: Cluster) -> dict[str, int]:
    path = cluster.brokers[0].store_path / "config/delayOffset.json"
    offsets: dict[str, int] = json.loads(path.read_bytes())["offsetTable"]
    return offsets


def test_delayed_message_comes_with_all_it_has_after_its_delay_and_not_before(
    tmp_path: Path, cluster_name: str
) -> None:
    with (
        Cluster(tmp_path, cluster_name, message_delay_level=LEVELS) as cluster,
        cluster.connect() as client,
        client.producer() as producer,
    ):
        client.create_topic("t", queues=3)
        sent: dict[bytes, tuple[float, float]] = {}

        def send(body: bytes, delay_s: float, **options: object) -> None:
            sent[body] = time.monotonic() + delay_s, delay_s
            producer.send("t", body, **options)  # type: ignore[arg-type]

        with client.consumer("t", "g") as consumer:
            properties = {"colour": "blue"}
            send(b"two", 2.0, delay_level=2, tag="a", keys=["k"], properties=properties, flag=7)
            send(b"one", 1.0, delay_level=1, key="some key")
            send(b"last", 3.0, delay_level=99)
            send(b"now", 0.0)
            large = bytes(300_000)
            send(large, 1.0, delay_level=1)
            producer.send_oneway("t", b"one-way", delay_level=1)
            producer.send_async("t", b"async", delay_level=1).result(TIMEOUT_S)
            producer.send_many("t", [b"many 0", b"many 1"], delay_level=1)
            with producer.loan("t", 4, delay_level=1) as slot:
                slot.view[:] = b"loan"
            message = shmq.Message("t", b"message", properties={"DELAY": "1"})
            producer.send(message)
            producer.send(shmq.Message("t", b"message 2"), delay_level=1)
            came = _collect(consumer, 12)
            for body, (due, _) in sent.items():
                assert came[body][0] >= due
            assert all(len(times) == 1 for times in came.values())
        with client.consumer("t", "again") as consumer:
            by_body = {}
            while len(by_body) < 12:
                message = consumer.try_next(TIMEOUT_S)
                assert message is not None
                by_body[message.body_bytes] = message
        two = by_body[b"two"]
        assert (two.topic, two.tag, two.keys, two.flag) == ("t", "a", ("k",), 7)
        own = dict(two.properties)
        assert own.pop("UNIQ_KEY") == two.message_id
        assert own == {"colour": "blue", "TAGS": "a", "KEYS": "k"}
        assert two.store_timestamp - two.born_timestamp >= 1990
        queue = producer.send("t", b"x", key="some key").message_queue
        assert by_body[b"one"].queue_id == queue.queue_id


def test_schedule_topic_is_nobodys_to_send_to_or_to_read(tmp_path: Path, cluster_name: str) -> None:
    with (
        Cluster(tmp_path, cluster_name, message_delay_level=LEVELS) as cluster,
        cluster.connect() as client,
        client.producer() as producer,
    ):
        with pytest.raises(IllegalTopicError):
            producer.send(SCHEDULE_TOPIC, b"x")
        with pytest.raises(PermissionDeniedError):
            client.consumer(SCHEDULE_TOPIC, "g")
        with client.pull_consumer(SCHEDULE_TOPIC) as consumer:
            queue = consumer.queues()[0]
            with pytest.raises(PermissionDeniedError):
                consumer.min_offset(queue)
        client.create_topic("t", queues=1)
        with pytest.raises(IllegalPropertyError):
            producer.send("t", b"x", properties={"DELAY": "soon"})
        with pytest.raises(ValueError, match="delay_level -1"):
            producer.send("t", b"x", delay_level=-1)


@pytest.mark.crash
@pytest.mark.parametrize("keep_memory", ["always", "never"])
def test_broker_that_is_restarted_or_killed_loses_and_doubles_none(
    tmp_path: Path, cluster_name: str, keep_memory: str
) -> None:
    """An orderly stop of either kind, then a SIGKILL amid deliveries."""
    with (
        Cluster(
            tmp_path, cluster_name, message_delay_level=LEVELS, keep_memory=keep_memory
        ) as cluster,
        cluster.connect() as client,
        client.producer() as producer,
    ):
        client.create_topic("t", queues=2)
        (broker,) = cluster.brokers
        due: dict[bytes, float] = {}
        for number in range(300):
            body = b"%d" % number
            due[body] = time.monotonic() + 1 + number % 3
            producer.send("t", body, delay_level=1 + number % 3, timeout=TIMEOUT_S)
            if number == 100:
                assert broker.stop() == 0
                broker.restart()
        wait_for(lambda: _delivered(client) > 20, "some of them")
        broker.kill()
        broker.restart()
        with client.consumer("t", "g") as consumer:
            came = _collect(consumer, len(due))
            assert consumer.try_next(0.2) is None
        assert came.keys() == due.keys()
        assert all(len(times) == 1 for times in came.values())
        late_s = {body: came[body][0] - at for body, at in due.items()}
        assert all(late >= 0 for late in late_s.values()), sorted(
            (late, body) for body, late in late_s.items()
        )[:20]
        assert broker.stop() == 0
        ends = _delay_offsets(cluster)
        assert ends == {"1": 100, "2": 100, "3": 100}
        broker.restart()


def _delivered(client: shmq.Client) -> int:
    with client.pull_consumer("t") as consumer:
        return sum(consumer.max_offset(queue) for queue in consumer.queues())


@pytest.mark.parametrize("days", [3650, -3650])
def test_wall_clock_set_by_years_neither_fires_early_nor_late(
    tmp_path: Path, cluster_name: str, days: float
) -> None:
    clock = WallClock(tmp_path)
    with (
        Cluster(
            tmp_path,
            cluster_name,
            message_delay_level=LEVELS,
            environment=clock.environment,
        ) as cluster,
        cluster.connect() as client,
        client.producer() as producer,
    ):
        client.create_topic("t", queues=1)
        (broker,) = cluster.brokers
        with client.consumer("t", "g") as consumer:
            due = {}
            for number, offset in enumerate((0, days, 0)):
                clock.set(days=offset)
                body = b"%d" % number
                due[body] = time.monotonic() + 3
                producer.send("t", body, delay_level=3)
                if number == 1:
                    broker.kill()
                    broker.restart()
            clock.set(days=-days)
            came = _collect(consumer, len(due))
        late_s = {body: came[body][0] - at for body, at in due.items()}
        assert all(late >= 0 for late in late_s.values()), late_s
        assert max(_store_days(client)) > 3000  # the broker did live in another time


def _store_days(client: shmq.Client) -> list[float]:
    """How many days from now the messages of t were stored."""
    with client.pull_consumer("t") as consumer:
        found = [m for q in consumer.queues() for m in consumer.pull(q, 0).messages]
    return [message.store_timestamp / 86_400_000 - time.time() / 86_400 for message in found]


def test_messages_of_a_deleted_topic_are_dropped_and_the_others_come(
    tmp_path: Path, cluster_name: str
) -> None:
    with (
        Cluster(tmp_path, cluster_name, message_delay_level=LEVELS) as cluster,
        cluster.connect() as client,
        client.producer() as producer,
        shmq.Admin(cluster.runtime) as admin,
    ):
        client.create_topic("gone", queues=1)
        client.create_topic("t", queues=4)
        producer.send("gone", b"gone", delay_level=1)
        producer.send("t", b"here", delay_level=1)
        admin.delete_topic("gone")
        with client.consumer("t", "g") as consumer:
            assert _collect(consumer, 1).keys() == {b"here"}
        assert "reason=topic gone is not there any more" in cluster.brokers[0].log
