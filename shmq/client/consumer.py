"""Consumer: a member of a group that reads its share of a topic in place.

What lives here: `Consumer`. Queues are shared out by the members themselves, claimed at their
brokers and read from shared memory; progress goes into the consumer page and is harvested there.
Which process: the program's; one thread uses a consumer. Writes: claims and progress in its
consumer pages. May fail: SubscriptionError, PermissionDeniedError, what a broker refuses; while a
broker is away its queues just have nothing new.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Self

from shmq.allocation import STRATEGIES
from shmq.client.process_queue import ProcessQueue
from shmq.clock import SYSTEM_CLOCK
from shmq.core import core
from shmq.errors import ConfigError, OffsetIllegalError, ServiceNotAvailableError, ShmqError
from shmq.remoting.codes import RequestCode
from shmq.result import MessageQueue
from shmq.subscription import ConsumeFromWhere, MessageModel, SubscriptionData, check_group

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from shmq.client.broker_link import BrokerLink
    from shmq.client.instance import Client
    from shmq.remoting.command import Command

__all__ = ["Consumer"]

_log = logging.getLogger("shmq.client")

REBALANCE_NS = 20_000_000_000
"""RocketMQ's rebalanceInterval."""
PULL_BATCH = 256
"""Messages read from one queue at a time."""
UNSETTLED_MAX = 1000
"""RocketMQ's pullThresholdForQueue."""
_COLD_BATCH = 256
_WAIT_SLICE_S = 1.0

_FOUND = core.STATUS["OK"][0]
_OFFSET_TOO_SMALL = core.STATUS["OFFSET_TOO_SMALL"][0]
_FENCED = core.STATUS["FENCED"][0]


