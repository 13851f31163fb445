import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from shmq.errors import DiskFullError
from shmq.store import boot_files, config_files
from shmq.store.config_files import ConfigFiles, ConsumerOffsets
from shmq.store.consume_queue_files import QueueKey, save_floors
from shmq.store.index_files import index_path, is_same, write_index
from shmq.store.log_files import LogFiles
from shmq.store.positions import positions_path
from shmq.store.quarantine import Hole, Quarantine
from shmq.store.recovery import recover_files
from shmq.store.store_lock import StoreLock
from shmq.tools.fsck import fsck, main
from shmq.tools.fsck_findings import Loss, LostMessage
from shmq.tools.fsck_repair import LOST_PROPERTY, lost_records
from tests.support import rocketmq_decoder
from tests.support.mounts import small_file_system
from tests.support.repository import ROOT
from tests.support.scale import scaled
from tests.unit.store.stores import BASE_MS, FILE_SIZE, Record, Writer, all_bytes, commit_log_bytes
from tests.unit.store.test_recovery import _say_flushed


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    """A store as a broker leaves it after an orderly stop."""
    store = tmp_path / "store"
    writer = Writer(store).fill(700)
    _finish(writer)
    return writer


def _finish(writer: Writer) -> None:
    store = writer.store_path
    _say_flushed(store, writer.position)
    recover_files(store, FILE_SIZE).consume_queues.close()
    boot_files.make_abort(store)
    (store / "lock").write_bytes(b"lock")
    offsets = {"topic-1@group": {0: 3, 1: 2}}
    ConfigFiles(store).store(ConsumerOffsets(offsets=offsets))


