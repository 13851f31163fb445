"""Replica sets that a Controller leads, as processes: who is master when something dies.

The same machine is simulated from seeds in tests/simulation; here the kernel, the disk and the
sockets are real.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

import shmq
from shmq.errors import ConfigError, ServiceNotAvailableError, ShmqError
from shmq.status import Elected, SendStatus
from tests.cluster.controller_process import NAME, LedSet
from tests.cluster.namesrv_process import NamesrvProcess
from tests.cluster.sender import Sender
from tests.support.broker_process import BrokerProcess
from tests.support.cluster import WAIT_S, Cluster, wait_for
from tests.support.repository import ROOT
from tests.support.scale import scaled
from tests.support.shell import Shell

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(scaled(180, 3600))]


def _read_all(led: LedSet, count: int) -> list[bytes]:
    """What a client reads that begins now."""
    with led.connect() as client:
        pull = client.pull_consumer("t")
        (queue,) = pull.queues()
        found: list[bytes] = []
        while len(found) < count:
            found += [bytes(message.body) for message in pull.pull(queue, len(found)).messages]
        return found


def _expected(count: int) -> list[bytes]:
    return [b"%d" % at for at in range(count)]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
def test_next_member_goes_on_with_the_memory_of_a_master(
    tmp_path: Path, cluster_name: str, number: signal.Signals
) -> None:
    with LedSet(tmp_path, cluster_name, members=3, brokerRole="SYNC_MASTER") as led:
        led.await_in_sync(0, 1, 2)
        with led.connect() as client:
            client.create_topic("t", queues=1)
            sender = Sender(client)
            sender.start()
            sender.go_on()
            for _ in range(scaled(2, 40) if number is signal.SIGKILL else 1):
                master = led.await_master(0, 1, 2)
                epoch = led.epoch()
                os.kill(led.members[master].pid, number)
                # A hung one is killed by the Controller.
                led.members[master].process.wait(WAIT_S)
                sender.go_on()
                others = {0, 1, 2} - {master}
                assert led.await_master(*others) != master
                assert led.epoch() == epoch + 1
                assert led.data().info.elected is Elected.MEMORY
                led.start_member(master)
                led.await_in_sync(0, 1, 2)
            sender.stop()
            assert _read_all(led, sender.count) == _expected(sender.count)


def test_standby_of_the_controller_goes_on(tmp_path: Path, cluster_name: str) -> None:
    with LedSet(tmp_path, cluster_name, controllers=2, brokerRole="SYNC_MASTER") as led:
        first, second = led.controllers
        assert " is_active=True" in first.log
        assert " is_active=False" in second.log
        led.await_in_sync(0, 1)
        before = led.data()
        first.kill()
        second.wait_for(" active name=c1")
        wait_for(lambda: all(each.is_alive for each in led.data().members), "their heartbeats")
        assert led.data().info == before.info
        led.members[0].kill()
        assert led.await_master(1) == 1
        assert led.data().info.master_epoch == before.info.master_epoch + 1


def test_data_goes_on_without_a_controller_and_elections_once_it_is_back(
    tmp_path: Path, cluster_name: str
) -> None:
    with LedSet(tmp_path, cluster_name, brokerRole="SYNC_MASTER") as led:
        led.await_in_sync(0, 1)
        with led.connect() as client:
            client.create_topic("t", queues=1)
            sender = Sender(client)
            sender.start()
            sender.go_on()
            led.controllers[0].kill()
            sender.go_on(1000)
            assert {each.broker_id for each in led.statuses() if each.is_master} == {0}
            led.members[0].kill()
            sent = sender.count
            wait_for(lambda: "ALONE" in led.members[1].log, "the slave knows")
            assert not any(each.is_master for each in led.statuses())
            led.start_controller()
            led.await_master(1)
            sender.go_on()
            assert sender.count > sent
            sender.stop()
            assert _read_all(led, sender.count) == _expected(sender.count)


def test_damaged_journal_is_refused_by_name(tmp_path: Path, cluster_name: str) -> None:
    with LedSet(tmp_path, cluster_name) as led:
        led.controllers[0].end()
        path = led.journal / "controller.journal"
        whole = path.read_bytes()
        assert len(whole.splitlines()) > 2, whole
        path.write_bytes(whole[:20] + b"?" + whole[21:])
        second = led.start_controller("c1")
        assert second.process.wait() == 1
        assert f"read {path}, line 1: its checksum does not hold" in second.log
        assert "restore the file, from a copy or from its version before" in second.log
        path.write_bytes(whole)
        led.start_controller("c2").wait_for(" ready name=")


def test_without_memory_only_who_is_in_sync_is_elected(tmp_path: Path, cluster_name: str) -> None:
    """0 dies and its memory is wiped; 2 was not in sync, for it was stopped; 1 has everything, and
    is not there at first. Without a grace time: whoever may be elected is, once it is asked for.
    """
    with LedSet(
        tmp_path,
        cluster_name,
        members=3,
        controller={"election_grace_ms": "0"},
        brokerRole="SYNC_MASTER",
        haMaxTimeSlaveNotCatchup="300",
    ) as led:
        led.await_in_sync(0, 1, 2)
        with led.connect() as client:
            client.create_topic("t", queues=1)
            sender = Sender(client)
            sender.start()
            sender.go_on()
            os.kill(led.members[2].pid, signal.SIGSTOP)
            led.await_in_sync(0, 1)
            sender.go_on()
            sender.stop()
            led.members[2].kill()
            os.kill(led.members[1].pid, signal.SIGSTOP)
            wait_for(lambda: not _lives(led, 1), "the silence of 1")
            led.members[0].kill()
            led.wipe_memory()
            led.start_member(2)
            wait_for(lambda: _lives(led, 2) and not _lives(led, 0), "the heartbeats of 2 alone")
            with (
                shmq.Admin(led.runtime) as admin,
                pytest.raises(ShmqError, match="broker-a: no member that lives may be elected now"),
            ):
                admin.elect_master(NAME)
            assert led.data().info.master_broker_id == 0, "nobody was elected"
            os.kill(led.members[1].pid, signal.SIGCONT)
            assert led.await_master(1, 2) == 1
            assert led.data().info.elected is Elected.IN_SYNC
            assert _read_all(led, sender.count) == _expected(sender.count)


def _lives(led: LedSet, broker_id: int) -> bool:
    return any(each.is_alive for each in led.data().members if each.broker_id == broker_id)


def test_slave_is_waited_for_until_the_controller_has_it_that_it_left(
    tmp_path: Path, cluster_name: str
) -> None:
    """As long as it may be elected, nothing counts as confirmed that it has not."""
    with LedSet(tmp_path, cluster_name, brokerRole="SYNC_MASTER", slaveTimeout="300") as led:
        led.await_in_sync(0, 1)
        with led.connect() as client:
            client.create_topic("t", queues=1)
            producer = client.producer()
            assert producer.send("t", b"to both").send_status is SendStatus.SEND_OK
            controller = led.controllers[0].process.pid
            os.kill(controller, signal.SIGSTOP)
            led.members[1].kill()
            wait_for(lambda: "slave left broker_id=1" in led.members[0].log, "its end")
            waited = producer.send("t", b"to one").send_status
            assert waited is SendStatus.FLUSH_SLAVE_TIMEOUT
            os.kill(controller, signal.SIGCONT)
            led.await_in_sync(0)
            alone = wait_for(
                lambda: (
                    (sent := producer.send("t", b"to one").send_status)
                    is not SendStatus.FLUSH_SLAVE_TIMEOUT
                    and sent
                ),
                "the release",
            )
            assert alone is SendStatus.SLAVE_NOT_AVAILABLE


@pytest.mark.parametrize("is_led", [True, False], ids=["stranger", "led"])
def test_slave_that_has_another_arbiter_than_its_master_is_refused_and_told_the_setting(
    tmp_path: Path, cluster_name: str, is_led: bool
) -> None:
    """A slave that no Controller elects at a master that one does, and the other way round."""
    with contextlib.ExitStack() as stack:
        if is_led:
            led = stack.enter_context(LedSet(tmp_path, cluster_name, brokerRole="SYNC_MASTER"))
            runtime = led.runtime
            led.await_in_sync(0, 1)
        else:
            runtime = stack.enter_context(Cluster(tmp_path, cluster_name)).runtime
        (tmp_path / "stranger").mkdir()
        stranger = stack.enter_context(
            BrokerProcess(
                tmp_path / "stranger",
                cluster_name,
                name=NAME,
                broker_id=2,
                runtime=runtime,
                wait=False,
                brokerRole="SLAVE",
                enableControllerMode=str(not is_led).lower(),
            )
        )

        def refusal() -> str:
            said = str(stranger.said().get("replicaProblem"))
            return said if "enableControllerMode" in said else ""

        problem = wait_for(refusal, "the refusal")
        assert f"a slave with enableControllerMode={str(not is_led).lower()} asks" in problem
        assert f"which has {str(is_led).lower()}: who elects one member elects all" in problem
        done = Shell(runtime).run("check", "ha")
        assert done.returncode == 1
        assert b"broker-a:2: " in done.stdout
        assert b"who elects one member elects all" in done.stdout
        if is_led:
            with led.connect() as client:
                client.create_topic("t", queues=1)
                assert client.producer().send("t", b"x").send_status is SendStatus.SEND_OK
            assert led.data().info.sync_state_set == {0, 1}
            assert "are no members" not in led.members[0].log


def test_learner_copies_and_is_never_elected_nor_in_sync(tmp_path: Path, cluster_name: str) -> None:
    with (
        LedSet(tmp_path, cluster_name, members=2, learners=[1]) as led,
        led.connect() as client,
        shmq.Admin(led.runtime) as admin,
    ):
        client.create_topic("t", queues=1)
        producer = client.producer()
        for at in range(100):
            producer.send("t", b"%d" % at)
        wait_for(lambda: [each.lag_bytes for each in led.statuses()] == [0, 0], "its copy")
        assert "slave attached broker_id=1" in led.members[0].log
        assert "slave broker_id=1 standing=IN_SYNC" not in led.members[0].log
        with pytest.raises(ShmqError, match="1 is not there, a learner, or not in sync"):
            admin.elect_master(NAME, 1)
        led.members[0].kill()
        wait_for(lambda: not led.data().members[0].is_alive, "the death of 0")
        assert led.data().info.master_broker_id == 0
        assert not any(each.is_master for each in led.statuses())
        led.start_member(0)
        led.await_master(0)
        assert led.data().info.sync_state_set == {0}
        assert _read_all(led, 100) == _expected(100)


@pytest.mark.parametrize("is_allowed", [False, True], ids=["refused", "allowed"])
def test_unclean_election_is_refused_unless_it_is_allowed(
    tmp_path: Path, cluster_name: str, is_allowed: bool
) -> None:
    """Without a grace time: whoever may be elected is, as soon as it is there."""
    settings = {"election_grace_ms": "0", "enableElectUncleanMaster": str(is_allowed).lower()}
    with LedSet(tmp_path, cluster_name, controller=settings, haMaxTimeSlaveNotCatchup="300") as led:
        led.await_in_sync(0, 1)
        os.kill(led.members[1].pid, signal.SIGSTOP)
        with led.connect() as client:
            client.create_topic("t", queues=1)
            client.producer().send("t", b"what 1 has not")
            led.await_in_sync(0)
            controller = led.controllers[0].process.pid
            os.kill(controller, signal.SIGSTOP)  # it sees neither the memory nor 0 without it
            led.members[0].kill()
            led.wipe_memory()
            os.kill(controller, signal.SIGCONT)
        os.kill(led.members[1].pid, signal.SIGCONT)
        if is_allowed:
            assert led.await_master(1) == 1
            assert led.data().info.elected is Elected.UNCLEAN
            return
        wait_for(lambda: _lives(led, 1) and not _lives(led, 0), "the heartbeats of 1 alone")
        with (
            shmq.Admin(led.runtime) as admin,
            pytest.raises(ShmqError, match="1 is not there, a learner, or not in sync"),
        ):
            admin.elect_master(NAME, 1)
        assert led.data().info.master_epoch == 1, "nobody was elected"
        led.start_member(0)
        assert led.await_master(0, 1) == 0


def test_election_by_hand_fails_no_send(tmp_path: Path, cluster_name: str) -> None:
    with LedSet(tmp_path, cluster_name, members=2) as led:
        led.await_in_sync(0, 1)
        with led.connect() as client, shmq.Admin(led.runtime) as admin:
            client.create_topic("t", queues=1)
            sender = Sender(client)
            sender.start()
            sender.go_on()
            for to_id in (1, 0):
                wait_for(lambda: len(led.statuses()) == 2, "both")
                assert admin.elect_master(NAME, to_id).broker_id == to_id
                sender.go_on()
                led.await_in_sync(0, 1)
            assert admin.switch_master(NAME).broker_id == 1, "the Controller is asked there too"
            sender.go_on()
            sender.stop()
            assert _read_all(led, sender.count) == _expected(sender.count)
            with pytest.raises(ShmqError, match="broker-a: 1 is master"):
                admin.elect_master(NAME, 1)
            assert [epoch for epoch, _ in admin.epochs(NAME, 1)] == [1, 2, 3, 4]


def _shell(led: LedSet, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "shmq.tools.cli", *arguments, "-n", str(led.runtime)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_verbs_show_who_is_in_sync_elect_and_clean(tmp_path: Path, cluster_name: str) -> None:
    with LedSet(tmp_path, cluster_name, members=3, learners=[2]) as led:
        led.await_in_sync(0, 1)
        wait_for(lambda: len(led.statuses()) == 3, "all three")
        said = _shell(led, "ha", "sync-state", NAME, "--json")
        (state,) = orjson.loads(said.stdout)["replicaSets"]
        assert (state["masterBrokerId"], state["masterEpoch"], state["isBegun"]) == (0, 1, True)
        assert state["syncStateSet"] == [0, 1]
        shown = [(row["brokerId"], row["alive"], row["inSync"]) for row in state["members"]]
        assert shown == [(0, True, True), (1, True, True), (2, True, False)]
        assert "learner" in _shell(led, "ha", "sync-state").stdout
        said = _shell(led, "ha", "elect", NAME, "--to", "1", "--json")
        assert orjson.loads(said.stdout)["brokerId"] == 1, said.stderr
        led.await_in_sync(0, 1)
        members = orjson.loads(_shell(led, "ha", "status", "--json").stdout)["members"]
        assert [each["isInSync"] for each in members] == [True, None, False]
        learner = members[2]
        assert (learner["lagBytes"], learner["catchUpS"]) == (0, 0.0)
        assert "caught up" in _shell(led, "ha", "status").stdout
        refused = _shell(led, "ha", "elect", NAME, "--to", "2")
        assert refused.returncode == 1
        assert "2 is not there, a learner, or not in sync" in refused.stderr
        refused = _shell(led, "ha", "elect", NAME, "--to", "1")
        assert (refused.returncode, "1 is master" in refused.stderr) == (1, True)
        assert "shmq ha sync-state says who is master" in refused.stderr
        assert "see the log" not in refused.stderr
        led.members[0].stop()
        wait_for(lambda: len(led.statuses()) == 2, "the end of 0")
        refused = _shell(led, "ha", "switch", NAME)
        assert refused.returncode == 1
        assert "members that wait: 2 (a learner); see shmq ha status" in refused.stderr
        led.start_member(0)
        led.await_in_sync(0, 1)
        refused = _shell(led, "ha", "clean", NAME, "--id", "2", "--yes")
        assert "[2] live; stop them first" in refused.stderr
        led.members[2].stop()
        wait_for(lambda: not _lives(led, 2), "the end of 2")
        said = _shell(led, "ha", "clean", NAME, "--id", "2", "--yes")
        assert said.returncode == 0, said.stderr
        assert [each.broker_id for each in led.data().members] == [0, 1]
        nobody = _shell(led, "ha", "sync-state", "broker-z")
        assert "broker-z: the Controller knows no such replica set" in nobody.stderr


def test_member_is_told_who_has_its_name_in_another_cluster_and_what_to_do(
    tmp_path: Path, cluster_name: str
) -> None:
    """A stranger registers first at an empty Controller; forgotten, it is in nobody's way."""
    with LedSet(tmp_path, cluster_name, members=0) as led:
        led.cluster_name = f"{cluster_name}x"
        stranger = led.start_member(0)
        led.await_master(0)
        led.cluster_name = cluster_name
        rightful = led.start_member(1)
        problem = wait_for(lambda: rightful.said().get("controllerProblem"), "the refusal")
        assert f"{NAME} of cluster {cluster_name}: the broker_ids 0 of {NAME}" in problem
        assert f"as of cluster {cluster_name}x" in problem
        stranger.stop()
        wait_for(lambda: not _lives(led, 0), "the end of 0")
        said = _shell(led, "ha", "clean", NAME, "--yes")
        assert said.returncode == 0, said.stderr
        assert led.await_master(1) == 1
        assert led.data().info.cluster_name == cluster_name


