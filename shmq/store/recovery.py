"""What a store's files say after a reboot: where the log ends, what is damaged, how far queues are.

What lives here: `recover_files`, which scans, and `open_consume_queues` for a broker that took over
the memory of its predecessor and needs only the derived files.

The rules (DESIGN 5). A frame counts if physicalOffset is its place and its CRC holds. Behind the
persisted flushed position a frame that does not hold is the tail: kept aside, then zeroed. Before
it, it is damage: the hole is entered in the quarantine list, the log is left as it is, and what
follows is kept. A complete file whose .cq file holds is not scanned again: its first frame and its
BLANK frame are looked at. Nothing is deleted, and a second run leaves the same bytes.

A store without positions (a real RocketMQ's, or ours with both slots damaged) has its whole log
trusted up to the start of the last file that begins with a frame: RocketMQ went on to that file, so
what is wrong before it is damage, and what is wrong in it is where RocketMQ would cut as well.
Frames that RocketMQ wrote carry no `__CRC32#`; where it had the store last, none is asked for.

Which process: the broker, under its lock, before the first append. Blocks for the disk. What may
fail: StoreCorruptError where files are missing or cannot be log files; DiskFullError, StoreError.
"""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from shmq.clock import SYSTEM_CLOCK, Clock
from shmq.core import core
from shmq.errors import StoreCorruptError, StoreError
from shmq.store import consume_queue_files, positions
from shmq.store.boot_files import derived_by_rocketmq, set_derived_aside
from shmq.store.consume_queue_files import ConsumeQueueFile, ConsumeQueueFiles, QueueKey
from shmq.store.durable_file import disk_error
from shmq.store.log_files import LogFile, LogFiles, file_name
from shmq.store.quarantine import Hole, KeptTail, Quarantine
from shmq.store.scan import (
    DELAY_LEVELS_MS,
    Damage,
    FileScan,
    ScanEnd,
    TopicNumbers,
    scan_file,
)

__all__ = [
    "LogTrust",
    "NO_RECORD_CRC",
    "QueueRange",
    "RecoveredLog",
    "log_trust",
    "open_consume_queues",
    "recover_files",
    "scan_log_file",
    "trusted_end_without_positions",
]

_log = logging.getLogger("shmq.store")

NO_RECORD_CRC = 1 << 63
"""As record_crc_position: no frame is asked for `__CRC32#`."""
_HEAD_BYTES = 4 << 20  # read to check a file's first frame; larger ones are read whole


class QueueRange(NamedTuple):
    """What is kept of a queue."""

    min_queue_offset: int
    """First kept."""
    max_queue_offset: int
    """Next to be assigned."""


