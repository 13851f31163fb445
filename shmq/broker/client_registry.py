"""Which clients live, which groups they are members of, and who must hear of a change.

What lives here: `ClientRegistry`, a state machine without time or sockets of its own: a clock is
passed in, connections are opaque owners, notices go out through a callback. A client counts until
its connection ends, its process dies or it is silent for too long; a heartbeat is the whole truth
about it, so groups that it does not name any more are left. One that is a part is the whole truth
about the groups that it names, and costs as much as those, however many others there are.

The loop's thread owns it. Nothing blocks. May fail: a client_id that another process has.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shmq.errors import OwnerError, SubscriptionError
from shmq.subscription import ConsumeFromWhere, MessageModel, SubscriptionData
from shmq.topic import RETRY_PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from shmq.clock import Clock
    from shmq.remoting.server import Connection

__all__ = ["Client", "ClientRegistry", "ConsumerMember"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerMember:
    """How one client takes part in one consumer group."""

    group: str
    """The group."""
    consume_type: str = "CONSUME_PASSIVELY"
    """RocketMQ's ConsumeType: push, or CONSUME_ACTIVELY for pull."""
    message_model: MessageModel = MessageModel.CLUSTERING
    """Clustering or broadcasting."""
    consume_from_where: ConsumeFromWhere = ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET
    """Where a new group begins."""
    subscriptions: Mapping[str, SubscriptionData] = field(default_factory=dict)
    """By topic."""


@dataclass(slots=True, eq=False)
class Client:
    """One living client."""

    client_id: str
    """What it calls itself; the same on all brokers."""
    connection: Connection
    """Where it is; says who it is."""
    heard_ns: int
    """Monotonic time of its last heartbeat."""
    producer_groups: set[str] = field(default_factory=set)
    """Groups that it produces for."""
    consumers: dict[str, ConsumerMember] = field(default_factory=dict)
    """By group."""


