import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from shmq.errors import DiskFullError, StoreCorruptError
from shmq.store import positions, recovery
from shmq.store.consume_queue_files import QueueKey
from shmq.store.log_files import LogFiles
from shmq.store.positions import Positions
from shmq.store.quarantine import Quarantine
from shmq.store.recovery import QueueRange, RecoveredLog, recover_files
from tests.support import rocketmq_decoder
from tests.support.clock import SteppedClock
from tests.support.mounts import small_file_system
from tests.unit.store.stores import (
    BASE_MS,
    FILE_SIZE,
    Record,
    Writer,
    all_bytes,
    commit_log_bytes,
    encode,
)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture(autouse=True)
def closed() -> Iterator[list[RecoveredLog]]:
    done: list[RecoveredLog] = []
    _opened.append(done)
    yield done
    _opened.remove(done)
    for recovered in done:
        recovered.consume_queues.close()


_opened: list[list[RecoveredLog]] = []


def _recover(store: Path) -> RecoveredLog:
    recovered = recover_files(store, FILE_SIZE, clock=SteppedClock())
    _opened[-1].append(recovered)
    return recovered


def _say_flushed(store: Path, position: int, **fields: object) -> Positions:
    """What a broker would have left in shmq/positions."""
    (store / "shmq").mkdir(exist_ok=True)
    path = positions.positions_path(store)
    known = positions.load(path) or Positions(
        flushed_position=0,
        min_position=0,
        store_generation=1,
        boot_id=bytes(16),
        store_timestamp=5,
        file_size_bytes=FILE_SIZE,
    )
    changed = replace(known, flushed_position=position, **fields)  # type: ignore[arg-type]
    return positions.save(path, changed, durable=True)


def _ends(records: list[Record]) -> dict[tuple[str, int], int]:
    ends: dict[tuple[str, int], int] = {}
    for record in records:
        ends[record.topic, record.queue_id] = record.queue_offset + 1
    return ends


def _cold(writer: Writer, end: int | None = None) -> list[Record]:
    end = writer.position if end is None else end
    return [record for record in writer.records if record.position < end - end % FILE_SIZE]


def test_whole_log_is_found_as_it_was_written(store: Path) -> None:
    writer = Writer(store).fill(2000)
    _say_flushed(store, writer.position)
    before = commit_log_bytes(store)
    found = _recover(store)
    assert (found.min_position, found.end_position) == (0, writer.position)
    assert found.holes == ()
    assert found.queue_ends == _ends(writer.records)
    cold = _ends(_cold(writer))
    assert found.cold_queues == {key: QueueRange(0, end) for key, end in cold.items()}
    assert found.store_timestamp == BASE_MS + 1999
    assert (found.is_foreign, found.record_crc_position) == (False, 0)
    assert found.saved_tails == ()
    assert commit_log_bytes(store) == before


def test_second_run_changes_no_byte_and_scans_the_last_file_only(store: Path) -> None:
    writer = Writer(store).fill(2000)
    writer.damage(writer.records[300])
    _say_flushed(store, writer.records[1900].position)
    writer.damage(writer.records[1950])
    first = _recover(store)
    bytes_after_first = all_bytes(store)
    second = _recover(store)
    assert all_bytes(store) == bytes_after_first
    assert first.end_position == second.end_position == writer.records[1950].position
    assert first.holes == second.holes
    assert first.queue_ends == second.queue_ends
    assert first.cold_queues == second.cold_queues
    assert first.store_timestamp == second.store_timestamp
    assert second.scanned_bytes == second.end_position % FILE_SIZE
    assert second.saved_tails == ()


def test_store_of_nothing_begins_at_zero(store: Path) -> None:
    found = _recover(store)
    assert (found.min_position, found.end_position, found.queue_ends) == (0, 0, {})
    os.close(LogFiles(store, FILE_SIZE).make_ready(0, zero_written=False))
    found = _recover(store)
    assert (found.min_position, found.end_position, found.is_foreign) == (0, 0, True)
    _say_flushed(store, 0)
    assert not _recover(store).is_foreign


