"""PullConsumer: any queue of a topic, read from any queue_offset, for whoever keeps count himself.

What lives here: `PullConsumer`. It belongs to no group, claims nothing and stores nothing: tools,
replays and exactly-once sinks that keep the queue_offset with their own data. Which process: the
program's; one thread at a time. Writes nothing. May fail: OffsetIllegalError,
ServiceNotAvailableError while the broker of a queue is away for the first time.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

from shmq.client.arguments import (
    check_count,
    check_filter,
    check_message_queue,
    check_queue_offset,
    check_time,
    check_timeout,
)
from shmq.client.closable import Closable
from shmq.client.cold_reader import ColdReader, Place
from shmq.clock import SYSTEM_CLOCK
from shmq.core import core
from shmq.errors import (
    ClosedError,
    ServiceNotAvailableError,
    ShmqError,
    TopicNotExistError,
    for_status,
)
from shmq.result import MessageQueue, PullResult
from shmq.status import PullStatus
from shmq.subscription import SubscriptionData
from shmq.topic import check_topic

if TYPE_CHECKING:
    from shmq.client.broker_link import BrokerLink
    from shmq.client.instance import Client

__all__ = ["PullConsumer"]

_FOUND = core.STATUS["OK"][0]
_EMPTY = core.STATUS["EMPTY"][0]
_TOO_SMALL = core.STATUS["OFFSET_TOO_SMALL"][0]
_TIMED_OUT = core.STATUS["TIMED_OUT"][0]
_CLOSED = core.STATUS["CLOSED"][0]
_FENCED = core.STATUS["FENCED"][0]
_NAMES = {value: name for name, (value, _) in core.STATUS.items()}
_LOOK_S = 1.0
"""A pull that waits looks whether its session is the broker's current one."""


class _Place(NamedTuple):
    link: BrokerLink
    link_generation: int
    reader: core.Reader
    row: int
    generation: int


