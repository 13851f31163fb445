"""ConsumeQueue entries of complete CommitLog files: one derived file beside each of them.

What lives here: building, checking and reading `<store>/shmq/consumequeue/<20 digits>.cq`, the
index over all of them, and the floors: the queue offsets that retention has taken and that must
never be given out again. Everything but the floors can be built anew from the CommitLog.

    byte  size  field                     (little-endian)
       0     8  magic "shmqcqfl"
       8     4  format_version, 1
      12     4  header_size, 128
      16     8  file_position             of the CommitLog file
      24     8  file_size_bytes           of the CommitLog file
      32     8  end_position              where its BLANK frame lies
      40     8  record_crc_position       frames before it were not asked for __CRC32#; at most the
                                          end of the CommitLog file
      48     8  frame_count               frames that hold, those in no queue included
      56     8  entry_count
      64     8  repeated_count            frames whose queue offset was there already: left out
      72     8  last_store_timestamp      ms since 1970
      80     4  run_count
      84     4  names_size                bytes
      88     8  damage_count              holes of the log in this file, which the quarantine lists
      96    24  zero
     120     4  CRC-32 of names and directory
     124     4  CRC-32 of the 124 bytes before it
     128        names: topics, back to back
                directory: run_count x 64, sorted by (topic, queue_id, first_queue_offset)
                entries: entry_count x 24, run behind run

    run  0  4  topic_place   byte in names       16  8  first_queue_offset
         4  4  topic_size    bytes               24  8  entry_count
         8  4  queue_id                          32  8  entries_place, byte in this file
        12  4  CRC-32 of its entries             40  8  first_store_timestamp
                                                 48  8  last_store_timestamp
                                                 56  8  hole_count

    entry: physical_offset u64, tags_code i64, size u64, as in the hot blocks; a hole (a message
           that was damaged) has size 0 and the physical_offset of the frame behind it

A queue has one run in a file unless its offsets jump further than damage can explain. Header,
names and directory are checked when the file is opened, the entries of a run when they are first
read. What does not hold is built anew. Written to a temporary file, synced, renamed: a crash leaves
the whole file or none.

Which process: the broker's derived-files thread writes, its control plane reads; fsck checks and
repairs. What may fail: StoreCorruptError (then rebuild), StoreVersionError, DiskFullError,
StoreError. Not thread-safe: one thread at a time, or the caller's lock.
"""

import bisect
import logging
import os
import struct
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from shmq.core import core
from shmq.errors import StoreCorruptError
from shmq.store import checked_json
from shmq.store.derived_file import CRC_SIZE, DerivedFile
from shmq.store.durable_file import disk_error, fsync_folder, make_folder, replace_file
from shmq.store.log_files import OWN_FOLDER, file_name
from shmq.store.scan import FileScan, TopicNumbers

__all__ = [
    "CONSUME_QUEUE_FOLDER",
    "ConsumeQueueFile",
    "ConsumeQueueFiles",
    "ConsumeQueueHeader",
    "ENTRY_SIZE",
    "FLOORS_FILE",
    "GroupedQueues",
    "QueueKey",
    "QueueRun",
    "drop_behind",
    "encode",
    "group",
    "load_floors",
    "save_floors",
    "topic_bytes",
    "topic_text",
]

_log = logging.getLogger("shmq.store")

CONSUME_QUEUE_FOLDER = "consumequeue"
FLOORS_FILE = "queue_floors.json"
FORMAT_VERSION = 1
ENTRY_SIZE = 24
_SUFFIX = ".cq"
_MAGIC = b"shmqcqfl"
_HEADER = struct.Struct("<8sIIQQQQQQQqIIQ24xII")
_HEADER_SIZE = _HEADER.size
_RUN = struct.Struct("<IIIIQQQqqQ")
_FRAME_SIZE_MIN = 91
assert _HEADER_SIZE == 128
assert _RUN.size == 64


class QueueKey(NamedTuple):
    """A queue of this broker."""

    topic: str
    queue_id: int


