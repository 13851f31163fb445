"""Administration: topics, groups, what the broker is and how it does.

In the loop's thread; what may need the disk runs in a worker thread.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from shmq.broker.processors.fields import json_response, ranged
from shmq.broker.rights import Action
from shmq.broker.topics import PERM_MAX, changed_attributes
from shmq.config import AUTO, setting_text, settings
from shmq.errors import ConfigError, ServiceNotAvailableError, TopicNotExistError
from shmq.json_fields import Fields
from shmq.remoting.codes import RequestCode
from shmq.remoting.command import Command, response_to
from shmq.remoting.server import Connection, Handler, Processor
from shmq.shm.incarnation import boot_id
from shmq.store.delay_marks import DELAY_MARKS_KEY, marked_ns
from shmq.subscription import SubscriptionGroupConfig
from shmq.topic import QUEUE_NUMS_MAX, Permission, TopicConfig, retry_topic

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shmq.broker.broker import Broker

__all__ = ["AdminProcessor", "page_of"]

LIST_COUNT_DEFAULT = 1000
LIST_COUNT_MAX = 10_000
TELL_TIMEOUT_S = 1.0
"""How long a change of a topic waits for NameServers that do not answer."""
_WORD_MAX = (1 << 31) - 1
_TIME_NS_MAX = (1 << 63) - 1


class AdminProcessor:
    """Serves the requests of tools."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def table(self) -> dict[int, Processor]:
        """By code."""
        code = RequestCode
        handlers: dict[int, Handler] = {
            code.UPDATE_AND_CREATE_TOPIC: self._update_topic,
            code.UPDATE_AND_CREATE_TOPIC_LIST: self._update_topics,
            code.DELETE_TOPIC_IN_BROKER: self._delete_topic,
            code.GET_ALL_TOPIC_CONFIG: self._topics,
            code.GET_TOPIC_CONFIG: self._topic,
            code.GET_TOPIC_STATS_INFO: self._topic_stats,
            code.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP: self._update_group,
            code.DELETE_SUBSCRIPTIONGROUP: self._delete_group,
            code.GET_ALL_SUBSCRIPTIONGROUP_CONFIG: self._groups,
            code.GET_SUBSCRIPTIONGROUP_CONFIG: self._group,
            code.GET_BROKER_RUNTIME_INFO: self._runtime_info,
            code.GET_BROKER_STATUS: self._status,
            code.GET_BROKER_CONFIG: self._get_config,
            code.UPDATE_BROKER_CONFIG: self._update_config,
            code.DELETE_EXPIRED_COMMITLOG: self._delete_expired,
            code.GET_ALL_DELAY_OFFSET: self._delay_offsets,
        }
        return {number: Processor(handler=handler) for number, handler in handlers.items()}

    # ---- topics ------------------------------------------------------------------------------

    async def _update_topic(self, connection: Connection, command: Command) -> Command:
        broker = self._broker
        take = command.fields()
        name = take.text("topic")
        self._broker.rights.require(connection.identity, Action.ADMIN, name)
        before = broker.topics.configs.get(name)
        known = before or TopicConfig(topic_name=name)
        wanted = TopicConfig(
            topic_name=name,
            read_queue_nums=ranged(take, "readQueueNums", 1, QUEUE_NUMS_MAX, known.read_queue_nums),
            write_queue_nums=ranged(
                take, "writeQueueNums", 1, QUEUE_NUMS_MAX, known.write_queue_nums
            ),
            perm=Permission(ranged(take, "perm", 0, PERM_MAX, int(known.perm))),
            topic_filter_type=take.text("topicFilterType", known.topic_filter_type),
            topic_sys_flag=ranged(take, "topicSysFlag", 0, _WORD_MAX, known.topic_sys_flag),
            order=take.flag("order", known.order),
            attributes=known.attributes,
            other=known.other,
        )
        wanted = changed_attributes(wanted, take.text("attributes", ""))
        is_force = take.flag("isForce", False)
        if before is None:
            async with broker.quotas.making(connection.identity, "topic", name):
                await broker.topics.update(wanted, lag=broker.lag, is_force=is_force)
        else:
            await broker.topics.update(wanted, lag=broker.lag, is_force=is_force)
        await broker.tell_namesrv(TELL_TIMEOUT_S)
        return json_response(command, wanted.to_dict())

    async def _update_topics(self, connection: Connection, command: Command) -> None:
        broker = self._broker
        configs = command.json().get("topicConfigList")
        if not isinstance(configs, list) or not all(isinstance(one, dict) for one in configs):
            raise ConfigError(f"{command.name}: topicConfigList: wanted a list of objects")
        wanted = [TopicConfig.from_dict(one) for one in configs]
        for one in wanted:
            broker.rights.require(connection.identity, Action.ADMIN, one.topic_name)
        names = [one.topic_name for one in wanted if one.topic_name not in broker.topics]
        async with broker.quotas.making(connection.identity, "topic", *names):
            await broker.topics.update_all(wanted, lag=broker.lag)
        await broker.tell_namesrv(TELL_TIMEOUT_S)

    async def _delete_topic(self, connection: Connection, command: Command) -> None:
        topic = command.fields().text("topic")
        self._broker.rights.require(connection.identity, Action.ADMIN, topic)
        await self._broker.delete_topic(topic)
        await self._broker.tell_namesrv(TELL_TIMEOUT_S)

    def _topics(self, connection: Connection, command: Command) -> Command:
        self._broker.rights.require(connection.identity, Action.ADMIN, "")
        topics = self._broker.topics
        names, is_last = page_of(command, topics.configs)
        table = {name: topics.configs[name].to_dict() for name in names}
        return json_response(
            command,
            {"dataVersion": topics.data_version.to_dict(), "topicConfigTable": table},
            {"isLast": is_last},
        )

    def _topic(self, connection: Connection, command: Command) -> Command:
        topic = command.fields().text("topic")
        self._broker.rights.require(connection.identity, Action.PULL, topic)
        return json_response(command, self._broker.topics.find(topic).to_dict())

    async def _topic_stats(self, connection: Connection, command: Command) -> Command:
        topic = command.fields().text("topic")
        self._broker.rights.require(connection.identity, Action.PULL, topic)
        queues = self._broker.store.queues
        spans = [
            (queue_id, queues.offsets(handle))
            for queue_id, handle in self._broker.topics.read_queues(topic)
        ]
        ends = [(queue_id, now.visible_max) for queue_id, now in spans]
        times = await asyncio.to_thread(self._last_times, topic, ends)
        shown = [
            {
                "queueId": queue_id,
                "minOffset": now.min_queue_offset,
                "maxOffset": now.visible_max,
                "lastUpdateTimestamp": last,
            }
            for (queue_id, now), last in zip(spans, times, strict=True)
        ]
        return json_response(command, {"queues": shown})

    def _last_times(self, topic: str, ends: list[tuple[int, int]]) -> list[int]:
        lookup = self._broker.store.lookup
        try:
            return [lookup.store_timestamp(topic, q, end - 1) or 0 for q, end in ends]
        except TopicNotExistError:  # deleted meanwhile
            return [0] * len(ends)

    # ---- groups ------------------------------------------------------------------------------

    async def _update_group(self, connection: Connection, command: Command) -> None:
        wanted = SubscriptionGroupConfig.from_dict(command.json())
        self._broker.rights.require(connection.identity, Action.ADMIN, wanted.group_name)
        broker = self._broker
        if wanted.group_name in broker.groups.configs:
            await broker.groups.update(wanted)
        else:
            async with broker.quotas.making(connection.identity, "group", wanted.group_name):
                await broker.groups.update(wanted)
        await broker.topics.ensure_retry_topic(
            wanted.group_name, wanted.retry_queue_nums, is_wanted=True
        )
        if not wanted.consume_enable:
            broker.revoke(lambda queue: queue.group == wanted.group_name)
        broker.notices.group_changed(wanted.group_name)  # members look what they may have now

    async def _delete_group(self, connection: Connection, command: Command) -> None:
        broker = self._broker
        take = command.fields()
        group = take.text("groupName")
        self._broker.rights.require(connection.identity, Action.ADMIN, group)
        await broker.groups.delete(group)
        await broker.owners.remove("group", group)
        broker.revoke(lambda queue: queue.group == group)
        broker.locks.remove(lambda queue: queue.group == group)
        if take.flag("cleanOffset", False):
            broker.offsets.remove_group(group)
        await broker.delete_topic(retry_topic(group))  # its dead letters stay, for people

    def _groups(self, connection: Connection, command: Command) -> Command:
        self._broker.rights.require(connection.identity, Action.ADMIN, "")
        groups = self._broker.groups
        names, is_last = page_of(command, groups.configs)
        table = {name: groups.configs[name].to_dict() for name in names}
        return json_response(
            command,
            {"dataVersion": groups.data_version.to_dict(), "subscriptionGroupTable": table},
            {"isLast": is_last},
        )

    def _group(self, connection: Connection, command: Command) -> Command:
        group = command.fields().text("group")
        self._broker.rights.require(connection.identity, Action.CONSUME, group)
        return json_response(command, self._broker.groups.find(group).to_dict())

    # ---- the broker --------------------------------------------------------------------------

    def _runtime_info(self, connection: Connection, command: Command) -> Command:
        self._broker.rights.require(connection.identity, Action.ADMIN, "")
        return json_response(command, {"table": self._broker.runtime_info()})

    def _get_config(self, connection: Connection, command: Command) -> Command:
        self._broker.rights.require(connection.identity, Action.ADMIN, "")
        known = settings(self._broker.config)
        quotas = self._broker.quotas
        came_to = self._broker.store.sizes | {"session_count_max_per_uid": quotas.session_share}
        return json_response(
            command,
            {
                "config": {each.name: each.text for each in known},
                "effective": {
                    each.name: str(came_to[each.name])
                    for each in known
                    if each.text == AUTO and each.name in came_to
                },
                "defaults": {each.name: each.default_text for each in known},
                "live": [each.name for each in known if each.is_live],
            },
        )

    def _update_config(self, connection: Connection, command: Command) -> Command:
        self._broker.rights.require(connection.identity, Action.ADMIN, "")
        changes = Fields(command.json(), what=command.name).texts("config")
        values = self._broker.change_config(changes)
        return json_response(
            command, {"config": {name: setting_text(value) for name, value in values.items()}}
        )

    def _delete_expired(self, connection: Connection, _command: Command) -> None:
        self._broker.rights.require(connection.identity, Action.ADMIN, "")
        self._broker.store.retention.request()

    def _delay_offsets(self, connection: Connection, command: Command) -> Command:
        self._broker.rights.require(connection.identity, Action.ADMIN, "")
        if self._broker.schedule is None:
            raise ServiceNotAvailableError("delay offsets: this broker is a slave; ask its master")
        schedule = self._broker.schedule
        body = schedule.offsets().to_dict()
        known_ns = ranged(command.fields(), "marksAfter", 0, _TIME_NS_MAX, _TIME_NS_MAX)
        if marked_ns(schedule.saved_marks, boot_id().hex()) > known_ns:
            body[DELAY_MARKS_KEY] = schedule.saved_marks
        return json_response(command, body)

    def _status(self, _connection: Connection, command: Command) -> Command:
        return response_to(command, ext_fields=self._broker.status())


def page_of(command: Command, table: Mapping[str, object]) -> tuple[list[str], bool]:
    """The names behind `after`, at most `count`, and whether they are the last."""
    take = command.fields()
    after = take.text("after", "")
    count = ranged(take, "count", 1, LIST_COUNT_MAX, LIST_COUNT_DEFAULT)
    names = sorted(name for name in table if name > after)
    return names[:count], len(names) <= count
