"""A master and a slave of it as broker processes, and what their logs must be in the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

import shmq
from shmq.remoting.codes import RequestCode
from shmq.remoting.command import Command
from tests.support.broker_process import BrokerProcess
from tests.support.cluster import Cluster, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


def log_of(store_path: Path) -> bytes:
    """The whole log of a store that begins at 0, with what was made ready ahead."""
    return b"".join(path.read_bytes() for path in sorted((store_path / "commitlog").iterdir()))


def check_equal_logs(end: int, *brokers: BrokerProcess) -> None:
    """Brokers that have ended have the same log, byte for byte, and nothing behind `end`."""
    first, *others = (log_of(broker.store_path) for broker in brokers)
    assert not any(first[end:])
    for other in others:
        assert other[:end] == first[:end]
        assert not any(other[end:])


class Pair:
    """A cluster with one master, and a slave of it."""

    def __init__(self, folder: Path, cluster: Cluster, **slave: str) -> None:
        self.cluster = cluster
        self.master = cluster.brokers[0]
        self.folder = folder
        self.slave = BrokerProcess(
            folder / "slave",
            self.master.cluster_name,
            name=self.master.name,
            broker_id=1,
            runtime=cluster.runtime,
            wait=False,
            broker_role="SLAVE",
            slave_sync_interval_ms="100",
            **slave,
        )

    def await_equal(self) -> None:
        """Return once the slave has what the master has now."""
        end = self.master.status()["committedPosition"]
        wait_for(lambda: self.slave.said().get("committedPosition", -1) >= end, "the slave")

    def ha_status(self, broker: BrokerProcess | None = None) -> dict[str, Any]:
        client = (broker or self.master).connect()
        try:
            command = Command(RequestCode.GET_BROKER_HA_STATUS)
            return dict(orjson.loads(client.call(command, timeout_s=30.0).body))
        finally:
            client.close()

    def await_in_sync(self, count: int = 1) -> None:
        wait_for(lambda: self.ha_status()["inSyncSlaveNums"] == count, "the SyncStateSet")


class ParentedPair(Pair):
    """A master and a slave, of which the master goes on alone, and then the slave without it."""

    def send(self, *bodies: str, **options: Any) -> None:
        with self.cluster.connect() as client:
            producer = client.producer()
            for body in bodies:
                producer.send("t", body.encode(), key=body, **options)

    def begin(self) -> None:
        with self.cluster.connect() as client:
            client.create_topic("t", queues=2)
        self.send("both")
        wait_for(lambda: '"t"' in self.config("topics.json"), "the topic at the slave")
        self.await_equal()

    def config(self, name: str) -> str:
        path = self.slave.store_path / "config" / name
        return path.read_text("utf-8") if path.exists() else ""

    def part(self, alone: tuple[str, ...], after: tuple[str, ...]) -> None:
        """The master stores `alone` and ends, memory and all; the slave, as master, `after`."""
        self.slave.stop()
        self.send(*alone)
        self.master.stop()
        self.slave.restart()
        with shmq.Admin(self.cluster.runtime) as admin:
            (member,) = wait_for(lambda: admin.ha_members(self.master.name), "the member")
            if not member.is_master:  # an id of 0 becomes it by itself
                admin.switch_master(self.master.name, self.slave.broker_id)
        with self.cluster.connect() as client:
            wait_for(lambda: client.routes.brokers(), "the new master")
        self.send(*after)

    def come_back(self) -> None:
        self.master.restart()
        wait_for(lambda: self.ha_status(self.slave)["inSyncSlaveNums"] == 1, "the old master")

    def bodies(self) -> list[str]:
        """All messages of the topic, by what the master has of it."""
        found = []
        with self.cluster.connect() as client, client.pull_consumer("t") as pull:
            for queue in pull.queues():
                at = 0
                while messages := pull.pull(queue, at).messages:
                    found += [bytes(message.body).decode() for message in messages]
                    at = messages[-1].queue_offset + 1
        return sorted(found)

    def check_equal(self, *others: BrokerProcess) -> None:
        """All logs are equal byte for byte, once all have ended."""
        end = self.slave.status()["committedPosition"]
        copies = (self.master, *others)
        for broker in copies:
            wait_for(lambda broker=broker: broker.said().get("committedPosition") == end, "a copy")
        for broker in (*copies, self.slave):
            broker.stop()
        check_equal_logs(end, self.slave, *copies)


def start(
    folder: Path, cluster_name: str, *, slave: Mapping[str, str] | None = None, **settings: str
) -> Iterator[Pair]:
    (folder / "slave").mkdir()
    with Cluster(folder, cluster_name, **settings) as cluster:
        pair = Pair(folder, cluster, **(slave or {}))
        with pair.slave:
            pair.slave.wait_running()
            pair.await_in_sync()
            yield pair