def test_store_of_another_member_is_refused(tmp_path: Path, cluster_name: str) -> None:
    with LedSet(tmp_path, cluster_name) as led:
        led.await_in_sync(0, 1)
        led.members[1].stop()
        path = led.members[1].store_path / "shmq" / "broker_identity.json"
        path.write_bytes((led.members[0].store_path / "shmq" / "broker_identity.json").read_bytes())
        process = led.members[1]._start()
        assert process.wait() == 2
        assert "this store is broker-a:0" in led.members[1].log
        path.unlink()  # the Controller alone knows the code now, and it is another one
        led.start_member(1)
        problem = wait_for(lambda: led.members[1].said().get("controllerProblem"), "the refusal")
        assert "broker_id 1 is not free" in problem
        assert f"shmq ha clean {NAME} --id 1" in problem
        assert len(led.data().members) == 2
        said = _shell(led, "ha", "clean", NAME, "--id", "1", "--yes")
        assert said.returncode == 0, said.stderr
        led.await_in_sync(0, 1)


CLUSTER = """
[namesrv]
enableControllerInNamesrv = true
[controller]
controllerStorePath = "{folder}/controller"
election_grace_ms = 500
[cluster]
crash_count_max = 100
[broker.a0]
{member}
broker_id = 0
store_path = "{folder}/a0"
[broker.a1]
{member}
broker_id = 1
store_path = "{folder}/a1"
"""