class QueueRun(NamedTuple):
    """Contiguous queue offsets of one queue in one file."""

    key: QueueKey
    first_queue_offset: int
    entry_count: int
    hole_count: int
    """Entries of size 0 among them."""
    first_store_timestamp: int
    """ms since 1970."""
    last_store_timestamp: int
    """ms since 1970."""
    entries_place: int
    """Byte in the file, or in the entries that `group` gave."""
    entries_crc: int

    @property
    def max_queue_offset(self) -> int:
        """The queue_offset behind the last entry."""
        return self.first_queue_offset + self.entry_count


@dataclass(frozen=True, slots=True)
class GroupedQueues:
    """The frames of one scan, sorted by queue."""

    runs: tuple[QueueRun, ...]
    """Sorted by topic, queue_id, first_queue_offset; entries_place counts in `entries`."""
    entries: bytes
    """(n, 24) bytes."""
    repeated_count: int
    """Frames whose queue offset was there already; they are left out, as RocketMQ does."""

    @property
    def last_store_timestamp(self) -> int:
        """Highest of the runs, ms since 1970; 0 without runs."""
        return max((run.last_store_timestamp for run in self.runs), default=0)


def topic_text(name: bytes) -> str:
    """Return a topic's name as text; bytes of a foreign store that are no UTF-8 survive."""
    return name.decode("utf-8", "surrogateescape")


def topic_bytes(topic: str) -> bytes:
    """Return the bytes of a topic's name, the way back from `topic_text`."""
    return topic.encode("utf-8", "surrogateescape")


def group(scan: FileScan, topics: TopicNumbers) -> GroupedQueues:
    """Sort the frames of a scan by queue; offsets missing in between become holes.

    Args:
        scan: of one file.
        topics: the names that its rows number.
    """
    names = [topic_text(name) for name in topics]
    damaged_bytes = sum(damage.size for damage in scan.damages)
    runs, entries, repeated = core.group(
        scan.rows, gap_limit=damaged_bytes // _FRAME_SIZE_MIN if damaged_bytes else 0
    )
    view = memoryview(entries)
    # By name, not in the order in which the names were first seen: a file's bytes follow from its
    # log file alone, whatever else was scanned before it.
    named = sorted((QueueKey(names[run[0]], run[1]), *run[2:]) for run in runs)
    ordered = bytearray()
    grouped = []
    for key, first, count, holes, place, begun, ended in named:
        part = view[place * ENTRY_SIZE : (place + count) * ENTRY_SIZE]
        grouped.append(
            QueueRun(
                key,
                first_queue_offset=first,
                entry_count=count,
                hole_count=holes,
                first_store_timestamp=begun,
                last_store_timestamp=ended,
                entries_place=len(ordered),
                entries_crc=zlib.crc32(part),
            )
        )
        ordered += part
    return GroupedQueues(tuple(grouped), bytes(ordered), repeated)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumeQueueHeader:
    """What a .cq file says of itself and of its CommitLog file."""

    file_position: int
    file_size_bytes: int
    end_position: int
    """physical_offset of the BLANK frame."""
    record_crc_position: int
    frame_count: int
    entry_count: int
    repeated_count: int
    last_store_timestamp: int
    """ms since 1970."""
    run_count: int
    names_size: int
    damage_count: int
    """Holes that the scan found."""


def encode(
    scan: FileScan, grouped: GroupedQueues, *, file_size_bytes: int, record_crc_position: int
) -> bytes:
    """Return the bytes of the .cq file for a scan of a whole CommitLog file."""
    names = bytearray()
    places: dict[str, tuple[int, int]] = {}
    for run in grouped.runs:
        if run.key.topic not in places:
            name = topic_bytes(run.key.topic)
            places[run.key.topic] = (len(names), len(name))
            names += name
    entries_begin = _HEADER_SIZE + len(names) + len(grouped.runs) * _RUN.size
    directory = b"".join(
        _RUN.pack(
            *places[run.key.topic],
            run.key.queue_id,
            run.entries_crc,
            run.first_queue_offset,
            run.entry_count,
            entries_begin + run.entries_place,
            run.first_store_timestamp,
            run.last_store_timestamp,
            run.hole_count,
        )
        for run in grouped.runs
    )
    last_row = scan.last_row
    last_timestamp = max(grouped.last_store_timestamp, last_row.store_timestamp if last_row else 0)
    header = _HEADER.pack(
        _MAGIC,
        FORMAT_VERSION,
        _HEADER_SIZE,
        scan.file_position,
        file_size_bytes,
        scan.end_position,
        min(record_crc_position, scan.file_position + file_size_bytes),
        scan.row_count,
        len(grouped.entries) // ENTRY_SIZE,
        grouped.repeated_count,
        last_timestamp,
        len(grouped.runs),
        len(names),
        len(scan.damages),
        zlib.crc32(directory, zlib.crc32(names)),
        0,
    )[:-CRC_SIZE]
    header += zlib.crc32(header).to_bytes(CRC_SIZE, "little")
    return b"".join((header, names, directory, grouped.entries))


