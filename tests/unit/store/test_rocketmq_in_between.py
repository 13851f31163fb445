"""A store that a real RocketMQ broker had between two lives of ours, as its files would be then."""

from pathlib import Path

import pytest

from shmq.config import StoreConfig
from shmq.store import positions
from shmq.store.quarantine import Quarantine
from tests.support.store_process import StoreClient, StoreProcess, wait_until
from tests.unit.store.stores import Writer

FILE_SIZE = 1 << 20
SENT = 20
BY_ROCKETMQ = 30


@pytest.fixture
def config(tmp_path: Path, cluster_name: str) -> StoreConfig:
    return StoreConfig(
        store_path=tmp_path / "store",
        runtime_path=tmp_path / "run",
        cluster_name=cluster_name,
        commit_log_file_size_bytes=FILE_SIZE,
        hot_segment_count=3,
        max_message_size_bytes=256 * 1024,
    )


def _send(store: StoreProcess) -> int:
    """Some messages to queue 0 of orders; the end of the log, once it is on disk."""
    handle = store.add_queue("orders", 0)
    with StoreClient(store) as client:
        client.grant(handle)
        for number in range(SENT):
            client.lanes[0].send(*handle, f"ours {number}")
    wait_until(
        lambda: (
            store.facts()["positions"]["flushed_position"]
            == store.facts()["positions"]["committed_position"]
        )
    )
    return int(store.facts()["positions"]["committed_position"])


def _rocketmq_goes_on(config: StoreConfig, end: int, queue_offset: int) -> None:
    writer = Writer(config.store_path, file_size=FILE_SIZE, has_record_crc=False, begin=end)
    writer.ends["orders", 0] = queue_offset
    for number in range(BY_ROCKETMQ):
        writer.put("orders", 0, f"theirs {number}".encode())
    (config.store_path / "checkpoint").write_bytes(bytes(4096))


def _max_queue_offset(store: StoreProcess) -> int:
    ((_, _, _, offsets),) = store.facts()["queues"]
    return int(offsets["max_queue_offset"])


def test_its_records_are_kept_over_every_later_recovery(config: StoreConfig) -> None:
    """They carry no __CRC32#: asked for it once, they would all be damage."""
    with StoreProcess(config) as store:
        end = _send(store)
    _rocketmq_goes_on(config, end, SENT)
    for _ in range(3):
        with StoreProcess(config) as store:
            assert _max_queue_offset(store) == SENT + BY_ROCKETMQ
        assert Quarantine.load(Quarantine.path(config.store_path)).holes == ()
        known = positions.load(positions.positions_path(config.store_path))
        assert known is not None
        assert end < known.record_crc_position <= known.flushed_position


def test_memory_of_before_is_not_adopted(config: StoreConfig) -> None:
    """The broker was killed and its memory is there, but the log has gone on without it."""
    store = StoreProcess(config)
    end = _send(store)
    store.kill()
    _rocketmq_goes_on(config, end, SENT)
    with store.restart() as successor:
        assert not successor.is_adopted
        assert _max_queue_offset(successor) == SENT + BY_ROCKETMQ
        assert successor.facts()["positions"]["committed_position"] > end