def test_controller_in_the_namesrv_leads_the_members_of_its_cluster_file(
    tmp_path: Path, cluster_name: str
) -> None:
    member = (
        f'cluster_name = "{cluster_name}"\nbroker_name = "{NAME}"\nenableControllerMode = true\n'
        'commit_log_file_size_bytes = "8MiB"\nbrokerHeartbeatInterval = 100'
    )
    file = tmp_path / "cluster.toml"
    file.write_text(CLUSTER.format(folder=tmp_path, member=member))
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o750)
    try:
        with NamesrvProcess(runtime, "--cluster", str(file)) as namesrv:
            with shmq.Admin(runtime) as admin, shmq.connect(runtime) as client:

                def master() -> int | None:
                    masters = [each for each in admin.ha_members(NAME) if each.is_master]
                    return masters[0].pid if masters else None

                first = wait_for(master, "a master")
                wait_for(
                    lambda: len(admin.sync_states(NAME)[0].info.sync_state_set) == 2, "two in sync"
                )
                client.create_topic("t", queues=1)
                sender = Sender(client)
                sender.start()
                sender.go_on()
                os.kill(first, signal.SIGKILL)
                sender.go_on()
                assert wait_for(master, "another master") != first
                wait_for(lambda: len(admin.ha_members(NAME)) == 2, "the one that was started again")
                sender.stop()
                assert admin.sync_states(NAME)[0].info.master_epoch >= 2
            assert namesrv.end() == 0
            assert "elected broker=" not in "".join(namesrv.lines), "the supervisor elected"
    finally:
        for path in Path("/dev/shm").glob(f"shmq.{cluster_name}.*"):
            path.unlink()


def test_without_a_controller_verbs_say_so(tmp_path: Path, cluster_name: str) -> None:
    with LedSet(tmp_path, cluster_name) as led:
        wait_for(lambda: len(led.statuses()) == 2, "both")
        led.controllers[0].end()
        with shmq.Admin(led.runtime) as admin:
            with pytest.raises(ServiceNotAvailableError, match="find the Controller: none listens"):
                admin.sync_states()
            with pytest.raises(ConfigError, match="its Controller says who is master"):
                admin.switch_master(NAME, 1)
