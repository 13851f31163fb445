"""A slave as a broker process: it finds its master, copies it, takes no message, and comes back."""

from __future__ import annotations

import resource
import signal
import threading
from collections import Counter
from typing import TYPE_CHECKING

import pytest

import shmq
from shmq.errors import ServiceNotAvailableError, SystemBusyError
from shmq.remoting.codes import RequestCode
from shmq.remoting.command import Command
from shmq.status import SendStatus
from tests.support.broker_process import BrokerClient
from tests.support.cluster import Cluster, wait_for
from tests.support.rocketmq_decoder import decode_commit_log
from tests.support.shell import Shell
from tests.support.slave import Pair, check_equal_logs, start
from tests.support.standing_still import stop_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.cluster


@pytest.fixture
def pair(tmp_path: Path, cluster_name: str) -> Iterator[Pair]:
    yield from start(tmp_path, cluster_name)


@pytest.fixture
def sync_pair(tmp_path: Path, cluster_name: str) -> Iterator[Pair]:
    yield from start(tmp_path, cluster_name, broker_role="SYNC_MASTER", slave_timeout_ms="500")


@pytest.fixture
def impatient_pair(tmp_path: Path, cluster_name: str) -> Iterator[Pair]:
    times = {"client_expiry_ms": "1000", "client_scan_interval_ms": "100"}
    yield from start(tmp_path, cluster_name, **times)


def test_slave_copies_messages_topics_groups_and_offsets_and_comes_back(pair: Pair) -> None:
    with pair.cluster.connect() as client:
        client.create_topic("copied", queues=2)
        producer = client.producer()
        for number in range(200):
            producer.send("copied", str(number).encode())
        with client.consumer("copied", group="readers") as consumer:
            left = 200
            while left:
                for message in consumer.receive(timeout=30.0):
                    with message.process():
                        left -= 1
        pair.await_equal()
        pair.await_in_sync()
        pair.slave.kill()
        pair.await_in_sync(0)
        for number in range(200, 300):
            assert producer.send("copied", str(number).encode()).send_status is SendStatus.SEND_OK
        pair.slave.restart()
        pair.await_in_sync()
        pair.await_equal()
        wait_for(lambda: "copied" in config(pair, "topics.json"), "the topic")
        wait_for(lambda: "readers" in config(pair, "subscriptionGroup.json"), "the group")
        wait_for(lambda: "copied@readers" in config(pair, "consumerOffset.json"), "the offsets")
    end = pair.master.status()["committedPosition"]
    pair.slave.stop()
    pair.cluster.brokers[0].stop()
    check_equal_logs(end, pair.master, pair.slave)
    bodies = {frame.body for frame in decode_commit_log(pair.slave.store_path / "commitlog")}
    assert {str(number).encode() for number in range(300)} <= bodies


def config(pair: Pair, name: str) -> str:
    path = pair.slave.store_path / "config" / name
    return path.read_text("utf-8") if path.exists() else ""


def test_slave_refuses_what_only_a_master_does_and_says_who_it_is(pair: Pair) -> None:
    client = pair.slave.connect()
    try:
        with pytest.raises(ServiceNotAvailableError, match="is a slave"):
            client.call(
                Command(RequestCode.UPDATE_AND_CREATE_TOPIC, {"topic": "no"}), timeout_s=30.0
            )
    finally:
        client.close()
    assert pair.slave.status()["role"] == "SLAVE"
    with pair.cluster.connect() as user:
        assert user.routes.brokers() == {pair.master.name: pair.master.socket_name}


def test_slave_started_before_its_master_waits_for_it(pair: Pair) -> None:
    pair.master.kill()
    pair.slave.kill()
    pair.slave.restart()
    wait_for(lambda: pair.slave.said().get("replicaProblem"), "the problem")
    pair.master.restart()
    wait_for(lambda: pair.slave.said().get("replicaProblem", "?") is None, "the master")
    pair.await_in_sync()


def test_slave_has_nothing_to_say_and_is_not_ended_as_a_silent_client_is(
    impatient_pair: Pair,
) -> None:
    master = impatient_pair.master
    with BrokerClient(master, "silent"):  # came after the slave
        wait_for(lambda: "client silent: no heartbeat for 1000 ms" in master.log, "its end")
    assert "slave left" not in master.log


def test_slave_that_had_no_descriptor_left_follows_again(pair: Pair) -> None:
    """What the kernel refuses passes, and ends no slave's search for its master."""
    pid = pair.slave.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (8, hard))
    pair.master.kill()
    wait_for(lambda: "Too many open files" in pair.slave.log, "the refusal")
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    pair.master.restart()
    pair.await_in_sync()


