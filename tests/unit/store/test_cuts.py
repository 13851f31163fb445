"""A log that is cut for its master's: what is left, what is kept, and what its frames were."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from shmq.errors import StoreCorruptError, StoreError
from shmq.store import positions
from shmq.store.cuts import CutList, CutPart, CutPlan, begin_cut, finish_cuts, read_frames
from shmq.store.epochs import Epoch, EpochFile
from shmq.store.index_files import index_positions, write_index
from shmq.store.log_files import LogFiles
from shmq.store.recovery import recover_files
from tests.unit.store.stores import FILE_SIZE, Writer, commit_log_bytes

if TYPE_CHECKING:
    from pathlib import Path

COUNT = 700
NOW_MS = 1_800_000_000_000


@pytest.fixture
def log(tmp_path: Path) -> Writer:
    """A store of some files, with all that is derived from them, and two masterships."""
    writer = Writer(tmp_path / "store").fill(COUNT)
    path = writer.store_path
    recover_files(path, FILE_SIZE).consume_queues.close()
    known = positions.Positions(
        flushed_position=writer.position,
        min_position=0,
        store_generation=1,
        boot_id=bytes(16),
        store_timestamp=0,
        file_size_bytes=FILE_SIZE,
    )
    positions.save(positions.positions_path(path), known, durable=False)
    EpochFile.load(path).replace([Epoch(1, 0), Epoch(2, writer.records[COUNT // 2].position)])
    for number in range(writer.position // FILE_SIZE):
        write_index(LogFiles(path, FILE_SIZE), number * FILE_SIZE)
    return writer


def cut(log: Writer, position: int, **options: object) -> None:
    plan = CutPlan(position, log.position, position)._replace(**options)
    begin_cut(log.store_path, plan, cut_at=NOW_MS)
    finish_cuts(log.store_path)


def places(log: Writer) -> list[int]:
    """Where a cut is tried: in the first file, at the ends of files, in the last one."""
    starts = [record.position for record in log.records]
    firsts = [start for start in starts if start % FILE_SIZE == 0]
    return [0, *firsts[1:], starts[1], starts[COUNT // 2], starts[-1]]


@pytest.mark.parametrize("number", range(6))
def test_log_ends_at_the_cut_and_what_was_behind_is_kept(log: Writer, number: int) -> None:
    position = places(log)[number]
    before = b"".join(commit_log_bytes(log.store_path).values())
    cut(log, position)
    path = log.store_path
    with closing(recover_files(path, FILE_SIZE).consume_queues) as queues:
        complete = position - position % FILE_SIZE
        assert queues.file_positions == list(range(0, complete, FILE_SIZE))
    recovered = recover_files(path, FILE_SIZE)
    recovered.consume_queues.close()
    assert recovered.end_position == position
    assert not recovered.holes
    assert all(known < position - position % FILE_SIZE for known in index_positions(path))
    after = b"".join(file.path.read_bytes() for file in LogFiles(path, FILE_SIZE).files())
    assert after.rstrip(b"\0") == before[:position].rstrip(b"\0")
    (known,) = CutList.load(path).cuts
    kept = b"".join(
        (path / "shmq/quarantine" / part.file_name).read_bytes()[: part.size]
        for part in known.parts
    )
    assert kept == before[position : log.position]
    assert known.is_done
    assert not known.is_settled
    assert EpochFile.load(path).epochs == tuple(
        epoch
        for epoch in (Epoch(1, 0), Epoch(2, log.records[COUNT // 2].position))
        if epoch.start_position < position
    )


def test_frames_of_a_part_are_those_of_the_log_and_damage_is_passed_over(log: Writer) -> None:
    damaged = log.records[COUNT // 2 + 3]
    log.damage(damaged)
    position = log.records[COUNT // 2].position
    cut(log, position)
    (known,) = CutList.load(log.store_path).cuts
    found = []
    for part in known.parts:
        fd = os.open(log.store_path / "shmq/quarantine" / part.file_name, os.O_RDONLY)
        found += list(read_frames(fd, part, part.position))
        os.close(fd)
    cut_records = log.records[COUNT // 2 :]
    assert [frame.physical_offset for frame in found] == [r.position for r in cut_records]
    assert [frame.end_position for frame in found if frame.frame] == [
        record.position + record.size for record in cut_records if record is not damaged
    ]
    assert not found[3].frame
    assert [frame.said["body"] for frame in found if frame.frame] == [
        record.body for record in cut_records if record is not damaged
    ]


def test_part_that_is_shorter_than_it_was_is_an_error(log: Writer) -> None:
    cut(log, log.records[COUNT // 2].position)
    (known,) = CutList.load(log.store_path).cuts
    part: CutPart = known.parts[0]
    path = log.store_path / "shmq/quarantine" / part.file_name
    os.truncate(path, part.size // 2)
    with path.open("rb") as file, pytest.raises(StoreError, match="restore the file"):
        list(read_frames(file.fileno(), part, part.position))


def test_log_that_its_master_has_let_expire_is_removed_and_not_listed(log: Writer) -> None:
    cut(log, 0, is_kept=False)
    assert not LogFiles(log.store_path, FILE_SIZE).files()
    assert not list((log.store_path / "shmq/quarantine").iterdir())
    assert CutList.load(log.store_path).cuts == ()
    assert positions.load(positions.positions_path(log.store_path)) is None


def test_settled_cut_is_forgotten_once_its_files_are_removed(log: Writer) -> None:
    cut(log, log.records[COUNT // 2].position)
    known = CutList.load(log.store_path)
    assert known.forget_removed() is known
    settled = known.save(replace(known.cuts[0], next_position=log.position))
    assert settled.forget_removed() is settled
    for path in (log.store_path / "shmq/quarantine").iterdir():
        path.unlink()
    assert settled.forget_removed().cuts == ()
    assert CutList.load(log.store_path).cuts == ()


def test_list_that_does_not_hold_is_said_with_its_name(log: Writer) -> None:
    cut(log, log.records[COUNT // 2].position)
    path = log.store_path / "shmq/cuts.json"
    path.write_bytes(path.read_bytes().replace(b'"lost_count": 0', b'"lost_count": 1'))
    with pytest.raises(StoreCorruptError, match=r"cuts\.json"):
        finish_cuts(log.store_path)
