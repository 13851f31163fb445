"""PushConsumer: a group's member that calls a function with each message, in several threads.

What lives here: `PushConsumer` and its pool. The threads of a topic take turns: one waits for
messages on behalf of all, hands the waiting on when it has one, and calls the listener itself, so
that a message meets its listener in the thread that it woke. Which process: the program's, threads
of its own. Writes: progress, through the Consumer. May fail: what Client.consumer raises; what a
listener raises is logged and the message delivered again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, cast

from shmq.client.arguments import check_count
from shmq.client.closable import Closable
from shmq.client.consumer import Consumer
from shmq.client.listener_pool import WAIT_S, ListenerPool
from shmq.client.orderly import OrderlyPool, check_orderly
from shmq.client.process_queue import ProcessQueue
from shmq.errors import ClosedError, ShmqError
from shmq.status import ConsumeStatus
from shmq.subscription import MessageModel, check_group
from shmq.topic import retry_topic

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shmq.client.instance import Client
    from shmq.client.orderly import OrderlyListener
    from shmq.core import core

    Listener = Callable[[core.Message], ConsumeStatus | None]

__all__ = ["PushConsumer"]

_log = logging.getLogger("shmq.client")

_TAKE_MAX = 16
"""Messages that a thread takes in one turn where there are more than threads."""


class PushConsumer(Closable):
    """A member of a group. A context manager: leaving it waits for calls that are on.

    The listener settles a message by returning None or ConsumeStatus.CONSUME_SUCCESS. If it
    returns RECONSUME_LATER or raises, the message goes back to its broker, into the group's retry
    topic, and comes again to some member, after 10 s and then later each time; after the last time
    it is a dead letter (shmq dlq). In BROADCASTING it is delivered again to this member.

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
    ) -> None:
        """By Client.push_consumer()."""
        what = f"consume in group {group}"
        check_group(group)
        check_count(what, "threads", threads)
        if not callable(listener):
            raise TypeError(f"{what}: listener {listener!r}: wanted a function of a message")
        if orderly:
            check_orderly(what, listener, suspend)
        self.group = group
        """The group."""
        self._client = client
        self._listener = listener
        self._thread_max = threads
        self._max_reconsume_times = max_reconsume_times
        self._is_orderly = orderly
        self._suspend = suspend
        self._pools: list[_Pool | OrderlyPool] = []
        self._has_retries = False
        self._is_closed = False

    def subscribe(self, topic: str, filter: str | None = None, **options: Any) -> None:
        """Begin to consume a topic; options as for Client.consumer. May be called for several.

        Raises:
            What Client.consumer raises.
        """
        if self._is_closed:
            raise ClosedError(f"subscribe to {topic}: this push consumer is closed")
        self._consume(topic, filter=filter, **options)
        model = options.get("model", MessageModel.CLUSTERING)
        if model is MessageModel.CLUSTERING and not self._has_retries:
            self._has_retries = True
            self._consume(retry_topic(self.group))

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
            self._pools.append(
                _Pool(consumer, listener, self._thread_max, self._max_reconsume_times)
            )
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
        for pool in self._pools:
            pool.close()
        self._client.leave(self)


class _Pool(ListenerPool[list["core.Message"]]):
    """The threads of one topic, whose messages may be worked in any order."""

    def __init__(
        self, consumer: Consumer, listener: Listener, thread_max: int, max_reconsume_times: int
    ) -> None:
        super().__init__(consumer, thread_max, name="shmq-listen")
        self._max_reconsume_times = max_reconsume_times
        self._listener = listener
        self.start()

    def _next(self) -> list[core.Message] | None:
        consumer = self._consumer
        with self._turn:
            item = consumer.take(WAIT_S)
            if item is None:
                return None
            messages = [item[2]]
            more = min(consumer.ready_count // self._thread_max, _TAKE_MAX - 1)
            for _ in range(more):
                item = consumer.take(0.0)
                if item is not None:
                    messages.append(item[2])
            return messages

    def _work(self, messages: list[core.Message]) -> None:
        for message in messages:
            self._call(message)

    def _call(self, message: core.Message) -> None:
        try:
            is_done = self._listener(message) != ConsumeStatus.RECONSUME_LATER
        except Exception:  # noqa: BLE001 # a listener may raise anything; the message comes again
            _log.exception("listener of %s: message %s", self._consumer.topic, message.message_id)
            is_done = False
        if is_done:
            message.settle()
        else:
            self._failed(message)

    def _failed(self, message: core.Message) -> None:
        """It is to come again: by way of its broker, or, while that is away, from here."""
        queue = message.keeper
        assert isinstance(queue, ProcessQueue)
        if self._consumer.assignment.model is MessageModel.CLUSTERING and not queue.is_dropped:
            try:
                self._consumer.send_back(message, max_reconsume_times=self._max_reconsume_times)
            except ShmqError as error:
                _log.warning("not sent back message=%s: %s", message.message_id, error)
            else:
                return
        queue.failed(message)
