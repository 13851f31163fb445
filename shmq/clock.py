"""Time behind one seam: what needs a time takes a Clock, and a test hands it one it can step.

Durations, deadlines and leases use `monotonic_ns`, which wall-clock jumps do not touch; delays that
outlive a process and go on in suspend use `boottime_ns`; only
timestamps that RocketMQ's formats carry (bornTimestamp, storeTimestamp) use `wall_ms`. Nothing
here writes, blocks or fails.
"""

import time
from typing import Protocol

__all__ = ["AttendedTime", "Clock", "SYSTEM_CLOCK", "SystemClock"]


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


class AttendedTime:
    """Time that passes only while we are there to look: nanoseconds, from a start at zero.

    Who was stopped, or starved of its processor, for a minute has not seen anybody for a minute,
    and that says nothing about them. So of the time between two looks no more counts than the pause
    that is usual between them. Fencing and expiry come late after such a minute; never too early.

    Args:
        pause_ms_max: what counts at most of the time between two looks; a few times the interval
            in which somebody looks.
    """

    __slots__ = ("_attended_ns", "_last_ns", "_pause_ns_max")

    def __init__(self, *, pause_ms_max: int) -> None:
        self._pause_ns_max = pause_ms_max * 1_000_000
        self._attended_ns = 0
        self._last_ns: int | None = None

    def look(self, monotonic_ns: int) -> int:
        """Attended time now, in nanoseconds.

        Args:
            monotonic_ns: the clock's time now; it does not go back.
        """
        if self._last_ns is not None:
            self._attended_ns += min(monotonic_ns - self._last_ns, self._pause_ns_max)
        self._last_ns = monotonic_ns
        return self._attended_ns
