"""What tests of the client's side of the core share."""

import re
from collections.abc import Iterator

import pytest

from shmq.config import StoreConfig
from shmq.store.queues import QueueHandle
from tests.support.dev_shm import RUN_TOKEN
from tests.support.store_process import StoreClient, StoreProcess, wait_until
from tests.unit.core.log_in_memory import LogInMemory

FILE_SIZE = 32 << 20  # more than the tests of a module send


@pytest.fixture
def log() -> Iterator[LogInMemory]:
    with LogInMemory() as log:
        yield log


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreProcess]:
    """A store in a process of its own, with small rings and few completions, so that both fill."""
    folder = tmp_path_factory.mktemp("store")
    config = StoreConfig(
        store_path=folder / "store",
        runtime_path=folder / "run",
        cluster_name=f"{RUN_TOKEN}core",
        broker_name="b",
        commit_log_file_size_bytes=FILE_SIZE,
        hot_segment_count=3,
        max_message_size_bytes=512 * 1024,
        ring_bytes=256 * 1024,
        lane_count=2,
        completion_count=64,
    )
    with StoreProcess(config) as store:
        # All its segments are there before the first test looks at what is in /dev/shm.
        wait_until(lambda: store.facts()["state"]["ready_end"] == 3 * FILE_SIZE)
        yield store


@pytest.fixture
def client(store: StoreProcess) -> Iterator[StoreClient]:
    with StoreClient(store) as client:
        yield client
        for lane in client.lanes:
            lane.close()
        client.reader.close()


@pytest.fixture
def queue(client: StoreClient, request: pytest.FixtureRequest) -> QueueHandle:
    """A queue of the test's own, granted and subscribed."""
    handle = client.store.add_queue(re.sub(r"[^a-zA-Z0-9_-]", "_", request.node.name)[:100])
    client.grant(handle)
    client.subscribe(handle)
    return handle
