"""Consumers read from slaves: sent there by a master, and where the master is gone."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from shmq.remoting.codes import RequestCode
from shmq.remoting.command import Command
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
        self, stack: contextlib.ExitStack, folder: Path, cluster_name: str, *, slave_count: int = 1
    ) -> None:
        self._stack = stack
        self.folder = folder
        self.settings = {
            "slave_read_enable": "true",
            "access_message_in_memory_max_ratio": "0",
            "flush_consumer_offset_interval_ms": "100",
        }
        self.cluster = stack.enter_context(Cluster(folder, cluster_name, **self.settings))
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