class ConsumeQueueFile(DerivedFile):
    """One .cq file, open for reading. Owns its fd; a context manager.

    Args:
        path: the file.
        file_position: of its CommitLog file.
        file_size_bytes: of its CommitLog file.

    Raises:
        FileNotFoundError: there is none.
        StoreCorruptError: header, names or directory do not hold, or belong to another file.
        StoreVersionError: a newer shmq wrote it.
        StoreError: it cannot be read.
    """

    __slots__ = ("_checked", "header", "runs")

    def __init__(self, path: Path, *, file_position: int, file_size_bytes: int) -> None:
        self._checked: set[QueueRun] = set()
        super().__init__(path)
        try:
            self.header = self._read_header(file_position, file_size_bytes)
            self.runs = self._read_directory()
        except BaseException:
            self.close()
            raise

    def _read_header(self, file_position: int, file_size_bytes: int) -> ConsumeQueueHeader:
        data, (header_size, *fields, _, _) = self._read_head(
            _HEADER, magic=_MAGIC, format_version=FORMAT_VERSION
        )
        names = ConsumeQueueHeader.__dataclass_fields__
        header = ConsumeQueueHeader(**dict(zip(names, fields, strict=True)))
        size = (
            header_size
            + header.names_size
            + header.run_count * _RUN.size
            + header.entry_count * ENTRY_SIZE
        )
        seen = (header_size, header.file_position, header.file_size_bytes, data[96:120])
        wanted = (_HEADER_SIZE, file_position, file_size_bytes, bytes(24))
        if seen != wanted or size != os.fstat(self._fd).st_size:
            raise StoreCorruptError(f"read {self._path}: it is not of this CommitLog file")
        return header

    def _read_directory(self) -> tuple[QueueRun, ...]:
        header = self.header
        size = header.names_size + header.run_count * _RUN.size
        data = self._pread(size, _HEADER_SIZE)
        crc = int.from_bytes(self._pread(CRC_SIZE, _HEADER_SIZE - 2 * CRC_SIZE), "little")
        if zlib.crc32(data) != crc:
            raise StoreCorruptError(f"read {self._path}: the directory's CRC does not hold")
        texts: dict[tuple[int, int], str] = {}
        runs = []
        for fields in _RUN.iter_unpack(data[header.names_size :]):
            place, length, queue_id, entries_crc, first, count, entries_place = fields[:7]
            topic = texts.get((place, length))
            if topic is None:
                topic = texts[place, length] = topic_text(data[place : place + length])
            runs.append(
                QueueRun(
                    QueueKey(topic, queue_id),
                    first_queue_offset=first,
                    entry_count=count,
                    hole_count=fields[9],
                    first_store_timestamp=fields[7],
                    last_store_timestamp=fields[8],
                    entries_place=entries_place,
                    entries_crc=entries_crc,
                )
            )
        return tuple(runs)

    def find(self, topic: str, queue_id: int) -> tuple[QueueRun, ...]:
        """Return the runs of a queue in this file, in order; almost always one or none."""
        key = QueueKey(topic, queue_id)
        first = bisect.bisect_left(self.runs, key, key=lambda run: run.key)
        last = bisect.bisect_right(self.runs, key, key=lambda run: run.key)
        return self.runs[first:last]

    def read(self, run: QueueRun, queue_offset: int, entry_count: int) -> memoryview:
        """Return entries of a run from `queue_offset` on.

        Args:
            run: one of `runs`.
            queue_offset: within the run.
            entry_count: at most so many; fewer at the run's end.

        Returns:
            (n, 24) bytes, read-only.

        Raises:
            StoreCorruptError: the entries of this run do not hold: rebuild the file.
            StoreError: they cannot be read.
        """
        assert run.first_queue_offset <= queue_offset < run.max_queue_offset, (run, queue_offset)
        self.check(run)
        count = min(entry_count, run.max_queue_offset - queue_offset)
        place = run.entries_place + (queue_offset - run.first_queue_offset) * ENTRY_SIZE
        return memoryview(self._pread(count * ENTRY_SIZE, place))

    def check(self, run: QueueRun) -> None:
        """Return if the entries of a run hold; looks at them once.

        Raises:
            StoreCorruptError, StoreError: as `read`.
        """
        if run in self._checked:
            return
        entries = self._pread(run.entry_count * ENTRY_SIZE, run.entries_place)
        if zlib.crc32(entries) != run.entries_crc:
            raise StoreCorruptError(
                f"read {self._path}: the entries of {run.key.topic} queue {run.key.queue_id} "
                "do not hold"
            )
        self._checked.add(run)


