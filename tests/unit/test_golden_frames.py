"""The golden frames (golden/*.hex) and the independent decoder, each the other's judge.

A golden file was written by hand from the description of the format: `#=` lines say what a reader
must find, `@place` lines hold the bytes of one field each. tests/c/test_golden.c holds the core to
the same files. Apache RocketMQ 5.3.3 read them all; with forceVerifyPropCRC it takes the sealed
ones and refuses each of their flipped bits.
"""

import zlib
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.support.golden_frames import GOLDEN, golden, golden_frame
from tests.support.rocketmq_decoder import (
    Blank,
    Frame,
    FrameError,
    decode_commit_log,
    decode_frame,
    java_hash,
)

FILE_SIZE = 1024


def sealed() -> list[Path]:
    return [path for path in GOLDEN if golden(path)[0].get("record_crc", "none") != "none"]


def at(physical_offset: int, name: str = "v1_crc") -> bytes:
    """A sealed golden frame as it would stand at another place of the log."""
    data = bytearray(golden_frame(name))
    data[28:36] = physical_offset.to_bytes(8, "big")
    digits = f"{zlib.crc32(data[:-20]) & 0x7FFFFFFF:010d}"
    data[-11:-1] = digits[::-1].encode()
    return bytes(data)


def blank(room: int) -> bytes:
    return room.to_bytes(4, "big") + bytes.fromhex("cbd43194") + b"\xee" * (room - 8)


def file_of(start: int, *, is_last: bool) -> bytes:
    """A CommitLog file with three records, then BLANK, or zeros in the last one."""
    data = b""
    for _ in range(3):
        data += at(start + len(data))
    room = FILE_SIZE - len(data)
    return data + (bytes(room) if is_last else blank(room))


@pytest.fixture
def commit_log(tmp_path: Path) -> Path:
    for number in range(2):
        start = (5 + number) * FILE_SIZE
        tmp_path.joinpath(f"{start:020d}").write_bytes(file_of(start, is_last=number == 1))
    return tmp_path


def hex_host(host: tuple[str, int]) -> str:
    address, port = host
    return ip_address(address).packed.hex() + f"{port:08x}"


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_decoder_reads_the_golden_frame_as_written(path: Path) -> None:
    wanted, data = golden(path)
    frame = decode_frame(data, needs_record_crc=False)
    if wanted["status"] == "EMPTY":
        assert frame is None
        return
    if wanted["status"] == "BLANK":
        assert frame == Blank(int(wanted["total_size"]))
        return
    assert isinstance(frame, Frame)
    seen = {
        "status": "OK",
        "encode": wanted["encode"],
        "total_size": frame.total_size,
        "version": frame.version,
        "body_crc": frame.body_crc,
        "queue_id": frame.queue_id,
        "flag": frame.flag,
        "queue_offset": frame.queue_offset,
        "physical_offset": frame.physical_offset,
        "sys_flag": frame.sys_flag,
        "born_timestamp": frame.born_timestamp,
        "born_host": hex_host(frame.born_host),
        "store_timestamp": frame.store_timestamp,
        "store_host": hex_host(frame.store_host),
        "reconsume_times": frame.reconsume_times,
        "prepared_transaction_offset": frame.prepared_transaction_offset,
        "body_size": len(frame.body),
        "topic_size": len(frame.topic.encode()),
        "properties_size": len(frame.raw_properties),
        "record_crc": "none" if frame.record_crc is None else frame.record_crc,
        "tags_code": frame.tags_code,
    }
    assert {name: str(value) for name, value in seen.items()} == wanted


def test_decoder_reads_texts_and_properties() -> None:
    frame = decode_frame(golden_frame("v1_utf8"))
    assert isinstance(frame, Frame)
    assert frame.body.decode() == "grüße"
    assert frame.topic == "TopicTest"
    assert frame.properties["größe"] == "12½"
    assert frame.properties["TAGS"] == "消息🚀"
    assert frame.born_host == ("127.0.0.1", 50000)


@pytest.mark.parametrize("path", sealed(), ids=lambda path: path.stem)
def test_decoder_finds_every_flipped_bit_of_a_sealed_frame(path: Path) -> None:
    _, data = golden(path)
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            found = decode_frame(bytes(damaged))
        except FrameError:
            continue
        pytest.fail(f"bit {bit} flipped unnoticed: {found}")


def test_decoder_demands_the_crc_property_unless_told_otherwise() -> None:
    with pytest.raises(FrameError, match="no CRC property"):
        decode_frame(golden_frame("v1_plain"))


def test_decoder_compares_the_place() -> None:
    with pytest.raises(FrameError, match="physicalOffset 8192 at 8000"):
        decode_frame(golden_frame("v1_crc"), physical_offset=8000)


def test_commit_log_gives_all_records_in_order(commit_log: Path) -> None:
    offsets = [frame.physical_offset for frame in decode_commit_log(commit_log)]
    assert offsets == [5120, 5327, 5534, 6144, 6351, 6558]


def test_commit_log_ends_where_it_is_told(commit_log: Path) -> None:
    assert len(list(decode_commit_log(commit_log, end=6351))) == 4
    assert len(list(decode_commit_log(commit_log, end=5534))) == 2


def test_commit_log_without_blank_frame_is_refused(commit_log: Path) -> None:
    path = commit_log / f"{5120:020d}"
    path.write_bytes(file_of(5120, is_last=True))
    with pytest.raises(FrameError, match="bytes behind the end of the log"):
        list(decode_commit_log(commit_log))


def test_commit_log_with_a_stale_frame_behind_its_end_is_refused(commit_log: Path) -> None:
    path = commit_log / f"{6144:020d}"
    data = bytearray(path.read_bytes())
    data[900:904] = b"junk"
    path.write_bytes(data)
    with pytest.raises(FrameError, match="bytes behind the end of the log"):
        list(decode_commit_log(commit_log))


def test_commit_log_with_a_missing_or_short_file_is_refused(commit_log: Path) -> None:
    last = commit_log / f"{6144:020d}"
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(FrameError, match="of 1024 bytes"):
        list(decode_commit_log(commit_log))
    last.rename(commit_log / f"{7168:020d}")
    with pytest.raises(FrameError, match=f"not {6144:020d}"):
        list(decode_commit_log(commit_log))


def test_commit_log_with_a_blank_frame_of_the_wrong_size_is_refused(commit_log: Path) -> None:
    path = commit_log / f"{5120:020d}"
    data = bytearray(path.read_bytes())
    data[621:625] = (FILE_SIZE - 621 - 1).to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(FrameError, match="BLANK does not fill the file"):
        list(decode_commit_log(commit_log))


def test_commit_log_names_the_place_of_a_damaged_record(commit_log: Path) -> None:
    path = commit_log / f"{5120:020d}"
    data = bytearray(path.read_bytes())
    data[207 + 90] ^= 1
    path.write_bytes(data)
    with pytest.raises(FrameError, match=f"{5120:020d} at byte 207: bodyCRC"):
        list(decode_commit_log(commit_log))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", 0),
        ("hello", 99162322),
        ("polygenelubricants", -(2**31)),
        ("消息队列", 860276223),
        ("😀", 1772899),
    ],
)
def test_java_hash_is_javas(text: str, value: int) -> None:
    assert java_hash(text) == value
