"""The queues that an orderly consumer has to itself, and where a call of its listener is on.

What lives here: `QueueLocks`, a state machine with a clock passed in: whether a message of a queue
may begin just now. Brokers are asked for locks elsewhere (assignment.py). A queue that is to be
given up is let go once the call that is on has returned; nothing begins meanwhile. Which process:
the program's; any thread. Nothing blocks, nothing fails.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shmq.client.process_queue import ProcessQueue
    from shmq.clock import Clock
    from shmq.result import MessageQueue

__all__ = ["QueueLocks"]

RENEW_NS = 5_000_000_000
"""A lock that is older is renewed by the next round, of which there is one each 20 s: RocketMQ's
lockInterval."""
VALID_NS = 30_000_000_000
"""Nothing begins under a lock that was not renewed for so long: RocketMQ's lockMaxLiveTime of
consumers, half of the broker's."""


class QueueLocks:
    """Of one consumer.

    Args:
        clock: monotonic time.
        on_let_go: called when a call has returned in a queue that is to be given up.
        is_asked: False where brokers are not asked for locks, in BROADCASTING: there is nobody else
            who could have the queue.
    """

    def __init__(self, clock: Clock, on_let_go: Callable[[], None], *, is_asked: bool) -> None:
        self._clock = clock
        self._on_let_go = on_let_go
        self.is_asked = is_asked
        self._locked_ns: dict[MessageQueue, int] = {}
        self._calls: set[MessageQueue] = set()
        self._leaving: set[MessageQueue] = set()
        self._lock = threading.Lock()

    # ---- the rebalance thread --------------------------------------------------------------------

    def locked(self, keys: Iterable[MessageQueue], asked_ns: int) -> None:
        """The broker says that we have these; `asked_ns`: when it was asked, monotonic."""
        with self._lock:
            self._locked_ns.update(dict.fromkeys(keys, asked_ns))

    def forget(self, keys: Iterable[MessageQueue]) -> None:
        """We do not have them any more."""
        with self._lock:
            for key in keys:
                self._locked_ns.pop(key, None)
                self._leaving.discard(key)

    def forget_broker(self, broker_name: str) -> None:
        """It knows nothing of us any more."""
        self.forget([key for key in self.known() if key.broker_name == broker_name])

    def known(self) -> list[MessageQueue]:
        """What we have, or had: the broker may say otherwise when it is asked again."""
        with self._lock:
            return sorted(self._locked_ns)

    def due(self) -> list[MessageQueue]:
        """Locks to renew."""
        limit_ns = self._clock.monotonic_ns() - RENEW_NS
        with self._lock:
            return sorted(key for key, at_ns in self._locked_ns.items() if at_ns <= limit_ns)

    def leave(self, keys: Iterable[MessageQueue]) -> set[MessageQueue]:
        """Nothing begins in these any more; those of them where no call is on."""
        with self._lock:
            wanted = set(keys)
            self._leaving |= wanted
            return wanted - self._calls

    def stay(self, keys: Iterable[MessageQueue]) -> None:
        """They are ours after all."""
        with self._lock:
            self._leaving.difference_update(keys)

    def is_calling(self, key: MessageQueue) -> bool:
        """Whether a call is on."""
        with self._lock:
            return key in self._calls

    # ---- the threads that call the listener ------------------------------------------------------

    def try_begin(self, queue: ProcessQueue) -> bool:
        """Whether a call may begin; it is on then, until end()."""
        key = queue.message_queue
        with self._lock:
            if queue.is_dropped or key in self._calls or key in self._leaving:
                return False
            if self.is_asked and not (queue.link.is_up and self._is_valid(key)):
                return False
            self._calls.add(key)
            return True

    def _is_valid(self, key: MessageQueue) -> bool:
        at_ns = self._locked_ns.get(key)
        return at_ns is not None and self._clock.monotonic_ns() - at_ns < VALID_NS

    def end(self, queue: ProcessQueue) -> None:
        """The call has returned, and what it settled is reported."""
        key = queue.message_queue
        with self._lock:
            self._calls.discard(key)
            is_let_go = key in self._leaving or queue.is_dropped
        if is_let_go:
            self._on_let_go()
