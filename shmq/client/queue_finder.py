"""Where a topic's messages may go: asked of NameServers and brokers.

What lives here: `QueueFinder`, of one producer. Which process: the program's, in the thread that
sends first, and in the one that looks for brokers that are new. Writes nothing. May fail:
TopicNotExistError, PermissionDeniedError, ServiceNotAvailableError.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from shmq.client.deadline import at_most, within
from shmq.client.queue_selector import SendQueue
from shmq.client.route_cache import no_broker
from shmq.core import core
from shmq.errors import (
    PermissionDeniedError,
    ServiceNotAvailableError,
    ShmqError,
    TopicNotExistError,
)
from shmq.result import MessageQueue
from shmq.topic import AUTO_CREATE_TOPIC, Permission

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from shmq.client.instance import Client

__all__ = ["QueueFinder"]

_FLUSH_FAILED = core.STATUS["FLUSH_FAILED"][0]


class QueueFinder:
    """Finds the queues of topics, and remembers them for when their brokers are away.

    Args:
        client: whose sessions they are of.
        group: the producer's.
    """

    def __init__(self, client: Client, group: str) -> None:
        self._client = client
        self._group = group
        self._known: dict[str, list[SendQueue]] = {}

    def find(self, topic: str, *, may_create: bool = True) -> list[SendQueue]:
        """All queues of a topic: what living brokers grant; of others, what was known of them, or
        what the NameServers were told.
        """
        configured: dict[str, int] = {}
        makes = False
        wiped: frozenset[str] = frozenset()
        try:
            names, wiped = self._routed(topic)
            configured = self._client.routes.configured(topic)
        except TopicNotExistError:
            if not may_create:
                raise
            names = set(self._client.routes.brokers())  # they make it, if they make topics
            makes = True  # one that has a route is not made again where it was deleted
            with contextlib.suppress(TopicNotExistError):
                wiped = self._routed(AUTO_CREATE_TOPIC)[1]
            names -= wiped
        except ServiceNotAvailableError:
            if topic not in self._known:
                raise
            names = set()
        known = self._known.get(topic, [])
        names |= configured.keys() | {queue.message_queue.broker_name for queue in known}
        queues, refusal = self._ask(topic, names, configured, wiped, makes)
        if isinstance(refusal, TopicNotExistError) and may_create and not makes and not queues:
            # Its route is not gone yet, and the topic is: as one that has none.
            names = set(self._client.routes.brokers())
            queues, refusal = self._ask(topic, names, {}, wiped, True)
        if not names and not wiped:
            raise no_broker(f"send to {topic}")
        if not any(queue.lane is not None for queue in queues):
            raise refusal or TopicNotExistError(
                f"send to {topic}: no broker has it",
                hint=f"create it: Client.create_topic({topic!r})",
            )
        self._known[topic] = queues
        return queues

    def _ask(
        self,
        topic: str,
        names: Iterable[str],
        configured: Mapping[str, int],
        wiped: frozenset[str],
        makes: bool,
    ) -> tuple[list[SendQueue], ShmqError | None]:
        """The queues at these brokers, and why one of them has none or cannot be asked."""
        known = self._known.get(topic, [])
        queues: list[SendQueue] = []
        refusal: ShmqError | None = None
        wanted = sorted(names)
        for index, name in enumerate(wanted):
            # One that hangs does not take the time that the others need.
            share_s = at_most(threading.TIMEOUT_MAX) / (len(wanted) - index)
            try:
                with within(share_s):
                    self._client.greet(self._client.link(name), self._group)
                    granted = self._granted(topic, name, makes)
                if name in wiped and not self._keeps_queues(topic, name):
                    raise PermissionDeniedError(
                        f"send to {topic}: the write permission of broker {name} was wiped",
                        hint=f"if it is to take messages again: shmq broker add-write {name}",
                    )
                queues += granted
            except PermissionDeniedError as error:
                if name not in wiped:
                    raise
                refusal = error
            except ServiceNotAvailableError as error:
                refusal = error
                before = [queue for queue in known if queue.message_queue.broker_name == name]
                queues += before or [
                    SendQueue(MessageQueue(topic, name, queue_id), None, 0, None, 0, 0)
                    for queue_id in range(configured.get(name, 0))
                ]
            except TopicNotExistError as error:
                refusal = error  # deleted there
        return queues, refusal

    def _keeps_queues(self, topic: str, broker_name: str) -> bool:
        """Whether a broker without write permission keeps its place among a topic's queues: an
        order topic's keys do not move, and a store that failed says so itself.
        """
        link = self._client.link(broker_name)
        return link.is_order(topic) or link.store_status == _FLUSH_FAILED

    def _routed(self, topic: str) -> tuple[set[str], frozenset[str]]:
        """Brokers that have write queues of a topic, and those of them that an administrator has
        wiped the write permission of.
        """
        route = self._client.routes.route(topic, is_fresh=True)
        datas = [data for data in route.queue_datas if data.write_queue_nums]
        wiped = frozenset(d.broker_name for d in datas if Permission.WRITE not in d.perm)
        return {data.broker_name for data in datas}, wiped

    def _granted(self, topic: str, broker_name: str, makes: bool) -> list[SendQueue]:
        link = self._client.link(broker_name)
        generation, lanes = link.generation, link.lanes
        return [
            SendQueue(
                MessageQueue(topic, broker_name, queue_id),
                link,
                generation,
                lanes[queue_id % len(lanes)],
                *handle,
            )
            for queue_id, handle in link.grant_send(topic, is_auto_create=makes)
        ]
