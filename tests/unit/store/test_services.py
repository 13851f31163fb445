"""Services append their own messages, and their progress with them."""

from pathlib import Path

import pytest

from shmq.config import StoreConfig
from shmq.core import core
from shmq.errors import PermissionDeniedError
from shmq.store.message_store import MessageStore
from tests.support.store_process import StoreClient, StoreProcess


def _config(tmp_path: Path, cluster_name: str) -> StoreConfig:
    return StoreConfig(
        store_path=tmp_path / "store",
        runtime_path=tmp_path / "run",
        cluster_name=cluster_name,
        commit_log_file_size_bytes=8 << 20,
        hot_segment_count=3,
    )


def test_progress_is_committed_with_the_message(tmp_path: Path, cluster_name: str) -> None:
    with MessageStore(_config(tmp_path, cluster_name)) as store:
        handle = store.queues.add("%RETRY%group", 0)
        service = store.open_service(3)
        assert service.progress == 0
        answer = service.put(
            handle,
            b"again",
            progress=17,
            properties={"RECONSUME_TIME": "1"},
            reconsume_times=1,
        )
        assert answer[:2] == (core.STATUS["OK"][0], 0)
        assert service.progress == 17
        assert store.queues.offsets(handle).max_queue_offset == 1
        service.close()


def test_progress_outlives_the_service_and_its_store(tmp_path: Path, cluster_name: str) -> None:
    config = _config(tmp_path, cluster_name)
    store = MessageStore(config)
    store.open()
    store.start()
    handle = store.queues.add("T", 0)
    store.open_service(0).put(handle, b"x", progress=5)
    store.stop(keep_memory=True)
    with MessageStore(config) as successor:
        assert successor.is_adopted
        assert successor.sessions.lost == []
        assert successor.open_service(0).progress == 5


def test_client_cannot_speak_for_a_service(tmp_path: Path, cluster_name: str) -> None:
    with (
        StoreProcess(_config(tmp_path, cluster_name)) as process,
        StoreClient(process, consumer=False) as client,
        pytest.raises(PermissionDeniedError),
    ):
        client.lanes[0].set_service(progress=1)
