"""When an orderly consumer may begin a message, and when it lets go of a queue."""

from types import SimpleNamespace
from typing import Any

from shmq.client.queue_locks import RENEW_NS, VALID_NS, QueueLocks
from shmq.result import MessageQueue
from tests.support.clock import SteppedClock

KEY = MessageQueue("t", "broker-a", 0)


class Scene:
    def __init__(self, *, is_asked: bool = True) -> None:
        self.clock = SteppedClock()
        self.let_go_count = 0
        self.locks = QueueLocks(self.clock, self._let_go, is_asked=is_asked)
        self.link = SimpleNamespace(is_up=True)

    def _let_go(self) -> None:
        self.let_go_count += 1

    def queue(self) -> Any:
        """What of a ProcessQueue is looked at."""
        return SimpleNamespace(message_queue=KEY, link=self.link, is_dropped=False)

    def lock(self) -> None:
        self.locks.locked([KEY], self.clock.monotonic_ns())


def test_nothing_begins_without_a_lock():
    scene = Scene()
    assert not scene.locks.try_begin(scene.queue())
    scene.lock()
    assert scene.locks.try_begin(scene.queue())


def test_one_call_of_a_queue_at_a_time_whoever_comes_with_it():
    scene = Scene()
    scene.lock()
    old, new = scene.queue(), scene.queue()
    assert scene.locks.try_begin(old)
    old.is_dropped = True
    assert not scene.locks.try_begin(new), "the old one's listener still runs"
    scene.locks.end(old)
    assert scene.locks.try_begin(new)


def test_nothing_begins_under_a_lock_that_was_not_renewed_or_while_its_broker_is_away():
    scene = Scene()
    scene.lock()
    scene.link.is_up = False
    assert not scene.locks.try_begin(scene.queue())
    scene.link.is_up = True
    scene.clock.advance(ms=VALID_NS // 1_000_000)
    assert not scene.locks.try_begin(scene.queue())
    scene.lock()
    assert scene.locks.try_begin(scene.queue())


def test_a_queue_is_let_go_when_its_call_has_returned_and_begins_nothing_meanwhile():
    scene = Scene()
    scene.lock()
    queue = scene.queue()
    assert scene.locks.try_begin(queue)
    assert scene.locks.leave([KEY]) == set()
    assert scene.let_go_count == 0
    scene.locks.end(queue)
    assert scene.let_go_count == 1
    assert not scene.locks.try_begin(queue)
    assert scene.locks.leave([KEY]) == {KEY}


def test_a_queue_that_stays_after_all_goes_on():
    scene = Scene()
    scene.lock()
    assert scene.locks.leave([KEY]) == {KEY}
    scene.locks.stay([KEY])
    assert scene.locks.try_begin(scene.queue())


def test_locks_are_due_for_renewal_long_before_they_are_invalid():
    scene = Scene()
    scene.lock()
    assert scene.locks.due() == []
    scene.clock.advance(ms=RENEW_NS // 1_000_000)
    assert scene.locks.due() == [KEY]
    scene.locks.forget_broker("broker-a")
    assert scene.locks.known() == []


def test_in_broadcasting_nobody_is_asked():
    scene = Scene(is_asked=False)
    assert scene.locks.try_begin(scene.queue())
