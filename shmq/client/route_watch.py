"""Waiting for a cluster to change: a broker that comes, a topic that gets a route.

What lives here: `RouteWatch`, of one client, and `AsyncRouteWatch`, the same for the tasks of an
event loop. A NameServer is asked by a request that it answers when its routes have changed, over a
connection of their own, one request at a time however many wait. Which process: the program's, any
thread. Writes nothing. What may fail: nobody answers; then whoever waits looks again by the clock.
"""

from __future__ import annotations

import asyncio
import random
import threading
from typing import TYPE_CHECKING, NamedTuple

from shmq.clock import SYSTEM_CLOCK
from shmq.errors import ServiceNotAvailableError, ShmqError
from shmq.remoting.client import Client as Connection
from shmq.remoting.namesrv_requests import await_route_change, route_change_of

if TYPE_CHECKING:
    from shmq.client.wake_hub import WakeHub
    from shmq.remoting.runtime_folder import RuntimeFolder

__all__ = ["AsyncRouteWatch", "RouteWatch", "Seen"]

_LOOK_S = 1.0
"""After so long whoever waits looks, whatever was told: a broker may be registered and not answer,
and several NameServers do not know of it at the same moment."""
_ANSWER_S = 0.25
"""For an answer, beyond the time that was asked for."""
_PAUSE_S = 0.05
"""Between two looks for a NameServer, which nobody tells of."""


class Seen(NamedTuple):
    """What was seen of the routes: of which connection, and which of its numbers."""

    connection_number: int
    change_number: int


class RouteWatch:
    """Tells when routes have changed. Threads may share it."""

    def __init__(self, folder: RuntimeFolder) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._connection_number = 0
        self._closed = threading.Event()

    def wait(self, seen: Seen | None, timeout_s: float) -> Seen | None:
        """Return when the routes may be others than at `seen`, or after some time.

        Args:
            seen: what the last call gave; None: there was none, which returns without waiting.
            timeout_s: at most; less, for whoever waits must look now and then.

        Returns:
            what to give next time; look between the two, and no change is missed.
        """
        wait_s = min(timeout_s, _LOOK_S)
        deadline_ns = SYSTEM_CLOCK.monotonic_ns() + int(wait_s * 1e9)
        if not self._lock.acquire(timeout=wait_s):
            return seen
        try:
            left_s = max(0.0, (deadline_ns - SYSTEM_CLOCK.monotonic_ns()) / 1e9)
            try:
                return self._ask(seen, left_s)
            except (ShmqError, OSError):
                self._drop()
                self._closed.wait(min(_PAUSE_S, left_s))
                return None
        finally:
            self._lock.release()

    def _ask(self, seen: Seen | None, wait_s: float) -> Seen:
        if self._connection is None:
            self._connection_number += 1
            self._connection = self._connect(wait_s + _ANSWER_S)
        if self._closed.is_set():  # close() may not have seen the connection
            raise ServiceNotAvailableError("wait for a change of the routes: this client is closed")
        is_same = seen is not None and seen.connection_number == self._connection_number
        known = seen.change_number if seen is not None and is_same else None
        answer = self._connection.call(
            await_route_change(known, timeout_ms=int(wait_s * 1e3)), timeout_s=wait_s + _ANSWER_S
        )
        return Seen(self._connection_number, route_change_of(answer))

    def _connect(self, timeout_s: float) -> Connection:
        names = self._folder.socket_names("namesrv")
        random.shuffle(names)
        last: ShmqError | None = None
        for name in names:
            try:
                return Connection(self._folder, name, role="client", timeout_s=timeout_s)
            except ShmqError as error:  # what a killed one left, for instance
                last = error
        raise ServiceNotAvailableError(
            f"ask a NameServer in {self._folder.path}: {last or 'there is none'}"
        )

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        """Whoever waits returns; nobody waits any more."""
        self._closed.set()
        connection = self._connection
        if connection is not None:
            connection.close()


class AsyncRouteWatch:
    """The same for tasks: one thread waits for all of them."""

    def __init__(self, hub: WakeHub, watch: RouteWatch) -> None:
        self._hub = hub
        self._watch = watch
        self._waiting: asyncio.Task[None] | None = None
        self.seen: Seen | None = None
        """What was seen last."""

    async def wait(self, seen: Seen | None, timeout_s: float) -> None:
        """As RouteWatch.wait; `seen` is what the attribute was before the caller looked."""
        if seen is not None and seen != self.seen:
            return
        if self._waiting is None or self._waiting.done():
            self._waiting = self._hub.start(self._wait())
        await asyncio.wait({self._waiting}, timeout=timeout_s)

    async def _wait(self) -> None:
        self.seen = await self._hub.run(self._watch.wait, self.seen, _LOOK_S)
