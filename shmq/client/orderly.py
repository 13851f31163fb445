"""The threads that call an orderly listener: one message of a queue at a time, many queues at once.

What lives here: `OrderlyPool` and what its listener is told, `ConsumeOrderlyContext`. As in the
concurrent pool one thread waits for all; what it gets goes into the row of its queue, and a row is
worked by one thread at a time. A message that fails stays first in its row, which rests meanwhile.
Which process: the program's, threads of its own. Writes: progress, through the Consumer. Nothing
fails: what a listener raises is logged and the message comes again.
"""

from __future__ import annotations

import inspect
import logging
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shmq.client.listener_pool import WAIT_S, ListenerPool
from shmq.clock import SYSTEM_CLOCK
from shmq.errors import ConfigError, ShmqError
from shmq.status import ConsumeOrderlyStatus, ConsumeStatus
from shmq.subscription import MessageModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmq.client.consumer import Consumer
    from shmq.client.process_queue import ProcessQueue
    from shmq.client.queue_locks import QueueLocks
    from shmq.core import core
    from shmq.result import MessageQueue

    OrderlyListener = Callable[
        [core.Message, "ConsumeOrderlyContext"], ConsumeOrderlyStatus | ConsumeStatus | None
    ]

__all__ = [
    "ConsumeOrderlyContext",
    "OrderlyPool",
    "SETTLED",
    "check_orderly",
    "check_suspend",
    "complain",
]

_log = logging.getLogger("shmq.client")

SUSPEND_LEAST_S = 0.01
SUSPEND_MOST_S = 30.0
"""RocketMQ's bounds of suspendCurrentQueueTimeMillis."""
SUSPEND_S = 1.0
"""RocketMQ's default of it."""
_UNLOCKED_S = 0.05
"""Until it is looked again whether a queue is locked."""
_TURN_MAX = 32
"""Messages of one queue that a thread handles before it looks at the others."""


@dataclass(slots=True)
class ConsumeOrderlyContext:
    """What an orderly listener is told beside the message, and what it may ask for."""

    message_queue: MessageQueue
    """The queue, of which no other message is consumed meanwhile."""
    reconsume_times: int
    """How often this member failed with this message before."""
    suspend: float
    """Seconds to wait before it comes again, should this call fail; 0.01 to 30. Set it."""


@dataclass(slots=True, eq=False)
class _Row:
    """What was fetched of one queue, in order."""

    pending: deque[tuple[ProcessQueue, core.Message]] = field(default_factory=deque)
    is_active: bool = False
    """A thread has it, or it is due to be had by one."""
    resting: tuple[ProcessQueue, core.Message] | None = None
    """What comes again first; nothing else begins before."""
    fail_count: int = 0
    failed_offset: int = -1
    """Of which message fail_count is."""


