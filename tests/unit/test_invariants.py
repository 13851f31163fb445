"""The checker of histories finds what breaks each invariant."""

import pytest

from tests.support.invariants import Got, History, Sent, Stored

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
