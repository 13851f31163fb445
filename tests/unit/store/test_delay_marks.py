"""How long delayed messages have waited: never too short, whatever the wall clock does."""

import random
from itertools import pairwise
from pathlib import Path

import pytest

from shmq.errors import ConfigError, StoreCorruptError
from shmq.store.delay_marks import SLICE_LEAST_NS, DelayMarks

S = 1_000_000_000
YEAR_MS = 365 * 86_400_000
DELAYS = [1 * S, 5 * S, 7200 * S]


def test_message_is_due_its_delay_after_it_was_seen() -> None:
    marks = DelayMarks(DELAYS)
    marks.cover(1, 3, 10 * S)
    marks.cover(1, 4, 11 * S)
    assert marks.covered(1) == 4
    assert [marks.due_ns(1, at) for at in (0, 2, 3, 4)] == [11 * S, 11 * S, 12 * S, None]
    assert [marks.due_end(1, at) for at in (10 * S, 11 * S - 1, 11 * S, 12 * S)] == [0, 0, 3, 4]
    assert marks.due_end(2, 100 * S) == 0


def test_what_comes_close_together_shares_a_mark_and_is_due_with_the_last_of_it() -> None:
    marks = DelayMarks(DELAYS)
    step = SLICE_LEAST_NS // 2
    for number in range(1000):
        marks.cover(1, number + 1, number * step)
    for number in range(1000):
        due_ns = marks.due_ns(1, number)
        assert due_ns is not None
        early_or_late_ns = due_ns - number * step - 1 * S
        assert 0 <= early_or_late_ns < marks.slice_ns(1)
    assert len(marks.to_dict(boot_id="a", now_ns=0, wall_ms=0)["levels"]["1"]) <= 500  # type: ignore[index]


def test_marks_of_a_level_are_bounded() -> None:
    marks = DelayMarks(DELAYS)
    for number in range(20_000):  # 20 a second through the whole delay, and on
        now_ns = number * 500_000_000
        marks.cover(3, number + 1, now_ns)
        marks.forget(3, marks.due_end(3, now_ns))
    assert len(marks.to_dict(boot_id="a", now_ns=0, wall_ms=0)["levels"]["3"]) <= 4098  # type: ignore[index]


def test_forgotten_marks_leave_the_last_one_to_say_how_far() -> None:
    marks = DelayMarks(DELAYS)
    marks.cover(1, 3, 1 * S)
    marks.cover(1, 5, 2 * S)
    marks.forget(1, 5)
    assert marks.covered(1) == 5
    assert marks.due_ns(1, 2) == 3 * S


def test_what_a_recovery_lost_is_new_when_it_comes_again() -> None:
    marks = DelayMarks(DELAYS)
    for end in (3, 6, 9):
        marks.cover(1, end, end * S)
    marks.cut(1, 4)
    assert marks.covered(1) == 4
    assert marks.due_ns(1, 3) == 7 * S
    marks.cut(1, 0)
    assert marks.covered(1) == 0


@pytest.mark.parametrize("jump_ms", [0, 10 * YEAR_MS, -10 * YEAR_MS])
def test_within_a_boot_the_wall_clock_does_not_count(jump_ms: int, tmp_path: Path) -> None:
    marks = DelayMarks(DELAYS)
    marks.cover(1, 0, 50 * S)  # an empty queue
    marks.cover(2, 7, 100 * S)
    path = tmp_path / "marks"
    marks.save(path, boot_id="this", now_ns=101 * S, wall_ms=1_800_000_000_000)
    again = DelayMarks(DELAYS)
    is_same = again.load(path, boot_id="this", now_ns=103 * S, wall_ms=1_800_000_000_000 + jump_ms)
    assert is_same is True
    assert again.due_ns(2, 6) == 105 * S


