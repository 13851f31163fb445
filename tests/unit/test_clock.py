"""The clock seam: the kernel's clocks, and the stepped one that stands in for them."""

import time

from shmq.clock import SYSTEM_CLOCK, Clock
from tests.support.clock import SteppedClock


def test_system_clock_is_the_kernels() -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    now = SYSTEM_CLOCK.monotonic_ns()
    assert before <= now <= time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    before_ms = time.time_ns() // 1_000_000
    assert before_ms <= SYSTEM_CLOCK.wall_ms() <= time.time_ns() // 1_000_000


def test_stepped_clock_moves_by_the_tests_hand_only() -> None:
    stepped = SteppedClock(wall_ms=5_000)
    clock: Clock = stepped
    assert (clock.wall_ms(), clock.monotonic_ns()) == (5_000, clock.monotonic_ns())
    begin_ns = clock.monotonic_ns()
    stepped.advance(ms=250)
    assert (clock.wall_ms(), clock.monotonic_ns() - begin_ns) == (5_250, 250_000_000)


def test_wall_jump_leaves_durations_alone() -> None:
    stepped = SteppedClock(wall_ms=5_000)
    begin_ns = stepped.monotonic_ns()
    stepped.jump_wall(ms=-4_000)
    assert (stepped.wall_ms(), stepped.monotonic_ns()) == (1_000, begin_ns)
