"""Consumer: a member of a group that reads its share of a topic in place.

What lives here: `Consumer`: it reads the queues it was assigned, hands their messages out and keeps
count of what is settled. Which queues those are is decided in `assignment.py`, in the client's
rebalance thread. Which process: the program's; one thread receives, any thread settles. Writes:
progress in the consumer pages of its sessions. May fail: what a broker refuses for good, when the
consumer is made; while a broker is away its queues just have nothing new.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
from collections import deque
from typing import TYPE_CHECKING

from shmq.client.arguments import (
    check_count,
    check_message_queue,
    check_queue_offset,
    check_retries,
    check_time,
    check_timeout,
)
from shmq.client.assignment import Assignment
from shmq.client.batch import MessageBatch
from shmq.client.closable import Closable
from shmq.client.cold_reader import ColdReader, Place
from shmq.client.process_queue import ProcessQueue
from shmq.client.wake_fd import WakeFd
from shmq.clock import SYSTEM_CLOCK
from shmq.core import core
from shmq.errors import ClosedError, OffsetIllegalError, ShmqError
from shmq.result import MessageQueue
from shmq.subscription import ConsumeFromWhere, MessageModel

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Sequence
    from pathlib import Path

    from shmq.allocation import Allocation
    from shmq.client.instance import Client

__all__ = ["Consumer"]

_log = logging.getLogger("shmq.client")

PULL_BATCH = 256
"""Messages read from one queue at a time."""
COLUMNS_MAX = 1000
"""Messages of one receive_many: as many as may be unsettled in a queue."""
REDELIVER_FIRST_NS = 100_000_000
"""A message whose processing failed comes again after this time, doubled with each failure."""
REDELIVER_MAX_NS = 10_000_000_000
_READ_RETRY_NS = 50_000_000
_FOR_EVER_S = 3600.0
"""One sleep of an iteration; whatever happens meanwhile ends it."""

_FOUND = core.STATUS["OK"][0]
_EMPTY = core.STATUS["EMPTY"][0]
_OFFSET_TOO_SMALL = core.STATUS["OFFSET_TOO_SMALL"][0]
_FENCED = core.STATUS["FENCED"][0]
_TIMED_OUT = core.STATUS["TIMED_OUT"][0]
_CLOSED = core.STATUS["CLOSED"][0]

_Item = tuple["ProcessQueue", int, core.Message]


class Consumer(Closable):
    """One member of a group. Iterate over it, or call receive(); a context manager.

    A message is settled by `message.process()` at its end, by `message.settle()`, or, unless
    auto_settle is off, when the next one is asked for. What is not settled when a consumer dies is
    delivered again to another member; what could not be processed is delivered again to this one.

    One thread receives; messages may be processed and settled in any.
    """

    def __init__(
        self,
        client: Client,
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
        queues: frozenset[MessageQueue] | None = None,
        is_orderly: bool = False,
    ) -> None:
        """By Client.consumer(), whose docstring says what the arguments are; `queues`: just these,
        which no group shares out; `is_orderly`: each queue is locked before it is consumed.
        """
        self.topic = topic
        """The topic."""
        self.group = group
        """The group."""
        self.expired_count = 0
        """Messages that retention took before this member could read them."""
        self._client = client
        self._auto_settle = auto_settle
        self._assignment = Assignment(
            client,
            self,
            topic,
            group,
            expression=filter,
            from_where=from_where,
            from_time=from_time,
            allocation=allocation,
            model=model,
            offset_file=offset_file,
            queues=queues,
            is_orderly=is_orderly,
        )
        self._subscription = self._assignment.subscription
        self._tag_codes = tuple(sorted(self._subscription.code_set)) or None
        self._cold = ColdReader(
            client,
            topic,
            group,
            expression=self._subscription.sub_string,
            tag_codes=self._tag_codes,
            bell=self._assignment.bell,
        )
        self._ready: deque[_Item] = deque()
        self._last: tuple[ProcessQueue, int] | None = None
        self._received: list[_Item] = []
        self._runs: list[tuple[ProcessQueue, Sequence[int]]] = []
        self._again: list[tuple[int, int, ProcessQueue, core.Message]] = []
        self._again_numbers = itertools.count()
        self._changed = threading.Event()
        self._is_stopped = False
        self._is_closed = False
        self._turn = 0
        self._wake_fd: WakeFd | None = None
        self._wakers: list[Callable[[], None]] = []
        self.may_block = True
        """Whether a read may wait for a broker; if not, it is left to read_slow()."""
        self._slow: list[ProcessQueue] = []

    # ---- receiving -------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[core.Message]:
        """Messages, for ever: blocks while there is none. Ends when the consumer is closed.

        Raises:
            ClosedError: it, or its client, was closed before.
        """
        self._check()
        return self._messages()

    def _messages(self) -> Iterator[core.Message]:
        # As try_next, which a call for each message would make a fifth slower.
        settles = self._auto_settle
        while not self._is_stopped:
            last = self._last
            if last is not None:
                self._last = None
                queue, offset = last
                if offset not in queue.held:
                    queue.settle_offset(offset)
            ready = self._ready
            if not ready and not self._fetch(_FOR_EVER_S, 1):
                continue
            queue, offset, message = self._ready.popleft()
            if queue.is_dropped:
                continue
            if settles:
                self._last = queue, offset
            yield message

    def try_next(self, timeout: float) -> core.Message | None:
        """The next message, or None if none comes in `timeout` seconds.

        Raises:
            ClosedError: this consumer or its client is closed.
            PermissionDeniedError: the right to it was taken away; names the rule.
        """
        if self._is_closed:
            self._check()
        if timeout is not _FOR_EVER_S:
            check_timeout("try_next", timeout)
        last = self._last
        if last is not None:
            self._last = None
            if last[1] not in last[0].held:
                last[0].settle_offset(last[1])
        ready = self._ready
        while True:  # bounded: what was dropped goes, what is fetched ends it, or the time does
            if not ready and not self._fetch(timeout, 1):
                return None
            queue, offset, message = ready.popleft()
            if not queue.is_dropped:
                break
        if self._auto_settle:
            self._last = queue, offset
        return message

    def receive(self, max_count: int = 32, *, timeout: float = 1.0) -> list[core.Message]:
        """Up to `max_count` messages; none if none came in `timeout` seconds.

        Raises:
            ClosedError: this consumer or its client is closed.
            PermissionDeniedError: the right to them was taken away; names the rule.
        """
        self._check()
        check_count("receive", "max_count", max_count)
        check_timeout("receive", timeout)
        self._settle_received()
        items: list[_Item] = []
        if len(self._ready) < max_count:
            self._fetch(timeout, max_count)
        ready = self._ready
        while ready and len(items) < max_count:
            item = ready.popleft()
            if not item[0].is_dropped:
                items.append(item)
        if self._auto_settle and not self._is_stopped:
            self._received = items
        return [item[2] for item in items]

    def receive_many(self, max_count: int = COLUMNS_MAX, *, timeout: float = 1.0) -> MessageBatch:
        """Up to `max_count` messages of one queue as columns; an empty batch if none came in
        `timeout` seconds. The quickest way to consume; numpy is imported when a column is used.

        Raises:
            ClosedError: this consumer or its client is closed.
        """
        self._check()
        check_count("receive_many", "max_count", max_count)
        check_timeout("receive_many", timeout)
        self._settle_received()
        deadline_ns = _deadline(timeout)
        while True:  # bounded by the deadline
            batch = self._columns_of_ready(max_count) or self._read_columns(max_count)
            if batch is not None:
                return batch
            if not self._wait(deadline_ns):
                return MessageBatch.empty(self.topic)

    def _check(self) -> None:
        if self._is_closed:
            raise ClosedError(f"consume {self.topic}: this consumer is closed")
        self._client.check(f"consume {self.topic}")

    def settle(self, message: core.Message) -> None:
        """This message is done with; the same as message.settle()."""
        message.settle()

    def send_back(
        self,
        message: core.Message,
        delay_level: int = 0,
        *,
        max_reconsume_times: int = -1,
        group: str | None = None,
    ) -> str:
        """Settle a message that could not be processed by having it delivered to the group again.

        It comes in the group's retry topic, which push consumers consume by themselves, with
        reconsume_times one more; or it goes to the group's dead letters. Blocks until it is stored.

        Args:
            message: one that this consumer handed out and that is not settled.
            delay_level: how long it waits (message_delay_level); 0: from 10 s on longer each time;
                -1: it is a dead letter.
            max_reconsume_times: failures after the first before it is a dead letter; -1: as the
                group is configured, which is 16.
            group: to whom; None: this consumer's own group.

        Returns:
            The topic it is in now.

        Raises:
            TypeError: no consumer handed the message out, or no number.
            ConfigError: a number that is out of range.
            ServiceNotAvailableError and others: it stays unsettled; it may have been put there.
        """
        queue = message.keeper
        if not isinstance(queue, ProcessQueue):
            raise TypeError(f"send back {message!r}: no consumer of a group handed it out")
        check_retries("send back", max_reconsume_times)
        topic = queue.link.send_back(
            group or self.group,
            queue.message_queue,
            message.queue_offset,
            delay_level=delay_level,
            max_reconsume_times=max_reconsume_times,
        )
        message.settle()
        return topic

    def seek(
        self,
        queue: MessageQueue,
        queue_offset: int | None = None,
        *,
        where: ConsumeFromWhere | None = None,
        time: float | None = None,
    ) -> int:
        """Go on elsewhere in a queue that is assigned to this member; the queue_offset it is.

        What was handed out of the queue before is forgotten: it is not settled any more.

        Args:
            queue: one of `assigned`.
            queue_offset: there; one of these three, not more,
            where: or at the first message kept, or behind the last,
            time: or at the first message stored at or after it; seconds since 1970.

        Raises:
            OffsetIllegalError: no such place, or not our queue.
            TypeError: none of the three, or more than one.
        """
        self._check()
        check_message_queue("seek", queue)
        if sum(given is not None for given in (queue_offset, where, time)) != 1:
            raise TypeError("seek: give one of queue_offset, where and time")
        if queue_offset is not None:
            check_queue_offset("seek", queue_offset)
        if time is not None:
            check_time("seek", time)
        return self._assignment.seek(queue, queue_offset, where, time)

    def fileno(self) -> int:
        """A descriptor for select, poll and epoll: readable when there may be a message.

        It gets unreadable when receive(), receive_many() or try_next() with a timeout of 0 finds
        nothing: so ask until there is nothing, and only then wait, at the beginning too. It may be
        readable for nothing. It is the consumer's: close that.

        Raises:
            ClosedError: this consumer is closed.
        """
        self._check()
        if self._wake_fd is None:
            self._wake_fd = made = WakeFd()
            self.on_wake(made.signal)
        return self._wake_fd.fileno()

    @property
    def assigned(self) -> list[MessageQueue]:
        """The queues this member consumes just now."""
        return sorted(queue.message_queue for queue in self._assignment.queues)

    # ---- fetching --------------------------------------------------------------------------------

    def take(self, timeout: float) -> _Item | None:
        """As try_next, but nothing is settled by it; for whoever settles on his own."""
        ready = self._ready
        while True:  # bounded: what was dropped goes, what is fetched ends it, or the time does
            if not ready and not self._fetch(timeout, 1, is_told=False):
                return None
            item = ready.popleft()
            if not item[0].is_dropped:
                return item

    @property
    def ready_count(self) -> int:
        """Messages that were read and not handed out yet."""
        return len(self._ready)

    def _settle_received(self) -> None:
        if self._last is not None:
            queue, offset = self._last
            self._last = None
            if offset not in queue.held:
                queue.settle_offset(offset)
        if self._received:
            received, self._received = self._received, []
            for queue, items in itertools.groupby(received, key=_queue_of):
                held = queue.held
                queue.settle_run([offset for _, offset, _ in items if offset not in held])
        if self._runs:
            runs, self._runs = self._runs, []
            for queue, offsets in runs:
                held = queue.held
                queue.settle_run([at for at in offsets if at not in held] if held else offsets)

    def _fetch(self, timeout: float, wanted: int, *, is_told: bool = True) -> bool:
        """Fill `_ready`; False if there was nothing for `timeout` seconds."""
        deadline_ns = _deadline(timeout)
        while not self._read_round(wanted):
            if not self._wait(deadline_ns, is_told=is_told):
                return False
        return True

    def _wait(self, deadline_ns: int, *, is_told: bool = True) -> bool:
        """Sleep until there may be something; False when the time is up or the consumer closed.
        Whoever `is_told` hears that the broker denies it the topic or group, instead of waiting.
        """
        if self._is_stopped:
            return False
        if is_told and self._assignment.denial is not None:
            raise self._assignment.denial
        self._client.check(f"consume {self.topic}")
        left_s = (deadline_ns - SYSTEM_CLOCK.monotonic_ns()) / 1e9
        if left_s <= 0:
            if self._wake_fd is not None:
                self._arm(self._wake_fd)
            return False
        self._sleep(left_s)
        return not self._is_stopped

    def _read_round(self, wanted: int) -> bool:
        """Look at each queue, beginning with another one each time, until `wanted` are ready."""
        if self._again:
            self._take_again()
        ready = self._ready
        queues = self._assignment.queues
        self._turn = turn = self._turn + 1
        for index in range(len(queues)):
            queue = queues[(turn + index) % len(queues)]
            room = queue.room()
            if room and self._read(queue, min(room, PULL_BATCH)) and len(ready) >= wanted:
                return True
        return bool(ready)

    def _read(self, queue: ProcessQueue, count: int) -> bool:
        first = queue.next_offset
        found = self.read_from(queue, first, count)
        if found is None:
            return False
        messages, next_offset = found
        if len(messages) == next_offset - first:
            offsets: Sequence[int] = range(first, next_offset)
        else:
            offsets = [message.queue_offset for message in messages]
        queue.take(offsets, sum(map(len, messages)), next_offset)
        self._ready.extend(zip(itertools.repeat(queue), offsets, messages))  # repeat has no end
        return bool(messages)

    def read_from(
        self, queue: ProcessQueue, first: int, count: int
    ) -> tuple[list[core.Message], int] | None:
        """Messages that match, and where to go on; None: not now. Takes none of them."""
        if queue.retry_ns and not _may_retry(queue):
            return None
        codes = self._tag_codes
        try:
            if self._cold.is_sent_on(queue.message_queue):
                status = _OFFSET_TOO_SMALL
            else:
                status, messages, next_offset = queue.reader.read(
                    queue.row,
                    queue.generation,
                    first,
                    count,
                    codes,
                    False,  # verify; positional, which is a third quicker
                    0.0,
                    queue,
                )
            if status in (_OFFSET_TOO_SMALL, _TIMED_OUT, _CLOSED):
                if not self.may_block:
                    self._slow.append(queue)
                    return None
                status, messages, next_offset = self._read_cold(queue, first, count)
        except ShmqError as error:
            _log.debug("read %s: %s", queue.message_queue, error)
            queue.retry_ns = SYSTEM_CLOCK.monotonic_ns() + _READ_RETRY_NS
            return None
        if status == _FENCED:
            self._assignment.want_rebalance()
        if status not in (_FOUND, _EMPTY):
            queue.retry_ns = SYSTEM_CLOCK.monotonic_ns() + _READ_RETRY_NS
            return None
        if codes is not None:
            passes = self._subscription.passes_tag
            messages = [message for message in messages if passes(message.tag)]
        return messages, next_offset

    def _read_cold(
        self, queue: ProcessQueue, first: int, count: int
    ) -> tuple[int, list[core.Message], int]:
        """What has left memory; who does not map the log gets copies of everything so."""
        try:
            place = Place(
                queue.message_queue, queue.link, queue.reader, queue.row, queue.generation
            )
            found = self._cold.read(place, first, count, keeper=queue)
        except OffsetIllegalError:
            self._assignment.want_rebalance()
            raise
        if found.is_expired:
            _log.warning(
                "expired unread group=%s topic=%s broker=%s queue_id=%d messages=%d",
                self.group,
                *queue.message_queue,
                found.next_offset - first,
            )
            self.expired_count += found.next_offset - first
        return found.status, found.messages, found.next_offset

    def _sleep(self, timeout: float) -> None:
        """Wait for something new in any queue, for a change, or the end of the time."""
        readers, timeout = self.watch(timeout)
        if not readers:
            self._changed.wait(timeout)
            self._changed.clear()
            return
        try:
            if len(readers) == 1:
                readers[0].wait(timeout)
            else:
                core.Reader.wait_any(readers, timeout)
        except ClosedError:
            self._changed.wait(min(timeout, 0.01))

    def _arm(self, wake_fd: WakeFd) -> None:
        readers, timeout = self.watch(_FOR_EVER_S)
        links = {queue.link: None for queue in self._assignment.queues}
        wake_fd.arm(readers, links, timeout if timeout < _FOR_EVER_S else None)

    def watch(
        self, timeout: float, *, without: Container[MessageQueue] = ()
    ) -> tuple[tuple[core.Reader, ...], float]:
        """The readers to wait on, watching what there is to watch, `without` these queues, and
        seconds until there is something to do anyway, at most `timeout`.
        """
        readers: dict[core.Reader, None] = {}
        now_ns = SYSTEM_CLOCK.monotonic_ns()
        for queue in self._assignment.queues:
            reader = queue.reader
            try:
                if queue.is_full or queue.retry_ns or queue.message_queue in without:
                    reader.unwatch(queue.row)
                    if queue.retry_ns:
                        timeout = min(timeout, max(0.0, (queue.retry_ns - now_ns) / 1e9))
                else:
                    reader.watch(queue.row, queue.generation, queue.next_offset)
                readers[reader] = None
            except ClosedError:
                continue  # its session has ended; the keeper brings another
        if self._again:
            timeout = min(timeout, max(0.0, (self._again[0][0] - now_ns) / 1e9))
        return tuple(readers), timeout

    @property
    def has_slow(self) -> bool:
        """Whether something is left to read_slow()."""
        return bool(self._slow)

    def read_slow(self, read: Callable[[ProcessQueue], object] | None = None) -> bool:
        """Read what a read that may not block has left, by `read` where somebody else than this
        keeps it; whether there was anything. Blocks up to some seconds; nobody else may receive
        meanwhile.
        """
        slow, self._slow = self._slow, []
        self.may_block = True
        try:
            for queue in dict.fromkeys(slow):
                if not queue.is_dropped:
                    (read or self._read_more)(queue)
        finally:
            self.may_block = False
        return bool(slow)

    def _read_more(self, queue: ProcessQueue) -> None:
        room = queue.room()
        if room:
            self._read(queue, min(room, PULL_BATCH))

    # ---- columns ---------------------------------------------------------------------------------

    def _columns_of_ready(self, max_count: int) -> MessageBatch | None:
        """What was read as messages before goes first: it stays in order."""
        if self._again:
            self._take_again()
        ready = self._ready
        while ready and ready[0][0].is_dropped:
            ready.popleft()
        if not ready:
            return None
        queue = ready[0][0]
        items: list[_Item] = []
        while ready and ready[0][0] is queue and len(items) < max_count:
            items.append(ready.popleft())
        if self._auto_settle and not self._is_stopped:
            self._received = items
        return MessageBatch.of_messages(queue, [message for _, _, message in items])

    def _read_columns(self, max_count: int) -> MessageBatch | None:
        queues = self._assignment.queues
        self._turn = turn = self._turn + 1
        for index in range(len(queues)):
            queue = queues[(turn + index) % len(queues)]
            room = min(queue.room(), max_count)
            if room <= 0 or (queue.retry_ns and not _may_retry(queue)):
                continue
            if self._cold.is_sent_on(queue.message_queue):
                if self._read(queue, min(room, PULL_BATCH)):
                    return self._columns_of_ready(max_count)
                continue
            first = queue.next_offset
            try:
                status, columns, next_offset = queue.reader.read_columns(
                    queue.row,
                    queue.generation,
                    first,
                    room,
                    self._tag_codes,
                    False,
                    0.0,
                )
            except ShmqError as error:
                _log.debug("read %s: %s", queue.message_queue, error)
                queue.retry_ns = SYSTEM_CLOCK.monotonic_ns() + _READ_RETRY_NS
                continue
            is_cold = status in (_OFFSET_TOO_SMALL, _TIMED_OUT, _CLOSED)
            if is_cold and not self.may_block:
                self._slow.append(queue)
                continue
            if is_cold or (len(columns) and self._tag_codes is not None):
                # Cold entries come as messages, and a tag is compared message by message.
                if self._read(queue, min(room, PULL_BATCH)):
                    return self._columns_of_ready(max_count)
                continue
            if status == _FENCED:
                self._assignment.want_rebalance()
            if status not in (_FOUND, _EMPTY):
                queue.retry_ns = SYSTEM_CLOCK.monotonic_ns() + _READ_RETRY_NS
                continue
            batch = MessageBatch.of_columns(queue, columns)
            queue.take(batch.offset_list, batch.body_bytes, next_offset)
            if len(batch):
                if self._auto_settle:
                    self._runs.append((queue, batch.offset_list))
                return batch
        return None

    # ---- again -----------------------------------------------------------------------------------

    def deliver_again(self, queue: ProcessQueue, message: core.Message) -> None:
        """A message could not be processed: it comes again, later each time. Any thread."""
        fails = queue.fails.get(message.queue_offset, 1)
        delay_ns = min(REDELIVER_FIRST_NS << min(fails - 1, 20), REDELIVER_MAX_NS)
        self.deliver_at(queue, message, SYSTEM_CLOCK.monotonic_ns() + delay_ns)

    def deliver_at(self, queue: ProcessQueue, message: core.Message, due_ns: int) -> None:
        """Hand a message out again, not before a monotonic time. Any thread."""
        heapq.heappush(  # one call into C: threads do not meet in it
            self._again, (due_ns, next(self._again_numbers), queue, message)
        )
        self.wake()

    def _take_again(self) -> None:
        now_ns = SYSTEM_CLOCK.monotonic_ns()
        while self._again and self._again[0][0] <= now_ns:
            _, _, queue, message = heapq.heappop(self._again)
            if not queue.is_dropped:
                offset = message.queue_offset
                queue.held.discard(offset)
                self._ready.append((queue, offset, message))

    def room_again(self, queue: ProcessQueue) -> None:
        """A full queue may be read on. Any thread."""
        if queue.is_full:
            queue.is_full = False
            self.wake()

    def wake(self) -> None:
        """Have the receiving thread look at everything again. Any thread."""
        self._changed.set()
        for reader in self._assignment.readers():
            try:
                reader.wake()
            except ShmqError:
                continue
        for waker in tuple(self._wakers):
            waker()

    def on_wake(self, waker: Callable[[], None]) -> None:
        """Call `waker` whenever there may be something other than a new message; in any thread."""
        self._wakers.append(waker)

    # ---- what the client tells -------------------------------------------------------------------

    @property
    def assignment(self) -> Assignment:
        """Which queues are this member's, and why."""
        return self._assignment

    # ---- ending ----------------------------------------------------------------------------------

    def stop(self) -> None:
        """Hand nothing out any more; who waits gets up. Messages may still be settled."""
        self._is_stopped = True
        self.wake()

    def close(self) -> None:
        """Give the queues back and leave the group. What was received and not settled is delivered
        again.
        """
        if self._is_closed or self._client.is_forked:
            return
        self._is_closed = True
        self.stop()
        self._client.leave(self)
        self._cold.close()
        if self._wake_fd is not None:
            self._wake_fd.close()
        # Others, not emptied ones: another thread may be taking from these just now. They must go,
        # for messages know their consumer and the collector of cycles does not know messages.
        self._ready = deque()
        self._again = []
        self._received = []


def _queue_of(item: _Item) -> ProcessQueue:
    return item[0]


def _may_retry(queue: ProcessQueue) -> bool:
    """Whether the time after a read that failed is over."""
    if SYSTEM_CLOCK.monotonic_ns() < queue.retry_ns:
        return False
    queue.retry_ns = 0
    return True


def _deadline(timeout: float) -> int:
    return SYSTEM_CLOCK.monotonic_ns() + int(timeout * 1e9)
