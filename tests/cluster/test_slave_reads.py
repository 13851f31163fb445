"""Consumers read from slaves: sent there by a master, and where the master is gone."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest

import shmq
import shmq.aio
from shmq.client.admin import Admin
from shmq.errors import ServiceNotAvailableError
from shmq.remoting.codes import RequestCode, ResponseCode
from shmq.remoting.command import Command
from shmq.result import MessageQueue
from shmq.subscription import MessageModel, SubscriptionGroupConfig
from tests.support.broker_process import BrokerProcess
from tests.support.cluster import Cluster, wait_for
from tests.support.other_uid import Person
from tests.support.require import require_root
from tests.support.shell import Shell

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shmq.client.broker_link import BrokerLink

pytestmark = pytest.mark.cluster

BODY = b"x" * (1 << 18)
COUNT = 160
"""Of these bodies: 40 MiB, of which memory holds the last 24 at most."""
SYNC_MS = "100"
READER = 60002
"""A uid that may not map the log."""


class ReplicaSet:
    """A cluster with one master of broker-a, and slaves of it, without anybody who promotes."""

    def __init__(
        self,
        stack: contextlib.ExitStack,
        folder: Path,
        cluster_name: str,
        *,
        slave_count: int = 1,
        group: int = -1,
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
        self.cluster = stack.enter_context(Cluster(folder, cluster_name, group=group, **settings))
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

    def await_equal(self, topic: str) -> None:
        """Return once the slaves have what the master has now, and this topic."""
        end = self.master.status()["committedPosition"]
        wait_for(
            lambda: all(slave.status()["committedPosition"] >= end for slave in self.slaves),
            "the slaves",
        )
        wait_for(lambda: all(has_topic(slave, topic) for slave in self.slaves), "the topic")

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


def has_topic(broker: BrokerProcess, topic: str) -> bool:
    client = broker.connect()
    try:
        command = Command(RequestCode.GET_TOPIC_CONFIG, {"topic": topic})
        return client.invoke(command, timeout_s=30.0).code == ResponseCode.SUCCESS
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
    replicas.await_equal(topic)


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


def test_command_line_shows_and_consumes_with_only_a_slave(replicas: ReplicaSet) -> None:
    with replicas.cluster.connect() as client:
        client.create_topic("shown", queues=1)
        sent = [client.producer().send("shown", f"m{i}".encode(), keys=["k"]) for i in range(5)]
        with client.consumer("shown", group="g") as consumer:
            assert len(consumer.receive(3, timeout=30.0)) == 3
            consumer.receive(1, timeout=0.0)
    replicas.await_equal("shown")
    wait_for(lambda: offset_at(replicas.slaves[0], "shown", "g"), "the offset")
    replicas.master.kill()
    replicas.await_no_master()
    shell = Shell(replicas.cluster.runtime)
    assert "shown" in shell.out("topic", "list")
    (queue,) = shell.json("topic", "show", "shown")["queues"]
    assert queue["maxOffset"] == 5
    assert "g" in shell.out("group", "list")
    rows = shell.json("group", "lag", "g")["queues"]
    (row,) = [row for row in rows if row["topic"] == "shown"]
    assert row["brokerOffset"] == 5
    assert "m4" in shell.out("msg", "get", sent[4].message_id)
    assert len(shell.json("msg", "find", "shown", "--key", "k")["messages"]) == 5
    left = shell.out("sub", "shown", "-g", "g", "--count", str(row["lag"]))
    assert left.split()[-1] == "m4"
    assert "knows no broker" in shell.fails("topic", "create", "new", code=1)
    reset = ("group", "reset", "g", "-t", "shown", "--to", "first", "--yes")
    assert "is a slave" in shell.fails(*reset, code=1)


def test_members_share_queues_at_the_slave_and_at_the_master_again(replicas: ReplicaSet) -> None:
    with contextlib.ExitStack() as stack:
        one, two = (stack.enter_context(replicas.cluster.connect()) for _ in range(2))
        one.create_topic("shared", queues=4)
        for number in range(40):
            one.producer().send("shared", str(number).encode())
        replicas.await_equal("shared")
        first = stack.enter_context(one.consumer("shared", group="g"))
        assert len(first.assigned) == 4
        seen = set(numbers(first, 5))
        replicas.master.kill()
        replicas.await_no_master()
        second = stack.enter_context(two.consumer("shared", group="g"))
        wait_for(lambda: len(second.assigned) == 2, "its share")
        wait_for(lambda: len(first.assigned) == 2, "the other's share")
        assert not set(first.assigned) & set(second.assigned)
        kept = first.assigned
        replicas.master.restart()
        wait_for(
            lambda: all(link.broker_id == 0 and link.is_up for link in links(first, second)),
            "the way back",
        )
        wait_for(lambda: len(first.assigned) == len(second.assigned) == 2, "the shares")
        assert first.assigned == kept, "nobody's queues change by the master's return"
        for number in range(40, 60):
            one.producer().send("shared", str(number).encode())
        while seen != set(range(60)):
            for consumer in (first, second):
                seen |= {int(bytes(one.body)) for one in consumer.receive(timeout=0.1)}


def links(*consumers: shmq.Consumer) -> set[BrokerLink]:
    return {queue.link for consumer in consumers for queue in consumer.assignment.queues}


def test_every_kind_of_consumer_begins_at_the_slave(replicas: ReplicaSet) -> None:
    with replicas.cluster.connect() as client:
        client.create_topic("kinds", queues=1)
        for number in range(5):
            client.producer().send("kinds", str(number).encode())
        queue = MessageQueue("kinds", "broker-a", 0)
        replicas.await_equal("kinds")
    replicas.master.kill()
    replicas.await_no_master()
    wanted = [str(number).encode() for number in range(5)]
    with replicas.cluster.connect() as client:
        got: list[bytes] = []
        done = threading.Event()

        def listen(message: shmq.Message) -> None:
            got.append(bytes(message.body))
            if len(got) == len(wanted):
                done.set()

        with client.push_consumer("push", listen, threads=1) as push:
            push.subscribe("kinds")
            assert done.wait(60.0)
        assert got == wanted
        with client.lite_pull_consumer("lite", auto_commit=False) as lite:
            lite.assign([queue])
            assert [bytes(one.body) for one in polled(lite, 5)] == wanted
            lite.commit()
            assert lite.committed(queue) == 5
        broadcasting = MessageModel.BROADCASTING
        with client.consumer("kinds", "cast", model=broadcasting) as consumer:
            assert numbers(consumer, 5) == list(range(5))
        with client.consumer("kinds", "columns") as consumer:
            batch = wait_for(lambda: consumer.receive_many(timeout=1.0), "the columns")
            assert [bytes(body) for body in batch.bodies()] == wanted
        with client.pull_consumer("kinds") as puller:
            found = puller.pull(queue, 0, 10)
            assert [bytes(one.body) for one in found.messages] == wanted
            assert puller.search_offset(queue, 0.0) == 0
    assert asyncio.run(read_by_loop(replicas, 5)) == wanted


def polled(lite: shmq.LitePullConsumer, count: int) -> list[shmq.Message]:
    found: list[shmq.Message] = []
    while len(found) < count:
        found += lite.poll(30.0)
    return found


async def read_by_loop(replicas: ReplicaSet, count: int) -> list[bytes]:
    async with (
        shmq.aio.connect(replicas.cluster.runtime) as client,
        await client.consumer("kinds", "loop") as consumer,
    ):
        found: list[bytes] = []
        while len(found) < count:
            found += [bytes(one.body) for one in await consumer.receive(timeout=30.0)]
        return found


def test_orderly_consumer_waits_for_a_master(replicas: ReplicaSet) -> None:
    with replicas.cluster.connect() as client:
        client.create_topic("order", queues=1)
        client.producer().send("order", b"0")
    replicas.await_equal("order")
    replicas.master.kill()
    replicas.await_no_master()
    with replicas.cluster.connect() as client:
        called = threading.Event()
        with client.push_consumer("g", lambda *_: called.set(), orderly=True) as push:
            push.subscribe("order")
            assert not called.wait(4.0), "only a master gives out locks"
            replicas.master.restart()
            assert called.wait(60.0)


def test_reader_that_may_not_map_gets_copies_from_the_slave(cluster_name: str) -> None:
    require_root()
    rules = f"""
    [[accounts]]
    user = {READER}
    topic_perms = ["copied=SUB"]
    group_perms = ["g=SUB"]
    """
    with (
        tempfile.TemporaryDirectory(prefix="shmq-slaves-") as name,
        contextlib.ExitStack() as stack,
    ):
        folder = Path(name)
        folder.chmod(0o755)
        acl = folder / "acl.toml"
        acl.write_text(rules)
        acl.chmod(0o644)
        replicas = ReplicaSet(stack, folder, cluster_name, group=READER, acl_file=str(acl))
        fill(replicas, "copied")
        reader = stack.enter_context(Person(replicas.cluster.runtime, READER, READER))
        assert copies(reader) == list(range(20))
        assert reader.do("mapped") is False
        assert cold_reads(replicas.slaves[0]) > 0
        replicas.master.kill()
        replicas.await_no_master()
        assert copies(reader) == list(range(20, 40))


def copies(reader: Person) -> list[int]:
    """The numbers of the next 20 messages."""
    return [int(row[2].rstrip("x")) for row in reader.do("receive", "copied", "g", 20)]
