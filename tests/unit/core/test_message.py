"""Message: what may be made to be sent, and what a received one says of its frame."""

import copy
import gc
import pickle
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from shmq import errors
from shmq.core import core
from tests.support.golden_frames import GOLDEN, golden
from tests.unit.core.log_in_memory import BORN_TIMESTAMP, FILE_SIZE, STORE_TIMESTAMP, LogInMemory

READABLE = [path for path in GOLDEN if golden(path)[0].get("status") == "OK"]

# --- made to be sent ------------------------------------------------------------------------------


def test_made_message_shows_what_it_was_made_of() -> None:
    message = core.Message(
        "TopicA", b"body", tag="red", keys=["k1", "k2"], properties={"a": "b"}, flag=-7
    )
    assert message.topic == "TopicA"
    assert bytes(message) == message.body_bytes == bytes(message.body) == b"body"
    assert message.tag == "red"
    assert message.keys == ("k1", "k2")
    assert message.properties == {"a": "b", "TAGS": "red", "KEYS": "k1 k2"}
    assert message.flag == -7
    assert len(message) == 4
    assert repr(message) == "<Message topic='TopicA' body=4 bytes>"


def test_message_without_extras_has_none() -> None:
    message = core.Message("TopicA", b"")
    assert message.tag is None
    assert message.keys == ()
    assert message.properties == {}
    assert message.flag == 0


def test_message_with_an_empty_body_is_true() -> None:
    assert len(core.Message("TopicA", b"")) == 0
    assert core.Message("TopicA", b"")


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (b"bytes", b"bytes"),
        (bytearray(b"bytearray"), b"bytearray"),
        (memoryview(b"view"), b"view"),
        ("strüng", "strüng".encode()),
        (np.array([1, 2], dtype="<u2"), b"\x01\x00\x02\x00"),
    ],
)
def test_body_may_be_any_buffer_or_text(body: object, wanted: bytes) -> None:
    assert bytes(core.Message("TopicA", body)) == wanted  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "body",
    [None, 17, 1.5, ["a"], {"a": 1}, object(), "\ud800", memoryview(b"abcd")[::2]],
    ids=lambda value: re.sub(r" at 0x\w+", "", repr(value)),  # the same in every process
)
def test_body_of_another_kind_is_refused_with_a_hint(body: object) -> None:
    with pytest.raises(errors.BodyTypeError, match="body: ") as refused:
        core.Message("TopicA", body)  # type: ignore[arg-type]
    assert isinstance(refused.value, TypeError)
    assert refused.value.hint


def test_array_that_is_not_contiguous_is_refused_with_the_remedy() -> None:
    with pytest.raises(errors.BodyTypeError, match="ascontiguousarray"):
        core.Message("TopicA", np.arange(10)[::2])
    with pytest.raises(errors.BodyTypeError, match="serialise"):
        core.Message("TopicA", np.array([object()]))
    with pytest.raises(errors.BodyTypeError, match="serialise"):
        core.Message("TopicA", memoryview(np.array([object()])))
    structured = np.zeros(2, dtype=[("Offset", "<i4"), ("O", "<i4")])  # names only
    assert len(core.Message("TopicA", structured)) == 16


@pytest.mark.parametrize(
    "extras",
    [
        {"tag": ""},
        {"tag": "a\x00b"},
        {"tag": "a\x01b"},
        {"tag": "a\x02b"},
        {"tag": 5},
        {"tag": "\ud800"},
        {"tag": "a||b"},
        {"keys": [""]},
        {"keys": ["two words"]},
        {"keys": [b"bytes"]},
        {"keys": 5},
        {"properties": {"": "x"}},
        {"properties": {"x": ""}},
        {"properties": {"x\x01": "y"}},
        {"properties": {"x": "y\x02"}},
        {"properties": {"x": "y\x00"}},
        {"properties": {"x": 1}},
        {"properties": {1: "x"}},
        {"properties": 5},
        {"properties": "ab"},
    ],
    ids=repr,
)
def test_illegal_property_is_refused(extras: dict[str, object]) -> None:
    with pytest.raises(errors.IllegalPropertyError) as refused:
        core.Message("TopicA", b"", **extras)  # type: ignore[arg-type]
    assert refused.value.hint


@pytest.mark.parametrize("name", ["__CRC32#", "RETRY_TOPIC", "TRAN_MSG", "PGROUP", "POP_CK"])
def test_reserved_property_name_is_refused(name: str) -> None:
    with pytest.raises(errors.ReservedPropertyError, match=name):
        core.Message("TopicA", b"", properties={name: "x"})


@pytest.mark.parametrize(("name", "argument"), [("TAGS", "tag"), ("KEYS", "keys")])
def test_property_with_an_argument_of_its_own_is_refused(name: str, argument: str) -> None:
    with pytest.raises(errors.ReservedPropertyError, match=f"{name}.*the argument {argument}$"):
        core.Message("TopicA", b"", properties={name: "x"})


