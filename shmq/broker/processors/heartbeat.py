"""Clients and their groups: heartbeats, who is a member, who is connected.

In the loop's thread.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

from shmq.broker.client_registry import Client, ConsumerMember
from shmq.broker.processors.fields import (
    client_id_of,
    fields_of,
    items_of,
    json_response,
)
from shmq.broker.rights import Action
from shmq.errors import ConfigError, PermissionDeniedError, SubscriptionError
from shmq.remoting.codes import RequestCode, ResponseCode
from shmq.remoting.command import Command, response_to
from shmq.remoting.server import Connection, Processor
from shmq.subscription import ConsumeFromWhere, MessageModel, SubscriptionData, check_group
from shmq.topic import check_topic

if TYPE_CHECKING:
    from shmq.broker.broker import Broker
    from shmq.json_fields import Fields

__all__ = ["HeartbeatProcessor"]

GROUP_COUNT_MAX = 1024
"""Groups of one client."""
REGROUP_WAIT_S = 3.0
"""How long a list of members waits for the clients of adopted sessions: they come back within
their back-off of at most a second. Whoever asked too early would take the absent ones' queues."""
_E = TypeVar("_E", bound=StrEnum)
_CONSUME_TYPES = ("CONSUME_PASSIVELY", "CONSUME_ACTIVELY", "CONSUME_POP")


