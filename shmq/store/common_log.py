"""Where two logs stop being the same: the last byte up to which a slave's log is its master's.

What lives here: `LogFacts`, `comparable`, `find_common_end`, `plan_cut`. The epochs of both say how
far they may be the same (epochs.common_end); the bytes decide: checksums of stretches, of the last
one first, since most often all are equal, then by halves. Behind the first difference nothing is
the same: a frame says where it stands and when it was stored.

No I/O of its own: both sides are asked through functions. May fail: what those raise.
"""

from __future__ import annotations

import bisect
import zlib
from typing import TYPE_CHECKING, NamedTuple

from shmq.store.cuts import CutPlan
from shmq.store.epochs import common_end

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shmq.store.epochs import Epoch

__all__ = [
    "LogFacts",
    "LogSpan",
    "STRETCH_BYTES",
    "comparable",
    "find_common_end",
    "has_begun_anew",
    "plan_cut",
]

STRETCH_BYTES = 256 << 10
"""Compared at once: less than a request may ask the master to read in its loop."""


class LogFacts(NamedTuple):
    """What is known of a log without its bytes."""

    epochs: Sequence[Epoch]
    """Masterships under which it was written, oldest first."""
    min_position: int
    """First byte kept; the start of a file."""
    end_position: int
    """Behind its last frame."""


class LogSpan(NamedTuple):
    """What is to be compared."""

    begin: int
    """physical_offset from which on both keep the log; the start of a file."""
    end: int
    """physical_offset up to which the two may be the same: the end of a frame."""
    file_size_bytes: int
    """Size of the CommitLog files."""


def comparable(ours: LogFacts, theirs: LogFacts) -> tuple[int, int]:
    """(begin, end) of what both keep and may have in common, as their epochs say. Where the end is
    not above the begin, it is where the epochs say that they parted: nothing is to be compared.
    """
    end = min(ours.end_position, theirs.end_position)
    if ours.epochs and theirs.epochs:
        common = common_end(ours.epochs, ours.end_position, theirs.epochs, theirs.end_position)
        if common is not None:  # else one has forgotten its epochs: the bytes decide
            end = min(end, common)
    return max(ours.min_position, theirs.min_position), end


def plan_cut(
    ours: LogFacts, theirs: LogFacts, common: int | None, *, is_resent: bool
) -> CutPlan | None:
    """What of our log must go before it can go on as a copy of the master's; None: nothing.

    Args:
        ours: our log.
        theirs: the master's.
        common: up to where they are the same; None: of what both keep, nothing is.
        is_resent: whether messages that the master lacks are to be appended again.
    """
    first, end = ours.min_position, ours.end_position
    if common == end >= theirs.min_position:
        return None
    if common == end:  # the master has let all of it expire
        if common_end(ours.epochs, end, theirs.epochs, theirs.end_position) == end:
            return CutPlan(first, end, end, is_kept=False)
        common = None
    if common is not None and common >= max(first, theirs.min_position):
        return CutPlan(common, end, common, is_resent=is_resent)
    if common is not None:  # the epochs say where they parted; it has expired at one of them
        return CutPlan(first, end, max(common, first), is_resent=is_resent)
    if first >= theirs.min_position:
        return CutPlan(first, end, first, is_resent=is_resent)
    return CutPlan(
        first,
        end,
        first,
        is_resent=False,
        reason="the master keeps nothing that is the same: nobody knows what it had",
    )


def has_begun_anew(ours: LogFacts, theirs: LogFacts, plan: CutPlan) -> bool:
    """Whether the master may have lost the log that ours is: nothing of ours would stay, and no
    mastership of the master's is older than our first one. The other way round it is our log that
    began anew, and goes.

    Args:
        ours: our log.
        theirs: the master's.
        plan: what is to be cut of ours.
    """
    if plan.position > ours.min_position or plan.position == plan.end_position:
        return False
    if not plan.is_kept or not ours.epochs or not theirs.epochs:
        return False  # the master had all of it; or a person has taken our epochs away
    return theirs.epochs[0].master_epoch >= ours.epochs[0].master_epoch


def find_common_end(
    span: LogSpan,
    *,
    read_ours: Callable[[int, int], bytes],
    ask_theirs: Callable[[int, int], int],
) -> int:
    """The physical_offset of the first frame of our log that is not the other's; span.end: all are.

    Args:
        span: of the logs.
        read_ours: bytes of our log, given physical_offset and size; all in one file.
        ask_theirs: CRC-32 of the same bytes of the other log.
    """

    def is_same(begin: int, end: int) -> bool:
        return zlib.crc32(read_ours(begin, end - begin)) == ask_theirs(begin, end - begin)

    stretches = _stretches(span)
    if not stretches or is_same(*stretches[-1]):
        return span.end
    # False before True: bisect finds the first that differs.
    first = bisect.bisect_left(stretches, True, key=lambda stretch: not is_same(*stretch))
    begin, end = stretches[first]
    starts = _frame_starts(span, end, read_ours)
    inside = [start for start in starts if begin < start <= end]
    count = bisect.bisect_left(inside, True, key=lambda start: not is_same(begin, start))
    if count:
        return inside[count - 1]
    return max((start for start in starts if start <= begin), default=begin)


def _stretches(span: LogSpan) -> list[tuple[int, int]]:
    """(begin, end) of each, none of them in two files."""
    found = []
    begin = span.begin
    while begin < span.end:
        file_end = begin - begin % span.file_size_bytes + span.file_size_bytes
        end = min(begin + STRETCH_BYTES, file_end, span.end)
        found.append((begin, end))
        begin = end
    return found


def _frame_starts(span: LogSpan, end: int, read_ours: Callable[[int, int], bytes]) -> list[int]:
    """Where the frames of the file that ends at or behind `end` begin, up to `end`; up to damage,
    where there is some: what is cut too early is found to be there already.
    """
    begin = (end - 1) - (end - 1) % span.file_size_bytes
    data = read_ours(begin, end - begin)
    starts = [begin]
    place = 0
    while True:
        size = int.from_bytes(data[place : place + 4], "big")
        if size < 8 or place + size > len(data):
            return starts
        place += size
        starts.append(begin + place)