def test_sync_master_waits_for_its_slave_and_says_what_it_did_not_get(sync_pair: Pair) -> None:
    pair = sync_pair
    with pair.cluster.connect() as client:
        client.create_topic("safe", queues=1)
        producer = client.producer()
        pair.await_in_sync()
        for number in range(50):
            result = producer.send("safe", str(number).encode())
            assert result.send_status is SendStatus.SEND_OK
            # it is confirmed: on the slave, too
            frames = pair.ha_status(pair.slave)
            assert frames["maxOffset"] >= pair.ha_status()["confirmOffset"] > 0
        pair.slave.kill()
        pair.await_in_sync(0)
        assert producer.send("safe", b"alone").send_status is SendStatus.SLAVE_NOT_AVAILABLE
        said = Shell(pair.cluster.runtime).run("pub", "safe", "alone too", "-c", "2").stderr
        assert said.startswith(b"safe: 2 sent, "), said
        assert said.endswith(b", 2 of them SLAVE_NOT_AVAILABLE\n"), said
        pair.slave.restart()
        pair.await_in_sync()
        assert producer.send("safe", b"again").send_status is SendStatus.SEND_OK


SYNC = {"shmq.broker.role": "SYNC_MASTER"}
ASYNC = {"shmq.broker.role": "ASYNC_MASTER"}


@pytest.mark.parametrize("broker_role", ["ASYNC_MASTER", "SYNC_MASTER"])
def test_topic_says_for_itself_whether_its_sends_wait_for_slaves(
    tmp_path: Path, cluster_name: str, broker_role: str
) -> None:
    """The slave is stopped: who waits for it hears so, who does not goes on, and a change holds
    from the next message on.
    """
    settings = {"broker_role": broker_role, "slave_timeout_ms": "500"}
    is_sync = broker_role == "SYNC_MASTER"
    (tmp_path / "slave").mkdir()
    with Cluster(tmp_path, cluster_name, **settings) as cluster:
        pair = Pair(tmp_path, cluster)
        with pair.slave, cluster.connect() as client, shmq.Admin(cluster.runtime) as admin:
            pair.slave.wait_running()
            pair.await_in_sync()
            admin.create_topic("as-the-broker", queues=1)
            admin.create_topic("sync", queues=1, attributes=SYNC)
            admin.create_topic("async", queues=1, attributes=ASYNC)
            topics = ("sync", "async", "as-the-broker")
            ok, late = SendStatus.SEND_OK, SendStatus.FLUSH_SLAVE_TIMEOUT
            alone = SendStatus.SLAVE_NOT_AVAILABLE
            producer, sent = client.producer(), Counter[str]()

            def statuses() -> list[SendStatus]:
                sent.update(topics)
                return [producer.send(topic, b"x").send_status for topic in topics]

            def hidden(topic: str) -> int:
                with client.pull_consumer(topic) as pull:
                    (queue,) = pull.queues()
                    return sent[topic] - pull.max_offset(queue)

            # On a machine with much else to do a slave may take longer than slaveTimeout.
            wait_for(lambda: statuses() == [ok, ok, ok], "the slave")
            wait_for(lambda: not any(hidden(topic) for topic in topics), "what came late")
            pair.await_equal()
            wait_for(lambda: '"async"' in config(pair, "topics.json"), "the topics at the slave")
            stop_process(pair.slave.pid)
            assert statuses() == [late, ok, late if is_sync else ok]
            assert [hidden(topic) for topic in topics] == [1, 0, int(is_sync)]

            admin.create_topic("sync", attributes=ASYNC)
            admin.create_topic("async", attributes={"shmq.broker.role": None})
            admin.create_topic("as-the-broker", attributes=SYNC)
            assert statuses() == [ok, late if is_sync else ok, late]

            pair.slave.process.send_signal(signal.SIGCONT)
            pair.slave.kill()
            pair.await_in_sync(0)
            assert statuses() == [ok, alone if is_sync else ok, alone]
            pair.master.kill()  # what the topics say holds for the next life, too
            pair.master.restart()
            assert statuses() == [ok, alone if is_sync else ok, alone]
            pair.slave.restart()
            pair.await_in_sync()
            wait_for(lambda: statuses() == [ok, ok, ok], "the slave")


def test_topic_that_needs_more_replicas_than_there_are_refuses_and_others_do_not(
    tmp_path: Path, cluster_name: str
) -> None:
    for pair in start(tmp_path, cluster_name, minInSyncReplicas="2"):
        with pair.cluster.connect() as client, shmq.Admin(pair.cluster.runtime) as admin:
            admin.create_topic("sync", queues=1, attributes=SYNC)
            admin.create_topic("plain", queues=1)
            producer = client.producer()
            assert producer.send("sync", b"x").send_status is SendStatus.SEND_OK
            pair.slave.stop()
            pair.await_in_sync(0)
            with pytest.raises(SystemBusyError, match="fewer slaves in sync"):
                producer.send("sync", b"x", timeout=2.0)
            assert producer.send("plain", b"x").send_status is SendStatus.SEND_OK


