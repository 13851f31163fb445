"""The Controller's journal: what was answered is there again, what was torn is not."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from shmq.controller import journal as journal_module
from shmq.controller.journal import Journal, encode_records, encode_snapshot, replay
from shmq.controller.replicas import (
    BrokerDataCleaned,
    BrokerIdApplied,
    BrokerUpdated,
    MasterElected,
    Record,
    ReplicasInfoTable,
    SyncStateSetAltered,
)
from shmq.errors import DiskFullError, StoreCorruptError, StoreError, StoreLockedError
from shmq.status import Elected


def _applied(broker_id: int, broker_name: str = "a") -> BrokerIdApplied:
    return BrokerIdApplied(
        cluster_name="c",
        broker_name=broker_name,
        broker_id=broker_id,
        address=f"s{broker_id}",
        register_check_code="é",
        is_async_learner=False,
    )


def _elected(broker_id: int | None, epoch: int) -> MasterElected:
    return MasterElected(
        broker_name="a", master_broker_id=broker_id, master_epoch=epoch, elected=Elected.MEMORY
    )


OUTCOMES: list[list[Record]] = [
    [_applied(1)],
    [_applied(2), _applied(1, "gone")],
    [_elected(1, 1)],
    [SyncStateSetAltered(broker_name="a", sync_state_set=(1,), sync_state_set_epoch=1)],
    [BrokerUpdated(broker_name="a", broker_id=2, address="t2", is_async_learner=True)],
    [_elected(None, 7)],
    [BrokerDataCleaned(broker_name="a", broker_ids=(2,))],
    [BrokerDataCleaned(broker_name="gone", broker_ids=())],
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


def _write(folder: Path) -> ReplicasInfoTable:
    journal = Journal(folder)
    table = journal.replayed.table
    for records in OUTCOMES:
        journal.append(records, table)
        for record in records:
            table.apply(record)
    journal.close()
    return table


def test_what_was_appended_is_there_again(folder: Path) -> None:
    table = _write(folder)
    for _ in range(2):  # from the lines, and from the snapshot that opening made
        journal = Journal(folder)
        assert journal.replayed.table == table
        assert journal.replayed.number == len(OUTCOMES)
        assert journal.replayed.torn_bytes == 0
        journal.close()
    info = table.get("a")
    assert info is not None
    assert (info.master_epoch, info.is_begun, info.sync_state_set) == (7, False, {1})
    assert table.names() == ["a"]


def test_an_outcome_without_records_costs_nothing(folder: Path) -> None:
    journal = Journal(folder)
    before = (folder / "controller.journal").read_bytes()
    journal.append([], journal.replayed.table)
    journal.close()
    assert (folder / "controller.journal").read_bytes() == before


def test_line_torn_at_any_byte_is_as_if_it_was_never_written(folder: Path) -> None:
    _write(folder)
    data = (folder / "controller.journal").read_bytes()
    whole = data[: data.rindex(b"\n", 0, -1) + 1]
    wanted = replay(whole, what="journal").table
    for end in range(len(whole), len(data)):
        replayed = replay(data[:end], what="journal")
        assert (replayed.table, replayed.number) == (wanted, len(OUTCOMES) - 1)
        assert replayed.torn_bytes == end - len(whole)
        zeros = replay(data[:end] + bytes(len(data) - end), what="journal")
        assert zeros.number == len(OUTCOMES) - 1
    (folder / "controller.journal").write_bytes(data[:-5])
    journal = Journal(folder)
    assert journal.replayed.torn_bytes > 0
    journal.close()
    assert (folder / "controller.journal.bak").read_bytes() == data[:-5], "kept as it was"


def test_damage_is_told_wherever_a_bit_flips(folder: Path) -> None:
    """A bit of the last line alone cannot be told from a torn one: that outcome is left out."""
    _write(folder)
    data = (folder / "controller.journal").read_bytes()
    last = data.rindex(b"\n", 0, -1) + 1
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << (place % 8)
        if place < last - 1:
            with pytest.raises(StoreCorruptError, match="checksum does not hold"):
                replay(bytes(damaged), what="journal")
        elif place == last - 1:  # two lines become one
            assert replay(bytes(damaged), what="journal").number == len(OUTCOMES) - 2
        else:
            assert replay(bytes(damaged), what="journal").number == len(OUTCOMES) - 1


def test_lines_of_another_journal_are_refused() -> None:
    table = ReplicasInfoTable()
    first = encode_snapshot(table, 0)
    with pytest.raises(StoreCorruptError, match="number 5, wanted 1"):
        replay(first + encode_records([_applied(1)], 5), what="journal")
    with pytest.raises(StoreCorruptError, match="no such replica set"):
        replay(first + encode_records([_elected(1, 1)], 1), what="journal")
    twice = [_applied(1), _elected(1, 3), _elected(1, 3)]
    with pytest.raises(StoreCorruptError, match="master_epoch is 3"):
        replay(first + encode_records(twice, 1), what="journal")
    with pytest.raises(StoreCorruptError, match="that broker_id is another's"):
        replay(first + encode_records([_applied(1), _applied(1)], 1), what="journal")
    in_sync = SyncStateSetAltered(broker_name="a", sync_state_set=(1,), sync_state_set_epoch=1)
    for records, wanted in (
        ([_applied(1), _elected(1, 1), in_sync, in_sync], "sync_state_set_epoch is 1"),
        ([_applied(1), _elected(None, 1), in_sync], "master is None"),
        ([_applied(1), _elected(2, 1)], "no such member"),
        (
            [
                _applied(1),
                BrokerUpdated(broker_name="a", broker_id=2, address="t", is_async_learner=False),
            ],
            "no such member",
        ),
    ):
        with pytest.raises(StoreCorruptError, match=wanted):
            replay(first + encode_records(records, 1), what="journal")
    with pytest.raises(StoreCorruptError, match="format_version"):
        replay(encode_records([_applied(1)], 1), what="journal")
    with pytest.raises(StoreCorruptError, match="line 1"):
        replay(b"a file of somebody else\n", what="journal")


def test_mastership_ends_with_the_member() -> None:
    table = ReplicasInfoTable()
    for records in (OUTCOMES[0], OUTCOMES[1], OUTCOMES[2], OUTCOMES[3]):
        for record in records:
            table.apply(record)
    table.apply(BrokerDataCleaned(broker_name="a", broker_ids=(1,)))
    info = table.get("a")
    assert info is not None
    assert (info.master_broker_id, info.is_begun, info.sync_state_set) == (None, False, set())


def test_one_controller_at_a_time_has_it(folder: Path) -> None:
    journal = Journal(folder)
    with pytest.raises(StoreLockedError, match="another Controller is active"):
        Journal(folder)
    journal.close()
    Journal(folder).close()


def test_it_does_not_grow_for_ever(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_LINES_MAX", 3)
    table = _write(folder)
    lines = (folder / "controller.journal").read_bytes().splitlines()
    assert len(lines) <= 4
    journal = Journal(folder)
    assert (journal.replayed.table, journal.replayed.number) == (table, len(OUTCOMES))
    journal.close()


def test_behind_a_failed_append_nothing_is_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(folder)
    table = journal.replayed.table

    def refuse(fd: int) -> None:
        raise OSError(errno.ENOSPC, "no room", fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(DiskFullError, match="append to"):
            journal.append([_applied(1)], table)
    with pytest.raises(StoreError, match="an append before failed"):
        journal.append([_applied(2)], table)
    journal.close()
    journal = Journal(folder)
    assert journal.replayed.number in {0, 1}
    journal.append([_applied(3)], journal.replayed.table)
    journal.close()
