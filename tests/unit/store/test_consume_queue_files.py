import os
import random
import struct
import zlib
from pathlib import Path

import pytest

from shmq.errors import StoreCorruptError, StoreVersionError
from shmq.store import consume_queue_files
from shmq.store.consume_queue_files import (
    ConsumeQueueFile,
    ConsumeQueueFiles,
    QueueKey,
    load_floors,
    save_floors,
)
from shmq.store.log_files import LogFiles
from shmq.store.recovery import open_consume_queues, scan_log_file
from shmq.store.scan import TopicNumbers
from tests.support import rocketmq_decoder
from tests.unit.store.stores import FILE_SIZE, Record, Writer

NO_CRC = 1 << 63


def _open(store: Path, end: int, *, record_crc_position: int = 0) -> ConsumeQueueFiles:
    files = LogFiles(store, FILE_SIZE)
    return open_consume_queues(files, end_position=end, record_crc_position=record_crc_position)


def _build(store: Path, file_position: int = 0, topics: TopicNumbers | None = None) -> bytes:
    topics = {} if topics is None else topics
    scan = scan_log_file(
        LogFiles(store, FILE_SIZE),
        file_position,
        topics=topics,
        trusted_end=file_position + FILE_SIZE,
        record_crc_position=0,
    )
    grouped = consume_queue_files.group(scan, topics)
    return consume_queue_files.encode(
        scan, grouped, file_size_bytes=FILE_SIZE, record_crc_position=0
    )


def _entries(view: memoryview) -> list[tuple[int, int, int]]:
    return list(struct.iter_unpack("<QqQ", view))


def _read_all(queues: ConsumeQueueFiles, topic: str, queue_id: int) -> dict[int, tuple[int, int]]:
    """queue_offset to (physical_offset, size), through many reads."""
    found = {}
    queue_offset = 0
    while (part := queues.read(topic, queue_id, queue_offset, 7)) is not None:
        queue_offset, view = part
        for physical_offset, _, size in _entries(view):
            found[queue_offset] = (physical_offset, size)
            queue_offset += 1
    return found


def _cold(writer: Writer) -> list[Record]:
    end = writer.position - writer.position % FILE_SIZE
    return [record for record in writer.records if record.position < end]


def test_every_message_of_complete_files_is_found_by_its_queue_offset(tmp_path: Path) -> None:
    writer = Writer(tmp_path).fill(2000)
    queues = _open(tmp_path, writer.position)
    assert len(queues.file_positions) >= 6
    wanted: dict[QueueKey, dict[int, tuple[int, int]]] = {}
    for record in _cold(writer):
        key = QueueKey(record.topic, record.queue_id)
        wanted.setdefault(key, {})[record.queue_offset] = (record.position, record.size)
    for key, queue in wanted.items():
        assert _read_all(queues, *key) == queue
        assert queues.min_queue_offset(*key) == 0
        assert queues.max_queue_offset(*key) == len(queue)
    assert {key for key, _, _ in queues.queues()} == wanted.keys()
    assert queues.read("nobody", 0, 0, 1) is None
    assert queues.min_queue_offset("nobody", 0) is None
    queues.close()


