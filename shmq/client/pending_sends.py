"""Sends whose completions nobody has seen yet, in the order of their rings.

What lives here: `PendingSend` and `PendingSends`, a state machine without waiting: the settling
thread of `settler.py` and the event loop of `wake_hub.py` drive one each. Which process: the
program's; one thread sweeps, any adds. Writes nothing but the lanes' own marks of what is fetched.
May fail: an expired send has the status TIMED_OUT, one whose session ended CLOSED.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from shmq.clock import SYSTEM_CLOCK
from shmq.core import core
from shmq.errors import ClosedError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PendingSend", "PendingSends"]

_TIMED_OUT = core.STATUS["TIMED_OUT"][0]
_CLOSED = core.STATUS["CLOSED"][0]


@dataclass(eq=False, slots=True, kw_only=True)
class PendingSend:
    """One send under way."""

    lane: core.Lane
    """The ring it is in."""
    sequence: int
    """Its number there."""
    deadline_ns: int
    """Monotonic."""
    put_ns: int = field(default_factory=SYSTEM_CLOCK.monotonic_ns)
    """When; monotonic."""
    is_done: bool = False
    """Its completion was taken, or is not waited for any more."""


P = TypeVar("P", bound=PendingSend)


class PendingSends(Generic[P]):
    """All that are under way in one session, or several."""

    def __init__(self) -> None:
        self._rings: dict[core.Lane, deque[P]] = {}
        self._deadlines: list[tuple[int, int, P]] = []
        self._numbers = itertools.count()

    def add(self, pending: P) -> None:
        """It was put, with keep=True. Never blocks."""
        ring = self._rings.get(pending.lane)
        if ring is None:
            ring = self._rings.setdefault(pending.lane, deque())
        heapq.heappush(self._deadlines, (pending.deadline_ns, next(self._numbers), pending))
        ring.append(pending)

    def all(self) -> list[P]:
        """Those that are not done."""
        rings = tuple(self._rings.values())
        return [pending for ring in rings for pending in ring if not pending.is_done]

    def heads(self) -> list[P]:
        """The oldest of each ring."""
        return [ring[0] for ring in tuple(self._rings.values()) if ring]

    def first_deadline_ns(self) -> int | None:
        """When the next is due, monotonic; None: nothing is under way."""
        return self._deadlines[0][0] if self._deadlines else None

    def done(self, pending: P) -> None:
        """Somebody else has taken its completion."""
        pending.is_done = True
        self._rings[pending.lane].remove(pending)

    def sweep(self) -> list[tuple[P, int, int]]:
        """All that are done or whose time is up, with status and queue_offset. Their places are
        free before anybody is told, so that who is told may send.
        """
        done = list(self._expire())
        for lane, ring in tuple(self._rings.items()):
            while ring:
                pending = ring[0]
                if not pending.is_done:
                    try:
                        found = lane.take(pending.sequence)
                        if found is None and not lane.ended:
                            break
                        status, queue_offset = (_CLOSED, -1) if found is None else found[:2]
                    except ClosedError:
                        status, queue_offset = _CLOSED, -1
                    pending.is_done = True
                    done.append((pending, status, queue_offset))
                ring.popleft()
            if not ring and lane.closed:
                self._rings.pop(lane, None)
        return done

    def _expire(self) -> Iterator[tuple[P, int, int]]:
        """Those whose time is up, wherever in their rings they are."""
        now_ns = SYSTEM_CLOCK.monotonic_ns()
        deadlines = self._deadlines
        while deadlines and (deadlines[0][2].is_done or deadlines[0][0] <= now_ns):
            pending = heapq.heappop(deadlines)[2]
            if pending.is_done:
                continue
            try:
                found = pending.lane.take(pending.sequence)
                if found is None:
                    pending.lane.forget(pending.sequence)
                    found = _TIMED_OUT, -1, -1, 0
            except ClosedError:
                continue  # the sweep says so
            pending.is_done = True
            yield pending, found[0], found[1]
