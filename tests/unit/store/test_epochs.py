"""Epochs: who wrote which part of a log, and where two logs stop being one."""

from pathlib import Path

import pytest

from shmq.errors import FencedError, StoreCorruptError
from shmq.store.epochs import Epoch, EpochFile, common_end


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    (tmp_path / "shmq").mkdir()
    return tmp_path


def test_epochs_are_there_again_after_each_change(store_path: Path) -> None:
    epochs = EpochFile.load(store_path)
    assert epochs.epochs == ()
    assert epochs.last_epoch == 0
    epochs = epochs.begin(1, 0).begin(4, 1000)
    assert EpochFile.load(store_path) == epochs
    assert epochs.epochs == (Epoch(1, 0), Epoch(4, 1000))
    assert epochs.last_epoch == 4
    assert epochs.begin(4, 2000) == epochs
    with pytest.raises(FencedError, match="master epoch 3, the last one is 4"):
        epochs.begin(3, 2000)


def test_mastership_that_wrote_nothing_is_forgotten(store_path: Path) -> None:
    epochs = EpochFile.load(store_path).begin(1, 0).begin(2, 500).begin(3, 500)
    assert epochs.epochs == (Epoch(1, 0), Epoch(3, 500))


def test_cut_log_loses_its_epochs(store_path: Path) -> None:
    epochs = EpochFile.load(store_path).begin(1, 0).begin(2, 500).begin(3, 900)
    assert epochs.cut(900).epochs == (Epoch(1, 0), Epoch(2, 500))
    assert EpochFile.load(store_path).epochs == (Epoch(1, 0), Epoch(2, 500))


def test_slave_takes_the_list_of_its_master(store_path: Path) -> None:
    epochs = EpochFile.load(store_path).begin(7, 0)
    taken = epochs.replace([Epoch(1, 0), Epoch(2, 500)])
    assert EpochFile.load(store_path) == taken
    with pytest.raises(StoreCorruptError, match="epochs that do not grow"):
        taken.replace([Epoch(2, 0), Epoch(1, 500)])


@pytest.mark.parametrize(
    ("ours", "our_end", "theirs", "their_end", "wanted"),
    [
        ([(1, 0)], 700, [(1, 0)], 900, 700),  # a prefix
        ([(1, 0)], 900, [(1, 0)], 700, 700),  # a slave that is ahead
        ([(1, 0)], 700, [(1, 0), (2, 500)], 900, 500),  # it was master alone behind 500
        ([(1, 0), (2, 400)], 700, [(1, 0), (3, 300)], 900, 300),
        ([(1, 0), (2, 400)], 700, [(2, 400), (3, 600)], 900, 600),  # theirs has expired
        ([(1, 0)], 700, [(2, 0)], 900, None),
        ([], 0, [(1, 0)], 900, None),
    ],
)
def test_two_logs_are_the_same_up_to_the_end_of_their_last_common_epoch(
    ours: list[tuple[int, int]],
    our_end: int,
    theirs: list[tuple[int, int]],
    their_end: int,
    wanted: int | None,
) -> None:
    one = [Epoch(*epoch) for epoch in ours]
    other = [Epoch(*epoch) for epoch in theirs]
    assert common_end(one, our_end, other, their_end) == wanted
    assert common_end(other, their_end, one, our_end) == wanted


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"epochs": []}\ncrc32 00000000\n'])
def test_damaged_list_stops_with_its_name(store_path: Path, damage: bytes) -> None:
    EpochFile.load(store_path).begin(1, 0)
    (store_path / "shmq" / "epochs.json").write_bytes(damage)
    with pytest.raises(StoreCorruptError, match=r"epochs\.json"):
        EpochFile.load(store_path)


def test_every_flipped_bit_is_found(store_path: Path) -> None:
    path = EpochFile.load(store_path).begin(1, 0).path
    good = path.read_bytes()
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        with pytest.raises(StoreCorruptError):
            EpochFile.load(store_path)


def test_end_of_a_log_is_of_the_mastership_that_wrote_its_last_byte(tmp_path: Path) -> None:
    """A slave knows of a mastership before it has copied a byte of it."""
    epochs = EpochFile(tmp_path / "epochs.json", (Epoch(3, 0), Epoch(4, 900)))
    assert [epochs.epoch_at(end) for end in (0, 1, 500, 900, 901)] == [0, 3, 3, 3, 4]
    assert EpochFile(tmp_path / "epochs.json").epoch_at(10) == 0
