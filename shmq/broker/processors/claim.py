"""Claims: which member of a group consumes which queue.

In the loop's thread; a search by time runs in a worker thread.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from shmq.broker.claims import Claim, ClaimedQueue
from shmq.broker.processors.fields import items_of, json_response, ranged
from shmq.broker.rights import Action
from shmq.errors import ClosedError, ConfigError, PermissionDeniedError
from shmq.remoting.codes import RequestCode
from shmq.remoting.command import Command
from shmq.remoting.server import Connection, Processor
from shmq.subscription import ConsumeFromWhere
from shmq.topic import RETRY_PREFIX

if TYPE_CHECKING:
    from shmq.broker.broker import Broker
    from shmq.store.queues import QueueHandle

__all__ = ["ClaimProcessor"]

_WORD_MAX = (1 << 32) - 1
_LONG_MAX = (1 << 63) - 1


class ClaimProcessor:
    """Serves the requests about claims."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def table(self) -> dict[int, Processor]:
        """By code."""
        return {
            RequestCode.CLAIM_QUEUES: Processor(handler=self._claim),
            RequestCode.RELEASE_QUEUES: Processor(handler=self._release),
        }

    async def _claim(self, connection: Connection, command: Command) -> Command:
        broker = self._broker
        take = command.fields()
        group, topic = take.text("consumerGroup"), take.text("topic")
        where = _from_where(take.text("consumeFromWhere", _FIRST))
        timestamp = ranged(take, "consumeTimestamp", 0, _LONG_MAX, 0)
        self._broker.rights.require(connection.identity, Action.CONSUME, group)
        self._broker.rights.require(connection.identity, Action.PULL, topic)
        config = broker.groups.of_member(group)
        if not config.consume_enable:
            raise PermissionDeniedError(f"claim {topic} for {group}: its consumeEnable is false")
        broker.topics.find_readable(topic)
        if where is _FIRST and not config.consume_from_min_enable:
            where = ConsumeFromWhere.CONSUME_FROM_LAST_OFFSET
        wanted = []
        for item in items_of(command.json(), "claims", take.what):
            queue = ClaimedQueue(group, topic, ranged(item, "queueId", 0, _WORD_MAX))
            handle = broker.topics.read_queue(topic, queue.queue_id)
            wanted.append((queue, ranged(item, "slot", 0, _WORD_MAX), handle))
        begins = {}
        for queue, _, handle in wanted:
            if broker.offsets.query(*queue) is None:
                begins[queue] = await self._begin(queue, handle, where, timestamp)
        session = broker.sessions.require(connection)  # it may have ended meanwhile,
        broker.rights.require(connection.identity, Action.CONSUME, group)  # or the rules changed
        broker.rights.require(connection.identity, Action.PULL, topic)
        if not session.claim_capacity:
            raise ClosedError(f"{connection}: its session has no consumer page")
        broker.claims.check_slots(session, [(queue, slot) for queue, slot, _ in wanted])
        if config.consume_message_orderly:
            self._require_locked([queue for queue, _, _ in wanted])
        claims, locked = [], []
        for queue, slot, handle in wanted:
            if not broker.locks.is_free_for(queue, session.client_id):
                locked.append(queue.queue_id)
                continue
            claims.append(broker.claims.claim(session, queue, slot, handle))
            if queue in begins and broker.offsets.query(*queue) is None:
                broker.offsets.commit(*queue, begins[queue])
        shown = [self._shown(claim) for claim in claims]
        return json_response(command, {"claims": shown, "locked": locked})

    def _require_locked(self, queues: list[ClaimedQueue]) -> None:
        """Return if all are locked: a group that consumes in order has no other members."""
        for queue in queues:
            if self._broker.locks.holder(queue) is None:
                raise ConfigError(
                    f"claim queue {queue.queue_id} of {queue.topic} for {queue.group}: its "
                    "consumeMessageOrderly is true, and the queue is not locked",
                    hint="consume with push_consumer(group, listener, orderly=True)",
                )

    async def _begin(
        self, queue: ClaimedQueue, handle: QueueHandle, where: ConsumeFromWhere, timestamp: int
    ) -> int:
        """Where a group begins in a queue that it never consumed."""
        now = self._broker.store.queues.offsets(handle)
        is_retry = queue.topic.startswith(RETRY_PREFIX)  # what failed is not to be missed
        if is_retry or where is ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET:
            return now.min_queue_offset
        if where is ConsumeFromWhere.CONSUME_FROM_LAST_OFFSET:
            return now.visible_max
        lookup = self._broker.store.lookup
        return await asyncio.to_thread(lookup.find_by_time, queue.topic, queue.queue_id, timestamp)

    def _shown(self, claim: Claim) -> dict[str, object]:
        now = self._broker.store.queues.offsets(claim.handle)
        return {
            "queueId": claim.queue.queue_id,
            "slot": claim.slot,
            "claim": claim.number,
            "consumerOffset": self._broker.offsets.query(*claim.queue),
            "row": claim.handle.row,
            "generation": claim.handle.generation,
            "minOffset": now.min_queue_offset,
            "visibleMax": now.visible_max,
        }

    def _release(self, connection: Connection, command: Command) -> Command:
        broker = self._broker
        take = command.fields()
        group, topic = take.text("consumerGroup"), take.text("topic")
        released = []
        for item in items_of(command.json(), "claims", take.what):
            queue = ClaimedQueue(group, topic, ranged(item, "queueId", 0, _WORD_MAX))
            claim = broker.claims.find(queue)
            is_ours = claim is not None and claim.session.connection is connection
            if claim is None or not is_ours or claim.number != item.number("claim"):
                continue
            broker.claims.end(claim)
            released.append(
                {"queueId": queue.queue_id, "consumerOffset": broker.offsets.query(*queue)}
            )
        return json_response(command, {"released": released})


_FIRST = ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET


def _from_where(text: str) -> ConsumeFromWhere:
    try:
        return ConsumeFromWhere(text)
    except ValueError:
        raise ConfigError(
            f"consumeFromWhere: {text!r}, wanted {' or '.join(ConsumeFromWhere)}"
        ) from None
