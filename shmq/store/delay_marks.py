"""How long delayed messages have waited, by a clock that nobody can set.

What lives here: `DelayMarks`, a state machine without I/O, and its file `shmq/delay_marks.json`.
The wall clock of a record says when it was stored only as far as nobody sets it; so the schedule
service notes, for each delay level, how far its queue was at a time of CLOCK_BOOTTIME (a mark). A
message below a mark's end was there at the mark's time: it is due that time plus the delay, and
never before. A mark stands for the messages of a slice of time (`slice_ns`), which is how much
later than its delay a message may be due.

Over a restart marks go on where the boot is the same. In another boot the clock has begun anew, and
only the wall clock says how long the machine was off: that much is counted as waited, and no
less than nothing. Messages that no mark covers: see `cover`.

Which process: the broker, the schedule service's thread. What may fail: StoreCorruptError for a
file that does not hold; saving as durable_file says.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from shmq.errors import ConfigError, StoreCorruptError
from shmq.json_fields import Fields
from shmq.store import checked_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = [
    "DELAY_MARKS_FILE",
    "DELAY_MARKS_KEY",
    "DelayMarks",
    "SLICES_OF_A_DELAY",
    "SLICE_LEAST_NS",
    "marked_ns",
]

DELAY_MARKS_FILE = "delay_marks.json"
DELAY_MARKS_KEY = "shmqDelayMarks"
"""Under which a master's slaves get them."""
FORMAT_VERSION = 1
SLICE_LEAST_NS = 5_000_000
"""Messages stored within 5 ms of each other may share a mark: half of what a flush takes."""
SLICES_OF_A_DELAY = 4096
"""Or within this part of their delay: bounds the marks of a level, and lateness to 0.025 %."""