class OrderlyPool(ListenerPool[_Row]):
    """The threads of one topic, each of whose queues is worked by one of them at a time.

    Args:
        consumer: orderly, and nobody else's.
        listener: called with (message, context).
        thread_max: threads.
        suspend: seconds between a failure and the next try, unless the listener says otherwise.
        reconsume_max: tries after the first before a message is a dead letter; -1: no end.
    """

    def __init__(
        self,
        consumer: Consumer,
        listener: OrderlyListener,
        thread_max: int,
        *,
        suspend: float,
        reconsume_max: int,
    ) -> None:
        super().__init__(consumer, thread_max, name="shmq-orderly")
        locks = consumer.assignment.locks
        assert locks is not None, "an orderly consumer"
        self._locks: QueueLocks = locks
        self._listener = listener
        self._suspend = suspend
        is_alone = consumer.assignment.model is MessageModel.BROADCASTING
        self._reconsume_max = -1 if is_alone else reconsume_max
        self._rows: dict[MessageQueue, _Row] = {}
        self._due: deque[_Row] = deque()
        self.start()

    # ---- fetching --------------------------------------------------------------------------------

    def _next(self) -> _Row | None:
        """A row to work; waits until there is one. None: look again."""
        with self._lock:
            is_due = bool(self._due)
        # Rows that are due do not keep the others from being fetched, nor wait for who sleeps.
        if self._turn.acquire(blocking=not is_due):
            try:
                with self._lock:
                    is_due = bool(self._due)
                self._fetch(0.0 if is_due else WAIT_S)
            finally:
                self._turn.release()
        with self._lock:
            return self._due.popleft() if self._due else None

    def _fetch(self, timeout: float) -> None:
        item = self._consumer.take(timeout)
        for _ in range(self._consumer.ready_count):
            if item is not None:
                self._put(*item)
            item = self._consumer.take(0.0)
        if item is not None:
            self._put(*item)

    def _put(self, queue: ProcessQueue, _queue_offset: int, message: core.Message) -> None:
        with self._lock:
            row = self._rows.setdefault(queue.message_queue, _Row())
            resting = row.resting
            if resting is not None and (resting[1] is message or resting[0].is_dropped):
                row.resting = None
            if resting is not None and resting[1] is message:
                row.pending.appendleft((queue, message))
            else:
                row.pending.append((queue, message))
            if not row.is_active and row.resting is None:
                row.is_active = True
                self._due.append(row)

    # ---- working ---------------------------------------------------------------------------------

    def _work(self, row: _Row) -> None:
        """Handle messages of a row until it is empty or rests, or others had better have a turn."""
        for _ in range(_TURN_MAX):
            with self._lock:
                if self._is_closed or not row.pending:
                    row.is_active = False
                    return
                queue, message = row.pending.popleft()
            if queue.is_dropped:
                continue
            if not self._locks.try_begin(queue):
                self._rest(row, queue, message, _UNLOCKED_S)
                return
            try:
                suspend = self._call(row, queue, message)
                if suspend is None:
                    queue.settle(message)  # twice does nothing, where it was sent back
            finally:
                self._locks.end(queue)
            if suspend is not None:
                self._rest(row, queue, message, suspend)
                return
        with self._lock:
            self._due.append(row)

    def _rest(self, row: _Row, queue: ProcessQueue, message: core.Message, delay_s: float) -> None:
        with self._lock:
            row.resting = queue, message
            row.is_active = False
        due_ns = SYSTEM_CLOCK.monotonic_ns() + int(delay_s * 1e9)
        self._consumer.deliver_at(queue, message, due_ns)

    def _call(self, row: _Row, queue: ProcessQueue, message: core.Message) -> float | None:
        """Call the listener; None: it is done, else seconds until the message comes again."""
        if row.failed_offset != message.queue_offset:
            row.failed_offset, row.fail_count = message.queue_offset, 0
        context = ConsumeOrderlyContext(queue.message_queue, row.fail_count, self._suspend)
        try:
            answer = self._listener(message, context)
        except Exception:  # noqa: BLE001 # a listener may raise anything; the message comes again
            _log.exception("listener of %s: message %s", self._consumer.topic, message.message_id)
        else:
            if answer in SETTLED:
                return None
            if answer not in _FAILED:
                complain(self._consumer.topic, message, answer)
        row.fail_count += 1
        if 0 <= self._reconsume_max < row.fail_count and self._give_up(queue, message):
            return None
        return min(max(context.suspend, SUSPEND_LEAST_S), SUSPEND_MOST_S)

    def _give_up(self, queue: ProcessQueue, message: core.Message) -> bool:
        """Make a dead letter of it, so that those behind it get on; whether it is one now."""
        if queue.is_dropped:
            return False
        try:
            self._consumer.send_back(message, -1)
        except ShmqError as error:
            _log.warning("not sent to the dead letters message=%s: %s", message.message_id, error)
            return False
        return True


SETTLED = (None, ConsumeOrderlyStatus.SUCCESS, ConsumeStatus.CONSUME_SUCCESS)
"""What a listener, orderly or not, may answer when a message is done with."""
_FAILED = (ConsumeOrderlyStatus.SUSPEND_CURRENT_QUEUE_A_MOMENT, ConsumeStatus.RECONSUME_LATER)


def complain(topic: str, message: core.Message, answer: object) -> None:
    """A listener answered what says neither that the message is done with nor that it failed."""
    _log.error(
        "listener of %s: message %s: answered %r, wanted None or a ConsumeStatus; taken for failed",
        topic,
        message.message_id,
        answer,
    )


def check_suspend(what: str, suspend: float) -> None:
    """Return if this can be used.

    Raises:
        ConfigError: it is out of range.
        TypeError: it is no number.
    """
    if not hasattr(suspend, "__float__"):
        raise TypeError(f"{what}: suspend {suspend!r}: wanted seconds as a number")
    if not SUSPEND_LEAST_S <= suspend <= SUSPEND_MOST_S:
        raise ConfigError(
            f"{what}: suspend {suspend!r}, wanted {SUSPEND_LEAST_S} to {SUSPEND_MOST_S:g} seconds"
        )


def check_orderly(what: str, listener: Callable[..., object]) -> None:
    """Return if this can be used.

    Raises:
        TypeError: it does not take (message, context).
    """
    try:
        inspect.signature(listener).bind(None, None)
    except ValueError:
        return  # of some built-in functions nobody knows
    except TypeError:
        raise TypeError(
            f"{what}: an orderly listener is called with (message, context); this one does not "
            "take two arguments"
        ) from None
