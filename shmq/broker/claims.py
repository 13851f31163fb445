"""Who consumes which queue now, and what its consumer reports.

What lives here: `ClaimTable`. A member of a group claims a queue: it gets a claim number, writes it
into a slot of its consumer page, and reports its progress there. The broker harvests only the claim
that is current, holds what it finds against the queue's range, and looks a last time when the claim
ends, however it ends; so a killed consumer loses no progress that it had reported, and a stale one
overwrites nobody. A new claim of a queue ends the one before.

The page is the client's to write, and hostile: a word of it counts only under the number that the
broker gave, and only between 0 and visible_max. The loop's thread owns all of this. Nothing blocks.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from shmq.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shmq.store.message_store import MessageStore
    from shmq.store.queues import QueueHandle

    from .consumer_offsets import OffsetTable
    from .sessions import ClientSession

__all__ = ["Claim", "ClaimTable", "ClaimedQueue"]

_log = logging.getLogger("shmq.broker")


class ClaimedQueue(NamedTuple):
    """What a claim is about."""

    group: str
    topic: str
    queue_id: int


@dataclass(slots=True, eq=False)
class Claim:
    """One claim. It is current as long as the table has it."""

    queue: ClaimedQueue
    """What is claimed."""
    number: int
    """What the client writes into its slot."""
    session: ClientSession
    """Who claimed it."""
    slot: int
    """Index in the consumer page of that session."""
    handle: QueueHandle
    """Of the queue."""
    is_resumed: bool = False
    """Begun further back than what is stored, by a restart or a slave's report: counts only
    forward of that."""
    refused_count: int = 0
    """Reports that were out of range."""


class ClaimTable:
    """All claims of one broker.

    Args:
        store: open.
        offsets: where progress goes.
    """

    def __init__(self, store: MessageStore, offsets: OffsetTable) -> None:
        self._store = store
        self._offsets = offsets
        self._claims: dict[ClaimedQueue, Claim] = {}
        self._slots: dict[ClientSession, dict[int, Claim]] = {}
        self.on_revoked: Callable[[ClientSession, list[Claim]], None] = lambda _session, _claims: (
            None
        )
        """Told of claims that ended without their client's doing."""

    def __len__(self) -> int:
        return len(self._claims)

    def find(self, queue: ClaimedQueue) -> Claim | None:
        """The current claim of a queue."""
        return self._claims.get(queue)

    def of(self, session: ClientSession) -> list[Claim]:
        """The claims of a session."""
        return list(self._slots.get(session, {}).values())

    # ---- claiming ----------------------------------------------------------------------------

    def check_slots(
        self, session: ClientSession, slots: Iterable[tuple[ClaimedQueue, int]]
    ) -> None:
        """Return if these claims may be made together.

        Raises:
            ConfigError: a slot is out of range, or another claim has it.
        """
        claims = self._slots.get(session, {})
        taken: dict[int, ClaimedQueue] = {}
        for queue, slot in slots:
            if not 0 <= slot < session.claim_capacity:
                raise ConfigError(
                    f"claim queue {queue.queue_id} of {queue.topic}: slot {slot}, wanted 0 to "
                    f"{session.claim_capacity - 1}"
                )
            if slot in claims:
                taken[slot] = claims[slot].queue
            if taken.setdefault(slot, queue) != queue:
                raise ConfigError(
                    f"claim queue {queue.queue_id} of {queue.topic}: slot {slot} has a claim of "
                    f"queue {taken[slot].queue_id} of {taken[slot].topic}; release that first"
                )

    def claim(
        self, session: ClientSession, queue: ClaimedQueue, slot: int, handle: QueueHandle
    ) -> Claim:
        """Give a queue to a session. Whoever had it is told, and its progress counts."""
        before = self._claims.get(queue)
        if before is not None:
            self.end(before)
            if before.session is not session:
                self.on_revoked(before.session, [before])
        number = self._offsets.new_claim(*queue)
        return self._add(Claim(queue, number, session, slot, handle))

    def resume(
        self,
        session: ClientSession,
        queue: ClaimedQueue,
        slot: int,
        handle: QueueHandle,
        number: int,
    ) -> Claim | None:
        """Take up a claim from before a restart; None if a newer one is known."""
        if not self._offsets.resume_claim(*queue, number):
            return None
        before = self._claims.get(queue)
        if before is not None:
            self.end(before)
            self.on_revoked(before.session, [before])
        return self._add(Claim(queue, number, session, slot, handle, is_resumed=True))

    def _add(self, claim: Claim) -> Claim:
        self._claims[claim.queue] = claim
        self._slots.setdefault(claim.session, {})[claim.slot] = claim
        return claim

    # ---- progress ----------------------------------------------------------------------------

    def harvest(self, claims: Iterable[Claim] | None = None) -> None:
        """Take what consumers report; all of them if none are named."""
        for claim in self._claims.values() if claims is None else claims:
            self._harvest(claim)

    def _harvest(self, claim: Claim) -> None:
        session = claim.session
        reported = self._store.sessions.load_claim(session.session, session.generation, claim.slot)
        if reported is None or reported.claim != claim.number:
            return
        consumer_offset = reported.consumer_offset
        stored = self._offsets.query(*claim.queue)
        if consumer_offset == stored:
            return
        if consumer_offset > self._store.queues.offsets(claim.handle).visible_max:
            claim.refused_count += 1
            _log.warning(
                "progress out of range group=%s topic=%s queue_id=%d consumer_offset=%d client=%s",
                *claim.queue,
                consumer_offset,
                session.client_id,
            )
            return
        if claim.is_resumed and stored is not None and consumer_offset < stored:
            return
        self._offsets.commit(*claim.queue, consumer_offset)

    # ---- ending ------------------------------------------------------------------------------

    def end(self, claim: Claim, *, is_harvested: bool = True) -> None:
        """End a claim after a last look at its progress. One that has ended is left alone.

        Args:
            claim: one of this table.
            is_harvested: False where its progress shall not count (a reset by hand).
        """
        if self._claims.get(claim.queue) is not claim:
            return
        if is_harvested:
            self._harvest(claim)
        del self._claims[claim.queue]
        slots = self._slots[claim.session]
        del slots[claim.slot]
        if not slots:
            del self._slots[claim.session]

    def end_session(self, session: ClientSession, group: str | None = None) -> list[Claim]:
        """End the claims of a session, of one group or all; returns them."""
        ended = [c for c in self.of(session) if group is None or c.queue.group == group]
        for claim in ended:
            self.end(claim)
        return ended

    def revoke(
        self, chosen: Callable[[ClaimedQueue], bool], *, is_harvested: bool
    ) -> dict[ClientSession, list[Claim]]:
        """End claims by hand; returns them by whose they were. Nobody is told here."""
        revoked: dict[ClientSession, list[Claim]] = {}
        for claim in [c for queue, c in self._claims.items() if chosen(queue)]:
            self.end(claim, is_harvested=is_harvested)
            revoked.setdefault(claim.session, []).append(claim)
        return revoked
