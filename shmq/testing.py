"""What tests of programs use: a pytest fixture with a cluster of the test's own.

What lives here: the pytest plugin `shmq` (an entry point: having shmq installed is enough) and its
fixture `shmq_client`. Which process: the test's. Writes: a temporary folder, removed with the
cluster. May fail: what shmq.local raises.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    import shmq

__all__ = ["shmq_client"]


@pytest.fixture
def shmq_client() -> Iterator[shmq.Client]:
    """A Client of a private cluster: a NameServer and a broker that end with the test.

    Example:
        def test_order_is_billed(shmq_client):
            shmq_client.producer().send("orders", b"one")
            with shmq_client.consumer("orders", "billing") as consumer:
                assert bytes(consumer.try_next(5.0)) == b"one"
    """
    import shmq  # not before a test wants it: the plugin is loaded in every run

    with shmq.local() as client:
        yield client
