"""A member that was master alone comes back: its log is cut where it parts from the new master's,
what only it had is appended again or counted, and the two logs end equal.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson
import pytest

import shmq
from shmq.errors import ConfigError
from shmq.store.cuts import CutList
from tests.support.broker_process import BrokerProcess
from tests.support.cluster import Cluster, wait_for
from tests.support.exporter import Exporter, value
from tests.support.scale import scaled
from tests.support.shell import Shell
from tests.support.slave import ParentedPair

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.cluster

TOTALS = ("cutResentTotal", "cutPresentTotal", "cutLostTotal")


@pytest.fixture
def pair(tmp_path: Path, cluster_name: str) -> Iterator[ParentedPair]:
    (tmp_path / "slave").mkdir()
    with Cluster(tmp_path, cluster_name, message_delay_level="1s 2s") as cluster:
        pair = ParentedPair(tmp_path, cluster)
        with pair.slave:
            pair.slave.wait_running()
            pair.await_in_sync()
            yield pair


def settled(pair: ParentedPair) -> dict[str, Any]:
    """What the old master says of its cut, once all of it is counted."""
    wait_for(lambda: pair.master.said().get("cutPendingBytes") == 0, "the end of the cut")
    return pair.master.status()


def test_what_a_returning_master_had_alone_is_appended_again(pair: ParentedPair) -> None:
    pair.begin()
    pair.part(("alone-1", "alone-2"), ("after",))
    pair.come_back()
    status = settled(pair)
    assert [status[name] for name in TOTALS] == [2, 0, 0]
    assert status["cutProblem"] is None
    assert pair.bodies() == ["after", "alone-1", "alone-2", "both"]
    (cut,) = CutList.load(pair.master.store_path).cuts
    assert cut.is_settled
    kept = pair.master.store_path / "shmq/quarantine" / cut.parts[0].file_name
    assert b"alone-1" in kept.read_bytes()
    # The answers to what was handed over are lost: it is handed over again, and found to be there.
    pair.master.stop()
    anew = replace(cut, next_position=cut.position, resent_count=0)
    CutList.load(pair.master.store_path).save(anew)
    pair.come_back()
    status = settled(pair)
    assert [status[name] for name in TOTALS] == [0, 2, 0]
    assert pair.bodies() == ["after", "alone-1", "alone-2", "both"]
    pair.check_equal()
    kept.unlink()
    pair.slave.restart()
    pair.master.restart()
    wait_for(lambda: "cutPresentTotal" in pair.master.said(), "the slave")
    assert pair.master.status()["cutPresentTotal"] == 0


def test_delayed_messages_that_were_alone_come_once_waiting_or_delivered(
    pair: ParentedPair,
) -> None:
    pair.begin()
    pair.slave.stop()
    pair.send("due", delay_level=1)
    wait_for(lambda: pair.bodies() == ["both", "due"], "the delivery, before the end")
    pair.send("waiting", delay_level=2)
    pair.part((), ("after",))
    pair.come_back()
    status = settled(pair)
    assert [status[name] for name in TOTALS] == [2, 1, 0]  # due is in the log twice
    wait_for(lambda: len(pair.bodies()) == 4, "the deliveries")
    assert pair.bodies() == ["after", "both", "due", "waiting"]
    pair.check_equal()


@pytest.mark.parametrize("is_enabled", [True, False])
def test_what_cannot_be_appended_again_is_counted_and_said(
    pair: ParentedPair, is_enabled: bool
) -> None:
    pair.begin()
    pair.slave.settings["message_index_enable"] = str(not is_enabled).lower()
    pair.master.settings["resend_cut_messages_enable"] = str(is_enabled).lower()
    pair.part(("alone-1", "alone-2"), ("after",))
    pair.come_back()
    status = settled(pair)
    assert [status[name] for name in TOTALS] == [0, 0, 2]
    reason = "keeps no index" if is_enabled else "resend_cut_messages_enable"
    assert reason in status["cutProblem"]
    assert pair.bodies() == ["after", "both"]
    assert "cut settled" in pair.master.log
    assert "lost=2" in pair.master.log
    with Exporter(pair.cluster.runtime) as exporter:

        def shows(name: str, wanted: int, **labels: str) -> bool:
            return value(exporter.look(), name, broker_id="0", **labels) == wanted

        wait_for(lambda: shows("shmq_cut_messages_total", 2, outcome="lost"), "the count")
        assert shows("shmq_problem", 1)
    pair.check_equal()


def test_members_that_are_ahead_old_and_empty_end_equal(pair: ParentedPair, tmp_path: Path) -> None:
    def member(number: int) -> BrokerProcess:
        folder = tmp_path / f"member-{number}"
        folder.mkdir()
        return BrokerProcess(
            folder,
            pair.master.cluster_name,
            name=pair.master.name,
            broker_id=number,
            runtime=pair.cluster.runtime,
            broker_role="SLAVE",
        )

    pair.begin()
    with member(2) as old:
        pair.await_in_sync(2)
        old.stop()
        pair.part(("alone",), ("after",))
        with member(3) as empty:
            old.restart()
            pair.master.restart()
            wait_for(lambda: pair.ha_status(pair.slave)["inSyncSlaveNums"] == 3, "all of them")
            assert settled(pair)["cutResentTotal"] == 1
            assert pair.bodies() == ["after", "alone", "both"]
            pair.check_equal(old, empty)


def test_members_that_part_again_and_again_and_are_killed_lose_and_double_nothing(
    pair: ParentedPair, rng: random.Random
) -> None:
    """Each comes back in turn with messages of its own, and is killed while it cuts its log, or
    hands them over.
    """
    pair.begin()
    sent = ["both"]
    for number in range(scaled(2, 100)):
        alone = tuple(f"alone-{number}-{i}" for i in range(rng.randrange(1, 150)))
        after = tuple(f"after-{number}-{i}" for i in range(rng.randrange(1, 20)))
        pair.part(alone, after)
        sent += [*alone, *after]
        for _ in range(3):
            pair.master.restart()
            time.sleep(rng.uniform(0, 0.6))
            pair.master.kill()
        pair.come_back()
        settled(pair)
        pair.master, pair.slave = pair.slave, pair.master
        pair.await_equal()
    assert pair.bodies() == sorted(sent)
    pair.slave, pair.master = pair.master, pair.slave
    pair.check_equal()


def test_master_by_its_id_waits_where_another_was_master_last_and_has_more(
    pair: ParentedPair,
) -> None:
    """Classic: nobody tells it. Once the other is master nothing is out of order, and none resent;
    and by hand it becomes master all the same.
    """
    pair.begin()
    with shmq.Admin(pair.cluster.runtime) as admin:
        name = pair.master.name
        assert admin.switch_master(name, 1).broker_id == 1
        pair.master.stop()
        pair.send("alone-1")
        pair.slave.stop()

        pair.master.restart()
        (waits,) = wait_for(lambda: admin.ha_members(name), "the member")
        assert not waits.is_master
        assert f"broker {name}:1 was master last, and its log in" in waits.problem
        assert f"start broker_id 1, then shmq ha switch {name} --to 1" in waits.problem
        assert "not master: become master with" in pair.master.log
        shell = Shell(pair.cluster.runtime)
        done = shell.run("check", "ha")
        assert done.returncode == 2
        assert done.stdout.startswith(
            f"SHMQ HA CRITICAL - {name} has no master; {name}:0: ".encode()
        )
        findings = orjson.loads(shell.run("doctor", "--json").stdout)["findings"]
        said = [one["seen"] for one in findings if one["check"] == "replica-sets"]
        assert said[0] == f"{name} has no master that answers; broker_id 0 stands by"
        assert "was master last" in said[1]
        (row,) = shell.json("cluster", "list")["brokers"]
        assert (row["brokerName"], row["brokerId"], row["phase"]) == (name, 0, "RUNNING")
        assert "was master last" in row["problem"]
        pair.slave.restart()
        wait_for(lambda: len(admin.ha_members(name)) == 2, "both members")
        with pytest.raises(ConfigError, match="that of broker_id 1 at"):
            admin.switch_master(name, 0)
        assert admin.switch_master(name).broker_id == 1
        wait_for(lambda: pair.ha_status(pair.slave)["inSyncSlaveNums"] == 1, "the slave")
        pair.send("after")
        assert pair.bodies() == ["after", "alone-1", "both"]
        assert [pair.master.status()[total] for total in TOTALS] == [0, 0, 0]

        pair.master.stop()
        pair.send("alone-2")
        pair.slave.stop()
        pair.master.restart()
        (waits,) = wait_for(lambda: admin.ha_members(name), "the member")
        assert waits.problem
        assert admin.switch_master(name, 0).broker_id == 0
        assert pair.bodies() == ["after", "alone-1", "both"]
        pair.master.stop()  # now it was master last itself
        pair.master.restart()
        wait_for(lambda: [one.is_master for one in admin.ha_members(name)] == [True], "a master")