def test_damage_before_the_flushed_position_is_quarantined_and_what_follows_kept(
    store: Path,
) -> None:
    writer = Writer(store).fill(2000)
    _say_flushed(store, writer.position)
    victims = [writer.records[index] for index in (0, 100, 101, 1500, 1990)]
    for victim in victims:
        writer.damage(victim)
    before = commit_log_bytes(store)
    found = _recover(store)
    assert [(hole.position, hole.size) for hole in found.holes] == [
        (victim.position, victim.size) for victim in victims
    ]
    assert commit_log_bytes(store) == before
    assert found.end_position == writer.position
    assert found.queue_ends == _ends(writer.records)
    assert Quarantine.load(Quarantine.path(store)).holes == found.holes


def test_tail_behind_the_flushed_position_is_kept_aside_and_zeroed(store: Path) -> None:
    writer = Writer(store).fill(2000)
    cut = writer.records[1900]
    _say_flushed(store, writer.records[1850].position)
    before = commit_log_bytes(store)
    writer.damage(cut)
    found = _recover(store)
    assert found.end_position == cut.position
    assert found.holes == ()
    assert found.queue_ends == _ends(writer.records[:1900])
    (tail,) = found.saved_tails
    kept = (store / "shmq/quarantine" / tail.file_name).read_bytes()
    assert kept.endswith(writer.records[-1].body[-10:] + before_end(before))
    after = b"".join(commit_log_bytes(store).values())
    assert after[: cut.position] == b"".join(before.values())[: cut.position]
    assert not any(after[cut.position :])


def before_end(before: dict[str, bytes]) -> bytes:
    """What follows the last body in the log: topic, properties and CRC of the last record."""
    data = b"".join(before.values()).rstrip(b"\0")
    return data[data.rindex(b"topic-") - 1 :]


def test_tail_may_begin_in_an_earlier_file_than_it_ends(store: Path) -> None:
    """Pages reach the disk in any order: a later file may be whole where an earlier one is not."""
    writer = Writer(store).fill(2000)
    cut = next(record for record in writer.records if record.position > 2 * FILE_SIZE + 1000)
    _say_flushed(store, 2 * FILE_SIZE)
    writer.write(cut.position, bytes(cut.size))
    found = _recover(store)
    assert found.end_position == cut.position
    assert len(found.saved_tails) >= 3
    joined = b"".join(commit_log_bytes(store).values())
    assert not any(joined[cut.position :])
    assert found.consume_queues.file_positions == [0, FILE_SIZE]


def test_log_that_ends_with_a_complete_file_goes_on_in_the_next(store: Path) -> None:
    writer = Writer(store).fill(300)
    writer.roll()
    end = writer.position
    _say_flushed(store, end)
    assert _recover(store).end_position == end
    writer.path(end).unlink()
    found = _recover(store)
    assert found.end_position == end
    assert found.queue_ends == _ends(writer.records)


def test_zeros_before_the_flushed_position_do_not_end_the_log(store: Path) -> None:
    writer = Writer(store).fill(300)
    victim = writer.records[-1]
    _say_flushed(store, writer.position)
    writer.write(victim.position, bytes(victim.size))
    found = _recover(store)
    assert found.end_position == writer.position
    assert [(hole.position, hole.size, hole.reason) for hole in found.holes] == [
        (victim.position, victim.size, "ZEROS")
    ]


def test_newest_message_of_a_queue_does_not_lose_its_offset_to_another(store: Path) -> None:
    """Its record is damaged, but it was seen: its offset must never name another message."""
    writer = Writer(store).fill(300)
    victim = writer.put("topic-1", 2, b"seen")
    _say_flushed(store, writer.position)
    writer.damage(victim)
    for _ in range(2):
        found = _recover(store)
        assert found.queue_ends["topic-1", 2] == victim.queue_offset + 1
        (hole,) = found.holes
        assert (hole.topic, hole.queue_id, hole.queue_offset) == (
            "topic-1",
            2,
            victim.queue_offset,
        )


def test_newest_messages_of_a_queue_keep_their_offsets_though_all_are_damaged(
    store: Path,
) -> None:
    writer = Writer(store).fill(300)
    victims = [writer.put("topic-1", 2, b"seen") for _ in range(3)]
    _say_flushed(store, writer.position)
    for victim in victims:
        writer.damage(victim)
    found = _recover(store)
    assert found.queue_ends["topic-1", 2] == victims[-1].queue_offset + 1
    assert [hole.queue_offset for hole in found.holes] == [v.queue_offset for v in victims]