class LogTrust(NamedTuple):
    """What is known of a log before it is scanned."""

    trusted_end: int
    """physical_offset below which every byte was on disk."""
    record_crc_position: int
    """physical_offset from which on every record carries `__CRC32#`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveredLog:
    """What the files of a store say."""

    min_position: int
    """physical_offset of the first byte kept."""
    end_position: int
    """physical_offset at which the log goes on; behind it every byte of the files is zero."""
    holes: tuple[Hole, ...]
    """Every hole of the log, those found before included, by position."""
    cold_queues: Mapping[QueueKey, QueueRange]
    """Queues of the complete files, those below the file of end_position; and queues whose
    messages have all expired, with min = max."""
    queue_ends: Mapping[QueueKey, int]
    """max_queue_offset of every queue, the last file and damaged last messages included."""
    store_timestamp: int
    """Highest storeTimestamp, ms since 1970: it never goes back."""
    record_crc_position: int
    """physical_offset from which on records carry `__CRC32#`."""
    is_foreign: bool
    """No shmq wrote this store, or RocketMQ wrote it last."""
    saved_tails: tuple[KeptTail, ...]
    """What was behind the end and is kept aside, this time."""
    scanned_bytes: int
    """Bytes of the log that were read; the rest was known by its derived files."""
    repeated_count: int
    """Frames with a queue offset that was there already: in no queue, as in RocketMQ."""
    consume_queues: ConsumeQueueFiles
    """The derived files of the complete files. The caller closes it."""


def recover_files(
    store_path: Path,
    file_size_bytes: int,
    *,
    delay_levels_ms: Sequence[int] = DELAY_LEVELS_MS,
    clock: Clock = SYSTEM_CLOCK,
    is_slave: bool = False,
) -> RecoveredLog:
    """Scan the log, set its tail aside, and bring the derived files up to it.

    The caller holds the store's lock. Afterwards the log may be appended to at `end_position`.

    Args:
        store_path: folder of the store; what is missing of its folders is made.
        file_size_bytes: size of the CommitLog files.
        delay_levels_ms: messageDelayLevel, for the tags code of scheduled messages.
        clock: for the time at which holes were found.
        is_slave: what comes is copied: records that RocketMQ wrote may come yet.

    Raises:
        StoreCorruptError: files are missing, or something there cannot be a log file.
        DiskFullError, StoreError: it cannot be read, or the tail not be kept aside.
    """
    recovery = _Recovery(
        LogFiles(store_path, file_size_bytes),
        tuple(delay_levels_ms),
        clock.wall_ms(),
        is_slave=is_slave,
    )
    return recovery.run()


class _Recovery:
    def __init__(
        self, files: LogFiles, delay_levels_ms: tuple[int, ...], now_ms: int, *, is_slave: bool
    ) -> None:
        self._files = files
        self._is_slave = is_slave
        self._store_path = files.store_path
        self._delay_levels_ms = delay_levels_ms
        self._now_ms = now_ms
        self._topics: TopicNumbers = {}
        self._quarantine = Quarantine()
        self._ends: dict[QueueKey, int] = {}
        self._store_timestamp = 0
        self._scanned_bytes = 0
        self._repeated_count = 0

    def run(self) -> RecoveredLog:
        is_ours = positions.positions_path(self._store_path).exists()
        known = positions.load_or_none(positions.positions_path(self._store_path))
        is_foreign = not is_ours or bool(derived_by_rocketmq(self._store_path))
        self._store_timestamp = known.store_timestamp if known else 0
        if is_foreign:
            known = None  # a real broker may have cut or gone on anywhere
        self._files.make_folders()
        set_derived_aside(self._store_path)
        self._quarantine = self._load_quarantine()
        logs = self._files.files()
        self._refuse_missing(known, logs)
        trusted_end, record_crc_position = log_trust(
            self._files, logs, known, is_foreign=is_foreign
        )
        queues = open_consume_queues(
            self._files,
            end_position=0,
            record_crc_position=record_crc_position,
            delay_levels_ms=self._delay_levels_ms,
        )
        queues.drop_stale(logs[0].file_position if logs else 0)
        floors = consume_queue_files.load_floors(queues.floors_path)
        self._ends.update(floors)
        end_position = self._walk(logs, queues, trusted_end, record_crc_position)
        if record_crc_position > end_position and not self._is_slave:
            # What is written from now on carries the property: whoever derives it must ask for it.
            record_crc_position = end_position
            queues.close()
            queues = open_consume_queues(
                self._files,
                end_position=self._files.file_position(end_position),
                record_crc_position=record_crc_position,
                delay_levels_ms=self._delay_levels_ms,
            )
        self._sync(logs, trusted_end, end_position)
        tails = tuple(
            KeptTail(*tail, found_at=self._now_ms) for tail in self._files.clear_tail(end_position)
        )
        min_position = logs[0].file_position if logs else 0
        self._change_quarantine(
            self._quarantine.without_holes(0, min_position)
            .without_holes(end_position, NO_RECORD_CRC)  # in a tail that was kept aside
            .with_tails(tails)
        )
        for hole in self._quarantine.holes:
            self._reserve(hole)
        cold = {key: QueueRange(end, end) for key, end in floors.items()}
        cold |= {key: QueueRange(low, high) for key, low, high in queues.queues()}
        return RecoveredLog(
            min_position=min_position,
            end_position=end_position,
            holes=self._quarantine.holes,
            cold_queues=cold,
            queue_ends=self._ends,
            store_timestamp=self._store_timestamp,
            record_crc_position=record_crc_position,
            is_foreign=is_foreign,
            saved_tails=tails,
            scanned_bytes=self._scanned_bytes,
            repeated_count=self._repeated_count,
            consume_queues=queues,
        )

    def _load_quarantine(self) -> Quarantine:
        """A list that does not hold is kept under another name: the scan finds its holes again."""
        path = Quarantine.path(self._store_path)
        try:
            return Quarantine.load(path)
        except StoreCorruptError as error:
            kept = self._files.quarantine_folder / f"damaged-{self._now_ms}.json"
            _log.warning("quarantine list lost, kept as %s: %s", kept, error)
            try:
                os.rename(path, kept)
            except OSError as failed:
                raise disk_error(f"move {path} to {kept}", failed) from failed
            return Quarantine()

    def _change_quarantine(self, changed: Quarantine) -> None:
        """Save the list if it changed; before anything is written that relies on it."""
        if changed is not self._quarantine:
            changed.save(Quarantine.path(self._store_path))
            self._quarantine = changed

    def _refuse_missing(self, known: positions.Positions | None, logs: Sequence[LogFile]) -> None:
        """Refuse a log of which files are gone that were there: going on would reuse positions."""
        end = logs[-1].file_position + self._files.file_size_bytes if logs else 0
        if known is None or known.flushed_position <= end:
            return
        raise StoreCorruptError(
            f"open {self._files.folder}: its files end at {end}, but {known.flushed_position} was "
            f"on disk: {file_name(end)} is missing; restore it from a copy"
        )

    def _walk(
        self,
        logs: Sequence[LogFile],
        queues: ConsumeQueueFiles,
        trusted_end: int,
        record_crc_position: int,
    ) -> int:
        """Take file after file; return where the log ends."""
        size = self._files.file_size_bytes
        for log in logs:
            file_end = log.file_position + size
            if file_end <= trusted_end and self._is_known(log, queues, record_crc_position):
                self._add(queues, log.file_position)
                continue
            scan = scan_log_file(
                self._files,
                log.file_position,
                topics=self._topics,
                trusted_end=trusted_end,
                record_crc_position=record_crc_position,
                delay_levels_ms=self._delay_levels_ms,
            )
            self._scanned_bytes += scan.end_position - log.file_position
            grouped = consume_queue_files.group(scan, self._topics)
            self._take(scan, grouped)
            if scan.end in (ScanEnd.EMPTY, ScanEnd.DAMAGE):
                return scan.end_position
            data = consume_queue_files.encode(
                scan,
                grouped,
                file_size_bytes=size,
                record_crc_position=record_crc_position,
            )
            queues.write(log.file_position, data)
            self._add(queues, log.file_position)
        return logs[-1].file_position + size if logs else 0

    def _is_known(self, log: LogFile, queues: ConsumeQueueFiles, record_crc_position: int) -> bool:
        """Say whether a complete file's derived file holds and is of these very bytes."""
        try:
            with ConsumeQueueFile(
                queues.path(log.file_position),
                file_position=log.file_position,
                file_size_bytes=self._files.file_size_bytes,
            ) as file:
                header = file.header
        except (FileNotFoundError, StoreCorruptError):
            return False
        if header.record_crc_position > record_crc_position:
            return False  # it was built when less was asked of its frames
        file_end = log.file_position + self._files.file_size_bytes
        listed = [
            hole for hole in self._quarantine.holes if log.file_position <= hole.position < file_end
        ]
        if len(listed) < header.damage_count:
            return False  # the list was lost
        return _ends_with_blank(self._files, log.file_position, header.end_position) and (
            header.frame_count == 0
            or _head_holds(self._files, log.file_position, demands=record_crc_position == 0)
        )

    def _add(self, queues: ConsumeQueueFiles, file_position: int) -> None:
        file = queues.add(file_position)
        self._store_timestamp = max(self._store_timestamp, file.header.last_store_timestamp)
        self._repeated_count += file.header.repeated_count
        for run in file.runs:
            self._reach(run.key, run.max_queue_offset)

    def _take(self, scan: FileScan, grouped: consume_queue_files.GroupedQueues) -> None:
        """Note what a scanned file says of queues, time and holes."""
        last_row = scan.last_row
        self._store_timestamp = max(
            self._store_timestamp,
            grouped.last_store_timestamp,
            last_row.store_timestamp if last_row else 0,
        )
        if scan.end in (ScanEnd.EMPTY, ScanEnd.DAMAGE):  # others are counted when added
            self._repeated_count += grouped.repeated_count
        ends = {run.key: run.max_queue_offset for run in grouped.runs}
        holes = [self._hole(damage, ends) for damage in scan.damages]
        self._change_quarantine(self._quarantine.with_holes(holes))
        for key, end in ends.items():
            self._reach(key, end)

    def _hole(self, damage: Damage, ends: dict[QueueKey, int]) -> Hole:
        """Return the hole; a queue whose last message was in it does not give its offset again.

        The damaged frame's own word is taken for its queue's newest message only where it fits: it
        names a queue that the log has, and the very next offset of it.
        """
        hole = Hole(damage.position, damage.size, damage.reason, found_at=self._now_ms)
        if damage.identity is None:
            return hole
        topic, queue_id, queue_offset = damage.identity
        key = QueueKey(consume_queue_files.topic_text(topic), queue_id)
        end = max(ends.get(key, 0), self._ends.get(key, 0))
        if key not in ends and key not in self._ends:
            return hole
        if queue_offset == end:
            ends[key] = end + 1
        if queue_offset > end:
            return hole
        return hole._replace(topic=key.topic, queue_id=queue_id, queue_offset=queue_offset)

    def _reserve(self, hole: Hole) -> None:
        """Do not give out again the offset of a damaged message that was its queue's newest."""
        if hole.topic is not None and hole.queue_id is not None:
            key = QueueKey(hole.topic, hole.queue_id)
            if hole.queue_offset is not None and hole.queue_offset == self._ends.get(key):
                self._ends[key] = hole.queue_offset + 1

    def _reach(self, key: QueueKey, end: int) -> None:
        if end > self._ends.get(key, 0):
            self._ends[key] = end

    def _sync(self, logs: Iterable[LogFile], trusted_end: int, end_position: int) -> None:
        """Sync what counts from now on and was not known to be on disk: the page cache may lie."""
        for log in logs:
            if log.file_position >= end_position:
                return
            if log.file_position + self._files.file_size_bytes <= trusted_end:
                continue
            try:
                fd = self._files.open(log.file_position)
                try:
                    os.fdatasync(fd)
                finally:
                    os.close(fd)
            except OSError as error:
                raise disk_error(f"sync {log.path}", error) from error


