"""A broker that dies or is stopped while its clients work, and the successor that takes over."""

import signal
import subprocess

import orjson
import pytest

from shmq.core import core
from shmq.errors import ClosedError, ShmError, ShmqError
from shmq.remoting.codes import RequestCode
from tests.support.broker_process import BrokerClient, BrokerProcess, ClientProcess, Queue
from tests.support.require import require_program
from tests.support.standing_still import stop_process
from tests.support.store_process import wait_until

GROUP = "readers"
TOPIC = "orders"


def claims_of(claims: dict, group: str = GROUP, topic: str = TOPIC) -> list[dict]:
    return [
        {
            "consumerGroup": group,
            "topic": topic,
            "queueId": claim["queueId"],
            "slot": claim["slot"],
            "claim": claim["claim"],
        }
        for claim in claims.values()
    ]


def wait_gone(client: BrokerClient) -> None:
    """Until the connection has noticed that the broker is gone."""

    def is_gone() -> bool:
        try:
            client.members(GROUP)
        except ShmqError:
            return True
        return False

    wait_until(is_gone)


# ---- killed --------------------------------------------------------------------------------------


@pytest.mark.crash
def test_ring_of_a_living_client_is_appended_once_by_the_successor(broker):
    with BrokerClient(broker, "c") as client:
        where = client.send_queues(TOPIC)[0]
        for number in range(100):
            client.send(where, b"before %d" % number)
        broker.kill()
        first = client.lanes[0].next_sequence
        for number in range(50):  # nobody is there to take them
            client.lanes[0].put(where.row, where.generation, b"after %d" % number, keep=True)
        broker.restart()
        assert broker.status()["lostSessionCount"] == 1
        answer = client.resume(broker, queues=[where])
        assert answer == {"staleQueues": [], "staleClaims": []}
        for sequence in range(first, first + 50):
            assert client.lanes[0].wait(sequence, 30.0)[0] == 0
        wanted = [b"before %d" % n for n in range(100)] + [b"after %d" % n for n in range(50)]
        assert client.bodies(where) == wanted
        assert client.send(where, b"goes on") == 150
        assert broker.status()["lostSessionCount"] == 0


@pytest.mark.crash
def test_killed_again_and_again_under_load_it_loses_and_doubles_nothing(broker, rng):
    with BrokerClient(broker, "c") as client:
        where = client.send_queues(TOPIC)[0]
        sent = 0
        for _ in range(5):
            for _ in range(rng.randrange(50, 300)):
                client.lanes[0].put(where.row, where.generation, b"%d" % sent)
                sent += 1
            broker.kill()
            for _ in range(rng.randrange(100)):
                client.lanes[0].put(where.row, where.generation, b"%d" % sent)
                sent += 1
            broker.restart()
            client.resume(broker, queues=[where])
        client.send(where, b"last")
        got = client.bodies(where, count=10_000)
        assert got == [b"%d" % n for n in range(sent)] + [b"last"]


@pytest.mark.crash
def test_grant_that_was_not_handed_back_is_none(broker):
    with BrokerClient(broker, "c") as client:
        first, second, *_ = client.send_queues(TOPIC)
        broker.kill()
        broker.restart()
        client.resume(broker, queues=[first, Queue(9, 999, 1), Queue(0, first.row, 77)])
        assert client.send(first, b"may") == 0
        status, *_ = client.lanes[0].send(second.row, second.generation, b"may not")
        assert status == core.STATUS["NOT_GRANTED"][0]


@pytest.mark.crash
def test_progress_reported_while_the_broker_was_dead_counts(broker):
    with BrokerClient(broker, "c") as client:
        where = client.send_queues(TOPIC)[0]
        for _ in range(10):
            client.send(where, b"x")
        client.heartbeat(consumers={GROUP: [TOPIC]})
        claims = client.claim(GROUP, TOPIC, {0: 3})
        broker.kill()
        client.reader.report(3, 8)
        broker.restart()
        answer = client.resume(broker, queues=[], claims=claims_of(claims))
        assert answer["staleClaims"] == []
        assert client.consumer_offset(GROUP, TOPIC, 0) == 8


@pytest.mark.crash
def test_older_claim_is_stale_after_a_restart(broker):
    with BrokerClient(broker, "old") as old, BrokerClient(broker, "new") as new:
        where = old.send_queues(TOPIC)[0]
        for _ in range(10):
            old.send(where, b"x")
        for client in (old, new):
            client.heartbeat(consumers={GROUP: [TOPIC]})
        before = old.claim(GROUP, TOPIC, {0: 0})
        old.reader.report(0, 2)
        after = new.claim(GROUP, TOPIC, {0: 0})
        new.reader.report(0, 5)
        broker.kill()
        old.reader.report(0, 9)
        broker.restart()
        assert new.resume(broker, queues=[], claims=claims_of(after))["staleClaims"] == []
        (stale,) = old.resume(broker, queues=[], claims=claims_of(before))["staleClaims"]
        assert (stale["queueId"], stale["claim"]) == (0, before[0]["claim"])
        assert old.consumer_offset(GROUP, TOPIC, 0) == 5


