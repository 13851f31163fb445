"""What became of sends that nobody waits for in a call: futures.

What lives here: `Settler`, one thread for each broker that is sent to with send_async. It sleeps on
the oldest completion, takes all that are there, and then gives the futures their results. Which
process: the program's. Writes nothing. May fail: a future gets OutcomeUnknownError when its time is
up, and what the broker refused.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shmq.clock import SYSTEM_CLOCK
from shmq.core import core
from shmq.errors import ClosedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmq.client.queue_selector import SendQueue
    from shmq.result import SendResult

__all__ = ["Pending", "Settler"]

_log = logging.getLogger("shmq.client")

_TIMED_OUT = core.STATUS["TIMED_OUT"][0]
_CLOSED = core.STATUS["CLOSED"][0]


@dataclass(eq=False, slots=True)
class Pending:
    """One send under way."""

    future: Future[SendResult]
    """Whom to tell."""
    queue: SendQueue
    """Where it went."""
    lane: core.Lane
    """The ring it is in."""
    sequence: int
    """Its number there."""
    message_id: str
    """Its UNIQ_KEY."""
    deadline_ns: int
    """Monotonic."""
    arguments: tuple[object, ...]
    """What to send again, should the broker lose its memory; the Producer's."""
    put_ns: int = field(default_factory=SYSTEM_CLOCK.monotonic_ns)
    """When; monotonic."""
    is_done: bool = False
    """Its future has been told, or is about to be."""


class Settler:
    """The thread of one broker's session. Ends with its lanes, or when it is closed."""

    def __init__(self, name: str, settle: Callable[[Pending, int, int], None]) -> None:
        """Call `settle(pending, status, queue_offset)` with each, in this thread."""
        self._settle = settle
        self._pending: dict[core.Lane, deque[Pending]] = {}
        self._deadlines: list[tuple[int, int, Pending]] = []
        self._numbers = itertools.count()
        self._wanted = threading.Event()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name=f"shmq-{name}"[:15], daemon=True)
        self._thread.start()

    def add(self, pending: Pending) -> None:
        """It was put, with keep=True. Never blocks."""
        queue = self._pending.get(pending.lane)
        if queue is None:
            queue = self._pending.setdefault(pending.lane, deque())
        heapq.heappush(self._deadlines, (pending.deadline_ns, next(self._numbers), pending))
        queue.append(pending)
        if not self._wanted.is_set():
            self._wanted.set()

    def close(self) -> None:
        """Wait until all are settled, or their time is up."""
        self._is_closed = True
        self._wanted.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        while True:  # endless: until it is closed and nothing is pending
            oldest = self._oldest()
            if oldest is None:
                if self._is_closed:
                    return
                self._wanted.wait()
                self._wanted.clear()
                continue
            done = self._sweep() or self._wait(oldest) + self._sweep()
            for pending, status, queue_offset in done:
                try:
                    self._settle(pending, status, queue_offset)
                except Exception:  # noqa: BLE001 # one bad settling must not leave the others
                    _log.exception("settle message %s", pending.message_id)

    def _oldest(self) -> Pending | None:
        """Of those at the heads of their rings, the one to wait for."""
        heads = [queue[0] for queue in tuple(self._pending.values()) if queue]
        return min(heads, key=lambda pending: pending.put_ns, default=None)

    def _wait(self, pending: Pending) -> list[tuple[Pending, int, int]]:
        first_ns = self._deadlines[0][0] if self._deadlines else pending.deadline_ns
        left_s = (min(first_ns, pending.deadline_ns) - SYSTEM_CLOCK.monotonic_ns()) / 1e9
        try:
            status, queue_offset, _, _ = pending.lane.wait(pending.sequence, max(0.0, left_s))
        except ClosedError:
            return []  # the sweep says so of all
        if status == _TIMED_OUT:
            return []
        self._pending[pending.lane].remove(pending)
        pending.is_done = True
        return [(pending, status, queue_offset)]

    def _sweep(self) -> list[tuple[Pending, int, int]]:
        """All that are done or whose time is up. Their places are free before anybody is told, so
        that a callback may send.
        """
        done = self._expire()
        for lane, queue in tuple(self._pending.items()):
            while queue:
                pending = queue[0]
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
                queue.popleft()
            if not queue and lane.closed:
                self._pending.pop(lane, None)
        return done

    def _expire(self) -> list[tuple[Pending, int, int]]:
        """Those whose time is up, wherever in their rings they are."""
        done = []
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
            done.append((pending, found[0], found[1]))
        return done
