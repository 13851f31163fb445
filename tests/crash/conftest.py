"""What all tests of death share: the zygote, a small store, and what must hold of a log at rest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shmq.config import StoreConfig
from tests.support.zygote import Zygote

FILE_SIZE = 256 * 1024


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    with Zygote() as made:
        yield made


@pytest.fixture
def config(tmp_path: Path, cluster_name: str) -> StoreConfig:
    """A store whose files are small, so that it rolls and retires within seconds."""
    return StoreConfig(
        store_path=tmp_path / "store",
        runtime_path=tmp_path / "run",
        cluster_name=cluster_name,
        commit_log_file_size_bytes=FILE_SIZE,
        max_message_size_bytes=64 * 1024,
        ring_bytes=64 * 1024,
        lane_count=4,
        completion_count=64,
        session_count=128,
    )
