"""The checker of histories finds what breaks each invariant."""

import pytest

from tests.support.invariants import (
    Appended,
    Got,
    Half,
    History,
    Place,
    Popped,
    Reign,
    Sent,
    Stored,
    Told,
    check_appended,
)

S = 1_000_000_000


def _history() -> History:
    history = History()
    history.sent = {b"a": Sent(0, 2 * S, True), b"b": Sent(0, 0, True), b"c": Sent(0, 0, False)}
    history.got[b"a"] = [Got(2 * S, 0), Got(5 * S, 1)]
    history.got[b"b"] = [Got(1, 0)]
    history.stored = [Stored("t", 0, 5, b"a"), Stored("t", 0, 6, b"b"), Stored("t", 1, 0, b"c")]
    return history


def test_whole_history_passes() -> None:
    history = _history()
    history.check_acked_is_delivered()
    history.check_nothing_is_invented()
    history.check_queues_are_whole()
    assert history.check_delays(retry_delay_ns=3 * S, late_ns=1) == 1
    history.check_order({"k": [0, 1, 1, 2]})
    history.check_drained({b"a", b"b"})
    assert history.doubled_count() == 0


def test_each_break_is_named() -> None:
    history = _history()
    history.sent[b"d"] = Sent(0, 0, True)
    with pytest.raises(AssertionError, match="I1: 1 acknowledged"):
        history.check_acked_is_delivered()
    with pytest.raises(AssertionError, match="I10"):
        history.check_drained({b"d"})
    history.got[b"x"].append(Got(1, 0))
    with pytest.raises(AssertionError, match="I2"):
        history.check_nothing_is_invented()
    history.stored.append(Stored("t", 0, 8, b"c"))
    with pytest.raises(AssertionError, match="I3"):
        history.check_queues_are_whole()
    with pytest.raises(AssertionError, match="I9"):
        history.check_order({"k": [0, 2]})


@pytest.mark.parametrize(
    ("calls", "said"),
    [
        ([Got(2 * S - 1, 0)], "1 ns early"),
        ([Got(2 * S, 0), Got(5 * S - 1, 1)], "try 1 after"),
        ([Got(2 * S + 2, 0)], "2 ns late"),
    ],
)
def test_early_and_late_are_found(calls: list[Got], said: str) -> None:
    history = _history()
    history.got[b"a"] = calls
    with pytest.raises(AssertionError, match=said):
        history.check_delays(retry_delay_ns=3 * S, late_ns=1)


def test_doubles_are_counted_for_each_try() -> None:
    history = _history()
    history.got[b"a"] += [Got(6 * S, 1), Got(7 * S, 1)]
    assert history.doubled_count() == 2


def test_doubles_beyond_what_was_in_flight_are_too_many() -> None:
    history = _history()
    assert history.check_doubled(0) == 0
    history.got[b"b"].append(Got(2, 0))
    assert history.check_doubled(1) == 1
    with pytest.raises(AssertionError, match="I14: 1 came twice, wanted 0"):
        history.check_doubled(0)


def test_queue_that_does_not_begin_where_it_should_is_found() -> None:
    history = _history()
    history.check_queues_are_whole()
    with pytest.raises(AssertionError, match="I3: .* wanted queue_offset 0"):
        history.check_queues_are_whole(begin=0)


def test_what_was_seen_and_is_gone_or_another_is_found() -> None:
    history = _history()
    history.seen = {Place("t", 0, 5): b"a", Place("t", 1, 0): b"c"}
    history.check_seen_is_kept()
    history.seen[Place("t", 0, 6)] = b"c"
    with pytest.raises(AssertionError, match="I3: .* was b'c' and is b'b'"):
        history.check_seen_is_kept()
    history.seen = {Place("t", 0, 7): b"d"}
    with pytest.raises(AssertionError, match="I4: b'd' was seen at .* and is lost"):
        history.check_seen_is_kept()