def test_properties_may_fill_their_room_and_not_one_byte_more() -> None:
    room = 32767 - 20 - 42  # the length field, the broker's CRC, the unique key
    filled = {"name": "x" * (room - len("name") - 2)}
    core.Message("TopicA", b"", properties=filled)
    filled["name"] += "x"
    with pytest.raises(errors.PropertiesTooLargeError):
        core.Message("TopicA", b"", properties=filled)
    with pytest.raises(errors.PropertiesTooLargeError):
        core.Message("TopicA", b"", properties={"name": "x" * 100_000})
    with_own_key = {"UNIQ_KEY": "u", "name": "x" * (room + 42 - 10 - 1 - len("name") - 2 + 0)}
    core.Message("TopicA", b"", properties=with_own_key)


def test_explicit_tag_and_keys_win_over_those_among_the_properties() -> None:
    message = core.Message(
        "TopicA", b"", tag="new", keys="n", properties={"TAGS": "old", "KEYS": "o", "x": "y"}
    )
    assert message.properties == {"TAGS": "new", "KEYS": "n", "x": "y"}


def test_keys_as_one_text_are_split_at_spaces() -> None:
    assert core.Message("TopicA", b"", keys="a b").keys == ("a", "b")


def test_own_unique_key_is_the_message_id() -> None:
    assert core.Message("TopicA", b"", properties={"UNIQ_KEY": "mine"}).message_id == "mine"


@pytest.mark.parametrize("name", ["queue_id", "queue_offset", "size", "message_id", "sys_flag"])
def test_made_message_has_nothing_that_only_the_broker_knows(name: str) -> None:
    with pytest.raises(AttributeError, match=name):
        getattr(core.Message("TopicA", b""), name)


def test_message_cannot_be_changed() -> None:
    message = core.Message("TopicA", b"body")
    with pytest.raises(AttributeError):
        message.topic = "other"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        message.more = 1  # type: ignore[attr-defined]
    assert message.body.readonly
    message.properties["a"] = "b"  # a dict of the caller's own
    assert message.properties == {}


def test_body_that_could_be_resized_is_held() -> None:
    body = bytearray(b"body")
    message = core.Message("TopicA", body)
    with pytest.raises(BufferError):
        body.append(1)
    del message
    body.append(1)


def test_message_is_not_pickled_or_copied() -> None:
    message = core.Message("TopicA", b"body")
    for refused in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=r"bytes\(message\)"):
            refused(message)


# --- numpy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype="<f4").reshape(3, 4),
        np.arange(3, dtype=">i8"),
        np.array(7, dtype="<i4"),
        np.zeros((0, 5), dtype="<f8"),
        np.array(["2026-11-20", "2026-11-21"], dtype="<M8[D]"),
        np.array([True, False]),
        np.array([b"ab", b"c"], dtype="S2"),
    ],
    ids=lambda array: f"{array.dtype.str}{array.shape}",
)
def test_array_comes_back_with_dtype_and_shape(array: np.ndarray, log: LogInMemory) -> None:
    made = core.Message("TopicA", array)
    for message in (made, log.message(bytes(made), made.properties)):
        again = message.array()
        assert again.dtype == array.dtype
        assert again.shape == array.shape
        assert np.array_equal(again, array)
        assert not again.flags.writeable


def test_array_of_a_plain_body_is_bytes(log: LogInMemory) -> None:
    array = log.message(b"\x01\x02").array()
    assert array.dtype == np.uint8
    assert array.tolist() == [1, 2]


def test_array_lies_in_the_mapped_segment(log: LogInMemory) -> None:
    message = log.message(bytes(64), {"__shmq_dtype": "<f8", "__shmq_shape": "8"})
    address = message.array().__array_interface__["data"][0]
    base = np.frombuffer(message.body, np.uint8).__array_interface__["data"][0]
    assert address == base
    start = log.reader.read_entries(log.entries[0], 0)[1][0].physical_offset
    assert (address - start) % 4096 == 88  # the body stands 88 bytes behind its frame's begin


def test_array_keeps_the_segment_mapped(log: LogInMemory) -> None:
    array = log.message(b"\x05" * 100).array()
    log.reader.close()
    log.log_map.close()
    gc.collect()
    assert set(array.tolist()) == {5}


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("|O", "1"), ("nonsense", "8"), ("<f8", "3"), ("<f8", "1,x"), ("<f8", ""), ("V0", "1")],
)
def test_dtype_and_shape_of_a_liar_are_refused(dtype: str, shape: str, log: LogInMemory) -> None:
    properties = {"__shmq_dtype": dtype} | ({"__shmq_shape": shape} if shape else {})
    message = log.message(bytes(8), properties)
    if not shape:
        assert message.array().dtype == np.uint8
        return
    with pytest.raises((ValueError, TypeError)):
        message.array()


