"""A slave that was started over a wrong folder, or for another cluster: its log stays whole."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.support.broker_process import BrokerProcess
from tests.support.cluster import Cluster, wait_for
from tests.support.slave import log_of

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
            wanted = f"of cluster {other} asks broker-a:0 of cluster {cluster_name};"
            wait_for(lambda: wanted in problem_of(slave), "the refusal")
    assert log_of(store) == before
    assert not (store / "shmq" / "cuts.json").exists()


def test_log_that_has_nothing_of_the_masters_is_not_cut_for_it(
    tmp_path: Path, cluster_name: str
) -> None:
    """Who starts it says the right cluster; the store was another's of the same name."""
    store = ended_store(tmp_path / "other", f"{cluster_name}b")
    before = log_of(store)
    (tmp_path / "own").mkdir()
    with Cluster(tmp_path / "own", cluster_name) as cluster:
        send(cluster, "ours")
        with slave_of(cluster, tmp_path / "other", cluster_name) as slave:
            wait_for(lambda: "nothing of the master's" in problem_of(slave), "the refusal")
            slave.stop()
            slave.restart()  # it is asked again, and not taken for this cluster's by now
            wait_for(lambda: "nothing of the master's" in problem_of(slave), "the refusal")
    assert log_of(store) == before
    assert not (store / "shmq" / "cuts.json").exists()


def test_store_of_another_broker_is_refused_by_name(tmp_path: Path, cluster_name: str) -> None:
    folder = tmp_path / "other"
    store = ended_store(folder, cluster_name)
    with BrokerProcess(folder, cluster_name, name="broker-b", wait=False) as broker:
        broker.kill()
        shutil.rmtree(broker.store_path, ignore_errors=True)
        store.rename(broker.store_path)
        identity = broker.store_path / "shmq" / "broker_identity.json"
        assert broker._start().wait() == 2
        assert f"{identity}: this store is broker-a:0 of cluster {cluster_name}" in broker.log
        identity.unlink()  # renamed on purpose
        broker.restart()


def problem_of(slave: BrokerProcess) -> str:
    return slave.said().get("replicaProblem") or ""
