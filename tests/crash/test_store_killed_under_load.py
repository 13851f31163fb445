"""The store's process is killed at random moments while producers and readers are at full work.

Three producers send to an ASYNC_FLUSH and a SYNC_FLUSH queue, two readers read both; a fourth
producer is itself killed now and then, also while no store process lives. Each successor adopts;
the clients resume in the middle of their waits and go on. In the end the log holds every message of
every producer once and in order, at the offset that its producer was told.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.crash.crowd import read_log
from tests.crash.load import Load, check_log
from tests.support.scale import scaled
from tests.support.zygote import Zygote

if TYPE_CHECKING:
    from shmq.config import StoreConfig

pytestmark = [
    pytest.mark.crash,
    pytest.mark.stress,
    pytest.mark.timeout(scaled(120, 7200)),
]


@pytest.mark.parametrize("segment_count", [None, 3], ids=["wide", "narrow"])
def test_store_killed_at_random_under_load_loses_and_doubles_nothing(
    zygote: Zygote, config: StoreConfig, rng: random.Random, segment_count: int | None
) -> None:
    config = replace(config, hot_segment_count=segment_count)
    with Load(zygote, config, rng) as load:
        for number in range(scaled(20, 1000) // 2):
            load.pass_time()
            load.kill_store(and_mortal=number % 7 == 3)
            if number % 5 == 2:
                load.pass_time()
                load.kill_only_mortal()
        load.pass_time()
        reports = load.finish()
        check_log(load, read_log(config.store_path), reports)
