"""How long a call that has a timeout may still wait for daemons, however many it has to ask.

What lives here: `within`, which a call with a timeout opens around what it asks for the first time,
and `at_most` and `held`, which every request and lock below it heed. A thread without such a block
waits as long as each request may. Which process: the program's; a thread sees its own only.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shmq.clock import SYSTEM_CLOCK
from shmq.errors import ServiceNotAvailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["at_most", "held", "within"]

_thread = threading.local()


@contextmanager
def within(timeout_s: float) -> Iterator[None]:
    """All requests of this thread in the block together wait so long; less, if a block around it
    ends earlier.
    """
    before: int | None = getattr(_thread, "end_ns", None)
    end_ns = SYSTEM_CLOCK.monotonic_ns() + int(timeout_s * 1e9)
    _thread.end_ns = end_ns if before is None else min(end_ns, before)
    try:
        yield
    finally:
        _thread.end_ns = before


def at_most(timeout_s: float) -> float:
    """Seconds that a request may wait which would else wait for timeout_s."""
    end_ns: int | None = getattr(_thread, "end_ns", None)
    if end_ns is None:
        return timeout_s
    return max(0.0, min(timeout_s, (end_ns - SYSTEM_CLOCK.monotonic_ns()) / 1e9))


@contextmanager
def held(lock: threading.Lock, what: str) -> Iterator[None]:
    """Hold a lock under which others wait for daemons.

    Args:
        lock: it.
        what: is tried, for the message.

    Raises:
        ServiceNotAvailableError: the block's time ended before.
    """
    if not lock.acquire(timeout=at_most(threading.TIMEOUT_MAX)):
        raise ServiceNotAvailableError(
            f"{what}: another thread still waits for a daemon that does not answer",
            hint="see who hangs: shmq broker list, shmq cluster list",
        )
    try:
        yield
    finally:
        lock.release()
