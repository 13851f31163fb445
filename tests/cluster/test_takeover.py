"""What a successor has of what its master was told, and not yet asked for, when the master died.

A master and a slave that copies its configuration only when it attaches and when it is told of a
change; stopped meanwhile, it is not told. Then the master is killed, and the slave takes over.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shmq
from shmq.clock import SYSTEM_CLOCK
from shmq.errors import ServiceNotAvailableError
from shmq.subscription import SubscriptionGroupConfig
from shmq.topic import SCHEDULE_TOPIC
from tests.support.broker_process import BrokerClient, BrokerProcess
from tests.support.cluster import Cluster, wait_for

pytestmark = pytest.mark.cluster

NAME = "broker-a"
NEVER_MS = "600000"
DELAY_S = 4


class Pair:
    """A master that dies, and the slave that takes its place."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.cluster = cluster
        self.master = cluster.brokers[0]
        (folder / "slave").mkdir()
        self.slave = BrokerProcess(
            folder / "slave",
            self.master.cluster_name,
            name=NAME,
            broker_id=1,
            runtime=cluster.runtime,
            wait=False,
            broker_role="SLAVE",
            slave_sync_interval_ms=NEVER_MS,
            message_delay_level=f"1s {DELAY_S}s",
        )

    def await_equal(self) -> None:
        end = self.master.status()["committedPosition"]
        wait_for(lambda: self.slave.status().get("committedPosition", -1) >= end, "the slave")

    def stop_slave(self) -> None:
        os.kill(self.slave.pid, signal.SIGSTOP)

    def take_over(self, client: shmq.Client, admin: shmq.Admin) -> None:
        """The master is dead, and the slave goes on."""
        os.kill(self.slave.pid, signal.SIGCONT)
        assert admin.switch_master(NAME, 1).broker_id == 1
        wait_for(
            lambda: client.routes.brokers().get(NAME) == self.slave.socket_name, "its registration"
        )


@pytest.fixture
def pair(tmp_path: Path, cluster_name: str) -> Iterator[Pair]:
    with Cluster(
        tmp_path,
        cluster_name,
        message_delay_level=f"1s {DELAY_S}s",
        flush_consumer_offset_interval_ms="100",
    ) as cluster:
        made = Pair(tmp_path, cluster)
        with made.slave:
            made.slave.wait_running()
            wait_for(lambda: config(made.slave, "topics.json"), "the first copy")
            made.await_equal()
            yield made
        for path in Path("/dev/shm").glob(f"shmq.{cluster_name}.*"):
            path.unlink()


def config(broker: BrokerProcess, name: str) -> Any:
    path = broker.store_path / "config" / name
    return json.loads(path.read_bytes()) if path.exists() else {}


def marks(broker: BrokerProcess) -> Any:
    text = (broker.store_path / "shmq" / "delay_marks.json").read_text("utf-8")
    return json.loads(text[: text.rindex("crc32")])["levels"]


def consume(client: shmq.Client, count: int) -> list[bytes]:
    """So many messages of the group, acknowledged."""
    seen: list[bytes] = []
    with client.consumer("young", group="readers") as consumer:
        for _ in range(count):
            message = consumer.try_next(30.0)
            assert message is not None, seen
            with message.process():
                seen.append(message.body_bytes)
    return seen


def test_successor_takes_topics_groups_and_offsets_that_it_had_no_time_to_copy(pair: Pair) -> None:
    runtime = pair.cluster.runtime
    with shmq.connect(runtime) as client, shmq.Admin(runtime) as admin:
        pair.stop_slave()
        admin.create_topic("young", queues=1, attributes={"message.type": "NORMAL"})
        admin.create_group(SubscriptionGroupConfig(group_name="readers", retry_max_times=3))
        producer = client.producer()
        for number in range(10):
            producer.send("young", b"%d" % number)
        assert consume(client, 4) == [b"0", b"1", b"2", b"3"]
        wait_for(
            lambda: (
                config(pair.master, "consumerOffset.json")["offsetTable"].get("young@readers")
                == {"0": 4}
            ),
            "the offsets on the master's disk",
        )
        pair.master.kill()
        pair.take_over(client, admin)
        assert admin.topic("young")[NAME].attributes == {"message.type": "NORMAL"}
        assert admin.group("readers")[NAME].retry_max_times == 3
        assert consume(client, 6) == [b"4", b"5", b"6", b"7", b"8", b"9"]
        producer.send("young", b"10")
        assert consume(client, 1) == [b"10"]
    assert "took what is newer" in pair.slave.log


