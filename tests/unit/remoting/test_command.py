"""Frames and commands: what goes in comes out, and nothing else is believed."""

import os
import random
import struct

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmq import errors
from shmq.errors import ConfigError, ProtocolError, ShmqError
from shmq.remoting.codes import RequestCode, ResponseCode, code_name
from shmq.remoting.command import (
    FIELDS_BYTES_MAX,
    FRAME_BYTES_MAX,
    HEAD,
    HEAD_BYTES,
    MAGIC,
    Command,
    FrameHead,
    FrameParser,
    encode,
    error_of,
    error_response,
    go_away,
    response_to,
)
from tests.support.scale import scaled

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=50),
)
commands = st.builds(
    Command,
    code=st.integers(-(2**31), 2**31 - 1),
    ext_fields=st.dictionaries(st.text(max_size=20), scalars, max_size=8),
    body=st.binary(max_size=500),
    remark=st.none() | st.text(max_size=50),
    opaque=st.integers(0, 2**32 - 1),
    is_response=st.booleans(),
)


def parsed(data: bytes, **options: int) -> list[Command]:
    parser = FrameParser(**options)
    parser.feed(data)
    found = []
    while (command := parser.next()) is not None:
        found.append(command)
    return found


def frame(
    *, fields: bytes = b"", body: bytes = b"", magic: int = MAGIC, flags: int = 0, fd_count: int = 0
) -> bytes:
    return HEAD.pack(magic, flags, fd_count, 7, 105, len(fields), len(body)) + fields + body


@given(commands)
def test_command_comes_out_as_it_went_in(command: Command) -> None:
    assert parsed(encode(command)) == [command]


@given(st.lists(commands, max_size=4), st.integers(1, 97))
def test_frames_may_arrive_in_pieces_of_any_size(sent: list[Command], piece_bytes: int) -> None:
    data = b"".join(map(encode, sent))
    parser = FrameParser()
    got = []
    for begin in range(0, len(data), piece_bytes):
        parser.feed(data[begin : begin + piece_bytes])
        while (command := parser.next()) is not None:
            got.append(command)
    assert got == sent
    assert parser.buffered_bytes == 0


@given(st.binary(max_size=200))
def test_bytes_of_no_sense_are_refused_or_wait_for_more(data: bytes) -> None:
    try:
        parsed(data)
    except ProtocolError:
        pass


def test_mutated_frames_are_refused_or_parsed_and_never_kept_beyond_their_limit(
    rng: random.Random,
) -> None:
    """Flips, cuts, joins and lies in the head, at random; the seed is the header's."""
    good = [
        encode(Command(105, {"topic": "t", "n": 1}, b"body", "remark", 5)),
        encode(Command(0, {"a": None}, opaque=9, is_response=True)),
        encode(Command(9001, is_oneway=True)),
    ]
    for _ in range(scaled(20_000, 2_000_000)):
        data = bytearray(b"".join(rng.choices(good, k=rng.randint(1, 3))))
        for _ in range(rng.randint(1, 6)):
            match rng.randrange(4):
                case 0 if data:
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
                case 1 if data:
                    data[rng.randrange(len(data))] = rng.choice((0, 0x7F, 0x80, 0xFF))
                case 2:
                    del data[rng.randrange(len(data) + 1) :]
                case 3:
                    at = rng.randrange(len(data) + 1)
                    data[at:at] = rng.randbytes(rng.randint(1, 8))
        parser = FrameParser(frame_bytes_max=1000)
        try:
            while data:
                parser.feed(bytes(data[:100]))
                del data[:100]
                while parser.next() is not None:
                    pass
                assert parser.buffered_bytes <= 1000 + HEAD_BYTES
        except ProtocolError:
            pass


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (frame(magic=0x1234), "magic 0x1234, wanted 0x5153"),
        (frame(flags=3), "flags 0x3"),
        (frame(flags=4), "flags 0x4"),
        (frame(fields=b"[]"), "fields are a list"),
        (frame(fields=b"null"), "fields are a NoneType"),
        (frame(fields=b"{"), "fields: "),
        (frame(fields=b'{"extFields": []}'), "wanted an object of texts and numbers"),
        (frame(fields=b'{"extFields": {"a": {}}}'), "wanted an object of texts and numbers"),
        (frame(fields=b'{"extFields": {"a": [1]}}'), "wanted an object of texts and numbers"),
        (frame(fields=b'{"remark": 1}'), "wanted a text"),
        (frame(fields=b"\xff"), "fields: "),
        (frame(fields=b'{"extFields":' * 500), "fields: "),
        (frame(fd_count=1), "1 descriptors announced, 0 came, 0 allowed"),
    ],
)
def test_frame_that_breaks_a_rule_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        parsed(data)
    assert said in str(caught.value)