def open_consume_queues(
    files: LogFiles,
    *,
    end_position: int,
    record_crc_position: int,
    delay_levels_ms: Sequence[int] = DELAY_LEVELS_MS,
    on_damage: Callable[[Sequence[Damage]], None] | None = None,
) -> ConsumeQueueFiles:
    """Open the derived files of all complete files below `end_position`, built where missing.

    Args:
        files: the log.
        end_position: where the log ends; the file that holds it is not complete.
        record_crc_position: for a file that must be scanned again.
        delay_levels_ms: as in `recover_files`.
        on_damage: told of holes that such a scan finds; they must be in the quarantine list when it
            returns.

    Raises:
        DiskFullError, StoreError.
    """

    def rebuild(file_position: int) -> bytes:
        topics: TopicNumbers = {}
        scan = scan_log_file(
            files,
            file_position,
            topics=topics,
            trusted_end=file_position + files.file_size_bytes,
            record_crc_position=record_crc_position,
            delay_levels_ms=delay_levels_ms,
        )
        if scan.damages and on_damage is not None:
            on_damage(scan.damages)
        return consume_queue_files.encode(
            scan,
            consume_queue_files.group(scan, topics),
            file_size_bytes=files.file_size_bytes,
            record_crc_position=record_crc_position,
        )

    queues = ConsumeQueueFiles(
        files.store_path, file_size_bytes=files.file_size_bytes, rebuild=rebuild
    )
    for log in files.files():
        if log.file_position + files.file_size_bytes <= end_position:
            queues.add(log.file_position)
    return queues


