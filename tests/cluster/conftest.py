"""What tests of clusters share: a module's cluster, and clusters and brokers of a test's own.

A test takes `cluster` (or `client`) and names of its own (`topic`, `group`) if it only sends and
receives, and `own_cluster` or `pair` if it kills, stops or fills a broker.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import shmq
from tests.support.aio_bridge import BridgedClient
from tests.support.broker_process import BrokerProcess
from tests.support.cluster import Cluster
from tests.support.dev_shm import SHARED, ours_in_dev_shm

_numbers = itertools.count()


class SharedCluster:
    """One cluster for the tests of a module, and the next one if a test leaves it broken."""

    def __init__(self, folder: Path, broker_count: int, settings: Mapping[str, str]) -> None:
        self._folder = folder
        self._broker_count = broker_count
        self._settings = settings
        self._cluster: Cluster | None = None

    def get(self) -> Cluster:
        if self._cluster is None or not self._cluster.is_running:
            self.close()
            number = next(_numbers)
            folder = self._folder / str(number)
            folder.mkdir()
            self._cluster = Cluster(
                folder, f"{SHARED}{number}", brokers=self._broker_count, **self._settings
            )
        return self._cluster

    def close(self) -> None:
        if self._cluster is not None:
            self._cluster.__exit__()
            self._cluster = None
            left = [name for name in ours_in_dev_shm() if SHARED in name]
            assert not left, f"left in /dev/shm: {', '.join(left)}"


@pytest.fixture(scope="module")
def shared_cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SharedCluster]:
    """With the module's BROKER_COUNT and BROKER_SETTINGS, if it has such."""
    shared = SharedCluster(
        tmp_path_factory.mktemp("shared"),
        getattr(request.module, "BROKER_COUNT", 1),
        getattr(request.module, "BROKER_SETTINGS", {}),
    )
    yield shared
    shared.close()


@pytest.fixture
def cluster(shared_cluster: SharedCluster) -> Cluster:
    """The module's."""
    return shared_cluster.get()


@pytest.fixture
def client(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[shmq.Client]:
    """Of the module's cluster; with a parameter, such as `both` gives, of another kind."""
    with _connected(cluster, request) as made:
        yield made


def _connected(cluster: Cluster, request: pytest.FixtureRequest) -> Any:
    kind = getattr(request, "param", "threads")
    return cluster.connect() if kind == "threads" else BridgedClient(cluster.runtime, kind)


@pytest.fixture
def admin(cluster: Cluster) -> Iterator[shmq.Admin]:
    with shmq.Admin(cluster.runtime) as made:
        yield made


@pytest.fixture
def own_cluster(tmp_path: Path, cluster_name: str) -> Iterator[Cluster]:
    with Cluster(tmp_path, cluster_name) as made:
        yield made


@pytest.fixture
def own_client(own_cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[shmq.Client]:
    """Of `own_cluster`; with a parameter as `client`."""
    with _connected(own_cluster, request) as made:
        yield made


@pytest.fixture
def pair(tmp_path: Path, cluster_name: str) -> Iterator[Cluster]:
    """Two brokers, of the test's own."""
    with Cluster(tmp_path, cluster_name, brokers=2) as made:
        yield made


@pytest.fixture(scope="module")
def shared_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """One without a NameServer, for tests of a module that leave it as it is."""
    folder = tmp_path_factory.mktemp("shared-broker")
    with BrokerProcess(folder, f"{SHARED}{next(_numbers)}") as started:
        yield started


@pytest.fixture
def broker(tmp_path: Path, cluster_name: str) -> Iterator[BrokerProcess]:
    """One without a NameServer, of the test's own."""
    with BrokerProcess(tmp_path, cluster_name) as started:
        yield started


@pytest.fixture
def topic() -> str:
    """A name that no other test has."""
    return f"topic-{next(_numbers)}"


@pytest.fixture
def other_topic() -> str:
    return f"other-topic-{next(_numbers)}"


@pytest.fixture
def group() -> str:
    """A name that no other test has."""
    return f"group-{next(_numbers)}"


@pytest.fixture
def other_group() -> str:
    return f"other-group-{next(_numbers)}"
