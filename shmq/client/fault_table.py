"""Which brokers are better avoided for a while: RocketMQ's latency fault tolerance.

What lives here: `LatencyFaultTable`, a small state machine. Only sends that may go anywhere ask it:
a key's queue and an explicit one never move. Which process: the program's, any thread. Nothing
blocks or fails.
"""

from __future__ import annotations

import bisect
from typing import Final

__all__ = ["LatencyFaultTable"]

LATENCY_MS: Final = (50, 100, 550, 1800, 3000, 5000, 15000)
"""RocketMQ's latencyMax: a send that took so long ..."""
AVOID_MS: Final = (0, 0, 2000, 5000, 6000, 10000, 30000)
"""... has its broker avoided for so long (notAvailableDuration)."""
SLOW_NS: Final = LATENCY_MS[2] * 1_000_000
"""The shortest latency that has a consequence."""


class LatencyFaultTable:
    """Until when brokers are avoided, by name; monotonic nanoseconds."""

    def __init__(self) -> None:
        self._until: dict[str, int] = {}

    def update(self, broker_name: str, latency_ns: int, now_ns: int) -> bool:
        """A send took so long; whether that changes where others may go."""
        index = bisect.bisect_right(LATENCY_MS, latency_ns / 1e6) - 1
        avoid_ns = AVOID_MS[index] * 1_000_000 if index >= 0 else 0
        known = self._until.get(broker_name, 0)
        if avoid_ns:
            self._until[broker_name] = now_ns + avoid_ns
            return known <= now_ns
        if known:
            del self._until[broker_name]
        return known > now_ns

    def is_avoided(self, broker_name: str, now_ns: int) -> bool:
        """Whether others are to be preferred."""
        return self._until.get(broker_name, 0) > now_ns

    def next_change_ns(self, now_ns: int) -> int | None:
        """When the first of those that are avoided may be used again; None: none is."""
        return min((until for until in self._until.values() if until > now_ns), default=None)
