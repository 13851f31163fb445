"""Walks the frames of a CommitLog file as it lies on disk, and finds its way again behind damage.

What lives here: `scan_file`, which reads one file in windows and gives a row for each frame that
holds, the holes between them and how the file ends. Files are read, never mapped: a bad sector is
then an error with a name, not a signal that kills the process.

    rows: (n, 48) bytes, one `Row` per frame: physical_offset u64, queue_offset u64,
          store_timestamp i64, tags_code i64, total_size u32, queue_id u32, topic_number u32,
          sys_flag u32; little-endian. topic_number counts in `topics`, a dict that grows.

Below `trusted_end` (what is known to have been on disk) a frame that does not hold is damage: a
hole up to the next frame that holds, and what follows is kept. From there on it is the tail.

Which process: the broker at recovery and when a file is complete; tools. Reads only; blocks for the
disk; the checking runs without the GIL. What may fail: StoreError if the file cannot be read.
"""

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum, unique
from typing import NamedTuple

from shmq.core import core
from shmq.errors import StoreError

__all__ = [
    "DELAY_LEVELS_MS",
    "Damage",
    "FileScan",
    "Identity",
    "ROW_SIZE",
    "Row",
    "ScanEnd",
    "TopicNumbers",
    "iter_rows",
    "row_at",
    "scan_file",
]

ROW_SIZE = 48
_ROW = struct.Struct("<QQqqIIII")
WINDOW_BYTES = 8 << 20
"""Bytes read at a time: large enough that reading a frame again at the seam costs nothing."""

_MINUTE_MS = 60_000
DELAY_LEVELS_MS: tuple[int, ...] = (
    1_000,
    5_000,
    10_000,
    30_000,
    *(minutes * _MINUTE_MS for minutes in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 30, 60, 120)),
)
"""RocketMQ's messageDelayLevel, in milliseconds: level 1 is the first."""

_OK = core.STATUS["OK"][0]
_EMPTY = core.STATUS["EMPTY"][0]
_BLANK = core.STATUS["BLANK"][0]
_CUT = next(i for i, (name, _) in enumerate(core.MESSAGE_REASONS) if name == "CUT")
_HEADER = struct.Struct(">IIIIIqQIq8sq8sIqI")  # message.h, up to the body; IPv4 hosts
_MAGICS = (0xDAA320A7, 0xDAA320AB)
_FIXED_SIZE = 91
_BLANK_SIZE = 8
# What a record can have beside its body: fixed fields, IPv6 hosts, topic and properties.
_BESIDE_BODY_MAX = _FIXED_SIZE + 1 + 24 + 2 * 32_767

TopicNumbers = dict[bytes, int]
"""Topic names in the order in which they were first seen: name to number, 0, 1, 2 ..."""


class Row(NamedTuple):
    """One frame that holds."""

    physical_offset: int
    queue_offset: int
    store_timestamp: int
    """ms since 1970."""
    tags_code: int
    """As the ConsumeQueue entry carries it."""
    total_size: int
    """Bytes of the frame."""
    queue_id: int
    topic_number: int
    """In the TopicNumbers that the scan was given."""
    sys_flag: int


class Identity(NamedTuple):
    """Which message a damaged frame says it was; a hint, to be held against its neighbours."""

    topic: bytes
    queue_id: int
    queue_offset: int


class Damage(NamedTuple):
    """Bytes of the log in which no frame holds, with frames or an end of file behind them."""

    position: int
    """physical_offset of the first byte."""
    size: int
    """Bytes up to the next frame that holds."""
    reason: str
    """Name in core.MESSAGE_REASONS of what is wrong with the first frame; ZEROS for zeros."""
    identity: Identity | None
    """What the first frame says of itself, where its shape still holds."""


@unique
class ScanEnd(StrEnum):
    """How the frames of a file end."""

    BLANK = "BLANK"
    """With a BLANK frame: the file is complete."""
    EMPTY = "EMPTY"
    """With zeros: the log ends here."""
    DAMAGE = "DAMAGE"
    """With a frame that does not hold, behind what is trusted: the tail."""
    HOLE = "HOLE"
    """With a hole that reaches to the end of the file."""