class HeartbeatProcessor:
    """Serves the requests about clients and groups' members."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def table(self) -> dict[int, Processor]:
        """By code."""
        return {
            RequestCode.HEART_BEAT: Processor(handler=self._heartbeat),
            RequestCode.UNREGISTER_CLIENT: Processor(handler=self._unregister),
            RequestCode.GET_CONSUMER_LIST_BY_GROUP: Processor(
                handler=self._consumer_list, is_concurrent=True
            ),
            RequestCode.GET_CONSUMER_CONNECTION_LIST: Processor(handler=self._consumer_connections),
            RequestCode.GET_PRODUCER_CONNECTION_LIST: Processor(handler=self._producer_connections),
        }

    async def _heartbeat(self, connection: Connection, command: Command) -> None:
        broker = self._broker
        body = command.json()
        what = command.name
        take = fields_of(body, what)
        client_id = client_id_of(take, "clientID")
        producers = [item.text("groupName") for item in items_of(body, "producerDataSet", what)]
        members = [_member(item) for item in items_of(body, "consumerDataSet", what)]
        named = None
        if take.flag("isPart", False):
            named = {*producers, *(member.group for member in members)}
        self._check_group_count(connection, len(producers) + len(members), named, what)
        for group in producers:
            check_group(group)
        denial: PermissionDeniedError | SubscriptionError | None = None
        allowed = []
        for member in members:
            try:
                self._require_member(connection, member)
            except PermissionDeniedError as error:
                denial = error  # the client lives all the same, and so do its other groups
                continue
            if broker.is_slave or member.group in broker.groups.configs:
                config = await broker.groups.ensure(member.group)
            else:
                async with broker.quotas.making(connection.identity, "group", member.group):
                    config = await broker.groups.ensure(member.group)
            is_broadcast = member.message_model is MessageModel.BROADCASTING
            closed = "" if config.consume_enable else "consumeEnable"
            if is_broadcast and not config.consume_broadcast_enable:
                closed = closed or "consumeBroadcastEnable"
            if closed:
                denial = PermissionDeniedError(f"consume as {member.group}: {closed} is false")
                continue
            allowed.append(member)
            if not broker.is_slave:  # which makes no topic
                await broker.topics.ensure_retry_topic(member.group, config.retry_queue_nums)
        if connection.is_closed:  # while a group was made
            return
        broker.bind(connection, client_id)
        alike = []
        for member in allowed:
            try:
                broker.registry.check_alike(connection, [member])
                alike.append(member)
            except SubscriptionError as error:
                denial = denial or error
        broker.registry.heartbeat(
            connection, producer_groups=producers, consumers=alike, named=named
        )
        # Making groups took a while: the rules may be others now.
        broker.hold_members(connection, {member.group for member in alike})
        if denial is not None:
            raise denial

    def _check_group_count(
        self, connection: Connection, count: int, named: set[str] | None, what: str
    ) -> None:
        client = self._broker.registry.of(connection)
        if named is not None and client is not None:
            known = client.producer_groups, client.consumers
            count += sum(len(groups) for groups in known)
            count -= sum(group in groups for group in named for groups in known)
        if count > GROUP_COUNT_MAX:
            raise ConfigError(
                f"{what}: {count} groups of one client, wanted at most {GROUP_COUNT_MAX}; connect "
                "another client for more"
            )

    def _require_member(self, connection: Connection, member: ConsumerMember) -> None:
        """Return if a client may be that member: one that may not pull would get a share of the
        queues all the same, and nobody would consume it.

        Raises:
            PermissionDeniedError: it may not take part in the group, or not pull a topic.
        """
        rights = self._broker.rights
        rights.require(connection.identity, Action.CONSUME, member.group)
        for topic in member.subscriptions:
            rights.require(connection.identity, Action.PULL, topic)

    def _unregister(self, connection: Connection, command: Command) -> None:
        take = command.fields()
        take.text("clientID")  # RocketMQ has it; whose connection it is, the kernel says
        group = take.text("consumerGroup", "")
        session = self._broker.sessions.find(connection)
        if session is not None and group:
            self._broker.claims.end_session(session, group)
            self._broker.locks.unlock_all(session.client_id, group)
        self._broker.registry.unregister(connection, take.text("producerGroup", ""), group)

    async def _consumer_list(self, connection: Connection, command: Command) -> Command:
        take = command.fields()
        group, topic = take.text("consumerGroup"), take.text("topic", "")
        self._broker.rights.require(connection.identity, Action.CONSUME, group)
        await self._broker.sessions.wait_all_back(self._broker.left_of_start_s(REGROUP_WAIT_S))
        ids = self._broker.registry.consumer_ids(group, topic or None)
        return json_response(command, {"consumerIdList": ids})

    def _consumer_connections(self, connection: Connection, command: Command) -> Command:
        group = command.fields().text("consumerGroup")
        self._broker.rights.require(connection.identity, Action.CONSUME, group)
        clients = self._broker.registry.consumers(group)
        if not clients:
            return response_to(
                command,
                code=ResponseCode.CONSUMER_NOT_ONLINE,
                remark=f"group {group}: no member is connected to this broker",
            )
        newest = clients[-1].consumers[group]
        subscriptions = {
            topic: _shown(data)
            for client in clients
            for topic, data in client.consumers[group].subscriptions.items()
        }
        return json_response(
            command,
            {
                "connectionSet": [_connected(client) for client in clients],
                "subscriptionTable": subscriptions,
                "consumeType": newest.consume_type,
                "messageModel": newest.message_model,
                "consumeFromWhere": newest.consume_from_where,
            },
        )

    def _producer_connections(self, connection: Connection, command: Command) -> Command:
        group = command.fields().text("producerGroup")
        self._broker.rights.require(connection.identity, Action.ADMIN, group)
        clients = self._broker.registry.producers(group)
        return json_response(command, {"connectionSet": [_connected(c) for c in clients]})


def _member(item: Fields) -> ConsumerMember:
    group = item.text("groupName")
    check_group(group)
    item.what = f"group {group}"
    subscriptions = {}
    for data in items_of(item.rest(), "subscriptionDataSet", item.what):
        topic = data.text("topic")
        check_topic(topic)
        subscriptions[topic] = SubscriptionData.parse(
            topic, data.optional_text("subString"), sub_version=data.number("subVersion", 0)
        )
    consume_type = item.text("consumeType", _CONSUME_TYPES[0])
    if consume_type not in _CONSUME_TYPES:
        raise ConfigError(
            f"{item.what}: consumeType: {consume_type!r}, wanted {' or '.join(_CONSUME_TYPES)}"
        )
    return ConsumerMember(
        group=group,
        consume_type=consume_type,
        message_model=_one_of(item, "messageModel", MessageModel.CLUSTERING),
        consume_from_where=_one_of(
            item, "consumeFromWhere", ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET
        ),
        subscriptions=subscriptions,
    )


def _one_of(take: Fields, key: str, default: _E) -> _E:
    value = take.text(key, default)
    kind = type(default)
    try:
        return kind(value)
    except ValueError:
        raise ConfigError(f"{take.what}: {key}: {value!r}, wanted {' or '.join(kind)}") from None


def _connected(client: Client) -> dict[str, object]:
    return {
        "clientId": client.client_id,
        "clientAddr": str(client.connection.identity),
        "language": "PYTHON",
        "version": 0,
    }


def _shown(data: SubscriptionData) -> dict[str, object]:
    return {
        "topic": data.topic,
        "subString": data.sub_string,
        "tagsSet": sorted(data.tags_set),
        "codeSet": sorted(data.code_set),
        "subVersion": data.sub_version,
        "expressionType": data.expression_type,
    }
