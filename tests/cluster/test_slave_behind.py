"""A slave was away so long that its master does not keep the file any more at which it stopped."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

import shmq
from shmq.broker.identity import BrokerIdentity
from shmq.config import BrokerConfig
from shmq.remoting.codes import RequestCode
from shmq.remoting.command import Command
from shmq.store.consume_queue_files import QueueKey
from shmq.store.cuts import CutList
from shmq.store.epochs import Epoch, EpochFile
from shmq.store.recovery import recover_files
from tests.support.broker_process import BrokerProcess
from tests.support.cluster import Cluster, wait_for
from tests.support.old_store import ALWAYS, FILE_SIZE, SETTINGS, old_store

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.cluster

NAME = "broker-a"


def begins(store_path: Path) -> int:
    """The first file of a log, counted in files."""
    return min(int(path.name) // FILE_SIZE for path in (store_path / "commitlog").iterdir())


def queue_end(broker: BrokerProcess, topic: str) -> int:
    """maxOffset of queue 0 of a topic."""
    client = broker.connect()
    try:
        command = Command(RequestCode.GET_MAX_OFFSET, {"topic": topic, "queueId": 0})
        return client.call(command, timeout_s=30.0).fields().number("offset")
    finally:
        client.close()


@pytest.mark.parametrize("is_proven", [True, False])
def test_slave_begins_anew_at_the_first_file_that_the_master_keeps(
    tmp_path: Path, cluster_name: str, is_proven: bool
) -> None:
    """Its old log goes where the epochs prove that it was the master's; else it is kept aside."""
    master_path, slave_path = tmp_path / f"store-{NAME}", tmp_path / f"slave/store-{NAME}"
    first_kept = old_store(master_path, also={"gone": 7})
    # It was this replica set's from its first start on: else nothing of it may go (identity.py).
    BrokerIdentity.of(
        BrokerConfig(
            store_path=slave_path, cluster_name=cluster_name, broker_name=NAME, broker_id=1
        )
    )
    (slave_path / "commitlog").mkdir(parents=True)
    for number in range(3):
        name = f"{number * FILE_SIZE:020d}"
        shutil.copy(master_path / "commitlog" / name, slave_path / "commitlog" / name)
    for path in (master_path, slave_path) if is_proven else ():
        (path / "shmq").mkdir(exist_ok=True)
        EpochFile.load(path).replace([Epoch(1, 0)])
    settings = {**SETTINGS, "delete_when": ALWAYS, "delete_commit_log_files_interval_ms": "0"}
    with Cluster(tmp_path, cluster_name, **settings) as cluster:
        with shmq.Admin(cluster.runtime) as admin:
            admin.delete_expired_commit_log(NAME)
        wait_for(lambda: begins(master_path) == first_kept, "the end of the old files")
        slave = BrokerProcess(
            tmp_path / "slave",
            cluster_name,
            broker_id=1,
            runtime=cluster.runtime,
            broker_role="SLAVE",
            **{**settings, "delete_when": "04"},
        )
        with slave:
            end = cluster.brokers[0].status()["committedPosition"]
            wait_for(lambda: slave.said().get("committedPosition") == end, "the slave")
            wait_for(lambda: slave.said().get("cutPendingBytes") == 0, "the count")
            assert begins(slave_path) == first_kept
            status = slave.status()
            kept = sorted((slave_path / "shmq/quarantine").iterdir())
            if is_proven:
                assert not kept
                assert CutList.load(slave_path).cuts == ()
                assert status["cutLostTotal"] == 0
            else:
                assert len(kept) == 3
                assert status["cutLostTotal"] > 90
                assert "nobody knows what it had" in status["cutProblem"]
            # Nothing of "gone" is kept: a slave that is promoted must not give its offsets again.
            wait_for(lambda: queue_end(slave, "gone") == 7, "the end of an expired queue")
        # Its files alone say so too.
        recovered = recover_files(slave_path, FILE_SIZE)
        recovered.consume_queues.close()
        assert recovered.queue_ends[QueueKey("gone", 0)] == 7
        cluster.brokers[0].stop()
        for path in (slave_path / "commitlog").iterdir():
            twin = master_path / "commitlog" / path.name
            assert int(path.name) > end or path.read_bytes() == twin.read_bytes()
