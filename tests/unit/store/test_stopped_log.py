"""What a slave's store hands on when it stops to become master, and that nothing stays behind."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from shmq.config import StoreConfig
from shmq.core import core
from shmq.shm import manifest as manifests
from shmq.store import positions
from shmq.store.message_store import MessageStore
from shmq.store.recovery import recover_files
from shmq.store.stopped_log import StoppedLog, leaving_path
from tests.support.store_process import StoreClient, StoreProcess

FILE_SIZE = 256 * 1024
BODY = b"x" * 10_000
SHM = Path("/dev/shm")
OK = core.STATUS["OK"][0]


@pytest.fixture
def config(tmp_path: Path, cluster_name: str) -> StoreConfig:
    """Of a store whose log has several files."""
    config = StoreConfig(
        store_path=tmp_path / "member-1",
        runtime_path=tmp_path / "run",
        cluster_name=cluster_name,
        commit_log_file_size_bytes=FILE_SIZE,
        hot_segment_count=3,
        max_message_size_bytes=64 * 1024,
    )
    process = StoreProcess(config)
    handles = [process.add_queue(name) for name in ("orders", "bills")]
    with StoreClient(process) as client:
        for handle in handles:
            client.grant(handle)
        for number in range(100):
            assert client.lanes[0].send(*handles[number > 70], BODY)[0] == OK
    process.stop()
    return config


@pytest.fixture
def stopped(config: StoreConfig) -> Iterator[StoppedLog]:
    store = MessageStore(config, is_slave=True)
    store.open()
    store.start()
    stopped = store.stop(succeeds=True)
    assert stopped is not None
    yield stopped
    stopped.release()


def objects(config: StoreConfig) -> list[str]:
    return [path.name for path in SHM.glob(f"shmq.{config.cluster_name}.*")]


def test_what_is_handed_on_is_what_recovery_would_find(
    config: StoreConfig, stopped: StoppedLog
) -> None:
    assert stopped.holds(positions.positions_path(config.store_path))
    found = recover_files(config.store_path, FILE_SIZE)
    found.consume_queues.close()
    assert stopped.prefix == (found.end_position, found.min_position, found.cold_queues)
    assert len(found.cold_queues) == 2


def test_memory_stays_until_it_is_released_and_belongs_to_no_store(
    config: StoreConfig, stopped: StoppedLog
) -> None:
    assert manifests.load(manifests.manifest_path(config.store_path)) is None
    assert objects(config)
    stopped.release()
    assert objects(config) == []
    assert not leaving_path(config.store_path).exists()


def test_store_that_is_opened_after_a_death_removes_what_was_left(
    config: StoreConfig, stopped: StoppedLog
) -> None:
    """Where the process died before it released: the next one finds the list."""
    left = set(objects(config))
    store = MessageStore(config, is_slave=True)
    store.open()
    assert left.isdisjoint(objects(config))
    store.start()
    store.stop()
    assert not stopped.holds(positions.positions_path(config.store_path))
    assert objects(config) == []
