"""What a broker does with requests that make no sense, files that it cannot read, and a disk that
refuses: it says so, and harms nobody."""

import os
import random
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from shmq.errors import FlushFailedError, ShmqError
from shmq.remoting.codes import RequestCode
from shmq.status import SendStatus
from tests.support.broker_process import BrokerClient, BrokerProcess
from tests.support.cluster import Cluster, wait_for
from tests.support.require import require_program
from tests.support.scale import scaled
from tests.support.store_process import wait_until

TOPIC = "orders"
QUEUE = {"topic": TOPIC, "queueId": 0}
GROUP = {"consumerGroup": "g"}
# What a good request has; some of it is then made bad.
TEMPLATES: dict[RequestCode, tuple[dict[str, Any], Any]] = {
    RequestCode.ATTACH_SESSION: ({"clientId": "fuzzer", "isProducer": True}, None),
    RequestCode.RESUME_SESSION: (
        {"clientId": "fuzzer", "session": 0, "generation": 1, "fds": ""},
        {"sends": [[0, 1, 1]], "bells": [{"bell": 0, "queues": [[0, 1, 1]]}],
         "claims": [{**GROUP, **QUEUE, "slot": 0, "claim": 1}]},
    ),
    RequestCode.DETACH_SESSION: ({}, None),
    RequestCode.GRANT_CHUNK: ({"sizeBytes": 1 << 20}, None),
    RequestCode.GRANT_SOCKET: ({}, None),
    RequestCode.GRANT_SEND: ({"topic": TOPIC, "defaultTopicQueueNums": 4}, None),
    RequestCode.GET_TOPIC_QUEUES: ({"topic": TOPIC}, None),
    RequestCode.SUBSCRIBE_BELL: ({"bell": 0}, {"queues": [[0, 1, 2]]}),
    RequestCode.UNSUBSCRIBE_BELL: ({"bell": 0}, {"queues": [[0, 1, 1]]}),
    RequestCode.READ_ENTRIES: ({**QUEUE, "queueOffset": 0, "count": 1}, None),
    RequestCode.HEART_BEAT: (
        {},
        {"clientID": "fuzzer", "producerDataSet": [{"groupName": "p"}],
         "consumerDataSet": [{"groupName": "g", "messageModel": "CLUSTERING",
                              "subscriptionDataSet": [{"topic": "t", "subString": "a || b"}]}]},
    ),
    RequestCode.UNREGISTER_CLIENT: ({"clientID": "fuzzer", **GROUP}, None),
    RequestCode.GET_CONSUMER_LIST_BY_GROUP: (GROUP, None),
    RequestCode.CLAIM_QUEUES: (
        {**GROUP, "topic": TOPIC, "consumeFromWhere": "CONSUME_FROM_TIMESTAMP"},
        {"claims": [{"queueId": 0, "slot": 0}, {"queueId": 1, "slot": 1}]},
    ),
    RequestCode.RELEASE_QUEUES: (
        {**GROUP, "topic": TOPIC}, {"claims": [{"queueId": 0, "claim": 1}]},
    ),
    RequestCode.QUERY_CONSUMER_OFFSET: ({**GROUP, **QUEUE}, None),
    RequestCode.UPDATE_CONSUMER_OFFSET: ({**GROUP, **QUEUE, "commitOffset": 0}, None),
    RequestCode.GET_MAX_OFFSET: (QUEUE, None),
    RequestCode.GET_MIN_OFFSET: (QUEUE, None),
    RequestCode.SEARCH_OFFSET_BY_TIMESTAMP: ({**QUEUE, "timestamp": 1}, None),
    RequestCode.INVOKE_BROKER_TO_RESET_OFFSET: (
        {"group": "g", "topic": TOPIC, "whence": "timestamp", "queueId": 0, "timestamp": 0}, None,
    ),
    RequestCode.UPDATE_AND_CREATE_TOPIC: (
        {"topic": "t", "readQueueNums": 4, "writeQueueNums": 4, "perm": 6, "attributes": "+a=b"},
        None,
    ),
    RequestCode.DELETE_TOPIC_IN_BROKER: ({"topic": "t"}, None),
    RequestCode.GET_ALL_TOPIC_CONFIG: ({"after": "", "count": 1}, None),
    RequestCode.GET_TOPIC_CONFIG: ({"topic": TOPIC}, None),
    RequestCode.GET_TOPIC_STATS_INFO: ({"topic": TOPIC}, None),
    RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP: (
        {}, {"groupName": "g", "consumeEnable": True, "retryQueueNums": 1},
    ),
    RequestCode.DELETE_SUBSCRIPTIONGROUP: ({"groupName": "g", "cleanOffset": True}, None),
    RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG: ({"count": 1}, None),
    RequestCode.GET_SUBSCRIPTIONGROUP_CONFIG: ({"group": "g"}, None),
    RequestCode.GET_CONSUME_STATS: ({**GROUP, "topic": TOPIC}, None),
    RequestCode.GET_CONSUMER_CONNECTION_LIST: (GROUP, None),
    RequestCode.GET_PRODUCER_CONNECTION_LIST: ({"producerGroup": "p"}, None),
    RequestCode.GET_BROKER_RUNTIME_INFO: ({}, None),
    RequestCode.GET_BROKER_STATUS: ({}, None),
}  # fmt: skip
FIELDS = [
    "topic", "queueId", "consumerGroup", "group", "groupName", "clientId", "clientID", "slot",
    "queueOffset", "count", "after", "offset", "timestamp", "commitOffset", "whence", "perm",
    "readQueueNums", "writeQueueNums", "attributes", "isForce", "order", "topicSysFlag", "bell",
    "session", "generation", "fds", "sizeBytes", "isProducer", "isAutoCreate", "cleanOffset",
    "defaultTopicQueueNums", "consumeFromWhere", "consumeTimestamp", "producerGroup",
]  # fmt: skip
KEYS = [
    "queues", "claims", "sends", "bells", "consumerDataSet", "producerDataSet", "clientID",
    "subscriptionDataSet", "topic", "subString", "groupName", "messageModel", "consumeType",
    "queueId", "slot", "claim", "bell", "consumerGroup", "consumeEnable", "retryQueueNums",
]  # fmt: skip
VALUES: list[Any] = [
    0, 1, -1, 3, 4, 7, 8, 255, 1919, 1920, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32,
    2**53, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 0.5, 1e308, True, False, None,
    "", "t", TOPIC, "g", "%RETRY%g", "%", "a b", "\0", "\n", "ü", "\U0001f600", "x" * 300, "TBW102",
    "1", "-1", "+a=b", "-a", "first", "offset", "timestamp", "CONSUME_FROM_TIMESTAMP", "*",
    "a || b", "||", "BROADCASTING", "ingress", "ingress,consumer", "../../etc/passwd", "/dev/shm",
]  # fmt: skip


