"""A slave's store copies its master's, in another process, under load; either is killed at random.

In the end both logs are equal byte for byte, and so are the queues and the derived files.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from shmq.clock import SYSTEM_CLOCK
from shmq.shm import manifest as manifests
from shmq.shm.names import ObjectKind
from shmq.store.hot_log import SLAVES_WAIT_NS
from tests.crash.conftest import FILE_SIZE
from tests.crash.crowd import read_log
from tests.crash.ledger import check_once_and_in_order
from tests.crash.pair import Pair
from tests.crash.worker import Worker, await_progress
from tests.support.rocketmq_decoder import decode_commit_log
from tests.support.scale import scaled
from tests.support.standing_still import stopped
from tests.support.store_process import StoreClient, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shmq.config import StoreConfig
    from shmq.store.queues import QueueHandle
    from tests.support.zygote import Zygote

pytestmark = [pytest.mark.crash, pytest.mark.timeout(scaled(120, 7200))]

SIZES = [24, 100, 3000, 40, 400]


def producers(pair: Pair, zygote: Zygote, count: int) -> list[Worker]:
    """Producers of the master, at work on two queues."""
    queues = [pair.master.add_queue("load", number) for number in range(2)]
    rows = [list(handle) for handle in queues]
    made = []
    for number in range(count):
        worker = pair.enter_context(Worker(zygote, pair.master, consumer=False, map_log=False))
        worker.grant(pair.master, *queues)
        worker.call("produce", producer=number, queues=rows, sizes=SIZES, burst=4)
        made.append(worker)
    return made


def finish(pair: Pair, workers: list[Worker]) -> None:
    """End in order; the slave's files alone hold every message once."""
    sent = {}
    for number, worker in enumerate(workers):
        report = worker.finish()
        assert not report["refused"], report
        sent |= {(number, queue): count for queue, count in enumerate(report["sent"])}
        worker.close()
    pair.check_equal()
    found = read_log(pair.slave_config.store_path)
    assert check_once_and_in_order(found) == sent


def test_slave_from_empty_becomes_equal_while_messages_come(
    zygote: Zygote, config: StoreConfig
) -> None:
    with Pair(zygote, config) as pair:
        workers = producers(pair, zygote, 2)
        await_progress(workers, by=200)  # some files, of which the slave has to ask for
        pair.open_slave()
        await_progress(workers, by=200)
        finish(pair, workers)


@pytest.mark.parametrize("segment_count", [None, 3], ids=["wide", "narrow"])
def test_master_or_slave_killed_at_random_under_load_ends_equal(
    zygote: Zygote, config: StoreConfig, rng: random.Random, segment_count: int | None
) -> None:
    config = replace(config, hot_segment_count=segment_count)
    with Pair(zygote, config) as pair:
        workers = producers(pair, zygote, 2)
        pair.open_slave()
        for _ in range(scaled(6, 500)):
            await_progress(workers, by=rng.randrange(1, 60))
            if rng.randrange(2):
                pair.kill_master()
                for worker in workers:
                    worker.resume(pair.master)
            else:
                pair.kill_slave(wiped=rng.randrange(3) == 0)
        await_progress(workers, by=20)
        finish(pair, workers)


def test_slave_that_was_away_goes_on_where_it_stopped(zygote: Zygote, config: StoreConfig) -> None:
    with Pair(zygote, config) as pair:
        workers = producers(pair, zygote, 1)
        pair.open_slave()
        await_progress(workers, by=50)
        pair.await_equal()
        pair.slave.call("unfollow")
        pair.slave.stop()
        pair.master.call("remove_replica", index=pair.index)
        await_progress(workers, by=300)
        pair.open_slave()
        finish(pair, workers)


def test_queue_deleted_and_made_anew_at_the_master_is_so_at_the_slave(
    zygote: Zygote, config: StoreConfig
) -> None:
    with Pair(zygote, config) as pair:
        pair.open_slave()
        with StoreClient(pair.master, consumer=False) as client:
            for _ in range(2):
                handle = pair.master.add_queue("again")
                client.grant(handle)
                for _ in range(3):
                    status, *_ = client.lanes[0].wait(
                        client.lanes[0].put(*handle, b"x", None, None, {}, 0, keep=True), 5.0
                    )
                    assert status == 0
                pair.await_equal()
                pair.master.call("delete_queue", topic="again", queue_id=0)
        (at,) = [row[3] for row in pair.slave.facts()["queues"]]
        assert at["max_queue_offset"] == 3


