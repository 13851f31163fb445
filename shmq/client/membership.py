"""Which groups a client is in, and what each broker was told of them.

What lives here: `Membership`. A broker that is new to us, or back, is told everything, and so is
each of them every 30 s; what changes between is told alone: the N-th group of a client costs as
much as its first (RocketMQ sends all of them each time, or a fingerprint of all of them).
Which process: the program's, any of its threads. Writes nothing in shared memory. May fail: what
brokers refuse; ServiceNotAvailableError while one is away.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from typing import TYPE_CHECKING

from shmq.client.deadline import held
from shmq.errors import ConfigError, ShmqError
from shmq.remoting.codes import RequestCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from shmq.client.assignment import Assignment
    from shmq.client.broker_link import BrokerLink

__all__ = ["Membership"]

_log = logging.getLogger("shmq.client")


class _Told:
    """What one broker knows of us."""

    __slots__ = ("connection", "lock", "untold")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        """Held while it is told, so that nothing older arrives behind what is newer."""
        self.connection: object = None
        """Where it was told everything."""
        self.untold: set[str] = set()
        """Groups that changed since, or that it refused among others."""


class Membership:
    """Of one client.

    Args:
        client_id: its name for itself.
    """

    def __init__(self, client_id: str) -> None:
        self._client_id = client_id
        self._lock = threading.Lock()
        """Held for a look at the tables, never while a broker is asked."""
        self._by_group: dict[str, dict[Assignment, None]] = {}
        self._by_topic: dict[str, dict[Assignment, None]] = {}
        self._producers: Counter[str] = Counter()
        self._told: dict[BrokerLink, _Told] = {}

    # ---- coming and going ------------------------------------------------------------------------

    def add(self, assignment: Assignment) -> None:
        """A consumer comes; brokers hear of it when they are greeted.

        Raises:
            ConfigError: this client is that member already.
        """
        group, topic = assignment.group, assignment.topic
        with self._lock:
            known = self._by_group.get(group, {})
            if assignment.is_shared and any(one.is_shared and one.topic == topic for one in known):
                raise ConfigError(
                    f"consume {topic} in group {group}: this client does already; connect another "
                    "client for another member, or use push_consumer for more threads"
                )
            self._by_group.setdefault(group, {})[assignment] = None
            self._by_topic.setdefault(topic, {})[assignment] = None
            if assignment.is_shared:
                self._changed(group)

    def remove(self, assignment: Assignment) -> None:
        """A consumer goes; brokers hear of it with `tell`. Twice does nothing."""
        with self._lock:
            for table, key in (
                (self._by_group, assignment.group),
                (self._by_topic, assignment.topic),
            ):
                members = table.get(key, {})
                if assignment in members:
                    del members[assignment]
                    if not members:
                        del table[key]
            if assignment.is_shared:
                self._changed(assignment.group)

    def add_producer(self, group: str) -> None:
        """A producer comes; brokers hear of it when they are greeted."""
        with self._lock:
            self._producers[group] += 1
            if self._producers[group] == 1:
                self._changed(group)

    def remove_producer(self, group: str) -> None:
        """A producer goes. Its group is not told at once: the next heartbeat has it no more."""
        with self._lock:
            self._producers[group] -= 1
            if not self._producers[group]:
                del self._producers[group]

    def _changed(self, group: str) -> None:
        for told in self._told.values():
            told.untold.add(group)

    @property
    def assignments(self) -> tuple[Assignment, ...]:
        """All there are."""
        with self._lock:
            return tuple(one for members in self._by_group.values() for one in members)

    def concerned(self, group: object, topic: object) -> tuple[Assignment, ...]:
        """Those that a notice about a group, or else about a topic, may be for."""
        with self._lock:
            if isinstance(group, str):
                return tuple(self._by_group.get(group, ()))
            return tuple(self._by_topic.get(topic, ())) if isinstance(topic, str) else ()

    # ---- telling ---------------------------------------------------------------------------------

    def greet(self, link: BrokerLink, group: str) -> None:
        """See that a broker knows us, and what we are in this group.

        Raises:
            ServiceNotAvailableError: it is away.
            PermissionDeniedError, SubscriptionError and others: it refuses us in this group.
        """
        told = self._of(link)
        if told.connection is link.connection and group not in told.untold:
            return
        with held(told.lock, f"tell broker {link.broker_name} of group {group}"):
            if told.connection is not link.connection:
                self._tell_all(link, told)
            if group in told.untold:
                self._tell_one(link, told, group)

    def tell(self, link: BrokerLink, group: str) -> None:
        """Tell a broker that was greeted what we are in a group now.

        Raises:
            ShmqError: it was not told; the next heartbeat says so, too.
        """
        told = self._of(link)
        with held(told.lock, f"tell broker {link.broker_name} of group {group}"):
            if group in told.untold:
                self._tell_one(link, told, group)

    def heartbeat(self, link: BrokerLink) -> None:
        """Tell a broker everything. What it refuses its members hear when they greet it.

        Raises:
            ServiceNotAvailableError and others that are retryable: it was not told.
        """
        told = self._of(link)
        with held(told.lock, f"tell broker {link.broker_name} of all groups"):
            self._tell_all(link, told)

    def forget(self, link: BrokerLink) -> None:
        """It will not be told any more."""
        with self._lock:
            self._told.pop(link, None)

    def _of(self, link: BrokerLink) -> _Told:
        told = self._told.get(link)
        if told is None:
            with self._lock:
                told = self._told.setdefault(link, _Told())
        return told

    def _tell_all(self, link: BrokerLink, told: _Told) -> None:
        with self._lock:
            before, told.untold = told.untold, set()
            body = self._body(sorted(self._producers), self._by_group)
        connection = link.connection
        try:
            link.call(RequestCode.HEART_BEAT, None, body)
        except ShmqError as error:
            with self._lock:
                if told.connection is not connection:
                    before = before.union(self._producers, self._by_group)
                told.untold |= before
            if error.retryable:
                raise
            _log.debug("heartbeat broker=%s: %s", link.broker_name, error)
        told.connection = connection

    def _tell_one(self, link: BrokerLink, told: _Told, group: str) -> None:
        with self._lock:
            told.untold.discard(group)
            body = self._body([group] if self._producers[group] else [], [group])
        try:
            if body["producerDataSet"] or body["consumerDataSet"]:
                link.call(RequestCode.HEART_BEAT, None, body | {"isPart": True})
            else:
                fields = {"clientID": self._client_id, "consumerGroup": group}
                link.call(RequestCode.UNREGISTER_CLIENT, fields)
        except BaseException:
            with self._lock:
                told.untold.add(group)
            raise

    def _body(self, producer_groups: Iterable[str], groups: Iterable[str]) -> dict[str, object]:
        entries = [self._entry(group) for group in groups]
        return {
            "clientID": self._client_id,
            "producerDataSet": [{"groupName": group} for group in producer_groups],
            "consumerDataSet": [entry for entry in entries if entry is not None],
        }

    def _entry(self, group: str) -> Mapping[str, object] | None:
        """A group as a heartbeat tells it; None: nobody of us shares its queues."""
        shared = [one for one in self._by_group.get(group, ()) if one.is_shared]
        if not shared:
            return None
        return {
            "groupName": group,
            "consumeType": "CONSUME_PASSIVELY",
            "messageModel": str(shared[0].model.value),
            "consumeFromWhere": str(shared[0].from_where.value),
            "subscriptionDataSet": [one.describe() for one in shared],
        }