class _QueueIndex:
    """Where the runs of one queue are: parallel arrays, sorted by queue offset."""

    __slots__ = ("ends", "file_positions", "firsts")

    def __init__(self) -> None:
        self.firsts = array("Q")
        self.ends = array("Q")
        self.file_positions = array("Q")


class ConsumeQueueFiles:
    """All .cq files of a store, and which of them has a queue's offset.

    Args:
        store_path: folder of the store.
        file_size_bytes: size of the CommitLog files.
        rebuild: makes the bytes of one .cq file from its CommitLog file, given its file_position;
            called where a file is missing or does not hold.
        open_files_max: files kept open for reading.
    """

    def __init__(
        self,
        store_path: Path,
        *,
        file_size_bytes: int,
        rebuild: Callable[[int], bytes],
        open_files_max: int = 64,
    ) -> None:
        self._folder = store_path / OWN_FOLDER / CONSUME_QUEUE_FOLDER
        self.floors_path = store_path / OWN_FOLDER / FLOORS_FILE
        """Where the floors lie."""
        self._file_size_bytes = file_size_bytes
        self._rebuild = rebuild
        self._open_files_max = open_files_max
        self._open: dict[int, ConsumeQueueFile] = {}  # least recently used first
        self._queues: dict[QueueKey, _QueueIndex] = {}
        self._file_positions: list[int] = []
        self.rebuilt_count = 0
        """Files that were missing or did not hold and were built anew."""

    def path(self, file_position: int) -> Path:
        """Return where the .cq file of a CommitLog file lies, or would."""
        return self._folder / f"{file_name(file_position)}{_SUFFIX}"

    @property
    def file_positions(self) -> list[int]:
        """The files that were added, in order."""
        return list(self._file_positions)

    def write(self, file_position: int, data: bytes) -> None:
        """Write a .cq file, durably; not part of the index before `add`.

        Raises:
            DiskFullError, StoreError.
        """
        make_folder(self._folder)
        self._close(file_position)
        replace_file(self.path(file_position), data)

    def add(self, file_position: int) -> ConsumeQueueFile:
        """Take the file of the next CommitLog file into the index, built anew if it must be.

        Args:
            file_position: above those added before.

        Raises:
            DiskFullError, StoreError: also StoreCorruptError, where even a new one does not hold.
        """
        assert not self._file_positions or file_position > self._file_positions[-1]
        file = self._get(file_position)
        for run in file.runs:
            queue = self._queues.get(run.key)
            if queue is None:
                queue = self._queues[run.key] = _QueueIndex()
            # Of offsets that an earlier file has, the first counts, as in RocketMQ.
            first = max(run.first_queue_offset, queue.ends[-1] if queue.ends else 0)
            if first >= run.max_queue_offset:
                continue
            queue.firsts.append(first)
            queue.ends.append(run.max_queue_offset)
            queue.file_positions.append(file_position)
        self._file_positions.append(file_position)
        return file

    def queues(self) -> Iterator[tuple[QueueKey, int, int]]:
        """Yield (queue, first queue_offset, queue_offset behind the last) of all files together."""
        for key, queue in self._queues.items():
            yield key, queue.firsts[0], queue.ends[-1]

    def min_queue_offset(self, topic: str, queue_id: int) -> int | None:
        """Return the first queue_offset that any file has; None if none has the queue."""
        queue = self._queues.get(QueueKey(topic, queue_id))
        return queue.firsts[0] if queue else None

    def max_queue_offset(self, topic: str, queue_id: int) -> int | None:
        """Return the queue_offset behind the last that any file has; None without the queue."""
        queue = self._queues.get(QueueKey(topic, queue_id))
        return queue.ends[-1] if queue else None

    def read(
        self, topic: str, queue_id: int, queue_offset: int, entry_count: int
    ) -> tuple[int, memoryview] | None:
        """Return entries of a queue from `queue_offset` on, from one file.

        Args:
            topic: the topic.
            queue_id: the queue.
            queue_offset: wanted.
            entry_count: at most so many; fewer where a file ends: ask again.

        Returns:
            (queue_offset of the first entry, (n, 24) bytes); the first is above the one wanted if
            those between are lost or expired. None if no file has it or anything behind it.

        Raises:
            DiskFullError, StoreError: a file had to be built anew and could not be.
        """
        queue = self._queues.get(QueueKey(topic, queue_id))
        if queue is None:
            return None
        index = bisect.bisect_right(queue.ends, queue_offset)
        if index == len(queue.ends):
            return None
        file_position = queue.file_positions[index]
        first = max(queue_offset, queue.firsts[index])
        for _ in range(2):  # once more if its entries do not hold and the file is built anew
            file = self._get(file_position)
            runs = file.find(topic, queue_id)
            run = next(
                (r for r in runs if r.first_queue_offset <= first < r.max_queue_offset), None
            )
            if run is None:
                break
            try:
                return first, file.read(run, first, entry_count)
            except StoreCorruptError:
                self._build(file_position)
        raise StoreCorruptError(
            f"read {self.path(file_position)}: {topic} queue {queue_id} offset {first} is not there"
        )

    def last_store_timestamp(self, file_position: int) -> int:
        """Return when the newest message of a file was stored, ms since 1970; 0 without any.

        Raises:
            DiskFullError, StoreError: the file had to be built anew and could not be.
        """
        return self._get(file_position).header.last_store_timestamp

    def queue_ends(self, file_position: int) -> dict[QueueKey, int]:
        """Return the queue_offset behind the last message of each queue in a file.

        Raises:
            DiskFullError, StoreError: as `last_store_timestamp`.
        """
        return _ends(self._get(file_position).runs)

    def expire(self, file_position: int) -> None:
        """Take the first file out, for retention, and remove it.

        Before it goes, the floors remember how far its queues were: a queue whose messages are all
        gone must not begin at 0 again. Call it before the CommitLog file is deleted.

        Raises:
            DiskFullError, StoreError: the floors could not be written; nothing was removed.
        """
        assert self._file_positions[:1] == [file_position], (file_position, self._file_positions)
        runs = self._get(file_position).runs
        self.raise_floors(_ends(runs))
        self._remove(file_position)
        self._file_positions.pop(0)
        for key in {run.key for run in runs}:
            self._forget(key, file_position)

    def drop_stale(self, min_position: int) -> None:
        """Remove files whose CommitLog file is gone: a real broker's retention, or a crash in ours.

        Args:
            min_position: physical_offset of the first byte that the log has.

        Raises:
            DiskFullError, StoreError.
        """
        for path in sorted(self._folder.glob(f"{'[0-9]' * 20}{_SUFFIX}")):
            file_position = int(path.stem)
            if file_position >= min_position:
                return
            try:
                with self._open_file(file_position) as file:
                    self.raise_floors(_ends(file.runs))
            except StoreCorruptError as error:
                _log.warning("offsets of an expired file lost: %s", error)
            self._remove(file_position)

    def raise_floors(self, ends: Mapping[QueueKey, int]) -> None:
        """Remember how far queues were whose messages go now, or are gone.

        Raises:
            DiskFullError, StoreError: the old floors stand.
        """
        floors = load_floors(self.floors_path)
        raised = {key: max(end, floors.get(key, 0)) for key, end in ends.items()}
        if (floors | raised) != floors:
            save_floors(self.floors_path, floors | raised)

    def _remove(self, file_position: int) -> None:
        self._close(file_position)
        try:
            self.path(file_position).unlink(missing_ok=True)
            fsync_folder(self._folder)
        except OSError as error:
            raise disk_error(f"delete {self.path(file_position)}", error) from error

    def _forget(self, key: QueueKey, file_position: int) -> None:
        queue = self._queues.get(key)
        if queue is None:
            return
        gone = bisect.bisect_right(queue.file_positions, file_position)
        for column in (queue.firsts, queue.ends, queue.file_positions):
            del column[:gone]
        if not queue.firsts:
            del self._queues[key]

    def close(self) -> None:
        """Close every file."""
        for file_position in list(self._open):
            self._close(file_position)

    def _close(self, file_position: int) -> None:
        file = self._open.pop(file_position, None)
        if file is not None:
            file.close()

    def _get(self, file_position: int) -> ConsumeQueueFile:
        """Return the open file, the most recently used now; built anew if it does not hold."""
        file = self._open.pop(file_position, None)
        if file is None:
            try:
                file = self._open_file(file_position)
            except (FileNotFoundError, StoreCorruptError):
                self._build(file_position)
                file = self._open_file(file_position)
        self._open[file_position] = file
        if len(self._open) > self._open_files_max:
            self._close(next(iter(self._open)))
        return file

    def _open_file(self, file_position: int) -> ConsumeQueueFile:
        return ConsumeQueueFile(
            self.path(file_position),
            file_position=file_position,
            file_size_bytes=self._file_size_bytes,
        )

    def _build(self, file_position: int) -> None:
        self.write(file_position, self._rebuild(file_position))
        self.rebuilt_count += 1