def test_slave_that_was_stopped_while_files_left_memory_reads_them_and_ends_equal(
    pair: Pair,
) -> None:
    """Memory is not kept for a slave that does not run: it copies from the files instead."""
    body = bytes(range(256)) * 256
    with pair.cluster.connect() as client:
        client.create_topic("t", queues=1)
        producer = client.producer()
        producer.send("t", body)
        pair.await_equal()
        stop_process(pair.slave.pid)
        hot_bytes = 3 * (8 << 20)
        for _ in range(3 * hot_bytes // len(body)):
            assert producer.send("t", body).send_status is SendStatus.SEND_OK
        master = pair.master.connect()
        info = master.call(Command(RequestCode.GET_BROKER_RUNTIME_INFO), timeout_s=30.0).json()
        master.close()
        assert int(info["table"]["commitLogHotMinOffset"]) > hot_bytes
        pair.slave.process.send_signal(signal.SIGCONT)
        for _ in range(200):
            producer.send("t", body)
        pair.await_in_sync()
        pair.await_equal()
    end = pair.master.status()["committedPosition"]
    pair.slave.stop()
    pair.master.stop()
    check_equal_logs(end, pair.master, pair.slave)


def test_slave_that_is_stopped_leaves_the_sync_state_set_and_comes_back(
    tmp_path: Path, cluster_name: str
) -> None:
    """Nobody waits for it for ever."""
    settings = {"slave_timeout_ms": "200", "ha_max_time_slave_not_catchup_ms": "1000"}
    for pair in start(tmp_path, cluster_name, broker_role="SYNC_MASTER", **settings):
        with pair.cluster.connect() as client:
            client.create_topic("t", queues=1)
            producer = client.producer()
            assert producer.send("t", b"first").send_status is SendStatus.SEND_OK
            stop_process(pair.slave.pid)
            seen = []
            while not seen or seen[-1] is not SendStatus.SLAVE_NOT_AVAILABLE:
                seen.append(producer.send("t", b"x").send_status)
            # The one that waits while the slave leaves is released, and hears that nobody has it.
            assert set(seen[:-1]) == {SendStatus.FLUSH_SLAVE_TIMEOUT}, seen
            assert pair.ha_status()["inSyncSlaveNums"] == 0
            pair.slave.process.send_signal(signal.SIGCONT)
            pair.await_in_sync()
            assert producer.send("t", b"last").send_status is SendStatus.SEND_OK


def test_send_is_confirmed_once_it_is_on_the_slaves_disk_where_that_is_asked_for(
    tmp_path: Path, cluster_name: str
) -> None:
    settings = {"broker_role": "SYNC_MASTER", "confirm_flushed_enable": "true"}
    for pair in start(tmp_path, cluster_name, slave={"flush_interval_ms": "500"}, **settings):
        with pair.cluster.connect() as client:
            client.create_topic("t", queues=1)
            producer = client.producer()
            for _ in range(5):
                before = pair.ha_status()["masterCommitLogMaxOffset"]
                assert producer.send("t", b"x").send_status is SendStatus.SEND_OK
                (slave,) = pair.ha_status()["haConnectionInfo"]
                assert slave["slaveFlushOffset"] > before


def test_send_that_waits_for_a_slave_alone_does_not_hurry_the_disk(
    tmp_path: Path, cluster_name: str
) -> None:
    settings = {"broker_role": "SYNC_MASTER", "flush_interval_ms": "60000"}
    for pair in start(tmp_path, cluster_name, **settings):
        with pair.cluster.connect() as client:
            client.create_topic("t", queues=1)
            producer = client.producer()
            before = pair.master.status()
            for _ in range(50):
                assert producer.send("t", b"x").send_status is SendStatus.SEND_OK
            after = pair.master.status()
            assert after["committedPosition"] > before["committedPosition"]
            assert after["flushedPosition"] == before["flushedPosition"], "it gathers for a minute"
            with shmq.Admin(pair.cluster.runtime) as admin:
                admin.create_topic("s", attributes={"shmq.flush.disk.type": "SYNC_FLUSH"})
            assert producer.send("s", b"x").send_status is SendStatus.SEND_OK
            assert pair.master.status()["flushedPosition"] > after["flushedPosition"]


def test_slave_that_hangs_stays_out_of_the_sync_state_set(
    tmp_path: Path, cluster_name: str
) -> None:
    looks = threading.Event()
    for pair in start(tmp_path, cluster_name, ha_max_time_slave_not_catchup_ms="300"):
        with pair.cluster.connect() as client:
            pair.slave.process.send_signal(signal.SIGSTOP)
            try:
                client.producer().send("t", b"x")
                pair.await_in_sync(0)
                seen = []
                for _ in range(100):  # it came and went each 150 ms
                    seen.append(pair.ha_status()["inSyncSlaveNums"])
                    looks.wait(0.01)
                assert set(seen) == {0}
            finally:
                pair.slave.process.send_signal(signal.SIGCONT)
            pair.await_in_sync()
