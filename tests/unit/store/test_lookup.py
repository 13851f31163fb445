"""Entries of a queue as the broker itself finds them, in memory and behind it."""

from __future__ import annotations

import os
from pathlib import Path

from shmq.config import StoreConfig
from shmq.core import core
from shmq.store.message_store import MessageStore
from tests.support.store_process import ClientSide

OK = core.STATUS["OK"][0]
HOT_BLOCKS = 20
"""So many blocks of the queue are in memory, about: fewer than lie between two skips' ends."""
BODY = bytes(800)


def test_entries_are_found_where_blocks_were_used_before(tmp_path: Path, cluster_name: str) -> None:
    """Blocks that skips lead to are freed, and become later blocks of the same queue: a skip may
    lead forward, or nowhere but to its own block."""
    config = StoreConfig(
        store_path=tmp_path / "store",
        runtime_path=tmp_path / "run",
        cluster_name=cluster_name,
        commit_log_file_size_bytes=1 << 20,
        hot_segment_count=3,
        max_message_size_bytes=256 << 10,
    )
    with MessageStore(config) as store:
        handle = store.queues.add("orders", 0)
        sessions = store.sessions
        offer = sessions.open(uid=os.getuid(), pid=os.getpid(), pid_start_time=1, consumer=False)
        fds, offer.fds = offer.fds, {}
        client = ClientSide(offer, fds)  # type: ignore[arg-type] # what came over a socket
        sessions.grant(offer.session, [handle.row])
        physical_offsets = []
        for _ in range(5 * HOT_BLOCKS):
            for _ in range(core.BLOCK_ENTRIES):
                answer = client.lanes[0].send(*handle, BODY, None, None)
                assert answer[0] == OK
                physical_offsets.append(answer[3])
            _check(store, physical_offsets)
        assert store.queues.offsets(handle).hot_min_queue_offset > HOT_BLOCKS * core.BLOCK_ENTRIES
        client.close()
        sessions.close(offer.session, offer.generation)


def _check(store: MessageStore, physical_offsets: list[int]) -> None:
    """One entry of each block is where it was put, and nothing is behind the last."""
    for queue_offset in range(0, len(physical_offsets), core.BLOCK_ENTRIES):
        entry = store.lookup.entry("orders", 0, queue_offset)
        assert entry is not None, queue_offset
        assert entry.physical_offset == physical_offsets[queue_offset]
    assert store.lookup.entry("orders", 0, len(physical_offsets)) is None