class DelayMarks:
    """Marks of all levels. The caller says what time it is; any thread, one at a time.

    Args:
        delays_ns: delay of each level, from level 1 on.
    """

    def __init__(self, delays_ns: Sequence[int]) -> None:
        self._delays_ns = tuple(delays_ns)
        self._marks: list[deque[tuple[int, int]]] = [deque() for _ in delays_ns]
        self._slice_begin_ns = [0] * len(self._delays_ns)

    def slice_ns(self, level: int) -> int:
        """Nanoseconds of one mark of a level: how late its messages may be due."""
        return max(SLICE_LEAST_NS, self._delays_ns[level - 1] // SLICES_OF_A_DELAY)

    def covered(self, level: int) -> int:
        """The queue_offset below which every message of a level has a mark; 0 without any."""
        marks = self._marks[level - 1]
        return marks[-1][0] if marks else 0

    def cover(self, level: int, end: int, at_ns: int) -> None:
        """Messages of a level below `end` were there at a time, which is not before the last one's.

        Args:
            level: 1 and up.
            end: queue_offset behind the last of them.
            at_ns: CLOCK_BOOTTIME.
        """
        marks = self._marks[level - 1]
        if end <= self.covered(level):
            return
        if marks and at_ns - self._slice_begin_ns[level - 1] < self.slice_ns(level):
            marks[-1] = end, at_ns
            return
        self._slice_begin_ns[level - 1] = at_ns
        marks.append((end, at_ns))

    def due_end(self, level: int, now_ns: int) -> int:
        """The queue_offset below which every message of a level is due; 0: none is."""
        delay_ns, end = self._delays_ns[level - 1], 0
        for mark_end, at_ns in self._marks[level - 1]:
            if at_ns + delay_ns > now_ns:
                break
            end = mark_end
        return end

    def due_ns(self, level: int, queue_offset: int) -> int | None:
        """When a message is due, CLOCK_BOOTTIME; None where no mark covers it."""
        for end, at_ns in self._marks[level - 1]:
            if queue_offset < end:
                return at_ns + self._delays_ns[level - 1]
        return None

    def forget(self, level: int, queue_offset: int) -> None:
        """Everything below a queue_offset was delivered. The last mark stays: it says how far."""
        marks = self._marks[level - 1]
        while len(marks) > 1 and marks[0][0] <= queue_offset:
            marks.popleft()

    def cut(self, level: int, max_queue_offset: int) -> None:
        """The queue ends here, after a recovery that lost a tail: what comes now is new."""
        marks = self._marks[level - 1]
        last_ns = 0
        is_cut = False
        while marks and marks[-1][0] > max_queue_offset:
            last_ns = marks.pop()[1]
            is_cut = True
        if is_cut and max_queue_offset > (marks[-1][0] if marks else 0):
            marks.append((max_queue_offset, last_ns))

    # ---- the file ----------------------------------------------------------------------------

    def to_dict(self, *, boot_id: str, now_ns: int, wall_ms: int) -> dict[str, object]:
        """As the file has it.

        Args:
            boot_id: whose CLOCK_BOOTTIME it is.
            now_ns: that clock, now.
            wall_ms: milliseconds since 1970, now.
        """
        return {
            "format_version": FORMAT_VERSION,
            "boot_id": boot_id,
            "boottime_ns": now_ns,
            "wall_ms": wall_ms,
            "levels": {
                str(level): [list(mark) for mark in marks]
                for level, marks in enumerate(self._marks, 1)
                if marks
            },
        }

    def restore(
        self, data: Mapping[str, object], *, boot_id: str, now_ns: int, wall_ms: int
    ) -> bool:
        """Take the marks of a file; whether they are of this boot. Levels that are no more go.

        Raises:
            ConfigError: it is of another shape.
        """
        take = Fields(data, what=DELAY_MARKS_FILE)
        version = take.number("format_version")
        if version != FORMAT_VERSION:
            raise ConfigError(f"{take.what}: format {version}, this shmq knows {FORMAT_VERSION}")
        is_same_boot = take.text("boot_id") == boot_id
        then_ns, then_ms = take.number("boottime_ns"), take.number("wall_ms")
        shift_ns = 0
        if not is_same_boot:
            off_ns = max(0, wall_ms - then_ms) * 1_000_000
            shift_ns = now_ns - then_ns - off_ns
        levels = data.get("levels")
        if not isinstance(levels, dict):
            raise ConfigError(f"{take.what}: levels: {levels!r}, wanted an object")
        made: list[deque[tuple[int, int]]] = [deque() for _ in self._delays_ns]
        for level in range(1, len(made) + 1):
            for mark in levels.get(str(level), ()):
                end, at_ns = _mark(mark, take.what)
                last = made[level - 1][-1] if made[level - 1] else (0, None)
                at_ns = min(at_ns + shift_ns, now_ns)
                if end <= last[0] or (last[1] is not None and at_ns < last[1]):
                    raise ConfigError(f"{take.what}: level {level}: {mark!r} is out of order")
                made[level - 1].append((end, at_ns))
        self._marks = made
        return is_same_boot

    def save(self, path: Path, *, boot_id: str, now_ns: int, wall_ms: int) -> dict[str, object]:
        """Replace the file, durably; what it holds now.

        Raises:
            DiskFullError, StoreError: the old one stands.
        """
        data = self.to_dict(boot_id=boot_id, now_ns=now_ns, wall_ms=wall_ms)
        checked_json.save(path, data)
        return data

    def load(self, path: Path, *, boot_id: str, now_ns: int, wall_ms: int) -> bool | None:
        """Take the marks of the file; whether they are of this boot, None without a file.

        Raises:
            StoreCorruptError: it does not hold.
        """
        data = checked_json.load(path)
        if data is None:
            return None
        try:
            return self.restore(data, boot_id=boot_id, now_ns=now_ns, wall_ms=wall_ms)
        except ConfigError as error:
            raise StoreCorruptError(f"read {path.parent}/{error}") from error


def marked_ns(data: Mapping[str, object], boot_id: str) -> int:
    """When marks were written as a file has them, CLOCK_BOOTTIME; 0: in another boot, or they are
    none.
    """
    take = Fields(data, what=DELAY_MARKS_FILE)
    try:
        return take.number("boottime_ns") if take.text("boot_id") == boot_id else 0
    except ConfigError:
        return 0


def _mark(item: object, what: str) -> tuple[int, int]:
    if not isinstance(item, list) or len(item) != 2 or not all(type(n) is int for n in item):
        raise ConfigError(f"{what}: mark {item!r}, wanted [queue_offset, boottime_ns]")
    return item[0], item[1]
