"""shmq.aio.Producer: messages into the rings of brokers, from an event loop.

What lives here: `AsyncProducer`. It puts and settles with the same state as `producer.py`; what
waits there for room, a completion or a session is awaited here. Which process: the program's, the
loop's thread. Writes: its client's rings. May fail: as `producer.py`. A task that is cancelled
while it waits for its turn has sent nothing; one that waits for a completion may have sent.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from shmq.client.aio_line import Lines, Place
from shmq.client.arguments import check_bodies, check_one_place, check_timeout
from shmq.client.closable import AsyncClosable
from shmq.client.producer import SEND_TIMEOUT_S
from shmq.client.send_request import STORED, Cure, SendRequest, delayed, left_s, nobody_came
from shmq.clock import SYSTEM_CLOCK
from shmq.core import core
from shmq.errors import (
    ClosedError,
    FlushFailedError,
    OutcomeUnknownError,
    ServiceNotAvailableError,
    ShmqError,
)
from shmq.result import MessageQueue, SendResult

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from shmq.client.aio_client import AsyncClient
    from shmq.client.producer import Producer
    from shmq.client.queue_selector import QueueSelector, SendQueue, Target
    from shmq.client.send_request import Body

__all__ = ["AsyncProducer"]

_now = SYSTEM_CLOCK.monotonic_ns

_FULL = core.STATUS["FULL"][0]
_CLOSED = core.STATUS["CLOSED"][0]
_TIMED_OUT = core.STATUS["TIMED_OUT"][0]
_FLUSH_FAILED = core.STATUS["FLUSH_FAILED"][0]
_AT_ONCE_MAX = 32
"""Sends that may complete one after the other without a turn for the other tasks of the loop."""
_RETRY_S = 0.02
"""Between looks for a broker that nobody knows the session of."""


class AsyncProducer(AsyncClosable):
    """Sends messages. The tasks of one loop share it; an async context manager.

    Messages to one queue are stored in the order in which the tasks sent them; the messages of a
    key go to one queue.
    """

    def __init__(self, client: AsyncClient, engine: Producer) -> None:
        """By AsyncClient.producer()."""
        self.group = engine.group
        """Producer group, for heartbeats and transactions."""
        self._client = client
        self._hub = client.hub
        self._engine = engine
        self._topics: Lines[str] = Lines(client.hub.loop)
        self._queues: Lines[MessageQueue] = Lines(client.hub.loop)
        self._at_once_count = 0
        self._is_closed = False

    @property
    def resent_count(self) -> int:
        """As Producer.resent_count."""
        return self._engine.resent_count

    # ---- sending ---------------------------------------------------------------------------------

    async def send(
        self,
        topic: str | core.Message,
        body: Body = b"",
        *,
        tag: str | None = None,
        keys: str | Iterable[str] | None = None,
        properties: Mapping[str, str] | None = None,
        flag: int = 0,
        key: str | None = None,
        queue: QueueSelector | None = None,
        delay_level: int = 0,
        timeout: float = SEND_TIMEOUT_S,
    ) -> SendResult:
        """Send one message and wait until it is stored at its topic's level; as Producer.send.

        A broker that is awake often answers within microseconds: then this returns without a turn
        of the loop, some times in a row. If the task is cancelled meanwhile, the message may have
        been sent or not, as with OutcomeUnknownError.

        Raises:
            As Producer.send.
        """
        check_timeout("send", timeout)
        check_one_place("send", key, queue)
        deadline_ns = _now() + int(timeout * 1e9)
        if delay_level:
            properties = delayed(properties, delay_level)
        payload: Body | core.Message = body
        if isinstance(topic, core.Message):
            topic, payload = topic.topic, topic
        request = SendRequest(topic, payload, tag, keys, properties, flag, key, queue)
        while True:  # bounded by the deadline, and by what is mended
            sequence, chosen = await self._put(request, deadline_ns, timeout, keep=True)
            lane = chosen.lane
            assert lane is not None
            message_id = request.message_id
            try:
                message_id = message_id or lane.unique_key(sequence) or request.own_id
                status, queue_offset = await self._completion(lane, sequence, deadline_ns)
            except ClosedError:
                status, queue_offset = _CLOSED, -1
            stored = STORED.get(status)
            if stored is not None:
                return SendResult(stored, message_id or "", chosen.message_queue, queue_offset)
            if status == _CLOSED:
                request.message_id = message_id
            await self._mend(request, chosen, status, message_id, deadline_ns, timeout)

    async def send_oneway(
        self,
        topic: str,
        body: Body,
        *,
        tag: str | None = None,
        keys: str | Iterable[str] | None = None,
        properties: Mapping[str, str] | None = None,
        flag: int = 0,
        key: str | None = None,
        queue: QueueSelector | None = None,
        delay_level: int = 0,
        timeout: float = SEND_TIMEOUT_S,
    ) -> None:
        """Put one message into the ring and do not wait for what becomes of it; waits for room.

        Raises:
            As Producer.send_oneway.
        """
        check_timeout("send_oneway", timeout)
        check_one_place("send_oneway", key, queue)
        if delay_level:
            properties = delayed(properties, delay_level)
        request = SendRequest(topic, body, tag, keys, properties, flag, key, queue)
        await self._put(request, _now() + int(timeout * 1e9), timeout, keep=False)
        await self._fair()

    async def send_many(
        self,
        topic: str,
        bodies: Iterable[Body],
        *,
        tag: str | None = None,
        key: str | None = None,
        queue: QueueSelector | None = None,
        delay_level: int = 0,
        timeout: float = SEND_TIMEOUT_S,
    ) -> list[SendResult]:
        """Send many messages to one queue, in order, and wait until all are stored.

        Returns:
            A result for each.

        Raises:
            SendTimeoutError, OutcomeUnknownError and others: the message says how many, the first
            ones, are stored.
        """
        check_bodies("send_many", bodies)
        check_timeout("send_many", timeout)
        check_one_place("send_many", key, queue)
        deadline_ns = _now() + int(timeout * 1e9)
        given = list(bodies)
        if not given:
            return []
        place = SendRequest(topic, b"", tag, None, None, 0, key, queue)
        chosen = self._engine.choose(await self._target(topic, timeout), place)
        # All to one queue, whatever happens meanwhile: that is what keeps them in order.
        where = chosen.message_queue
        sends = [
            self._hub.loop.create_task(
                self.send(
                    topic,
                    body,
                    tag=tag,
                    queue=where,
                    delay_level=delay_level,
                    timeout=left_s(deadline_ns),
                )
            )
            for body in given
        ]
        try:
            await asyncio.wait(sends)
        except asyncio.CancelledError:
            for send in sends:
                send.cancel()
            raise
        done: list[SendResult] = []
        failure: BaseException | None = None
        for send in sends:
            error = asyncio.CancelledError() if send.cancelled() else send.exception()
            failure = failure or error
            if failure is None:
                done.append(send.result())
        if isinstance(failure, ShmqError):
            raise type(failure)(
                f"{failure} ({len(done)} of {len(given)} are stored)", hint=failure.hint
            ) from None
        if failure is not None:
            raise failure
        return done

    async def drain(self, timeout: float = SEND_TIMEOUT_S) -> None:
        """Wait until everything that this client has put is settled.

        Raises:
            OutcomeUnknownError: it was not, in `timeout` seconds.
            FlushFailedError: the disk of a broker refuses.
        """
        self._check("drain")
        check_timeout("drain", timeout)
        deadline_ns = _now() + int(timeout * 1e9)
        for link in self._client.engine.links():
            await self._hub.ready([link])
            for lane in tuple(link.lanes):
                status = _TIMED_OUT
                while status == _TIMED_OUT:  # bounded by the deadline
                    try:
                        self._hub.arm(lane)
                        status = lane.drain(0.0)
                    except ClosedError:
                        break  # the session is gone, and with it what was in its rings
                    if status == _TIMED_OUT and not await self._hub.change(deadline_ns):
                        raise OutcomeUnknownError(
                            f"drain: broker {link.broker_name} has not settled everything in "
                            f"{timeout} s"
                        )
                if status == _FLUSH_FAILED:
                    raise FlushFailedError(
                        f"drain: the disk of broker {link.broker_name} refuses; what was sent may "
                        "still be stored once it is restarted"
                    )

    async def queues(self, topic: str) -> list[MessageQueue]:
        """As Producer.queues."""
        return list((await self._target(topic)).message_queues)

    # ---- waiting ---------------------------------------------------------------------------------

    async def _completion(
        self, lane: core.Lane, sequence: int, deadline_ns: int
    ) -> tuple[int, int]:
        if not self._hub.has_pending and (found := lane.spin(sequence)) is not None:
            await self._fair()
            return found[0], found[1]
        self._at_once_count = 0
        return await self._hub.completion(lane, sequence, deadline_ns)

    async def _fair(self) -> None:
        """Other tasks have their turn, too, when nothing makes this one wait."""
        self._at_once_count += 1
        if self._at_once_count >= _AT_ONCE_MAX:
            self._at_once_count = 0
            await asyncio.sleep(0)

    async def _target(self, topic: str, timeout: float = SEND_TIMEOUT_S) -> Target:
        target = self._engine.known(topic)
        if target is None:
            target = await self._find(topic, timeout)
            links = {queue.link: None for queue in target.queues if queue.link is not None}
            await self._hub.ready(links)
        return target

    async def _find(self, topic: str, timeout: float) -> Target:
        """Its queues, as soon as a broker that has it answers."""
        deadline_ns = _now() + int(timeout * 1e9)
        watch = self._client.route_watch
        while True:  # bounded by the deadline
            seen = watch.seen
            try:
                return await self._hub.run(self._engine.look, topic, left_s(deadline_ns))
            except ServiceNotAvailableError as error:
                if left_s(deadline_ns) <= 0:
                    raise nobody_came(topic, timeout, error) from None
            await watch.wait(seen, left_s(deadline_ns))
            self._check(f"send to {topic}")

    async def _put(
        self, request: SendRequest, deadline_ns: int, timeout: float, *, keep: bool
    ) -> tuple[int, SendQueue]:
        """As Producer._put. What is in line before it in the same queue goes first; a message
        without a key or a queue stands in no queue's line.
        """
        self._check(f"send to {request.topic}")
        topic = request.topic
        target = self._engine.known(topic)
        if target is None or topic in self._topics:
            turn = self._topics.enter(topic)
            if not await turn.comes_within(left_s(deadline_ns)):
                raise ServiceNotAvailableError(
                    f"send to {topic}: sends before it still wait for a broker after {timeout:.3g}"
                    " s; nothing was sent",
                    hint="see who is there: shmq broker list",
                )
            async with turn:
                target = await self._target(topic, left_s(deadline_ns))
                found, chosen, place = self._try(request, target, keep)
        else:
            found, chosen, place = self._try(request, target, keep)
        if found is not None and found >= 0:
            return found, chosen
        if place is None:
            return await self._put_waiting(request, deadline_ns, timeout, keep=keep)
        async with place:
            return await self._put_waiting(request, deadline_ns, timeout, keep=keep)

    def _try(
        self, request: SendRequest, target: Target, keep: bool
    ) -> tuple[int | None, SendQueue, Place[MessageQueue] | None]:
        """Put it if that is possible now, else stand in line; never waits."""
        chosen = self._engine.choose(target, request)
        where = chosen.message_queue
        if not request.is_free and where in self._queues:
            return None, chosen, self._queues.enter(where)
        status = _put_now(request, chosen, keep)
        if status < 0 and not request.is_free:
            return None, chosen, self._queues.enter(where)
        return status, chosen, None

    async def _put_waiting(
        self, request: SendRequest, deadline_ns: int, timeout: float, *, keep: bool
    ) -> tuple[int, SendQueue]:
        tried = 0
        room: core.Lane | None = None  # whose turn to try is ours
        try:
            while True:  # bounded by the deadline
                target = await self._target(request.topic, left_s(deadline_ns))
                chosen = self._engine.choose(target, request)
                status = _put_now(request, chosen, keep)
                tried += 1
                if status == _FULL and request.is_free and tried < len(target.queues):
                    continue  # one look at each ring before waiting at one
                if status == _FULL and chosen.lane is not None and left_s(deadline_ns) > 0:
                    status = self._put_armed(request, chosen, keep)
                    if status == _FULL:
                        await self._hub.room(chosen.lane, deadline_ns, is_first=room is chosen.lane)
                        room = chosen.lane
                        continue
                if status >= 0:
                    return status, chosen
                await self._mend(request, chosen, status, None, deadline_ns, timeout)
        finally:
            if room is not None:
                self._hub.next_room(room)

    def _put_armed(self, request: SendRequest, chosen: SendQueue, keep: bool) -> int:
        """Once more, now that room will be told of."""
        assert chosen.lane is not None
        try:
            self._hub.arm_for_room(chosen.lane)
        except ClosedError:
            return _CLOSED
        return _put_now(request, chosen, keep)

    async def _mend(
        self,
        request: SendRequest,
        chosen: SendQueue,
        status: int,
        message_id: str | None,
        deadline_ns: int,
        timeout: float,
    ) -> None:
        """As Producer._mend."""
        self._check(f"send to {request.topic}")
        target = await self._target(request.topic, left_s(deadline_ns))
        cure = self._engine.diagnose(
            request, target, chosen, status, message_id, deadline_ns, timeout
        )
        if cure is Cure.CHUNK and chosen.link is not None:
            await self._hub.run(chosen.link.grant_chunk)
        elif cure is Cure.SESSION:
            await self._await_session(chosen, deadline_ns)
            self._engine.forget(request.topic, target)

    async def _await_session(self, chosen: SendQueue, deadline_ns: int) -> None:
        """The session of this queue has ended: wait for the next."""
        link = chosen.link
        if link is not None:
            while link.generation == chosen.link_generation:  # bounded by the deadline
                if not await self._hub.change(deadline_ns):
                    return
            return
        while left_s(deadline_ns) > 0:
            try:
                await self._hub.run(self._client.engine.link, chosen.message_queue.broker_name)
                return
            except ServiceNotAvailableError:
                await asyncio.sleep(min(_RETRY_S, left_s(deadline_ns)))

    # ---- ending ----------------------------------------------------------------------------------

    def _check(self, what: str) -> None:
        self._client.check(what)
        if self._is_closed:
            raise ClosedError(f"{what}: this producer is closed")

    async def close(self) -> None:
        """Send no more, and wait until what is under way is stored or its time is up."""
        if self._is_closed or self._client.is_forked:
            return
        self._client.check("close a producer")
        self._is_closed = True
        await self._hub.drain()
        self._engine.close()


def _put_now(request: SendRequest, chosen: SendQueue, keep: bool) -> int:
    """The sequence, or why it was not put."""
    if chosen.lane is None:
        return _CLOSED
    try:
        return request.put(chosen.lane, chosen, 0.0, keep)
    except ClosedError:
        return _CLOSED
