"""Which member is told to become master, and when nobody is."""

from dataclasses import replace

from shmq.namesrv.election import Candidate, Election

S = 1_000_000_000
STARTING = Candidate(broker_id=0, is_alive=True, is_master=None, log_epoch=0, log_end=0)
ZERO = Candidate(broker_id=0, is_alive=True, is_master=False, log_epoch=3, log_end=500)
ONE = Candidate(broker_id=1, is_alive=True, is_master=False, log_epoch=3, log_end=500)
MASTER = replace(ZERO, is_master=True)
DEAD = replace(ZERO, is_alive=False)


def test_nobody_is_told_while_one_is_master() -> None:
    election = Election()
    for second in range(100):
        assert election.decide([MASTER, ONE], now_ns=second * S, has_memory=True) is None


def test_first_master_is_the_lowest_id_of_those_whose_files_say_most() -> None:
    longer = replace(ONE, log_end=501)
    newer = replace(ONE, log_epoch=4, log_end=10)
    for other, chosen in ((ONE, ZERO), (longer, longer), (newer, newer)):
        assert Election().decide([ZERO, other], now_ns=0, has_memory=False) == chosen


def test_learner_is_never_told_and_is_master_where_a_person_has_it_so() -> None:
    learner = replace(ONE, log_end=900, is_async_learner=True)
    assert Election().decide([ZERO, learner], now_ns=0, has_memory=False) == ZERO
    election = Election()
    election.master_ended()
    assert election.decide([DEAD, learner], now_ns=60 * S, has_memory=True) is None
    took = replace(learner, is_master=True)
    assert election.decide([ZERO, took], now_ns=61 * S, has_memory=True) is None
    assert election.decide([ZERO, learner], now_ns=90 * S, has_memory=True) is None
    assert election.decide([ZERO, learner], now_ns=93 * S, has_memory=True) == ZERO


def test_member_that_starts_is_waited_for_and_not_for_ever() -> None:
    election = Election()
    assert election.decide([STARTING, ONE], now_ns=0, has_memory=False) is None
    assert election.decide([STARTING, ONE], now_ns=4 * S, has_memory=False) is None
    assert election.decide([STARTING, ONE], now_ns=5 * S, has_memory=False) == ONE


def test_death_of_a_master_has_another_told_at_once() -> None:
    election = Election()
    assert election.decide([MASTER, ONE], now_ns=0, has_memory=True) is None
    election.master_ended()
    assert election.decide([DEAD, ONE], now_ns=1, has_memory=True) == ONE
    assert election.decide([STARTING, ONE], now_ns=2 * S, has_memory=True) is None
    took = replace(ONE, is_master=True)
    assert election.decide([STARTING, took], now_ns=3 * S, has_memory=True) is None


def test_member_that_was_told_and_died_leaves_the_place_to_another() -> None:
    election = Election()
    election.master_ended()
    assert election.decide([DEAD, ONE], now_ns=0, has_memory=True) == ONE
    gone = replace(ONE, is_alive=False)
    assert election.decide([DEAD, gone], now_ns=1, has_memory=True) is None
    assert election.decide([ZERO, gone], now_ns=2, has_memory=True) == ZERO


def test_member_that_was_told_and_does_nothing_is_told_again_in_time() -> None:
    election = Election()
    election.master_ended()
    assert election.decide([DEAD, ONE], now_ns=0, has_memory=True) == ONE
    assert election.decide([DEAD, ONE], now_ns=9 * S, has_memory=True) is None
    assert election.decide([DEAD, ONE], now_ns=10 * S, has_memory=True) == ONE


def test_supervisor_that_comes_to_a_cluster_asks_all_that_run_before_it_tells_one() -> None:
    election = Election()
    assert election.decide([STARTING, ONE], now_ns=0, has_memory=True) is None
    assert election.decide([MASTER, ONE], now_ns=S, has_memory=True) is None
    stopped = Election()
    assert stopped.decide([STARTING, ONE], now_ns=0, has_memory=True) is None
    assert stopped.decide([ZERO, ONE], now_ns=1, has_memory=True) == ZERO


def test_member_that_cannot_is_passed_over_for_one_that_may() -> None:
    election = Election()
    election.master_ended()
    assert election.decide([DEAD, ONE], now_ns=0, has_memory=True) == ONE
    failed = replace(ONE, has_failed=True)
    assert election.decide([STARTING, failed], now_ns=1, has_memory=True) is None
    assert election.decide([ZERO, failed], now_ns=2, has_memory=True) == ZERO


def test_where_all_have_failed_one_is_told_again_now_and_then() -> None:
    election = Election()
    election.master_ended()
    failed = replace(ONE, has_failed=True)
    assert election.decide([DEAD, failed], now_ns=0, has_memory=True) == failed
    assert election.decide([DEAD, failed], now_ns=9 * S, has_memory=True) is None
    assert election.decide([DEAD, failed], now_ns=10 * S, has_memory=True) == failed


def test_switch_over_by_hand_is_not_meddled_with() -> None:
    election = Election()
    assert election.decide([MASTER, ONE], now_ns=0, has_memory=True) is None
    assert election.decide([ZERO, ONE], now_ns=S, has_memory=True) is None
    assert election.decide([ZERO, ONE], now_ns=3 * S, has_memory=True) is None
    assert election.decide([ZERO, ONE], now_ns=4 * S, has_memory=True) == ZERO


def test_nobody_else_is_started_while_a_member_goes_on_with_memory() -> None:
    election = Election()
    assert not election.is_succession([ZERO, ONE], now_ns=0)
    election.master_ended()
    assert election.decide([DEAD, ONE], now_ns=5 * S, has_memory=True) == ONE
    assert election.is_succession([DEAD, ONE], now_ns=6 * S - 1)
    assert election.is_succession([DEAD, replace(ONE, is_master=True)], now_ns=6 * S - 1)
    assert not election.is_succession([DEAD, ONE], now_ns=6 * S)
    for over in (replace(ONE, has_failed=True), replace(ONE, is_alive=False)):
        assert not election.is_succession([DEAD, over], now_ns=6 * S - 1)
    other = Election()
    assert other.decide([ZERO, ONE], now_ns=0, has_memory=False) == ZERO
    assert not other.is_succession([ZERO, ONE], now_ns=1)


def test_after_a_masters_end_without_memory_only_answers_since_then_count() -> None:
    """The longest log as of a question before it may be the shortest by now."""
    election = Election()
    assert election.decide([MASTER, ONE], now_ns=0, has_memory=True) is None
    election.master_ended()
    two = replace(ONE, broker_id=2)
    stale = replace(ONE, log_end=600, answered_ns=S)
    fresh = replace(two, log_end=800, answered_ns=S + S // 2)
    assert election.decide([ZERO, stale, two], now_ns=S, has_memory=False) is None
    assert election.decide([DEAD, stale, fresh], now_ns=2 * S, has_memory=False) is None
    assert election.decide([DEAD, stale, fresh], now_ns=6 * S, has_memory=False) == fresh
    now = [replace(each, answered_ns=3 * S) for each in (ZERO, stale, fresh)]
    again = Election()
    again.decide([MASTER, ONE], now_ns=0, has_memory=True)
    assert again.decide([DEAD, ONE], now_ns=S, has_memory=False) is None
    assert again.decide(now, now_ns=3 * S, has_memory=False) == now[2]
