"""Producer: messages into the rings of brokers.

What lives here: `Producer`. A send is one call into the core (a copy into the ring, a wake-up if
the broker sleeps, a wait for the completion); how queues are chosen is in `queue_selector.py`, the
futures of send_async are settled in `settler.py`. Which process: the program's, any thread. Writes:
its client's rings. May fail: SendTimeoutError (nothing was sent), OutcomeUnknownError (sent, its
fate not known in time), and what a broker refuses.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

from shmq.client.arguments import check_bodies, check_one_place, check_timeout
from shmq.client.closable import Closable
from shmq.client.deadline import held, within
from shmq.client.fault_table import SLOW_NS, LatencyFaultTable
from shmq.client.loan import Loan, array_properties
from shmq.client.queue_finder import QueueFinder
from shmq.client.queue_selector import SendQueue, Target
from shmq.client.send_request import (
    STORED,
    Cure,
    SendRequest,
    delayed,
    left_s,
    nobody_came,
    refusal,
)
from shmq.client.settler import Pending, Settler
from shmq.clock import SYSTEM_CLOCK
from shmq.core import core
from shmq.errors import (
    ClosedError,
    FlushFailedError,
    IllegalTopicError,
    OutcomeUnknownError,
    PermissionDeniedError,
    SendTimeoutError,
    ServiceNotAvailableError,
    ShmqError,
)
from shmq.remoting.codes import RequestCode
from shmq.result import MessageQueue, SendResult, SendResults, StoredResults
from shmq.status import SendStatus
from shmq.topic import check_sendable_topic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from shmq.client.broker_link import BrokerLink
    from shmq.client.instance import Client
    from shmq.client.loan import DTypeLike
    from shmq.client.queue_selector import QueueSelector
    from shmq.client.route_watch import Seen
    from shmq.client.send_request import Body
    from shmq.remoting.command import Command

__all__ = ["Producer"]

_log = logging.getLogger("shmq.client")
_now = SYSTEM_CLOCK.monotonic_ns

_OK = core.STATUS["OK"][0]
_FULL = core.STATUS["FULL"][0]
_TOO_LARGE = core.STATUS["TOO_LARGE"][0]
_TIMED_OUT = core.STATUS["TIMED_OUT"][0]
_CLOSED = core.STATUS["CLOSED"][0]
_STALE = frozenset(core.STATUS[name][0] for name in ("NO_TOPIC", "NOT_GRANTED", "NOT_WRITABLE"))
_FLUSH_FAILED = core.STATUS["FLUSH_FAILED"][0]
SEND_TIMEOUT_S = 3.0
"""RocketMQ's sendMsgTimeout."""
FIRST_CONTACT_S = 1.0
"""A shorter timeout is this long for whom has to ask NameServer and brokers where a topic is."""
_STALE_MAX = 5
"""How often the handles of one send may turn out to be stale."""
_RETRY_S = 0.02
"""Between looks for a broker that nobody knows the session of."""
_BATCH_MAX = 512
"""Messages of send_many under way at once."""


