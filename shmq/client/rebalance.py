"""The thread that shares queues out: at once when something changed, some times soon after, and
each 20 s.

What lives here: `RebalanceService`, one for each client with consumers (RocketMQ's class of that
name). Control requests are made here, so that a program that is busy with a message, or waits for
one, still gives queues up and gets them. Which process: the program's, a thread of its own. Writes
nothing itself. Nothing fails: what does is tried again.
"""

from __future__ import annotations

import heapq
import logging
import threading
from typing import TYPE_CHECKING

from shmq.clock import SYSTEM_CLOCK
from shmq.errors import PermissionDeniedError, ShmqError
from shmq.threads import NamedThread

if TYPE_CHECKING:
    from shmq.client.assignment import Assignment

__all__ = ["RebalanceService"]

_log = logging.getLogger("shmq.client")

INTERVAL_NS = 20_000_000_000
"""RocketMQ's rebalanceInterval."""
_SETTLE_FIRST_NS = 1_000_000_000
"""After a change the next round follows so soon, then after twice the time, up to the interval:
members that joined while a broker was away cannot be told of its return, and until they look again
some of its queues, or those they share with it, are nobody's."""
_RETRY_FIRST_NS = 20_000_000
_RETRY_MAX_NS = 1_000_000_000
"""RocketMQ's interval after a round that did not succeed."""


class RebalanceService:
    """Runs Assignment.rebalance."""

    def __init__(self) -> None:
        self._due: dict[Assignment, int] = {}
        self._order: list[tuple[int, int, Assignment]] = []
        """A heap of (due, running number, assignment): what `_due` does not say any more is
        passed over.
        """
        self._count = 0
        self._intervals: dict[Assignment, int] = {}
        self._delays: dict[Assignment, int] = {}
        self._said: dict[Assignment, str] = {}
        self._turn = threading.Condition(threading.Lock())
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def add(self, assignment: Assignment) -> None:
        """Look after it from now on; its first round was made by whoever adds it."""
        with self._turn:
            first_ns = _SETTLE_FIRST_NS if assignment.is_complete else _RETRY_FIRST_NS
            self._set_due(assignment, SYSTEM_CLOCK.monotonic_ns() + first_ns)
            if self._thread is None:
                self._thread = NamedThread(target=self._run, name="shmq-rebalance", daemon=True)
                self._thread.start()
            self._turn.notify()

    def remove(self, assignment: Assignment) -> None:
        """Look after it no more; a round that is on goes on."""
        with self._turn:
            self._due.pop(assignment, None)
            self._intervals.pop(assignment, None)
            self._delays.pop(assignment, None)
            self._said.pop(assignment, None)

    def request(self, assignment: Assignment) -> None:
        """Have a round soon. Never blocks; any thread."""
        with self._turn:
            if assignment in self._due:
                self._set_due(assignment, 0)
                self._intervals.pop(assignment, None)
                self._turn.notify()

    def close(self) -> None:
        """End the thread."""
        with self._turn:
            self._is_closed = True
            self._turn.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while True:  # endless: until the client closes
            with self._turn:
                assignment = self._next()
                if assignment is None:
                    return
                interval_ns = self._intervals.get(assignment, _SETTLE_FIRST_NS)
                self._intervals[assignment] = min(interval_ns * 2, INTERVAL_NS)
                self._set_due(assignment, SYSTEM_CLOCK.monotonic_ns() + interval_ns)
            is_complete = self._round(assignment)
            with self._turn:
                if is_complete:
                    self._delays.pop(assignment, None)
                elif assignment in self._due:
                    delay_ns = self._delays.get(assignment, _RETRY_FIRST_NS)
                    self._delays[assignment] = min(delay_ns * 2, _RETRY_MAX_NS)
                    again_ns = SYSTEM_CLOCK.monotonic_ns() + delay_ns
                    self._set_due(assignment, min(self._due[assignment], again_ns))

    def _set_due(self, assignment: Assignment, due_ns: int) -> None:
        if self._due.get(assignment) != due_ns:
            self._due[assignment] = due_ns
            self._count += 1
            heapq.heappush(self._order, (due_ns, self._count, assignment))

    def _next(self) -> Assignment | None:
        """The next that is due; sleeps until one is. None: closed."""
        while not self._is_closed:
            while self._order and self._due.get(self._order[0][2]) != self._order[0][0]:
                heapq.heappop(self._order)
            now_ns = SYSTEM_CLOCK.monotonic_ns()
            if not self._order:
                self._turn.wait()
            elif self._order[0][0] <= now_ns:
                return self._order[0][2]
            else:
                self._turn.wait((self._order[0][0] - now_ns) / 1e9)
        return None

    def _round(self, assignment: Assignment) -> bool:
        try:
            assignment.rebalance()
        except ShmqError as error:
            if not error.retryable:
                assignment.told(error if isinstance(error, PermissionDeniedError) else None)
            text = str(error)
            if not error.retryable and self._said.get(assignment) != text:
                self._said[assignment] = text  # once, however often it is tried
                _log.warning("rebalance %s: %s; %s", assignment, error, error.hint)
            else:
                _log.debug("rebalance %s: %s", assignment, error)
            return False
        except Exception:  # noqa: BLE001 # the outermost loop: the next round may go better
            _log.exception("rebalance %s", assignment)
            return False
        assignment.told(None)
        return assignment.is_complete
