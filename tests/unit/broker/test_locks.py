"""Who has a queue to itself: one client at a time, until it unlocks, dies or hangs for a minute."""

import random

import pytest

from shmq.broker.claims import ClaimedQueue
from shmq.broker.locks import LOCK_EXPIRY_MS, LockTable
from tests.support.clock import SteppedClock

QUEUE = ClaimedQueue("g", "t", 0)
OTHER = ClaimedQueue("g", "t", 1)


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
def locks(clock) -> LockTable:
    return LockTable(clock)


def test_a_locked_queue_is_refused_to_everybody_else(locks):
    assert locks.try_lock(QUEUE, "a")
    assert not locks.try_lock(QUEUE, "b")
    assert locks.try_lock(OTHER, "b")
    assert (locks.holder(QUEUE), locks.holder(OTHER)) == ("a", "b")
    assert locks.is_free_for(QUEUE, "a")
    assert not locks.is_free_for(QUEUE, "b")


def test_only_who_has_a_queue_unlocks_it(locks):
    locks.try_lock(QUEUE, "a")
    assert not locks.unlock(QUEUE, "b")
    assert locks.unlock(QUEUE, "a")
    assert not locks.unlock(QUEUE, "a")
    assert locks.try_lock(QUEUE, "b")


def test_groups_do_not_lock_each_other_out(locks):
    locks.try_lock(QUEUE, "a")
    assert locks.try_lock(ClaimedQueue("other", "t", 0), "b")


def test_a_lock_that_is_renewed_never_expires(locks, clock):
    for _ in range(10):
        assert locks.try_lock(QUEUE, "a")
        clock.advance(ms=LOCK_EXPIRY_MS - 1)
        assert not locks.try_lock(QUEUE, "b")


def test_a_client_that_hangs_loses_its_queues_after_the_expiry(locks, clock):
    locks.try_lock(QUEUE, "a")
    locks.try_lock(OTHER, "a")
    clock.advance(ms=LOCK_EXPIRY_MS)
    assert locks.holder(QUEUE) is None
    assert locks.try_lock(QUEUE, "b")
    assert not locks.try_lock(QUEUE, "a"), "it comes too late"
    assert locks.forget_expired() == [(OTHER, "a")]
    assert locks.held_by("a") == []


def test_a_wall_clock_that_jumps_expires_nothing(locks, clock):
    locks.try_lock(QUEUE, "a")
    clock.jump_wall(ms=10 * 365 * 86_400_000)
    assert not locks.try_lock(QUEUE, "b")


def test_a_dead_client_has_nothing_any_more(locks):
    locks.try_lock(QUEUE, "a")
    locks.try_lock(ClaimedQueue("other", "t", 0), "a")
    locks.unlock_all("a", "other")
    assert locks.held_by("a") == [QUEUE]
    locks.unlock_all("a")
    assert len(locks) == 0


def test_a_deleted_topic_leaves_no_lock(locks):
    locks.try_lock(QUEUE, "a")
    locks.remove(lambda queue: queue.topic == "t")
    assert locks.try_lock(QUEUE, "b")


def test_whatever_is_asked_in_whatever_order_a_queue_has_one_holder(
    locks, clock, rng: random.Random
):
    """Held against the plainest model: a dictionary of (who, until when)."""
    model: dict[ClaimedQueue, tuple[str, int]] = {}
    queues, clients = [ClaimedQueue("g", "t", number) for number in range(4)], ["a", "b", "c"]
    for _ in range(5000):
        queue, client = rng.choice(queues), rng.choice(clients)
        now = clock.monotonic_ns()
        held = {q: who for q, (who, until) in model.items() if now < until}
        what = rng.choice(("lock", "lock", "unlock", "die", "pass"))
        if what == "lock":
            may = held.get(queue, client) == client
            assert locks.try_lock(queue, client) == may
            if may:
                model[queue] = client, now + LOCK_EXPIRY_MS * 1_000_000
        elif what == "unlock":
            locks.unlock(queue, client)
            if model.get(queue, ("", 0))[0] == client:
                del model[queue]
        elif what == "die":
            locks.unlock_all(client)
            model = {q: row for q, row in model.items() if row[0] != client}
        else:
            clock.advance(ms=rng.choice((1, LOCK_EXPIRY_MS // 3)))
        now = clock.monotonic_ns()
        for one in queues:
            who, until = model.get(one, (None, 0))
            assert locks.holder(one) == (who if now < until else None)