class Producer(core.Oneway, Closable):
    """Sends messages. Threads may share it; a context manager.

    Messages to one queue are stored in the order in which they were sent, whichever threads send
    them; the messages of a key go to one queue.
    """

    def __init__(self, client: Client, group: str) -> None:
        """By Client.producer()."""
        self.group = group
        """Producer group, for heartbeats and transactions."""
        self._client = client
        self._targets: dict[str, Target] = {}
        self._finder = QueueFinder(client, group)
        self._faults = LatencyFaultTable()
        self._settlers: dict[BrokerLink, Settler] = {}
        self._lock = threading.Lock()
        self._is_closed = False
        self.resent_count = 0
        """Sends put again under the same message id because a broker had lost its memory: each is
        a possible duplicate."""

    # ---- sending ---------------------------------------------------------------------------------

    def send(
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
        """Send one message and wait until it is stored at its topic's level.

        Args:
            topic: the topic, or a Message that says everything.
            body: any buffer or numpy array (its dtype and shape travel along), or a str as UTF-8.
            tag: for filters.
            keys: to find it by.
            properties: of the user. A UNIQ_KEY in them is the message's id, in place of one made
                here: whoever sends a message on keeps its id that way, and keeps it unique.
            flag: of the user, 32 bits.
            key: messages of one key go to one queue, in order. A key or a queue, not both.
            queue: this queue; or a function that chooses one of those given; or "least-loaded".
            delay_level: deliver it later, after so long as the brokers' message_delay_level says
                for 1, 2, ...; 0: at once. The queue_offset of the result is then the one in the
                level's queue. A Message says so in a property DELAY.
            timeout: seconds for everything, 0 to 1e9. A send with a key or a queue waits so long
                for its broker; one without goes to another broker while its own is away or slow.
                Where none that has the topic is there, it waits for one to come.

        Raises:
            TypeError, ValueError: an argument that makes no sense.
            MessageError and its kin: the message cannot be sent; nothing was written.
            BodyTypeError: a body that is no buffer and no str; a TypeError too.
            TopicNotExistError: no broker has the topic and none makes it.
            ServiceNotAvailableError: no broker that has it came in time; nothing was sent.
            SendTimeoutError: nothing was sent in time.
            OutcomeUnknownError: sent, and its broker has not said what became of it.
        """
        begin_ns = _now()
        if timeout is not SEND_TIMEOUT_S:
            check_timeout("send", timeout)
        if delay_level:
            properties = delayed(properties, delay_level)
        if isinstance(topic, core.Message):
            check_one_place("send", key, queue)
            request = SendRequest(topic.topic, topic, None, None, properties, 0, key, queue)
            return self._send(request, begin_ns + int(timeout * 1e9), timeout)
        target = self._targets.get(topic)
        if target is None:
            request = SendRequest(topic, body, tag, keys, properties, flag, key, queue)
            return self._send(request, begin_ns + int(timeout * 1e9), timeout)
        if keys is not None and hasattr(keys, "__next__"):
            keys = tuple(keys)  # another attempt wants them, too
        if key is None and queue is None:
            lane, row, generation, chosen = next(target.turn)
            status = _CLOSED
            try:
                status, _, queue_offset, _, _, message_id = lane.send(
                    row, generation, body, tag, keys, properties, flag, True, timeout
                )
            except ClosedError:
                message_id = None
            took_ns = _now() - begin_ns
            if took_ns >= SLOW_NS:
                self._took(chosen, took_ns)
            if status == _OK and message_id is not None:
                return SendResult(
                    SendStatus.SEND_OK, message_id, chosen.message_queue, queue_offset
                )
        else:
            chosen = self._choose(target, key, queue)
            status, message_id = _CLOSED, None
            if chosen.lane is not None:
                try:
                    status, _, queue_offset, _, _, message_id = chosen.lane.send(
                        chosen.row,
                        chosen.generation,
                        body,
                        tag,
                        keys,
                        properties,
                        flag,
                        True,
                        timeout,
                    )
                except ClosedError:
                    message_id = None
        stored = STORED.get(status)
        if stored is not None:
            return SendResult(stored, message_id or "", chosen.message_queue, queue_offset)
        request = SendRequest(topic, body, tag, keys, properties, flag, key, queue)
        return self._send_again(
            request, target, chosen, status, message_id, begin_ns + int(timeout * 1e9), timeout
        )

    def send_async(
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
        callback: Callable[[Future[SendResult]], None] | None = None,
    ) -> Future[SendResult]:
        """As `send`, without waiting for what becomes of it: the future has the result or error.

        Blocks only while the ring is full. The future cannot be cancelled; callbacks are called in
        the thread that settles, and should not block. A buffer must not change before its future is
        done: it may have to be sent again.

        Raises:
            As `send`, for what is known at once; the rest is in the future.
        """
        if timeout is not SEND_TIMEOUT_S:
            check_timeout("send_async", timeout)
        if delay_level:
            properties = delayed(properties, delay_level)
        payload: Body | core.Message = body
        if isinstance(topic, core.Message):
            topic, payload = topic.topic, topic
        future: Future[SendResult] = Future()
        future.set_running_or_notify_cancel()
        if callback is not None:
            future.add_done_callback(callback)
        request = SendRequest(topic, payload, tag, keys, properties, flag, key, queue)
        self._put_async(request, future, _now() + int(timeout * 1e9), timeout)
        return future

    def _send_oneway(
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
        """What send_oneway, which is the core's (Oneway), did not do at once."""
        if timeout is not SEND_TIMEOUT_S:
            check_timeout("send_oneway", timeout)
        if delay_level:
            properties = delayed(properties, delay_level)
        target = self._targets.get(topic)
        if key is not None and target is not None:
            # What most keyed messages need, at a third of what a SendRequest costs.
            if keys is not None and hasattr(keys, "__next__"):
                keys = tuple(keys)  # another attempt wants them, too
            chosen = self._choose(target, key, queue)
            if chosen.lane is not None:
                try:
                    status = chosen.lane.put(
                        chosen.row, chosen.generation, body, tag, keys, properties, flag, True, 0.0
                    )
                except ClosedError:
                    status = _CLOSED
                if status >= 0:
                    return
        request = SendRequest(topic, body, tag, keys, properties, flag, key, queue)
        self._put(request, _now() + int(timeout * 1e9), timeout, keep=False)

    # What Python says of wrong arguments names the method that was called.
    _send_oneway.__qualname__ = "Producer.send_oneway"

    def send_many(
        self,
        topic: str,
        bodies: Iterable[Body],
        *,
        tag: str | None = None,
        key: str | None = None,
        queue: QueueSelector | None = None,
        delay_level: int = 0,
        timeout: float = SEND_TIMEOUT_S,
    ) -> Sequence[SendResult]:
        """Send many messages to one queue, in order, and wait until all are stored.

        Returns:
            A result for each, made when it is looked at.

        Raises:
            SendTimeoutError, OutcomeUnknownError and others: the message says how many, the first
            ones, are stored.
        """
        check_timeout("send_many", timeout)
        check_bodies(f"send_many to {topic}", bodies)
        properties = delayed(None, delay_level) if delay_level else None
        deadline_ns = _now() + int(timeout * 1e9)
        given = list(bodies)
        target = self._targets.get(topic) or self._target(topic, timeout)
        # All to one queue, whatever happens meanwhile: that is what keeps them in order.
        chosen = self._choose(target, key, queue)
        parts: list[Sequence[SendResult]] = []
        count = 0
        while count < len(given):  # bounded by the deadline, and by what is refused
            batch = given[count : count + _BATCH_MAX]
            where = chosen.message_queue
            request = SendRequest(topic, b"", tag, None, properties, 0, None, where)
            try:
                parts.append(self._send_batch(request, batch, deadline_ns, timeout))
            except ShmqError as error:
                raise type(error)(
                    f"{error} ({count} of {len(given)} are stored)", hint=error.hint
                ) from None
            count += len(parts[-1])
        return parts[0] if len(parts) == 1 else SendResults(parts)

    def loan(
        self,
        topic: str,
        nbytes: int | None = None,
        *,
        dtype: DTypeLike | None = None,
        shape: tuple[int, ...] | None = None,
        tag: str | None = None,
        keys: str | Iterable[str] | None = None,
        properties: Mapping[str, str] | None = None,
        key: str | None = None,
        queue: QueueSelector | None = None,
        delay_level: int = 0,
        timeout: float = SEND_TIMEOUT_S,
    ) -> Loan:
        """Room for a body in the ring, filled in place: a context manager that sends at its end.

        Args:
            topic: the topic.
            nbytes: bytes of the body; may be left out with a dtype and a shape.
            dtype: with `shape`: the receiver's Message.array() gives such an array.
            shape: of that array.
            tag: and the rest, as for `send`.
            keys: as for `send`.
            properties: as for `send`.
            key: as for `send`.
            queue: as for `send`.
            delay_level: as for `send`.
            timeout: seconds for room, and then for what became of it.

        Example:
            with producer.loan("frames", dtype="f4", shape=(480, 640)) as slot:
                slot.array()[:] = 0.5
            print(slot.result.queue_offset)
        """
        check_timeout("loan", timeout)
        check_one_place("loan", key, queue)
        if (dtype is None) != (shape is None):
            raise TypeError("loan: dtype and shape go together; give both or neither")
        given = dict(properties or {})
        if delay_level:
            given = delayed(given, delay_level)
        if dtype is not None and shape is not None:
            marks, array_bytes = array_properties(dtype, shape)
            if nbytes is not None and nbytes != array_bytes:
                raise ValueError(f"loan: {nbytes} bytes, the array has {array_bytes}")
            given |= marks
            nbytes = array_bytes
        if nbytes is None:
            raise TypeError("loan: give nbytes, or dtype and shape")
        request = SendRequest(topic, b"", tag, keys, given or None, 0, key, queue)
        place: list[SendQueue] = []
        size = nbytes

        def open_loan() -> core.Loan:
            loan, chosen = self._open_loan(request, size, timeout)
            place[:] = [chosen]
            return loan

        def settle(sequence: int) -> SendResult:
            (chosen,) = place
            assert chosen.lane is not None
            message_id = chosen.lane.unique_key(sequence) or ""
            try:
                status, queue_offset, _, _ = chosen.lane.wait(sequence, timeout)
            except ClosedError:
                status, queue_offset = _TIMED_OUT, -1
            stored = STORED.get(status)
            if stored is None:
                raise refusal(status, chosen, message_id, timeout)
            return SendResult(stored, message_id, chosen.message_queue, queue_offset)

        return Loan(open_loan, settle, dtype, shape)

    def drain(self, timeout: float = SEND_TIMEOUT_S) -> None:
        """Wait until everything that this client has put is settled.

        Raises:
            OutcomeUnknownError: it was not, in `timeout` seconds.
        """
        check_timeout("drain", timeout)
        if self._is_closed:
            raise ClosedError("drain: this producer is closed")
        self._client.check("drain")
        deadline_ns = _now() + int(timeout * 1e9)
        for link in self._client.links():
            for lane in tuple(link.lanes):
                try:
                    status = lane.drain(left_s(deadline_ns))
                except ClosedError:
                    continue  # the session is gone, and with it what was in its rings
                if status == _TIMED_OUT:
                    raise OutcomeUnknownError(
                        f"drain: broker {link.broker_name} has not settled everything in "
                        f"{timeout} s"
                    )
                if status == _FLUSH_FAILED:
                    raise FlushFailedError(
                        f"drain: the disk of broker {link.broker_name} refuses; what was sent may "
                        "still be stored once it is restarted"
                    )

    # ---- trying again ----------------------------------------------------------------------------

    def _send_again(
        self,
        request: SendRequest,
        target: Target,
        chosen: SendQueue,
        status: int,
        message_id: str | None,
        deadline_ns: int,
        timeout: float,
    ) -> SendResult:
        """The first attempt was not stored: settle why, and send again where that is right."""
        request.message_id = message_id if status == _CLOSED else None
        self._mend(request, target, chosen, status, message_id, deadline_ns, timeout)
        return self._send(request, deadline_ns, timeout)

    def _send(self, request: SendRequest, deadline_ns: int, timeout: float) -> SendResult:
        while True:  # bounded by the deadline, and by what _mend lets pass
            sequence, chosen = self._put(request, deadline_ns, timeout, keep=True)
            lane = chosen.lane
            assert lane is not None
            known = request.message_id
            try:
                message_id = known or lane.unique_key(sequence) or request.own_id
                status, queue_offset, _, _ = lane.wait(sequence, left_s(deadline_ns))
            except ClosedError:
                status, queue_offset = _CLOSED, -1
            stored = STORED.get(status)
            if stored is not None:
                return SendResult(stored, message_id or "", chosen.message_queue, queue_offset)
            if status == _TIMED_OUT:
                lane.forget(sequence)
            if status == _CLOSED:
                request.message_id = message_id
            target = self._targets.get(request.topic) or self._target(
                request.topic, left_s(deadline_ns)
            )
            self._mend(request, target, chosen, status, message_id, deadline_ns, timeout)

    def _mend(
        self,
        request: SendRequest,
        target: Target,
        chosen: SendQueue,
        status: int,
        message_id: str | None,
        deadline_ns: int,
        timeout: float,
    ) -> None:
        """Do what makes another attempt worth it; raises where there is nothing."""
        cure = self.diagnose(request, target, chosen, status, message_id, deadline_ns, timeout)
        if cure is Cure.CHUNK and chosen.link is not None:
            chosen.link.grant_chunk()
        elif cure is Cure.SESSION:
            self._await_session(request.topic, target, chosen, deadline_ns)

    def diagnose(
        self,
        request: SendRequest,
        target: Target,
        chosen: SendQueue,
        status: int,
        message_id: str | None,
        deadline_ns: int,
        timeout: float,
    ) -> Cure:
        """What makes another attempt worth it; raises where there is nothing."""
        if status in _STALE and request.stale_count < _STALE_MAX:
            request.stale_count += 1
            self._forget(request.topic, target)
            return Cure.NONE
        broker_name = chosen.message_queue.broker_name
        if (
            status == _TOO_LARGE
            and chosen.link is not None
            and broker_name not in request.chunk_brokers
        ):
            # A body that needs chunk memory where there was none; the next try may be elsewhere.
            request.chunk_brokers |= {broker_name}
            return Cure.CHUNK
        if status == _CLOSED and left_s(deadline_ns) > 0:
            self._client.check(f"send to {request.topic}")
            if message_id is not None:
                self.resent_count += 1
            return Cure.SESSION
        if status == _FULL or (status == _CLOSED and message_id is None):
            raise SendTimeoutError(
                f"send to {request.topic}: broker {chosen.message_queue.broker_name} took nothing "
                f"in {timeout} s; nothing was sent"
            )
        # A session that ended, its memory with it, tells no more than time that is up.
        said = _TIMED_OUT if status == _CLOSED else status
        raise refusal(said, chosen, message_id, timeout)

    def _put(
        self, request: SendRequest, deadline_ns: int, timeout: float, *, keep: bool
    ) -> tuple[int, SendQueue]:
        """Put into the ring of the queue that it belongs in, waiting for room and for its broker;
        without a key or a queue, of any broker that has room. The sequence, and the queue.
        """
        tried = 0
        while True:  # bounded by the deadline
            target = self._targets.get(request.topic) or self._target(
                request.topic, left_s(deadline_ns)
            )
            chosen = self._choose(target, request.key, request.queue)
            # One look at each ring before waiting at one.
            is_free = request.is_free and tried < len(target.queues)
            wait_s = 0.0 if is_free else left_s(deadline_ns)
            tried += 1
            status = _CLOSED
            if chosen.lane is not None:
                try:
                    status = request.put(chosen.lane, chosen, wait_s, keep)
                except ClosedError:
                    status = _CLOSED
            if status >= 0:
                return status, chosen
            if status == _FULL and is_free:
                continue
            self._mend(request, target, chosen, status, None, deadline_ns, timeout)

    def _put_async(
        self,
        request: SendRequest,
        future: Future[SendResult],
        deadline_ns: int,
        timeout: float,
    ) -> None:
        sequence, chosen = self._put(request, deadline_ns, timeout, keep=True)
        lane, link = chosen.lane, chosen.link
        assert lane is not None
        assert link is not None
        try:
            message_id = request.message_id or lane.unique_key(sequence) or request.own_id
        except ClosedError:
            message_id = ""
        settler = self._settlers.get(link)
        if settler is None:
            with self._lock:
                settler = self._settlers.get(link)
                if settler is None:
                    self._settlers[link] = settler = Settler(link.broker_name, self._settled)
        settler.add(
            Pending(
                lane=lane,
                sequence=sequence,
                deadline_ns=deadline_ns,
                future=future,
                queue=chosen,
                message_id=message_id,
                arguments=(request, timeout),
            )
        )

    def _settled(self, pending: Pending, status: int, queue_offset: int) -> None:
        """In the settling thread."""
        stored = STORED.get(status)
        if stored is not None:
            where = pending.queue.message_queue
            pending.future.set_result(SendResult(stored, pending.message_id, where, queue_offset))
            return
        request, timeout = pending.arguments
        assert isinstance(request, SendRequest)
        assert isinstance(timeout, float | int)
        try:
            if status == _CLOSED:
                request.message_id = pending.message_id or None
            target = self._targets.get(request.topic) or self._target(
                request.topic, left_s(pending.deadline_ns)
            )
            self._mend(
                request,
                target,
                pending.queue,
                status,
                pending.message_id,
                pending.deadline_ns,
                timeout,
            )
            self._put_async(request, pending.future, pending.deadline_ns, timeout)
        except Exception as error:  # noqa: BLE001 # whatever it is, it is the future's
            pending.future.set_exception(error)

    def _send_batch(
        self, request: SendRequest, bodies: Sequence[Body], deadline_ns: int, timeout: float
    ) -> Sequence[SendResult]:
        """Some of send_many: as many as one look at the ring took; none where it took none."""
        target = self._targets.get(request.topic) or self._target(
            request.topic, left_s(deadline_ns)
        )
        chosen = self._choose(target, None, request.queue)
        lane, where = chosen.lane, chosen.message_queue
        status, first, count = _CLOSED, 0, 0
        if lane is not None:
            try:
                status, first, count = lane.put_many(
                    chosen.row,
                    chosen.generation,
                    bodies[: max(1, lane.completion_capacity // 2)],
                    request.tag,
                    properties=request.properties,
                    timeout=left_s(deadline_ns),
                    keep=True,
                )
            except ClosedError:
                status = _CLOSED
        if lane is None or count == 0:
            self._mend(request, target, chosen, status, None, deadline_ns, timeout)
            return []
        unknown: str | None = None
        try:
            settled = lane.wait_many(first, count, left_s(deadline_ns))
            if len(settled) < count:
                unknown = lane.unique_key(first + len(settled))
                for index in range(len(settled), count):
                    lane.forget(first + index)
        except ClosedError:
            # Its memory is lost before anybody looked: what it settled meanwhile is not known.
            return [
                self._send_lost(request, body, "", deadline_ns, timeout) for body in bodies[:count]
            ]
        common = settled.status
        if common in STORED and len(settled) == count:
            return StoredResults(STORED[common], where, settled)
        results = []
        for index in range(len(settled)):
            status, queue_offset, message_id = settled[index]
            stored = STORED.get(status)
            if stored is not None:
                results.append(SendResult(stored, message_id or "", where, queue_offset))
            elif status == _CLOSED and lane.closed:
                results.append(
                    self._send_lost(request, bodies[index], message_id or "", deadline_ns, timeout)
                )
            else:
                raise refusal(status, chosen, message_id, timeout)
        if len(settled) < count:
            raise refusal(_TIMED_OUT, chosen, unknown, timeout)
        return results

    def _send_lost(
        self, batch: SendRequest, body: Body, message_id: str, deadline_ns: int, timeout: float
    ) -> SendResult:
        """One of a batch whose ring is gone."""
        request = SendRequest(
            batch.topic, body, batch.tag, None, batch.properties, 0, None, batch.queue
        )
        target = self._targets.get(request.topic) or self._target(
            request.topic, left_s(deadline_ns)
        )
        chosen = self._choose(target, None, request.queue)
        return self._send_again(
            request, target, chosen, _CLOSED, message_id or None, deadline_ns, timeout
        )

    def _open_loan(
        self, request: SendRequest, nbytes: int, timeout: float
    ) -> tuple[core.Loan, SendQueue]:
        deadline_ns = _now() + int(timeout * 1e9)
        while True:  # bounded by the deadline
            target = self._targets.get(request.topic) or self._target(
                request.topic, left_s(deadline_ns)
            )
            chosen = self._choose(target, request.key, request.queue)
            found: core.Loan | int = _CLOSED
            if chosen.lane is not None:
                try:
                    found = chosen.lane.loan(
                        chosen.row,
                        chosen.generation,
                        nbytes,
                        request.tag,
                        request.keys,
                        request.properties,
                        request.flag,
                        timeout=left_s(deadline_ns),
                        keep=True,
                    )
                except ClosedError:
                    found = _CLOSED
            if not isinstance(found, int):
                return found, chosen
            self._mend(request, target, chosen, found, None, deadline_ns, timeout)

    def _took(self, chosen: SendQueue, took_ns: int) -> None:
        """A send took long enough to prefer other brokers for a while."""
        if self._faults.update(chosen.message_queue.broker_name, took_ns, _now()):
            self._renew_targets()

    # ---- where to --------------------------------------------------------------------------------

    def queues(self, topic: str) -> list[MessageQueue]:
        """The queues that a topic's messages go to, those of brokers that are away included.
        Where no broker that has it is there, waits SEND_TIMEOUT_S for one.
        """
        return list((self._targets.get(topic) or self._target(topic)).message_queues)

    def _choose(self, target: Target, key: str | None, queue: QueueSelector | None) -> SendQueue:
        if key is not None:
            check_one_place("send", key, queue)
            return target.by_key(key)
        if queue is not None:
            return target.choose(queue)
        return next(target.turn)[3]

    def _target(self, topic: str, timeout: float = SEND_TIMEOUT_S) -> Target:
        """Its queues, as soon as a broker that has it answers. Blocks up to `timeout` seconds."""
        deadline_ns = _now() + int(timeout * 1e9)
        seen: Seen | None = None
        while True:  # bounded by the deadline
            try:
                return self.look(topic, left_s(deadline_ns))
            except ServiceNotAvailableError as error:
                if left_s(deadline_ns) <= 0:
                    raise nobody_came(topic, timeout, error) from None
            seen = self._client.route_watch.wait(seen, left_s(deadline_ns))

    def look(self, topic: str, timeout: float) -> Target:
        """Its queues, asked for once: brokers that are away are not waited for.

        Raises:
            ServiceNotAvailableError: no broker that has it answers.
            TopicNotExistError and others, as `send`.
        """
        if self._is_closed:
            raise ClosedError(f"send to {topic}: this producer is closed")
        self._client.check("send")
        if not isinstance(topic, str):
            raise IllegalTopicError(f"topic {topic!r}: wanted a str, or a Message in its place")
        check_sendable_topic(topic)
        with within(max(timeout, FIRST_CONTACT_S)), held(self._lock, f"send to {topic}"):
            known = self._targets.get(topic)
            if known is not None:
                return known
            target = Target(self._finder.find(topic), self._faults)
            self._targets[topic] = target
            return target

    def _forget(self, topic: str, target: Target) -> None:
        with self._lock:
            if self._targets.get(topic) is target:
                del self._targets[topic]

    def _await_session(
        self, topic: str, target: Target, chosen: SendQueue, deadline_ns: int
    ) -> None:
        """The session of this queue has ended: wait for the next, then look for queues anew."""
        link = chosen.link
        if link is not None:
            link.wait_for_session(chosen.link_generation, left_s(deadline_ns))
        else:
            waiting = threading.Event()
            name = chosen.message_queue.broker_name
            while left_s(deadline_ns) > 0:
                try:
                    self._client.link(name)
                    break
                except ServiceNotAvailableError:
                    waiting.wait(min(_RETRY_S, left_s(deadline_ns)))
        self._forget(topic, target)

    # ---- what shmq.aio uses ----------------------------------------------------------------------

    def known(self, topic: str) -> Target | None:
        """Its queues, if nobody has to be asked."""
        return self._targets.get(topic)

    def choose(self, target: Target, request: SendRequest) -> SendQueue:
        """Where the message goes."""
        return self._choose(target, request.key, request.queue)

    def forget(self, topic: str, target: Target) -> None:
        """Have its queues looked for anew."""
        self._forget(topic, target)

    # ---- what the client tells, in threads that must not wait ------------------------------------

    def notified(self, link: BrokerLink, command: Command) -> None:
        """A broker's notice."""
        if command.code == RequestCode.NOTIFY_TOPIC_CHANGED:
            self._targets.pop(str(command.ext_fields.get("topic")), None)

    def lost(self, link: BrokerLink) -> None:
        """A broker went: those that may go anywhere go elsewhere."""
        self._renew_targets()

    def reconnected(self, link: BrokerLink, is_resumed: bool) -> None:
        """A broker is back; with new memory its handles are new, too."""
        if is_resumed:
            self._renew_targets()
        else:
            _log.warning(
                "broker=%s began with new memory: what was sent one-way and not settled is lost",
                link.broker_name,
            )
            self._targets.clear()

    def refresh(self) -> None:
        """Look for the queues of all topics anew: brokers that no notice tells of, since we have no
        session with them, are found this way. Blocks while it asks; sends go on meanwhile.
        """
        for topic, target in tuple(self._targets.items()):
            if self._is_closed:
                return
            try:
                queues = self._finder.find(topic, may_create=False)
            except PermissionDeniedError:
                self._forget(topic, target)  # and the next send says why
                continue
            except ShmqError as error:
                _log.debug("refresh %s: %s", topic, error)  # the next send says so
                continue
            with self._lock:
                if self._targets.get(topic) is target and not target.has(queues):
                    self._targets[topic] = Target(queues, self._faults)

    def _renew_targets(self) -> None:
        for target in tuple(self._targets.values()):
            target.renew()

    # ---- ending ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Send no more, and wait until the futures are done. What was put one-way is drained by
        the brokers.
        """
        if self._client.is_forked:
            return
        with self._lock:
            self._is_closed = True
            self._targets.clear()
            settlers = list(self._settlers.values())
        for settler in settlers:
            settler.close()
        self._client.leave(self)
