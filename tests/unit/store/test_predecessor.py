"""What a successor takes of the files that its predecessor left: what is newer, and what holds."""

from pathlib import Path

import pytest

from shmq.shm.incarnation import boot_id
from shmq.store import checked_json
from shmq.store.config_files import ConfigFiles, ConsumerOffsets, DataVersion, DelayOffsets
from shmq.store.predecessor import take_newer


def offsets(counter: int, value: int) -> ConsumerOffsets:
    version = DataVersion(counter=counter, timestamp=1)
    return ConsumerOffsets(data_version=version, offsets={"t@g": {0: value}})


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("theirs", "ours"):
        (tmp_path / name / "shmq").mkdir(parents=True)
    return tmp_path / "theirs", tmp_path / "ours"


def write(store: Path, contents: ConsumerOffsets | DelayOffsets) -> None:
    ConfigFiles(store).store(contents)


def read(store: Path) -> int:
    return ConfigFiles(store).load_consumer_offsets().offsets["t@g"][0]


@pytest.mark.parametrize(
    ("theirs", "ours", "seen"),
    [((2, 20), (1, 10), 20), ((2, 20), (2, 10), 10), ((2, 20), (3, 10), 10)],
    ids=["newer", "the same", "older"],
)
def test_the_newer_version_counts_and_ours_where_they_are_the_same(
    stores: tuple[Path, Path], theirs: tuple[int, int], ours: tuple[int, int], seen: int
) -> None:
    write(stores[0], offsets(*theirs))
    write(stores[1], offsets(*ours))
    assert take_newer(*stores) == ([] if seen == 10 else ["consumerOffset.json"])
    assert read(stores[1]) == seen


def test_what_we_do_not_have_is_taken_and_a_folder_that_is_gone_is_no_failure(
    stores: tuple[Path, Path],
) -> None:
    write(stores[0], offsets(1, 20))
    write(stores[0], DelayOffsets(data_version=DataVersion(counter=1), offsets={1: 7}))
    assert take_newer(*stores) == ["consumerOffset.json", "delayOffset.json"]
    assert ConfigFiles(stores[1]).load_delay_offsets().offsets == {1: 7}
    assert take_newer(stores[0] / "gone", stores[1]) == []


def test_damage_there_leaves_ours_and_damage_here_takes_theirs(
    stores: tuple[Path, Path],
) -> None:
    for store, value in zip(stores, (20, 10), strict=True):
        write(store, offsets(5, value))
    path = stores[0] / "config" / "consumerOffset.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"20", b"21"))
    assert take_newer(*stores) == []
    path.write_bytes(whole)
    ours = stores[1] / "config" / "consumerOffset.json"
    ours.write_bytes(ours.read_bytes().replace(b"10", b"11"))
    assert take_newer(*stores) == ["consumerOffset.json"]
    assert read(stores[1]) == 20


def test_delay_marks_are_taken_if_they_are_of_this_boot_and_later(
    stores: tuple[Path, Path],
) -> None:
    paths = [store / "shmq" / "delay_marks.json" for store in stores]

    def write_marks(number: int, boot: str, boottime_ns: int) -> None:
        checked_json.save(paths[number], {"boot_id": boot, "boottime_ns": boottime_ns})

    here = boot_id().hex()
    write_marks(0, here, 200)
    assert take_newer(*stores) == ["delay_marks.json"]
    write_marks(1, here, 300)
    assert take_newer(*stores) == []
    write_marks(1, "another", 300)
    assert take_newer(*stores) == ["delay_marks.json"]
    write_marks(0, "another", 400)
    assert take_newer(*stores) == []
    paths[0].write_bytes(b"no marks")
    assert take_newer(*stores) == []


def test_owners_are_taken_as_they_are(stores: tuple[Path, Path]) -> None:
    checked_json.save(stores[0] / "shmq" / "owners.json", {"format_version": 1, "topics": []})
    assert take_newer(*stores) == ["owners.json"]
    assert take_newer(*stores) == []