def flip(config: StoreConfig, physical_offset: int) -> None:
    """Turn one bit over in the hot memory of the first file of a store."""
    manifest = manifests.load(manifests.manifest_path(config.store_path))
    assert manifest is not None
    name = manifest.store.object(ObjectKind.HOT, 0)
    with open(f"/dev/shm/{name}", "r+b") as memory:
        memory.seek(physical_offset)
        byte = memory.read(1)[0]
        memory.seek(physical_offset)
        memory.write(bytes([byte ^ 4]))


def test_frame_damaged_in_the_masters_memory_is_said_and_never_copied(
    zygote: Zygote, config: StoreConfig
) -> None:
    """A bit flips before the slave has copied the frame: it stops there, loudly, with all that
    came before; once the frame holds again it goes on.
    """
    with Pair(zygote, config) as pair, StoreClient(pair.master, consumer=False) as client:
        handle = pair.master.add_queue("bits")
        client.grant(handle)
        lane = client.lanes[0]
        places = []
        pair.open_slave()
        pair.slave.call("unfollow")
        pair.master.call("remove_replica", index=pair.index)
        for _ in range(3):
            status, _, physical_offset, _ = lane.wait(
                lane.put(*handle, b"x" * 50, None, None, {}, 0, keep=True), 5.0
            )
            assert status == 0
            places.append(physical_offset)
        flip(config, places[1] + 100)
        pair.join()
        wait_until(lambda: pair.slave.facts()["replica"][0] == "DAMAGED")
        facts = pair.slave.facts()
        assert facts["positions"]["committed_position"] == places[1]
        assert str(places[1]) in facts["replica"][1]
        flip(config, places[1] + 100)
        pair.await_equal()
        wait_until(lambda: pair.slave.facts()["replica"] == ["COPYING", None])
        pair.slave.stop()
        log = decode_commit_log(pair.slave_config.store_path / "commitlog")
        assert [frame.physical_offset for frame in log] == places


def fill(pair: Pair, client: StoreClient, handle: QueueHandle, file_count: int) -> Iterator[int]:
    """Messages that fill so many files; after each where the first byte in memory is."""
    lane = client.lanes[0]
    size = pair.master.config.commit_log_file_size_bytes
    assert size is not None
    for _ in range(file_count * size // 3200):
        status, *_ = lane.wait(lane.put(*handle, bytes(3000), None, None, {}, 0, keep=True), 30.0)
        assert status == 0
        yield pair.master.facts()["positions"]["hot_min_position"]


@pytest.mark.parametrize("segment_count", [3, 8])
def test_master_with_few_segments_keeps_what_its_slaves_go_on_with(
    zygote: Zygote, config: StoreConfig, segment_count: int
) -> None:
    """Who asks for hot segments gets them for bursts, all but the last ahead; with a slave some
    complete files stay, so that a log which ends in one of them can go on with this memory.
    """
    config = replace(config, hot_segment_count=segment_count)
    with Pair(zygote, config) as pair, StoreClient(pair.master, consumer=False) as client:
        handle = pair.master.add_queue("t")
        client.grant(handle)
        pair.open_slave()
        behind = max(1, segment_count - 4)
        for hot_min in fill(pair, client, handle, segment_count + 3):
            log_end = pair.master.facts()["positions"]["committed_position"]
            assert hot_min <= max(0, log_end // FILE_SIZE - behind) * FILE_SIZE
        assert hot_min > 0
        pair.check_equal()


def test_file_stays_in_memory_for_a_slave_in_sync_and_not_for_long(
    zygote: Zygote, config: StoreConfig
) -> None:
    config = replace(config, hot_segment_count=3)
    with Pair(zygote, config) as pair, StoreClient(pair.master, consumer=False) as client:
        handle = pair.master.add_queue("t")
        client.grant(handle)
        pair.open_slave()
        pair.await_equal()
        assert pair.master.call("set_in_sync", index=pair.index, is_in_sync=True)[0]
        begin_ns = SYSTEM_CLOCK.monotonic_ns()
        with stopped(pair.slave.process.pid):
            slave_end = pair.master.facts()["positions"]["committed_position"]
            for hot_min in fill(pair, client, handle, 6):
                if hot_min > slave_end:
                    break
            assert hot_min > slave_end, "the master waits for a slave that is stopped"
            assert SYSTEM_CLOCK.monotonic_ns() - begin_ns >= SLAVES_WAIT_NS
        pair.check_equal()
