"""What became of sends that nobody waits for in a call: futures.

What lives here: `Settler`, one thread for each broker that is sent to with send_async. It sleeps on
the oldest completion, takes all that are there, and then gives the futures their results. Which
process: the program's. Writes nothing. May fail: a future gets OutcomeUnknownError when its time is
up, and what the broker refused.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shmq.client.pending_sends import PendingSend, PendingSends
from shmq.clock import SYSTEM_CLOCK
from shmq.core import core
from shmq.errors import ClosedError
from shmq.threads import NamedThread

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmq.client.queue_selector import SendQueue
    from shmq.result import SendResult

__all__ = ["Pending", "Settler"]

_log = logging.getLogger("shmq.client")

_TIMED_OUT = core.STATUS["TIMED_OUT"][0]


@dataclass(eq=False, slots=True, kw_only=True)
class Pending(PendingSend):
    """One send under way."""

    future: Future[SendResult]
    """Whom to tell."""
    queue: SendQueue
    """Where it went."""
    message_id: str
    """Its UNIQ_KEY."""
    arguments: tuple[object, ...]
    """What to send again, should the broker lose its memory; the Producer's."""


class Settler:
    """The thread of one broker's session. Ends with its lanes, or when it is closed."""

    def __init__(self, name: str, settle: Callable[[Pending, int, int], None]) -> None:
        """Call `settle(pending, status, queue_offset)` with each, in this thread."""
        self._settle = settle
        self._pending: PendingSends[Pending] = PendingSends()
        self._wanted = threading.Event()
        self._is_closed = False
        self._thread = NamedThread(target=self._run, name=f"shmq-{name}", daemon=True)
        self._thread.start()

    def add(self, pending: Pending) -> None:
        """It was put, with keep=True. Never blocks."""
        self._pending.add(pending)
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
            done = self._pending.sweep() or self._wait(oldest) + self._pending.sweep()
            for pending, status, queue_offset in done:
                try:
                    self._settle(pending, status, queue_offset)
                except Exception:  # noqa: BLE001 # one bad settling must not leave the others
                    _log.exception("settle message %s", pending.message_id)

    def _oldest(self) -> Pending | None:
        """Of those at the heads of their rings, the one to wait for."""
        return min(self._pending.heads(), key=lambda pending: pending.put_ns, default=None)

    def _wait(self, pending: Pending) -> list[tuple[Pending, int, int]]:
        first_ns = self._pending.first_deadline_ns() or pending.deadline_ns
        left_s = (min(first_ns, pending.deadline_ns) - SYSTEM_CLOCK.monotonic_ns()) / 1e9
        try:
            status, queue_offset, _, _ = pending.lane.wait(pending.sequence, max(0.0, left_s))
        except ClosedError:
            return []  # the sweep says so of all
        if status == _TIMED_OUT:
            return []
        self._pending.done(pending)
        return [(pending, status, queue_offset)]
