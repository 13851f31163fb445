"""Index files: the same bytes for the same log, lookups that miss nothing, damage noticed."""

import os
import random
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmq.core import core
from shmq.errors import StoreCorruptError, StoreVersionError
from shmq.store import index_files
from shmq.store.index_files import IndexFile, Stopped, index_path, key_hash, write_index
from shmq.store.log_files import LogFiles
from tests.unit.store.stores import FILE_SIZE, Record, Writer

_MASK = (1 << 64) - 1
_FACTOR = 0x9E3779B97F4A7C15


def _mix(value: int, word: int) -> int:
    value = (value ^ word) * _FACTOR & _MASK
    return value ^ value >> 32


def _hash_part(value: int, data: bytes) -> int:
    whole = len(data) // 8 * 8
    for place in range(0, whole, 8):
        value = _mix(value, int.from_bytes(data[place : place + 8], "little"))
    return _mix(_mix(value, int.from_bytes(data[whole:], "little")), len(data))


def _keyed(writer: Writer, keys: str, unique: str, **options: object) -> Record:
    properties = f"UNIQ_KEY\x01{unique}\x02" + (f"KEYS\x01{keys}\x02" if keys else "")
    return writer.put(properties=properties.encode(), **options)  # type: ignore[arg-type]


def _full(tmp_path: Path) -> tuple[LogFiles, Writer, list[tuple[str, str, Record]]]:
    """A store whose first file is complete: (KEYS, UNIQ_KEY, record) of its messages."""
    writer = Writer(tmp_path)
    chance = random.Random(7)
    said = []
    while writer.position < FILE_SIZE:
        keys = " ".join(f"k{chance.randrange(60)}" for _ in range(chance.randrange(4)))
        unique = f"{chance.getrandbits(128):032X}"
        record = _keyed(writer, keys, unique, topic=f"topic-{chance.randrange(3)}")
        said.append((keys, unique, record))
    files = LogFiles(tmp_path, FILE_SIZE)
    return files, writer, [item for item in said if item[2].position < FILE_SIZE]


def _opened(files: LogFiles, file_position: int = 0) -> IndexFile:
    path = index_path(files.store_path, file_position)
    return IndexFile(path, file_position=file_position, file_size_bytes=FILE_SIZE)


def _places(file: IndexFile, hash_: int) -> Iterator[int]:
    below = 1 << 32
    while found := file.find(hash_, below=below):
        yield from (place for place, _ in found)
        below = found[-1][0]


def _read_all(files: LogFiles, hashes: list[int]) -> None:
    with _opened(files) as file:
        for page in range(file.header.page_count):
            file.page(page)
        for hash_ in hashes:
            file.find(hash_)


def test_hash_is_the_one_that_the_format_page_states() -> None:
    for topic, key in (("orders", "k"), ("a" * 300, "x" * 77), ("t", "12345678"), ("ü", "1234567")):
        wanted = _hash_part(_hash_part(0, topic.encode()), key.encode())
        assert key_hash(topic, key) == wanted
    assert key_hash(None, "ID") == _hash_part(_hash_part(0, b""), b"ID")
    assert key_hash("ab", "c") != key_hash("a", "bc")


