"""Consumer offsets: asked for, set, reset by hand, and how far groups lag.

In the loop's thread; what may need the disk runs in a worker thread.
"""

from __future__ import annotations

import asyncio
from enum import StrEnum, unique
from typing import TYPE_CHECKING

import orjson

from shmq.broker.claims import ClaimedQueue
from shmq.broker.processors.fields import json_response, queue_of, ranged
from shmq.broker.rights import Action
from shmq.errors import ConfigError, FencedError, OffsetIllegalError, TopicNotExistError
from shmq.remoting.codes import RequestCode, ResponseCode
from shmq.remoting.command import Command, response_to
from shmq.remoting.server import Connection, Processor
from shmq.topic import retry_topic

if TYPE_CHECKING:
    from shmq.broker.broker import Broker
    from shmq.store.queues import QueueHandle

__all__ = ["OffsetProcessor"]

_LONG_MAX = (1 << 63) - 1
_WORD_MAX = (1 << 32) - 1


@unique
class _Whence(StrEnum):
    """To where offsets are reset."""

    FIRST = "first"
    LAST = "last"
    TIMESTAMP = "timestamp"
    OFFSET = "offset"


class OffsetProcessor:
    """Serves the requests about consumer offsets."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def table(self) -> dict[int, Processor]:
        """By code."""
        return {
            RequestCode.QUERY_CONSUMER_OFFSET: Processor(handler=self._query),
            RequestCode.UPDATE_CONSUMER_OFFSET: Processor(handler=self._update),
            RequestCode.INVOKE_BROKER_TO_RESET_OFFSET: Processor(handler=self._reset),
            RequestCode.CLONE_GROUP_OFFSET: Processor(handler=self._clone),
            RequestCode.GET_CONSUME_STATS: Processor(handler=self._stats, is_concurrent=True),
        }

    def _query(self, connection: Connection, command: Command) -> Command:
        queue = _claimed(command)
        self._broker.rights.require(connection.identity, Action.CONSUME, queue.group)
        self._harvest(queue)
        consumer_offset = self._broker.offsets.query(*queue)
        if consumer_offset is None:
            return response_to(
                command,
                code=ResponseCode.QUERY_NOT_FOUND,
                remark=f"group {queue.group} never consumed queue {queue.queue_id} of "
                f"{queue.topic}",
            )
        return response_to(command, ext_fields={"offset": consumer_offset})

    async def _update(self, connection: Connection, command: Command) -> None:
        broker = self._broker
        queue = _claimed(command)
        consumer_offset = ranged(command.fields(), "commitOffset", 0, _LONG_MAX)
        self._broker.rights.require(connection.identity, Action.CONSUME, queue.group)
        broker.topics.read_queue(queue.topic, queue.queue_id)
        await broker.groups.ensure(queue.group)
        handle = broker.topics.read_queue(queue.topic, queue.queue_id)
        claim = broker.claims.find(queue)
        if claim is not None and claim.session.connection is not connection:
            raise FencedError(
                f"set the offset of {queue.group} in queue {queue.queue_id} of {queue.topic}: "
                f"client {claim.session.client_id} has a claim on it"
            )
        if broker.is_slave:  # which may not have yet what was read of its master
            visible_max = broker.store.queues.offsets(handle).visible_max
            consumer_offset = min(consumer_offset, visible_max)
        self._check_range(queue, handle, consumer_offset)
        broker.offsets.commit(*queue, consumer_offset)

    def _check_range(self, queue: ClaimedQueue, handle: QueueHandle, consumer_offset: int) -> None:
        now = self._broker.store.queues.offsets(handle)
        if consumer_offset > now.visible_max:
            raise OffsetIllegalError(
                f"set the offset of {queue.group} in queue {queue.queue_id} of {queue.topic} to "
                f"{consumer_offset}: it ends at {now.visible_max}"
            )

    def _harvest(self, queue: ClaimedQueue) -> None:
        claim = self._broker.claims.find(queue)
        if claim is not None:
            self._broker.claims.harvest([claim])

    # ---- reset -------------------------------------------------------------------------------

    async def _reset(self, connection: Connection, command: Command) -> Command:
        broker = self._broker
        take = command.fields()
        group, topic = take.text("group"), take.text("topic")
        queue_id = ranged(take, "queueId", -1, _WORD_MAX, -1)
        whence = _whence(take.text("whence"))
        timestamp = ranged(take, "timestamp", 0, _LONG_MAX, 0)
        wanted = ranged(take, "offset", 0, _LONG_MAX, 0)
        self._broker.rights.require(connection.identity, Action.ADMIN, group)
        broker.groups.find(group)
        queues = broker.topics.read_queues(topic)
        if queue_id >= 0:
            queues = [(queue_id, broker.topics.read_queue(topic, queue_id))]
        targets = {}
        for number, handle in queues:
            now = broker.store.queues.offsets(handle)
            if whence is _Whence.FIRST:
                targets[number] = now.min_queue_offset
            elif whence is _Whence.LAST:
                targets[number] = now.visible_max
            elif whence is _Whence.OFFSET:
                self._check_range(ClaimedQueue(group, topic, number), handle, wanted)
                targets[number] = wanted
            else:
                lookup = broker.store.lookup
                targets[number] = await asyncio.to_thread(
                    lookup.find_by_time, topic, number, timestamp
                )
        body = orjson.dumps({"offsetTable": await self._set(group, topic, targets)})
        return response_to(command, body=body)

    async def _set(self, group: str, topic: str, targets: dict[int, int]) -> list[dict[str, int]]:
        """Have a group go on elsewhere, by queue_id; whoever has the queues is told."""
        broker = self._broker
        chosen = {ClaimedQueue(group, topic, number) for number in targets}
        revoked = broker.claims.revoke(chosen.__contains__, is_harvested=False)
        for number, consumer_offset in targets.items():
            broker.offsets.reset(group, topic, number, consumer_offset)
        await broker.offsets.save()
        table = [
            {"queueId": number, "offset": consumer_offset}
            for number, consumer_offset in sorted(targets.items())
        ]
        body = orjson.dumps({"offsetTable": table})
        for session in revoked:
            session.connection.notify(
                Command(
                    RequestCode.RESET_CONSUMER_CLIENT_OFFSET,
                    {"group": group, "topic": topic},
                    body,
                )
            )
        return table

    # ---- clone -------------------------------------------------------------------------------

    async def _clone(self, connection: Connection, command: Command) -> Command:
        """Have a group go on where another one is, as RocketMQ's cloneGroupOffset."""
        broker = self._broker
        take = command.fields()
        source, group = take.text("srcGroup"), take.text("destGroup")
        topic = take.text("topic", "")
        for name in (source, group):
            broker.rights.require(connection.identity, Action.ADMIN, name)
            broker.groups.find(name)
        if source == group:
            raise ConfigError(f"clone the offsets of group {source}: to itself")
        self._harvest_all()
        topics = {topic} if topic else broker.topics_of_group(source) - {retry_topic(source)}
        done = []
        for name in sorted(topics):
            if name not in broker.topics:
                continue
            known = broker.offsets.queues_of(source, name)
            ids = {number for number, _ in broker.topics.read_queues(name)}
            targets = {number: known[number] for number in sorted(ids & known.keys())}
            done += [{"topic": name, **item} for item in await self._set(group, name, targets)]
        return json_response(command, {"offsetTable": done})

    def _harvest_all(self) -> None:
        broker = self._broker
        broker.claims.harvest([c for s in broker.sessions.sessions for c in broker.claims.of(s)])

    # ---- lag ---------------------------------------------------------------------------------

    async def _stats(self, connection: Connection, command: Command) -> Command:
        broker = self._broker
        take = command.fields()
        group, topic = take.text("consumerGroup"), take.text("topic", "")
        self._broker.rights.require(connection.identity, Action.CONSUME, group)
        broker.groups.find(group)
        self._harvest_all()
        topics = {topic} if topic else broker.topics_of_group(group)
        shown = []
        for name in sorted(topics):
            if name not in broker.topics:
                if topic:
                    broker.topics.find(topic)
                continue
            for queue_id, handle in broker.topics.read_queues(name):
                shown.append(self._lag(group, name, queue_id, handle))
        times = await asyncio.to_thread(self._times, shown)
        for item, (last, lag_ms) in zip(shown, times, strict=True):
            item["lastTimestamp"] = last
            item["lagMs"] = lag_ms
        return json_response(command, {"queues": shown})

    def _lag(self, group: str, topic: str, queue_id: int, handle: QueueHandle) -> dict[str, object]:
        broker = self._broker
        now = broker.store.queues.offsets(handle)
        queue = ClaimedQueue(group, topic, queue_id)
        consumer_offset = broker.offsets.query(*queue)
        claim = broker.claims.find(queue)
        begin = now.min_queue_offset if consumer_offset is None else consumer_offset
        return {
            "topic": topic,
            "brokerName": broker.config.broker_name,
            "queueId": queue_id,
            "brokerOffset": now.visible_max,
            "consumerOffset": -1 if consumer_offset is None else consumer_offset,
            "lag": now.visible_max - max(begin, now.min_queue_offset),
            "lastTimestamp": 0,
            "clientId": None if claim is None else claim.session.client_id,
            "lockedBy": broker.locks.holder(queue),
        }

    def _times(self, shown: list[dict[str, object]]) -> list[tuple[int, int]]:
        """For each queue: when its last consumed message was stored, ms, 0 where there is none; and
        how long ago the next one was, ms.
        """
        return [self._times_of(item) for item in shown]

    def _times_of(self, item: dict[str, object]) -> tuple[int, int]:
        lookup = self._broker.store.lookup
        consumer_offset, end, lag = (item[k] for k in ("consumerOffset", "brokerOffset", "lag"))
        assert isinstance(consumer_offset, int)
        assert isinstance(end, int)
        assert isinstance(lag, int)
        topic, queue_id = str(item["topic"]), int(str(item["queueId"]))
        try:
            last = lookup.store_timestamp(topic, queue_id, consumer_offset - 1) or 0
            if lag <= 0:
                return last, 0
            oldest = lookup.first_store_timestamp(topic, queue_id, end - lag)
        except TopicNotExistError:  # deleted meanwhile
            return 0, 0
        return last, 0 if oldest is None else max(0, self._broker.clock.wall_ms() - oldest)


def _claimed(command: Command) -> ClaimedQueue:
    group = command.fields().text("consumerGroup")
    return ClaimedQueue(group, *queue_of(command))


def _whence(text: str) -> _Whence:
    try:
        return _Whence(text)
    except ValueError:
        raise ConfigError(f"whence: {text!r}, wanted {' or '.join(_Whence)}") from None
