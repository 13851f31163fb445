"""shmq.aio.LitePullConsumer: a program that asks for its messages itself, from an event loop.

What lives here: `AsyncLitePullConsumer`. Positions, pauses and commits are those of the
LitePullConsumer that it holds; what sleeps there on a bell is awaited here on the sessions'
sockets. Which process: the program's, the loop's thread; a read of what has left memory, and each
request, is made in one of the client's threads. Writes: as `lite_pull_consumer.py`. May fail: as
there. A task that is cancelled while it polls has polled nothing: nothing is lost.
"""

from __future__ import annotations

import asyncio
import inspect
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from shmq.client.aio_consumer import AT_ONCE_MAX
from shmq.client.arguments import check_timeout
from shmq.client.closable import AsyncClosable
from shmq.client.lite_pull_consumer import POLL_TIMEOUT_S
from shmq.clock import SYSTEM_CLOCK
from shmq.errors import ClosedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
    from types import TracebackType

    from shmq.client.aio_client import AsyncClient
    from shmq.client.lite_pull_consumer import LitePullConsumer
    from shmq.core import core
    from shmq.result import MessageQueue

    AsyncQueueListener = Callable[
        [str, list[MessageQueue], list[MessageQueue]], Awaitable[None] | None
    ]

__all__ = ["AsyncLitePullConsumer"]

T = TypeVar("T")

_FOR_EVER_S = 3600.0
"""One poll of an iteration; whatever happens meanwhile ends it."""


