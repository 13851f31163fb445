"""When a broker is started, restarted, fenced, stopped and given up; time is the test's."""

import pytest

from shmq.config import ClusterConfig
from shmq.namesrv.broker_watch import Action, BrokerWatch, Phase, SilenceWatch

MS = 1_000_000
HUNG_MS = 10_000


class Watched(BrokerWatch):
    """A watch and a broker that does as it is told: `at` is attended time in ms."""

    def __init__(self, **settings: int) -> None:
        super().__init__(ClusterConfig(**settings), hung_timeout_ms=HUNG_MS)
        self.at = 0

    def step(self, ms: int = 0) -> Action | None:
        self.at += ms
        return self.tick(self.at * MS)

    def begin(self) -> None:
        assert self.step() is Action.START
        self.started(self.at * MS)

    def live(self, ms: int) -> None:
        """Run for a while, giving a sign of life each second, then end."""
        for _ in range(ms // 1_000):
            assert self.step(1_000) is None
            self.heard(self.at * MS)
        self.at += ms % 1_000
        self.ended(self.at * MS)

    def restart_after(self) -> int:
        """How many ms it takes until it is to be started again."""
        begin = self.at
        while self.step() is None:
            assert self.phase is Phase.BACKING_OFF
            self.at += 1
        return self.at - begin


def test_first_start_is_at_once() -> None:
    watched = Watched()
    assert watched.step() is Action.START
    watched.started(0)
    assert (watched.phase, watched.restart_count) == (Phase.STARTING, 0)
    watched.heard(0)
    assert watched.phase is Phase.RUNNING


def test_delay_doubles_to_its_end_and_begins_anew_after_a_long_life() -> None:
    watched = Watched(crash_count_max=100)
    delays = []
    for _ in range(10):
        watched.begin()
        watched.live(100)
        assert watched.start_in_ms is not None
        delays.append(watched.restart_after())
        assert delays[-1] == watched.start_in_ms
    assert delays == [0, 50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]
    watched.begin()
    watched.live(9_999)
    assert watched.restart_after() == 5000
    watched.begin()
    watched.live(10_000)
    assert watched.restart_after() == 0
    assert watched.restart_count == 11


def test_five_ends_within_half_a_minute_are_given_up() -> None:
    watched = Watched()
    for _ in range(4):
        watched.begin()
        watched.live(0)
        assert watched.phase is Phase.BACKING_OFF
        watched.restart_after()
    watched.begin()
    watched.live(0)
    assert (watched.phase, watched.start_in_ms) == (Phase.GIVEN_UP, None)
    assert watched.step(10**9) is None


def test_ends_that_lie_further_apart_are_not() -> None:
    watched = Watched()
    for _ in range(20):
        watched.begin()
        watched.live(8_000)
        watched.restart_after()
    assert watched.phase is Phase.BACKING_OFF


def test_start_that_fails_is_an_end() -> None:
    watched = Watched()
    for _ in range(5):
        watched.restart_after()
        watched.ended(watched.at * MS)
    assert (watched.phase, watched.restart_count) == (Phase.GIVEN_UP, 0)


def test_broker_that_falls_silent_is_fenced_once_and_restarted() -> None:
    watched = Watched()
    watched.begin()
    watched.heard(0)
    assert watched.step(HUNG_MS - 1) is None
    assert watched.step(1) is Action.FENCE
    assert watched.phase is Phase.FENCED
    assert watched.step(60_000) is None, "the kernel has not said yet that it ended"
    watched.heard(watched.at * MS)
    assert watched.phase is Phase.FENCED, "too late"
    watched.ended(watched.at * MS)
    assert watched.restart_after() == 0


def test_sign_of_life_keeps_it() -> None:
    watched = Watched()
    watched.begin()
    for _ in range(100):
        assert watched.step(HUNG_MS - 1) is None
        watched.heard(watched.at * MS)
    assert watched.phase is Phase.RUNNING


def test_first_sign_of_life_has_a_time_of_its_own() -> None:
    watched = Watched(start_timeout_ms=60_000)
    watched.begin()
    assert watched.step(59_999) is None
    assert watched.step(1) is Action.FENCE


def test_stop_asks_then_kills_after_its_time_and_starts_no_more() -> None:
    watched = Watched(stop_timeout_ms=1_000)
    watched.begin()
    assert watched.stop(0)
    assert not watched.stop(0)
    assert watched.phase is Phase.STOPPING
    assert watched.step(999) is None
    assert watched.step(1) is Action.KILL
    assert watched.step(1) is None
    watched.ended(watched.at * MS)
    assert watched.phase is Phase.STOPPED
    assert watched.step(10**9) is None


@pytest.mark.parametrize("phase", ["BACKING_OFF", "GIVEN_UP", "never started"])
def test_stop_of_what_does_not_run_is_done_at_once(phase: str) -> None:
    watched = Watched(crash_count_max=1 if phase == "GIVEN_UP" else 5)
    if phase != "never started":
        watched.begin()
        watched.live(0)
        assert watched.phase == phase
    assert not watched.stop(watched.at * MS)
    assert watched.phase is Phase.STOPPED
    assert watched.step(10**9) is None


def test_adopted_broker_is_watched_like_any_other() -> None:
    watched = Watched()
    watched.started(0, is_adopted=True)
    assert watched.step() is None
    watched.heard(0)
    assert watched.step(HUNG_MS) is Action.FENCE
    watched.ended(watched.at * MS)
    watched.restart_after()
    watched.started(watched.at * MS)
    assert watched.restart_count == 1


def test_broker_that_cannot_be_seen_is_tried_later_and_not_given_up() -> None:
    watched = Watched()
    for _ in range(20):
        assert watched.step() is Action.START
        watched.postpone(watched.at * MS)
        assert watched.step(4_999) is None
        watched.at += 1
    assert watched.phase is Phase.BACKING_OFF


def test_silence_counts_from_the_last_sign() -> None:
    silence = SilenceWatch(0, first_timeout_ms=100, timeout_ms=10)
    assert not silence.is_hung(100 * MS - 1)
    assert silence.is_hung(100 * MS)
    silence.heard(50 * MS)
    assert not silence.is_hung(60 * MS - 1)
    assert silence.is_hung(60 * MS)
