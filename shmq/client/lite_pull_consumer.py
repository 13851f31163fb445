"""LitePullConsumer: a program that asks for its messages itself, of queues that are shared out to
it or that it chose (RocketMQ's DefaultLitePullConsumer).

What lives here: `LitePullConsumer`: the position of each queue, what is paused, and what is
committed when. It reads and waits with one `Consumer` for each topic, none of whose messages are
settled one by one: a commit is a queue_offset. Which process: the program's; one thread polls, any
may pause, seek and commit. Writes: progress in the consumer pages; where queues were assigned by
hand, offsets by request. May fail: as Client.consumer; OffsetIllegalError.
"""

from __future__ import annotations

import itertools
import logging
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from shmq.client.arguments import (
    check_count,
    check_message_queue,
    check_queue_offset,
    check_time,
    check_timeout,
)
from shmq.client.closable import Closable
from shmq.client.consumer import Consumer
from shmq.clock import SYSTEM_CLOCK
from shmq.core import core
from shmq.errors import (
    ClosedError,
    ConfigError,
    OffsetIllegalError,
    ServiceNotAvailableError,
    ShmqError,
)
from shmq.result import MessageQueue
from shmq.subscription import ConsumeFromWhere

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType

    from shmq.allocation import Allocation
    from shmq.client.instance import Client
    from shmq.client.process_queue import ProcessQueue

    QueueListener = Callable[[str, list[MessageQueue], list[MessageQueue]], object]

    _Found = tuple[int, list[core.Message], int]
    """queue_offset it begins at, what passes the filter, queue_offset to go on at."""

__all__ = ["LitePullConsumer"]

_log = logging.getLogger("shmq.client")

PULL_BATCH_SIZE = 10
"""RocketMQ's pullBatchSize of a lite pull consumer."""
POLL_TIMEOUT_S = 5.0
"""RocketMQ's pollTimeoutMillis."""
AUTO_COMMIT_INTERVAL_S = 5.0
"""RocketMQ's autoCommitIntervalMillis."""
_LOOK_S = 1.0
"""A poll without any reader to wait on looks so often whether there is one."""
_FOR_EVER_S = 3600.0
"""One poll of an iteration; whatever happens meanwhile ends it."""


