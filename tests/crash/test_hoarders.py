"""Consumers that do not let go: one keeps a view of every message, one stands still with its views.

The log passes through many times the memory it has. What the store keeps in /dev/shm and what is
unlinked and held by somebody are counted together; a hoarder that answers costs nothing, one that
does not is dropped once it costs more than the budget. Producers and readers go on all the while,
and whatever view a hoarder has holds the bytes that it had when it was read.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shmq.core import core
from tests.crash.conftest import FILE_SIZE
from tests.crash.crowd import Crowd
from tests.crash.scene import wipe
from tests.crash.worker import Worker
from tests.support.scale import scaled
from tests.support.store_process import wait_until
from tests.support.zygote import ForkedStore

if TYPE_CHECKING:
    from shmq.config import StoreConfig
    from tests.support.zygote import Zygote

pytestmark = [pytest.mark.crash, pytest.mark.timeout(scaled(120, 1200))]

EMPTY = core.STATUS["EMPTY"][0]
CLOSED = core.STATUS["CLOSED"][0]
HOT_SEGMENTS = 4
RETIRED_FILES_MAX = 3
FILES = scaled(16, 400)
"""CommitLog files that pass by."""


class Town(Crowd):
    """A crowd, a hoarder that reads what the crowd reads, and their memory."""

    def __init__(self, zygote: Zygote, config: StoreConfig) -> None:
        self.config = replace(
            config,
            hot_segment_count=HOT_SEGMENTS,
            retired_bytes_max=RETIRED_FILES_MAX * FILE_SIZE,
        )
        self.store = ForkedStore(zygote, self.config)
        super().__init__(zygote, self.store, pause_ms=0.1, burst=16)
        self.callback(wipe, self.config)
        self.callback(self.store.abandon)
        self.hoarder = self.enter_context(Worker(zygote, self.store, producer=False))
        self.hoarder.subscribe(self.store, *self.queues)
        self.hoarder.call("hoard", queues=[list(handle) for handle in self.queues])
        self.most_bytes = 0

    def file_count(self) -> int:
        return int(self.store.facts()["positions"]["committed_position"]) // FILE_SIZE

    def let_pass(self, files: int) -> None:
        """Let so many files pass by, everybody going on, and look at the memory meanwhile."""
        end = self.file_count() + files
        while self.file_count() < end:  # each round moves on, or fails
            self.await_progress()
            self.most_bytes = max(self.most_bytes, self.hot_bytes())

    def hot_bytes(self) -> int:
        """Bytes of log segments that are named, or that a process of ours still holds."""
        pids = [self.store.pid, self.hoarder.pid, *(worker.pid for worker in self.workers)]
        return sum(dict(_hot_objects(self.config.cluster_name, pids)).values())

    def ended(self) -> list[list[object]]:
        ended: list[list[object]] = self.store.facts()["ended"]
        return ended


def _hot_objects(cluster_name: str, pids: list[int]) -> Iterator[tuple[int, int]]:
    """(inode, bytes) of each, perhaps more than once."""
    mark = f"shmq.{cluster_name}."
    for path in Path("/dev/shm").glob(f"{mark}*.hot.*"):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue  # unlinked meanwhile
        yield status.st_ino, status.st_size
    for pid in pids:
        for line in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines():
            if mark in line and ".hot." in line:
                yield int(line.split()[4]), FILE_SIZE
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if mark in (name := os.readlink(fd)) and ".hot." in name:
                    yield fd.stat().st_ino, FILE_SIZE
            except FileNotFoundError:
                continue  # closed meanwhile


def test_consumer_that_keeps_every_view_costs_no_memory_and_delays_nobody(
    zygote: Zygote, config: StoreConfig
) -> None:
    with Town(zygote, config) as town:
        town.let_pass(FILES)
        assert town.ended() == []
        # The bound is what may be in use for a moment: what is asked for but not answered yet.
        assert town.most_bytes <= (HOT_SEGMENTS + 1 + RETIRED_FILES_MAX) * FILE_SIZE
        town.finish()
        report = town.hoarder.finish()
        assert report["spoiled"] == 0
        assert report["reading"] == EMPTY
        assert report["kept"] * 300 > FILES * FILE_SIZE / 10, "it kept hardly anything"


def test_consumer_that_stands_still_is_dropped_when_it_costs_too_much_and_delays_nobody(
    zygote: Zygote, config: StoreConfig
) -> None:
    with Town(zygote, config) as town:
        town.let_pass(2)
        town.hoarder.freeze()
        for _ in range(FILES):
            if town.ended():
                break
            town.let_pass(1)
        ((session, reason),) = town.ended()
        assert session == town.hoarder.offer.session
        assert "retired_bytes_max" in str(reason)
        # It holds what it had mapped, and what was on its way to it; nothing comes to that.
        kept_bytes = town.hot_bytes()
        assert kept_bytes <= (2 * HOT_SEGMENTS + RETIRED_FILES_MAX + 2) * FILE_SIZE
        town.let_pass(FILES)
        wait_until(lambda: town.hot_bytes() <= kept_bytes + FILE_SIZE)
        # The others are asked too, and have answered a moment later: what is kept would stay.
        wait_until(lambda: town.store.facts()["unanswered_bytes"] == 0)
        town.hoarder.process.send_signal(signal.SIGCONT)
        town.finish()
        report = town.hoarder.call("stop")
        assert report["kept"] > 0
        assert report["spoiled"] == 0
        assert report["reading"] == CLOSED
