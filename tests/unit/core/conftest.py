"""What tests of the client's side of the core share."""

from collections.abc import Iterator

import pytest

from tests.unit.core.log_in_memory import LogInMemory


@pytest.fixture
def log() -> Iterator[LogInMemory]:
    with LogInMemory() as log:
        yield log
