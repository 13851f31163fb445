"""The kernel dies under a store on ext4: what was in the page cache is gone, again and again.

The store lies on ext4 on a loop device. Its client has sends under way when the file system is shut
down without its journal being written; the store's process is killed and its shared memory goes, as
a reboot would have it; the image is mounted again, ext4 recovers, then the store. What a client was
told or saw on the SYNC_FLUSH topic is there and stays where it was, over all those lives.
"""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shmq.store.recovery import recover_files
from shmq.tools.fsck import fsck
from tests.crash.conftest import FILE_SIZE
from tests.crash.ledger import body_of, read_frames
from tests.crash.scene import wipe
from tests.crash.witness import TOPICS, Witness
from tests.support.invariants import History, Place, Stored
from tests.support.mounts import Ext4OnLoop
from tests.support.rocketmq_decoder import decode_commit_log
from tests.support.scale import scaled
from tests.support.zygote import ForkedStore

if TYPE_CHECKING:
    from shmq.config import StoreConfig
    from tests.support.zygote import Zygote

pytestmark = [pytest.mark.crash, pytest.mark.timeout(scaled(120, 7200))]

STORES = scaled(1, 100)
CUTS = 10
"""Of one store: its log is read whole behind each."""
DISK_BYTES = 64 << 20


@pytest.mark.parametrize("flush_interval_ms", [0, 20])
def test_power_cut_under_load_loses_nothing_that_was_safe(
    zygote: Zygote,
    config: StoreConfig,
    tmp_path: Path,
    rng: random.Random,
    flush_interval_ms: int,
) -> None:
    with Ext4OnLoop(tmp_path / "disk", tmp_path / "mnt", size=DISK_BYTES) as disk:
        for _ in range(STORES):
            cut_again_and_again(
                zygote,
                replace(
                    config, store_path=disk.folder / "store", flush_interval_ms=flush_interval_ms
                ),
                disk,
                rng,
            )
            shutil.rmtree(disk.folder / "store")


def cut_again_and_again(
    zygote: Zygote, config: StoreConfig, disk: Ext4OnLoop, chance: random.Random
) -> None:
    witness = Witness(chance)
    store = ForkedStore(zygote, config)
    try:
        for _ in range(CUTS):
            witness.attach(store)
            for _ in range(chance.randrange(1, 30)):
                witness.put(chance.randrange(1, 30))
                witness.look()
            # What is answered later does not count: a sync that is under way succeeds now and then
            # though its data is lost, where a real power cut would let nobody hear of it.
            disk.cut_power()
            store.kill()
            witness.detach()
            wipe(config)
            disk.boot()
            check(config.store_path, witness)
            store = store.restart()
            assert not store.is_adopted
        store.stop()
    finally:
        store.abandon()
        wipe(config)
    assert fsck(config.store_path).findings == []


def check(store_path: Path, witness: Witness) -> None:
    """Recover, and hold the log to what the client knows; again, and no byte has changed."""
    recovered = recover_files(store_path, FILE_SIZE)
    recovered.consume_queues.close()
    assert recovered.holes == ()
    before = _bytes(store_path)
    recover_files(store_path, FILE_SIZE).consume_queues.close()
    assert _bytes(store_path) == before
    history = History()
    physical_offsets = {}
    for found in read_frames(decode_commit_log(store_path / "commitlog")):
        place = Place(found.topic, found.queue_id, found.queue_offset)
        history.stored.append(Stored(*place, body_of(found.sent)))
        physical_offsets[place] = found.physical_offset
    for known in witness.known.values():
        place = Place(TOPICS[known.sent.queue], 0, known.queue_offset)
        history.seen[place] = body_of(known.sent)
    history.check_queues_are_whole(begin=0)
    history.check_seen_is_kept()
    for known in witness.known.values():
        place = Place(TOPICS[known.sent.queue], 0, known.queue_offset)
        assert physical_offsets[place] == known.physical_offset, known


def _bytes(store_path: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in store_path.rglob("*") if path.is_file()}
