"""Sessions that their clients left behind: the process ended, and had not closed them.

What lives here: `ReapedSessions`, which tells a client that died from one that lives and has lost
its connection. The end of a socket comes before the end of its process, so a life is looked at
again for a while. Fails with nothing; a process that cannot be seen is not counted.

The loop's thread owns it. Nothing blocks.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from shmq.errors import ShmError

if TYPE_CHECKING:
    from shmq.clock import Clock
    from shmq.shm.incarnation import Incarnation

__all__ = ["ReapedSessions"]

_DEATH_NS_MAX = 10_000_000_000
"""Who lives that long after its connection has ended has not died of what ended it."""


class ReapedSessions:
    """Counts them.

    Args:
        clock: monotonic time.

    Attributes:
        count: how many there were, to the last `look`.
    """

    def __init__(self, clock: Clock) -> None:
        self.count = 0
        self._clock = clock
        self._left: list[tuple[Incarnation, int]] = []

    def left(self, life: Incarnation | None) -> None:
        """A session has ended that its client had not closed.

        Args:
            life: the client's process; None: it cannot be seen.
        """
        if life is not None and life.pid > 0 and life.start_time > 0:
            self._left.append((life, self._clock.monotonic_ns() + _DEATH_NS_MAX))

    def look(self) -> None:
        """Count those whose process has ended by now."""
        now_ns = self._clock.monotonic_ns()
        before, self._left = self._left, []
        for life, until_ns in before:
            is_alive = True
            with contextlib.suppress(ShmError):  # no descriptor for /proc: in a moment
                is_alive = life.is_alive()
            if not is_alive:
                self.count += 1
            elif now_ns < until_ns:
                self._left.append((life, until_ns))
