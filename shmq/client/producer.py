"""Producer: messages into the rings of brokers.

What lives here: `Producer`, and how it chooses a queue. A send is one call into the core (a copy
into the ring, a wake-up if the broker sleeps, a wait for the completion). Which process: the
program's, any thread. Writes: its client's rings. May fail: SendTimeoutError (nothing was sent),
OutcomeUnknownError (sent, its fate not known in time), and what a broker refuses.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, Self

from shmq.clock import SYSTEM_CLOCK
from shmq.core import core
from shmq.errors import (
    ClosedError,
    IllegalTopicError,
    OutcomeUnknownError,
    SendTimeoutError,
    ServiceNotAvailableError,
    ShmqError,
    TopicNotExistError,
    for_status,
)
from shmq.remoting.codes import RequestCode
from shmq.result import MessageQueue, SendResult
from shmq.status import SendStatus
from shmq.subscription import java_hash
from shmq.topic import check_sendable_topic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType

    from shmq.client.broker_link import BrokerLink
    from shmq.client.instance import Client
    from shmq.remoting.command import Command

__all__ = ["Producer"]

_OK = core.STATUS["OK"][0]
_TIMED_OUT = core.STATUS["TIMED_OUT"][0]
_STALE = frozenset(core.STATUS[name][0] for name in ("NO_TOPIC", "NOT_GRANTED", "NOT_WRITABLE"))
_CLOSED = core.STATUS["CLOSED"][0]
_TOO_LARGE = core.STATUS["TOO_LARGE"][0]
"""Also of a body that needs chunk memory where the session has none yet."""
_NAMES = {value: name for name, (value, _) in core.STATUS.items()}
_STORED = {
    core.STATUS["FLUSH_DISK_TIMEOUT"][0]: SendStatus.FLUSH_DISK_TIMEOUT,
    core.STATUS["FLUSH_SLAVE_TIMEOUT"][0]: SendStatus.FLUSH_SLAVE_TIMEOUT,
    core.STATUS["SLAVE_NOT_AVAILABLE"][0]: SendStatus.SLAVE_NOT_AVAILABLE,
}
SEND_TIMEOUT_S = 3.0
"""RocketMQ's sendMsgTimeout."""
_ATTEMPT_MAX = 5
"""Attempts of one send: fresh handles after a change of the topic, a new session."""


class _Queue(NamedTuple):
    link: BrokerLink
    row: int
    generation: int
    message_queue: MessageQueue


class _Target:
    """The queues of one topic, in order of broker and queue id."""

    __slots__ = ("next", "queues")

    def __init__(self, queues: list[_Queue]) -> None:
        self.queues = queues
        self.next = 0


