"""A master and a slave of it as broker processes, and what their logs must be in the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

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