class Consumer:
    """One member of a group. Iterate over it, or call receive(); a context manager.

    A message counts as settled when the next one is asked for; `settle` says so earlier. What is
    not settled when a consumer dies is delivered again to another member.
    """

    def __init__(
        self,
        client: Client,
        topic: str,
        group: str,
        *,
        filter: str | None = None,  # what RocketMQ's and our users call it
        from_where: ConsumeFromWhere = ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET,
        from_timestamp: int = 0,
        allocation: str = "average",
        model: MessageModel = MessageModel.CLUSTERING,
    ) -> None:
        """By Client.consumer().

        Args:
            client: whose sessions are used.
            topic: the topic.
            group: the group.
            filter: tags, "a || b"; None: all.
            from_where: where a new group starts.
            from_timestamp: ms since 1970, for CONSUME_FROM_TIMESTAMP.
            allocation: "average" or "circle".
            model: CLUSTERING shares the queues out, BROADCASTING gives every member all of them.

        Raises:
            IllegalGroupError, SubscriptionError, ConfigError: an argument cannot be used.
        """
        check_group(group)
        if allocation not in STRATEGIES:
            known = ", ".join(sorted(STRATEGIES))
            raise ConfigError(f"consume {topic}: allocation {allocation!r}, wanted {known}")
        self.topic = topic
        """The topic."""
        self.group = group
        """The group."""
        self._client = client
        self._subscription = SubscriptionData.parse(topic, filter)
        self._tag_codes = tuple(self._subscription.code_set) or None
        self._from_where = from_where
        self._from_timestamp = from_timestamp
        self._strategy = STRATEGIES[allocation]
        self._model = model
        self._queues: dict[MessageQueue, ProcessQueue] = {}
        self._ready: deque[tuple[ProcessQueue, core.Message]] = deque()
        self._last: tuple[ProcessQueue, core.Message] | None = None
        self._received: list[tuple[ProcessQueue, core.Message]] = []
        self._wanted = threading.Event()
        self._wanted.set()
        self._rebalance_due_ns = 0
        self._is_closed = False
        self._turn = 0
        self._lock = threading.RLock()

    # ---- receiving -------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[core.Message]:
        """Messages, for ever: blocks while there is none. Ends when the consumer is closed."""
        while not self._is_closed:
            message = self.try_next(_WAIT_SLICE_S)
            if message is not None:
                yield message

    def try_next(self, timeout: float) -> core.Message | None:
        """The next message, or None if none comes in `timeout` seconds. Settles the one before."""
        if self._last is not None:
            queue, message = self._last
            queue.settle(message.queue_offset)
            self._last = None
        if not self._ready:
            self._report()  # before the wait: the message that ends it is not held up, nor is this
            if not self._fetch(timeout):
                return None
        self._last = self._ready.popleft()
        return self._last[1]

    def receive(self, max_count: int = 32, *, timeout: float = 1.0) -> list[core.Message]:
        """Up to `max_count` messages; none if none came in `timeout` seconds. Settles all that were
        received before.
        """
        for queue, message in self._received:
            queue.settle(message.queue_offset)
        self._received = []
        self._report()
        if len(self._ready) < max_count and not self._fetch(timeout, max_count):
            return []
        count = min(max_count, len(self._ready))
        self._received = [self._ready.popleft() for _ in range(count)]
        return [message for _, message in self._received]

    def settle(self, message: core.Message) -> None:
        """This message is done with, before the next one is asked for."""
        if self._last is not None and self._last[1] is message:
            self._last[0].settle(message.queue_offset)
            self._last = None
            self._report()

    @property
    def assigned(self) -> list[MessageQueue]:
        """The queues this member consumes just now."""
        return sorted(self._queues)

    # ---- fetching --------------------------------------------------------------------------------

    def _fetch(self, timeout: float, wanted: int = 1) -> bool:
        """Fill `_ready`; False if there was nothing for `timeout` seconds."""
        self._client.check(f"consume {self.topic}")
        deadline_ns = SYSTEM_CLOCK.monotonic_ns() + int(timeout * 1e9)
        while not self._is_closed:
            if self._wanted.is_set() or SYSTEM_CLOCK.monotonic_ns() >= self._rebalance_due_ns:
                self._rebalance()
            if self._read_round(wanted):
                return True
            left_s = (deadline_ns - SYSTEM_CLOCK.monotonic_ns()) / 1e9
            if left_s <= 0:
                return False
            self._sleep(min(left_s, _WAIT_SLICE_S))
        return False

    def _read_round(self, wanted: int) -> bool:
        """Look at each queue, beginning with another one each time, until `wanted` are ready."""
        with self._lock:
            queues = list(self._queues.values())
        self._turn += 1
        for index in range(len(queues)):
            queue = queues[(self._turn + index) % len(queues)]
            room = UNSETTLED_MAX - queue.unsettled_count
            if room > 0 and self._read(queue, min(room, PULL_BATCH)) and len(self._ready) >= wanted:
                return True
        return bool(self._ready)

    def _read(self, queue: ProcessQueue, count: int) -> bool:
        first = queue.next_offset
        try:
            status, messages, next_offset = queue.link.reader.read(
                queue.row, queue.generation, first, count, self._tag_codes
            )
            if status == _OFFSET_TOO_SMALL:
                status, messages, next_offset = self._read_cold(queue, count)
        except ShmqError as error:
            _log.debug("read %s: %s", queue.message_queue, error)
            return False
        if status == _FENCED:
            self._wanted.set()
            return False
        if self._tag_codes is not None:
            messages = [m for m in messages if self._subscription.passes_tag(m.tag)]
        for message in messages:
            queue.taken.append(message.queue_offset)
            self._ready.append((queue, message))
        queue.next_offset = next_offset
        if not messages and next_offset != first:
            queue.skip_to(next_offset)
        return bool(messages)

    def _read_cold(self, queue: ProcessQueue, count: int) -> tuple[int, list[core.Message], int]:
        """Entries that have left memory come from the broker, the messages from its files."""
        topic, _, queue_id = queue.message_queue
        try:
            found = queue.link.read_entries(
                topic, queue_id, queue.next_offset, min(count, _COLD_BATCH)
            )
        except OffsetIllegalError:
            self._wanted.set()
            return _FOUND, [], queue.next_offset
        if found is None:
            return _FOUND, [], queue.next_offset
        first, entries = found
        return queue.link.reader.read_entries(entries, first, count, self._tag_codes)

    def _sleep(self, timeout: float) -> None:
        """Wait for something new in any queue, a rebalance, or the end of the time."""
        links: dict[BrokerLink, list[ProcessQueue]] = {}
        for queue in self._queues.values():
            links.setdefault(queue.link, []).append(queue)
        if len(links) != 1:
            # A bell per broker: one is slept on, the others are looked at between short sleeps.
            timeout = min(timeout, 0.001 if links else 0.05)
        if not links:
            self._wanted.wait(timeout)
            return
        link, queues = next(iter(links.items()))
        for queue in queues:
            link.reader.watch(queue.row, queue.generation, queue.next_offset)
        link.reader.wait(timeout)

    def _report(self) -> None:
        """Put progress into the consumer pages."""
        with self._lock:
            for queue in self._queues.values():
                if queue.settled_offset != queue.reported:
                    queue.reported = queue.settled_offset
                    with contextlib.suppress(ShmqError):
                        queue.link.reader.report(queue.slot, queue.settled_offset)

    # ---- sharing out -----------------------------------------------------------------------------

    def describe(self) -> dict[str, object]:
        """This member as a heartbeat tells it."""
        subscription = self._subscription
        return {
            "groupName": self.group,
            "consumeType": "CONSUME_PASSIVELY",
            "messageModel": str(self._model.value),
            "consumeFromWhere": str(self._from_where.value),
            "subscriptionDataSet": [
                {
                    "topic": self.topic,
                    "subString": subscription.sub_string,
                    "tagsSet": sorted(subscription.tags_set),
                    "codeSet": sorted(subscription.code_set),
                    "subVersion": 1,
                    "expressionType": "TAG",
                }
            ],
        }

    def _rebalance(self) -> None:
        self._wanted.clear()
        self._rebalance_due_ns = SYSTEM_CLOCK.monotonic_ns() + REBALANCE_NS
        try:
            queues = self._all_queues()
            for name in {queue.broker_name for queue in queues}:
                with contextlib.suppress(ServiceNotAvailableError):
                    self._client.link(name)
            self._client.heartbeat()  # to all of them: a broker knows members by their heartbeats
            members = self._members(queues)
            if self._client.client_id not in members:
                members = sorted([*members, self._client.client_id])
            mine = set(self._strategy(queues, members, self._client.client_id))
        except ShmqError as error:
            _log.debug("rebalance group=%s topic=%s: %s", self.group, self.topic, error)
            self._rebalance_due_ns = SYSTEM_CLOCK.monotonic_ns() + 50_000_000
            return
        with self._lock:
            self._release([q for key, q in self._queues.items() if key not in mine])
            self._claim(sorted(mine - self._queues.keys()))

    def _all_queues(self) -> list[MessageQueue]:
        route = self._client.routes.route(self.topic, is_fresh=True)
        found = {
            MessageQueue(self.topic, data.broker_name, queue_id)
            for data in route.queue_datas
            for queue_id in range(data.read_queue_nums)
        }
        # A broker that is away for a moment keeps its queues where they are.
        found |= {key for key, queue in self._queues.items() if not queue.link.is_up}
        return sorted(found)

    def _members(self, queues: list[MessageQueue]) -> list[str]:
        if self._model is MessageModel.BROADCASTING:
            return [self._client.client_id]
        members: set[str] = set()
        for name in sorted({queue.broker_name for queue in queues}):
            try:
                answer = self._client.link(name).call(
                    RequestCode.GET_CONSUMER_LIST_BY_GROUP, {"consumerGroup": self.group}
                )
            except ServiceNotAvailableError:
                continue
            listed = answer.json()["consumerIdList"]
            assert isinstance(listed, list)
            members.update(str(item) for item in listed)
        return sorted(members)

    def _claim(self, queues: list[MessageQueue]) -> None:
        for name in sorted({queue.broker_name for queue in queues}):
            ids = [queue.queue_id for queue in queues if queue.broker_name == name]
            try:
                link = self._client.link(name)
                claims = link.claim(
                    self.group,
                    self.topic,
                    ids,
                    from_where=str(self._from_where.value),
                    timestamp=self._from_timestamp,
                )
                link.subscribe_bell(0, [(c["row"], c["generation"]) for c in claims])
            except ShmqError as error:
                _log.debug("claim %s at %s: %s", self.topic, name, error)
                self._rebalance_due_ns = SYSTEM_CLOCK.monotonic_ns() + 50_000_000
                continue
            for claim in claims:
                begin = max(claim["consumerOffset"], claim["minOffset"])
                key = MessageQueue(self.topic, name, claim["queueId"])
                self._queues[key] = ProcessQueue(
                    link,
                    key,
                    claim["row"],
                    claim["generation"],
                    claim["slot"],
                    claim["claim"],
                    next_offset=begin,
                    settled_offset=begin,
                )

    def _release(self, queues: list[ProcessQueue]) -> None:
        self._report()
        gone = {id(queue) for queue in queues}
        self._ready = deque(item for item in self._ready if id(item[0]) not in gone)
        for queue in queues:
            del self._queues[queue.message_queue]
            with contextlib.suppress(ShmqError):
                queue.link.reader.unwatch(queue.row)
        for link in {queue.link for queue in queues}:
            claims = [
                {"queueId": q.message_queue.queue_id, "slot": q.slot, "claim": q.claim}
                for q in queues
                if q.link is link
            ]
            with contextlib.suppress(ShmqError):
                link.release(self.group, self.topic, claims)

    # ---- what the client tells -------------------------------------------------------------------

    def notified(self, link: BrokerLink, command: Command) -> None:
        """A broker's notice, in the connection's thread."""
        code = command.code
        if code == RequestCode.NOTIFY_CONSUMER_IDS_CHANGED:
            if command.ext_fields.get("consumerGroup") == self.group:
                self._want_rebalance()
        elif code == RequestCode.NOTIFY_TOPIC_CHANGED:
            if command.ext_fields.get("topic") == self.topic:
                self._want_rebalance()
        elif code == RequestCode.NOTIFY_CLAIMS_REVOKED:
            if command.ext_fields.get("consumerGroup") == self.group:
                claims = command.json()["claims"]
                assert isinstance(claims, list)
                revoked = {claim["claim"] for claim in claims}
                self._drop(lambda queue: queue.link is link and queue.claim in revoked)
                for claim in claims:
                    link.forget_claim(claim["slot"])
                self._want_rebalance()
        elif code == RequestCode.RESET_CONSUMER_CLIENT_OFFSET:
            self._drop(lambda queue: queue.link is link)
            self._want_rebalance()

    def _drop(self, is_gone: Callable[[ProcessQueue], bool]) -> None:
        with self._lock:
            gone = [queue for queue in self._queues.values() if is_gone(queue)]
            for queue in gone:
                del self._queues[queue.message_queue]
            lost = {id(queue) for queue in gone}
            self._ready = deque(item for item in self._ready if id(item[0]) not in lost)

    def _want_rebalance(self) -> None:
        self._wanted.set()
        with self._lock:
            links = {queue.link for queue in self._queues.values()}
        for link in links:
            with contextlib.suppress(ShmqError):
                link.reader.wake()

    def reconnected(self, link: BrokerLink, is_resumed: bool) -> None:
        """A broker is back; with new memory its claims are gone."""
        if not is_resumed:
            self._drop(lambda queue: queue.link is link)
        self._want_rebalance()

    # ---- ending ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Report progress, give the queues back, leave the group. What was received and not settled
        is delivered again.
        """
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._release(list(self._queues.values()))
        self._client.left(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