def _json(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    code = main([*map(str, arguments), "--json"])
    report = orjson.loads(capsys.readouterr().out)
    assert report["exit_code"] == code
    return code, report


def _codes(report: dict[str, Any]) -> set[str]:
    return {finding["code"] for finding in report["findings"]}


def test_clean_store_is_clean_and_no_byte_is_written(
    writer: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    before = all_bytes(writer.store_path)
    code, report = _json(capsys, writer.store_path)
    assert (code, report["findings"], report["losses"]) == (0, [], [])
    assert report["record_count"] == 700
    assert report["end_position"] == writer.position
    assert report["queue_count"] == 12
    assert main([str(writer.store_path), "--repair"]) == 0
    assert all_bytes(writer.store_path) == before
    assert "clean: 4 files, 700 records, 12 queues" in capsys.readouterr().out


def test_json_has_its_keys(writer: Writer, capsys: pytest.CaptureFixture[str]) -> None:
    writer.damage(writer.records[3])
    _, report = _json(capsys, writer.store_path)
    assert list(report) == [
        "format_version",
        "store",
        "is_foreign",
        "file_size_bytes",
        "min_position",
        "end_position",
        "file_count",
        "record_count",
        "queue_count",
        "findings",
        "losses",
        "unusable",
        "exit_code",
    ]
    assert report["format_version"] == 1
    finding = report["findings"][0]
    assert list(finding) == [
        "code",
        "severity",
        "path",
        "message",
        "position",
        "size",
        "is_repaired",
    ]
    victim = writer.records[3]
    assert (finding["position"], finding["size"]) == (victim.position, victim.size)
    assert report["losses"] == [
        {
            "position": victim.position,
            "size": victim.size,
            "reason": "BODY_CRC",
            "messages": [
                {
                    "topic": victim.topic,
                    "queue_id": victim.queue_id,
                    "queue_offset": victim.queue_offset,
                }
            ],
            "kept_as": None,
        }
    ]


# ---- every kind of finding -----------------------------------------------------------------------


def _flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def _damage_record(writer: Writer) -> None:
    writer.damage(writer.records[100])


def _damage_blank(writer: Writer) -> None:
    last = [record for record in writer.records if record.position < FILE_SIZE][-1]
    writer.write(last.position + last.size + 4, b"\0")


def _dirty_tail(writer: Writer) -> None:
    writer.write(writer.position + 5, b"unfinished")


def _damage_slot(writer: Writer) -> None:
    path = positions_path(writer.store_path)
    _flip(path, 30)
    _flip(path, 4096 + 30)


def _damage_list(writer: Writer) -> None:
    Quarantine().save(Quarantine.path(writer.store_path))
    _flip(Quarantine.path(writer.store_path), 10)


def _list_no_hole(writer: Writer) -> None:
    wrong = Quarantine(holes=(Hole(0, 10, "MAGIC"),))
    wrong.save(Quarantine.path(writer.store_path))


def _cq(writer: Writer) -> Path:
    return writer.store_path / "shmq/consumequeue" / f"{0:020d}.cq"


def _drop_derived(writer: Writer) -> None:
    _cq(writer).unlink()


def _damage_derived(writer: Writer) -> None:
    _flip(_cq(writer), _cq(writer).stat().st_size - 3)


def _wrong_derived(writer: Writer) -> None:
    """A file that holds, of a log that another store has."""
    other = Writer(writer.store_path.parent / "other").fill(700, seed=9)
    _finish(other)
    shutil.copy(_cq(other), _cq(writer))


def _stale_derived(writer: Writer) -> None:
    shutil.copy(_cq(writer), _cq(writer).with_name(f"{99 * FILE_SIZE:020d}.cq"))


def _damage_index(writer: Writer) -> None:
    write_index(LogFiles(writer.store_path, FILE_SIZE), 0)
    _flip(index_path(writer.store_path, 0), 300)


def _wrong_index(writer: Writer) -> None:
    """One that holds, of the same place in another log."""
    other = Writer(writer.store_path.with_name("another")).fill(400, seed=9)
    write_index(LogFiles(other.store_path, FILE_SIZE), 0)
    path = index_path(writer.store_path, 0)
    path.parent.mkdir()
    shutil.copy(index_path(other.store_path, 0), path)


def _stale_index(writer: Writer) -> None:
    write_index(LogFiles(writer.store_path, FILE_SIZE), 0)
    os.rename(index_path(writer.store_path, 0), index_path(writer.store_path, 99 * FILE_SIZE))


def _damage_floors(writer: Writer) -> None:
    path = writer.store_path / "shmq/queue_floors.json"
    save_floors(path, {QueueKey("t", 0): 4})
    _flip(path, 30)


def _damage_config(writer: Writer) -> None:
    file = ConfigFiles(writer.store_path).file(ConsumerOffsets.FILE_NAME)
    file.load()
    file.store(ConsumerOffsets(offsets={"topic-1@group": {0: 4}}).to_dict())
    _flip(file.path, 40)


def _offset_ahead(writer: Writer) -> None:
    offsets = ConsumerOffsets(offsets={"topic-1@group": {0: 10**6, 1: 2}})
    ConfigFiles(writer.store_path).store(offsets)


def _damage_manifest(writer: Writer) -> None:
    (writer.store_path / "shmq/manifest.json").write_bytes(b"{}\n")


def _drop_abort(writer: Writer) -> None:
    (writer.store_path / "abort").unlink()


HARM: dict[str, Callable[[Writer], None]] = {
    "RECORD_DAMAGED": _damage_record,
    "BLANK_DAMAGED": _damage_blank,
    "TAIL_NOT_ZERO": _dirty_tail,
    "POSITIONS_DAMAGED": _damage_slot,
    "QUARANTINE_DAMAGED": _damage_list,
    "QUARANTINE_WRONG": _list_no_hole,
    "DERIVED_MISSING": _drop_derived,
    "DERIVED_DAMAGED": _damage_derived,
    "DERIVED_WRONG": _wrong_derived,
    "DERIVED_STALE": _stale_derived,
    "INDEX_DAMAGED": _damage_index,
    "INDEX_WRONG": _wrong_index,
    "INDEX_STALE": _stale_index,
    "FLOORS_DAMAGED": _damage_floors,
    "CONFIG_DAMAGED": _damage_config,
    "CONSUMER_OFFSET_AHEAD": _offset_ahead,
    "MANIFEST_DAMAGED": _damage_manifest,
    "ABORT_MISSING": _drop_abort,
}


@pytest.mark.parametrize("code", HARM)
def test_harm_is_found_mended_and_gone(
    writer: Writer, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    HARM[code](writer)
    before = all_bytes(writer.store_path)
    exit_code, report = _json(capsys, writer.store_path)
    assert exit_code == 1
    assert code in _codes(report)
    assert all_bytes(writer.store_path) == before, "a check writes nothing"
    exit_code, report = _json(capsys, writer.store_path, "--repair")
    assert exit_code == 2, report
    exit_code, report = _json(capsys, writer.store_path)
    assert (exit_code, report["findings"]) == (0, []), report
    after = all_bytes(writer.store_path)
    assert main([str(writer.store_path), "--repair"]) == 0
    assert all_bytes(writer.store_path) == after
    recovered = recover_files(writer.store_path, FILE_SIZE)
    recovered.consume_queues.close()
    assert recovered.end_position == writer.position
    assert recovered.holes == ()


def test_index_of_a_log_file_with_damage_stays_until_the_damage_is_mended(
    writer: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    files = LogFiles(writer.store_path, FILE_SIZE)
    write_index(files, 0)
    assert main([str(writer.store_path)]) == 0
    capsys.readouterr()
    damaged = writer.records[40]
    writer.write(damaged.position, bytes(8))
    _, report = _json(capsys, writer.store_path)
    assert not {code for code in _codes(report) if code.startswith("INDEX")}
    exit_code, _ = _json(capsys, writer.store_path, "--repair")
    assert exit_code == 2
    assert not index_path(writer.store_path, 0).exists()
    write_index(files, 0)
    assert is_same(files, 0)


@pytest.mark.parametrize(
    ("code", "harm"),
    [
        ("LOG_ILLEGAL", lambda writer: writer.path(FILE_SIZE).unlink()),
        ("LOG_ILLEGAL", lambda writer: os.truncate(writer.path(0), 100)),
        ("POSITIONS_AHEAD", lambda writer: writer.path(writer.position).unlink()),
    ],
)
def test_files_that_are_gone_are_found_and_nothing_is_written_over(
    writer: Writer,
    code: str,
    harm: Callable[[Writer], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    harm(writer)
    log = commit_log_bytes(writer.store_path)
    for arguments in ([], ["--repair"]):
        exit_code, report = _json(capsys, writer.store_path, *arguments)
        assert exit_code == 1
        assert code in _codes(report)
        assert commit_log_bytes(writer.store_path) == log


def test_config_without_a_backup_is_a_person_s_business(
    writer: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    path = writer.store_path / "config/topics.json"
    path.write_text('{"topicConfigTable":{"t":{"topicName":5}}}', encoding="utf-8")
    for arguments in ([], ["--repair"]):
        exit_code, report = _json(capsys, writer.store_path, *arguments)
        assert (exit_code, "CONFIG_DAMAGED" in _codes(report)) == (1, True)
    assert path.read_text(encoding="utf-8").startswith('{"topicConfigTable"')


def test_kept_bytes_that_are_gone_are_told(
    writer: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    _dirty_tail(writer)
    assert main([str(writer.store_path), "--repair"]) == 2
    (kept,) = (writer.store_path / "shmq/quarantine").glob("tail-*")
    kept.unlink()
    capsys.readouterr()
    code, report = _json(capsys, writer.store_path)
    assert (code, _codes(report)) == (1, {"KEPT_BYTES_MISSING"})


# ---- repair --------------------------------------------------------------------------------------


def _frames(store: Path) -> list[rocketmq_decoder.Frame]:
    return list(rocketmq_decoder.decode_commit_log(store / "commitlog"))


def _check_repaired(writer: Writer, victims: list[Record]) -> None:
    """All but the victims are byte for byte there, and every queue offset has a record."""
    lost = {record.position for record in victims}
    frames = {(f.topic, f.queue_id, f.queue_offset): f for f in _frames(writer.store_path)}
    for record in writer.records:
        frame = frames[record.topic, record.queue_id, record.queue_offset]
        if record.position in lost:
            assert LOST_PROPERTY in frame.properties or frame.body != record.body
        else:
            assert (frame.physical_offset, frame.body) == (record.position, record.body)


def test_lost_messages_become_records_that_say_so(writer: Writer) -> None:
    victims = [writer.records[index] for index in (0, 50, 51, 52, 400, 699)]
    for victim in victims:
        writer.damage(victim)
    report = fsck(writer.store_path, is_repairing=True)
    assert report.exit_code == 2
    lost = [message for loss in report.losses for message in loss.messages]
    assert lost == [LostMessage(v.topic, v.queue_id, v.queue_offset) for v in victims]
    _check_repaired(writer, victims)
    by_place = {frame.physical_offset: frame for frame in _frames(writer.store_path)}
    for victim, loss in zip(victims, report.losses, strict=True):
        frame = by_place[victim.position]
        assert frame.total_size == victim.size
        assert frame.body.startswith(b"shmq: lost to damage on disk (BODY_CRC)"[: len(frame.body)])
        kept = writer.store_path / "shmq/quarantine" / str(loss.kept_as)
        assert victim.body[3:] in kept.read_bytes()


def test_zeroed_pages_give_every_queue_its_offsets_back(writer: Writer) -> None:
    """Nothing is left of the headers: gaps and the derived file say what was there."""
    begin, end = 3 * 4096, 6 * 4096
    writer.write(begin, bytes(end - begin))
    writer.write(FILE_SIZE + 4096, bytes(4096))
    victims = [
        record
        for record in writer.records
        if (record.position < end and record.position + record.size > begin)
        or (record.position < FILE_SIZE + 8192 and record.position + record.size > FILE_SIZE + 4096)
    ]
    assert len(victims) > 40
    report = fsck(writer.store_path, is_repairing=True)
    assert report.exit_code == 2
    named = {message for loss in report.losses for message in loss.messages}
    assert named == {LostMessage(v.topic, v.queue_id, v.queue_offset) for v in victims}
    _check_repaired(writer, victims)
    assert fsck(writer.store_path).exit_code == 0


def test_without_derived_files_gaps_alone_name_what_was_lost(writer: Writer) -> None:
    for path in (writer.store_path / "shmq/consumequeue").iterdir():
        path.unlink()
    writer.write(8192, bytes(4096))
    victims = [r for r in writer.records if r.position < 12288 and r.position + r.size > 8192]
    report = fsck(writer.store_path, is_repairing=True)
    named = {message for loss in report.losses for message in loss.messages}
    assert named == {LostMessage(v.topic, v.queue_id, v.queue_offset) for v in victims}
    _check_repaired(writer, victims)


def test_derived_file_from_before_the_damage_names_what_nothing_else_does(
    tmp_path: Path,
) -> None:
    writer = Writer(tmp_path / "store").fill(20)
    lonely = [writer.put("lonely", 7), writer.put("lonely", 7)]
    writer.fill(400, seed=2)
    _finish(writer)
    for victim in lonely:
        writer.write(victim.position, b"\xff" * victim.size)
    report = fsck(writer.store_path, is_repairing=True)
    named = [message for loss in report.losses for message in loss.messages]
    assert named == [LostMessage("lonely", 7, 0), LostMessage("lonely", 7, 1)]
    _check_repaired(writer, lonely)


def test_hole_that_hides_nothing_known_is_filled_with_records_of_no_queue(
    tmp_path: Path,
) -> None:
    """The only messages of their queue: no gap, no header, no derived file speaks of them."""
    writer = Writer(tmp_path / "store").fill(20)
    lonely = writer.put("lonely", 0, b"x" * 3000)
    writer.fill(20, seed=2)
    _finish(writer)
    writer.write(lonely.position, b"\xff" * lonely.size)
    report = fsck(writer.store_path, is_repairing=True)
    assert (report.exit_code, report.losses[0].messages) == (2, ())
    frame = next(f for f in _frames(writer.store_path) if f.physical_offset == lonely.position)
    assert (frame.sys_flag, frame.total_size) == (0xC, lonely.size)
    after = fsck(writer.store_path)
    assert (after.exit_code, after.queue_count) == (0, len(writer.ends) - 1)


def test_damage_at_the_end_of_a_file_leaves_room_for_its_blank_frame(writer: Writer) -> None:
    last = [record for record in writer.records if record.position < FILE_SIZE][-1]
    writer.damage(last)
    writer.write(last.position + last.size, b"\xff" * 8)
    report = fsck(writer.store_path, is_repairing=True)
    assert report.exit_code == 2
    assert report.losses[0].messages == (LostMessage(last.topic, last.queue_id, last.queue_offset),)
    _check_repaired(writer, [last])


def test_what_holds_behind_damage_is_kept_though_the_next_start_would_cut_it(
    writer: Writer,
) -> None:
    victim = writer.records[690]
    writer.damage(victim)
    _say_flushed(writer.store_path, writer.records[650].position)
    found = fsck(writer.store_path)
    assert any("a repair keeps what follows" in finding.message for finding in found.findings)
    assert fsck(writer.store_path, is_repairing=True).exit_code == 2
    recovered = recover_files(writer.store_path, FILE_SIZE)
    recovered.consume_queues.close()
    assert recovered.end_position == writer.position
    _check_repaired(writer, [victim])


def test_messages_of_a_real_rocketmq_are_mended_too(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "store", has_record_crc=False).fill(700)
    (writer.store_path / "consumequeue/topic-1/0").mkdir(parents=True)
    assert fsck(writer.store_path).exit_code == 0
    assert not (writer.store_path / "shmq").exists()
    victim = writer.records[100]
    writer.damage(victim)
    report = fsck(writer.store_path)
    assert (report.exit_code, report.is_foreign) == (1, True)
    assert fsck(writer.store_path, is_repairing=True).exit_code == 2
    assert not (writer.store_path / "consumequeue").exists()
    assert fsck(writer.store_path).exit_code == 0
    frames = list(
        rocketmq_decoder.decode_commit_log(writer.store_path / "commitlog", needs_record_crc=False)
    )
    assert [frame.physical_offset for frame in frames] == [r.position for r in writer.records]


def test_queue_with_offsets_that_nothing_explains_is_told(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "store").fill(20)
    writer.put("topic-1", 1, queue_offset=1000)
    writer.put("topic-1", 1, queue_offset=1000)
    _finish(writer)
    report = fsck(writer.store_path, is_repairing=True)
    assert {str(finding.code) for finding in report.findings} >= {
        "QUEUE_OFFSET_MISSING",
        "QUEUE_OFFSET_REPEATED",
    }
    assert report.exit_code == 1


def test_repair_that_died_at_any_write_is_finished_by_the_next(
    tmp_path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    victims = [writer.records[index] for index in (100, 400)]
    for victim in victims:
        writer.damage(victim)
    _dirty_tail(writer)
    _offset_ahead(writer)
    store = writer.store_path
    real = {
        name: getattr(os, name) for name in ("pwrite", "rename", "fsync", "fdatasync", "unlink")
    }
    for limit in range(10_000):
        victim_store = tmp_path / f"victim-{limit}"
        shutil.copytree(store, victim_store)
        left = iter(range(limit))

        def dying(name: str, *args: object, left: Iterator[int] = left) -> object:
            if next(left, None) is None:
                raise _Killed
            return real[name](*args)

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, partial(dying, name))
            try:
                fsck(victim_store, is_repairing=True)
                is_done = True
            except _Killed:
                is_done = False
        assert fsck(victim_store, is_repairing=True).exit_code in (0, 2)
        assert fsck(victim_store).exit_code == 0
        writer.store_path = victim_store
        _check_repaired(writer, victims)
        shutil.rmtree(victim_store)
        if is_done:
            break
    assert limit > 20


class _Killed(BaseException):
    """Stands for a death: no handler of the code under test may catch it."""


def test_full_disk_stops_a_repair_before_anything_is_written_over(tmp_path: Path) -> None:
    with small_file_system(tmp_path / "disk", size=110 * 4096) as disk:
        writer = Writer(disk / "store").fill(300)
        _finish(writer)
        writer.damage(writer.records[10])
        log = commit_log_bytes(writer.store_path)
        status = os.statvfs(disk)
        (disk / "filler").write_bytes(bytes(status.f_bavail * status.f_frsize))
        report = fsck(writer.store_path, is_repairing=True)
        assert report.exit_code == 3
        assert "free space" in str(report.unusable)
        assert commit_log_bytes(writer.store_path) == log
        (disk / "filler").unlink()
        assert fsck(writer.store_path, is_repairing=True).exit_code == 2
    assert issubclass(DiskFullError, Exception)


# ---- records that stand for lost ones ------------------------------------------------------------


def _decoded(data: bytes, position: int) -> list[rocketmq_decoder.Frame | rocketmq_decoder.Blank]:
    frames = []
    place = 0
    while place < len(data):
        frame = rocketmq_decoder.decode_frame(data[place:], physical_offset=position + place)
        assert frame is not None
        frames.append(frame)
        place += frame.total_size
    assert place == len(data)
    return frames


def test_holes_of_any_size_are_filled_to_the_byte(rng: random.Random) -> None:
    for _ in range(scaled(400, 20_000)):
        messages = tuple(
            LostMessage(
                rng.choice(("t", "orders", "x" * 126, "y" * 200)),
                rng.randrange(4),
                rng.randrange(1 << 40),
            )
            for _ in range(rng.randrange(4))
        )
        size = rng.choice((rng.randrange(112, 700), rng.randrange(112, 5000)))
        ends_file = rng.random() < 0.3
        position = rng.randrange(1 << 40)
        loss = Loss(
            position=position, size=size, reason="BODY_CRC", messages=messages, kept_as=None
        )
        file_end = position + size if ends_file else position + size + 1000
        data = lost_records(loss, file_end=file_end, store_timestamp=BASE_MS)
        assert data is not None
        assert len(data) == size
        frames = _decoded(data, position)
        if ends_file:
            assert isinstance(frames.pop(), rocketmq_decoder.Blank)
        named = [
            LostMessage(f.topic, f.queue_id, f.queue_offset)
            for f in frames
            if isinstance(f, rocketmq_decoder.Frame) and f.sys_flag == 0
        ]
        assert named == list(messages[: len(named)])
        rest = messages[len(named) : len(named) + 1]
        used = sum(111 + (len(m.topic) > 127) + len(m.topic) for m in messages[: len(named)])
        for message in rest:  # the next one had no room
            wanted = 111 + (len(message.topic) > 127) + len(message.topic)
            assert used + wanted > size - (8 if ends_file else 0)


def test_large_hole_is_filled_with_several_records() -> None:
    messages = (LostMessage("orders", 1, 7),)
    for known in ((), messages):
        loss = Loss(position=0, size=5 << 20, reason="ZEROS", messages=known, kept_as=None)
        data = lost_records(loss, file_end=1 << 30, store_timestamp=BASE_MS)
        assert data is not None
        frames = _decoded(data, 0)
        assert max(frame.total_size for frame in frames) <= 2 << 20


def test_hole_too_small_for_any_record_stays_one() -> None:
    for size in range(1, 112):
        loss = Loss(position=0, size=size, reason="MAGIC", messages=(), kept_as=None)
        assert lost_records(loss, file_end=1000, store_timestamp=BASE_MS) is None


# ---- every bit -----------------------------------------------------------------------------------


@pytest.mark.timeout(3000)
def test_flipped_bits_of_every_file_of_a_store_are_found(
    tmp_path: Path, rng: random.Random
) -> None:
    """Records, BLANK frames, zeros, positions, lists, derived files, config: all of it."""
    writer = Writer(tmp_path / "store").fill(280, body_size=lambda chance: chance.randrange(1, 200))
    _finish(writer)
    _say_flushed(writer.store_path, writer.position)
    assert fsck(writer.store_path).exit_code == 0
    unread = {"lock", "abort"}  # RocketMQ never reads what is in them, nor do we
    paths = [
        path
        for path in sorted(writer.store_path.rglob("*"))
        if path.is_file() and path.name not in unread
    ]
    blank_end = [r for r in writer.records if r.position < FILE_SIZE][-1]
    meaningless = range(blank_end.position + blank_end.size + 8, FILE_SIZE)
    for path in paths:
        data = path.read_bytes()
        # test_scan.py flips every bit of every record; here a sample of each file, all the way
        count = min(scaled(60, 4000), len(data) * 8)
        for bit in sorted(rng.sample(range(len(data) * 8), count)):
            if path.name == f"{0:020d}" and bit // 8 in meaningless:
                continue
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            report = fsck(writer.store_path)
            assert report.exit_code == 1, f"{path.name} bit {bit}: {report}"
        path.write_bytes(data)
    assert fsck(writer.store_path).exit_code == 0


# ---- the command ---------------------------------------------------------------------------------


def _run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "shmq.tools.fsck", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )


def test_store_in_use_is_refused_with_the_pid_of_its_owner(writer: Writer) -> None:
    with StoreLock(writer.store_path):
        for arguments in ([], ["--repair"], ["--json"]):
            done = _run(writer.store_path, *arguments)
            assert done.returncode == 3
            assert f"process {os.getpid()} has the store open" in done.stdout + done.stderr
        report = fsck(writer.store_path)
        assert report.exit_code == 3
    assert _run(writer.store_path).returncode == 0


def test_command_line_says_what_it_takes(writer: Writer, tmp_path: Path) -> None:
    assert _run().returncode == 64
    assert _run(writer.store_path, "--mend").returncode == 64
    done = _run("--help")
    assert done.returncode == 0
    assert "--repair" in done.stdout
    done = _run(tmp_path / "nothing")
    assert done.returncode == 3
    assert "not a store" in done.stderr
    writer.damage(writer.records[5])
    done = _run(writer.store_path)
    assert done.returncode == 1
    assert "lost: " in done.stdout
    assert _run(writer.store_path, "--repair").returncode == 2


def test_check_of_a_store_that_was_never_locked_makes_no_file(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "store").fill(5)
    before = all_bytes(writer.store_path)
    assert fsck(writer.store_path).exit_code == 0
    assert all_bytes(writer.store_path) == before


def test_progress_goes_from_nothing_to_all(writer: Writer) -> None:
    seen: list[tuple[int, int]] = []
    fsck(writer.store_path, on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == 4 * FILE_SIZE
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_config_that_rocketmq_wrote_is_a_note(writer: Writer) -> None:
    path = writer.store_path / "config/topics.json"
    path.write_text('{"dataVersion":{"counter":1},"topicConfigTable":{}}', encoding="utf-8")
    report = fsck(writer.store_path)
    assert report.exit_code == 0
    assert [str(finding.code) for finding in report.findings] == ["CONFIG_UNCHECKED"]
    assert config_files.CHECKSUM_KEY not in path.read_text(encoding="utf-8")
    assert len(LogFiles(writer.store_path, FILE_SIZE).files()) == 4