@pytest.mark.parametrize("lengths", [(0, 2**32 - 1), (2**32 - 1, 0), (FIELDS_BYTES_MAX + 1, 0)])
def test_length_beyond_its_limit_is_refused_before_a_byte_of_it_came(
    lengths: tuple[int, int],
) -> None:
    with pytest.raises(ProtocolError, match="wanted at most"):
        parsed(HEAD.pack(MAGIC, 0, 0, 1, 105, *lengths))


def test_each_end_has_its_own_limit_for_a_frame() -> None:
    data = frame(body=bytes(1001))
    assert len(parsed(data)[0].body) == 1001
    with pytest.raises(ProtocolError, match="a body of 1001 bytes"):
        parsed(data, frame_bytes_max=1000)


def test_what_no_receiver_takes_is_not_encoded() -> None:
    with pytest.raises(ProtocolError, match="send GET_ROUTEINFO_BY_TOPIC: "):
        encode(Command(105, body=bytes(FRAME_BYTES_MAX + 1)))
    with pytest.raises(ProtocolError, match="wanted at most"):
        encode(Command(105, {"x": "y" * FIELDS_BYTES_MAX}))


def test_head_is_twenty_bytes_as_its_table_says() -> None:
    assert HEAD_BYTES == 20
    raw = encode(Command(200051, opaque=0xA1B2C3D4, is_oneway=True, body=b"xy"))
    assert raw == bytes.fromhex("5351 02 00 d4c3b2a1 730d0300 00000000 02000000") + b"xy"


# ---- descriptors ---------------------------------------------------------------------------------


def pipe_ends(count: int) -> list[int]:
    fds: list[int] = []
    while len(fds) < count:
        fds += os.pipe()
    return fds


def test_descriptors_go_to_the_frame_that_announced_them() -> None:
    fds = pipe_ends(4)
    parser = FrameParser(fd_limit=lambda _head: 2)
    parser.feed(frame(fd_count=2) + frame() + frame(fd_count=2), fds)
    assert [(parser.next() or Command(0)).fds for _ in range(3)] == [fds[:2], [], fds[2:]]
    for fd in fds:
        os.close(fd)


def test_limit_for_descriptors_is_asked_with_the_head() -> None:
    asked: list[FrameHead] = []
    parser = FrameParser(fd_limit=lambda head: asked.append(head) or 0)
    parser.feed(frame(fd_count=2), pipe_ends(2))
    with pytest.raises(ProtocolError, match="2 descriptors announced, 2 came, 0 allowed"):
        parser.next()
    parser.close()
    assert [(head.code, head.opaque, head.is_response) for head in asked] == [(105, 7, False)]


def test_descriptors_that_no_frame_claims_are_an_error_and_closed() -> None:
    parser = FrameParser(fd_limit=lambda _head: 9)
    parser.feed(frame(), pipe_ends(2))
    assert parser.next() is not None
    with pytest.raises(ProtocolError, match="2 descriptors with no frame"):
        parser.next()
    parser.close()


def test_flood_of_descriptors_is_bounded() -> None:
    parser = FrameParser(fd_limit=lambda _head: 255)
    fds = pipe_ends(FrameParser.FD_COUNT_MAX + 2)
    with pytest.raises(ProtocolError, match="descriptors that no frame has claimed"):
        parser.feed(frame(fd_count=255)[:10], fds)
    parser.close()


