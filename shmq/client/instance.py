"""Client: one program's way to a cluster: its sessions, routes, heartbeats, and who follows a
restart.

What lives here: `Client` and `connect`. A client has one session per broker, shared by all its
producers and consumers, and two threads: a keeper that sends heartbeats and reconnects, and what
each consumer starts. Which process: the program's; not usable after a fork. Writes nothing in
shared memory. May fail: ServiceNotAvailableError where no NameServer or broker answers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Self

from shmq.client.broker_link import BrokerLink
from shmq.client.consumer import Consumer
from shmq.client.producer import Producer
from shmq.client.route_cache import RouteCache
from shmq.clock import SYSTEM_CLOCK
from shmq.config import WaitingPolicy, default_namesrv_folder
from shmq.core import core
from shmq.errors import ClosedError, ForkError, ServiceNotAvailableError, ShmqError
from shmq.remoting.codes import RequestCode
from shmq.remoting.runtime_folder import RuntimeFolder

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from shmq.remoting.command import Command

__all__ = ["Client", "connect"]

_log = logging.getLogger("shmq.client")

HEARTBEAT_S = 30.0
"""RocketMQ's heartbeatBrokerInterval."""
_RECONNECT_FIRST_S = 0.02
_RECONNECT_MAX_S = 1.0

_POLICIES = {
    WaitingPolicy.BLOCKING: core.WAIT_BLOCKING,
    WaitingPolicy.ADAPTIVE: core.WAIT_ADAPTIVE,
    WaitingPolicy.BUSY_SPIN: core.WAIT_BUSY_SPIN,
}


def connect(
    namesrv: str | Path | None = None, *, policy: WaitingPolicy = WaitingPolicy.ADAPTIVE
) -> Client:
    """A Client of the cluster whose NameServers listen in the folder `namesrv`.

    Args:
        namesrv: the runtime folder; None: SHMQ_NAMESRV, else the default runtime folder.
        policy: what threads do while they wait.

    Raises:
        ServiceNotAvailableError: there is no such folder; nothing runs there.
    """
    return Client(namesrv, policy=policy)


