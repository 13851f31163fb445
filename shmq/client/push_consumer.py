"""PushConsumer: a group's member that calls a function with each message, in several threads.

What lives here: `PushConsumer` and its pool. The threads of a topic take turns: one waits for
messages on behalf of all, hands the waiting on when it has one, and calls the listener itself, so
that a message meets its listener in the thread that it woke. Which process: the program's, threads
of its own. Writes: progress, through the Consumer. May fail: what Client.consumer raises; what a
listener raises is logged and the message delivered again.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, cast

from shmq.allocation import strategy_of
from shmq.client.arguments import check_count, check_retries, member
from shmq.client.closable import Closable
from shmq.client.consumer import Consumer
from shmq.client.listener_pool import WAIT_S, ListenerPool
from shmq.client.orderly import SETTLED, OrderlyPool, check_orderly, check_suspend, complain
from shmq.client.overdue import RETRY_LEVEL, ListenerCalls, OverdueWatch
from shmq.client.process_queue import ProcessQueue
from shmq.clock import SYSTEM_CLOCK
from shmq.errors import ClosedError, ShmqError
from shmq.status import ConsumeStatus
from shmq.subscription import ConsumeFromWhere, MessageModel, check_group
from shmq.topic import retry_topic

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from shmq.allocation import Allocation
    from shmq.client.instance import Client
    from shmq.client.orderly import OrderlyListener
    from shmq.client.overdue import ListenerCall
    from shmq.clock import Clock
    from shmq.core import core

    Listener = Callable[[core.Message], ConsumeStatus | None]

__all__ = ["PushConsumer", "retry_allocation"]

_log = logging.getLogger("shmq.client")

_TAKE_MAX = 16
"""Messages that a thread takes in one turn where there are more than threads."""


class PushConsumer(Closable):
    """A member of a group. A context manager: leaving it waits for calls that are on.

    The listener settles a message by returning None or ConsumeStatus.CONSUME_SUCCESS. If it
    returns RECONSUME_LATER or raises, the message goes back to its broker, into the group's retry
    topic, and comes again to some member, after 10 s and then later each time; after the last time
    it is a dead letter (shmq dlq); any other answer is logged, and taken for a failure, too. In
    BROADCASTING it is delivered again to this member.

    A listener that takes longer than the group's consumeTimeoutMinute (15) goes on, but its message
    goes back as if it had failed, and what it returns at last does not count; `overdue_count` and
    the log say so. So a stuck call costs a thread, and does not hold up its queue.

    An orderly one calls its listener with (message, ConsumeOrderlyContext), with one message of a
    queue at a time, in order, whichever member has the queue. What fails is tried again after
    `suspend` seconds, and nothing behind it in its queue comes before; without an end, unless
    max_reconsume_times says after how many tries it is a dead letter.

    Example:
        with client.push_consumer("billing", print, threads=4) as consumer:
            consumer.subscribe("orders", "new || paid")
            ...
    """

    def __init__(
        self,
        client: Client,
        group: str,
        listener: Listener | OrderlyListener,
        *,
        threads: int,
        max_reconsume_times: int,
        orderly: bool,
        suspend: float,
        allocation: Allocation,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """By Client.push_consumer(); `clock` says how long a listener takes."""
        what = f"consume in group {group}"
        check_group(group)
        check_count(what, "threads", threads)
        check_retries(what, max_reconsume_times)
        strategy_of(allocation, what=what)
        if not callable(listener):
            raise TypeError(f"{what}: listener {listener!r}: wanted a function of a message")
        check_suspend(what, suspend)
        if orderly:
            check_orderly(what, listener)
        self.group = group
        """The group."""
        self._client = client
        self._listener = listener
        self._thread_max = threads
        self._max_reconsume_times = max_reconsume_times
        self._is_orderly = orderly
        self._suspend = suspend
        self._allocation = allocation
        self._clock = clock
        self._overdue = OverdueWatch(group)
        self._pools: list[_Pool | OrderlyPool] = []
        self._has_retries = False
        self._is_closed = False

    @property
    def overdue_count(self) -> int:
        """Messages that went back because a listener took too long."""
        return self._overdue.overdue_count

    def subscribe(
        self,
        topic: str,
        filter: str | None = None,
        *,
        from_where: ConsumeFromWhere = ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET,
        from_time: float | None = None,
        allocation: Allocation | None = None,
        model: MessageModel = MessageModel.CLUSTERING,
        offset_file: str | Path | None = None,
    ) -> None:
        """Begin to consume a topic; arguments as for Client.consumer, allocation as this consumer
        was given it. May be called for several.

        Raises:
            What Client.consumer raises.
        """
        if self._is_closed:
            raise ClosedError(f"subscribe to {topic}: this push consumer is closed")
        model = member(f"consume {topic}", "model", MessageModel, model)
        self._consume(
            topic,
            filter=filter,
            from_where=from_where,
            from_time=from_time,
            allocation=self._allocation if allocation is None else allocation,
            model=model,
            offset_file=offset_file,
        )
        if model is MessageModel.CLUSTERING and not self._has_retries:
            self._has_retries = True
            self._consume(retry_topic(self.group), allocation=retry_allocation(self._allocation))

    def _consume(self, topic: str, **options: Any) -> None:
        consumer = Consumer(
            self._client,
            topic,
            self.group,
            auto_settle=False,
            is_orderly=self._is_orderly,
            **options,
        )
        self._client.join(consumer)
        if not self._is_orderly:
            listener = cast("Listener", self._listener)
            calls = ListenerCalls(self._clock)
            pool = _Pool(consumer, listener, self._thread_max, self._max_reconsume_times, calls)
            self._pools.append(pool)
            if consumer.assignment.model is MessageModel.CLUSTERING:
                self._overdue.watch(calls, pool.give_up)
            return
        self._pools.append(
            OrderlyPool(
                consumer,
                cast("OrderlyListener", self._listener),
                self._thread_max,
                suspend=self._suspend,
                reconsume_max=self._max_reconsume_times,
            )
        )

    def close(self) -> None:
        """Take nothing more, wait for the calls that are on, and leave the group."""
        if self._is_closed or self._client.is_forked:
            return
        self._is_closed = True
        self._overdue.close()
        for pool in self._pools:
            pool.close()
        self._client.leave(self)


def retry_allocation(allocation: Allocation) -> Allocation:
    """How the queues of the retry topic are shared out: a list or a function of the program's may
    know nothing of them, and what nobody has nobody consumes.
    """
    return allocation if isinstance(allocation, str) else "average"


class _Pool(ListenerPool[deque["core.Message"]]):
    """The threads of one topic, whose messages may be worked in any order."""

    def __init__(
        self,
        consumer: Consumer,
        listener: Listener,
        thread_max: int,
        max_reconsume_times: int,
        calls: ListenerCalls,
    ) -> None:
        super().__init__(consumer, thread_max, name="shmq-listen")
        self._calls = calls
        self._max_reconsume_times = max_reconsume_times
        self._listener = listener
        self.start()

    def _next(self) -> deque[core.Message] | None:
        consumer = self._consumer
        with self._turn:
            item = consumer.take(WAIT_S)
            if item is None:
                return None
            messages = deque((item[2],))
            more = min(consumer.ready_count // self._thread_max, _TAKE_MAX - 1)
            for _ in range(more):
                item = consumer.take(0.0)
                if item is not None:
                    messages.append(item[2])
            return messages

    def _work(self, messages: deque[core.Message]) -> None:
        while messages:
            try:
                message = messages.popleft()
            except IndexError:  # who gave up the call before has passed on the rest just now
                return
            self._call(message, messages)

    def _call(self, message: core.Message, rest: deque[core.Message]) -> None:
        number = self._calls.begin(message, rest)
        try:
            answer = self._listener(message)
            is_done = answer in SETTLED
        except Exception:  # noqa: BLE001 # a listener may raise anything; the message comes again
            _log.exception("listener of %s: message %s", self._consumer.topic, message.message_id)
            is_done = False
        else:
            if not is_done and answer != ConsumeStatus.RECONSUME_LATER:
                complain(self._consumer.topic, message, answer)
        if not self._calls.end(number):
            return  # it took too long, and the message has gone back
        if is_done:
            message.settle()
        else:
            self._failed(message)

    def give_up(self, call: ListenerCall) -> None:
        """A call takes too long: its message goes back, what waits behind it to other threads."""
        now_ns = SYSTEM_CLOCK.monotonic_ns()
        for _ in range(len(call.rest)):
            try:
                message = call.rest.popleft()
            except IndexError:  # the call has ended just now, and its thread has gone on
                break
            queue = message.keeper
            assert isinstance(queue, ProcessQueue)
            self._consumer.deliver_at(queue, message, now_ns)
        self._failed(call.message, delay_level=RETRY_LEVEL)

    def _failed(self, message: core.Message, *, delay_level: int = 0) -> None:
        """It is to come again: by way of its broker, or, while that is away, from here."""
        queue = message.keeper
        assert isinstance(queue, ProcessQueue)
        if self._consumer.assignment.model is MessageModel.CLUSTERING and not queue.is_dropped:
            try:
                self._consumer.send_back(
                    message, delay_level, max_reconsume_times=self._max_reconsume_times
                )
            except ShmqError as error:
                _log.warning("not sent back message=%s: %s", message.message_id, error)
            else:
                return
        queue.failed(message)
