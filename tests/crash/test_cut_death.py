"""A cut of a log is killed at every step, and again: it ends the same, and no byte is ever away."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from shmq.store import positions
from shmq.store.cuts import CutPlan, begin_cut
from shmq.store.recovery import recover_files
from tests.support.scale import scaled
from tests.support.store_process import ROOT
from tests.unit.store.stores import FILE_SIZE, Writer

if TYPE_CHECKING:
    import random
    from pathlib import Path

pytestmark = [pytest.mark.crash, pytest.mark.timeout(scaled(120, 3600))]


@pytest.mark.parametrize("is_whole", [False, True], ids=["part", "whole"])
def test_cut_killed_at_any_step_ends_the_same(
    tmp_path: Path, rng: random.Random, is_whole: bool
) -> None:
    store = tmp_path / "store"
    log = Writer(store).fill(1000)
    recover_files(store, FILE_SIZE).consume_queues.close()
    known = positions.Positions(
        flushed_position=log.position,
        min_position=0,
        store_generation=1,
        boot_id=bytes(16),
        store_timestamp=0,
        file_size_bytes=FILE_SIZE,
    )
    positions.save(positions.positions_path(store), known, durable=True)
    position = 0 if is_whole else log.records[300].position
    begin_cut(store, CutPlan(position, log.position, position), cut_at=1)
    command = [sys.executable, "-m", "tests.crash.cut_deaths"]
    arguments = [str(store), str(rng.randrange(1 << 32)), str(scaled(60, 100_000))]
    done = subprocess.run([*command, *arguments], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    assert int(done.stdout) > 100