class AsyncLitePullConsumer(AsyncClosable):
    """A group's member that polls. Iterate over it with `async for`, or await poll(); an async
    context manager, whose end commits if auto_commit is on.

    Messages of one poll count as consumed when the next poll begins, and, of an iteration, when the
    next one is asked for. One task polls at a time; any may pause, seek and commit.

    Example:
        async with client.lite_pull_consumer("billing") as consumer:
            await consumer.subscribe("orders", "new || paid")
            while True:
                for message in await consumer.poll():
                    print(bytes(message))
    """

    def __init__(self, client: AsyncClient, engine: LitePullConsumer) -> None:
        """By AsyncClient.lite_pull_consumer()."""
        self.group = engine.group
        """The group whose offsets are committed."""
        self._client = client
        self._hub = client.hub
        self._engine = engine
        engine.may_block = False
        self._sleeper = client.hub.sleeper()
        engine.on_wake(self._sleeper.call_from_thread)
        self._turn = asyncio.Lock()
        self._working: asyncio.Future[None] | None = None
        """What a thread does for a poll, which may have been cancelled since."""
        self._asking = asyncio.Lock()
        self._asked: asyncio.Future[Any] | None = None
        """The last request, whose task may have been cancelled since."""
        self._at_once_count = 0
        self._is_closed = False

    @property
    def auto_commit(self) -> bool:
        """Whether polls commit what earlier polls gave; may be changed."""
        return self._engine.auto_commit

    @auto_commit.setter
    def auto_commit(self, is_on: bool) -> None:
        self._engine.auto_commit = is_on

    # ---- which queues ----------------------------------------------------------------------------

    async def subscribe(
        self, topic: str, filter: str | None = None, *, listener: AsyncQueueListener | None = None
    ) -> None:
        """Have queues of a topic shared out to this member; as LitePullConsumer.subscribe. The
        listener is a function or a coroutine function. If it is cancelled, the topic may have been
        subscribed to.
        """
        await self._ask(partial(self._engine.subscribe, topic, filter, listener=listener))

    async def unsubscribe(self, topic: str) -> None:
        """Give the queues of a topic back, committed if auto_commit is on."""
        await self._ask(partial(self._engine.unsubscribe, topic))

    def set_filter(self, topic: str, filter: str | None) -> None:
        """For `assign`: pass these tags of a topic only; before its queues are assigned."""
        self._check("set a filter")
        self._engine.set_filter(topic, filter)

    async def assign(self, queues: Iterable[MessageQueue]) -> None:
        """Read just these queues, whatever other members do; as LitePullConsumer.assign."""
        await self._ask(partial(self._engine.assign, queues))

    async def fetch_queues(self, topic: str) -> list[MessageQueue]:
        """All read queues of a topic, sorted; for `assign`.

        Raises:
            TopicNotExistError: no broker has it.
        """
        return await self._ask(partial(self._engine.fetch_queues, topic))

    @property
    def assignment(self) -> list[MessageQueue]:
        """The queues that are polled now, those that are paused included."""
        return self._engine.assignment

    async def _ask(self, call: Callable[[], T]) -> T:
        """Have a thread ask brokers, once it is done with what it was asked before."""
        self._check("ask")
        async with self._asking:
            if self._asked is not None:
                await asyncio.wait([self._asked])
            self._check("ask")
            asked = asyncio.ensure_future(self._hub.run(call))
            self._asked = asked
            return await asyncio.shield(asked)

    # ---- messages --------------------------------------------------------------------------------

    async def poll(self, timeout: float = POLL_TIMEOUT_S) -> list[core.Message]:
        """Up to batch_size messages of one queue, in order; none if none came in `timeout` seconds.

        Raises:
            ClosedError: this consumer or its client is closed.
            PermissionDeniedError: there is nothing, and the right to a topic or to the group was
                taken away; names the rule.
        """
        check_timeout("poll", timeout)
        return await self._poll(timeout, None)

    def __aiter__(self) -> AsyncIterator[core.Message]:
        """Messages, for ever: waits while there is none; each counts as consumed when the next is
        asked for. Ends when the consumer is closed.

        Raises:
            ClosedError: it, or its client, was closed before.
        """
        self._check("poll")
        return self._messages()

    async def _messages(self) -> AsyncIterator[core.Message]:
        while not self._is_closed:
            try:
                messages = await self._poll(_FOR_EVER_S, 1)
            except ClosedError:
                return
            for message in messages:  # one, or none
                yield message

    async def _poll(self, timeout: float, count: int | None) -> list[core.Message]:
        """Nothing is awaited between a read that takes messages and the return: a cancelled task
        has taken none.
        """
        self._check("poll")
        if self._at_once_count >= AT_ONCE_MAX:
            self._at_once_count = 0
            await asyncio.sleep(0)
        async with self._turn:
            await self._rest()
            await self._commit_when_due()
            deadline_ns = SYSTEM_CLOCK.monotonic_ns() + int(timeout * 1e9)
            while True:  # bounded by the deadline
                await self._tell_listener()
                messages = self._read_round(count)
                if not messages and self._engine.has_slow:
                    await self._work(self._engine.read_slow)
                    messages = self._read_round(count)
                self._at_once_count += len(messages)
                left_s = (deadline_ns - SYSTEM_CLOCK.monotonic_ns()) / 1e9
                if messages or self._is_closed:
                    return messages
                self._engine.check_denied()
                if left_s <= 0:
                    return messages
                self._at_once_count = 0
                if not self._engine.has_slow:
                    await self._sleep(left_s)
                if self._is_closed:
                    return []
                self._client.check("poll")
                await self._commit_when_due()

    def _read_round(self, count: int | None) -> list[core.Message]:
        return [] if self._is_closed else self._engine.read_round(count)

    async def _work(self, call: Callable[[], None]) -> None:
        """Have a thread do something while nobody polls. It goes on if this task is cancelled."""
        self._working = asyncio.ensure_future(self._hub.run(call))
        await self._rest()

    async def _rest(self) -> None:
        """Wait until no thread does anything for a poll."""
        working = self._working
        if working is None:
            return
        try:
            await asyncio.shield(working)
        finally:
            if working.done():
                self._working = None

    async def _commit_when_due(self) -> None:
        if not self._engine.is_commit_due:
            return
        if self._engine.is_assigned:
            await self._work(self._engine.commit_when_due)
        else:
            self._engine.commit_when_due()

    async def _tell_listener(self) -> None:
        for change in self._engine.changes():
            if self._engine.listener is not None:
                answer = self._engine.listener(*change)
                if inspect.isawaitable(answer):
                    await answer

    async def _sleep(self, timeout: float) -> None:
        readers, timeout = self._engine.watch(timeout)
        bells = [(queue.link, one.assignment.bell) for one, queue in self._engine.queues()]
        await self._sleeper.sleep(readers, bells, timeout)

    def pause(self, queues: Iterable[MessageQueue]) -> None:
        """Give nothing of these any more; their positions stay."""
        self._check("pause")
        self._engine.pause(queues)

    def resume(self, queues: Iterable[MessageQueue]) -> None:
        """Go on with these where they are."""
        self._check("resume")
        self._engine.resume(queues)

    @property
    def paused(self) -> list[MessageQueue]:
        """Those that are paused."""
        return self._engine.paused

    # ---- places ----------------------------------------------------------------------------------

    async def seek(self, queue: MessageQueue, queue_offset: int) -> None:
        """Have the next poll of this queue begin there; as LitePullConsumer.seek."""
        self._check("seek")
        self._engine.seek(queue, queue_offset)

    async def seek_to_begin(self, queue: MessageQueue) -> None:
        """To the first message kept. Raises as `seek`."""
        self._check("seek")
        self._engine.seek_to_begin(queue)

    async def seek_to_end(self, queue: MessageQueue) -> None:
        """Behind the last message. Raises as `seek`."""
        self._check("seek")
        self._engine.seek_to_end(queue)

    def position(self, queue: MessageQueue) -> int:
        """The queue_offset that the next poll of this queue begins at; as
        LitePullConsumer.position.
        """
        self._check("position")
        return self._engine.position(queue)

    async def offset_for_time(self, queue: MessageQueue, time: float) -> int:
        """queue_offset of the first message stored at or after a time, seconds since 1970."""
        return await self._ask(partial(self._engine.offset_for_time, queue, time))

    # ---- commits ---------------------------------------------------------------------------------

    async def commit(self, offsets: Mapping[MessageQueue, int] | None = None) -> None:
        """Say how far the group is: where the positions are now, or at these queue_offsets; as
        LitePullConsumer.commit.
        """
        self._check("commit")
        places = self._engine.places(offsets)
        if self._engine.is_assigned:
            await self._ask(partial(self._engine.commit_places, places))
        else:
            self._engine.commit_places(places)

    async def committed(self, queue: MessageQueue) -> int | None:
        """The group's offset in a queue, as far as it was committed; None: none yet."""
        return await self._ask(partial(self._engine.committed, queue))

    # ---- ending ----------------------------------------------------------------------------------

    def _check(self, what: str) -> None:
        self._client.check(what)
        if self._is_closed:
            raise ClosedError(f"{what}: this lite pull consumer is closed")

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            self._engine.give_back()
        await super().__aexit__(exc_type, exc, traceback)

    async def close(self) -> None:
        """Commit if auto_commit is on, give the queues back and leave the group; a task that polls
        gets up with nothing.
        """
        if self._is_closed or self._client.is_forked:
            return
        self._client.check("close a lite pull consumer")
        self._is_closed = True
        self._sleeper.call()
        under_way = [one for one in (self._working, self._asked) if one is not None]
        if under_way:
            await asyncio.wait(under_way)
        await self._hub.run(self._engine.close)
        self._hub.discard(self._sleeper)
        self._client.leave(self)
