"""Where topics are: asked of one NameServer, remembered for a while.

What lives here: `RouteCache`. It picks one NameServer at random and falls over to another when it
is gone. Which process: the program's, any thread. Writes nothing. May fail:
ServiceNotAvailableError when no NameServer answers; TopicNotExistError.
"""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING

from shmq.client.deadline import at_most, held
from shmq.clock import SYSTEM_CLOCK
from shmq.errors import (
    PermissionDeniedError,
    ServiceNotAvailableError,
    ShmqError,
    TopicNotExistError,
)
from shmq.remoting.client import Client as Connection
from shmq.remoting.namesrv_requests import (
    cluster_info,
    cluster_of,
    delete_kv_config,
    put_kv_configs,
    route_info,
    route_of,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from shmq.remoting.command import Command
    from shmq.remoting.namesrv_requests import ClusterInfo
    from shmq.remoting.runtime_folder import RuntimeFolder
    from shmq.topic import TopicRouteData

__all__ = ["RouteCache", "no_broker"]

REFRESH_NS = 30_000_000_000
"""How long a route is believed unasked; RocketMQ's pollNameServerInterval."""
_TIMEOUT_S = 3.0
_MASTER_ID = 0
ORDER_TOPIC_CONFIG = "ORDER_TOPIC_CONFIG"
"""RocketMQ's namespace for it."""


class RouteCache:
    """Routes of one cluster. Threads may share it."""

    def __init__(self, folder: RuntimeFolder) -> None:
        self._folder = folder
        self._connection: Connection | None = None
        self._routes: dict[str, tuple[int, TopicRouteData]] = {}
        self._lock = threading.Lock()

    def route(self, topic: str, *, is_fresh: bool = False) -> TopicRouteData:
        """The route of a topic.

        Args:
            topic: the topic.
            is_fresh: ask, whatever is remembered.

        Raises:
            TopicNotExistError: no broker has it.
            ServiceNotAvailableError: no NameServer answers.
        """
        now_ns = SYSTEM_CLOCK.monotonic_ns()
        with held(self._lock, f"find topic {topic}"):
            known = self._routes.get(topic)
            if known is not None and not is_fresh and now_ns - known[0] < REFRESH_NS:
                return known[1]
            try:
                found = route_of(self._ask(route_info(topic)))
            except ServiceNotAvailableError:
                if known is not None:
                    return known[1]
                raise
            self._routes[topic] = now_ns, found
            return found

    def cluster(self) -> ClusterInfo:
        """All clusters and brokers.

        Raises:
            ServiceNotAvailableError: no NameServer answers.
        """
        with held(self._lock, "list the brokers"):
            return cluster_of(self._ask(cluster_info()))

    def configured(self, topic: str) -> dict[str, int]:
        """Queues of the topic by broker, as the NameServers were told; empty if they were not."""
        conf = self.route(topic).order_topic_conf or ""
        pairs = [part.rsplit(":", 1) for part in conf.split(";") if part]
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}

    def brokers(self) -> dict[str, str]:
        """Masters by broker_name, and the names of their sockets; without those that have none."""
        return {
            name: data.broker_addrs[_MASTER_ID]
            for name, data in self.cluster().brokers.items()
            if _MASTER_ID in data.broker_addrs
        }

    def configure(self, topic: str, queues: Mapping[str, int]) -> None:
        """Tell all NameServers how many queues a topic has on each broker, whoever is away: a key's
        queue is counted over these (RocketMQ's order topics). No queues: they forget the topic.

        Raises:
            ServiceNotAvailableError: none of them took it.
        """
        if queues:
            self.configure_all({topic: queues})
        else:
            self._tell_all([topic], [delete_kv_config(ORDER_TOPIC_CONFIG, topic)])

    def configure_all(self, topics: Mapping[str, Mapping[str, int]]) -> None:
        """The same for many topics; each has queues."""
        confs = {
            topic: ";".join(f"{name}:{count}" for name, count in sorted(queues.items()))
            for topic, queues in topics.items()
        }
        self._tell_all(topics, list(put_kv_configs(ORDER_TOPIC_CONFIG, confs)))

    def _tell_all(self, topics: Collection[str], commands: list[Command]) -> None:
        with self._lock:
            for topic in topics:
                self._routes.pop(topic, None)
        last: ShmqError | None = None
        told = 0
        for name in self._folder.socket_names("namesrv"):
            try:
                with Connection(
                    self._folder, name, role="client", timeout_s=_TIMEOUT_S
                ) as connection:
                    for command in commands:
                        connection.call(command, timeout_s=_TIMEOUT_S)
                told += 1
            except ShmqError as error:  # what a killed one left, for instance
                last = error
        if told == 0:
            raise ServiceNotAvailableError(
                f"configure {_shown(topics)}: no NameServer in {self._folder.path} took it: {last}"
            )

    def close(self) -> None:
        """Leave the NameServer."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _ask(self, command: Command) -> Command:
        names = self._folder.socket_names("namesrv")
        random.shuffle(names)
        last: ShmqError | None = None
        for _ in range(len(names) + 1):
            try:
                if self._connection is None or self._connection.is_closed:
                    if not names:
                        break
                    self._connection = Connection(
                        self._folder, names.pop(), role="client", timeout_s=at_most(_TIMEOUT_S)
                    )
                return self._connection.call(command, timeout_s=at_most(_TIMEOUT_S))
            except (TopicNotExistError, PermissionDeniedError):
                raise
            except ShmqError as error:
                last = error
                if self._connection is not None:
                    self._connection.close()
                    self._connection = None
        raise ServiceNotAvailableError(
            f"ask a NameServer in {self._folder.path}: {last or 'there is none'}",
            hint="start one: shmq-namesrv, or shmq dev",
        )


def no_broker(what: str) -> ServiceNotAvailableError:
    """The error of `what` where a NameServer answers and no master is registered with it."""
    return ServiceNotAvailableError(
        f"{what}: the NameServer that was asked knows no broker",
        hint="wait until one has registered, or start one: shmq ha status shows who waits",
    )


def _shown(topics: Collection[str]) -> str:
    return f"topic {next(iter(topics))}" if len(topics) == 1 else f"{len(topics)} topics"
