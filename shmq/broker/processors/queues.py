"""Queues: handles to send and to read, bells, entries that left memory, offsets of queues.

In the loop's thread; what may need the disk runs in a worker thread.
"""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING

from shmq.broker.processors.fields import handles_of, json_response, pairs, queue_of, ranged
from shmq.broker.rights import Action
from shmq.core import core
from shmq.errors import ClosedError, IllegalTopicError, PermissionDeniedError
from shmq.remoting.codes import RequestCode, ResponseCode
from shmq.remoting.command import Command, response_to
from shmq.remoting.server import Connection, Processor
from shmq.topic import AUTO_CREATE_TOPIC, Permission, TopicConfig, check_sendable_topic

if TYPE_CHECKING:
    from shmq.broker.broker import Broker
    from shmq.store.queues import QueueHandle

__all__ = ["QueueProcessor"]

ENTRY_COUNT_DEFAULT = 1024
ENTRY_COUNT_MAX = 4096
CLIENT_QUEUE_NUMS = 4
"""Queues that RocketMQ's clients ask for when a send creates a topic."""
_ENTRY_SIZE = 24
_LONG_MAX = (1 << 63) - 1


class QueueProcessor:
    """Serves the requests about queues."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def table(self) -> dict[int, Processor]:
        """By code."""
        return {
            RequestCode.GRANT_SEND: Processor(handler=self._grant_send),
            RequestCode.GET_TOPIC_QUEUES: Processor(handler=self._topic_queues),
            RequestCode.SUBSCRIBE_BELL: Processor(handler=self._subscribe),
            RequestCode.UNSUBSCRIBE_BELL: Processor(handler=self._unsubscribe),
            RequestCode.READ_ENTRIES: Processor(handler=self._read_entries, is_concurrent=True),
            RequestCode.GET_MAX_OFFSET: Processor(handler=self._max_offset),
            RequestCode.GET_MIN_OFFSET: Processor(handler=self._min_offset),
            RequestCode.SEARCH_OFFSET_BY_TIMESTAMP: Processor(
                handler=self._search, is_concurrent=True
            ),
        }

    # ---- handles -----------------------------------------------------------------------------

    async def _grant_send(self, connection: Connection, command: Command) -> Command:
        broker = self._broker
        take = command.fields()
        topic = take.text("topic")
        nums = ranged(take, "defaultTopicQueueNums", 1, _LONG_MAX, CLIENT_QUEUE_NUMS)
        self._broker.rights.require(connection.identity, Action.SEND, topic)
        if broker.store.failure is not None:
            raise broker.store.failure
        check_sendable_topic(topic)
        if topic == AUTO_CREATE_TOPIC:
            raise IllegalTopicError(f"send to {topic}: it is the template of topics, not one")
        session = broker.sessions.require(connection)
        if topic not in broker.topics and take.flag("isAutoCreate", True):
            async with broker.quotas.making(connection.identity, "topic", topic):
                await broker.topics.create_for_send(topic, nums)
            self._broker.rights.require(connection.identity, Action.SEND, topic)  # it took a while
        config = broker.topics.find(topic)
        if Permission.WRITE not in config.perm:
            raise PermissionDeniedError(f"send to {topic}: its perm {int(config.perm)} has no W")
        if session.is_over:  # the connection ended while the topic was made
            raise ClosedError(f"{connection}: it has no session")
        queues = broker.topics.send_queues(topic)
        broker.sessions.grant(session, [handle.row for _, handle in queues])
        broker.interests.add(topic, connection)
        shown = [
            {"queueId": queue_id, "row": handle.row, "generation": handle.generation}
            for queue_id, handle in queues
        ]
        return json_response(command, {**_nums(config), "queues": shown})

    def _topic_queues(self, connection: Connection, command: Command) -> Command:
        broker = self._broker
        topic = command.fields().text("topic")
        self._broker.rights.require(connection.identity, Action.PULL, topic)
        config = broker.topics.find_readable(topic)
        broker.interests.add(topic, connection)
        shown = []
        for queue_id, handle in broker.topics.read_queues(topic):
            now = broker.store.queues.offsets(handle)
            shown.append(
                {
                    "queueId": queue_id,
                    "row": handle.row,
                    "generation": handle.generation,
                    "minOffset": now.min_queue_offset,
                    "maxOffset": now.max_queue_offset,
                    "visibleMax": now.visible_max,
                }
            )
        return json_response(command, {**_nums(config), "queues": shown})

    # ---- bells -------------------------------------------------------------------------------

    def _subscribe(self, connection: Connection, command: Command) -> Command:
        broker = self._broker
        bell, handles = self._bell(command)
        session = broker.sessions.require(connection)
        if not session.claim_capacity:
            raise ClosedError(f"{connection}: its session has no consumer page")
        stale = []
        for handle in handles:
            topic = broker.topic_of(handle)
            if topic is None:
                stale.append(handle)
            else:
                self._broker.rights.require(connection.identity, Action.PULL, topic)
                broker.sessions.subscribe(session, bell, handle.row)
        return json_response(command, {"staleQueues": pairs(stale)})

    def _unsubscribe(self, connection: Connection, command: Command) -> Command:
        bell, handles = self._bell(command)
        session = self._broker.sessions.require(connection)
        for handle in handles:
            self._broker.sessions.unsubscribe(session, bell, handle.row)
        return json_response(command, {"staleQueues": []})

    def _bell(self, command: Command) -> tuple[int, list[QueueHandle]]:
        take = command.fields()
        bell = ranged(take, "bell", 0, core.CONSUMER_BELL_MAX - 1)
        return bell, handles_of(command.json().get("queues"), f"{take.what}: queues")

    # ---- entries and offsets -----------------------------------------------------------------

    async def _read_entries(self, connection: Connection, command: Command) -> Command:
        take = command.fields()
        topic, queue_id = queue_of(command)
        queue_offset = ranged(take, "queueOffset", 0, _LONG_MAX)
        count = ranged(take, "count", 1, ENTRY_COUNT_MAX, ENTRY_COUNT_DEFAULT)
        group = take.text("consumerGroup", "")
        self._broker.rights.require(connection.identity, Action.PULL, topic)
        store = self._broker.store
        handle = self._broker.topics.read_queue(topic, queue_id)
        now = store.queues.offsets(handle)
        is_there = now.min_queue_offset <= queue_offset < now.visible_max
        if is_there and now.hot_min_queue_offset <= queue_offset:
            entry = store.lookup.hot_entries(handle, queue_offset, 1) or bytes(_ENTRY_SIZE)
            return self._in_memory(command, group, entry)
        found = None
        if is_there:
            found = await asyncio.to_thread(store.read_cold, topic, queue_id, queue_offset, count)
        if found is None:
            return response_to(
                command,
                code=ResponseCode.PULL_OFFSET_MOVED,
                ext_fields={"minOffset": now.min_queue_offset, "maxOffset": now.visible_max},
                remark=f"read {topic} queue {queue_id} at {queue_offset}: it has "
                f"{now.min_queue_offset} to {now.visible_max}",
            )
        first, entries = found
        return response_to(
            command,
            ext_fields={
                "queueOffset": first,
                "count": len(entries) // _ENTRY_SIZE,
                "suggestWhichBrokerId": self._suggested(group, entries),
            },
            body=entries,
        )

    def _suggested(self, group: str, entries: bytes) -> int:
        (last,) = struct.unpack_from("<Q", entries, len(entries) - _ENTRY_SIZE)
        return self._broker.slave_reads.suggest(group, last)

    def _in_memory(self, command: Command, group: str, entry: bytes) -> Command:
        return response_to(
            command,
            code=ResponseCode.PULL_RETRY_IMMEDIATELY,
            ext_fields={"suggestWhichBrokerId": self._suggested(group, entry)},
            remark="the entries are in memory: read them there",
        )

    def _max_offset(self, connection: Connection, command: Command) -> Command:
        queue = queue_of(command)
        self._broker.rights.require(connection.identity, Action.PULL, queue.topic)
        handle = self._broker.topics.read_queue(*queue)
        visible_max = self._broker.store.queues.offsets(handle).visible_max
        return response_to(command, ext_fields={"offset": visible_max})

    def _min_offset(self, connection: Connection, command: Command) -> Command:
        queue = queue_of(command)
        self._broker.rights.require(connection.identity, Action.PULL, queue.topic)
        handle = self._broker.topics.read_queue(*queue)
        low = self._broker.store.queues.offsets(handle).min_queue_offset
        return response_to(command, ext_fields={"offset": low})

    async def _search(self, connection: Connection, command: Command) -> Command:
        queue = queue_of(command)
        timestamp = ranged(command.fields(), "timestamp", -_LONG_MAX, _LONG_MAX)
        self._broker.rights.require(connection.identity, Action.PULL, queue.topic)
        self._broker.topics.read_queue(*queue)
        lookup = self._broker.store.lookup
        found = await asyncio.to_thread(lookup.find_by_time, *queue, timestamp)
        return response_to(command, ext_fields={"offset": found})


def _nums(config: TopicConfig) -> dict[str, object]:
    return {
        "topic": config.topic_name,
        "perm": int(config.perm),
        "readQueueNums": config.read_queue_nums,
        "writeQueueNums": config.write_queue_nums,
        "order": config.order,
    }
