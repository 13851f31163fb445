"""PULL_MESSAGE: copies of messages, for clients that may not map the log.

In the loop's thread; frames are copied in threads of their own, so that neither the loop nor a
request of others waits for a disk. A client has one such request under way at a time, a uid
PER_UID, in their order: however many clients a uid has, the others' turns come. An answer is
bounded, and the next is made when the client has taken this one (server.py). Nothing is held back
until there is something to give: who waits sleeps on its bell, which the append thread rings.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from shmq.broker.processors.fields import queue_of, ranged
from shmq.broker.rights import Action
from shmq.errors import PermissionDeniedError
from shmq.remoting.codes import RequestCode, ResponseCode
from shmq.remoting.command import FIELDS_BYTES_MAX, LONG_FRAME_BYTES_MAX, Command, response_to
from shmq.remoting.server import Connection, Processor
from shmq.subscription import SubscriptionData
from shmq.threads import thread_pool
from shmq.topic import Permission

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shmq.broker.broker import Broker

__all__ = ["PullProcessor"]

COUNT_DEFAULT = 32
"""RocketMQ's pullBatchSize."""
COUNT_MAX = 1024
BYTES_DEFAULT = 256 << 10
"""RocketMQ's maxTransferBytesOnMessageInMemory."""
BYTES_MAX = 1 << 20
PER_UID = 2
"""Requests of one uid that are served at a time."""
THREAD_COUNT = 4
_LONG_MAX = (1 << 63) - 1


class PullProcessor:
    """Serves pull requests."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._threads = thread_pool("shmq-pull", THREAD_COUNT)
        self._turns: dict[int, _Turns] = {}

    def table(self) -> dict[int, Processor]:
        """By code."""
        return {RequestCode.PULL_MESSAGE: Processor(handler=self._pull)}

    async def _pull(self, connection: Connection, command: Command) -> Command:
        broker = self._broker
        take = command.fields()
        topic, queue_id = queue_of(command)
        queue_offset = ranged(take, "queueOffset", 0, _LONG_MAX)
        count_max = ranged(take, "maxMsgNums", 1, COUNT_MAX, COUNT_DEFAULT)
        bytes_max = ranged(take, "maxMsgBytes", 1, BYTES_MAX, BYTES_DEFAULT)
        data = SubscriptionData.parse(topic, take.text("subscription", "*"))
        group = take.text("consumerGroup", "")
        self._check(connection, topic, queue_id)
        async with self._turn(connection.identity.uid):
            found = await asyncio.get_running_loop().run_in_executor(
                self._threads,
                partial(
                    broker.store.frames.read,
                    topic,
                    queue_id,
                    queue_offset,
                    count_max=count_max,
                    bytes_max=bytes_max,
                    frame_bytes_max=LONG_FRAME_BYTES_MAX - FIELDS_BYTES_MAX,
                    tag_codes=data.code_set or None,
                ),
            )
        self._check(connection, topic, queue_id)  # the rules may be others by now
        code = ResponseCode.SUCCESS
        if not found.min_offset <= queue_offset <= found.max_offset:
            code = ResponseCode.PULL_OFFSET_MOVED
        elif not found.frame_count:
            is_filtered = found.next_offset > queue_offset
            code = (
                ResponseCode.PULL_RETRY_IMMEDIATELY
                if is_filtered
                else (ResponseCode.PULL_NOT_FOUND)
            )
        return response_to(
            command,
            code=code,
            ext_fields={
                "suggestWhichBrokerId": broker.slave_reads.suggest(group, found.last_position),
                "nextBeginOffset": found.next_offset,
                "minOffset": found.min_offset,
                "maxOffset": found.max_offset,
                "count": found.frame_count,
            },
            body=found.frames,
            remark=None
            if found.frame_count
            else f"pull queue {queue_id} of {topic} at {queue_offset}: it has {found.min_offset} "
            f"to {found.max_offset}, and nothing that matches there",
        )

    def _check(self, connection: Connection, topic: str, queue_id: int) -> None:
        """Return if the peer may read the queue.

        Raises:
            PermissionDeniedError, TopicNotExistError: it may not, or there is none.
        """
        broker = self._broker
        broker.rights.require(connection.identity, Action.PULL, topic)
        config = broker.topics.find(topic)
        if Permission.READ not in config.perm:
            raise PermissionDeniedError(f"read {topic}: its perm {int(config.perm)} has no R")
        broker.topics.read_queue(topic, queue_id)

    @asynccontextmanager
    async def _turn(self, uid: int) -> AsyncIterator[None]:
        turns = self._turns.setdefault(uid, _Turns())
        turns.waiting += 1
        try:
            async with turns.free:
                yield
        finally:
            turns.waiting -= 1
            if not turns.waiting:
                self._turns.pop(uid, None)


class _Turns:
    """Of one uid."""

    def __init__(self) -> None:
        self.free = asyncio.Semaphore(PER_UID)
        self.waiting = 0
        """Requests that wait or are served; nobody keeps an entry for a uid that has none."""
