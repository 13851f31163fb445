"""shmq.aio.Client: one program's way to a cluster, from an event loop.

What lives here: `AsyncClient`, `connect` and `local`. It is a Client whose producers and consumers
wait in the loop; routes, heartbeats, rebalance and the following of brokers are the Client's own,
in its own few threads, so that a loop that is busy loses no membership (docs/decisions/0013). Which
process: the program's; everything in the thread of the loop it was made in. Writes nothing in
shared memory. May fail: as `instance.py`; LoopError in another loop or thread.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from shmq.client.aio_consumer import AsyncConsumer
from shmq.client.aio_lite_pull_consumer import AsyncLitePullConsumer
from shmq.client.aio_opening import Opening
from shmq.client.aio_producer import AsyncProducer
from shmq.client.aio_push_consumer import AsyncPushConsumer
from shmq.client.closable import AsyncClosable
from shmq.client.instance import DEFAULT_PRODUCER, Client
from shmq.client.lite_pull_consumer import AUTO_COMMIT_INTERVAL_S, PULL_BATCH_SIZE
from shmq.client.local import local as blocking_local
from shmq.client.route_watch import AsyncRouteWatch
from shmq.client.wake_hub import WakeHub
from shmq.config import WaitingPolicy
from shmq.errors import ClosedError, LoopError
from shmq.subscription import ConsumeFromWhere, MessageModel
from shmq.threads import thread_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from shmq.allocation import Allocation
    from shmq.client.aio_push_consumer import AsyncListener
    from shmq.client.consumer import Consumer

    _Member = AsyncConsumer | AsyncLitePullConsumer | AsyncProducer | AsyncPushConsumer

__all__ = ["AsyncClient", "connect", "local"]

_THREAD_MAX = 4
"""Threads for requests that are waited for: made when the first comes, whatever the number of
producers and consumers."""


async def _begin(open_: Callable[[], Client]) -> AsyncClient:
    loop = asyncio.get_running_loop()
    executor = thread_pool("shmq-aio", _THREAD_MAX)
    opening = loop.run_in_executor(executor, open_)
    try:
        client = await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_unwanted)
        executor.shutdown(wait=False)
        raise
    except BaseException:
        executor.shutdown(wait=False)
        raise
    return AsyncClient(client, executor)


def _close_unwanted(opening: asyncio.Future[Client]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def connect(
    namesrv: str | Path | None = None, *, policy: WaitingPolicy = WaitingPolicy.ADAPTIVE
) -> Opening[AsyncClient]:
    """A Client of the cluster, as shmq.connect; to be awaited, or entered with `async with`.

    Example:
        async with shmq.aio.connect() as client:
            await client.producer().send("orders", b"one")
    """
    return Opening(partial(_begin, partial(_connect, namesrv, policy)))


def _connect(namesrv: str | Path | None, policy: WaitingPolicy) -> Client:
    client = Client(namesrv, policy=policy)
    try:
        client.routes.brokers()
    except BaseException:
        client.close()
        raise
    return client


def local(folder: str | Path | None = None, *, brokers: int = 1) -> Opening[AsyncClient]:
    """A Client with a private cluster, as shmq.local; to be awaited, or entered."""
    return Opening(partial(_begin, partial(blocking_local, folder, brokers=brokers)))


class AsyncClient(AsyncClosable):
    """A program's sessions with the brokers of one cluster, for the tasks of one loop. An async
    context manager.

    Example:
        async with shmq.aio.connect() as client:
            await client.producer().send("orders", b"one")
    """

    def __init__(self, engine: Client, executor: ThreadPoolExecutor) -> None:
        """By `connect` and `local`."""
        self.engine = engine
        """The Client that does everything but wait."""
        self._executor = executor
        self.hub = WakeHub(asyncio.get_running_loop(), executor)
        """What gets tasks up."""
        self._closing: list[_Member] = []
        self.route_watch = AsyncRouteWatch(self.hub, engine.route_watch)
        """For tasks that wait for a broker to come."""
        self._is_closed = False
        engine.on_session(self.hub.session_changed)

    # ---- what programs use -----------------------------------------------------------------------

    @property
    def namesrv(self) -> Path:
        """The runtime folder, for `connect` elsewhere."""
        return self.engine.namesrv

    @property
    def client_id(self) -> str:
        """Unique among living clients."""
        return self.engine.client_id

    def producer(self, group: str = DEFAULT_PRODUCER) -> AsyncProducer:
        """A producer; tasks may share it."""
        self.check("make a producer")
        made = AsyncProducer(self, self.engine.producer(group))
        self._closing.append(made)
        return made

    def consumer(
        self,
        topic: str,
        group: str,
        *,
        filter: str | None = None,  # what RocketMQ's and our users call it
        from_where: ConsumeFromWhere = ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET,
        from_time: float | None = None,
        allocation: Allocation = "average",
        model: MessageModel = MessageModel.CLUSTERING,
        auto_settle: bool = True,
        offset_file: str | Path | None = None,
    ) -> Opening[AsyncConsumer]:
        """A member of a group that consumes a topic; arguments and errors as Client.consumer. To be
        awaited, or entered with `async with`.
        """
        make = partial(
            self.engine.consumer,
            topic,
            group,
            filter=filter,
            from_where=from_where,
            from_time=from_time,
            allocation=allocation,
            model=model,
            auto_settle=auto_settle,
            offset_file=offset_file,
        )
        return Opening(partial(self._join, make))

    def push_consumer(
        self,
        group: str,
        listener: AsyncListener,
        *,
        tasks: int = 20,
        max_reconsume_times: int = -1,
        allocation: Allocation = "average",
    ) -> AsyncPushConsumer:
        """A member of a group that has its messages handled by tasks.

        Args:
            group: the group.
            listener: awaited with each message; what it returns and raises says whether the message
                is settled (see AsyncPushConsumer).
            tasks: calls of a topic that may be on at once.
            max_reconsume_times: as for Client.push_consumer.
            allocation: as for Client.push_consumer.

        Raises:
            As Client.push_consumer.
        """
        self.check("make a push consumer")
        made = AsyncPushConsumer(
            self,
            group,
            listener,
            tasks=tasks,
            max_reconsume_times=max_reconsume_times,
            allocation=allocation,
        )
        self._closing.append(made)
        return made

    def lite_pull_consumer(
        self,
        group: str,
        *,
        auto_commit: bool = True,
        auto_commit_interval: float = AUTO_COMMIT_INTERVAL_S,
        batch_size: int = PULL_BATCH_SIZE,
        from_where: ConsumeFromWhere = ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET,
        from_time: float | None = None,
        allocation: Allocation = "average",
    ) -> AsyncLitePullConsumer:
        """A program that polls, of topics or of queues; arguments and errors as
        Client.lite_pull_consumer.
        """
        self.check("make a lite pull consumer")
        engine = self.engine.lite_pull_consumer(
            group,
            auto_commit=auto_commit,
            auto_commit_interval=auto_commit_interval,
            batch_size=batch_size,
            from_where=from_where,
            from_time=from_time,
            allocation=allocation,
        )
        made = AsyncLitePullConsumer(self, engine)
        self._closing.append(made)
        return made

    async def _join(self, make: Callable[[], Consumer]) -> AsyncConsumer:
        self.check("make a consumer")
        joining = self.hub.loop.run_in_executor(self._executor, make)
        try:
            engine = await asyncio.shield(joining)
        except asyncio.CancelledError:
            joining.add_done_callback(self._leave_unwanted)
            raise
        made = AsyncConsumer(self, engine)
        self._closing.append(made)
        return made

    def _leave_unwanted(self, joining: asyncio.Future[Consumer]) -> None:
        if not joining.cancelled() and joining.exception() is None:
            self._executor.submit(joining.result().close)

    async def create_topic(
        self, topic: str, *, queues: int = 8, brokers: Sequence[str] | None = None
    ) -> None:
        """As Client.create_topic."""
        self.check("create a topic")
        await self.hub.run(partial(self.engine.create_topic, topic, queues=queues, brokers=brokers))

    async def close(self) -> None:
        """Close consumers and producers, then leave the brokers. Twice does nothing."""
        if self._is_closed or self.is_forked:
            return
        self.check("close a client")
        for member in tuple(self._closing):
            await member.close()
        self._is_closed = True
        self.hub.close()
        closing = self.hub.loop.run_in_executor(self._executor, self.engine.close)
        try:
            await asyncio.shield(closing)
        finally:
            self._executor.shutdown(wait=False)

    # ---- what producers and consumers use --------------------------------------------------------

    def check(self, what: str) -> None:
        """Return if the client may be used here.

        Raises:
            ClosedError, ForkError.
            LoopError: this is not the loop it was connected in.
        """
        if self._is_closed:
            raise ClosedError(f"{what}: this client is closed")
        self.engine.check(what)  # a child of a fork, whose loop is another as well
        if asyncio.get_running_loop() is not self.hub.loop:
            raise LoopError(f"{what}: this client was connected in another event loop")

    @property
    def is_forked(self) -> bool:
        """Whether this is a child of the process that connected."""
        return self.engine.is_forked

    def leave(self, member: _Member) -> None:
        """It is closed."""
        if member in self._closing:
            self._closing.remove(member)