def test_tags_code_is_what_an_independent_decoder_hashes(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    while writer.position < FILE_SIZE:
        writer.put("t", 0, b"x" * 200, properties=f"TAGS\x01tag{writer.position}\x02".encode())
    queues = _open(tmp_path, writer.position)
    frames = rocketmq_decoder.decode_commit_log(tmp_path / "commitlog")
    codes = [frame.tags_code for frame in frames if frame.physical_offset < FILE_SIZE]
    part = queues.read("t", 0, 0, 100_000)
    assert part is not None
    assert [code for _, code, _ in _entries(part[1])] == codes
    queues.close()


def test_file_has_the_bytes_of_its_table(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.put("b", 1, b"one")
    writer.put("a", 0, b"two")
    writer.put("b", 1, b"three", sys_flag=0x4)
    writer.put("b", 1, b"four")
    writer.roll()
    one, two, _, four = writer.records
    entries = struct.pack("<QqQ", one.position, 0, one.size)
    entries += struct.pack("<QqQ", four.position, 0, four.size)
    b_crc = zlib.crc32(entries)
    a_entries = struct.pack("<QqQ", two.position, 0, two.size)
    begin = 128 + 2 + 2 * 64
    names = b"ab"
    directory = struct.pack(
        "<IIIIQQQqqQ",
        *(0, 1, 0, zlib.crc32(a_entries)),
        *(0, 1, begin, two.store_timestamp, two.store_timestamp, 0),
    )
    directory += struct.pack(
        "<IIIIQQQqqQ",
        *(1, 1, 1, b_crc, 0, 2, begin + 24, one.store_timestamp, four.store_timestamp, 0),
    )
    header = struct.pack(
        "<8sIIQQQQQQQqIIQ",
        *(b"shmqcqfl", 1, 128, 0, FILE_SIZE, four.position + four.size, 0),
        *(4, 3, 0, four.store_timestamp, 2, 2, 0),
    )
    header += bytes(24) + struct.pack("<I", zlib.crc32(names + directory))
    header += struct.pack("<I", zlib.crc32(header))
    assert _build(tmp_path) == header + names + directory + a_entries + entries


def test_bytes_of_a_file_follow_from_its_log_file_alone(tmp_path: Path) -> None:
    """Recovery scans file after file and numbers topics as they come; who builds one file anew
    begins with it. fsck compares the two.
    """
    Writer(tmp_path).fill(2000)
    alone = _build(tmp_path, FILE_SIZE)
    assert _build(tmp_path, FILE_SIZE, {b"topic-2": 0, b"other": 1, b"topic-1": 2}) == alone


def test_prepared_and_rolled_back_messages_are_in_no_queue(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    for sys_flag in (0, 4, 8, 12, 0):
        writer.put("t", 0, sys_flag=sys_flag)
    writer.roll()
    queues = _open(tmp_path, FILE_SIZE)
    kept = [writer.records[index] for index in (0, 2, 4)]
    assert _read_all(queues, "t", 0) == {
        record.queue_offset: (record.position, record.size) for record in kept
    }
    queues.close()


def test_damaged_message_is_a_hole_of_size_zero(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    while writer.position < FILE_SIZE:
        writer.put("t", 0, b"x" * 300)
    victim, behind = writer.records[5:7]
    writer.damage(victim)
    told: list[object] = []
    files = LogFiles(tmp_path, FILE_SIZE)
    queues = open_consume_queues(
        files, end_position=FILE_SIZE, record_crc_position=0, on_damage=told.extend
    )
    part = queues.read("t", 0, 4, 3)
    assert part is not None
    assert _entries(part[1])[1] == (behind.position, 0, 0)
    assert len(told) == 1
    with ConsumeQueueFile(queues.path(0), file_position=0, file_size_bytes=FILE_SIZE) as file:
        assert file.find("t", 0)[0].hole_count == 1
    queues.close()


def test_offsets_that_jump_further_than_damage_explains_begin_a_run_of_their_own(
    tmp_path: Path,
) -> None:
    writer = Writer(tmp_path, has_record_crc=False)
    for queue_offset in (5, 6, 2**40, 2**40 + 1):
        writer.put("t", 0, queue_offset=queue_offset)
    writer.roll()
    queues = _open(tmp_path, FILE_SIZE, record_crc_position=NO_CRC)
    assert sorted(_read_all(queues, "t", 0)) == [5, 6, 2**40, 2**40 + 1]
    part = queues.read("t", 0, 7, 10)
    assert part is not None
    assert part[0] == 2**40
    queues.close()


def test_repeated_offset_counts_once_and_first(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    for queue_offset in (0, 1, 1, 0, 2):
        writer.put("t", 0, queue_offset=queue_offset)
    writer.roll()
    for queue_offset in (1, 2, 3):
        writer.put("t", 0, queue_offset=queue_offset)
    writer.roll()
    queues = _open(tmp_path, 2 * FILE_SIZE)
    first = [writer.records[index] for index in (0, 1, 4, 7)]
    assert _read_all(queues, "t", 0) == {
        record.queue_offset: (record.position, record.size) for record in first
    }
    with ConsumeQueueFile(queues.path(0), file_position=0, file_size_bytes=FILE_SIZE) as file:
        assert file.header.repeated_count == 2
    queues.close()


def test_topic_that_is_no_text_survives(tmp_path: Path) -> None:
    writer = Writer(tmp_path, has_record_crc=False)
    writer.put("x" * 3)
    data = writer.read(0, 200).replace(b"\x03xxx", b"\x03\xff\xfe\x00", 1)
    writer.write(0, data)
    writer.roll()
    queues = _open(tmp_path, FILE_SIZE, record_crc_position=NO_CRC)
    ((key, low, high),) = queues.queues()
    assert consume_queue_files.topic_bytes(key.topic) == b"\xff\xfe\x00"
    assert (low, high) == (0, 1)
    assert queues.read(key.topic, 0, 0, 1) is not None
    queues.close()


def test_every_flipped_bit_of_a_file_is_found_and_the_file_built_anew(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.put("a", 0)
    writer.put("b", 0)
    writer.put("a", 0)
    writer.roll()
    good = _build(tmp_path)
    path = tmp_path / "x.cq"
    for bit in range(len(good) * 8):
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(StoreCorruptError):
            _check_whole(path)
    path.write_bytes(good)
    _check_whole(path)
    queues = _open(tmp_path, FILE_SIZE)
    wanted = _read_all(queues, "a", 0)
    queues.close()
    for place in (10, 140, len(good) - 5):
        flipped = bytearray(good)
        flipped[place] ^= 1
        queues.path(0).write_bytes(flipped)
        queues = _open(tmp_path, FILE_SIZE)
        found = {key: _read_all(queues, *key) for key in (("a", 0), ("b", 0))}
        assert found["a", 0] == wanted
        assert queues.rebuilt_count == 1
        assert queues.path(0).read_bytes() == good
        queues.close()


def _check_whole(path: Path) -> None:
    with ConsumeQueueFile(path, file_position=0, file_size_bytes=FILE_SIZE) as file:
        for run in file.runs:
            file.check(run)


def test_file_of_another_log_file_or_size_is_refused(tmp_path: Path) -> None:
    Writer(tmp_path).fill(400)
    path = tmp_path / "x.cq"
    path.write_bytes(_build(tmp_path))
    for position, size in ((FILE_SIZE, FILE_SIZE), (0, 2 * FILE_SIZE)):
        with pytest.raises(StoreCorruptError, match="not of this CommitLog file"):
            ConsumeQueueFile(path, file_position=position, file_size_bytes=size)
    data = path.read_bytes()
    for cut in (0, 100, 127, 128, 200, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(StoreCorruptError):
            ConsumeQueueFile(path, file_position=0, file_size_bytes=FILE_SIZE)
    newer = bytearray(data)
    newer[8] = 2
    newer[124:128] = struct.pack("<I", zlib.crc32(newer[:124]))
    path.write_bytes(newer)
    with pytest.raises(StoreVersionError, match="format 2"):
        ConsumeQueueFile(path, file_position=0, file_size_bytes=FILE_SIZE)


def test_any_bytes_are_a_file_or_an_error(tmp_path: Path, rng: random.Random) -> None:
    Writer(tmp_path).fill(400)
    good = _build(tmp_path)
    path = tmp_path / "x.cq"
    for _ in range(300):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 5)):
            data[rng.randrange(512)] = rng.randrange(256)
        data[124:128] = struct.pack("<I", zlib.crc32(data[:124]))
        path.write_bytes(data)
        try:
            _check_whole(path)
        except (StoreCorruptError, StoreVersionError):
            continue


def test_files_beyond_the_limit_are_closed_and_opened_again(tmp_path: Path) -> None:
    writer = Writer(tmp_path).fill(2000)
    files = LogFiles(tmp_path, FILE_SIZE)
    queues = _open(tmp_path, writer.position)
    queues.close()
    few = ConsumeQueueFiles(
        tmp_path,
        file_size_bytes=FILE_SIZE,
        rebuild=lambda position: pytest.fail(f"{position} was whole"),
        open_files_max=2,
    )
    before = len(os.listdir("/proc/self/fd"))
    for log in files.files()[:-1]:
        few.add(log.file_position)
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    for key, low, high in few.queues():
        assert sorted(_read_all(few, *key)) == list(range(low, high))
    few.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_retention_takes_a_file_and_remembers_how_far_its_queues_were(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.put("old", 0)
    writer.put("old", 0)
    writer.fill(1500)
    files = LogFiles(tmp_path, FILE_SIZE)
    queues = _open(tmp_path, writer.position)
    queues.expire(0)
    files.delete(0)
    assert not queues.path(0).exists()
    assert queues.read("old", 0, 0, 1) is None
    floors = load_floors(queues.floors_path)
    assert floors["old", 0] == 2
    first = min(
        record.queue_offset
        for record in writer.records
        if record.position >= FILE_SIZE and (record.topic, record.queue_id) == ("topic-1", 2)
    )
    assert queues.min_queue_offset("topic-1", 2) == first
    part = queues.read("topic-1", 2, 0, 1)
    assert part is not None
    assert part[0] == first
    queues.close()
    again = _open(tmp_path, writer.position)
    assert again.min_queue_offset("topic-1", 2) == first
    again.close()


def test_floors_survive_their_file_and_tell_of_damage(tmp_path: Path) -> None:
    path = tmp_path / "queue_floors.json"
    assert load_floors(path) == {}
    floors = {QueueKey("b", 1): 7, QueueKey("b", 12): 0, QueueKey("%RETRY%g", 0): 2**50}
    save_floors(path, floors)
    assert load_floors(path) == floors
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreCorruptError):
        load_floors(path)
