"""Where two logs stop being the same, found by checksums of their bytes."""

from __future__ import annotations

import itertools
import zlib

import pytest

from shmq.store.common_log import (
    STRETCH_BYTES,
    LogFacts,
    LogSpan,
    comparable,
    find_common_end,
    has_begun_anew,
    plan_cut,
)
from shmq.store.cuts import CutPlan
from shmq.store.epochs import Epoch

FILE_SIZE = 4 << 20
FRAMES = (STRETCH_BYTES // 2 + 40, 100, 96, STRETCH_BYTES * 3, 128)
"""Sizes, again and again; frames lie across the ends of stretches."""


def log(end: int, *, other_from: int | None = None) -> tuple[bytearray, list[int]]:
    """A log of whole files, and where its frames begin; from a frame on it is another one."""
    data, starts = bytearray(), []
    number = 0
    while len(data) < end:
        size = FRAMES[number % len(FRAMES)]
        number += 1
        room = FILE_SIZE - len(data) % FILE_SIZE
        if room < size + 8:
            size = room
        filler = b"b" if other_from is not None and len(data) >= other_from else b"a"
        starts.append(len(data))
        data += size.to_bytes(4, "big") + filler * (size - 4)
    return data, [*starts, len(data)]


@pytest.fixture(scope="module")
def ours() -> tuple[bytearray, list[int]]:
    return log(3 * FILE_SIZE - 5000)


def found(ours: bytearray, theirs: bytearray, *, begin: int = 0) -> tuple[int, int]:
    """The common end, and how often the other side was asked."""
    asked = []

    def ask(position: int, size: int) -> int:
        assert position // FILE_SIZE == (position + size - 1) // FILE_SIZE
        assert size <= STRETCH_BYTES
        asked.append(position)
        return zlib.crc32(theirs[position : position + size])

    end = find_common_end(
        LogSpan(begin, len(ours), FILE_SIZE),
        read_ours=lambda position, size: bytes(ours[position : position + size]),
        ask_theirs=ask,
    )
    return end, len(asked)


def test_equal_logs_are_equal_after_one_question(ours: tuple[bytearray, list[int]]) -> None:
    assert found(ours[0], ours[0]) == (len(ours[0]), 1)
    assert found(bytearray(), bytearray()) == (0, 0)


def test_each_frame_that_may_be_the_first_other_one_is_found(
    ours: tuple[bytearray, list[int]],
) -> None:
    data, starts = ours
    for start in starts[:-1]:
        theirs, _ = log(len(data), other_from=start)
        end, asked = found(data, theirs)
        assert end == start
        assert asked <= 20
        if start >= FILE_SIZE:
            assert found(data, theirs, begin=FILE_SIZE)[0] == start


def test_single_byte_that_differs_is_found_by_its_frame(ours: tuple[bytearray, list[int]]) -> None:
    data, starts = ours
    for start, after in itertools.pairwise(starts):
        for at in {start, after - 1}:
            theirs = bytearray(data)
            for place in range(at, len(data), STRETCH_BYTES // 4):  # and all that is behind
                theirs[place] ^= 1
            assert found(data, theirs)[0] == start


def test_damage_in_our_log_ends_the_walk_and_never_finds_too_late(
    ours: tuple[bytearray, list[int]],
) -> None:
    data, starts = bytearray(ours[0]), ours[1]
    theirs, _ = log(len(data), other_from=starts[9])
    data[starts[6] : starts[6] + 4] = bytes(4)
    assert found(data, theirs)[0] <= starts[9]


THEIRS = (Epoch(1, 0), Epoch(2, 500), Epoch(4, 900))


def planned(
    ours: tuple[Epoch, ...], our_min: int, our_end: int, their_min: int = 0
) -> CutPlan | None:
    """What is cut where the bytes are the same as far as the epochs say."""
    own = LogFacts(ours, our_min, our_end)
    theirs = LogFacts(THEIRS, their_min, 1000)
    return plan_cut(own, theirs, comparable(own, theirs)[1], is_resent=True)


@pytest.mark.parametrize(
    ("ours", "our_end"),
    [
        ((), 0),
        ((), 300),
        (THEIRS[:1], 300),
        (THEIRS[:1], 500),
        (THEIRS[:2], 900),
        (THEIRS, 700),  # it has heard of a mastership of which it has nothing yet
        (THEIRS, 1000),
    ],
)
def test_log_that_is_a_part_of_the_masters_is_not_cut(
    ours: tuple[Epoch, ...], our_end: int
) -> None:
    assert planned(ours, 0, our_end) is None


@pytest.mark.parametrize(
    ("ours", "our_end", "position"),
    [
        (THEIRS[:1], 501, 500),  # it went on as master 1, the others did not
        ((*THEIRS[:2], Epoch(3, 900)), 950, 900),
        (THEIRS, 1001, 1000),
    ],
)
def test_log_is_cut_where_the_epochs_part(
    ours: tuple[Epoch, ...], our_end: int, position: int
) -> None:
    assert planned(ours, 0, our_end) == CutPlan(position, our_end, position)


def test_log_that_the_master_has_let_expire_goes_and_is_not_kept() -> None:
    assert planned(THEIRS[:1], 0, 400, 600) == CutPlan(0, 400, 400, is_kept=False)
    assert planned(THEIRS[:1], 0, 400, 400) is None


def test_log_of_which_nobody_knows_what_the_master_had_is_kept_and_not_resent() -> None:
    for ours, our_end in (((), 400), ((Epoch(7, 0),), 400)):
        plan = planned(ours, 0, our_end, 600)
        assert plan is not None
        assert (plan.position, plan.is_kept, plan.is_resent) == (0, True, False)
        assert plan.reason


def test_log_that_parted_in_what_has_expired_goes_and_is_resent_from_there() -> None:
    assert planned(THEIRS[:1], 0, 800, 600) == CutPlan(0, 800, 500)
    assert planned(THEIRS[:1], 0, 800, 500) == CutPlan(500, 800, 500)
    assert planned(THEIRS[:1], 600, 800) == CutPlan(600, 800, 600)


def test_log_of_which_no_byte_is_the_same_is_resent_where_the_master_has_lost_nothing() -> None:
    own = LogFacts((), 0, 800)
    assert plan_cut(own, LogFacts(THEIRS, 0, 1000), None, is_resent=True) == CutPlan(0, 800, 0)
    assert plan_cut(own, LogFacts(THEIRS, 0, 1000), None, is_resent=False) == CutPlan(
        0, 800, 0, is_resent=False
    )
    plan = plan_cut(own, LogFacts(THEIRS, 400, 1000), None, is_resent=True)
    assert plan is not None
    assert not plan.is_resent


@pytest.mark.parametrize(
    ("ours", "theirs", "common", "is_anew"),
    [
        pytest.param(((1, 0), 900), ((2, 0), 0), 0, True, id="its disk is lost"),
        pytest.param(((1, 0), 900), ((1, 0), 50), None, True, id="after a reboot"),
        pytest.param(((2, 0), 50), ((1, 0), 900), None, False, id="ours is the new disk"),
        pytest.param(((1, 0), 900), ((1, 0), 300), 300, False, id="some of it stays"),
        pytest.param(None, ((2, 0), 0), 0, False, id="a person has said so"),
    ],
)
def test_log_that_the_master_may_have_lost_is_told_from_one_that_begins_anew(
    ours: tuple[tuple[int, int], int] | None,
    theirs: tuple[tuple[int, int], int],
    common: int | None,
    is_anew: bool,
) -> None:
    def facts(epoch: tuple[int, int], end: int) -> LogFacts:
        return LogFacts([Epoch(*epoch)], 0, end)

    own = LogFacts([], 0, 900) if ours is None else facts(*ours)
    plan = plan_cut(own, facts(*theirs), common, is_resent=True)
    assert plan is not None
    assert has_begun_anew(own, facts(*theirs), plan) == is_anew