@dataclass(frozen=True, slots=True)
class FileScan:
    """What one file holds."""

    file_position: int
    """physical_offset of its first byte."""
    rows: bytearray
    """(n, 48) bytes: a Row for each frame that holds, in order."""
    damages: tuple[Damage, ...]
    """In order."""
    end_position: int
    """physical_offset behind the last frame: of the BLANK frame, the zeros or the tail."""
    end: ScanEnd
    """What is there."""
    end_reason: str | None = None
    """With DAMAGE: what is wrong with the frame there."""

    @property
    def row_count(self) -> int:
        """Frames that hold."""
        return len(self.rows) // ROW_SIZE

    @property
    def last_row(self) -> Row | None:
        """The last frame that holds."""
        return row_at(self.rows, self.row_count - 1) if self.rows else None


def row_at(rows: bytes | bytearray, index: int) -> Row:
    """Return the row number `index` of a scan, which must have it."""
    return Row(*_ROW.unpack_from(rows, index * ROW_SIZE))


def iter_rows(rows: bytes | bytearray) -> Iterator[Row]:
    """Yield the rows of a scan as tuples: for tools and tests; bulk work stays in the core."""
    return (Row(*fields) for fields in _ROW.iter_unpack(rows))


def scan_file(
    fd: int,
    *,
    file_position: int,
    file_size_bytes: int,
    topics: TopicNumbers,
    trusted_end: int,
    record_crc_position: int = 0,
    delay_levels_ms: Sequence[int] = DELAY_LEVELS_MS,
    on_progress: Callable[[int], None] | None = None,
) -> FileScan:
    """Walk one file.

    Args:
        fd: the file, open for reading; not closed, its file offset is not used.
        file_position: physical_offset of its first byte.
        file_size_bytes: its size.
        topics: names seen so far; those of this file are added.
        trusted_end: physical_offset below which every byte was on disk, at a frame's start.
        record_crc_position: from here on a frame without `__CRC32#` does not hold.
        delay_levels_ms: for the tags code of scheduled messages.
        on_progress: called with the number of bytes walked since the last call.

    Raises:
        StoreError: the file cannot be read.
    """
    walk = _Walk(
        fd=fd,
        begin=file_position,
        end=file_position + file_size_bytes,
        topics=topics,
        trusted_end=trusted_end,
        record_crc_position=record_crc_position,
        delay_levels_ms=tuple(delay_levels_ms),
    )
    return walk.run(on_progress)