class PullConsumer(Closable):
    """Reads a topic by queue and queue_offset. A context manager.

    Example:
        with client.pull_consumer("orders") as consumer:
            for queue in consumer.queues():
                result = consumer.pull(queue, consumer.min_offset(queue))
    """

    def __init__(self, client: Client, topic: str, *, expression: str | None) -> None:
        """By Client.pull_consumer()."""
        self.topic = topic
        """The topic."""
        self._client = client
        check_topic(topic)
        check_filter(topic, expression)
        self._subscription = SubscriptionData.parse(topic, expression)
        self._tag_codes = tuple(sorted(self._subscription.code_set)) or None
        self._bell = client.next_bell()
        self._cold = ColdReader(
            client,
            topic,
            "",
            expression=self._subscription.sub_string,
            tag_codes=self._tag_codes,
            bell=self._bell,
        )
        self._places: dict[MessageQueue, _Place] = {}
        self._readers: dict[BrokerLink, tuple[int, core.Reader]] = {}
        self._belled: set[tuple[BrokerLink, int, int]] = set()
        self._lock = threading.Lock()
        self._is_closed = False

    def queues(self) -> list[MessageQueue]:
        """All read queues of the topic, sorted.

        Raises:
            TopicNotExistError: no broker has it.
        """
        self._check()
        try:
            route = self._client.routes.route(self.topic, is_fresh=True)
        except TopicNotExistError as error:
            return self._ask_brokers(error)
        return sorted(
            MessageQueue(self.topic, data.broker_name, queue_id)
            for data in route.queue_datas
            for queue_id in range(data.read_queue_nums)
        )

    def _ask_brokers(self, refusal: TopicNotExistError) -> list[MessageQueue]:
        """A topic that was made this moment is in no route yet. A broker's refusal says more than
        the NameServer's, which is left where it knows of no broker.
        """
        found: list[MessageQueue] = []
        is_known = False
        for name in self._client.routes.cluster().brokers:
            try:
                queues = self._client.reading_link(name).read_queues(self.topic)
                found += [MessageQueue(self.topic, name, facts["queueId"]) for facts in queues]
                is_known = True
            except TopicNotExistError as error:
                refusal = error
        if not is_known:
            raise refusal
        return sorted(found)

    def min_offset(self, queue: MessageQueue) -> int:
        """queue_offset of the first message kept."""
        place = self._place(queue)
        return place.reader.min_queue_offset(place.row)

    def max_offset(self, queue: MessageQueue) -> int:
        """The queue_offset behind the last message that may be read."""
        place = self._place(queue)
        return place.reader.visible_max(place.row)

    def search_offset(self, queue: MessageQueue, time: float) -> int:
        """queue_offset of the first message stored at or after a time, seconds since 1970."""
        self._check()
        check_message_queue("search_offset", queue)
        check_time("search_offset", time)
        link = self._client.reading_link(queue.broker_name)
        return link.search_offset(queue.topic, queue.queue_id, int(time * 1000))

    def pull(
        self, queue: MessageQueue, queue_offset: int, max_count: int = 32, *, timeout: float = 0.0
    ) -> PullResult:
        """Up to `max_count` messages from queue_offset on; waits `timeout` seconds for the first.

        The result says where to go on: next_begin_offset. Outside of what is kept its pull_status
        is OFFSET_ILLEGAL, and next_begin_offset the nearest place there is.

        Raises:
            TopicNotExistError: there is no such queue.
            ServiceNotAvailableError: its broker was away from the first on.
            ClosedError: this consumer or its client is closed.
        """
        check_queue_offset("pull", queue_offset)
        check_count("pull", "max_count", max_count)
        check_timeout("pull", timeout)
        deadline_ns = SYSTEM_CLOCK.monotonic_ns() + int(timeout * 1e9)
        while True:  # bounded by the deadline
            place = self._place(queue)
            result = self._read(queue, place, queue_offset, max_count)
            if result is None:  # the row is another queue's now
                self._places.pop(queue, None)
                result = self._read(queue, self._place(queue), queue_offset, max_count)
                if result is None:
                    raise TopicNotExistError(f"pull from {queue}: its row changes all the time")
            left_s = (deadline_ns - SYSTEM_CLOCK.monotonic_ns()) / 1e9
            if result.pull_status is not PullStatus.NO_NEW_MSG or left_s <= 0:
                return result
            self._sleep(place, queue_offset, min(left_s, _LOOK_S))

    def _read(
        self, queue: MessageQueue, place: _Place, queue_offset: int, max_count: int
    ) -> PullResult | None:
        reader, row = place.reader, place.row
        first, last = reader.min_queue_offset(row), reader.visible_max(row)
        if not first <= queue_offset <= last:
            nearest = first if queue_offset < first else last
            return PullResult(PullStatus.OFFSET_ILLEGAL, nearest, first, last, [])
        status, messages, next_offset = _TOO_SMALL, list[core.Message](), queue_offset
        if not self._cold.is_sent_on(queue):
            status, messages, next_offset = reader.read(
                row, place.generation, queue_offset, max_count, self._tag_codes, False, 0.0
            )
        if status in (_TOO_SMALL, _TIMED_OUT, _CLOSED):
            at = Place(queue, place.link, reader, row, place.generation)
            found = self._cold.read(at, queue_offset, max_count)
            status, messages, next_offset, is_expired = found
            if is_expired:  # retention took it this moment
                return PullResult(PullStatus.OFFSET_ILLEGAL, next_offset, next_offset, last, [])
        if status == _FENCED:
            return None
        if status not in (_FOUND, _EMPTY, _TOO_SMALL):
            name = _NAMES.get(status, str(status))
            raise (for_status(name) or ShmqError)(
                f"pull from queue {queue.queue_id} of {queue.topic} at {queue.broker_name}, "
                f"queue_offset {queue_offset}: {core.STATUS[name][1]}"
            )
        if self._tag_codes is not None:
            messages = [m for m in messages if self._subscription.passes_tag(m.tag)]
        if messages:
            said = PullStatus.FOUND
        elif next_offset > queue_offset:
            said = PullStatus.NO_MATCHED_MSG
        else:
            said = PullStatus.NO_NEW_MSG
        return PullResult(said, next_offset, first, last, messages)

    def _sleep(self, place: _Place, queue_offset: int, timeout: float) -> None:
        key = place.link, place.row, place.generation
        if key not in self._belled:
            place.link.subscribe_bell(self._bell, [key[1:]])
            self._belled.add(key)
        try:
            place.reader.watch(place.row, place.generation, queue_offset)
            place.reader.wait(timeout)
            place.reader.unwatch(place.row)
        except ClosedError:
            if self._is_closed:
                raise

    def _check(self) -> None:
        if self._is_closed:
            raise ClosedError(f"pull from {self.topic}: this consumer is closed")
        self._client.check(f"pull from {self.topic}")

    def _place(self, queue: MessageQueue) -> _Place:
        self._check()
        check_message_queue("pull", queue)
        place = self._places.get(queue)
        if place is not None and self._is_current(place):
            return place
        if queue.topic != self.topic:
            raise TopicNotExistError(f"pull from {queue}: this consumer reads {self.topic}")
        link = self._client.reading_link(queue.broker_name)
        known = self._readers.get(link)
        if known is None or known[0] != link.generation:
            self._readers[link] = known = link.share_reader(self._bell)
            self._belled = {key for key in self._belled if key[0] is not link}
        for facts in link.read_queues(self.topic):
            key = MessageQueue(self.topic, link.broker_name, facts["queueId"])
            self._places[key] = _Place(link, *known, facts["row"], facts["generation"])
        if queue not in self._places:
            raise TopicNotExistError(
                f"pull from queue {queue.queue_id} of {queue.topic} at {queue.broker_name}: it has "
                "no such read queue"
            )
        return self._places[queue]

    def _is_current(self, place: _Place) -> bool:
        """Whether it may be read on; at a slave only as long as its master is away."""
        if place.link_generation != place.link.generation:
            return False
        link = place.link
        return not link.broker_id or self._client.reading_link(link.broker_name) is link

    def close(self) -> None:
        """Let go of everything; a pull that waits ends."""
        if self._client.is_forked:
            return
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        for link, row, generation in self._belled:
            try:
                link.unsubscribe_bell(self._bell, [(row, generation)])
            except ServiceNotAvailableError:
                continue
        for _, reader in self._readers.values():
            reader.close()
        self._cold.close()
        self._client.leave(self)