def test_command_closes_what_nobody_took() -> None:
    taken, left = os.pipe()
    command = Command(0, fds=[taken, left])
    assert command.take_fds() == (taken, left)
    command.close()
    os.close(taken)
    Command(0, fds=[left]).close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(left)


# ---- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", errors.TABLE, ids=lambda row: row.error.__name__)
def test_error_travels_as_its_class_message_and_hint(row: errors.ErrorRow) -> None:
    error = row.error("do x: seen 1, wanted 2", hint="ask the cook")
    request = Command(105, opaque=5)
    (received,) = parsed(encode(error_response(request, error)))
    assert (received.code, received.opaque, received.is_response) == (row.code, 5, True)
    again = error_of(received)
    assert type(again) is row.error
    assert (str(again), again.hint) == ("do x: seen 1, wanted 2", "ask the cook")


def test_success_is_no_error_and_a_foreign_code_the_class_that_has_it() -> None:
    request = Command(105)
    assert error_of(response_to(request)) is None
    topic = error_of(response_to(request, code=ResponseCode.TOPIC_NOT_EXIST, remark="no t"))
    assert type(topic) is errors.TopicNotExistError
    assert str(topic) == "no t"
    other = error_of(response_to(request, code=ResponseCode.POLLING_FULL))
    assert type(other) is ShmqError
    assert str(other) == "the answer is code 209, without a remark"


def test_go_away_tells_its_reason() -> None:
    error = error_of(go_away(errors.QuotaError("too many")))
    assert type(error) is errors.QuotaError
    assert str(error) == "too many"


def test_text_that_is_no_utf8_can_be_told_too() -> None:
    (received,) = parsed(encode(error_response(Command(1), ShmqError("file \udcff"))))
    assert received.remark == "file \\udcff"


def test_wrong_field_or_body_names_request_key_seen_and_wanted() -> None:
    command = Command(RequestCode.GET_ROUTEINFO_BY_TOPIC, {"topic": 5}, b"[]")
    with pytest.raises(ConfigError, match="^GET_ROUTEINFO_BY_TOPIC: topic: 5, wanted a text"):
        command.fields().text("topic")
    with pytest.raises(ConfigError, match="^GET_ROUTEINFO_BY_TOPIC: body: list, wanted a JSON obj"):
        command.json()
    command.body = b"{"
    with pytest.raises(ConfigError, match="^GET_ROUTEINFO_BY_TOPIC: body: .*; wanted a JSON obj"):
        command.json()
    command.body = orjson.dumps({"a": 1})
    assert command.json() == {"a": 1}


def test_codes_are_rocketmqs() -> None:
    """Against RocketMQ's RequestCode and ResponseCode, written down by hand."""
    assert (RequestCode.REGISTER_BROKER, RequestCode.GET_ROUTEINFO_BY_TOPIC) == (103, 105)
    assert (RequestCode.NOTIFY_CONSUMER_IDS_CHANGED, RequestCode.BROKER_HEARTBEAT) == (40, 904)
    assert (RequestCode.POP_MESSAGE, RequestCode.BATCH_ACK_MESSAGE) == (200050, 200151)
    assert (RequestCode.HEART_BEAT, RequestCode.QUERY_DATA_VERSION) == (34, 322)
    assert (ResponseCode.TOPIC_NOT_EXIST, ResponseCode.SYSTEM_BUSY) == (17, 2)
    assert (ResponseCode.REQUEST_CODE_NOT_SUPPORTED, ResponseCode.BROKER_NOT_EXIST) == (3, 211)
    assert (code_name(103), code_name(777)) == ("REGISTER_BROKER", "777")


def test_response_codes_agree_with_the_table_of_errors() -> None:
    names = {code.name: code.value for code in ResponseCode}
    assert {row.name: names[row.name] for row in errors.TABLE if row.name in names} == {
        row.name: row.code for row in errors.TABLE if row.name in names
    }


def test_head_struct_has_no_padding() -> None:
    assert struct.calcsize(HEAD.format) == sum(map(struct.calcsize, ("<H", "B", "B", "<4I")))
