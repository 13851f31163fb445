"""The threads of a push consumer's topic: as many as are busy at once, and one that waits.

What lives here: `ListenerPool`; what is fetched and how it is worked is for those that derive from
it. Which process: the program's, threads of its own. Writes nothing. Nothing fails: a thread ends
when its consumer is closed.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, TypeVar

from shmq.errors import ClosedError, ForkError
from shmq.threads import NamedThread

if TYPE_CHECKING:
    from shmq.client.consumer import Consumer

__all__ = ["ListenerPool", "WAIT_S"]

WAIT_S = 3600.0
"""How long a thread waits for messages before it looks again."""

T = TypeVar("T")


class ListenerPool(Generic[T]):
    """Of one topic. Who derives from it starts it when all is made.

    Args:
        consumer: nobody else's.
        thread_max: threads.
        name: of the threads.
    """

    def __init__(self, consumer: Consumer, thread_max: int, *, name: str) -> None:
        self._consumer = consumer
        self._thread_max = thread_max
        self._name = name
        self._turn = threading.Lock()
        """Held by who waits for messages, or fetches them."""
        self._lock = threading.Lock()
        """Held for a look at the tables."""
        self._idle_count = 0
        self._threads: list[threading.Thread] = []
        self._is_closed = False

    def start(self) -> None:
        """See that somebody waits: a thread more, if none does and there may be one."""
        with self._lock:
            if self._is_closed or self._idle_count or len(self._threads) >= self._thread_max:
                return
            self._idle_count += 1
            thread = NamedThread(
                target=self._run, name=f"{self._name}-{len(self._threads)}", daemon=True
            )
            self._threads.append(thread)
        thread.start()

    def _run(self) -> None:
        while not self._is_closed:  # as long as the consumer is open
            try:
                work = self._next()
            except (ClosedError, ForkError):
                return
            if work is None:
                continue
            with self._lock:
                self._idle_count -= 1
            self.start()  # somebody waits while this one works
            self._work(work)
            with self._lock:
                self._idle_count += 1

    def _next(self) -> T | None:
        """Wait for something to do. None: look again.

        Raises:
            ClosedError, ForkError: there will be nothing.
        """
        raise NotImplementedError

    def _work(self, work: T) -> None:
        """Do it; nothing fails."""
        raise NotImplementedError

    def close(self) -> None:
        """Begin nothing more, wait for the calls that are on, and leave the group."""
        with self._lock:
            self._is_closed = True
            threads = list(self._threads)
        self._consumer.stop()  # whoever waits gets up; what is being processed still settles
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()
        self._consumer.close()