def test_slave_copies_topics_and_groups_when_they_change_and_needs_no_disk_of_its_master(
    pair: Pair,
) -> None:
    runtime = pair.cluster.runtime
    with shmq.connect(runtime) as client, shmq.Admin(runtime) as admin:
        admin.create_topic("young", queues=1, attributes={"message.type": "NORMAL"})
        wait_for(lambda: "young" in config(pair.slave, "topics.json")["topicConfigTable"])
        admin.create_group(SubscriptionGroupConfig(group_name="readers", retry_max_times=3))
        client.producer().send("young", b"0")
        wait_for(
            lambda: (
                "readers"
                in config(pair.slave, "subscriptionGroup.json").get("subscriptionGroupTable", ())
            )
        )
        pair.await_equal()
        pair.master.kill()
        shutil.rmtree(pair.master.store_path)
        pair.take_over(client, admin)
        assert admin.topic("young")[NAME].attributes == {"message.type": "NORMAL"}
        assert admin.group("readers")[NAME].retry_max_times == 3
        assert consume(client, 1) == [b"0"]


def test_successor_has_what_only_the_memory_had_of_a_master_whose_disk_is_gone(pair: Pair) -> None:
    runtime = pair.cluster.runtime
    with shmq.connect(runtime) as client, shmq.Admin(runtime) as admin:
        admin.create_topic("young", queues=1)
        wait_for(lambda: "young" in config(pair.slave, "topics.json")["topicConfigTable"])
        producer = client.producer()
        producer.send("young", b"0")
        pair.await_equal()
        pair.slave.kill()
        producer.send("young", b"1")
        pair.master.kill()
        shutil.rmtree(pair.master.store_path)
        pair.slave.restart()
        pair.take_over(client, admin)
        assert consume(client, 2) == [b"0", b"1"]
        assert [epoch for epoch, _ in admin.epochs(NAME, 1)] == [1, 2]


def test_delayed_message_goes_on_waiting_at_the_successor_since_it_was_sent(pair: Pair) -> None:
    runtime = pair.cluster.runtime
    with shmq.connect(runtime) as client, shmq.Admin(runtime) as admin:
        client.create_topic("young", queues=1)
        pair.stop_slave()
        sent_ns = SYSTEM_CLOCK.boottime_ns()
        client.producer().send("young", b"late", delay_level=2)
        wait_for(lambda: marks(pair.master).get("2"), "its mark")
        ((end, at_ns),) = marks(pair.master)["2"]
        assert end == 1
        pair.master.kill()
        pair.take_over(client, admin)
        assert marks(pair.slave)["2"] == [[1, at_ns]]
        assert consume(client, 1) == [b"late"]
        assert SYSTEM_CLOCK.boottime_ns() - sent_ns >= DELAY_S * 1_000_000_000
    assert SCHEDULE_TOPIC in config(pair.slave, "topics.json")["topicConfigTable"]


def test_client_that_comes_back_to_a_member_that_waits_is_told_and_not_cut_off(
    tmp_path: Path, cluster_name: str
) -> None:
    """It hands over its memory where its master was; that one, started again, is none any more."""
    with BrokerProcess(tmp_path, cluster_name) as broker:
        with BrokerClient(broker, "c") as client:
            broker.kill()
            broker.restart(broker_role="SLAVE")
            with pytest.raises(ServiceNotAvailableError, match="it is no master"):
                client.resume(broker, queues=[])
            assert not client.client.is_closed
        assert "WARNING" not in broker.log
        broker.stop()
        broker.restart(broker_role="ASYNC_MASTER")