class ClientRegistry:
    """All clients of one broker.

    Args:
        clock: monotonic time.
        on_group_changed: called with (group, its members) when one came or went or changed its
            subscription.
    """

    def __init__(
        self, clock: Clock, on_group_changed: Callable[[str, Iterable[Client]], None]
    ) -> None:
        self._clock = clock
        self._on_group_changed = on_group_changed
        self._clients: dict[Connection, Client] = {}
        self._by_id: dict[str, Client] = {}
        self._consumers: dict[str, dict[str, Client]] = {}
        self._producers: dict[str, dict[str, Client]] = {}
        self._subscribed: dict[str, Counter[str]] = {}
        """By topic: how many members of each group subscribe to it."""

    def __len__(self) -> int:
        return len(self._clients)

    # ---- who is there ------------------------------------------------------------------------

    def clients(self) -> list[Client]:
        """All of them."""
        return list(self._clients.values())

    def of(self, connection: Connection) -> Client | None:
        """The client of a connection, if it has told its name."""
        return self._clients.get(connection)

    def named(self, client_id: str) -> Client | None:
        """The client that calls itself so."""
        return self._by_id.get(client_id)

    def consumers(self, group: str) -> list[Client]:
        """Members of a consumer group, by client_id."""
        return [client for _, client in sorted(self._consumers.get(group, {}).items())]

    def producers(self, group: str) -> list[Client]:
        """Members of a producer group, by client_id."""
        return [client for _, client in sorted(self._producers.get(group, {}).items())]

    def consumer_ids(self, group: str, topic: str | None = None) -> list[str]:
        """The sorted client ids of a consumer group, over which its queues are allocated.

        Args:
            group: the group.
            topic: only members that subscribe to it, so that a queue is never left to one who does
                not; None: all members. Retry topics are every member's.
        """
        members = self._consumers.get(group, {})
        if topic is None or topic.startswith(RETRY_PREFIX):
            return sorted(members)
        return sorted(
            client_id
            for client_id, client in members.items()
            if topic in client.consumers[group].subscriptions
        )

    def groups_subscribed_to(self, topic: str) -> set[str]:
        """Consumer groups with a member that subscribes to a topic."""
        return set(self._subscribed.get(topic, ()))

    # ---- coming ------------------------------------------------------------------------------

    def bind(self, connection: Connection, client_id: str) -> Connection | None:
        """Give a connection its client_id.

        Returns:
            the connection that had it before, of the same process: the caller ends it.

        Raises:
            OwnerError: another process has the id, or this connection has another one.
        """
        client = self._clients.get(connection)
        if client is not None:
            if client.client_id != client_id:
                raise OwnerError(
                    f"call {connection.identity} {client_id}: it is {client.client_id} already"
                )
            return None
        before = self._by_id.get(client_id)
        if before is not None:
            old, new = before.connection.identity, connection.identity
            if (old.uid, old.pid, old.incarnation) != (new.uid, new.pid, new.incarnation):
                raise OwnerError(
                    f"call {new} {client_id}: that is {old}; client ids are unique on a host"
                )
            self._clients.pop(before.connection)
        client = Client(client_id, connection, self._clock.monotonic_ns())
        if before is not None:  # its groups go on without a gap
            client.producer_groups, client.consumers = before.producer_groups, before.consumers
            for members, groups in (
                (self._consumers, client.consumers),
                (self._producers, client.producer_groups),
            ):
                for group in groups:
                    members[group][client_id] = client
        self._clients[connection] = client
        self._by_id[client_id] = client
        return None if before is None else before.connection

    def check_alike(self, connection: Connection, consumers: Iterable[ConsumerMember]) -> None:
        """Return if a client's subscriptions are those of the other members of its groups: the same
        tags of each topic that they share, and the same message model. RocketMQ takes what differs,
        and messages are missed: a queue is filtered by whoever has it.

        Raises:
            SubscriptionError: one differs; it names both members and both subscriptions.
        """
        own = self._clients.get(connection)
        for member in consumers:
            for client_id, other in sorted(self._consumers.get(member.group, {}).items()):
                if other is not own:
                    asks = "this client" if own is None else own.client_id
                    _check_alike(member, asks, other.consumers[member.group], client_id)

    def heartbeat(
        self,
        connection: Connection,
        *,
        producer_groups: Iterable[str],
        consumers: Iterable[ConsumerMember],
        named: Collection[str] | None = None,
    ) -> None:
        """A client says what it is part of now; groups it does not name are left.

        The connection is bound.

        Args:
            connection: of the client.
            producer_groups: groups that it produces for.
            consumers: groups that it consumes in.
            named: just these groups are spoken of, and stay as they are if they are not named;
                None: all.
        """
        client = self._clients[connection]
        client.heard_ns = self._clock.monotonic_ns()
        producers = set(producer_groups)
        members = {member.group: member for member in consumers}
        spoken_of = client.consumers.keys() | client.producer_groups if named is None else named
        for group in spoken_of:
            if group in client.producer_groups and group not in producers:
                self._leave_producers(group, client)
        for group in producers - client.producer_groups:
            self._producers.setdefault(group, {})[client.client_id] = client
            client.producer_groups.add(group)
        changed = set()
        for group in spoken_of:
            if group in client.consumers and group not in members:
                self._leave_consumers(group, client)
                changed.add(group)
        for group, member in members.items():
            known = client.consumers.get(group)
            if known is None or _subscribed(known) != _subscribed(member):
                changed.add(group)
            if known is None:
                self._consumers.setdefault(group, {})[client.client_id] = client
            else:
                self._count(known, -1)
            self._count(member, 1)
            client.consumers[group] = member
        self._tell(changed)

    # ---- going -------------------------------------------------------------------------------

    def unregister(self, connection: Connection, producer_group: str, consumer_group: str) -> None:
        """A client leaves groups (empty: none)."""
        client = self._clients.get(connection)
        if client is None:
            return
        if producer_group in client.producer_groups:
            self._leave_producers(producer_group, client)
        if consumer_group in client.consumers:
            self._leave_consumers(consumer_group, client)
            self._tell({consumer_group})

    def remove(self, connection: Connection) -> Client | None:
        """A connection has ended; its client, whose groups are told now."""
        client = self._clients.pop(connection, None)
        if client is None:
            return None
        del self._by_id[client.client_id]
        for group in tuple(client.producer_groups):
            self._leave_producers(group, client)
        left = set(client.consumers)
        for group in left:
            self._leave_consumers(group, client)
        self._tell(left)
        return client

    def silent(self, expiry_ms: int) -> list[Client]:
        """Clients that were not heard of for that long: alive, but hung."""
        limit_ns = self._clock.monotonic_ns() - expiry_ms * 1_000_000
        return [client for client in self._clients.values() if client.heard_ns <= limit_ns]

    def _leave_producers(self, group: str, client: Client) -> None:
        client.producer_groups.remove(group)
        _drop(self._producers, group, client)

    def _leave_consumers(self, group: str, client: Client) -> None:
        self._count(client.consumers.pop(group), -1)
        _drop(self._consumers, group, client)

    def _count(self, member: ConsumerMember, change: int) -> None:
        """A member subscribes to its topics, or does no more."""
        for topic in member.subscriptions:
            groups = self._subscribed.setdefault(topic, Counter())
            groups[member.group] += change
            if not groups[member.group]:
                del groups[member.group]
                if not groups:
                    del self._subscribed[topic]

    def _tell(self, groups: set[str]) -> None:
        for group in sorted(groups):
            self._on_group_changed(group, self.consumers(group))


def _drop(members: dict[str, dict[str, Client]], group: str, client: Client) -> None:
    del members[group][client.client_id]
    if not members[group]:
        del members[group]


def _check_alike(
    member: ConsumerMember, client_id: str, other: ConsumerMember, other_id: str
) -> None:
    said: tuple[str, object, object] | None = None
    if member.message_model is not other.message_model:
        said = "message model", str(member.message_model), str(other.message_model)
    for topic in sorted(member.subscriptions.keys() & other.subscriptions.keys()):
        ours, theirs = member.subscriptions[topic], other.subscriptions[topic]
        if (ours.expression_type, ours.tags_set) != (theirs.expression_type, theirs.tags_set):
            said = said or (f"filter of {topic}", ours.sub_string, theirs.sub_string)
    if said is not None:
        what, own, others = said
        raise SubscriptionError(
            f"consume as {member.group}: {client_id} has {what} {str(own)!r}, and {other_id}, "
            f"which was there first, has {str(others)!r}; wanted the same of all members",
            hint="use the same for all members of a group, or another group",
        )


def _subscribed(member: ConsumerMember) -> object:
    """What others must know of a member's subscriptions."""
    return {topic: data.sub_string for topic, data in member.subscriptions.items()}
