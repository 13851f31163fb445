"""What `shmq check` says of numbers, without a broker that has them."""

from __future__ import annotations

import pytest

from shmq.broker.stats import ROUND_MAX_S
from shmq.store.retention import DiskUsage
from shmq.tools.checks import CHECKS, State
from shmq.tools.reading import Reading

BROKER = {"cluster": "c", "broker": "b", "broker_id": "0"}


@pytest.fixture
def reading() -> Reading:
    made = Reading(0, DiskUsage(used_bytes=1, free_bytes=1))
    made.take("shmq_broker_up", BROKER, 1)
    made.take("shmq_ha_role", {**BROKER, "role": "master"}, 1)
    return made


@pytest.mark.parametrize(
    ("age_s", "wanted"),
    [(1.0, State.OK), (1.2 * ROUND_MAX_S, State.OK), (20.0, State.WARNING), (30.0, State.CRITICAL)],
)
def test_large_broker_that_goes_round_is_well(
    reading: Reading, age_s: float, wanted: State
) -> None:
    reading.take("shmq_heartbeat_age_seconds", BROKER, age_s)
    assert CHECKS["broker"].run("broker", reading, CHECKS["broker"].limits).state is wanted
