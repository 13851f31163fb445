"""A slave that was started over a wrong folder, or for another cluster: its log stays whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cluster.test_slave import log_of
from tests.support.broker_process import BrokerProcess
from tests.support.cluster import Cluster, wait_for

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.cluster


def send(cluster: Cluster, *bodies: str) -> None:
    with cluster.connect() as client:
        client.create_topic("t", queues=1)
        producer = client.producer()
        for body in bodies:
            producer.send("t", body.encode())


def ended_store(folder: Path, cluster_name: str) -> Path:
    """The store of a broker-a of a cluster of its own, that has ended; with messages."""
    folder.mkdir()
    with Cluster(folder, cluster_name) as cluster:
        send(cluster, "theirs-1", "theirs-2")
        return cluster.brokers[0].store_path


def slave_of(cluster: Cluster, folder: Path, cluster_name: str) -> BrokerProcess:
    """A slave of a cluster's broker over the store of `folder`, which says it is of another."""
    return BrokerProcess(
        folder,
        cluster_name,
        name=cluster.brokers[0].name,
        broker_id=1,
        runtime=cluster.runtime,
        wait=False,
        broker_role="SLAVE",
    )


def test_slave_of_another_cluster_is_refused_and_keeps_its_log(
    tmp_path: Path, cluster_name: str
) -> None:
    other = f"{cluster_name}b"
    store = ended_store(tmp_path / "other", other)
    before = log_of(store)
    (tmp_path / "own").mkdir()
    with Cluster(tmp_path / "own", cluster_name) as cluster:
        send(cluster, "ours")
        with slave_of(cluster, tmp_path / "other", other) as slave:
            problem = wait_for(lambda: slave.said().get("replicaProblem"), "the refusal")
            while "of cluster" not in problem:  # it may have looked before the master answered
                problem = wait_for(lambda: slave.said().get("replicaProblem"), "the refusal")
            assert f"a slave of broker-a of cluster {other} asks broker-a:0" in problem
            assert f"of cluster {cluster_name};" in problem
    assert log_of(store) == before
    assert not (store / "shmq" / "cuts.json").exists()
