"""Consumers read from slaves: sent there by a master, and where the master is gone."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from shmq.client.admin import Admin
from shmq.errors import ServiceNotAvailableError
from shmq.remoting.codes import RequestCode
from shmq.remoting.command import Command
from shmq.subscription import SubscriptionGroupConfig
from tests.support.broker_process import BrokerProcess
from tests.support.cluster import Cluster, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import shmq

pytestmark = pytest.mark.cluster

BODY = b"x" * (1 << 18)
COUNT = 160
"""Of these bodies: 40 MiB, of which memory holds the last 24 at most."""
SYNC_MS = "100"


class ReplicaSet:
    """A cluster with one master of broker-a, and slaves of it, without anybody who promotes."""

    def __init__(
        self,
        stack: contextlib.ExitStack,
        folder: Path,
        cluster_name: str,
        *,
        slave_count: int = 1,
        **of_master: str,
    ) -> None:
        self._stack = stack
        self.folder = folder
        self.settings = {
            "slave_read_enable": "true",
            "access_message_in_memory_max_ratio": "0",
            "flush_consumer_offset_interval_ms": "100",
        }
        settings = {**self.settings, **of_master}
        self.cluster = stack.enter_context(Cluster(folder, cluster_name, **settings))
        self.master = self.cluster.brokers[0]
        self.slaves = [self.start_slave(number) for number in range(1, slave_count + 1)]

    def start_slave(self, broker_id: int, **settings: str) -> BrokerProcess:
        folder = self.folder / f"slave-{broker_id}"
        folder.mkdir()
        slave = BrokerProcess(
            folder,
            self.master.cluster_name,
            name=self.master.name,
            broker_id=broker_id,
            runtime=self.cluster.runtime,
            wait=False,
            **{
                **self.settings,
                "broker_role": "SLAVE",
                "slave_sync_interval_ms": SYNC_MS,
                **settings,
            },
        )
        self._stack.enter_context(slave)
        slave.wait_running()
        with self.cluster.connect() as client:
            wait_for(
                lambda: broker_id in client.routes.cluster().brokers["broker-a"].broker_addrs,
                "the slave's registration",
            )
        return slave

    def await_equal(self) -> None:
        """Return once the slaves have what the master has now."""
        end = self.master.status()["committedPosition"]
        wait_for(
            lambda: all(slave.status()["committedPosition"] >= end for slave in self.slaves),
            "the slaves",
        )

    def await_offsets(self, topic: str, group: str, queue_offset: int) -> None:
        """Return once the slaves have copied a group's offset in queue 0."""
        wait_for(
            lambda: all(offset_at(slave, topic, group) == queue_offset for slave in self.slaves),
            "the offsets",
        )

    def await_no_master(self) -> None:
        with self.cluster.connect() as client:
            wait_for(lambda: not client.routes.brokers(), "the master's death")


def cold_reads(broker: BrokerProcess) -> int:
    client = broker.connect()
    try:
        info = client.call(Command(RequestCode.GET_BROKER_RUNTIME_INFO), timeout_s=30.0)
        table: dict[str, Any] = orjson.loads(info.body)["table"]
        return int(table["coldReadsTotal"])
    finally:
        client.close()


def offset_at(broker: BrokerProcess, topic: str, group: str) -> int | None:
    """A group's offset in queue 0, as a broker has it."""
    client = broker.connect()
    try:
        fields = {"consumerGroup": group, "topic": topic, "queueId": 0}
        answer = client.invoke(Command(RequestCode.QUERY_CONSUMER_OFFSET, fields), timeout_s=30.0)
        offset = answer.ext_fields.get("offset")
        return offset if isinstance(offset, int) else None
    finally:
        client.close()


@pytest.fixture
def replicas(tmp_path: Path, cluster_name: str) -> Iterator[ReplicaSet]:
    with contextlib.ExitStack() as stack:
        yield ReplicaSet(stack, tmp_path, cluster_name)


def fill(replicas: ReplicaSet, topic: str) -> None:
    """Messages of which most have left memory, by a client of its own: it keeps what it mapped."""
    with replicas.cluster.connect() as client:
        client.create_topic(topic, queues=1)
        producer = client.producer()
        for number in range(COUNT):
            producer.send(topic, str(number).encode() + BODY)
    replicas.await_equal()


def numbers(consumer: shmq.Consumer, count: int) -> list[int]:
    """The numbers of the next messages, settled."""
    found: list[int] = []
    while len(found) < count:
        message = consumer.try_next(30.0)
        assert message is not None, f"no message behind {found[-1:]}"
        found.append(int(bytes(message.body).rstrip(b"x")))
    return found


def take(consumer: shmq.Consumer, wanted: range) -> None:
    """Take these messages, and settle them."""
    for number in wanted:
        message = consumer.try_next(30.0)
        assert message is not None
        assert bytes(message.body).startswith(f"{number}x".encode())
        message.settle()


def test_cold_reads_move_to_the_slave_and_back(replicas: ReplicaSet) -> None:
    fill(replicas, "cold")
    with replicas.cluster.connect() as client, client.consumer("cold", group="slow") as consumer:
        assert numbers(consumer, COUNT) == list(range(COUNT))
        at_slave = cold_reads(replicas.slaves[0])
        assert at_slave > 0
        assert cold_reads(replicas.master) == 1, "the question that was answered with the slave"
        # What is in the master's memory is read there.
        client.producer().send("cold", b"161")
        assert numbers(consumer, 1) == [161]
        assert cold_reads(replicas.slaves[0]) == at_slave


