"""shmq.aio.Consumer: a member of a group that reads its share of a topic, from an event loop.

What lives here: `AsyncConsumer`. It reads, hands out and settles with the same state as
`consumer.py`; what sleeps there on a bell is awaited here on the session's socket. Which process:
the program's, the loop's thread; a read that has to wait for its broker, of what has left memory,
is made in one of the client's threads. Writes: progress in the consumer pages. May fail: as
`consumer.py`. A task that is cancelled while it receives has received nothing: nothing is lost.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from shmq.client.arguments import check_timeout
from shmq.client.closable import AsyncClosable
from shmq.client.consumer import COLUMNS_MAX
from shmq.clock import SYSTEM_CLOCK
from shmq.errors import ClosedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from shmq.client.aio_client import AsyncClient
    from shmq.client.batch import MessageBatch
    from shmq.client.consumer import Consumer
    from shmq.core import core
    from shmq.result import MessageQueue
    from shmq.subscription import ConsumeFromWhere, MessageModel

__all__ = ["AsyncConsumer"]

T = TypeVar("T")

_FOR_EVER_S = 3600.0
"""One sleep of an iteration; whatever happens meanwhile ends it."""
AT_ONCE_MAX = 256
"""Messages handed out without a turn for the other tasks of the loop."""


class AsyncConsumer(AsyncClosable):
    """One member of a group. Iterate over it with `async for`, or await receive(); an async
    context manager.

    Messages are settled as those of shmq.Consumer: by `message.process()` at its end, by
    `message.settle()`, or, unless auto_settle is off, when the next one is asked for.

    One task receives at a time; messages may be processed and settled in any.
    """

    def __init__(self, client: AsyncClient, engine: Consumer) -> None:
        """By AsyncClient.consumer()."""
        self.topic = engine.topic
        """The topic."""
        self.group = engine.group
        """The group."""
        self._client = client
        self._hub = client.hub
        self._engine = engine
        engine.may_block = False
        self._sleeper = client.hub.sleeper()
        engine.on_wake(self._sleeper.call_from_thread)
        self._turn = asyncio.Lock()
        self._reading: asyncio.Future[bool] | None = None
        self._at_once_count = 0
        self._is_closed = False

    # ---- receiving -------------------------------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[core.Message]:
        """Messages, for ever: waits while there is none. Ends when the consumer is closed.

        Raises:
            ClosedError: it, or its client, was closed before.
        """
        self._check()
        return self._messages()

    async def _messages(self) -> AsyncIterator[core.Message]:
        while not self._is_closed:
            try:
                message = await self.try_next(_FOR_EVER_S)
            except ClosedError:
                return
            if message is not None:
                yield message

    async def try_next(self, timeout: float) -> core.Message | None:
        """The next message, or None if none comes in `timeout` seconds.

        Raises:
            ClosedError: this consumer or its client is closed.
        """
        check_timeout("try_next", timeout)
        return await self._receive(self._next, timeout)

    async def receive(self, max_count: int = 32, *, timeout: float = 1.0) -> list[core.Message]:
        """Up to `max_count` messages; none if none came in `timeout` seconds.

        Raises:
            ClosedError: this consumer or its client is closed.
        """
        check_timeout("receive", timeout)
        return await self._receive(partial(self._engine.receive, max_count, timeout=0.0), timeout)

    async def receive_many(
        self, max_count: int = COLUMNS_MAX, *, timeout: float = 1.0
    ) -> MessageBatch:
        """Up to `max_count` messages of one queue as columns; an empty batch if none came.

        Raises:
            As `receive`.
        """
        check_timeout("receive_many", timeout)
        call = partial(self._engine.receive_many, max_count, timeout=0.0)
        return await self._receive(call, timeout)

    def _next(self) -> core.Message | None:
        return self._engine.try_next(0.0)

    async def take(self) -> core.Message | None:
        """The next message, for whoever settles on his own and waits for rights that are missing;
        None: look again.

        Raises:
            ClosedError: this consumer or its client is closed.
        """
        item = await self._receive(partial(self._engine.take, 0.0), _FOR_EVER_S)
        return None if item is None else item[2]

    @property
    def model(self) -> MessageModel:
        """Whether queues are shared out."""
        return self._engine.assignment.model

    async def _receive(self, call: Callable[[], T], timeout: float) -> T:
        """What `call` gives once that is something, or when the time is up. Nothing is awaited
        between a call that takes messages and its return: a cancelled task has taken none.
        """
        self._check()
        if self._at_once_count >= AT_ONCE_MAX:
            self._at_once_count = 0
            await asyncio.sleep(0)
        if self._reading is None:
            found = call()
            if found:
                self._at_once_count += 1
                return found
        self._at_once_count = 0
        deadline_ns = SYSTEM_CLOCK.monotonic_ns() + int(timeout * 1e9)
        async with self._turn:
            while True:  # bounded by the deadline
                if self._reading is not None or self._engine.has_slow:
                    await self._read_slow()
                found = call()
                left_s = (deadline_ns - SYSTEM_CLOCK.monotonic_ns()) / 1e9
                if found or ((left_s <= 0 or self._is_closed) and not self._engine.has_slow):
                    return found
                if not self._engine.has_slow:
                    await self._sleep(left_s)
                if self._is_closed:
                    return found

    async def _sleep(self, timeout: float) -> None:
        readers, timeout = self._engine.watch(timeout)
        bell = self._engine.assignment.bell
        bells = ((queue.link, bell) for queue in self._engine.assignment.queues)
        await self._sleeper.sleep(readers, bells, timeout)

    async def _read_slow(self) -> None:
        """A thread reads while nobody else does; it goes on if this task is cancelled."""
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._hub.run(self._engine.read_slow))
        reading = self._reading
        try:
            await asyncio.shield(reading)
        finally:
            if reading.done() and self._reading is reading:
                self._reading = None

    def _check(self) -> None:
        what = f"consume {self.topic}"
        self._client.check(what)
        if self._is_closed:
            raise ClosedError(f"{what}: this consumer is closed")

    def settle(self, message: core.Message) -> None:
        """This message is done with; the same as message.settle()."""
        message.settle()

    async def send_back(
        self, message: core.Message, delay_level: int = 0, *, max_reconsume_times: int = -1
    ) -> str:
        """Settle a message by having it delivered to the group again; as Consumer.send_back."""
        self._check()
        send_back = partial(
            self._engine.send_back,
            message,
            delay_level,
            max_reconsume_times=max_reconsume_times,
        )
        return await self._hub.run(send_back)

    async def seek(
        self,
        queue: MessageQueue,
        queue_offset: int | None = None,
        *,
        where: ConsumeFromWhere | None = None,
        time: float | None = None,
    ) -> int:
        """Go on elsewhere in a queue that is assigned to this member; as Consumer.seek."""
        self._check()
        seek = partial(self._engine.seek, queue, queue_offset, where=where, time=time)
        return await self._hub.run(seek)

    @property
    def expired_count(self) -> int:
        """As Consumer.expired_count."""
        return self._engine.expired_count

    @property
    def assigned(self) -> list[MessageQueue]:
        """The queues this member consumes just now."""
        return self._engine.assigned

    # ---- ending ----------------------------------------------------------------------------------

    async def close(self) -> None:
        """Give the queues back and leave the group; tasks that wait get up with nothing. What was
        received and not settled is delivered again.
        """
        if self._is_closed or self._client.is_forked:
            return
        self._client.check("close a consumer")
        self._is_closed = True
        self._engine.stop()
        self._sleeper.call()
        if self._reading is not None:
            await asyncio.wait([self._reading])
        await self._hub.run(self._engine.close)
        self._hub.discard(self._sleeper)
        self._client.leave(self)