def test_newest_message_in_a_complete_file_keeps_its_offset_over_two_recoveries(
    store: Path,
) -> None:
    writer = Writer(store).fill(200)
    writer.put("rare", 0)
    victim = writer.put("rare", 0)
    writer.roll()
    writer.fill(10, seed=2)
    writer.damage(victim)
    _say_flushed(store, writer.position)
    for _ in range(3):
        assert _recover(store).queue_ends["rare", 0] == 2


def test_damaged_record_is_not_believed_where_it_contradicts_its_queue(store: Path) -> None:
    writer = Writer(store).fill(200)
    victim = writer.put("topic-1", 2, b"x" * 50)
    _say_flushed(store, writer.position)
    forged = encode(
        topic="topic-1",
        queue_id=2,
        queue_offset=victim.queue_offset + 1000,
        position=victim.position,
        body=b"x" * 50,
    )
    writer.write(victim.position, forged[:-3])
    found = _recover(store)
    assert found.queue_ends["topic-1", 2] == victim.queue_offset
    assert found.holes[0].topic is None


# ---- positions, lists and derived files that are lost --------------------------------------------


def test_positions_lost_trusts_the_log_up_to_the_last_file(store: Path) -> None:
    writer = Writer(store).fill(2000)
    _say_flushed(store, writer.position)
    positions.positions_path(store).write_bytes(b"\xff" * 8192)
    old = writer.records[300]
    last = writer.records[-5]
    writer.damage(old)
    writer.damage(last)
    found = _recover(store)
    assert [hole.position for hole in found.holes] == [old.position]
    assert found.end_position == last.position
    assert (found.is_foreign, found.record_crc_position) == (False, 0)


def test_quarantine_list_lost_is_found_again_and_the_old_one_kept(store: Path) -> None:
    writer = Writer(store).fill(500)
    writer.damage(writer.records[10])
    writer.damage(writer.records[-5])
    _say_flushed(store, writer.position)
    first = _recover(store)
    path = Quarantine.path(store)
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    second = _recover(store)
    assert second.holes == first.holes
    (kept,) = (store / "shmq/quarantine").glob("damaged-*.json")
    assert kept.read_bytes() == data


@pytest.mark.parametrize("harm", ["missing", "damaged", "of other bytes"])
def test_derived_file_that_does_not_hold_is_made_again(store: Path, harm: str) -> None:
    writer = Writer(store).fill(1000)
    _say_flushed(store, writer.position)
    first = _recover(store)
    path = first.consume_queues.path(FILE_SIZE)
    good = path.read_bytes()
    if harm == "missing":
        path.unlink()
    elif harm == "damaged":
        path.write_bytes(good[:50] + b"\xff" + good[51:])
    else:
        shutil.copy(first.consume_queues.path(0), path)
    second = _recover(store)
    assert path.read_bytes() == good
    assert second.cold_queues == first.cold_queues
    assert second.scanned_bytes > FILE_SIZE / 2


def test_complete_file_whose_first_or_last_frame_changed_is_scanned_again(store: Path) -> None:
    writer = Writer(store).fill(1000)
    _say_flushed(store, writer.position)
    first = _recover(store)
    assert first.holes == ()
    writer.damage(writer.records[0])
    second = _recover(store)
    assert [hole.position for hole in second.holes] == [0]
    ends = [record for record in writer.records if record.position < 2 * FILE_SIZE][-1]
    blank = ends.position + ends.size
    writer.write(blank + 4, b"\0")
    third = _recover(store)
    assert [(hole.position, hole.end) for hole in third.holes] == [
        (0, writer.records[0].size),
        (blank, 2 * FILE_SIZE),
    ]


def test_hole_in_a_tail_that_was_cut_is_forgotten(store: Path) -> None:
    """The log grows again over its place; a hole in the list would hide what comes there."""
    writer = Writer(store).fill(300)
    _say_flushed(store, writer.position)
    writer.damage(writer.records[-3])
    assert len(_recover(store).holes) == 1
    _say_flushed(store, writer.records[-10].position)
    found = _recover(store)
    assert found.end_position == writer.records[-3].position
    assert found.holes == ()
    assert Quarantine.load(Quarantine.path(store)).holes == ()


