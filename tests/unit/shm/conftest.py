"""Fixtures of the shm room's tests: a store of this test alone, gone from /dev/shm afterwards."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmq.shm.names import StoreName, parse
from shmq.shm.segment import SHM_FOLDER
from tests.unit.shm import children
from tests.unit.shm.segments import Finisher, new_store


@pytest.fixture(autouse=True)
def no_child_outlives_its_test() -> Iterator[None]:
    yield
    children.end_all()


@pytest.fixture
def store(cluster_name: str, no_child_outlives_its_test: None) -> Iterator[StoreName]:
    """A store whose objects are removed behind the test, however it ends."""
    store = new_store(cluster_name)
    yield store
    for file_name in os.listdir(SHM_FOLDER):
        name = parse(file_name)
        if name is not None and name.store.cluster == store.cluster:
            os.unlink(f"{SHM_FOLDER}/{file_name}")


@pytest.fixture(scope="session")
def finisher(tmp_path_factory: pytest.TempPathFactory) -> Finisher:
    return Finisher.build(tmp_path_factory.mktemp("finisher"))


@pytest.fixture
def runtime_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    return folder