def scan_log_file(
    files: LogFiles,
    file_position: int,
    *,
    topics: TopicNumbers,
    trusted_end: int,
    record_crc_position: int,
    delay_levels_ms: Sequence[int] = DELAY_LEVELS_MS,
    on_progress: Callable[[int], None] | None = None,
) -> FileScan:
    """Open one file of the log and scan it; arguments and errors as `scan_file`."""
    fd = files.open(file_position)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return scan_file(
            fd,
            file_position=file_position,
            file_size_bytes=files.file_size_bytes,
            topics=topics,
            trusted_end=trusted_end,
            record_crc_position=record_crc_position,
            delay_levels_ms=delay_levels_ms,
            on_progress=on_progress,
        )
    except StoreError as error:
        raise type(error)(f"scan {files.path(file_position)}: {error}", hint=error.hint) from error
    finally:
        os.close(fd)


def log_trust(
    files: LogFiles, logs: Sequence[LogFile], known: positions.Positions | None, *, is_foreign: bool
) -> LogTrust:
    """Return what of the log must hold, and what must carry `__CRC32#`.

    Args:
        files: the log.
        logs: its files, in order.
        known: the positions, if they hold.
        is_foreign: RocketMQ wrote the log, or wrote it last: then positions say nothing.

    Raises:
        StoreError: a file cannot be read.
    """
    if known is not None and not is_foreign:
        return LogTrust(known.flushed_position, known.record_crc_position)
    trusted_end = trusted_end_without_positions(files, logs)
    # Positions are lost: a log whose first record carries the property is ours from the start.
    is_ours = not is_foreign and (
        not logs or _head_holds(files, logs[0].file_position, demands=True)
    )
    return LogTrust(trusted_end, 0 if is_ours else NO_RECORD_CRC)