def test_files_that_are_gone_are_named_and_nothing_is_touched(store: Path) -> None:
    writer = Writer(store).fill(2000)
    _say_flushed(store, writer.position)
    last = writer.path(writer.position)
    data = last.read_bytes()
    last.unlink()
    with pytest.raises(StoreCorruptError, match=f"{last.name} is missing; restore it"):
        _recover(store)
    last.write_bytes(data)
    middle = writer.path(2 * FILE_SIZE)
    data = middle.read_bytes()
    middle.unlink()
    with pytest.raises(StoreCorruptError, match=f"{middle.name} is missing; restore it"):
        _recover(store)
    middle.write_bytes(data)
    assert _recover(store).end_position == writer.position


def test_queue_whose_messages_expired_goes_on_where_it_was(store: Path) -> None:
    writer = Writer(store)
    for _ in range(7):
        writer.put("old", 3)
    writer.fill(1000)
    _say_flushed(store, writer.position)
    first = _recover(store)
    first.consume_queues.expire(0)
    LogFiles(store, FILE_SIZE).delete(0)
    found = _recover(store)
    assert found.min_position == FILE_SIZE
    assert found.cold_queues["old", 3] == QueueRange(7, 7)
    assert found.queue_ends["old", 3] == 7
    kept = found.cold_queues["topic-0", 0]
    assert 0 < kept.min_queue_offset < kept.max_queue_offset


def test_file_that_a_real_broker_expired_leaves_its_queues_ends(store: Path) -> None:
    writer = Writer(store)
    for _ in range(7):
        writer.put("old", 3)
    writer.fill(1000)
    _say_flushed(store, writer.position)
    first = _recover(store)
    writer.path(0).unlink()
    found = _recover(store)
    assert found.queue_ends["old", 3] == 7
    assert not first.consume_queues.path(0).exists()


# ---- stores of a real RocketMQ -------------------------------------------------------------------


def test_foreign_store_is_taken_as_it_is(store: Path) -> None:
    writer = Writer(store, has_record_crc=False).fill(1000)
    ahead = writer.path(writer.position + FILE_SIZE)  # as a broker prepares it
    ahead.write_bytes(bytes(FILE_SIZE))
    (store / "consumequeue/topic-1").mkdir(parents=True)
    (store / "checkpoint").write_bytes(bytes(4096))
    before = commit_log_bytes(store)
    found = _recover(store)
    assert found.is_foreign
    assert found.end_position == found.record_crc_position == writer.position
    assert found.queue_ends == _ends(writer.records)
    assert commit_log_bytes(store) == before
    assert not (store / "checkpoint").exists()
    assert (store / "shmq/rocketmq/checkpoint").exists()


def test_foreign_store_whose_files_begin_later_and_offsets_too(store: Path) -> None:
    writer = Writer(store, has_record_crc=False, begin=5 * FILE_SIZE)
    writer.ends = {("topic-0", queue): 1000 for queue in range(4)}
    writer.fill(1000)
    found = _recover(store)
    assert found.min_position == 5 * FILE_SIZE
    assert found.cold_queues["topic-0", 1].min_queue_offset == 1000
    assert found.queue_ends == _ends(writer.records)


def test_foreign_tail_with_older_frames_behind_it_is_cut_where_rocketmq_cuts(store: Path) -> None:
    """RocketMQ writes over a tail that it cut: whole frames of an earlier life may follow."""
    writer = Writer(store, has_record_crc=False).fill(1000)
    cut = writer.records[-20]
    assert cut.position % FILE_SIZE > 1000
    writer.damage(cut)
    found = _recover(store)
    assert found.end_position == cut.position
    assert found.holes == ()
    old = next(record for record in writer.records if record.position > FILE_SIZE)
    writer.damage(old)
    again = _recover(store)
    assert again.end_position == cut.position


def test_foreign_damage_in_a_file_that_was_left_behind_is_a_hole(store: Path) -> None:
    writer = Writer(store, has_record_crc=False).fill(1000)
    old = next(record for record in writer.records if record.position > FILE_SIZE)
    writer.damage(old)
    found = _recover(store)
    assert [hole.position for hole in found.holes] == [old.position]
    assert found.end_position == writer.position


def test_store_that_rocketmq_went_on_with_is_not_asked_for_our_crc(store: Path) -> None:
    writer = Writer(store).fill(500)
    _say_flushed(store, writer.position)
    _recover(store)
    writer.has_record_crc = False
    writer.fill(500, seed=2)
    (store / "checkpoint").write_bytes(bytes(4096))
    found = _recover(store)
    assert found.is_foreign
    assert found.end_position == found.record_crc_position == writer.position
    assert found.holes == ()
    assert found.queue_ends == _ends(writer.records)
    _say_flushed(store, writer.position, record_crc_position=found.record_crc_position)
    writer.has_record_crc = True
    writer.fill(500, seed=3)
    ours = _recover(store)
    assert (ours.is_foreign, ours.end_position) == (False, writer.position)
    assert ours.queue_ends == _ends(writer.records)


