"""Time behind one seam: what needs a time takes a Clock, and a test hands it one it can step.

Durations, deadlines and leases use `monotonic_ns`, which wall-clock jumps do not touch; delays that
outlive a process and go on in suspend use `boottime_ns`; only
timestamps that RocketMQ's formats carry (bornTimestamp, storeTimestamp) use `wall_ms`. Nothing
here writes, blocks or fails.
"""

import time
from typing import Protocol

__all__ = ["Clock", "SYSTEM_CLOCK", "SystemClock"]


class Clock(Protocol):
    """Where time comes from."""

    def monotonic_ns(self) -> int:
        """Nanoseconds since an arbitrary start; never goes back, stands still in suspend."""

    def boottime_ns(self) -> int:
        """Nanoseconds since the machine started, suspend included; never goes back."""

    def wall_ms(self) -> int:
        """Milliseconds since 1970-01-01 UTC; may jump either way."""


class SystemClock:
    """The kernel's clocks (CLOCK_MONOTONIC, CLOCK_BOOTTIME and CLOCK_REALTIME)."""

    __slots__ = ()

    def monotonic_ns(self) -> int:
        """Nanoseconds of CLOCK_MONOTONIC, comparable between processes of one boot."""
        return time.monotonic_ns()

    def boottime_ns(self) -> int:
        """Nanoseconds of CLOCK_BOOTTIME, comparable between processes of one boot."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def wall_ms(self) -> int:
        """Milliseconds since 1970-01-01 UTC, from CLOCK_REALTIME."""
        return time.time_ns() // 1_000_000


SYSTEM_CLOCK: Clock = SystemClock()
