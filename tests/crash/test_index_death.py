"""The index outlives every death of its broker: killed while it builds, and what a power cut makes
of index files that nobody synced. Every message that was acknowledged is found afterwards.
"""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING, NamedTuple

import pytest

from shmq.store.index_files import index_positions
from shmq.store.message_store import MessageStore
from tests.crash.conftest import FILE_SIZE
from tests.support.scale import scaled
from tests.support.store_process import StoreClient, StoreProcess

if TYPE_CHECKING:
    from pathlib import Path

    from shmq.config import StoreConfig

pytestmark = [pytest.mark.crash, pytest.mark.timeout(scaled(120, 3600))]

ROUNDS = scaled(4, 200)
MESSAGES_MAX = 500
"""Of 2 KiB in a round: up to four files."""
FOREVER_MS = 1 << 60


class Sent(NamedTuple):
    key: str
    unique_key: str
    queue_offset: int


def _send(process: StoreProcess, sent: list[Sent], count: int) -> None:
    """So many messages, each acknowledged."""
    handle = process.add_queue("orders")
    with StoreClient(process, consumer=False) as client:
        client.grant(handle)
        for _ in range(count):
            key = f"key-{len(sent)}"
            status, _, queue_offset, _, _, unique_key = client.lanes[0].send(
                *handle, bytes(2000), None, key
            )
            assert status == 0
            assert unique_key is not None
            sent.append(Sent(key, unique_key, queue_offset))


def _check(config: StoreConfig, sent: list[Sent], some: random.Random) -> None:
    with MessageStore(config) as store:
        lookup = store.message_lookup
        for message in some.sample(sent, min(200, len(sent))):
            for topic, key in (("orders", message.key), (None, message.unique_key)):
                found = lookup.by_key(
                    topic,
                    key,
                    begin_ms=0,
                    end_ms=FOREVER_MS,
                    message_count=2,
                    is_unique_key=topic is None,
                )
                assert [each.queue_offset for each in found] == [message.queue_offset]


def _cut_power(folder: Path, rng: random.Random) -> None:
    """What may be left of files that were renamed and not synced: any beginning, any page lost."""
    for path in sorted(folder.glob("*")):
        data = bytearray(path.read_bytes())
        kind = rng.randrange(4)
        if kind == 0:
            del data[rng.randrange(len(data) + 1) :]
        elif kind == 1 and data:
            page = rng.randrange(len(data)) // 4096 * 4096
            data[page : page + 4096] = bytes(len(data[page : page + 4096]))
        elif kind == 2:
            path.unlink()
            continue
        path.write_bytes(data)


def test_store_killed_while_its_index_is_built_finds_everything(
    config: StoreConfig, rng: random.Random
) -> None:
    sent: list[Sent] = []
    for _ in range(ROUNDS):
        process = StoreProcess(config)
        try:
            _send(process, sent, rng.randrange(1, MESSAGES_MAX))
            # Any moment: sends are over, the builder begins a tenth of a second later.
            threading.Event().wait(rng.uniform(0.0, 0.3))
        finally:
            process.abandon()
        _check(config, sent, rng)
    assert len(sent) * 2000 > FILE_SIZE
    assert len(index_positions(config.store_path)) > 0


def test_power_cut_takes_index_files_and_nothing_is_missed(
    config: StoreConfig, rng: random.Random
) -> None:
    sent: list[Sent] = []
    for _ in range(ROUNDS):
        with StoreProcess(config) as process:
            _send(process, sent, MESSAGES_MAX // 2)
        _check(config, sent, rng)
        _cut_power(config.store_path / "shmq/index", rng)
        _check(config, sent, rng)