def _ends(runs: Iterable[QueueRun]) -> dict[QueueKey, int]:
    """The queue_offset behind the last message of each queue."""
    ends: dict[QueueKey, int] = {}
    for run in runs:
        ends[run.key] = max(ends.get(run.key, 0), run.max_queue_offset)
    return ends


def drop_behind(store_path: Path, position: int, *, file_size_bytes: int) -> None:
    """Remove the .cq files of CommitLog files that have bytes at `position` or behind: the log is
    cut there.

    Raises:
        StoreError: the system refuses.
    """
    folder = store_path / OWN_FOLDER / CONSUME_QUEUE_FOLDER
    try:
        for path in folder.glob(f"{'[0-9]' * 20}{_SUFFIX}"):
            if int(path.stem) + file_size_bytes > position:
                path.unlink(missing_ok=True)
        if folder.is_dir():
            fsync_folder(folder)
    except OSError as error:
        raise disk_error(f"clean {folder}", error) from error


def load_floors(path: Path) -> dict[QueueKey, int]:
    """Return the queue offsets below which retention has taken everything; empty without a file.

    Raises:
        StoreCorruptError: the file does not hold; names file, line and reason.
        StoreError: it cannot be read.
    """
    data = checked_json.load(path)
    if data is None:
        return {}
    floors: dict[QueueKey, int] = {}
    table = data.get("max_queue_offset")
    if not isinstance(table, dict):
        raise StoreCorruptError(f"read {path}: max_queue_offset: wanted an object")
    for topic, queues in table.items():
        if not isinstance(queues, dict):
            raise StoreCorruptError(f"read {path}: {topic}: wanted an object")
        for queue_id, end in queues.items():
            if not queue_id.isdecimal() or not isinstance(end, int) or end < 0:
                raise StoreCorruptError(f"read {path}: {topic}: {queue_id}: {end!r}")
            floors[QueueKey(topic, int(queue_id))] = end
    return floors


def save_floors(path: Path, floors: Mapping[QueueKey, int]) -> None:
    """Write the floors, durably.

    Raises:
        DiskFullError, StoreError.
    """
    table: dict[str, dict[str, int]] = {}
    for key, end in sorted(floors.items()):
        table.setdefault(checked_json.plain_text(key.topic), {})[str(key.queue_id)] = end
    checked_json.save(path, {"format_version": 1, "max_queue_offset": table})
