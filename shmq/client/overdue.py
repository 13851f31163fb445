"""Messages that are stuck in a listener: after the group's time they go back and come again.

What lives here: `ListenerCalls`, which calls of a pool's listener are on, and `OverdueWatch`, which
gives up those that last longer than the group's consumeTimeoutMinute (RocketMQ
ConsumeMessageConcurrentlyService.cleanExpireMsg): the message goes to the group's retry topic, so
that its queue's progress does not wait for it and another member may try; what waits behind it
in the same thread goes to other threads. The call itself goes on: nobody can end it, and what it
returns is not asked any more. Which process: the program's, a thread for each PushConsumer, which
looks once a minute. Writes nothing. May fail: a broker that is away; it is asked again a minute on.
"""

from __future__ import annotations

import itertools
import logging
import threading
from typing import TYPE_CHECKING, NamedTuple

from shmq.client.process_queue import ProcessQueue
from shmq.errors import ShmqError
from shmq.remoting.codes import RequestCode
from shmq.subscription import SubscriptionGroupConfig
from shmq.threads import NamedThread

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable

    from shmq.client.broker_link import BrokerLink
    from shmq.clock import Clock
    from shmq.core import core

__all__ = ["ListenerCall", "ListenerCalls", "OverdueWatch", "RETRY_LEVEL"]

_log = logging.getLogger("shmq.client")

RETRY_LEVEL = 3
"""Delay level of a message that was stuck, as in RocketMQ: 10 s."""
_MINUTE_NS = 60_000_000_000
LOOK_S = 60.0
"""Between two looks: consumeTimeoutMinute is 1 at least."""


class ListenerCall(NamedTuple):
    """One call that is on."""

    number: int
    """Which."""
    message: core.Message
    """What the listener was called with."""
    rest: deque[core.Message]
    """What its thread has taken as well, and not begun."""
    begin_ns: int
    """When, monotonic."""


class ListenerCalls:
    """The calls of one pool that are on. A call belongs to whoever ends it first: the thread that
    it is in, or who gives it up. Any thread; single calls into dicts are all that is shared.
    """

    def __init__(self, clock: Clock) -> None:
        self._now_ns = clock.monotonic_ns
        self._numbers = itertools.count()
        self._on: dict[int, tuple[core.Message, deque[core.Message], int]] = {}
        """By number message, rest and begin_ns: plain, for one is made for each message."""

    def begin(self, message: core.Message, rest: deque[core.Message]) -> int:
        """A listener is about to be called; the number of the call."""
        number = next(self._numbers)
        self._on[number] = message, rest, self._now_ns()
        return number

    def end(self, number: int) -> bool:
        """A call is over, or given up; False: somebody else has said so before."""
        return self._on.pop(number, None) is not None

    def older_than(self, age_ns: int) -> list[ListenerCall]:
        """Calls that have been on for so long, the oldest first."""
        latest_ns = self._now_ns() - age_ns
        calls = (ListenerCall(number, *call) for number, call in self._on.copy().items())
        return [call for call in calls if call.begin_ns <= latest_ns]


class OverdueWatch:
    """Looks after the calls of one push consumer's pools.

    Args:
        group: whose consumeTimeoutMinute counts, as the broker of the message has it.
    """

    def __init__(self, group: str) -> None:
        self._group = group
        self._pools: list[tuple[ListenerCalls, Callable[[ListenerCall], None]]] = []
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.overdue_count = 0
        """Messages that were stuck and went back."""

    def watch(self, calls: ListenerCalls, give_up: Callable[[ListenerCall], None]) -> None:
        """From now on look after a pool; `give_up` sends a message back and passes on the rest."""
        self._pools.append((calls, give_up))
        if self._thread is None:
            self._thread = NamedThread(target=self._run, name="shmq-overdue", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Look no more. Waits for a look that is on."""
        self._stopping.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def look(self) -> None:
        """Give up what is overdue by now. Blocks while brokers are asked."""
        limits_ns: dict[BrokerLink, int | None] = {}
        for calls, give_up in tuple(self._pools):
            for call in calls.older_than(_MINUTE_NS):
                queue = call.message.keeper
                assert isinstance(queue, ProcessQueue)
                if queue.is_dropped:  # another member has it
                    continue
                if queue.link not in limits_ns:
                    limits_ns[queue.link] = self._limit_ns(queue.link)
                limit_ns = limits_ns[queue.link]
                if limit_ns is None or call not in calls.older_than(limit_ns):
                    continue
                if calls.end(call.number):
                    self.overdue_count += 1
                    _log.warning(
                        "listener overdue group=%s message=%s minutes=%d: it goes back",
                        self._group,
                        call.message.message_id,
                        limit_ns // _MINUTE_NS,
                    )
                    give_up(call)

    def _limit_ns(self, link: BrokerLink) -> int | None:
        """How long a listener may take; None: nobody knows just now."""
        try:
            answer = link.call(RequestCode.GET_SUBSCRIPTIONGROUP_CONFIG, {"group": self._group})
            config = SubscriptionGroupConfig.from_dict(answer.json())
        except ShmqError as error:
            _log.debug("ask for group %s: %s", self._group, error)
            return None
        return config.consume_timeout_minute * _MINUTE_NS

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_S):  # as long as the consumer is open
            try:
                self.look()
            except Exception:  # noqa: BLE001 # the outermost loop of a service must not end
                _log.exception("overdue listeners of %s: looking again", self._group)
