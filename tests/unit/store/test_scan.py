import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmq.core import core
from shmq.errors import StoreError
from shmq.store import scan
from shmq.store.scan import FileScan, Identity, Row, ScanEnd, TopicNumbers, iter_rows, scan_file
from tests.support import rocketmq_decoder
from tests.support.scale import is_full_run, scaled
from tests.unit.store.stores import BASE_MS, FILE_SIZE, Record, Writer, blank, encode

ALL_TRUSTED = 1 << 62
NO_CRC = 1 << 63


@pytest.fixture(params=["whole file", "small windows"])
def windows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seams between windows at every few frames must not be seen."""
    if request.param == "small windows":
        monkeypatch.setattr(scan, "WINDOW_BYTES", 700)


def _scan(
    writer: Writer,
    position: int = 0,
    *,
    trusted_end: int = ALL_TRUSTED,
    record_crc_position: int = 0,
    topics: TopicNumbers | None = None,
) -> FileScan:
    fd = os.open(writer.path(position), os.O_RDONLY)
    try:
        return scan_file(
            fd,
            file_position=position - position % writer.file_size,
            file_size_bytes=writer.file_size,
            topics={} if topics is None else topics,
            trusted_end=trusted_end,
            record_crc_position=record_crc_position,
        )
    finally:
        os.close(fd)


def _positions(found: FileScan) -> list[int]:
    return [row.physical_offset for row in iter_rows(found.rows)]


def _wanted(records: list[Record], *without: Record) -> list[int]:
    return [record.position for record in records if record not in without]


@pytest.mark.usefixtures("windows")
def test_rows_are_what_an_independent_decoder_reads(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    for number in range(40):
        tag = f"TAGS\x01tag-{number % 3} é\U0001f600\x02".encode()
        writer.put("orders", number % 3, b"x" * number * 40, properties=tag)
    topics: TopicNumbers = {}
    found = _scan(writer, topics=topics, trusted_end=writer.position)
    frames = list(rocketmq_decoder.decode_commit_log(tmp_path / "commitlog"))
    assert len(frames) == 40
    assert list(iter_rows(found.rows)) == [
        Row(
            frame.physical_offset,
            frame.queue_offset,
            frame.store_timestamp,
            frame.tags_code,
            frame.total_size,
            frame.queue_id,
            0,
            0,
        )
        for frame in frames
    ]
    assert topics == {b"orders": 0}
    assert (found.end, found.end_position) == (ScanEnd.EMPTY, writer.position)
    assert found.damages == ()


@pytest.mark.usefixtures("windows")
def test_every_kind_of_record_is_walked(tmp_path: Path) -> None:
    writer = Writer(tmp_path, has_record_crc=False)
    writer.put("t", 0, b"", properties=b"")
    writer.put("x" * 200, 2**31 - 1, b"v2")
    writer.put("t", 0, b"hosts", sys_flag=0x30)
    writer.put("t", 0, b"prepared", sys_flag=0x4)
    writer.put("t", 0, b"no last separator", properties=b"TAGS\x01a\x02KEYS\x01k")
    writer.put("t", 0, b"tag last, no separator", properties=b"KEYS\x01k\x02TAGS\x01a")
    found = _scan(writer, trusted_end=writer.position, record_crc_position=NO_CRC)
    assert _positions(found) == _wanted(writer.records)
    rows = list(iter_rows(found.rows))
    assert [row.sys_flag for row in rows] == [0, 0, 0x30, 0x4, 0, 0]
    assert [row.tags_code for row in rows] == [0, 0, 0, 0, ord("a"), ord("a")]


def test_scheduled_message_carries_the_time_it_is_due(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    for delay in (b"1", b"3", b"18", b"99", b"0", b"x"):
        writer.put("SCHEDULE_TOPIC_XXXX", 0, properties=b"DELAY\x01" + delay + b"\x02TAGS\x01a\x02")
    writer.put("orders", 0, properties=b"DELAY\x013\x02TAGS\x01a\x02")
    found = _scan(writer, trusted_end=writer.position)
    codes = [row.tags_code - row.store_timestamp for row in iter_rows(found.rows)][:4]
    assert codes == [1_000, 10_000, 7_200_000, 7_200_000]
    assert [row.tags_code for row in iter_rows(found.rows)][4:] == [97, 97, 97]


def test_complete_file_ends_with_its_blank_frame(tmp_path: Path) -> None:
    writer = Writer(tmp_path).fill(400)
    found = _scan(writer, 0)
    assert found.end is ScanEnd.BLANK
    last = [record for record in writer.records if record.position < FILE_SIZE][-1]
    assert found.end_position == last.position + last.size
    assert _scan(writer, FILE_SIZE).file_position == FILE_SIZE


def test_smallest_blank_frame_fits_behind_the_last_record(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    rest = encode(topic="orders", queue_id=0, queue_offset=0, position=0, body=b"")
    writer.put(body=b"x" * (FILE_SIZE - 8 - len(rest)))
    writer.roll()
    found = _scan(writer, 0)
    assert (found.end, found.end_position, found.row_count) == (ScanEnd.BLANK, FILE_SIZE - 8, 1)


@pytest.mark.usefixtures("windows")
@pytest.mark.parametrize(
    ("at", "reason"),
    [
        (0, "CUT"),
        (3, "BODY_SIZE"),
        (4, "MAGIC"),
        (9, "BODY_CRC"),
        (15, "RECORD_CRC"),
        (22, "RECORD_CRC"),
        (30, "PHYSICAL_OFFSET"),
        (58, "RECORD_CRC"),
        (87, "PROPERTIES_SIZE"),
        (95, "BODY_CRC"),
        (-1, "RECORD_CRC"),
        (-20, "NO_RECORD_CRC"),
        (-21, "RECORD_CRC"),
    ],
)
def test_damaged_record_is_one_hole_and_the_rest_is_kept(
    tmp_path: Path, at: int, reason: str
) -> None:
    writer = Writer(tmp_path)
    for number in range(20):
        writer.put("orders", number % 2, bytes([number]) * 100)
    victim = writer.records[7]
    writer.damage(victim, at=at % victim.size)
    found = _scan(writer, trusted_end=writer.position)
    (damage,) = found.damages
    assert (damage.position, damage.size) == (victim.position, victim.size)
    assert damage.reason == reason
    assert _positions(found) == _wanted(writer.records, victim)


@pytest.mark.usefixtures("windows")
def test_damaged_body_leaves_the_message_its_name(tmp_path: Path) -> None:
    writer = Writer(tmp_path).fill(50)
    victim = writer.records[20]
    writer.damage(victim, at=90)
    (damage,) = _scan(writer, trusted_end=writer.position).damages
    assert damage.identity == Identity(victim.topic.encode(), victim.queue_id, victim.queue_offset)


@pytest.mark.usefixtures("windows")
def test_zeroed_page_takes_only_the_records_in_it(tmp_path: Path) -> None:
    writer = Writer(tmp_path).fill(200)
    writer.write(8192, bytes(4096))
    lost = [r for r in writer.records if r.position < 12288 and r.position + r.size > 8192]
    found = _scan(writer, trusted_end=writer.position)
    (damage,) = found.damages
    assert damage.position == lost[0].position
    assert damage.position + damage.size == lost[-1].position + lost[-1].size
    assert _positions(found) == _wanted(writer.records, *lost)


def test_hole_that_begins_with_zeros_is_told_from_the_end(tmp_path: Path) -> None:
    writer = Writer(tmp_path).fill(50)
    victim = writer.records[20]
    writer.write(victim.position, bytes(victim.size))
    (damage,) = _scan(writer, trusted_end=writer.position).damages
    assert (damage.position, damage.size, damage.reason) == (victim.position, victim.size, "ZEROS")
    ended = _scan(writer, trusted_end=victim.position)
    assert (ended.end, ended.end_position) == (ScanEnd.EMPTY, victim.position)


def test_damage_behind_what_is_trusted_is_the_tail(tmp_path: Path) -> None:
    writer = Writer(tmp_path).fill(50)
    victim = writer.records[20]
    writer.damage(victim)
    found = _scan(writer, trusted_end=victim.position)
    assert (found.end, found.end_position) == (ScanEnd.DAMAGE, victim.position)
    assert found.end_reason == "BODY_CRC"
    assert found.damages == ()


def test_hole_never_reaches_behind_what_is_trusted(tmp_path: Path) -> None:
    """What follows may be a tail with frames in it that the log never acknowledged."""
    writer = Writer(tmp_path).fill(50)
    victim, next_one = writer.records[20:22]
    writer.write(victim.position, b"\xff" * victim.size)
    writer.damage(next_one)
    found = _scan(writer, trusted_end=next_one.position)
    (damage,) = found.damages
    assert damage.position + damage.size == next_one.position
    assert (found.end, found.end_position) == (ScanEnd.DAMAGE, next_one.position)


def test_damaged_blank_frame_is_a_hole_to_the_end_of_the_file(tmp_path: Path) -> None:
    writer = Writer(tmp_path).fill(400)
    whole = _scan(writer, 0)
    for at in range(8):
        writer.damage(Record(whole.end_position, 8, "", 0, 0, b"", 0), at=at)
        found = _scan(writer, 0)
        (damage,) = found.damages
        assert (found.end, damage.position) == (ScanEnd.HOLE, whole.end_position)
        assert damage.position + damage.size == FILE_SIZE
        assert found.rows == whole.rows
        writer.damage(Record(whole.end_position, 8, "", 0, 0, b"", 0), at=at)


@pytest.mark.usefixtures("windows")
def test_copy_of_a_frame_in_a_damaged_body_is_not_taken_for_the_log(tmp_path: Path) -> None:
    """A producer knows where its message will lie and could hide a frame of another topic in it."""
    writer = Writer(tmp_path).fill(10)
    inner_position = writer.position + 88 + 16
    inner = encode(
        topic="secret", queue_id=0, queue_offset=0, position=inner_position, body=b"forged"
    )
    victim = writer.put("orders", 0, b"x" * 16 + inner + b"y" * 200)
    writer.fill(10, seed=2)
    writer.damage(victim, at=90)
    topics: TopicNumbers = {}
    found = _scan(writer, trusted_end=writer.position, topics=topics)
    assert b"secret" not in topics
    assert inner_position not in _positions(found)
    assert _positions(found) == _wanted(writer.records, victim)


def test_record_larger_than_a_window_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "WINDOW_BYTES", 512)
    writer = Writer(tmp_path)
    writer.put(body=b"a" * 30_000)
    victim = writer.put(body=b"b" * 20_000)
    writer.put(body=b"c" * 10_000)
    found = _scan(writer, trusted_end=writer.position)
    assert _positions(found) == _wanted(writer.records)
    writer.damage(victim, at=15_000)
    found = _scan(writer, trusted_end=writer.position)
    assert _positions(found) == _wanted(writer.records, victim)


def test_rocketmq_records_hold_where_no_record_crc_is_asked_for(tmp_path: Path) -> None:
    writer = Writer(tmp_path, has_record_crc=False).fill(20)
    ours_from = writer.position
    writer.has_record_crc = True
    writer.fill(20, seed=2)
    found = _scan(writer, trusted_end=writer.position, record_crc_position=ours_from)
    assert _positions(found) == _wanted(writer.records)
    strict = _scan(writer, trusted_end=writer.position)
    assert _positions(strict) == _wanted(writer.records[20:])


def test_record_crc_is_asked_for_from_its_position_on_and_not_a_window_later(
    tmp_path: Path,
) -> None:
    writer = Writer(tmp_path, has_record_crc=False).fill(5)
    ours_from = writer.position
    writer.has_record_crc = True
    writer.fill(5, seed=2)
    writer.has_record_crc = False
    victim = writer.put()
    writer.has_record_crc = True
    writer.fill(5, seed=3)
    found = _scan(writer, trusted_end=writer.position, record_crc_position=ours_from)
    assert [(damage.position, damage.reason) for damage in found.damages] == [
        (victim.position, "NO_RECORD_CRC")
    ]


def test_scan_reports_every_byte_it_passed(tmp_path: Path) -> None:
    writer = Writer(tmp_path).fill(400)
    writer.damage(writer.records[10])
    sizes: list[int] = []
    fd = os.open(writer.path(0), os.O_RDONLY)
    scan_file(
        fd,
        file_position=0,
        file_size_bytes=FILE_SIZE,
        topics={},
        trusted_end=ALL_TRUSTED,
        on_progress=sizes.append,
    )
    os.close(fd)
    assert sum(sizes) == _scan(writer, 0).end_position


def test_file_that_cannot_be_read_is_an_error_with_its_place(tmp_path: Path) -> None:
    writer = Writer(tmp_path).fill(10)
    fd = os.open(writer.path(0), os.O_WRONLY)
    with pytest.raises(StoreError, match="read the log at 0"):
        scan_file(fd, file_position=0, file_size_bytes=FILE_SIZE, topics={}, trusted_end=0)
    os.close(fd)
    os.truncate(writer.path(0), 100)
    with pytest.raises(StoreError, match="the file ends there"):
        _scan(writer)


# ---- every bit, any bytes ------------------------------------------------------------------------


def _bits(size: int, rng: random.Random) -> Iterator[int]:
    """Every bit in a full run, else one of each byte in a sample."""
    if is_full_run():
        return iter(range(size * 8))
    return (byte * 8 + rng.randrange(8) for byte in sorted(rng.sample(range(size), size // 12)))


@pytest.mark.timeout(1200)
def test_every_flipped_bit_of_a_record_costs_that_record_only(
    tmp_path: Path, rng: random.Random
) -> None:
    writer = Writer(tmp_path).fill(210)
    whole = writer.path(0).read_bytes()
    assert writer.position < FILE_SIZE
    by_byte = [record for record in writer.records for _ in range(record.size)]
    wanted = _wanted(writer.records)
    memory = os.memfd_create("bits")
    os.write(memory, whole)
    for bit in _bits(writer.position, rng):
        byte = bit // 8
        victim = by_byte[byte]
        os.pwrite(memory, bytes([whole[byte] ^ 1 << bit % 8]), byte)
        found = scan_file(
            memory,
            file_position=0,
            file_size_bytes=FILE_SIZE,
            topics={},
            trusted_end=writer.position,
        )
        os.pwrite(memory, whole[byte : byte + 1], byte)
        (damage,) = found.damages
        assert (damage.position, damage.size) == (victim.position, victim.size), bit
        index = wanted.index(victim.position)
        assert _positions(found) == wanted[:index] + wanted[index + 1 :], bit
        assert found.end_position == writer.position
    os.close(memory)


def test_any_bytes_are_walked_to_an_end(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 8192
    writer = Writer(tmp_path, file_size=size)
    while writer.position < 6000:
        writer.put("t", 0, rng.randbytes(rng.randrange(200)), sys_flag=rng.choice((0, 0, 0x30, 4)))
    writer.write(writer.position, blank(size - writer.position))
    whole = writer.path(0).read_bytes()
    memory = os.memfd_create("fuzz")
    for _ in range(scaled(1500, 200_000)):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 8)):
            place = rng.randrange(size)
            kind = rng.randrange(4)
            if kind == 0:
                data[place] = rng.randrange(256)
            elif kind == 1:
                data[place : place + 64] = bytes(min(64, size - place))
            elif kind == 2:
                data[place : place + 4] = rng.choice(
                    (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xda\xa3\x20\xa7", bytes(4))
                )
            else:
                other = rng.randrange(size)
                data[place : place + 200] = data[other : other + 200]
            data = (data + bytes(size))[:size]  # a copy may be shorter than what it replaces
        monkeypatch.setattr(scan, "WINDOW_BYTES", rng.choice((256, 1000, 1 << 20)))
        os.pwrite(memory, data, 0)
        trusted_end = rng.choice((0, 6000, size))
        found = scan_file(
            memory,
            file_position=0,
            file_size_bytes=size,
            topics={},
            trusted_end=trusted_end,
            record_crc_position=rng.choice((0, 3000, NO_CRC)),
        )
        place = 0
        spans = [(row.physical_offset, row.total_size) for row in iter_rows(found.rows)]
        spans += [(damage.position, damage.size) for damage in found.damages]
        for position, length in sorted(spans):
            assert position == place
            place += length
        assert place == found.end_position <= size
    os.close(memory)


# ---- the core's verbs ----------------------------------------------------------------------------


def test_verbs_refuse_places_outside_their_buffer() -> None:
    cases = [
        {"position": 10, "begin": 9, "end": 20, "file_end": 100},
        {"position": 10, "begin": 20, "end": 19, "file_end": 100},
        {"position": 10, "begin": 10, "end": 43, "file_end": 100},
        {"position": 10, "begin": 10, "end": 20, "file_end": 15},
        {"position": 2**63, "begin": 2**63, "end": 2**63, "file_end": 2**63},
    ]
    for case in cases:
        with pytest.raises(ValueError, match="scan: "):
            core.scan(bytes(32), topics={}, **case)
        with pytest.raises(ValueError, match="resync: "):
            core.resync(bytes(32), **case)


def test_topic_numbers_must_be_in_their_order() -> None:
    for topics in ({b"a": 1}, {"a": 0}, {b"a": 0, b"b": 0}, {b"a": None}):
        with pytest.raises((ValueError, TypeError)):
            core.scan(bytes(8), position=0, begin=0, end=8, file_end=8, topics=topics)


def test_frame_that_the_core_makes_is_one_for_the_independent_decoder() -> None:
    host = bytes([10, 1, 2, 3, 0, 0, 0x2A, 0x9F])
    for topic in (b"t", b"x" * 127, b"x" * 128):
        frame = core.encode_frame(
            topic,
            queue_id=7,
            queue_offset=2**40,
            physical_offset=4711,
            store_timestamp=BASE_MS,
            sys_flag=0xC,
            born_timestamp=BASE_MS - 5,
            born_host=host,
            store_host=host,
            body=b"lost",
            properties=b"A\x01b\x02",
        )
        seen = rocketmq_decoder.decode_frame(frame, physical_offset=4711)
        assert isinstance(seen, rocketmq_decoder.Frame)
        assert (seen.topic.encode(), seen.queue_id, seen.queue_offset) == (topic, 7, 2**40)
        assert (seen.body, seen.sys_flag, seen.store_timestamp) == (b"lost", 0xC, BASE_MS)
        assert seen.born_host == ("10.1.2.3", 10911)
        status, _, fields = core.parse_frame(frame, physical_offset=4711)
        assert status == 0
        assert fields is not None
        assert (fields["topic"], fields["body"]) == (topic, b"lost")
        status, reason, fields = core.parse_frame(frame, physical_offset=0)
        assert (core.MESSAGE_REASONS[reason][0], fields) == ("PHYSICAL_OFFSET", None)
        _, _, fields = core.parse_frame(frame, physical_offset=0, believe=True)
        assert fields is not None
        assert fields["queueId"] == 7


def test_frame_with_sizes_that_no_record_has_is_refused() -> None:
    good = {
        "queue_id": 0,
        "queue_offset": 0,
        "physical_offset": 0,
        "store_timestamp": 0,
        "sys_flag": 0,
        "born_timestamp": 0,
        "born_host": bytes(8),
        "store_host": bytes(8),
        "body": b"",
        "properties": b"",
    }
    assert core.encode_frame(b"t", **good)
    bad = [
        (b"", {}),
        (b"x" * 32768, {}),
        (b"t", {"born_host": bytes(20)}),
        (b"t", {"store_host": b""}),
        (b"t", {"properties": b"x" * 32748}),
        (b"t", {"sys_flag": 0x10}),
    ]
    for topic, change in bad:
        with pytest.raises(core.CoreError):
            core.encode_frame(topic, **{**good, **change})
