"""When rounds are made: soon after a change and again soon after that, not only at the interval."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, cast

from shmq.client.rebalance import RebalanceService

if TYPE_CHECKING:
    from shmq.client.assignment import Assignment


class Rounds:
    """Counts rounds; each succeeds."""

    is_complete = True

    def __init__(self) -> None:
        self.made = threading.Semaphore(0)

    def rebalance(self) -> None:
        self.made.release()

    def told(self, denial: object) -> None:
        assert denial is None


def test_round_follows_soon_after_a_change_without_being_asked_for() -> None:
    service, rounds = RebalanceService(), Rounds()
    assignment = cast("Assignment", rounds)
    service.add(assignment)
    try:
        assert rounds.made.acquire(timeout=10), "the first after joining"
        service.request(assignment)
        assert rounds.made.acquire(timeout=10), "the one that was asked for"
        assert rounds.made.acquire(timeout=10), "the one that follows it, well before the interval"
    finally:
        service.close()