def test_log_that_rocketmq_cut_below_our_flushed_position_is_taken_as_it_is(store: Path) -> None:
    writer = Writer(store).fill(1000)
    _say_flushed(store, writer.position)
    _recover(store)
    cut = next(record for record in writer.records if record.position >= 2 * FILE_SIZE)
    for position in range(3 * FILE_SIZE, writer.position + 1, FILE_SIZE):
        writer.path(position).unlink()
    writer.write(cut.position, bytes(3 * FILE_SIZE - cut.position))
    (store / "checkpoint").write_bytes(bytes(4096))
    found = _recover(store)
    assert (found.end_position, found.is_foreign, found.holes) == (cut.position, True, ())


def test_frames_that_survive_recovery_are_what_an_independent_decoder_reads(
    store: Path, rng: random.Random
) -> None:
    """After the tail is cleared the whole log must decode, hole or not, to the very end."""
    writer = Writer(store).fill(1500)
    _say_flushed(store, writer.records[1400].position)
    writer.write(writer.records[1450].position + 10, rng.randbytes(3000))
    found = _recover(store)
    frames = list(rocketmq_decoder.decode_commit_log(store / "commitlog"))
    assert [frame.physical_offset for frame in frames] == [
        record.position for record in writer.records[:1450]
    ]
    assert found.end_position == writer.records[1450].position


# ---- a disk that refuses, a death in between -----------------------------------------------------


def test_no_room_to_keep_the_tail_stops_recovery_before_it_is_zeroed(tmp_path: Path) -> None:
    with small_file_system(tmp_path / "disk", size=60 * 4096) as disk:
        writer = Writer(disk).fill(300)
        _say_flushed(disk, 0)
        _recover(disk).consume_queues.close()
        writer.write(writer.position, b"garbage" * 3000)
        before = commit_log_bytes(disk)
        status = os.statvfs(disk)
        (disk / "filler").write_bytes(bytes((status.f_bavail - 1) * status.f_frsize))
        with pytest.raises(DiskFullError):
            _recover(disk)
        assert commit_log_bytes(disk) == before


def test_recovery_that_died_at_any_write_is_finished_by_the_next(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Writer(store).fill(1200)
    writer.damage(writer.records[100])
    writer.damage(writer.records[1150])
    _say_flushed(store, writer.records[1100].position)
    whole = tmp_path / "whole"
    shutil.copytree(store, whole)
    wanted = _recover(whole)
    wanted_log = commit_log_bytes(whole)
    real = {name: getattr(os, name) for name in ("pwrite", "rename", "fsync", "fdatasync")}
    for limit in range(10_000):
        victim = tmp_path / f"victim-{limit}"
        shutil.copytree(store, victim)
        left = iter(range(limit))

        def dying(name: str, *args: object, left: Iterator[int] = left) -> object:
            if next(left, None) is None:
                raise _Killed
            return real[name](*args)

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, partial(dying, name))
            try:
                _recover(victim)
                is_done = True
            except _Killed:
                is_done = False
        found = _recover(victim)
        assert commit_log_bytes(victim) == wanted_log
        assert found.end_position == wanted.end_position
        assert found.holes == wanted.holes
        assert found.queue_ends == wanted.queue_ends
        shutil.rmtree(victim)
        if is_done:
            break
    assert limit > 10


class _Killed(BaseException):
    """Stands for a death: no handler of the code under test may catch it."""


def test_trusted_end_is_the_last_file_that_begins_with_a_frame(store: Path) -> None:
    writer = Writer(store).fill(1000)
    files = LogFiles(store, FILE_SIZE)
    files.make_folders()
    last = writer.position - writer.position % FILE_SIZE
    os.close(files.make_ready(last + FILE_SIZE, zero_written=False))
    logs = files.files()
    assert recovery.trusted_end_without_positions(files, logs) == last
    assert recovery.trusted_end_without_positions(files, logs[:1]) == 0
    assert recovery.trusted_end_without_positions(files, []) == 0
    assert QueueKey("topic-0", 0) in _recover(store).queue_ends
