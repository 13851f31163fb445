"""Which calls of listeners last too long, and whose they are when they end."""

from collections import deque

from shmq.client.overdue import ListenerCalls
from shmq.core import core
from tests.support.clock import SteppedClock

MINUTE_NS = 60_000_000_000


def _message() -> core.Message:
    return core.Message("t", b"body")


def test_calls_are_overdue_by_their_own_time() -> None:
    clock = SteppedClock()
    calls = ListenerCalls(clock)
    first, second = _message(), _message()
    calls.begin(first, deque())
    clock.advance(ms=30_000)
    number = calls.begin(second, deque())
    clock.advance(ms=29_999)
    assert calls.older_than(MINUTE_NS) == []
    clock.advance(ms=1)
    assert [call.message for call in calls.older_than(MINUTE_NS)] == [first]
    clock.advance(ms=30_000)
    assert [call.message for call in calls.older_than(MINUTE_NS)] == [first, second]
    assert calls.end(number)
    assert [call.message for call in calls.older_than(MINUTE_NS)] == [first]


def test_wall_clock_that_is_set_makes_nothing_overdue() -> None:
    clock = SteppedClock()
    calls = ListenerCalls(clock)
    calls.begin(_message(), deque())
    clock.jump_wall(ms=10**11)
    assert calls.older_than(1) == []


def test_call_ends_once() -> None:
    calls = ListenerCalls(SteppedClock())
    number = calls.begin(_message(), deque())
    assert calls.end(number)
    assert not calls.end(number)
