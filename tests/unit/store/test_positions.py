import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from shmq.errors import StoreCorruptError, StoreVersionError
from shmq.store import positions
from shmq.store.positions import SLOT_SIZE, Positions

FIRST = Positions(
    flushed_position=0x1122334455,
    min_position=65536,
    store_generation=0xAABBCCDDEEFF0011,
    boot_id=bytes(range(16)),
    store_timestamp=1_788_220_800_123,
    file_size_bytes=65536,
    record_crc_position=4711,
    is_clean=True,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "positions"


def test_slot_has_the_bytes_of_its_table(path: Path) -> None:
    positions.save(path, FIRST, durable=True)
    data = path.read_bytes()
    slot = (
        b"shmqposi"
        + struct.pack("<IIQQQQ", 1, 1, 1, 0x1122334455, 65536, 0xAABBCCDDEEFF0011)
        + bytes(range(16))
        + struct.pack("<QQQ", 1_788_220_800_123, 65536, 4711)
    )
    slot += bytes(4092 - len(slot))
    slot += struct.pack("<I", zlib.crc32(slot))
    assert data == bytes(SLOT_SIZE) + slot


def test_newest_write_is_read(path: Path) -> None:
    assert positions.load(path) is None
    last = FIRST
    for number in range(5):
        last = positions.save(path, replace(last, flushed_position=number), durable=number % 2 == 0)
        assert positions.load(path) == last
        assert path.stat().st_size == 2 * SLOT_SIZE


def test_every_flipped_bit_is_found_and_the_other_slot_used(path: Path) -> None:
    old = positions.save(path, FIRST, durable=True)
    new = positions.save(path, replace(old, flushed_position=99), durable=True)
    data = path.read_bytes()
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        found = positions.newest(positions.decode(bytes(flipped), path), path)
        hit_old = bit < SLOT_SIZE * 8
        assert (old.sequence & 1, new.sequence & 1) == (1, 0)
        wanted = old if hit_old else new  # slot 0 holds the second write
        assert found == replace(wanted, is_clean=False), bit


def test_torn_write_leaves_the_one_before(path: Path) -> None:
    old = positions.save(path, FIRST, durable=True)
    before = path.read_bytes()
    positions.save(path, replace(old, flushed_position=99), durable=True)
    after = path.read_bytes()
    for cut in range(0, SLOT_SIZE, 64):
        torn = after[:cut] + before[cut:]
        found = positions.newest(positions.decode(torn, path), path)
        assert found.flushed_position == (FIRST.flushed_position if torn != after else 99)


def test_slot_that_was_wiped_is_told_from_one_never_written(path: Path) -> None:
    once = positions.save(path, FIRST, durable=True)
    found = positions.load(path)
    assert found is not None
    assert found.is_clean
    positions.save(path, once, durable=True)
    data = path.read_bytes()
    path.write_bytes(data[:SLOT_SIZE] + bytes(SLOT_SIZE))
    found = positions.load(path)
    assert found is not None
    assert not found.is_clean


def test_both_slots_damaged_is_an_error_that_names_file_and_reasons(path: Path) -> None:
    positions.save(path, positions.save(path, FIRST, durable=True), durable=True)
    data = bytearray(path.read_bytes())
    data[30] ^= 1
    data[SLOT_SIZE + 30] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreCorruptError, match="slot 0: CRC .* slot 1: CRC") as caught:
        positions.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("size", [0, 1, SLOT_SIZE, 2 * SLOT_SIZE - 1])
def test_cut_file_is_an_error(path: Path, size: int) -> None:
    positions.save(path, FIRST, durable=True)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(StoreCorruptError, match=f"{size} bytes, wanted 8192"):
        positions.load(path)


def test_newer_format_is_refused(path: Path) -> None:
    positions.save(path, FIRST, durable=True)
    data = bytearray(path.read_bytes())
    data[SLOT_SIZE + 8] = 2
    data[-4:] = struct.pack("<I", zlib.crc32(data[SLOT_SIZE:-4]))
    path.write_bytes(data)
    with pytest.raises(StoreVersionError, match="format 2"):
        positions.load(path)