def trusted_end_without_positions(files: LogFiles, logs: Sequence[LogFile]) -> int:
    """Return the start of the last file that begins with a frame: up to there the log went on."""
    for log in reversed(logs):
        if _head_holds(files, log.file_position, demands=False):
            return log.file_position
    return logs[0].file_position if logs else 0


def _head_holds(files: LogFiles, file_position: int, *, demands: bool) -> bool:
    """Say whether a frame that holds begins the file."""
    fd = files.open(file_position)
    try:
        for size in (_HEAD_BYTES, files.file_size_bytes):
            head = os.pread(fd, min(size, files.file_size_bytes), 0)
            reached, status, reason, _ = core.scan(
                head,
                position=file_position,
                begin=file_position,
                end=file_position + 1,
                file_end=file_position + files.file_size_bytes,
                topics={},
                demands=core.CHECK_RECORD_CRC if demands else 0,
                frame_limit=1,
            )
            if reached > file_position or core.MESSAGE_REASONS[reason][0] != "CUT":
                break
        return reached > file_position or status == core.STATUS["BLANK"][0]
    except OSError as error:
        raise disk_error(f"read {files.path(file_position)}", error) from error
    finally:
        os.close(fd)


def _ends_with_blank(files: LogFiles, file_position: int, blank_position: int) -> bool:
    """Say whether a BLANK frame stands at `blank_position` and reaches to the end of the file."""
    file_end = file_position + files.file_size_bytes
    if not file_position <= blank_position <= file_end - 8:
        return False
    fd = files.open(file_position)
    try:
        head = os.pread(fd, 8, blank_position - file_position)
    except OSError as error:
        raise disk_error(f"read {files.path(file_position)}", error) from error
    finally:
        os.close(fd)
    return head == (file_end - blank_position).to_bytes(4, "big") + b"\xcb\xd4\x31\x94"
