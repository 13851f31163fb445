"""A descriptor for programs with a loop of their own: readable when a consumer should be asked.

What lives here: `WakeFd`, one for each consumer that wants one, and `SharedSocket`, the socket that
a session has for all of them (docs/decisions/0012). Which process: the program's; any thread may
signal. Writes: the sleep words of its readers, through the core. May fail: a broker that is away
has no socket; the consumer is signalled when it is back.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from typing import TYPE_CHECKING

from shmq.core import core
from shmq.errors import ClosedError

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from shmq.client.broker_link import BrokerLink

__all__ = ["SharedSocket", "WakeFd"]

_BYTES = 4096
"""More than the broker's end of the socket holds."""


class SharedSocket:
    """A session's socket, which all consumers of the client look at."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        """Closed once its session has ended."""
        self._members: set[WakeFd] = set()
        self._lock = threading.Lock()

    @property
    def is_ended(self) -> bool:
        """Whether there is no session behind it any more."""
        return self.sock.fileno() < 0

    def join(self, member: WakeFd) -> None:
        """Somebody else looks at it."""
        with self._lock:
            self._members.add(member)

    def leave(self, member: WakeFd) -> None:
        """Somebody does no more."""
        with self._lock:
            self._members.discard(member)

    def drain(self, reader: WakeFd) -> None:
        """Read it empty. What was told was told to all: the others look as well."""
        with self._lock:
            if self.is_ended:
                return
            try:
                said = self.sock.recv(_BYTES)
            except BlockingIOError:
                return
            except OSError:
                said = b""
            if not said:
                self.sock.close()  # which takes it out of everybody's epoll
            others = self._members - {reader}
        for member in others:
            member.signal()

    def close(self) -> None:
        """The link has another one, or is closed."""
        with self._lock:
            self.sock.close()


class WakeFd:
    """One consumer's descriptor: an epoll of an eventfd of its own and of its sessions' sockets."""

    def __init__(self) -> None:
        self._event = os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)  # it is to be asked first
        self._epoll = select.epoll()
        self._epoll.register(self._event, select.EPOLLIN)
        self._shared: dict[BrokerLink, SharedSocket] = {}
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()
        self._is_closed = False

    def fileno(self) -> int:
        """The descriptor."""
        return self._epoll.fileno()

    def signal(self) -> None:
        """Be readable. Any thread; never blocks."""
        with self._lock:
            if not self._is_closed:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_write(self._event, 1)

    def arm(
        self, readers: tuple[core.Reader, ...], links: Iterable[BrokerLink], timeout: float | None
    ) -> None:
        """There was nothing: be unreadable until there may be something. Asks brokers for their
        sockets, the first time.

        Args:
            readers: what is waited for, each watching its queues.
            links: the sessions they read in.
            timeout: seconds after which to be readable anyway; None: never.
        """
        if self._timer is not None:
            self._timer.cancel()
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event)
        for link in links:
            shared = link.shared_socket()
            if shared is not self._shared.get(link):
                self._take(link, shared)
            if shared is not None:
                shared.drain(self)
        try:
            for reader in readers:
                reader.arm()
            if readers and core.Reader.wait_any(readers, 0.0) >= 0:
                self.signal()
        except ClosedError:
            timeout = 0.01  # its session has ended; another one comes
        if timeout is not None:
            self._timer = threading.Timer(timeout, self.signal)
            self._timer.daemon = True
            self._timer.start()

    def _take(self, link: BrokerLink, shared: SharedSocket | None) -> None:
        before = self._shared.pop(link, None)
        if before is not None:
            before.leave(self)
        if shared is not None:
            self._shared[link] = shared
            with contextlib.suppress(OSError, ValueError):  # it ended this moment
                self._epoll.register(shared.sock, select.EPOLLIN)
            shared.join(self)

    def close(self) -> None:
        """Let go of everything."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        for shared in self._shared.values():
            shared.leave(self)
        self._epoll.close()
        os.close(self._event)