def _failover() -> History:
    history = History()
    history.reigns = [
        Reign("a", 1, "first", 0),
        Reign("a", 1, "first", 3),  # told of twice
        Reign("b", 1, "other", 4),
        Reign("a", 2, "second", 10),
    ]
    history.told = [Told("a", 1, 10), Told("b", 1, 20), Told("a", 2, 11)]
    return history


def test_masters_one_after_the_other_pass() -> None:
    _failover().check_epochs()


@pytest.mark.parametrize("epoch", [1, 2])
def test_two_masters_in_an_epoch_or_an_older_one_are_found(epoch: int) -> None:
    history = _failover()
    history.reigns.append(Reign("a", epoch, "third", 20))
    with pytest.raises(AssertionError, match="I5: .* is master beside or before"):
        history.check_epochs()


def test_acknowledgement_of_a_fenced_master_is_found() -> None:
    history = _failover()
    history.told.append(Told("a", 1, 11))
    with pytest.raises(AssertionError, match="I5: .* had a successor from 10 on"):
        history.check_epochs()
    history.told = [Told("a", 3, 11)]
    with pytest.raises(AssertionError, match="I5: .* epoch without a master"):
        history.check_epochs()


def _transactions() -> History:
    history = History()
    history.halves = {
        b"committed": Half(5, is_committed=True, check_count=0),
        b"rolled back": Half(5, is_committed=False, check_count=1),
        b"open": Half(None, is_committed=False, check_count=2),
    }
    history.got[b"committed"].append(Got(5, 0))
    return history


def test_transactions_as_they_should_be_pass() -> None:
    _transactions().check_transactions()


@pytest.mark.parametrize(
    ("key", "at_ns", "said"),
    [
        (b"committed", 4, "came 1 ns before it was committed"),
        (b"rolled back", 9, "was never committed"),
        (b"open", 9, "was never committed"),
    ],
)
def test_half_message_that_is_seen_is_found(key: bytes, at_ns: int, said: str) -> None:
    history = _transactions()
    history.got[key].append(Got(at_ns, 0))
    with pytest.raises(AssertionError, match=f"I6: .*{said}"):
        history.check_transactions()


def test_half_message_that_nobody_asks_about_is_found() -> None:
    history = _transactions()
    history.halves[b"open"] = Half(None, is_committed=False, check_count=0)
    with pytest.raises(AssertionError, match="I6: .* never asked about"):
        history.check_transactions()


def _pops() -> History:
    history = History()
    history.popped = [
        Popped("g", b"a", 0, 1, 10),
        Popped("h", b"a", 1, 2, 10),  # another group's
        Popped("g", b"a", 5, 6, 10, is_delivery=False),  # hidden for longer
        Popped("g", b"a", 14, 15, 10),
        Popped("g", b"a", 16, 17, 0, is_delivery=False),  # shown again
        Popped("g", b"a", 17, 18, 10),
    ]
    return history


def test_pops_one_after_the_other_pass() -> None:
    _pops().check_invisibility()


def test_second_delivery_of_what_is_invisible_is_found() -> None:
    history = _pops()
    history.popped.append(Popped("g", b"a", 25, 26, 10))
    with pytest.raises(AssertionError, match="I8: b'a' came again to g 1 ns early"):
        history.check_invisibility()


def _appended(*messages: tuple[int, int]) -> list[Appended]:
    return [
        Appended("p", sequence, Place("t", 0, queue_offset)) for sequence, queue_offset in messages
    ]


def test_log_with_each_message_once_passes() -> None:
    assert check_appended(_appended((0, 0), (1, 1))) == {"p": 2}


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (((0, 0), (0, 1)), "I1: lost or doubled"),
        (((0, 0), (2, 1)), "I1: lost or doubled"),
        (((0, 0), (1, 2)), "I3: .* wanted 1"),
        (((0, 1),), "I3: .* wanted 0"),
    ],
)
def test_log_that_lacks_or_doubles_is_found(messages: tuple[tuple[int, int]], said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_appended(_appended(*messages))