@pytest.mark.parametrize(
    ("off_ms", "left_ns"), [(0, 4 * S), (1500, 2.5 * S), (10**12, None), (-(10**12), 4 * S)]
)
def test_across_boots_the_wall_clock_says_how_long_the_machine_was_off(
    off_ms: int, left_ns: float | None, tmp_path: Path
) -> None:
    """Set back, it counts as not off at all: late by what it was off. None: due at once."""
    marks = DelayMarks(DELAYS)
    marks.cover(2, 7, 100 * S)
    path = tmp_path / "marks"
    marks.save(path, boot_id="one", now_ns=101 * S, wall_ms=1_800_000_000_000)
    again = DelayMarks(DELAYS)
    now_ns = 3 * S
    is_same = again.load(path, boot_id="two", now_ns=now_ns, wall_ms=1_800_000_000_000 + off_ms)
    assert is_same is False
    due_ns = again.due_ns(2, 6)
    assert due_ns is not None
    assert due_ns <= now_ns if left_ns is None else due_ns == now_ns + left_ns


def test_levels_may_come_and_go() -> None:
    marks = DelayMarks(DELAYS)
    for level in (1, 2, 3):
        marks.cover(level, level, S)
    data = marks.to_dict(boot_id="a", now_ns=2 * S, wall_ms=0)
    fewer, more = DelayMarks(DELAYS[:2]), DelayMarks([*DELAYS, S])
    for other in (fewer, more):
        assert other.restore(data, boot_id="a", now_ns=2 * S, wall_ms=0)
        assert other.covered(2) == 2
    assert more.covered(4) == 0


def test_file_that_does_not_hold_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "marks"
    assert DelayMarks(DELAYS).load(path, boot_id="a", now_ns=0, wall_ms=0) is None
    marks = DelayMarks(DELAYS)
    marks.cover(1, 3, 1)
    marks.save(path, boot_id="a", now_ns=1, wall_ms=1)
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"boottime_ns": 1', b'"boottime_ns": 2'))
    with pytest.raises(StoreCorruptError, match="crc32"):
        DelayMarks(DELAYS).load(path, boot_id="a", now_ns=0, wall_ms=0)


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 2},
        {"levels": []},
        {"levels": {"1": [[1]]}},
        {"levels": {"1": [[1, "x"]]}},
        {"levels": {"1": [[5, 1], [4, 2]]}},
        {"levels": {"1": [[5, 2], [6, 1]]}},
    ],
)
def test_marks_of_another_shape_are_refused(change: dict[str, object]) -> None:
    data = DelayMarks(DELAYS).to_dict(boot_id="a", now_ns=9, wall_ms=9) | change
    with pytest.raises(ConfigError):
        DelayMarks(DELAYS).restore(data, boot_id="a", now_ns=9, wall_ms=9)


def test_random_lives_never_fire_early_and_never_later_than_stated(
    tmp_path: Path, rng: random.Random
) -> None:
    """A queue through restarts and reboots, its wall clock set at random but while it is off."""
    path = tmp_path / "marks"
    now_ns, wall_ms, boot = 50 * S, 1_800_000_000_000, 0
    marks = DelayMarks(DELAYS)
    appended: list[int] = []  # real time of each, on a clock of our own
    real_ns, next_offset, fired = 0, 0, []

    def passes(ns: int) -> None:
        nonlocal real_ns, now_ns, wall_ms
        real_ns, now_ns, wall_ms = real_ns + ns, now_ns + ns, wall_ms + ns // 1_000_000

    for _ in range(4000):
        what = rng.random()
        if what < 0.6:
            appended += [real_ns] * rng.randrange(3)
            marks.cover(2, len(appended), now_ns)
        elif what < 0.97:
            passes(rng.randrange(SLICE_LEAST_NS * 40))
        elif what < 0.98:
            wall_ms += rng.choice((-1, 1)) * rng.randrange(10 * YEAR_MS)
        else:
            marks.save(path, boot_id=str(boot), now_ns=now_ns, wall_ms=wall_ms)
            passes(rng.randrange(3) * S)
            if what > 0.99:  # the machine too
                boot, now_ns = boot + 1, rng.randrange(30 * S)
            marks = DelayMarks(DELAYS)
            marks.load(path, boot_id=str(boot), now_ns=now_ns, wall_ms=wall_ms)
        due_end = marks.due_end(2, now_ns)
        while next_offset < due_end:
            fired.append(real_ns - appended[next_offset])
            next_offset += 1
        marks.forget(2, next_offset)
    assert len(fired) > 100
    assert min(fired) >= 5 * S
    ends = [marks.due_ns(2, at) for at in range(next_offset, len(appended))]
    assert all(a is not None and b is not None and a <= b for a, b in pairwise(ends))
