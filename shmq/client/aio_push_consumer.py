"""shmq.aio.PushConsumer: a group's member that has each message handled by a task of its own.

What lives here: `AsyncPushConsumer`. One task for each topic waits for messages, as a Consumer
does, and begins another for each that comes, a bounded number at once. Which process: the
program's, the loop's thread. Writes: progress, through the Consumer. May fail: what
AsyncClient.consumer raises; what a listener raises is logged and the message delivered again.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING

from shmq.allocation import strategy_of
from shmq.client.arguments import check_count, check_retries, member
from shmq.client.closable import AsyncClosable
from shmq.client.orderly import SETTLED, complain
from shmq.client.process_queue import ProcessQueue
from shmq.client.push_consumer import retry_allocation
from shmq.errors import ClosedError, ShmqError
from shmq.status import ConsumeStatus
from shmq.subscription import ConsumeFromWhere, MessageModel, check_group
from shmq.topic import retry_topic

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from shmq.allocation import Allocation
    from shmq.client.aio_client import AsyncClient
    from shmq.client.aio_consumer import AsyncConsumer
    from shmq.core import core

    AsyncListener = Callable[[core.Message], Awaitable[ConsumeStatus | None] | ConsumeStatus | None]

__all__ = ["AsyncPushConsumer"]

_log = logging.getLogger("shmq.client")


class AsyncPushConsumer(AsyncClosable):
    """A member of a group. An async context manager: leaving it waits for calls that are on.

    The listener is a coroutine function, or a function that does not take long. What it answers or
    raises is as for shmq.PushConsumer: what it refuses goes back to its broker, comes again later
    each time, and is a dead letter at last. How long it may take it says itself
    (asyncio.timeout).

    Example:
        async def bill(message):
            await post(bytes(message))

        async with client.push_consumer("billing", bill, tasks=4) as consumer:
            await consumer.subscribe("orders", "new || paid")
            ...
    """

    def __init__(
        self,
        client: AsyncClient,
        group: str,
        listener: AsyncListener,
        *,
        tasks: int,
        max_reconsume_times: int,
        allocation: Allocation,
    ) -> None:
        """By AsyncClient.push_consumer()."""
        what = f"consume in group {group}"
        check_group(group)
        check_count(what, "tasks", tasks)
        check_retries(what, max_reconsume_times)
        strategy_of(allocation, what=what)
        if not callable(listener):
            raise TypeError(f"{what}: listener {listener!r}: wanted a function of a message")
        self.group = group
        """The group."""
        self._client = client
        self._listener = listener
        self._task_max = tasks
        self._max_reconsume_times = max_reconsume_times
        self._allocation = allocation
        self._consumers: list[AsyncConsumer] = []
        self._feeders: set[asyncio.Task[None]] = set()
        self._calls: set[asyncio.Task[None]] = set()
        self._has_retries = False
        self._is_closed = False

    async def subscribe(
        self,
        topic: str,
        filter: str | None = None,  # what RocketMQ's and our users call it
        *,
        from_where: ConsumeFromWhere = ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET,
        from_time: float | None = None,
        allocation: Allocation | None = None,
        model: MessageModel = MessageModel.CLUSTERING,
        offset_file: str | Path | None = None,
    ) -> None:
        """Begin to consume a topic; as PushConsumer.subscribe.

        Raises:
            What AsyncClient.consumer raises.
        """
        self._check(topic)
        model = member(f"consume {topic}", "model", MessageModel, model)
        await self._consume(
            await self._client.consumer(
                topic,
                self.group,
                filter=filter,
                from_where=from_where,
                from_time=from_time,
                allocation=self._allocation if allocation is None else allocation,
                model=model,
                auto_settle=False,
                offset_file=offset_file,
            )
        )
        if model is MessageModel.CLUSTERING and not self._has_retries:
            self._has_retries = True
            await self._consume(
                await self._client.consumer(
                    retry_topic(self.group),
                    self.group,
                    allocation=retry_allocation(self._allocation),
                    auto_settle=False,
                )
            )

    def _check(self, topic: str) -> None:
        if self._is_closed:
            raise ClosedError(f"subscribe to {topic}: this push consumer is closed")
        self._client.check(f"subscribe to {topic}")

    async def _consume(self, consumer: AsyncConsumer) -> None:
        if self._is_closed:  # meanwhile
            await consumer.close()
            self._check(consumer.topic)
        self._consumers.append(consumer)
        feeder = asyncio.create_task(self._feed(consumer))
        self._feeders.add(feeder)
        feeder.add_done_callback(self._feeders.discard)

    # ---- calling the listener --------------------------------------------------------------------

    async def _feed(self, consumer: AsyncConsumer) -> None:
        room = asyncio.Semaphore(self._task_max)
        while True:  # until the consumer is closed, or this task cancelled, which has taken nothing
            await room.acquire()
            try:
                message = await consumer.take()
            except ClosedError:
                return
            if message is None:
                room.release()
                continue
            call = asyncio.create_task(self._call(consumer, message, room))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _call(
        self, consumer: AsyncConsumer, message: core.Message, room: asyncio.Semaphore
    ) -> None:
        try:
            if await self._is_settled_by(consumer.topic, message):
                message.settle()
            else:
                await self._failed(consumer, message)
        finally:
            room.release()

    async def _is_settled_by(self, topic: str, message: core.Message) -> bool:
        try:
            answer = self._listener(message)
            if inspect.isawaitable(answer):
                answer = await answer
            is_done = answer in SETTLED
        except Exception:  # noqa: BLE001 # a listener may raise anything; the message comes again
            _log.exception("listener of %s: message %s", topic, message.message_id)
            return False
        if not is_done and answer != ConsumeStatus.RECONSUME_LATER:
            complain(topic, message, answer)
        return is_done

    async def _failed(self, consumer: AsyncConsumer, message: core.Message) -> None:
        """It is to come again: by way of its broker, or, while that is away, from here."""
        queue = message.keeper
        assert isinstance(queue, ProcessQueue)
        if consumer.model is MessageModel.CLUSTERING and not queue.is_dropped:
            try:
                await consumer.send_back(message, max_reconsume_times=self._max_reconsume_times)
            except ShmqError as error:
                _log.warning("not sent back message=%s: %s", message.message_id, error)
            else:
                return
        queue.failed(message)

    # ---- ending ----------------------------------------------------------------------------------

    async def close(self) -> None:
        """Take nothing more, wait for the calls that are on, and leave the group."""
        if self._is_closed or self._client.is_forked:
            return
        self._client.check("close a push consumer")
        self._is_closed = True
        for feeder in self._feeders:
            feeder.cancel()
        under_way = (self._feeders | self._calls) - {asyncio.current_task()}
        if under_way:  # a listener may close what calls it
            await asyncio.wait(under_way)
        for consumer in self._consumers:
            await consumer.close()
        self._client.leave(self)