@pytest.mark.crash
def test_claim_from_before_a_reset_is_stale_after_a_restart(broker):
    with BrokerClient(broker, "c") as client:
        where = client.send_queues(TOPIC)[0]
        for _ in range(10):
            client.send(where, b"x")
        client.heartbeat(consumers={GROUP: [TOPIC]})
        claims = client.claim(GROUP, TOPIC, {0: 0})
        client.reader.report(0, 9)
        fields = {"group": GROUP, "topic": TOPIC, "whence": "first"}
        client.call(RequestCode.INVOKE_BROKER_TO_RESET_OFFSET, fields)
        broker.kill()
        broker.restart()
        answer = client.resume(broker, queues=[], claims=claims_of(claims))
        assert len(answer["staleClaims"]) == 1
        assert client.consumer_offset(GROUP, TOPIC, 0) == 0


@pytest.mark.crash
def test_session_that_nobody_resumes_is_freed_when_its_grace_is_over(tmp_path, cluster_name):
    with BrokerProcess(tmp_path, cluster_name, session_grace_ms="500") as broker:
        with BrokerClient(broker, "c") as client:
            client.send_queues(TOPIC)
            slot = client.fields["session"]
            broker.kill()
            broker.restart()
            wait_until(lambda: broker.status()["lostSessionCount"] == 0)
            with pytest.raises(ShmError, match="does not wait to be resumed"):
                client.resume(broker, queues=[])
        with BrokerClient(broker, "d") as other:
            assert other.fields["session"] == slot
        assert "not resumed in time" in broker.log


@pytest.mark.crash
def test_memory_of_somebody_else_is_refused(broker):
    with BrokerClient(broker, "a") as a, BrokerClient(broker, "b") as b:
        broker.kill()
        broker.restart()
        a.fds["ingress"], b.fds["ingress"] = b.fds["ingress"], a.fds["ingress"]
        with pytest.raises(ShmError):
            a.resume(broker, queues=[])
        a.fds["ingress"], b.fds["ingress"] = b.fds["ingress"], a.fds["ingress"]
        b.resume(broker, queues=[])
        a.resume(broker, queues=[])


@pytest.mark.crash
def test_client_and_broker_dead_together_leave_a_free_slot(tmp_path, cluster_name):
    with BrokerProcess(tmp_path, cluster_name, session_grace_ms="500") as broker:
        with ClientProcess(broker, "victim") as victim:
            victim.run("put", TOPIC, ["a", "b"])
            broker.kill()
            victim.kill()
        broker.restart()
        wait_until(lambda: broker.status()["lostSessionCount"] == 0)
        with BrokerClient(broker, "reader") as reader:
            queues = reader.read_queues(TOPIC)
            assert len(queues) == 4
            bodies = reader.bodies(queues[0])
            assert bodies == [b"a", b"b"][: len(bodies)]


@pytest.mark.crash
def test_broker_that_was_stopped_and_continued_goes_on(broker):
    with BrokerClient(broker, "c") as client:
        where = client.send_queues(TOPIC)[0]
        client.send(where, b"one")
        stop_process(broker.pid)
        sequence = client.lanes[0].put(where.row, where.generation, b"two", keep=True)
        assert client.bodies(where) == [b"one"]  # reads need nobody
        assert client.lanes[0].wait(sequence, 0.05)[0] == core.STATUS["TIMED_OUT"][0]
        broker.process.send_signal(signal.SIGCONT)
        assert client.lanes[0].wait(sequence, 30.0)[0] == 0
        assert client.bodies(where) == [b"one", b"two"]
        assert client.members(GROUP) == []


# ---- a client killed -----------------------------------------------------------------------------


@pytest.mark.crash
def test_what_a_killed_client_published_is_appended(broker):
    with BrokerClient(broker, "reader") as reader:
        with ClientProcess(broker, "victim") as victim:
            for _ in range(10):
                victim.run("put", TOPIC, [f"{n}" for n in range(200)])
            victim.kill()
        wait_until(lambda: broker.status()["sessionCount"] == 1)
        where = reader.read_queues(TOPIC)[0]
        wait_until(lambda: reader.reader.visible_max(where.row) == 2000)
        assert reader.bodies(where, count=3000) == [b"%d" % n for n in range(200)] * 10


@pytest.mark.crash
def test_ring_of_a_killed_client_is_drained_when_the_log_has_room_again(broker):
    """The disk stands still, so the log is full and the ring too; then the client is killed."""
    strace = require_program("strace", "strace")
    size = 15_000
    with BrokerClient(broker, "reader") as reader, ClientProcess(broker, "victim") as victim:
        reader.send_queues(TOPIC)
        tracer = subprocess.Popen(
            [
                strace, "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync",
                "-e", "inject=fdatasync:delay_enter=20s", "-p", str(broker.pid),
            ],
        )  # fmt: skip
        try:
            count = victim.run("flood", TOPIC, size)
            where = reader.read_queues(TOPIC)[0]
            appended = reader.reader.visible_max(where.row)
            assert count > appended  # some are in the ring only
            victim.kill()
            wait_until(lambda: broker.status()["sessionCount"] == 1)
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.wait()
        wait_until(lambda: reader.reader.visible_max(where.row) == count)
        last = reader.bodies(where, count - 1)[0]
        assert last == (b"%d" % (count - 1) + bytes(size))[:size]