class LitePullConsumer(Closable):
    """A group's member that polls. A context manager; closing it commits if auto_commit is on.

    Either `subscribe`: the queues of the topics are shared out among the members of the group; or
    `assign`: it reads just these, and is no member.

    Messages of one poll count as consumed when the next poll begins: auto_commit commits up to
    there, each interval_s and when the consumer closes. Who iterates over it polls one message at
    a time.

    Example:
        with client.lite_pull_consumer("billing") as consumer:
            consumer.subscribe("orders", "new || paid")
            while True:
                for message in consumer.poll():
                    print(bytes(message))
    """

    def __init__(
        self,
        client: Client,
        group: str,
        *,
        auto_commit: bool,
        auto_commit_interval: float,
        batch_size: int,
        from_where: ConsumeFromWhere,
        from_time: float | None,
        allocation: Allocation,
    ) -> None:
        """By Client.lite_pull_consumer()."""
        check_count("lite pull", "batch_size", batch_size)
        check_timeout("lite pull: auto_commit_interval", auto_commit_interval)
        self.group = group
        """The group whose offsets are committed."""
        self.auto_commit = auto_commit
        """Whether polls commit what earlier polls gave; may be changed."""
        self._client = client
        self._interval_ns = int(auto_commit_interval * 1e9)
        self._commit_ns = SYSTEM_CLOCK.monotonic_ns() + self._interval_ns
        self._batch_size = batch_size
        self._from_where = from_where
        self._from_time = from_time
        self._allocation = allocation
        self._engines: dict[str, Consumer] = {}
        self.is_assigned = False
        """Whether queues were assigned by hand: a commit of these waits for their broker."""
        self._expressions: dict[str, str | None] = {}
        self.listener: QueueListener | None = None
        """Told of `changes`."""
        self.may_block = True
        """Whether a read may wait for a broker; if not, it is left to read_slow()."""
        self._wakers: list[Callable[[], None]] = []
        self._seen: dict[str, frozenset[MessageQueue]] = {}
        self._paused: frozenset[MessageQueue] = frozenset()
        self._polled: dict[ProcessQueue, int] = {}
        self._last: tuple[ProcessQueue, int] | None = None
        """Where the last poll that gave something began."""
        self._ahead: dict[ProcessQueue, _Found] = {}
        """What was read and not given yet."""
        self._turn = 0
        self._lock = threading.Lock()
        self._polling = threading.Lock()
        self._changed = threading.Event()
        self._is_closed = False

    # ---- which queues ----------------------------------------------------------------------------

    def subscribe(
        self, topic: str, filter: str | None = None, *, listener: QueueListener | None = None
    ) -> None:
        """Have queues of a topic shared out to this member; may be called for several topics.

        Args:
            topic: the topic.
            filter: tags, "a || b"; None: all messages.
            listener: called in poll with (topic, queues before, queues now) when they changed.

        Raises:
            ConfigError: queues were assigned by hand; one or the other.
            What Client.consumer raises.
        """
        self._check("subscribe")
        if self.is_assigned:
            raise ConfigError(
                f"subscribe to {topic}: queues were assigned to this consumer by hand; subscribe "
                "and assign exclude each other"
            )
        if listener is not None:
            self.listener = listener
        self._begin(topic, filter, queues=None)

    def unsubscribe(self, topic: str) -> None:
        """Give the queues of a topic back, committed if auto_commit is on."""
        self._check("unsubscribe")
        self._end(topic)

    def set_filter(self, topic: str, filter: str | None) -> None:
        """For `assign`: pass these tags of a topic only; before its queues are assigned."""
        self._check("set a filter")
        self._expressions[topic] = filter

    def assign(self, queues: Iterable[MessageQueue]) -> None:
        """Read just these queues, whatever other members do; replaces what was assigned before.

        They go on where the group's offsets stand. Nobody else is kept from them.

        Raises:
            ConfigError: topics were subscribed to; one or the other. Or no queue.
            TopicNotExistError: a topic, or a queue of it, is not there. It is assigned, and read
                once it is.
        """
        self._check("assign")
        if self._engines and not self.is_assigned:
            raise ConfigError(
                f"assign queues: this consumer subscribed to {', '.join(sorted(self._engines))}; "
                "subscribe and assign exclude each other"
            )
        wanted: dict[str, set[MessageQueue]] = {}
        for queue in queues:
            check_message_queue("assign", queue)
            wanted.setdefault(queue.topic, set()).add(queue)
        if not wanted:
            raise ConfigError("assign queues: none were given; take some of fetch_queues(topic)")
        self.is_assigned = True
        for topic in self._engines.keys() - wanted.keys():
            self._end(topic)
        for topic, chosen in wanted.items():
            engine = self._engines.get(topic)
            if engine is None:
                self._begin(topic, self._expressions.get(topic), queues=frozenset(chosen))
                engine = self._engines[topic]
            else:
                engine.assignment.assign(frozenset(chosen))
            if {queue.message_queue for queue in engine.assignment.queues} != chosen:
                with suppress(ServiceNotAvailableError):  # it is waited for
                    engine.assignment.rebalance()

    def _begin(
        self, topic: str, expression: str | None, *, queues: frozenset[MessageQueue] | None
    ) -> None:
        engine = Consumer(
            self._client,
            topic,
            self.group,
            filter=expression,
            from_where=self._from_where,
            from_time=self._from_time,
            allocation=self._allocation,
            auto_settle=False,
            queues=queues,
        )
        engine.may_block = self.may_block
        engine.on_wake(self._call_wakers)
        self._client.join(engine)
        with self._lock:
            self._engines[topic] = engine
        self._call_wakers()

    def _end(self, topic: str) -> None:
        try:
            if self.auto_commit:
                self.commit_places(self._places_polled(topic))
        finally:
            with self._lock:
                engine = self._engines.pop(topic, None)
            if engine is not None:
                engine.close()

    def fetch_queues(self, topic: str) -> list[MessageQueue]:
        """All read queues of a topic, sorted; for `assign`.

        Raises:
            TopicNotExistError: no broker has it.
        """
        with self._client.pull_consumer(topic) as pull:
            return pull.queues()

    @property
    def assignment(self) -> list[MessageQueue]:
        """The queues that are polled now, those that are paused included."""
        return sorted(itertools.chain.from_iterable(e.assigned for e in self._all()))

    def _all(self) -> list[Consumer]:
        with self._lock:
            return list(self._engines.values())

    def queues(self) -> Iterator[tuple[Consumer, ProcessQueue]]:
        """Those of `assignment`, as they are consumed."""
        for engine in self._all():
            for queue in engine.assignment.queues:
                yield engine, queue

    # ---- messages --------------------------------------------------------------------------------

    def poll(self, timeout: float = POLL_TIMEOUT_S) -> list[core.Message]:
        """Up to batch_size messages of one queue, in order; none if none came in `timeout` seconds.

        Raises:
            ClosedError: this consumer or its client is closed.
            PermissionDeniedError: there is nothing, and the right to a topic or to the group was
                taken away; names the rule.
        """
        self._check("poll")
        check_timeout("poll", timeout)
        return self._poll(timeout, self._batch_size)

    def __iter__(self) -> Iterator[core.Message]:
        """Messages, for ever: blocks while there is none; each counts as consumed when the next is
        asked for. Ends when the consumer is closed.

        Raises:
            ClosedError: it, or its client, was closed before.
        """
        self._check("poll")
        return self._messages()

    def _messages(self) -> Iterator[core.Message]:
        while not self._is_closed:
            try:
                messages = self._poll(_FOR_EVER_S, 1)
            except ClosedError:
                return
            yield from messages

    def _poll(self, timeout: float, count: int) -> list[core.Message]:
        with self._polling:
            self.commit_when_due()
            deadline_ns = SYSTEM_CLOCK.monotonic_ns() + int(timeout * 1e9)
            while True:  # bounded by the deadline
                for change in self.changes():
                    if self.listener is not None:
                        self.listener(*change)
                messages = self.read_round(count)
                left_s = (deadline_ns - SYSTEM_CLOCK.monotonic_ns()) / 1e9
                if messages or self._is_closed:
                    return messages
                self.check_denied()
                if left_s <= 0:
                    return messages
                self._sleep(left_s)
                self._client.check("poll")
                self.commit_when_due()

    def read_round(self, count: int | None = None) -> list[core.Message]:
        """What a poll gives now, up to `count` messages, None: batch_size. Blocks where may_block
        is on; one caller at a time.
        """
        wanted = self._batch_size if count is None else count
        self._forget_dropped()
        queues = list(self.queues())
        self._turn = turn = self._turn + 1
        for index in range(len(queues)):
            engine, queue = queues[(turn + index) % len(queues)]
            if queue.message_queue in self._paused:
                continue
            found = self._read_ahead(engine, queue)
            if found is None:
                continue
            first, messages, next_offset = found
            rest = messages[wanted:]
            if rest:
                messages = messages[:wanted]
                end_offset, next_offset = next_offset, messages[-1].queue_offset + 1
                self._ahead[queue] = next_offset, rest, end_offset
            else:
                del self._ahead[queue]
            with self._lock:
                if queue.is_dropped or queue.next_offset != first:
                    continue  # revoked, or sought elsewhere, while it was read
                queue.next_offset = next_offset
                self._polled[queue] = next_offset
                if messages:
                    self._last = queue, first
            if messages:
                return messages
        return []

    def check_denied(self) -> None:
        """Return if no broker denies any of the topics, or the group.

        Raises:
            PermissionDeniedError: names the rule.
        """
        for engine in self._all():
            if engine.assignment.denial is not None:
                raise engine.assignment.denial

    def _read_ahead(self, engine: Consumer, queue: ProcessQueue) -> _Found | None:
        """What comes next in a queue, a batch at most; taken by nobody yet."""
        first = queue.next_offset
        ahead = self._ahead.get(queue)
        if ahead is None or ahead[0] != first:  # it was sought elsewhere
            self._ahead.pop(queue, None)
            found = engine.read_from(queue, first, self._batch_size)
            if found is None:
                return None
            ahead = self._ahead[queue] = first, *found
        return ahead

    def _forget_dropped(self) -> None:
        for queue in tuple(self._ahead):
            if queue.is_dropped:
                del self._ahead[queue]

    @property
    def has_slow(self) -> bool:
        """Whether something is left to read_slow()."""
        return any(engine.has_slow for engine in self._all())

    def read_slow(self) -> None:
        """Read what a read that may not block has left, for the next read_round(). Blocks up to
        some seconds; nobody else may read meanwhile.
        """
        for engine in self._all():
            engine.read_slow(partial(self._read_ahead, engine))

    def watch(self, timeout: float) -> tuple[tuple[core.Reader, ...], float]:
        """The readers to wait on, watching what there is to watch, and seconds until there is
        something to do anyway, at most `timeout`.
        """
        timeout = min(timeout, self._until_commit_s())
        readers: dict[core.Reader, None] = {}
        for engine in self._all():
            found, timeout = engine.watch(timeout, without=self._paused)
            readers.update(dict.fromkeys(found))
        return tuple(readers), timeout

    def _sleep(self, timeout: float) -> None:
        readers, timeout = self.watch(timeout)
        if self._changed.is_set() or not readers:
            self._changed.wait(min(timeout, _LOOK_S))
            self._changed.clear()
            return
        try:
            core.Reader.wait_any(readers, timeout)
        except ClosedError:
            self._changed.wait(min(timeout, 0.01))

    def changes(self) -> Iterator[tuple[str, list[MessageQueue], list[MessageQueue]]]:
        """(topic, queues before, queues now) for each topic whose queues are others than when this
        was asked last.
        """
        for engine in self._all():
            now = frozenset(engine.assigned)
            before = self._seen.get(engine.topic)
            if now != before:
                self._seen[engine.topic] = now
                yield engine.topic, sorted(before or ()), sorted(now)

    def pause(self, queues: Iterable[MessageQueue]) -> None:
        """Give nothing of these any more; their positions stay."""
        chosen = _checked("pause", queues)
        with self._lock:
            self._paused |= chosen

    def resume(self, queues: Iterable[MessageQueue]) -> None:
        """Go on with these where they are."""
        chosen = _checked("resume", queues)
        with self._lock:
            self._paused -= chosen
        self._wake()

    @property
    def paused(self) -> list[MessageQueue]:
        """Those that are paused."""
        return sorted(self._paused)

    # ---- places ----------------------------------------------------------------------------------

    def seek(self, queue: MessageQueue, queue_offset: int) -> None:
        """Have the next poll of this queue begin there; nothing is committed by it.

        Raises:
            OffsetIllegalError: no such place, or the queue is not assigned to this consumer.
        """
        check_queue_offset("seek", queue_offset)
        self._seek(queue, lambda _: queue_offset)

    def seek_to_begin(self, queue: MessageQueue) -> None:
        """To the first message kept. Raises as `seek`."""
        self._seek(queue, lambda one: one.reader.min_queue_offset(one.row))

    def seek_to_end(self, queue: MessageQueue) -> None:
        """Behind the last message. Raises as `seek`."""
        self._seek(queue, lambda one: one.reader.visible_max(one.row))

    def _seek(self, queue: MessageQueue, place: Callable[[ProcessQueue], int]) -> None:
        one = self._one(queue, "seek")
        first, last = one.reader.min_queue_offset(one.row), one.reader.visible_max(one.row)
        queue_offset = place(one)
        if not first <= queue_offset <= last:
            raise OffsetIllegalError(
                f"seek in queue {queue.queue_id} of {queue.topic} at {queue.broker_name} to "
                f"{queue_offset}: it has {first} to {last}"
            )
        with self._lock:
            one.next_offset = queue_offset
            self._polled[one] = queue_offset
            if self._last is not None and self._last[0] is one:
                self._last = None
        self._wake()

    def position(self, queue: MessageQueue) -> int:
        """The queue_offset that the next poll of this queue begins at.

        Raises:
            OffsetIllegalError: it is not assigned to this consumer.
        """
        return self._one(queue, "position").next_offset

    def offset_for_time(self, queue: MessageQueue, time: float) -> int:
        """queue_offset of the first message stored at or after a time, seconds since 1970."""
        check_message_queue("offset_for_time", queue)
        check_time("offset_for_time", time)
        link = self._client.reading_link(queue.broker_name)
        return link.search_offset(queue.topic, queue.queue_id, int(time * 1000))

    def _one(self, queue: MessageQueue, what: str) -> ProcessQueue:
        self._check(what)
        check_message_queue(what, queue)
        for _, one in self.queues():
            if one.message_queue == queue:
                return one
        raise OffsetIllegalError(
            f"{what} in queue {queue.queue_id} of {queue.topic} at {queue.broker_name}: it is not "
            "assigned to this consumer; see LitePullConsumer.assignment"
        )

    # ---- commits ---------------------------------------------------------------------------------

    def commit(self, offsets: Mapping[MessageQueue, int] | None = None) -> None:
        """Say how far the group is: where the positions are, or at these queue_offsets.

        Raises:
            OffsetIllegalError: a queue is not assigned to this consumer.
            ServiceNotAvailableError: queues assigned by hand, and their broker is away.
        """
        self.commit_places(self.places(offsets))

    def places(self, offsets: Mapping[MessageQueue, int] | None) -> dict[ProcessQueue, int]:
        """What `commit` is to commit: these queue_offsets, checked, or what was polled. Asks
        nobody.

        Raises:
            OffsetIllegalError: no such place, or a queue is not assigned to this consumer.
        """
        self._check("commit")
        if offsets is None:
            return self._places_polled(None)
        places: dict[ProcessQueue, int] = {}
        for queue, queue_offset in offsets.items():
            check_message_queue("commit", queue)
            check_queue_offset("commit", queue_offset)
            one = self._one(queue, "commit")
            last = one.reader.visible_max(one.row)
            if not 0 <= queue_offset <= last:
                raise OffsetIllegalError(
                    f"commit {queue_offset} in queue {queue.queue_id} of {queue.topic} at "
                    f"{queue.broker_name}: its messages end at {last}"
                )
            places[one] = queue_offset
        return places

    def committed(self, queue: MessageQueue) -> int | None:
        """The group's offset in a queue, as far as it was committed; None: none yet."""
        self._check("ask for the committed offset")
        check_message_queue("committed", queue)
        for _, one in self.queues():
            if one.message_queue == queue and one.slot >= 0:
                return one.settled_offset
        link = self._client.reading_link(queue.broker_name)
        return link.consumer_offset(self.group, queue.topic, queue.queue_id)

    @property
    def is_commit_due(self) -> bool:
        """Whether commit_when_due() commits."""
        return self.auto_commit and SYSTEM_CLOCK.monotonic_ns() >= self._commit_ns

    def commit_when_due(self) -> None:
        """Commit what was polled, if auto_commit is on and its interval over."""
        if not self.is_commit_due:
            return
        self._commit_ns = SYSTEM_CLOCK.monotonic_ns() + self._interval_ns
        try:
            self.commit_places(self._places_polled(None))
        except ShmqError as error:
            _log.debug("commit group=%s: %s", self.group, error)  # the next one says it again

    def _until_commit_s(self) -> float:
        if not self.auto_commit or not self._polled:
            return _FOR_EVER_S
        return max(0.001, (self._commit_ns - SYSTEM_CLOCK.monotonic_ns()) / 1e9)

    def _places_polled(self, topic: str | None) -> dict[ProcessQueue, int]:
        with self._lock:
            return {
                one: queue_offset
                for one, queue_offset in self._polled.items()
                if topic is None or one.message_queue.topic == topic
            }

    def commit_places(self, places: Mapping[ProcessQueue, int]) -> None:
        """Commit what `places` gave. Blocks where queues were assigned by hand.

        Raises:
            As `commit`.
        """
        for one, queue_offset in places.items():
            self._commit(one, queue_offset)
            with self._lock:
                if self._polled.get(one) == queue_offset:
                    del self._polled[one]

    def _commit(self, one: ProcessQueue, queue_offset: int) -> None:
        if one.is_dropped:
            return  # it is another member's now, and so are its offsets
        if one.slot < 0:
            where = one.message_queue
            link = self._client.reading_link(where.broker_name)
            link.set_consumer_offset(self.group, where.topic, where.queue_id, queue_offset)
        one.commit(queue_offset)

    # ---- ending ----------------------------------------------------------------------------------

    def _check(self, what: str) -> None:
        if self._is_closed:
            raise ClosedError(f"{what}: this lite pull consumer is closed")
        self._client.check(what)

    def _wake(self) -> None:
        self._call_wakers()
        for engine in self._all():
            engine.wake()

    def _call_wakers(self) -> None:
        self._changed.set()
        for waker in tuple(self._wakers):
            waker()

    def on_wake(self, waker: Callable[[], None]) -> None:
        """Call `waker` whenever there may be something other than a new message; in any thread."""
        self._wakers.append(waker)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            self.give_back()
        super().__exit__(exc_type, exc, traceback)

    def give_back(self) -> None:
        """The program failed with what the last poll gave: it does not count as consumed."""
        with self._lock:
            if self._last is not None and self._last[0] in self._polled:
                queue, first = self._last
                self._polled[queue] = first

    def close(self) -> None:
        """Commit if auto_commit is on, give the queues back and leave the group. A poll that waits
        gets up with nothing.
        """
        if self._is_closed or self._client.is_forked:
            return
        self._is_closed = True
        self._wake()
        with self._polling:
            for topic in tuple(self._engines):
                try:
                    self._end(topic)
                except ShmqError as error:
                    _log.warning("commit group=%s topic=%s: %s", self.group, topic, error)
            self._ahead = {}  # messages know their consumer, and no collector of cycles knows them
        self._client.leave(self)


def _checked(what: str, queues: Iterable[MessageQueue]) -> frozenset[MessageQueue]:
    if isinstance(queues, MessageQueue):  # which is a tuple
        raise TypeError(f"{what}: one queue, wanted several: [{queues!r}]")
    chosen = tuple(queues)
    for queue in chosen:
        check_message_queue(what, queue)
    return frozenset(chosen)
