"""The flusher through a real store: how long it gathers."""

from pathlib import Path

import pytest

from shmq.config import StoreConfig
from shmq.core import core
from tests.support.store_process import StoreClient, StoreProcess, wait_until

OK = core.STATUS["OK"][0]
KIB = 1 << 10


@pytest.fixture
def config(tmp_path: Path, cluster_name: str) -> StoreConfig:
    return StoreConfig(
        store_path=tmp_path / "store",
        runtime_path=tmp_path / "run",
        cluster_name=cluster_name,
        commit_log_file_size_bytes=8 << 20,
        hot_segment_count=3,
        flush_interval_ms=60_000,
        unflushed_bytes_max=64 * KIB,
    )


def _flushed(store: StoreProcess) -> int:
    return int(store.facts()["positions"]["flushed_position"])


def test_group_that_is_large_enough_is_flushed_before_its_interval_is_over(
    config: StoreConfig,
) -> None:
    with StoreProcess(config) as store, StoreClient(store) as client:
        queue = store.add_queue("Topic")
        client.grant(queue)
        lane = client.lanes[0]
        assert lane.send(*queue, bytes(KIB))[0] == OK
        assert _flushed(store) == 0  # it gathers for a minute
        for _ in range(70):
            assert lane.send(*queue, bytes(KIB))[0] == OK
        wait_until(lambda: _flushed(store) > 64 * KIB)
