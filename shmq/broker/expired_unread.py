"""Messages that retention took before their group had consumed them: counted, and said.

What lives here: `ExpiredUnread`. Retention does not wait for consumers, as in RocketMQ; so that it
never happens in silence, each file that goes is held against the consumer offsets of every group
that knows its topics. A group that never consumed a queue has missed nothing of it, unless a member
subscribes to it now.

The loop's thread owns it. Writes nothing but the log. Nothing fails.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING

from shmq.broker.claims import ClaimedQueue

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shmq.broker.claims import ClaimTable
    from shmq.broker.client_registry import ClientRegistry
    from shmq.broker.consumer_offsets import OffsetTable
    from shmq.store.expire import ExpiredSpan

__all__ = ["ExpiredUnread"]

_log = logging.getLogger("shmq.broker")


class ExpiredUnread:
    """Counts since the broker began.

    Args:
        offsets: how far groups are.
        claims: what their members report beyond that.
        registry: who subscribes to what.
    """

    INTERVAL_S = 1.0
    """Files go in batches: what a group lost with all of them is one line."""

    def __init__(self, offsets: OffsetTable, claims: ClaimTable, registry: ClientRegistry) -> None:
        self._offsets = offsets
        self._claims = claims
        self._registry = registry
        self._unsaid: Counter[tuple[str, str]] = Counter()
        self._saying: asyncio.TimerHandle | None = None
        self.counts: Counter[str] = Counter()
        """Messages by group."""

    def expired(self, spans: Iterable[ExpiredSpan]) -> None:
        """A file went, and with it these parts of queues."""
        for span in spans:
            groups = self._registry.groups_subscribed_to(span.topic)
            for group in groups | self._offsets.groups_of(span.topic):
                count = self._unread(group, span, group in groups)
                if count:
                    self.counts[group] += count
                    self._unsaid[group, span.topic] += count
        if self._unsaid and self._saying is None:
            loop = asyncio.get_running_loop()
            self._saying = loop.call_later(self.INTERVAL_S, self._say)

    def _say(self) -> None:
        self._saying = None
        for (group, topic), count in sorted(self._unsaid.items()):
            _log.warning("expired unread group=%s topic=%s messages=%d", group, topic, count)
        self._unsaid.clear()

    def close(self) -> None:
        """Say what is left to be said."""
        if self._saying is not None:
            self._saying.cancel()
            self._say()

    def _unread(self, group: str, span: ExpiredSpan, is_subscribed: bool) -> int:
        claim = self._claims.find(ClaimedQueue(group, span.topic, span.queue_id))
        if claim is not None:
            self._claims.harvest([claim])
        consumer_offset = self._offsets.query(group, span.topic, span.queue_id)
        if consumer_offset is None:
            return span.end - span.begin if is_subscribed else 0
        return max(0, span.end - max(span.begin, consumer_offset))
