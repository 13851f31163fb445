"""Looking back in a real cluster: from programs and from the command line, over two brokers."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

import shmq
from shmq.client.stored_message import StoredMessage
from shmq.errors import (
    ConfigError,
    MessageNotFoundError,
    SubscriptionGroupNotExistError,
    TopicNotExistError,
)
from shmq.remoting.client import Client as Connection
from shmq.remoting.codes import RequestCode, ResponseCode
from shmq.remoting.command import Command
from shmq.remoting.runtime_folder import RuntimeFolder, broker_socket_name
from shmq.subscription import SubscriptionGroupConfig
from tests.support.shell import Shell, dev_cluster
from tests.support.store_process import wait_until

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("look-back") / "run"
    with dev_cluster(folder, "--brokers", "2"):
        yield folder


@pytest.fixture(scope="module")
def admin(runtime: Path) -> Iterator[shmq.Admin]:
    with shmq.Admin(runtime) as one:
        yield one


@pytest.fixture(scope="module")
def client(runtime: Path) -> Iterator[shmq.Client]:
    with shmq.connect(runtime) as one:
        yield one


def _cli(runtime: Path, *arguments: str, code: int = 0) -> str:
    shell = Shell(runtime)
    return shell.fails(*arguments, code=code) if code else shell.out(*arguments)


def _bodies(found: list[StoredMessage]) -> list[bytes]:
    return [message.body for message in found]


def test_message_is_got_by_id_from_whichever_broker_has_it(
    admin: shmq.Admin, client: shmq.Client
) -> None:
    client.create_topic("ids", queues=2)
    client.create_topic("other", queues=1)
    producer = client.producer()
    for number in range(8):
        result = producer.send(
            "ids", b"body %d" % number, tag="new", keys=["a", "b"], properties={"x": "y"}, flag=7
        )
        message = admin.get_message(result.message_id)
        assert message.body == b"body %d" % number
        assert (message.message_id, message.tag, message.keys) == (
            result.message_id,
            "new",
            ("a", "b"),
        )
        assert (message.broker_name, message.queue_id) == result.message_queue[1:]
        assert message.queue_offset == result.queue_offset
        assert (message.properties["x"], message.flag) == ("y", 7)
        assert admin.message_at(message.broker_name, message.physical_offset) == message
        by_offset = admin.get_message(message.offset_message_id, broker=message.broker_name)
        assert by_offset == message
        with pytest.raises(MessageNotFoundError):
            admin.get_message(result.message_id, topic="other")


def test_what_nobody_has_is_said_in_one_line(admin: shmq.Admin, runtime: Path) -> None:
    for unknown in ("nonsense", "0" * 32, "F" * 32, "F" * 56, "ä"):
        with pytest.raises((MessageNotFoundError, ConfigError)):
            admin.get_message(unknown)
    with pytest.raises(MessageNotFoundError):
        admin.message_at("broker-a", 3)
    with pytest.raises(TopicNotExistError):
        admin.find_messages("no-such-topic", key="a")
    said = _cli(runtime, "msg", "get", "nonsense", code=1)
    assert "message nonsense: no broker has it" in said
    assert "Traceback" not in said


def test_offset_id_finds_its_broker_by_the_address_in_it(
    admin: shmq.Admin, client: shmq.Client
) -> None:
    client.create_topic("twice", queues=1)
    producer = client.producer()
    for queue in producer.queues("twice"):
        producer.send("twice", b"x", queue=queue)
    for name in ("broker-a", "broker-b"):
        message = admin.message_at(name, 0)
        assert admin.get_message(message.offset_message_id) == message
        assert admin.get_message(message.offset_message_id.lower()) == message


def test_key_finds_the_newest_messages_of_its_topic(admin: shmq.Admin, client: shmq.Client) -> None:
    client.create_topic("keys", queues=2)
    client.create_topic("other-keys", queues=2)
    producer = client.producer()
    for number in range(20):
        producer.send("keys", b"%d" % number, keys=["k", f"only-{number}"])
    producer.send("other-keys", b"other", keys="k")
    found = admin.find_messages("keys", key="k", max_count=7)
    assert len(found) == 7
    times = [message.store_timestamp for message in found]
    assert times == sorted(times, reverse=True)
    assert sorted(_bodies(admin.find_messages("keys", key="k"))) == sorted(
        b"%d" % number for number in range(20)
    )
    assert _bodies(admin.find_messages("keys", key="only-3")) == [b"3"]
    one = admin.find_messages("keys", key="only-3")[0]
    rest = {"broker": one.broker_name, "queue_id": one.queue_id}
    assert _bodies(admin.find_messages("keys", key="only-3", **rest)) == [b"3"]  # type: ignore[arg-type]
    assert admin.find_messages("keys", key="only-3", queue_id=1 - one.queue_id) == []
    at = one.store_timestamp
    assert admin.find_messages("keys", key="only-3", begin_ms=at, end_ms=at) == [one]
    assert admin.find_messages("keys", key="only-3", begin_ms=at + 1) == []


def test_queue_is_read_from_an_offset_and_a_span_of_time_newest_first(
    admin: shmq.Admin, client: shmq.Client
) -> None:
    client.create_topic("spans", queues=1)
    producer = client.producer()
    queue = producer.queues("spans")[0]
    for number in range(10):
        producer.send("spans", b"%d" % number, queue=queue)
    read = admin.read_messages("spans", 0, 4, broker=queue.broker_name, max_count=3)
    assert _bodies(read) == [b"4", b"5", b"6"]
    assert admin.read_messages("spans", 0, 10, broker=queue.broker_name) == []
    assert _bodies(admin.find_messages("spans", max_count=2)) == [b"9", b"8"]
    first = read[0].store_timestamp
    spanned = _bodies(admin.find_messages("spans", begin_ms=first))
    assert spanned[0] == b"9"
    assert b"4" in spanned
    assert admin.find_messages("spans", begin_ms=read[-1].store_timestamp + 3_600_000) == []
    with pytest.raises(ConfigError, match="from 2 to 1 ms: it ends before it begins"):
        admin.find_messages("spans", begin_ms=2, end_ms=1)
    for key in ("", "a b", " a"):
        with pytest.raises(ConfigError, match=f"key '{key}': wanted one of the words"):
            admin.find_messages("spans", key=key)
    for options in ({}, {"key": "a"}):
        with pytest.raises(
            TopicNotExistError, match="queue 9 of topic spans: it has 1 read queues"
        ):
            admin.find_messages("spans", queue_id=9, **options)
    with pytest.raises(ConfigError, match="index 1000000000000000000000: wanted a number of 64"):
        admin.read_messages("spans", 0, 10**21, broker=queue.broker_name)


def test_message_larger_than_an_answer_comes_in_pieces(
    admin: shmq.Admin, client: shmq.Client, runtime: Path
) -> None:
    body = os.urandom(3 << 20)
    result = client.producer().send("large", body, keys="big")
    assert admin.get_message(result.message_id).body == body
    with (
        RuntimeFolder.open(runtime) as folder,
        Connection(
            folder,
            broker_socket_name(result.message_queue.broker_name, 0),
            role="test",
            timeout_s=60.0,
        ) as connection,
    ):
        at = admin.get_message(result.message_id).physical_offset
        fields = {"offset": at, "begin": 0}
        answer = connection.call(Command(RequestCode.VIEW_MESSAGE_BY_ID, fields), timeout_s=60.0)
        assert len(answer.body) <= 512 << 10
        fields = {"offset": at + 100}
        answer = connection.invoke(Command(RequestCode.VIEW_MESSAGE_BY_ID, fields), timeout_s=60.0)
        assert answer.code == ResponseCode.QUERY_NOT_FOUND
        for wrong in ({"offset": -1}, {"offset": at, "size": 1 << 30}, {"offset": "x"}, {}):
            command = Command(RequestCode.VIEW_MESSAGE_BY_ID, wrong)
            answer = connection.invoke(command, timeout_s=60.0)
            assert answer.code == ResponseCode.INVALID_PARAMETER
        for wrong in (
            {"topic": "large", "maxNum": 5000},
            {"key": "k"},
            {"topic": "large", "queueId": -2},
        ):
            command = Command(RequestCode.QUERY_MESSAGE, wrong)
            answer = connection.invoke(command, timeout_s=60.0)
            assert answer.code == ResponseCode.INVALID_PARAMETER


def test_message_is_sent_again_as_a_new_one(
    admin: shmq.Admin, client: shmq.Client, runtime: Path
) -> None:
    client.create_topic("again", queues=1)
    result = client.producer().send(
        "again", b"body", tag="t", keys=["k1"], properties={"colour": "red"}, flag=3
    )
    message = admin.get_message(result.message_id)
    sent = admin.resend_message(message)
    copy = admin.get_message(sent.message_id)
    assert copy.message_id != message.message_id
    assert (copy.topic, copy.body, copy.tag, copy.keys, copy.flag) == (
        "again",
        b"body",
        "t",
        ("k1",),
        3,
    )
    assert copy.properties["colour"] == "red"
    client.create_topic("elsewhere", queues=1)
    printed = _cli(
        runtime, "msg", "resend", result.message_id, "--to", "elsewhere", "--yes", "--json"
    )
    [row] = orjson.loads(printed)["messages"]
    assert (row["originMessageId"], row["topic"]) == (result.message_id, "elsewhere")
    assert admin.get_message(row["messageId"]).body == b"body"
    assert "--yes" in _cli(runtime, "msg", "resend", result.message_id, code=64)


def test_command_line_finds_and_shows(
    admin: shmq.Admin, client: shmq.Client, runtime: Path
) -> None:
    client.create_topic("shown", queues=1)
    producer = client.producer()
    queue = producer.queues("shown")[0]
    ids = [
        producer.send("shown", f"body \x1b[31m {n}", keys=f"key-{n}", queue=queue).message_id
        for n in range(4)
    ]
    table = _cli(runtime, "msg", "find", "shown", "-k", "key-2")
    assert ids[2] in table
    assert ids[1] not in table
    assert "\x1b" not in table
    shown = _cli(runtime, "msg", "get", ids[2], ids[3])
    assert f"id:              {ids[2]}" in shown
    assert "\x1b" not in shown
    rows = orjson.loads(_cli(runtime, "msg", "find", "shown", "--json", "-c", "2"))["messages"]
    assert [row["messageId"] for row in rows] == [ids[3], ids[2]]
    offset = ("-o", "1", "-q", "0", "-b", queue.broker_name)
    assert _cli(runtime, "msg", "find", "shown", *offset, "-f", "%i ") == "".join(
        f"{each} " for each in ids[1:]
    )
    place = f"{queue.broker_name}@{rows[0]['physicalOffset']}"
    assert orjson.loads(_cli(runtime, "msg", "get", place, "--json"))["messages"] == [rows[0]]
    assert _cli(runtime, "msg", "find", "shown", "--to", "@-1h", "-f", "%i") == ""
    assert ids[0] in _cli(runtime, "msg", "find", "shown", "--from", "@-1h")
    assert "--queue" in _cli(runtime, "msg", "find", "shown", "-o", "1", code=64)
    assert "--broker" in _cli(runtime, "msg", "find", "shown", "-o", "1", "-q", "0", code=64)


# ---- offsets -------------------------------------------------------------------------------------


def _group(admin: shmq.Admin, name: str) -> str:
    admin.create_group(SubscriptionGroupConfig(group_name=name))
    return name


def _next_offsets(admin: shmq.Admin, group: str, topic: str) -> list[tuple[str, int, int]]:
    return [(r.broker_name, r.queue_id, r.consumer_offset) for r in admin.lag(group, topic=topic)]


def test_lag_is_told_in_messages_and_in_time(
    admin: shmq.Admin, client: shmq.Client, runtime: Path
) -> None:
    client.create_topic("late", queues=1)
    producer = client.producer()
    queue = producer.queues("late")[0]
    group = _group(admin, "slow")
    producer.send("late", b"0", queue=queue)
    first = admin.find_messages("late")[0].store_timestamp
    newest = first
    while newest == first:  # until the broker's clock has moved on
        producer.send("late", b"n", queue=queue)
        newest = admin.find_messages("late")[0].store_timestamp
    admin.reset_offset(group, "late", whence="first")
    [row] = [r for r in admin.lag(group, topic="late") if r.broker_name == queue.broker_name]
    assert row.lag >= 2
    assert newest - first <= row.lag_ms <= time.time_ns() // 1_000_000 - first
    assert "LAG (S)" in _cli(runtime, "group", "lag", group)
    admin.reset_offset(group, "late", whence="last")
    assert {(r.lag, r.lag_ms) for r in admin.lag(group, topic="late")} == {(0, 0)}


def test_group_skips_what_waits_for_it_while_a_member_is_there(
    admin: shmq.Admin, client: shmq.Client, runtime: Path
) -> None:
    client.create_topic("heap", queues=1)
    producer = client.producer()
    for number in range(50):
        producer.send("heap", b"old %d" % number)
    with client.consumer("heap", group="skipper") as consumer:
        assert consumer.try_next(10.0) is not None
        said = _cli(runtime, "group", "skip", "skipper", "-t", "heap", "--yes")
        assert "skipped" in said
        seen: list[bytes] = []
        for number in range(4):
            producer.send("heap", b"new %d" % number)

        def receive() -> bool:
            seen.extend(message.body_bytes for message in consumer.receive(100, timeout=0.2))
            return sum(body.startswith(b"new") for body in seen) == 4

        wait_until(receive)
        consumer.receive(1, timeout=0.0)  # settles what was received
        wait_until(lambda: all(row.lag == 0 for row in admin.lag("skipper", topic="heap")))


def test_group_goes_on_where_another_one_is(
    admin: shmq.Admin, client: shmq.Client, runtime: Path
) -> None:
    client.create_topic("shared", queues=2)
    producer = client.producer()
    for number in range(40):
        producer.send("shared", b"%d" % number)
    source, target = _group(admin, "blue"), _group(admin, "green")
    for queue in producer.queues("shared"):
        admin.reset_offset(
            source,
            "shared",
            whence="offset",
            queue_offset=queue.queue_id + 1,
            queue_id=queue.queue_id,
            brokers=[queue.broker_name],
        )
    assert {offset for _, _, offset in _next_offsets(admin, target, "shared")} <= {-1}
    done = admin.clone_offsets(source, target)
    assert sorted(row[1:] for row in done) == sorted(_next_offsets(admin, source, "shared"))
    assert _next_offsets(admin, target, "shared") == _next_offsets(admin, source, "shared")
    third = _group(admin, "third")
    printed = _cli(runtime, "group", "clone", source, third, "-t", "shared", "--yes", "--json")
    assert len(orjson.loads(printed)["queues"]) == 4
    assert _next_offsets(admin, third, "shared") == _next_offsets(admin, source, "shared")
    with pytest.raises(ConfigError, match="itself"):
        admin.clone_offsets(source, source)
    with pytest.raises(SubscriptionGroupNotExistError):
        admin.clone_offsets(source, "nobody")


def test_clone_takes_what_a_living_member_has_done_and_tells_those_of_the_target(
    admin: shmq.Admin, client: shmq.Client
) -> None:
    client.create_topic("moving", queues=1)
    producer = client.producer()
    queue = producer.queues("moving")[0]
    for number in range(10):
        producer.send("moving", b"%d" % number, queue=queue)
    ready = threading.Event()
    with (
        client.consumer("moving", group="ahead") as ahead,
        client.consumer("moving", group="behind") as behind,
    ):
        seen: list[bytes] = []
        while len(seen) < 10:
            for message in ahead.receive(10, timeout=5.0):
                seen.append(message.body_bytes)
                message.settle()
        first = behind.try_next(10.0)
        assert first is not None
        ready.set()
        admin.clone_offsets("ahead", "behind", topic="moving")
        producer.send("moving", b"after", queue=queue)
        late: list[bytes] = []

        def receive() -> bool:
            late.extend(message.body_bytes for message in behind.receive(100, timeout=0.2))
            return b"after" in late

        wait_until(receive)
    offsets = _next_offsets(admin, "behind", "moving")
    assert max(offset for _, _, offset in offsets) >= 10