class Client:
    """A program's sessions with the brokers of one cluster. A context manager; threads may share
    it.

    Example:
        with shmq.connect() as client:
            client.producer().send("orders", b"one")
    """

    def __init__(
        self,
        namesrv: str | Path | None = None,
        *,
        policy: WaitingPolicy = WaitingPolicy.ADAPTIVE,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        """As `connect`; `on_close` is called once, last thing."""
        self._folder = RuntimeFolder.open(Path(namesrv) if namesrv else default_namesrv_folder())
        self._policy = _POLICIES[WaitingPolicy(policy)]
        self._on_close = on_close
        self._pid = os.getpid()
        self.client_id = f"{os.getpid()}@{uuid.uuid4().hex[:12]}"
        """Unique among living clients; members of a group are told apart by it."""
        self.routes = RouteCache(self._folder)
        self._links: dict[str, BrokerLink] = {}
        self._lock = threading.RLock()
        self._producers: list[Producer] = []
        self._consumers: list[Consumer] = []
        self._is_closed = False
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._keeper = threading.Thread(target=self._keep, name="shmq-client", daemon=True)
        self._keeper.start()

    # ---- what programs use -----------------------------------------------------------------------

    def producer(self, group: str = "DEFAULT_PRODUCER") -> Producer:
        """A producer; threads may share it."""
        self.check("make a producer")
        made = Producer(self, group)
        with self._lock:
            self._producers.append(made)
        return made

    def consumer(self, topic: str, group: str, **options: object) -> Consumer:
        """A member of a group that consumes a topic; options as for Consumer."""
        self.check("make a consumer")
        made = Consumer(self, topic, group, **options)  # type: ignore[arg-type]
        with self._lock:
            self._consumers.append(made)
        return made

    def create_topic(
        self, topic: str, *, queues: int = 8, brokers: list[str] | None = None
    ) -> None:
        """Create a topic with `queues` queues on each of the brokers (None: on all of them).

        Raises:
            IllegalTopicError: the name; ServiceNotAvailableError: a broker is away.
        """
        self.check("create a topic")
        for name in brokers or sorted(self.routes.brokers()):
            self.link(name).call(
                RequestCode.UPDATE_AND_CREATE_TOPIC,
                {"topic": topic, "readQueueNums": queues, "writeQueueNums": queues},
            )

    def close(self) -> None:
        """Close producers and consumers, then leave the brokers."""
        with self._lock:
            if self._is_closed or os.getpid() != self._pid:
                return
            self._is_closed = True
        for consumer in tuple(self._consumers):
            consumer.close()
        for producer in tuple(self._producers):
            producer.close()
        os.eventfd_write(self._wake_fd, 1)
        if threading.current_thread() is not self._keeper:
            self._keeper.join()
        for link in self._links.values():
            link.close()
        self.routes.close()
        self._folder.close()
        os.close(self._wake_fd)
        if self._on_close is not None:
            self._on_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("pickle a Client: it holds shared memory; connect in the other process")

    # ---- what producers and consumers use --------------------------------------------------------

    def check(self, what: str) -> None:
        """Return if the client may be used.

        Raises:
            ClosedError, ForkError.
        """
        if self._is_closed:
            raise ClosedError(f"{what}: this client is closed")
        if os.getpid() != self._pid:
            raise ForkError(f"{what}: connected by process {self._pid}; connect in this process")

    def link(self, broker_name: str) -> BrokerLink:
        """The session with a broker, attached now if there is none.

        Raises:
            ServiceNotAvailableError: it is away, or the NameServers do not know it.
        """
        with self._lock:
            link = self._links.get(broker_name)
            if link is None:
                socket_name = self.routes.brokers().get(broker_name)
                if socket_name is None:
                    raise ServiceNotAvailableError(
                        f"attach to broker {broker_name}: no NameServer knows it; is it running?"
                    )
                link = BrokerLink(
                    self._folder,
                    socket_name,
                    broker_name,
                    client_id=self.client_id,
                    policy=self._policy,
                    on_notify=self._notified,
                )
                self._links[broker_name] = link
                os.eventfd_write(self._wake_fd, 1)
            return link

    def heartbeat(self) -> None:
        """Tell all brokers which groups this client is in, now."""
        with self._lock:
            links = list(self._links.values())
        for link in links:
            if link.is_up:
                with contextlib.suppress(ServiceNotAvailableError):
                    self._beat(link)

    def _beat(self, link: BrokerLink) -> None:
        body = {
            "clientID": self.client_id,
            "producerDataSet": [
                {"groupName": group} for group in sorted({p.group for p in self._producers})
            ],
            "consumerDataSet": [consumer.describe() for consumer in self._consumers],
        }
        link.call(RequestCode.HEART_BEAT, None, body)

    def left(self, consumer: Consumer) -> None:
        """A consumer was closed."""
        with self._lock:
            self._consumers.remove(consumer)
        if not self._is_closed:
            self.heartbeat()

    # ---- the keeper ------------------------------------------------------------------------------

    def _notified(self, link: BrokerLink, command: Command) -> None:
        for consumer in tuple(self._consumers):
            consumer.notified(link, command)
        for producer in tuple(self._producers):
            producer.notified(link, command)

    def _keep(self) -> None:
        heartbeat_ns = SYSTEM_CLOCK.monotonic_ns() + int(HEARTBEAT_S * 1e9)
        delays: dict[str, float] = {}
        pidfds: dict[str, int] = {}
        while not self._is_closed:  # as long as the client lives
            poll = select.poll()
            poll.register(self._wake_fd, select.POLLIN)
            with self._lock:
                links = dict(self._links)
            timeout_s = max(0.0, (heartbeat_ns - SYSTEM_CLOCK.monotonic_ns()) / 1e9)
            for name, link in links.items():
                if not link.is_up:
                    timeout_s = min(timeout_s, delays.setdefault(name, _RECONNECT_FIRST_S))
                    continue
                if name not in pidfds:
                    with contextlib.suppress(ProcessLookupError):
                        pidfds[name] = os.pidfd_open(link.connection.identity.pid)
                if name in pidfds:
                    poll.register(pidfds[name], select.POLLIN)
            ready = {fd for fd, _ in poll.poll(timeout_s * 1000)}
            if self._wake_fd in ready:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake_fd)
            for name, link in links.items():
                if link.is_up and pidfds.get(name) not in ready:
                    delays.pop(name, None)
                    continue
                if name in pidfds:
                    os.close(pidfds.pop(name))
                    link.connection.close()
                self._reconnect(link, name, delays)
            if SYSTEM_CLOCK.monotonic_ns() >= heartbeat_ns:
                heartbeat_ns = SYSTEM_CLOCK.monotonic_ns() + int(HEARTBEAT_S * 1e9)
                self.heartbeat()
        for fd in pidfds.values():
            os.close(fd)

    def _reconnect(self, link: BrokerLink, name: str, delays: dict[str, float]) -> None:
        try:
            is_resumed = link.reconnect()
            self._beat(link)
        except ShmqError as error:
            delays[name] = min(delays.get(name, _RECONNECT_FIRST_S) * 2, _RECONNECT_MAX_S)
            _log.debug("reconnect broker=%s: %s", name, error)
            return
        _log.info("reconnected broker=%s resumed=%s", name, is_resumed)
        delays.pop(name, None)
        for consumer in tuple(self._consumers):
            consumer.reconnected(link, is_resumed)
        for producer in tuple(self._producers):
            producer.reconnected(link, is_resumed)
