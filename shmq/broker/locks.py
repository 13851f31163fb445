"""Which client has a queue to itself: the locks of orderly consumption.

What lives here: `LockTable`, RocketMQ's RebalanceLockManager: a state machine, a clock passed in. A
claim says whose progress counts and is taken from a member at once; a lock says who may begin a
message, and stays with its client until that has finished the one it is at: it unlocks, or its
process is dead, or it has not renewed the lock for LOCK_EXPIRY_MS. Nobody else begins before.

The loop's thread owns it. In memory only: after a restart clients bring their locks back with their
claims (RESUME). Nothing blocks, nothing fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmq.broker.claims import ClaimedQueue
    from shmq.clock import Clock

__all__ = ["LockTable"]

LOCK_EXPIRY_MS = 60_000
"""RocketMQ's rocketmq.broker.rebalance.lockMaxLiveTime: a client that renews each 20 s and did not
for so long hangs."""


@dataclass(slots=True)
class _Lock:
    client_id: str
    renewed_ns: int


class LockTable:
    """All locks of one broker.

    Args:
        clock: monotonic time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._locks: dict[ClaimedQueue, _Lock] = {}
        self._held: dict[str, set[ClaimedQueue]] = {}

    def __len__(self) -> int:
        return len(self._locks)

    def holder(self, queue: ClaimedQueue) -> str | None:
        """The client_id that has a queue to itself; None: nobody."""
        lock = self._locks.get(queue)
        return None if lock is None or self._is_expired(lock) else lock.client_id

    def is_free_for(self, queue: ClaimedQueue, client_id: str) -> bool:
        """Whether nobody else has the queue."""
        return self.holder(queue) in (None, client_id)

    def try_lock(self, queue: ClaimedQueue, client_id: str) -> bool:
        """Give a queue to a client, or renew that it has it; False if it is another's."""
        if not self.is_free_for(queue, client_id):
            return False
        self._remove(queue)  # an expired one may be another's
        self._locks[queue] = _Lock(client_id, self._clock.monotonic_ns())
        self._held.setdefault(client_id, set()).add(queue)
        return True

    def unlock(self, queue: ClaimedQueue, client_id: str) -> bool:
        """A client gives a queue up; False if it does not have it."""
        lock = self._locks.get(queue)
        if lock is None or lock.client_id != client_id:
            return False
        self._remove(queue)
        return True

    def held_by(self, client_id: str) -> list[ClaimedQueue]:
        """The queues that a client has to itself."""
        return sorted(self._held.get(client_id, ()))

    def unlock_all(self, client_id: str, group: str | None = None) -> None:
        """A client is dead or has left, or has left one group."""
        for queue in self.held_by(client_id):
            if group is None or queue.group == group:
                self._remove(queue)

    def remove(self, chosen: Callable[[ClaimedQueue], bool]) -> None:
        """The queues or their group were deleted."""
        for queue in [queue for queue in self._locks if chosen(queue)]:
            self._remove(queue)

    def forget_expired(self) -> list[tuple[ClaimedQueue, str]]:
        """Drop what was not renewed; (queue, client_id) of each."""
        gone = [(q, lock.client_id) for q, lock in self._locks.items() if self._is_expired(lock)]
        for queue, _ in gone:
            self._remove(queue)
        return gone

    def _remove(self, queue: ClaimedQueue) -> None:
        lock = self._locks.pop(queue, None)
        if lock is not None:
            held = self._held[lock.client_id]
            held.discard(queue)
            if not held:
                del self._held[lock.client_id]

    def _is_expired(self, lock: _Lock) -> bool:
        return self._clock.monotonic_ns() - lock.renewed_ns >= LOCK_EXPIRY_MS * 1_000_000