def test_new_consumer_reads_from_the_slave_where_the_master_is_gone(replicas: ReplicaSet) -> None:
    fill(replicas, "left")
    with replicas.cluster.connect() as client, client.consumer("left", group="g") as consumer:
        assert numbers(consumer, 10) == list(range(10))
        consumer.try_next(0.0)
    wait_for(lambda: offset_at(replicas.master, "left", "g"), "the offset")
    stored = offset_at(replicas.master, "left", "g")
    assert stored is not None
    replicas.await_offsets("left", "g", stored)
    replicas.master.kill()
    replicas.await_no_master()
    with replicas.cluster.connect() as client:
        with client.consumer("left", group="g") as consumer:
            assert numbers(consumer, 20) == list(range(stored, stored + 20))
        wait_for(lambda: offset_at(replicas.slaves[0], "left", "g") == stored + 19, "the report")
        replicas.master.restart()
        wait_for(lambda: offset_at(replicas.master, "left", "g") == stored + 19, "the merge")


def test_running_consumer_reads_on_from_the_slave_and_its_offsets_go_to_the_next_master(
    replicas: ReplicaSet,
) -> None:
    fill(replicas, "run")
    half = COUNT // 2
    with (
        replicas.cluster.connect() as client,
        client.consumer("run", group="g", auto_settle=False) as consumer,
    ):
        take(consumer, range(10))
        replicas.master.kill()
        replicas.await_no_master()
        # What it had not mapped of the master it gets of the slave.
        take(consumer, range(10, half))
        wait_for(lambda: offset_at(replicas.slaves[0], "run", "g") == half, "the report")
    # Nobody who knows of it is left but the slave.
    replicas.master.restart()
    wait_for(lambda: offset_at(replicas.master, "run", "g") == half, "the merge")
    with replicas.cluster.connect() as client, client.consumer("run", group="g") as consumer:
        assert numbers(consumer, COUNT - half) == list(range(half, COUNT))


def test_consumer_that_began_at_the_slave_goes_on_at_the_master_when_that_is_back(
    replicas: ReplicaSet,
) -> None:
    fill(replicas, "back")
    replicas.master.kill()
    replicas.await_no_master()
    with replicas.cluster.connect() as client, client.consumer("back", group="g") as consumer:
        assert numbers(consumer, 30) == list(range(30))
        assert {queue.broker_name for queue in consumer.assigned} == {"broker-a"}
        replicas.master.restart()
        wait_for(lambda: client.routes.brokers(), "the master")
        client.producer().send("back", str(COUNT).encode())
        seen = numbers(consumer, 1)
        while seen[-1] != COUNT:
            seen += numbers(consumer, 1)
        # The one that was in hand at that moment comes again, none is left out.
        assert sorted(set(seen)) == list(range(min(seen), COUNT + 1))
        assert 29 <= min(seen) <= 30
        assert len(seen) <= len(set(seen)) + 1
    wait_for(lambda: offset_at(replicas.master, "back", "g") == COUNT, "the offset")


def test_of_two_slaves_the_first_is_read_unless_the_group_says_otherwise(
    tmp_path: Path, cluster_name: str
) -> None:
    with contextlib.ExitStack() as stack:
        replicas = ReplicaSet(stack, tmp_path, cluster_name, slave_count=2)
        one, two = replicas.slaves
        fill(replicas, "chosen")
        with replicas.cluster.connect() as client, client.consumer("chosen", "any") as consumer:
            assert numbers(consumer, COUNT) == list(range(COUNT))
        assert (cold_reads(one) > 0, cold_reads(two)) == (True, 0)
        before = cold_reads(one)
        with Admin(replicas.cluster.runtime) as admin:
            admin.create_group(
                SubscriptionGroupConfig(group_name="two", which_broker_when_consume_slowly=2)
            )
        with replicas.cluster.connect() as client, client.consumer("chosen", "two") as consumer:
            assert numbers(consumer, COUNT) == list(range(COUNT))
        assert (cold_reads(one), cold_reads(two) > 0) == (before, True)
        # The one that the group names is gone: the other is read.
        two.stop()
        with replicas.cluster.connect() as client, client.consumer("chosen", "two2") as consumer:
            assert numbers(consumer, COUNT) == list(range(COUNT))
        assert cold_reads(one) > before


def test_slave_that_is_not_to_be_read_refuses_and_the_master_is_read(
    tmp_path: Path, cluster_name: str
) -> None:
    with contextlib.ExitStack() as stack:
        replicas = ReplicaSet(stack, tmp_path, cluster_name, slave_count=0)
        slave = replicas.start_slave(1, slave_read_enable="false")
        replicas.slaves.append(slave)
        fill(replicas, "closed")
        client = slave.connect()
        try:
            with pytest.raises(ServiceNotAvailableError, match="slaveReadEnable is false"):
                client.call(
                    Command(RequestCode.ATTACH_SESSION, {"clientId": "one", "isProducer": False}),
                    timeout_s=30.0,
                )
        finally:
            client.close()
        with replicas.cluster.connect() as user, user.consumer("closed", group="g") as consumer:
            assert numbers(consumer, COUNT) == list(range(COUNT))
        assert cold_reads(slave) == 0
        replicas.master.kill()
        replicas.await_no_master()
        with replicas.cluster.connect() as user, user.consumer("closed", group="h") as consumer:
            assert consumer.try_next(4.0) is None, "nobody is to be read"


def test_master_that_may_not_send_consumers_on_is_read(tmp_path: Path, cluster_name: str) -> None:
    with contextlib.ExitStack() as stack:
        replicas = ReplicaSet(stack, tmp_path, cluster_name, slave_read_enable="false")
        fill(replicas, "stay")
        with replicas.cluster.connect() as client, client.consumer("stay", "g") as consumer:
            assert numbers(consumer, COUNT) == list(range(COUNT))
        assert cold_reads(replicas.slaves[0]) == 0