class Producer:
    """Sends messages. Threads may share it; a context manager."""

    def __init__(self, client: Client, group: str) -> None:
        """By Client.producer()."""
        self.group = group
        """Producer group, for heartbeats and transactions."""
        self._client = client
        self._targets: dict[str, _Target] = {}
        self._lock = threading.Lock()
        self._threads = threading.local()
        self._thread_count = 0
        self._executor: ThreadPoolExecutor | None = None
        self._last: dict[str, list[_Queue]] = {}
        self._is_closed = False
        self.resent_count = 0
        """Sends put again under the same message id because a broker had lost its memory: each is
        a possible duplicate."""

    # ---- sending ---------------------------------------------------------------------------------

    def send(
        self,
        topic: str | core.Message,
        body: bytes | bytearray | memoryview | str | core.Message | None = None,
        *,
        tag: str | None = None,
        keys: str | Iterable[str] | None = None,
        properties: Mapping[str, str] | None = None,
        flag: int = 0,
        key: str | None = None,
        queue: MessageQueue | Callable[[Sequence[MessageQueue]], MessageQueue] | None = None,
        timeout: float = SEND_TIMEOUT_S,
    ) -> SendResult:
        """Send one message and wait until it is stored at its topic's level.

        Args:
            topic: the topic, or a Message that says everything.
            body: any buffer or numpy array, or a str as UTF-8.
            tag: for filters.
            keys: to find it by.
            properties: of the user.
            flag: of the user, 32 bits.
            key: messages of one key go to one queue, in order.
            queue: this queue, or a function that chooses one of those given.
            timeout: seconds for everything.

        Raises:
            MessageError and its kin: the message cannot be sent; nothing was written.
            TopicNotExistError: no broker has the topic and none makes it.
            SendTimeoutError: nothing was sent in time.
            OutcomeUnknownError: sent, and its broker has not said what became of it.
        """
        if isinstance(topic, core.Message):
            topic, body = topic.topic, topic
        elif body is None:
            body = b""
        deadline_ns = SYSTEM_CLOCK.monotonic_ns() + int(timeout * 1e9)
        for attempt in range(_ATTEMPT_MAX):
            chosen = self._choose(topic, key, queue)
            link, row, generation, message_queue = chosen
            generation_of_link = link.generation
            left_s = timeout if attempt == 0 else _left_s(deadline_ns)
            try:
                status, _, queue_offset, _, _, message_id = self._lane(link).send(
                    row, generation, body, tag, keys, properties, flag, True, left_s
                )
            except ClosedError:
                status, message_id, queue_offset = _CLOSED, None, -1
            if status == _OK:
                return SendResult(SendStatus.SEND_OK, message_id or "", message_queue, queue_offset)
            if status in _STORED:
                return SendResult(_STORED[status], message_id or "", message_queue, queue_offset)
            if status in _STALE:
                self._targets.pop(topic, None)
                continue
            if status == _CLOSED and _left_s(deadline_ns) > 0:
                self._client.check("send")
                if message_id is not None:
                    self.resent_count += 1
                    properties = {**(properties or {}), "UNIQ_KEY": message_id}
                self._wait_for_session(link, generation_of_link, deadline_ns)
                continue
            if status == _TOO_LARGE and link.grant_chunk():
                continue
            raise _refusal(status, topic, message_queue, message_id, timeout)
        raise SendTimeoutError(
            f"send to {topic}: its queues changed {_ATTEMPT_MAX} times meanwhile"
        )

    def send_async(
        self,
        topic: str,
        body: bytes | bytearray | memoryview | str,
        *,
        callback: Callable[[Future[SendResult]], None] | None = None,
        **options: object,
    ) -> Future[SendResult]:
        """As `send`, in a thread of a small pool; the future has the result or the error."""
        future = self._pool().submit(self.send, topic, body, **options)  # type: ignore[arg-type]
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def send_oneway(
        self,
        topic: str,
        body: bytes | bytearray | memoryview | str,
        *,
        tag: str | None = None,
        keys: str | Iterable[str] | None = None,
        properties: Mapping[str, str] | None = None,
        key: str | None = None,
        timeout: float = SEND_TIMEOUT_S,
    ) -> None:
        """Put one message into the ring and do not wait for what becomes of it.

        Raises:
            SendTimeoutError: the ring was full for `timeout` seconds: nothing was sent.
        """
        chosen = self._choose(topic, key, None)
        lane = self._lane(chosen.link)
        record = (chosen.row, chosen.generation, body, tag, keys, properties, 0, True, timeout)
        sequence = lane.put(*record)
        if sequence == _TOO_LARGE and chosen.link.grant_chunk():
            sequence = lane.put(*record)
        if sequence < 0:
            raise _refusal(sequence, topic, chosen.message_queue, None, timeout)

    def send_many(
        self,
        topic: str,
        bodies: Sequence[bytes | bytearray | memoryview | str],
        *,
        tag: str | None = None,
        key: str | None = None,
        timeout: float = SEND_TIMEOUT_S,
    ) -> int:
        """Send many messages to one queue, in order, and wait until all are stored; how many.

        Raises:
            SendTimeoutError, OutcomeUnknownError: some were not sent, or not settled, in time.
        """
        chosen = self._choose(topic, key, None)
        lane = self._lane(chosen.link)
        status, _, count = lane.put_many(
            chosen.row, chosen.generation, bodies, tag, None, None, 0, True, timeout
        )
        if status == _TOO_LARGE and chosen.link.grant_chunk():
            status, _, more = lane.put_many(
                chosen.row, chosen.generation, bodies[count:], tag, None, None, 0, True, timeout
            )
            count += more
        if status != _OK:
            raise _refusal(status, topic, chosen.message_queue, None, timeout)
        if lane.drain(timeout) != _OK:
            raise OutcomeUnknownError(
                f"send {count} messages to {topic}: not settled in {timeout} s"
            )
        return count

    def drain(self, timeout: float = SEND_TIMEOUT_S) -> None:
        """Wait until everything this client has put is settled.

        Raises:
            OutcomeUnknownError: it was not, in `timeout` seconds.
        """
        links = {queue.link for target in self._targets.values() for queue in target.queues}
        for link in links:
            for lane in link.lanes:
                if lane.drain(timeout) != _OK:
                    raise OutcomeUnknownError(f"drain: not settled in {timeout} s")

    # ---- choosing --------------------------------------------------------------------------------

    def queues(self, topic: str) -> list[MessageQueue]:
        """The queues that a topic's messages go to."""
        return [queue.message_queue for queue in self._target(topic).queues]

    def _choose(
        self,
        topic: str,
        key: str | None,
        queue: MessageQueue | Callable[[Sequence[MessageQueue]], MessageQueue] | None,
    ) -> _Queue:
        target = self._targets.get(topic) or self._target(topic)
        queues = target.queues
        if key is not None:
            return queues[(java_hash(key) & 0x7FFFFFFF) % len(queues)]
        if queue is not None:
            wanted = queue([q.message_queue for q in queues]) if callable(queue) else queue
            for candidate in queues:
                if candidate.message_queue == wanted:
                    return candidate
            raise TopicNotExistError(f"send to {wanted}: {topic} has no such queue")
        for _ in range(len(queues)):
            target.next = index = (target.next + 1) % len(queues)
            chosen = queues[index]
            if chosen.link.is_up:
                return chosen
        return chosen

    def _target(self, topic: str) -> _Target:
        with self._lock:
            known = self._targets.get(topic)
            if known is not None:
                return known
            if self._is_closed:
                raise ClosedError(f"send to {topic}: this producer is closed")
            self._client.check("send")
            if not isinstance(topic, str):
                raise IllegalTopicError(f"topic {topic!r}: wanted a str, or a Message in its place")
            check_sendable_topic(topic)
            target = _Target(self._find(topic))
            self._targets[topic] = target
            return target

    def _find(self, topic: str) -> list[_Queue]:
        try:
            route = self._client.routes.route(topic, is_fresh=True)
            names = sorted(q.broker_name for q in route.queue_datas if q.write_queue_nums)
        except TopicNotExistError:
            names = sorted(self._client.routes.brokers())  # they make it, if they make topics
        queues = []
        # A key's queue is counted over all queues of the topic, those of a dead broker included.
        last = {q.message_queue: q for q in self._last.get(topic, ())}
        names = sorted({*names, *(queue.broker_name for queue in last)})
        for name in names:
            try:
                link = self._client.link(name)
                granted = link.grant_send(topic)
            except ServiceNotAvailableError:
                if len(names) == 1 and not last:
                    raise
                queues += [q for q in last.values() if q.message_queue.broker_name == name]
                continue
            queues += [
                _Queue(link, *handle, MessageQueue(topic, name, queue_id))
                for queue_id, handle in granted
            ]
        if not queues:
            raise TopicNotExistError(f"send to {topic}: no broker has it; create it: shmq topic")
        self._last[topic] = queues
        return queues

    def _lane(self, link: BrokerLink) -> core.Lane:
        index = getattr(self._threads, "index", None)
        if index is None:
            with self._lock:
                index = self._threads.index = self._thread_count
                self._thread_count += 1
        lanes = link.lanes
        return lanes[index % len(lanes)]

    def _pool(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(4, thread_name_prefix="shmq-send")
            return self._executor

    def _wait_for_session(self, link: BrokerLink, generation: int, deadline_ns: int) -> None:
        waiting = threading.Event()
        while link.generation == generation and _left_s(deadline_ns) > 0:
            waiting.wait(0.005)
        with self._lock:
            self._targets.clear()

    # ---- what the client tells -------------------------------------------------------------------

    def notified(self, link: BrokerLink, command: Command) -> None:
        """A broker's notice."""
        if command.code == RequestCode.NOTIFY_TOPIC_CHANGED:
            self._targets.pop(str(command.ext_fields.get("topic")), None)

    def reconnected(self, link: BrokerLink, is_resumed: bool) -> None:
        """A broker is back; with new memory its handles are new, too."""
        if not is_resumed:
            self._targets.clear()

    def close(self) -> None:
        """Send no more. Waits for nothing; the client's session drains what was put."""
        with self._lock:
            self._is_closed = True
            self._targets.clear()
        if self._executor is not None:
            self._executor.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _left_s(deadline_ns: int) -> float:
    return max(0.0, (deadline_ns - SYSTEM_CLOCK.monotonic_ns()) / 1e9)


def _refusal(
    status: int, topic: str, queue: MessageQueue, message_id: str | None, timeout: float
) -> ShmqError:
    """What to raise for a status that is no success."""
    what = f"send to {topic} queue {queue.queue_id} of {queue.broker_name}"
    if status == _TIMED_OUT:
        if message_id is None:
            return SendTimeoutError(
                f"{what}: no room in the ring for {timeout} s; nothing was sent"
            )
        return OutcomeUnknownError(
            f"{what}: message {message_id} was sent, and its broker has not said in {timeout} s "
            "what became of it"
        )
    name = _NAMES.get(status, str(status))
    raised = for_status(name) or ShmqError
    return raised(f"{what}: {core.STATUS[name][1] if name in core.STATUS else name}")
