"""How far a store's log goes, as its files say, whether it was stopped in order or killed."""

from dataclasses import replace
from pathlib import Path

import pytest

from shmq.config import StoreConfig
from shmq.core import core
from shmq.errors import StoreCorruptError
from shmq.store import positions
from shmq.store.epochs import EpochFile
from shmq.store.log_end import LogEnd, log_end
from tests.support.store_process import StoreClient, StoreProcess

OK = core.STATUS["OK"][0]


@pytest.fixture
def store_path(tmp_path: Path, cluster_name: str) -> Path:
    """Of a member that was master, has two messages, and was stopped in order."""
    config = StoreConfig(
        store_path=tmp_path / "member-0",
        runtime_path=tmp_path / "run",
        cluster_name=cluster_name,
        commit_log_file_size_bytes=256 * 1024,
        hot_segment_count=3,
        max_message_size_bytes=64 * 1024,
    )
    process = StoreProcess(config, is_member=True)
    handle = process.add_queue("orders")
    with StoreClient(process) as client:
        client.grant(handle)
        for body in (b"one", b"two"):
            assert client.lanes[0].send(*handle, body)[0] == OK
    process.stop()
    return config.store_path


def test_end_is_that_of_the_positions_and_its_epoch_that_of_the_last_byte(store_path: Path) -> None:
    known = positions.load(positions.positions_path(store_path))
    assert known is not None
    assert log_end(store_path) == LogEnd(1, known.flushed_position)
    EpochFile.load(store_path).begin(2, known.flushed_position)
    assert log_end(store_path) == LogEnd(1, known.flushed_position), "nothing is written under it"


def test_log_of_who_was_killed_goes_on_behind_its_positions(store_path: Path) -> None:
    path = positions.positions_path(store_path)
    known = positions.load(path)
    assert known is not None
    positions.save(path, replace(known, flushed_position=0, is_clean=False), durable=False)
    assert log_end(store_path) == LogEnd(1, known.flushed_position)


def test_no_store_has_no_log_and_a_damaged_one_says_so(store_path: Path, tmp_path: Path) -> None:
    assert log_end(tmp_path / "nothing") == LogEnd(0, 0)
    positions.positions_path(store_path).write_bytes(b"damaged")
    with pytest.raises(StoreCorruptError):
        log_end(store_path)