# --- received -------------------------------------------------------------------------------------


def test_received_message_says_what_its_frame_says(log: LogInMemory) -> None:
    log.message()
    message = log.message(b"hello", {"TAGS": "red", "KEYS": "a b", "UNIQ_KEY": "U1", "x": "ü"})
    assert message.topic == "TopicA"
    assert bytes(message) == b"hello"
    assert message.tag == "red"
    assert message.keys == ("a", "b")
    assert message.properties == {"TAGS": "red", "KEYS": "a b", "UNIQ_KEY": "U1", "x": "ü"}
    assert message.message_id == "U1"
    assert message.queue_id == 3
    assert message.queue_offset == 1
    assert message.physical_offset == 91 + 6 + 4 + 20
    assert message.store_timestamp == STORE_TIMESTAMP
    assert message.born_timestamp == BORN_TIMESTAMP
    assert message.sys_flag == 0
    assert message.reconsume_times == 0
    assert message.flag == 0
    assert message.size == 91 + 6 + 5 + 20 + len("TAGS red KEYS a b UNIQ_KEY U1 x u ") + 1
    assert message.offset_message_id == "7F00000100002A9F0000000000000079"
    assert "queue_offset=1" in repr(message)


def test_message_without_unique_key_is_known_by_its_place(log: LogInMemory) -> None:
    message = log.message()
    assert message.message_id == message.offset_message_id


@pytest.mark.parametrize("path", READABLE, ids=lambda path: path.stem)
def test_every_golden_frame_is_read_field_by_field(path: Path) -> None:
    wanted, frame = golden(path)
    place = int(wanted["physical_offset"])
    with LogInMemory(1, begin_file=place // FILE_SIZE) as log:
        log.write(place, frame)
        log.map()
        entry = struct.pack("<QqQ", place, int(wanted["tags_code"]), len(frame))
        status, messages, _ = log.reader.read_entries(entry, int(wanted["queue_offset"]))
        assert status == 0
        (message,) = messages
        for name in ("queue_id", "flag", "queue_offset", "physical_offset", "sys_flag"):
            assert getattr(message, name) == int(wanted[name]), name
        for name in ("born_timestamp", "store_timestamp", "reconsume_times"):
            assert getattr(message, name) == int(wanted[name]), name
        assert message.size == int(wanted["total_size"])
        assert len(message) == int(wanted["body_size"])
        retry_topic = message.properties.get("RETRY_TOPIC")
        if retry_topic is None:
            assert len(message.topic.encode()) == int(wanted["topic_size"])
        else:
            assert message.topic == retry_topic
        assert message.offset_message_id == f"{wanted['store_host']}{place:016x}".upper()
        assert "__CRC32#" not in message.properties


def test_malformed_text_is_shown_with_replacement_characters(log: LogInMemory) -> None:
    frame = core.encode_frame(
        b"Topic\xff",
        queue_id=0,
        queue_offset=0,
        physical_offset=0,
        store_timestamp=0,
        sys_flag=0,
        born_timestamp=0,
        born_host=bytes(8),
        store_host=bytes(8),
        body=b"",
        properties=b"a\x01\xff\x02b\x01\x02\x01c\x02d\x02",
    )
    log.put_frame(frame)
    log.map()
    (message,) = log.read()
    assert message.topic == "Topic\ufffd"
    assert message.properties == {"a": "\ufffd"}  # pairs without a name or a value are dropped


def test_frame_that_is_damaged_inside_raises_and_does_not_crash(log: LogInMemory) -> None:
    message = log.message(b"x" * 50, {"a": "b"})
    log.write(84, b"\x7f\xff\xff\xff")  # the body's length
    for name in ("topic", "body", "tag", "properties", "queue_id", "message_id"):
        with pytest.raises(errors.CorruptMessageError, match="physical offset 0"):
            getattr(message, name)
    with pytest.raises(errors.CorruptMessageError):
        len(message)


def test_body_view_outlives_message_reader_and_map(log: LogInMemory) -> None:
    view = log.message(b"still here").body
    log.reader.close()
    log.log_map.close()
    gc.collect()
    assert bytes(view) == b"still here"


def test_messages_leave_no_reference_behind(log: LogInMemory) -> None:
    log.message()
    before = sys.getrefcount(core.Message), sys.getrefcount(log.log_map)
    messages = [log.read()[0] for _ in range(100)]
    views = [message.body for message in messages]
    during = sys.getrefcount(core.Message), sys.getrefcount(log.log_map)
    del messages, views
    after = sys.getrefcount(core.Message), sys.getrefcount(log.log_map)
    assert during == (before[0] + 100, before[1] + 100)
    assert after == before
    assert log.log_map.files()[0] == (0, False, 1)  # the reader's own pin