# ---- stopped in order ----------------------------------------------------------------------------


def test_stopped_in_order_it_leaves_its_memory_to_a_successor(broker):
    with BrokerClient(broker, "c") as client:
        where = client.send_queues(TOPIC)[0]
        client.send(where, b"one")
        assert broker.stop() == 0
        wait_gone(client)
        client.lanes[0].put(where.row, where.generation, b"two")
        broker.restart()
        client.resume(broker, queues=[where])
        assert client.send(where, b"three") == 2
        assert client.bodies(where) == [b"one", b"two", b"three"]


def test_stopped_without_clients_it_removes_its_memory_and_recovers_from_files(broker):
    with BrokerClient(broker, "c") as client:
        where = client.send_queues(TOPIC)[2]
        for number in range(100):
            client.send(where, b"%d" % number)
        client.heartbeat(consumers={GROUP: [TOPIC]})
        client.claim(GROUP, TOPIC, {2: 0})
        client.reader.report(0, 60)
    wait_until(lambda: broker.status()["sessionCount"] == 0)
    assert broker.stop() == 0
    broker.restart()
    with BrokerClient(broker, "d") as client:
        queues = client.read_queues(TOPIC)
        assert [q.facts["maxOffset"] for q in queues] == [0, 0, 100, 0]
        assert client.bodies(queues[2]) == [b"%d" % n for n in range(100)]
        assert client.consumer_offset(GROUP, TOPIC, 2) == 60
        client.send_queues(TOPIC)
        assert client.send(queues[2], b"next") == 100


def test_clients_are_told_that_the_broker_leaves(broker):
    with BrokerClient(broker, "c") as client:
        client.send_queues(TOPIC)
        broker.stop()
        with pytest.raises(ShmqError, match="stops"):
            client.members(GROUP)


def test_offsets_on_disk_are_of_messages_on_disk(tmp_path, cluster_name):
    """Whatever a power cut leaves: no offset in the file is ahead of the flushed log."""
    with BrokerProcess(
        tmp_path,
        cluster_name,
        flush_consumer_offset_interval_ms="100",
        flush_interval_ms="60000",
        unflushed_bytes_max="16MiB",
    ) as broker:
        path = broker.store_path / "config" / "consumerOffset.json"
        with BrokerClient(broker, "c") as client:
            where = client.send_queues(TOPIC)[0]
            client.heartbeat(consumers={GROUP: [TOPIC]})
            client.claim(GROUP, TOPIC, {0: 0})
            flushed = broker.status()["flushedPosition"]
            client.send(where, b"x" * 100)
            client.reader.report(0, 1)
            assert client.consumer_offset(GROUP, TOPIC, 0) == 1
            wait_until(lambda: client.members(GROUP) == ["c"])
            status = broker.status()
            written = orjson.loads(path.read_bytes())["offsetTable"].get(f"{TOPIC}@{GROUP}", {})
            if status["flushedPosition"] == flushed:
                assert written.get("0", 0) == 0
        broker.stop()
        assert orjson.loads(path.read_bytes())["offsetTable"][f"{TOPIC}@{GROUP}"]["0"] == 1


def test_requests_are_refused_while_it_drains_and_stops(broker):
    with BrokerClient(broker, "c") as client:
        broker.stop()
        with pytest.raises((ShmqError, ClosedError)):
            client.send_queues(TOPIC)
    with pytest.raises(ShmqError):
        broker.connect()


def test_second_broker_on_the_same_store_or_name_is_refused(broker, tmp_path):
    same_name = BrokerProcess(tmp_path, broker.cluster_name, wait=False)
    assert same_name.process.wait(30) == 1
    assert "another process has it" in broker.log
    store = str(broker.store_path)
    other = BrokerProcess(tmp_path, broker.cluster_name, name="broker-b", wait=False,
                          store_path=store)  # fmt: skip
    assert other.process.wait(30) == 2
    assert "this store is broker-a:0" in other.log
    slave = BrokerProcess(tmp_path, broker.cluster_name, wait=False, broker_id="1",
                          store_path=store)  # fmt: skip
    assert slave.process.wait(30) == 1
    assert "open" in slave.log
    assert broker.status()["phase"] == "RUNNING"


def test_member_whom_nobody_makes_master_stands_by_until_it_is_stopped(tmp_path, cluster_name):
    with BrokerProcess(tmp_path, cluster_name, wait=False, broker_id="1") as member:
        wait_until(lambda: "standby: waits to be told to become master" in member.log)
        assert member.stop() == 0