class _Walk:
    """One pass over one file."""

    def __init__(
        self,
        *,
        fd: int,
        begin: int,
        end: int,
        topics: TopicNumbers,
        trusted_end: int,
        record_crc_position: int,
        delay_levels_ms: tuple[int, ...],
    ) -> None:
        self._fd = fd
        self._begin = begin
        self._end = end
        self._topics = topics
        self._trusted_end = trusted_end
        self._record_crc_position = record_crc_position
        self._delay_levels_ms = delay_levels_ms
        # One for all windows: memory that is new each time costs more than the copy.
        self._buffer = bytearray(min(WINDOW_BYTES, end - begin))
        self._window = memoryview(b"")
        self._window_position = begin
        self._rows = bytearray()
        self._damages: list[Damage] = []

    def run(self, on_progress: Callable[[int], None] | None) -> FileScan:
        """Walk until the file or the log ends. Every round moves on by a frame or by a hole."""
        place = self._begin
        while place < self._end:
            self._need(place, min(WINDOW_BYTES, self._end - place))
            reached, status, reason = self._scan(place)
            if status == _OK:
                self._report(on_progress, reached - place)
                place = reached
                continue
            self._report(on_progress, reached - place)
            place = reached
            if status == _BLANK:
                return self._result(place, ScanEnd.BLANK)
            if reason == _CUT and self._extend(place):
                continue
            if place >= self._trusted_end:
                if status == _EMPTY:
                    return self._result(place, ScanEnd.EMPTY)
                return self._result(place, ScanEnd.DAMAGE, core.MESSAGE_REASONS[reason][0])
            name = "ZEROS" if status == _EMPTY else core.MESSAGE_REASONS[reason][0]
            behind = self._behind_damage(place)
            self._damages.append(Damage(place, behind - place, name, self._identity(place)))
            self._report(on_progress, behind - place)
            place = behind
        return self._result(self._end, ScanEnd.HOLE)

    def _result(self, place: int, end: ScanEnd, reason: str | None = None) -> FileScan:
        return FileScan(self._begin, self._rows, tuple(self._damages), place, end, reason)

    @staticmethod
    def _report(on_progress: Callable[[int], None] | None, size: int) -> None:
        if on_progress is not None and size:
            on_progress(size)

    @property
    def _window_end(self) -> int:
        return self._window_position + len(self._window)

    def _need(self, place: int, size: int) -> None:
        """Make sure that the window has `size` bytes from `place` on, or all that the file has."""
        has_frame = self._window_position <= place <= self._window_end - _BLANK_SIZE
        if not has_frame or (size > WINDOW_BYTES and place + size > self._window_end):
            self._load(place, size)

    def _load(self, place: int, size: int) -> None:
        """Read a window that begins at `place`."""
        size = min(max(size, WINDOW_BYTES), self._end - place)
        if size > len(self._buffer):
            self._buffer = bytearray(size)
        window = memoryview(self._buffer)[:size]
        filled = 0
        while filled < size:
            at = place + filled
            try:
                count = os.preadv(self._fd, [window[filled:]], at - self._begin)
            except OSError as error:
                raise StoreError(
                    f"read the log at {at}: {error.strerror}; the disk may be failing"
                ) from error
            if not count:
                raise StoreError(f"read the log at {at}: the file ends there")
            filled += count
        self._window = window
        self._window_position = place

    def _extend(self, place: int) -> bool:
        """The frame at `place` leaves the window: read on, if that is not all of it already."""
        if self._window_end == self._end:
            return False
        if self._window_position < place:
            self._load(place, WINDOW_BYTES)
            return True
        size = self._claimed_size(place)
        if size is None or place + size <= self._window_end:
            return False
        self._load(place, size)
        return True

    def _claimed_size(self, place: int) -> int | None:
        """Return the totalSize that the frame at `place` claims, if its header supports it."""
        at = place - self._window_position
        if len(self._window) - at < _HEADER.size:
            return None
        fields = _HEADER.unpack_from(self._window, at)
        size, magic, physical_offset, body_size = fields[0], fields[1], fields[6], fields[-1]
        if magic not in _MAGICS or physical_offset != place:
            return None
        if not _FIXED_SIZE <= size <= self._end - place - _BLANK_SIZE:
            return None
        has_v6_hosts = bool(fields[7] & 0x30)  # then the body's length lies elsewhere
        if not has_v6_hosts and not 0 <= size - body_size - _FIXED_SIZE <= _BESIDE_BODY_MAX:
            return None
        return int(size)

    def _demands(self, place: int) -> tuple[int, int]:
        """Return (demands of a frame at `place`, the position up to which they hold)."""
        if place < self._record_crc_position:
            return 0, min(self._record_crc_position, self._window_end)
        return core.CHECK_RECORD_CRC, self._window_end

    def _scan(self, place: int, *, frame_limit: int | None = None) -> tuple[int, int, int]:
        demands, end = self._demands(place)
        limit = {} if frame_limit is None else {"frame_limit": frame_limit}
        reached, status, reason, rows = core.scan(
            self._window,
            position=self._window_position,
            begin=place,
            end=end,
            file_end=self._end,
            topics=self._topics,
            demands=demands,
            delay_ms=self._delay_levels_ms,
            **limit,
        )
        if frame_limit is None:
            self._rows += rows
        return reached, status, reason

    def _behind_damage(self, place: int) -> int:
        """Return where to go on behind a frame that does not hold.

        The frame's own length is believed first, if a frame, or at least the header of one, or the
        end of what is trusted lies there: a body that holds a copy of a frame must not be taken for
        the log, and of two damaged neighbours each keeps its name. It is there twice, as a whole
        and by its parts: where the two differ the nearer end counts, so that a length that is
        damaged itself does not take the frames behind it along.
        """
        bound = min(self._trusted_end, self._end)
        if self._window_position < place:
            self._load(place, WINDOW_BYTES)
        size = self._claimed_size(place)
        if size is not None:
            for each in sorted({size, min(size, self._size_of_parts(place) or size)}):
                behind = place + each
                if behind == bound or (behind < bound and self._holds(behind)):
                    return behind
        return self._resync(place + 1, bound)

    def _size_of_parts(self, place: int) -> int | None:
        """Return what the lengths of body, topic and properties add up to, if they are there: of a
        record of version 1 with IPv4 hosts.
        """
        at = place - self._window_position
        if len(self._window) - at < _HEADER.size:
            return None
        fields = _HEADER.unpack_from(self._window, at)
        magic, sys_flag, body_size = fields[1], fields[7], fields[-1]
        topic_place = place + _FIXED_SIZE - 3 + body_size
        if magic != _MAGICS[0] or sys_flag & 0x30 or topic_place >= self._end:
            return None
        properties_place = topic_place + 1 + self._number(topic_place, 1)
        if properties_place > self._end - 2:
            return None
        return int(properties_place + 2 + self._number(properties_place, 2) - place)

    def _number(self, place: int, size: int) -> int:
        """Return the big-endian number at `place`, wherever the window is."""
        try:
            return int.from_bytes(os.pread(self._fd, size, place - self._begin), "big")
        except OSError as error:
            raise StoreError(
                f"read the log at {place}: {error.strerror}; the disk may be failing"
            ) from error

    def _holds(self, place: int) -> bool:
        """Say whether a frame or a BLANK frame, or the header of a frame, stands at `place`."""
        if self._window_end - place < _HEADER.size:
            self._load(place, WINDOW_BYTES)
        if self._claimed_size(place) is not None:
            return True
        while True:
            self._need(place, _HEADER.size)
            reached, status, reason = self._scan_one(place)
            if reached > place or status == _BLANK:
                return True
            if reason != _CUT or not self._extend(place):
                return False

    def _scan_one(self, place: int) -> tuple[int, int, int]:
        """Check one frame without keeping its row or its topic."""
        demands, _ = self._demands(place)
        reached, status, reason, _ = core.scan(
            self._window,
            position=self._window_position,
            begin=place,
            end=self._window_end,
            file_end=self._end,
            topics={},
            demands=demands,
            frame_limit=1,
        )
        return reached, status, reason

    def _resync(self, place: int, bound: int) -> int:
        """Return the first place in place..bound where a frame holds, or `bound`."""
        while place < bound:
            self._need(place, min(WINDOW_BYTES, self._end - place))
            demands, end = self._demands(place)
            found, status = core.resync(
                self._window,
                position=self._window_position,
                begin=place,
                end=min(end, bound),
                file_end=self._end,
                demands=demands,
            )
            if status == _OK:
                return int(found)
            if status == _EMPTY:
                if found == place and self._window_end == self._end:
                    return bound  # fewer bytes left than any frame has
                place = found
            elif not self._extend(found):
                place = found + 1
            else:
                place = found
        return bound

    def _identity(self, place: int) -> Identity | None:
        """Return what the damaged frame at `place` says of itself, if its shape still holds."""
        if self._window_position > place:
            self._load(place, WINDOW_BYTES)
        size = self._claimed_size(place)
        if size is None:
            return None
        self._need(place, size)
        at = place - self._window_position
        _, _, fields = core.parse_frame(
            self._window[at : at + size],
            physical_offset=place,
            demands=0,
            believe=True,
        )
        if fields is None:
            return None
        return Identity(fields["topic"], fields["queueId"], fields["queueOffset"])
