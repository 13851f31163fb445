"""Looking back: messages by key, id, place, queue offset and time.

In worker threads, for all of it may need the disk. An answer names messages; their bytes go out in
pieces, so that no message, however large, is held by the broker more than a piece at a time.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from shmq.broker.processors.fields import json_response, queue_of, ranged
from shmq.broker.rights import Action
from shmq.errors import ConfigError
from shmq.remoting.codes import RequestCode, ResponseCode
from shmq.remoting.command import Command, Scalar, response_to
from shmq.remoting.server import Connection, Processor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shmq.broker.broker import Broker
    from shmq.store.message_lookup import FoundMessage

__all__ = ["MessageProcessor"]

MESSAGE_COUNT_DEFAULT = 64
"""RocketMQ's defaultQueryMaxNum is 32, its tools ask for 64."""
MESSAGE_COUNT_MAX = 1024
PIECE_BYTES_MAX = 512 << 10
"""Half of what a frame of the control plane may hold by default."""
_LONG_MAX = (1 << 63) - 1
_WORD_MAX = (1 << 32) - 1
_KEY_SIZE_MAX = 32_767


class MessageProcessor:
    """Serves the requests that look back."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def table(self) -> dict[int, Processor]:
        """By code."""
        return {
            RequestCode.QUERY_MESSAGE: Processor(handler=self._query, is_concurrent=True),
            RequestCode.QUERY_CONSUME_QUEUE: Processor(handler=self._queue, is_concurrent=True),
            RequestCode.VIEW_MESSAGE_BY_ID: Processor(handler=self._view, is_concurrent=True),
        }

    async def _query(self, connection: Connection, command: Command) -> Command:
        """By key, by id, or by time alone."""
        broker = self._broker
        take = command.fields()
        topic, key = take.text("topic", ""), take.text("key", "")
        is_unique_key = take.flag("_UNIQUE_KEY_QUERY", False)
        begin_ms = ranged(take, "beginTimestamp", 0, _LONG_MAX, 0)
        end_ms = ranged(take, "endTimestamp", 0, _LONG_MAX, _LONG_MAX)
        count = ranged(take, "maxNum", 1, MESSAGE_COUNT_MAX, MESSAGE_COUNT_DEFAULT)
        queue_id = ranged(take, "queueId", -1, _WORD_MAX, -1)
        if len(key) > _KEY_SIZE_MAX:
            raise ConfigError(f"{take.what}: key: longer than any message's")
        if not topic and not is_unique_key:
            raise ConfigError(f"{take.what}: topic: missing; only a unique key needs none")
        if topic:
            broker.rights.require(connection.identity, Action.PULL, topic)
            broker.topics.find(topic)
            if queue_id >= 0:
                broker.topics.read_queue(topic, queue_id)
        lookup = broker.store.message_lookup
        if key:
            found = await asyncio.to_thread(
                lookup.by_key,
                topic or None,
                key,
                begin_ms=begin_ms,
                end_ms=end_ms,
                message_count=count,
                is_unique_key=is_unique_key,
                queue_id=None if queue_id < 0 else queue_id,
            )
        else:
            ids = [number for number, _ in broker.topics.read_queues(topic)] if topic else []
            found = await asyncio.to_thread(
                lookup.between,
                topic,
                [number for number in ids if queue_id in (-1, number)],
                begin_ms=begin_ms,
                end_ms=min(end_ms, _LONG_MAX - 1),
                message_count=count,
            )
        return json_response(command, {"messages": _shown(self._allowed(connection, found))})

    async def _queue(self, connection: Connection, command: Command) -> Command:
        broker = self._broker
        take = command.fields()
        queue = queue_of(command)
        index = ranged(take, "index", 0, _LONG_MAX)
        count = ranged(take, "count", 1, MESSAGE_COUNT_MAX, MESSAGE_COUNT_DEFAULT)
        broker.rights.require(connection.identity, Action.PULL, queue.topic)
        handle = broker.topics.read_queue(*queue)
        now = broker.store.queues.offsets(handle)
        found = await asyncio.to_thread(broker.store.message_lookup.in_queue, *queue, index, count)
        return json_response(
            command,
            {
                "minQueueIndex": now.min_queue_offset,
                "maxQueueIndex": now.visible_max,
                "messages": _shown(found),
            },
        )

    async def _view(self, connection: Connection, command: Command) -> Command:
        take = command.fields()
        physical_offset = ranged(take, "offset", 0, _LONG_MAX)
        begin = ranged(take, "begin", 0, _WORD_MAX, 0)
        size = ranged(take, "size", 1, PIECE_BYTES_MAX, PIECE_BYTES_MAX)
        lookup = self._broker.store.message_lookup
        message = await asyncio.to_thread(lookup.at, physical_offset)
        piece = None
        if message is not None:
            self._broker.rights.require(connection.identity, Action.PULL, message.topic)
            piece = await asyncio.to_thread(lookup.read, message, begin, size)
        if message is None or piece is None:
            return response_to(
                command,
                code=ResponseCode.QUERY_NOT_FOUND,
                remark=f"no message begins at physical offset {physical_offset}, or none any more",
            )
        return response_to(command, ext_fields=_fields(message), body=piece)

    def _allowed(self, connection: Connection, found: Iterable[FoundMessage]) -> list[FoundMessage]:
        """Of messages found by an id alone those of topics that the peer may read."""
        rights = self._broker.rights
        return [
            message
            for message in found
            if rights.may(connection.identity, Action.PULL, message.topic)
        ]


def _fields(message: FoundMessage) -> dict[str, Scalar]:
    return {
        "topic": message.topic,
        "queueId": message.queue_id,
        "queueOffset": message.queue_offset,
        "physicalOffset": message.physical_offset,
        "size": message.size,
        "storeTimestamp": message.store_timestamp,
    }


def _shown(found: Iterable[FoundMessage]) -> list[dict[str, Scalar]]:
    return [_fields(message) for message in found]