# ---- nonsense ------------------------------------------------------------------------------------


def value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.random()
    if depth < 3 and kind < 0.2:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if depth < 3 and kind < 0.4:
        return {rng.choice(KEYS): value(rng, depth + 1) for _ in range(rng.randrange(6))}
    return rng.choice(VALUES)


def spoiled(rng: random.Random, good: Any, chance: float) -> Any:
    """The same with some parts replaced, left out or repeated."""
    if rng.random() < chance:
        return value(rng)
    if isinstance(good, dict):
        kept = {key: spoiled(rng, item, chance) for key, item in good.items()}
        return {key: item for key, item in kept.items() if rng.random() > chance / 2}
    if isinstance(good, list):
        return [spoiled(rng, item, chance) for item in good * rng.choice([1, 1, 1, 2])]
    return good


def test_nonsense_of_every_kind_is_answered_and_harms_nobody(broker, rng):
    with BrokerClient(broker, "victim") as victim:
        where = victim.send_queues(TOPIC)[0]
        victim.heartbeat(consumers={"mine": [TOPIC]})
        victim.claim("mine", TOPIC, {0: 0})
        fuzzer = BrokerClient(broker, "fuzzer")
        fuzzer.heartbeat(consumers={"g": [TOPIC]})
        sent = 0
        for _ in range(scaled(3_000, 100_000)):
            code = rng.choice(list(TEMPLATES))
            good_fields, good_body = TEMPLATES[code]
            chance = rng.choice([0.0, 0.05, 0.3])
            fields = {
                key: item if rng.random() > chance else rng.choice(VALUES)
                for key, item in good_fields.items()
            }
            if rng.random() < chance:
                fields[rng.choice(FIELDS)] = rng.choice(VALUES)
            if code == RequestCode.DELETE_TOPIC_IN_BROKER:
                fields["topic"] = "t"
            if fields.get("topic") == TOPIC and code == RequestCode.UPDATE_AND_CREATE_TOPIC:
                fields["topic"] = "t"
            body = spoiled(rng, good_body, chance)
            fds: tuple[int, ...] = ()
            if rng.random() < 0.05:
                fds = tuple(os.open("/dev/null", os.O_RDONLY) for _ in range(rng.randrange(5)))
            try:
                fuzzer.call(code, fields, body, fds=fds).close()
            except ShmqError:
                pass
            if fuzzer.client.is_closed:
                fuzzer.close()
                fuzzer = BrokerClient(broker, "fuzzer")
            if sent < 10:
                sent += 1
                victim.send(where, b"%d" % sent)
        fuzzer.close()
        assert "Traceback" not in broker.log  # what nobody foresaw is logged with one
        victim.send(where, b"last")
        assert len(victim.bodies(where)) == sent + 1
        victim.reader.report(0, sent)
        assert victim.consumer_offset("mine", TOPIC, 0) == sent
        assert victim.members("mine") == ["victim"]
        wait_until(lambda: broker.status()["sessionCount"] == 1)
        count = len(os.listdir(f"/proc/{broker.pid}/fd"))
        wait_until(lambda: len(os.listdir(f"/proc/{broker.pid}/fd")) <= count)
    assert count < 100  # no descriptor of the fuzzer's is kept