def test_every_key_leads_to_its_messages_newest_first(tmp_path: Path) -> None:
    files, _, said = _full(tmp_path)
    write_index(files, 0)
    with _opened(files) as file:
        assert file.header.frame_count == len(said)
        assert file.header.entry_count == sum(1 + len(keys.split()) for keys, _, _ in said)
        for topic in {record.topic for _, _, record in said}:
            for number in range(60):
                wanted = [
                    record.position
                    for keys, _, record in said
                    for word in keys.split()
                    if record.topic == topic and word == f"k{number}"
                ]
                found = list(file.find(key_hash(topic, f"k{number}")))
                assert [place for place, _ in found] == sorted(wanted, reverse=True)
        for _, unique, record in said:
            assert file.find(key_hash(None, unique)) == [
                (record.position, record.store_timestamp // 1000)
            ]
        assert file.find(key_hash(None, "nobody has it")) == []
        assert file.header.first_store_timestamp == said[0][2].store_timestamp
        assert file.header.last_store_timestamp == said[-1][2].store_timestamp


def test_key_of_more_messages_than_a_page_holds_is_given_in_pieces(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    records = []
    while writer.position < FILE_SIZE:
        records.append(writer.put(body=b"", properties=b"KEYS\x01same other\x02"))
    files = LogFiles(tmp_path, FILE_SIZE)
    write_index(files, 0)
    wanted = [record.position for record in reversed(records) if record.position < FILE_SIZE]
    assert len(wanted) > 300
    with _opened(files) as file:
        assert list(_places(file, key_hash("orders", "same"))) == wanted
        assert list(_places(file, key_hash("orders", "other"))) == wanted


@pytest.mark.parametrize("entries_max", [1_000_000, 500, 64, 3])
def test_file_with_more_keys_than_fit_at_a_time_has_the_same_bytes(
    tmp_path: Path, entries_max: int
) -> None:
    files, _, _ = _full(tmp_path)
    write_index(files, 0)
    built: dict[int, bytes] = {}
    index_files.build(
        files, 0, write=lambda data, place: built.update({place: data}), entries_max=entries_max
    )
    whole = bytearray(max(place + len(data) for place, data in built.items()))
    for place, data in built.items():
        whole[place : place + len(data)] = data
    assert bytes(whole) == index_path(tmp_path, 0).read_bytes()
    assert index_files.is_same(files, 0)


def test_bodies_larger_than_a_window_are_passed_over(tmp_path: Path) -> None:
    size = 4 << 20
    writer = Writer(tmp_path, file_size=size)
    large = [
        _keyed(writer, f"large{n}", f"id{n}", body=bytes(600_000), topic="t" * (100 + 20 * n))
        for n in range(6)
    ]
    writer.roll()
    files = LogFiles(tmp_path, size)
    write_index(files, 0)
    with IndexFile(index_path(tmp_path, 0), file_position=0, file_size_bytes=size) as file:
        for n, record in enumerate(large):
            assert file.find(key_hash(record.topic, f"large{n}"))[0][0] == record.position


def test_ipv6_hosts_and_transactions_are_read_as_rocketmq_writes_them(tmp_path: Path) -> None:
    writer = Writer(tmp_path, has_record_crc=False)
    v6 = _keyed(writer, "six", "id6", sys_flag=0x30)
    prepared = _keyed(writer, "half", "id7", sys_flag=0x4)
    _keyed(writer, "undone", "id8", sys_flag=0xC)
    writer.roll()
    files = LogFiles(tmp_path, FILE_SIZE)
    write_index(files, 0)
    with _opened(files) as file:
        assert file.find(key_hash("orders", "six"))[0][0] == v6.position
        assert file.find(key_hash("orders", "half"))[0][0] == prepared.position
        assert file.find(key_hash("orders", "undone")) == []


def test_what_stands_behind_damage_is_indexed(tmp_path: Path) -> None:
    files, writer, said = _full(tmp_path)
    broken = said[len(said) // 2][2]
    writer.write(broken.position, bytes(8))  # neither size nor magic
    write_index(files, 0)
    with _opened(files) as file:
        found = {unique: file.find(key_hash(None, unique)) for _, unique, _ in said}
    lost = [unique for unique, places in found.items() if not places]
    assert lost == [unique for _, unique, record in said if record == broken]


def test_build_that_is_told_to_stop_leaves_nothing(tmp_path: Path) -> None:
    files, _, _ = _full(tmp_path)
    stop_fd = os.eventfd(1)
    try:
        with pytest.raises(Stopped):
            write_index(files, 0, is_idle=True, stop_fd=stop_fd)
    finally:
        os.close(stop_fd)
    assert os.listdir(index_path(tmp_path, 0).parent) == []


def test_build_in_idle_time_gives_the_same_and_leaves_the_caller_as_it_was(tmp_path: Path) -> None:
    files, _, _ = _full(tmp_path)
    before = os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)
    write_index(files, 0, is_idle=True)
    assert (os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)) == before
    assert index_files.is_same(files, 0)


def test_log_file_that_ends_early_is_no_crash(tmp_path: Path) -> None:
    files, _, _ = _full(tmp_path)
    fd = files.open(0, readonly=False)
    os.ftruncate(fd, FILE_SIZE // 2)
    with pytest.raises(OSError, match="error"):
        core.index_file(
            fd,
            file_position=0,
            file_size=FILE_SIZE,
            holes=(),
            low=0,
            high=_MASK,
            entry_limit=1 << 20,
            idle=False,
            stop_fd=-1,
        )
    os.close(fd)


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    files, _, said = _full(tmp_path)
    write_index(files, 0)
    path = index_path(tmp_path, 0)
    good = path.read_bytes()
    hashes = [key_hash(None, unique) for _, unique, _ in said]
    for place in range(0, len(good), 37):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x10]) + good[place + 1 :])
        with pytest.raises((StoreCorruptError, StoreVersionError)):
            _read_all(files, hashes)
        assert not index_files.is_same(files, 0)


@pytest.mark.parametrize("cut", [0, 1, 127, 128, 200, -1, -16, -17])
def test_file_that_is_cut_does_not_hold(tmp_path: Path, cut: int) -> None:
    files, _, _ = _full(tmp_path)
    write_index(files, 0)
    path = index_path(tmp_path, 0)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(StoreCorruptError), _opened(files):
        pass


def test_file_of_another_log_file_or_a_newer_shmq_is_refused(tmp_path: Path) -> None:
    files, _, _ = _full(tmp_path)
    write_index(files, 0)
    path = index_path(tmp_path, 0)
    shutil.copy(path, index_path(tmp_path, FILE_SIZE))
    with pytest.raises(StoreCorruptError, match="not of this CommitLog file"):
        _opened(files, FILE_SIZE)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 8, 2)
    struct.pack_into("<I", data, 124, zlib.crc32(data[:124]))
    path.write_bytes(data)
    with pytest.raises(StoreVersionError, match="format 2"):
        _opened(files)


def test_any_damage_of_a_log_file_leaves_an_index_of_what_still_holds(
    tmp_path: Path, rng: random.Random
) -> None:
    files, writer, said = _full(tmp_path)
    good = writer.path(0).read_bytes()
    for _ in range(60):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 6)):
            place = rng.randrange(len(data))
            size = rng.choice((1, 1, 4, 100, 5000))
            data[place : place + size] = rng.choice((bytes(size), rng.randbytes(size)))
        writer.path(0).write_bytes(data[:FILE_SIZE])
        write_index(files, 0)
        with _opened(files) as file:
            for _, unique, record in said:
                end = record.position + record.size
                if data[record.position : end] == good[record.position : end]:
                    found = file.find(key_hash(None, unique))
                    assert record.position in [place for place, _ in found]
