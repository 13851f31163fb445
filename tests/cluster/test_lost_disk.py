"""The disk of a member is lost, its folder empty when it starts again: it takes nothing from those
that have the log, and what only its memory had is found.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from typing import TYPE_CHECKING

import pytest

import shmq
from shmq.shm.reaper import reap
from tests.support import supervised
from tests.support.cluster import Cluster, wait_for
from tests.support.slave import ParentedPair, log_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shmq.client.ha import HaMember

pytestmark = pytest.mark.cluster


@pytest.fixture
def pair(tmp_path: Path, cluster_name: str) -> Iterator[ParentedPair]:
    (tmp_path / "slave").mkdir()
    with Cluster(tmp_path, cluster_name) as cluster:
        pair = ParentedPair(tmp_path, cluster)
        with pair.slave:
            pair.slave.wait_running()
            pair.await_in_sync()
            pair.begin()
            yield pair
        pair.master.kill()
    reap(sorted(cluster.runtime.glob("broker-*.d")), [], dry_run=False)


def lose_disk(pair: ParentedPair) -> None:
    pair.master.kill()
    shutil.rmtree(pair.master.store_path)


def reboot(pair: ParentedPair) -> None:
    """Both stop; what a boot takes with it goes."""
    pair.slave.stop()
    pair.master.stop()
    for path in pair.cluster.runtime.glob("broker-*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def member(admin: shmq.Admin, broker_id: int) -> HaMember:
    def find() -> HaMember | None:
        found = admin.ha_members("broker-a")
        return next((one for one in found if one.broker_id == broker_id), None)

    found: HaMember = wait_for(find, "the member")
    return found


def test_master_by_its_id_whose_disk_is_lost_waits_and_its_memory_is_found(
    pair: ParentedPair,
) -> None:
    """Classic. The other one has the log, and the memory its end."""
    with shmq.Admin(pair.cluster.runtime) as admin:
        pair.slave.kill()
        pair.send("alone")
        lose_disk(pair)
        pair.master.restart()
        waits = member(admin, 0)
        assert not waits.is_master
        assert (
            "this broker was master last, in epoch 1, and the log there ends at 0" in waits.problem
        )
        assert "shmq ha switch broker-a --to 1" in waits.problem
        with pytest.raises(shmq.ShmqError, match="what that one left is still in memory"):
            admin.switch_master("broker-a", 0)
        pair.slave.restart()
        assert admin.switch_master("broker-a", 1).broker_id == 1
        assert pair.bodies() == ["alone", "both"]
        wait_for(lambda: pair.ha_status(pair.slave)["inSyncSlaveNums"] == 1, "the new disk")
        pair.send("after")
        assert pair.bodies() == ["after", "alone", "both"]
        pair.check_equal()


def test_slave_with_a_log_is_not_cut_for_a_master_that_begins_anew_until_a_person_says_so(
    pair: ParentedPair,
) -> None:
    """Nothing tells the master after a reboot, where it is up first, and its disk is not."""
    reboot(pair)
    before = log_of(pair.slave.store_path)
    topics = pair.config("topics.json")
    shutil.rmtree(pair.master.store_path)
    pair.master.restart()
    with pair.cluster.connect() as client:
        client.create_topic("t", queues=2)
    pair.send("after")
    pair.slave.restart()
    refused = "has nothing of the master's, which begins in master epoch 1, this one in 1"
    wait_for(lambda: refused in (pair.slave.said().get("replicaProblem") or ""), "the refusal")
    assert pair.ha_status(pair.slave)["state"] == "DIVERGED"
    assert log_of(pair.slave.store_path)[: len(before)].rstrip(b"\0") == before.rstrip(b"\0")
    assert pair.config("topics.json") == topics
    with shmq.Admin(pair.cluster.runtime) as admin:
        assert admin.switch_master("broker-a", 1, is_unclean=True).broker_id == 1
    # The two began in the same epoch: of the other log too a person has to say that it goes.
    wait_for(lambda: "has nothing of" in (pair.master.said().get("replicaProblem") or ""), "it too")
    pair.master.stop()
    (pair.master.store_path / "shmq" / "epochs.json").unlink()
    pair.come_back()
    wait_for(lambda: pair.master.said().get("cutPendingBytes") == 0, "the end of the cut")
    assert pair.master.status()["cutResentTotal"] == 1
    assert pair.bodies() == ["after", "both"]
    pair.check_equal()


def test_master_by_its_id_waits_where_a_member_answers_that_has_more(pair: ParentedPair) -> None:
    reboot(pair)
    shutil.rmtree(pair.master.store_path)
    pair.slave.restart()
    pair.master.restart()
    with shmq.Admin(pair.cluster.runtime) as admin:
        waits = member(admin, 0)
        assert not waits.is_master
        assert "broker broker-a:1 answers, and its log goes on: it ends at" in waits.problem
        assert admin.switch_master("broker-a", 1).broker_id == 1
    pair.send("after")
    assert pair.bodies() == ["after", "both"]
    wait_for(lambda: pair.ha_status(pair.slave)["inSyncSlaveNums"] == 1, "the new disk")
    pair.check_equal()


def test_set_whose_stores_are_all_new_begins_anew(pair: ParentedPair) -> None:
    reboot(pair)
    shutil.rmtree(pair.master.store_path)
    shutil.rmtree(pair.slave.store_path)
    pair.slave.restart()
    pair.master.restart()
    pair.await_in_sync()


def test_memory_of_a_master_whose_disk_is_lost_is_found_once_it_runs_again(
    tmp_path: Path, cluster_name: str
) -> None:
    """Supervised: the one that lost its disk is there first, and the other one killed too."""
    pair = supervised.Pair(tmp_path, cluster_name)
    try:
        with shmq.connect(pair.runtime) as client:
            assert pair.master(client) == "broker-broker-a-0"
            client.create_topic("t", queues=1)
            pair.await_both()
            producer = client.producer()
            producer.send("t", b"both")
            pair.await_in_sync()
            slave_pid = pair.pid_of("broker-broker-a-1")
            os.kill(slave_pid, signal.SIGSTOP)
            producer.send("t", b"alone-1", timeout=30.0)
            producer.send("t", b"alone-2", timeout=30.0)
            pid = pair.pid_of("broker-broker-a-0")
            (tmp_path / "a0").rename(tmp_path / "lost")
            os.kill(pid, signal.SIGKILL)
            wait_for((tmp_path / "a0" / "shmq" / "broker_identity.json").exists, "the new store")
            with contextlib.suppress(ProcessLookupError):  # as one that hangs
                os.kill(slave_pid, signal.SIGKILL)
            producer.send("t", b"after", timeout=60.0)
            assert pair.master(client) == "broker-broker-a-1"
            with client.pull_consumer("t") as pull:
                (queue,) = pull.queues()
                bodies = [bytes(message.body) for message in pull.pull(queue, 0).messages]
            assert bodies == [b"both", b"alone-1", b"alone-2", b"after"]
    finally:
        pair.close()
        reap(sorted(pair.runtime.glob("broker-*.d")), [], dry_run=False)