def test_clients_that_come_and_go_leave_nothing_behind(broker):
    with BrokerClient(broker, "first") as first:
        first.send_queues(TOPIC)

        def facts() -> tuple[int, int]:
            wait_until(lambda: broker.status()["sessionCount"] == 1)
            names = [n for n in os.listdir("/dev/shm") if broker.cluster_name in n]
            return len(os.listdir(f"/proc/{broker.pid}/fd")), len(names)

        for number in range(3):
            with BrokerClient(broker, f"warm-{number}") as client:
                client.send_queues(TOPIC)
        before = facts()
        for number in range(100):
            with BrokerClient(broker, f"c-{number}") as client:
                client.send(client.send_queues(TOPIC)[0], b"x")
                client.heartbeat(consumers={"g": [TOPIC]})
                client.claim("g", TOPIC, {0: 0})
        wait_until(lambda: facts() <= before)
        assert first.json(RequestCode.GET_BROKER_RUNTIME_INFO)["table"]["clientCount"] == "1"


# ---- start that fails ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "code"),
    [("topics.json", 2), ("consumerOffset.json", 2), ("subscriptionGroup.json", 2)],
)
def test_file_that_cannot_be_read_stops_the_start_with_one_line(tmp_path, cluster_name, name, code):
    folder = tmp_path / "store-broker-a" / "config"
    folder.mkdir(parents=True)
    (folder / name).write_text('{"a": ')
    started = BrokerProcess(tmp_path, cluster_name, wait=False)
    assert started.process.wait(30) == code
    assert "Traceback" not in started.log
    (line,) = [line for line in started.log.splitlines() if " ERROR " in line]
    assert name in line
    assert not [n for n in os.listdir("/dev/shm") if cluster_name in n]
    assert not list((tmp_path / "run").glob("*.sock"))


# ---- a disk that refuses -------------------------------------------------------------------------


@pytest.mark.crash
def test_disk_that_refuses_makes_the_broker_a_reader_that_says_so(broker):
    strace = require_program("strace", "strace")
    with BrokerClient(broker, "c") as client:
        where = client.send_queues(TOPIC)[0]
        client.send(where, b"safe")
        tracer = subprocess.Popen(
            [
                strace, "-f", "-qq", "-o", "/dev/null",
                "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO", "-p", str(broker.pid),
            ],
        )  # fmt: skip
        try:
            number = 0

            def is_refused() -> bool:
                nonlocal number
                number += 1
                client.lanes[0].put(where.row, where.generation, b"%d" % number)
                return broker.status()["problem"] is not None

            wait_until(is_refused)
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.wait()
        with pytest.raises(FlushFailedError):
            client.send_queues(TOPIC)
        assert client.bodies(where)[0] == b"safe"
        assert re.search("only reads go on", broker.log)


def test_disk_that_hangs_is_told_to_senders_and_nothing_is_lost(
    tmp_path: Path, cluster_name: str
) -> None:
    strace = require_program("strace", "strace")
    settings = {"flush_disk_type": "SYNC_FLUSH", "sync_flush_timeout_ms": "200"}
    with Cluster(tmp_path, cluster_name, **settings) as cluster, cluster.connect() as client:
        producer = client.producer()
        queue = next(iter(producer.queues(TOPIC)))
        sent: list[bytes] = []

        def send() -> SendStatus:
            sent.append(b"%d" % len(sent))
            return producer.send(TOPIC, sent[-1], queue=queue, timeout=30.0).send_status

        assert send() is SendStatus.SEND_OK
        tracer = subprocess.Popen(
            [
                strace, "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync",
                "-e", "inject=fdatasync:delay_enter=1000000", "-p", str(cluster.brokers[0].pid),
            ],
        )  # fmt: skip
        try:
            wait_for(lambda: send() is SendStatus.FLUSH_DISK_TIMEOUT)
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.wait()
        wait_for(lambda: send() is SendStatus.SEND_OK)
        with client.pull_consumer(TOPIC) as consumer:
            found = consumer.pull(queue, 0, len(sent), timeout=30.0).messages
        assert [bytes(message) for message in found] == sent


@pytest.mark.crash
def test_start_that_fails_leaves_the_predecessor_s_memory_to_the_next(broker):
    with BrokerClient(broker, "c") as client:
        where = client.send_queues(TOPIC)[0]
        client.send(where, b"one")
        wait_until(lambda: _is_flushed(broker))
        broker.kill()
        client.lanes[0].put(where.row, where.generation, b"two")
        paths = list((broker.store_path / "config").glob("topics.json*"))
        kept = {path: path.read_bytes() for path in paths}
        for path in paths:
            path.write_text("{")
        broker.process = broker._start()
        assert broker.process.wait(30) == 2
        for path, data in kept.items():
            path.write_bytes(data)
        broker.restart()
        client.resume(broker, queues=[where])
        client.send(where, b"three")
        assert client.bodies(where) == [b"one", b"two", b"three"]


def _is_flushed(broker: BrokerProcess) -> bool:
    status = broker.status()
    return bool(status["flushedPosition"] == status["committedPosition"])
