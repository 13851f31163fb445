"""MessageFinder: what it makes of the answers of several brokers."""

from collections.abc import Callable

import orjson
import pytest

from shmq.client.message_finder import MessageFinder
from shmq.client.stored_message import StoredMessage
from shmq.errors import (
    ConfigError,
    CorruptMessageError,
    MessageNotFoundError,
    ServiceNotAvailableError,
    TopicNotExistError,
)
from shmq.remoting.codes import RequestCode, ResponseCode
from shmq.remoting.command import Command, error_response, response_to
from tests.unit.store.stores import HOST_V6, encode

Answer = Callable[[Command], Command]
RECORD = encode(
    topic="orders",
    queue_id=2,
    queue_offset=5,
    position=0,
    body=b"body",
    properties=b"UNIQ_KEY\x01ID\x02KEYS\x01a b\x02PGROUP\x01p\x02DELAY\x013\x02x\x01y\x02",
)
OFFSET_ID = "7F00000100002A9F0000000000000000"


def _finder(**brokers: Answer) -> MessageFinder:
    return MessageFinder(lambda name, command: brokers[name](command), lambda: sorted(brokers))


def _has(record: bytes, *, times: tuple[int, ...] = (), piece: int = 1 << 20) -> Answer:
    """A broker with one record at 0, which an index knows under any key, once for each time."""

    def answer(command: Command) -> Command:
        if command.code == RequestCode.QUERY_MESSAGE:
            found = [
                {"physicalOffset": 0, "size": len(record), "storeTimestamp": time} for time in times
            ]
            return response_to(command, body=orjson.dumps({"messages": found}))
        if command.ext_fields["offset"] != 0:
            return response_to(command, code=ResponseCode.QUERY_NOT_FOUND, remark="nothing there")
        begin = command.ext_fields["begin"]
        assert isinstance(begin, int)
        body = record[begin : begin + piece]
        return response_to(command, ext_fields={"size": len(record)}, body=body)

    return answer


def test_record_comes_in_pieces_of_any_size() -> None:
    for piece in (1, 7, len(RECORD) - 1, len(RECORD)):
        message = _finder(a=_has(RECORD, piece=piece)).at("a", 0)
        assert (message.topic, message.queue_id, message.queue_offset) == ("orders", 2, 5)
        assert (message.body, message.keys, message.message_id) == (b"body", ("a", "b"), "ID")


def test_record_that_changed_on_its_way_is_refused() -> None:
    broken = RECORD.replace(b"body", b"bodY")
    with pytest.raises(CorruptMessageError, match="broker a"):
        _finder(a=_has(broken)).at("a", 0)


def test_broker_that_says_nothing_more_does_not_hold_the_caller() -> None:
    def empty(command: Command) -> Command:
        return response_to(command, ext_fields={"size": 100})

    with pytest.raises(MessageNotFoundError):
        _finder(a=empty).at("a", 0)


def test_of_several_messages_with_one_id_the_first_that_was_stored_is_given() -> None:
    finder = _finder(a=_has(RECORD, times=(30, 20)), b=_has(RECORD, times=(10,)))
    assert finder.get("ID", topic=None, broker=None).broker_name == "b"
    assert finder.get("ID", topic=None, broker="a").broker_name == "a"


def test_offset_id_that_two_brokers_wrote_is_asked_back() -> None:
    finder = _finder(a=_has(RECORD), b=_has(RECORD))
    with pytest.raises(ConfigError, match="a, b each have one"):
        finder.get(OFFSET_ID, topic=None, broker=None)
    assert finder.get(OFFSET_ID, topic=None, broker="b").broker_name == "b"
    other = _finder(a=_has(RECORD))
    for wrong in ("7F00000200002A9F0000000000000000", OFFSET_ID[:-1] + "1", "F" * 32, "zz" * 16):
        with pytest.raises(MessageNotFoundError):
            other.get(wrong, topic=None, broker=None)
    with pytest.raises(MessageNotFoundError, match="in topic paid"):
        other.get(OFFSET_ID, topic="paid", broker=None)


def test_offset_id_of_a_host_with_ipv6_has_56_digits() -> None:
    record = encode(
        topic="orders", queue_id=0, queue_offset=0, position=0, body=b"six", sys_flag=0x20
    )
    message = _finder(a=_has(record)).get(f"{HOST_V6.hex()}{0:016x}", topic=None, broker=None)
    assert message.body == b"six"
    assert message.store_host == "[1:203:405:607:809:a0b:c0d:e0f]:10911"


def test_without_an_index_an_offset_id_still_leads_to_its_message() -> None:
    with_frame = _has(RECORD)

    def no_index(command: Command) -> Command:
        if command.code == RequestCode.QUERY_MESSAGE:
            return error_response(command, ServiceNotAvailableError("no index"))
        return with_frame(command)

    finder = _finder(a=no_index)
    assert finder.get(OFFSET_ID, topic=None, broker=None).body == b"body"
    with pytest.raises(ServiceNotAvailableError, match="no index"):
        finder.get("ID", topic=None, broker=None)


def test_topic_that_one_of_two_brokers_has_is_looked_for_there() -> None:
    def unknown(command: Command) -> Command:
        return error_response(command, TopicNotExistError("no such topic"))

    wanted = {"key": "a", "begin_ms": 0, "end_ms": 1, "queue_id": None, "broker": None}
    found = _finder(a=unknown, b=_has(RECORD, times=(1,))).find(
        "orders",
        **wanted,
        message_count=3,  # type: ignore[arg-type]
    )
    assert [message.broker_name for message in found] == ["b"]
    with pytest.raises(TopicNotExistError):
        _finder(a=unknown, c=unknown).find("orders", **wanted, message_count=3)  # type: ignore[arg-type]


def test_what_is_sent_again_leaves_out_what_only_shmq_may_say() -> None:
    message = StoredMessage.of_record(RECORD, broker_name="a", physical_offset=0)
    assert message.properties["PGROUP"] == "p"
    assert message.sendable_properties() == {"x": "y"}
    assert message.origin_topic == "orders"
    retry = message._replace(topic="%RETRY%g", properties={"RETRY_TOPIC": "orders"})
    assert retry.origin_topic == "orders"
    dead = message._replace(topic="%DLQ%g", properties={"DLQ_ORIGIN_TOPIC": "orders"})
    assert dead.origin_topic == "orders"
    assert message._replace(topic="%DLQ%g", properties={}).origin_topic == "%DLQ%g"
