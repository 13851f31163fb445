"""Checks a whole store: every frame, every list, every derived file against the log.

What lives here: `Check`, one pass over a store that only reads, with the facts that a repair needs.
The rules are recovery's (shmq/store/recovery.py); where recovery trusts a derived file that holds,
this looks at every frame.

Which process: fsck. What may fail: StoreError where a file cannot be read; what is wrong with the
store is a finding, not an exception.
"""

import bisect
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from shmq.core import core
from shmq.errors import ConfigError, ShmError, StoreCorruptError, StoreError
from shmq.shm import manifest
from shmq.store import boot_files, config_files, consume_queue_files, positions
from shmq.store.config_files import ConfigFiles
from shmq.store.consume_queue_files import ConsumeQueueFile, QueueKey, topic_text
from shmq.store.log_files import LogFile, LogFiles, find_file_size
from shmq.store.positions import Positions
from shmq.store.quarantine import Hole, Quarantine
from shmq.store.recovery import log_trust, scan_log_file
from shmq.store.scan import ROW_SIZE, Damage, FileScan, ScanEnd, TopicNumbers, row_at
from shmq.tools.fsck_findings import Code, Finding, Loss, LostMessage, Report, Severity
from shmq.tools.fsck_index import check_index

__all__ = ["Check", "DamagedFile", "check_store"]

_FRAME_SIZE_MIN = 91
_ENTRY = struct.Struct("<QqQ")
_CONFIG_LOADERS = {
    config_files.Topics.FILE_NAME: ConfigFiles.load_topics,
    config_files.SubscriptionGroups.FILE_NAME: ConfigFiles.load_subscription_groups,
    config_files.ConsumerOffsets.FILE_NAME: ConfigFiles.load_consumer_offsets,
    config_files.DelayOffsets.FILE_NAME: ConfigFiles.load_delay_offsets,
}


class _Gap(NamedTuple):
    """Queue offsets of one queue that no frame has."""

    key: QueueKey
    begin: int
    end: int
    after: int
    """physical_offset of the frame before it."""
    before: int
    """physical_offset of the frame behind it."""


class DamagedFile(NamedTuple):
    """A complete log file whose derived file must be made again."""

    file_position: int
    finding: Finding


@dataclass(slots=True)
class Check:
    """What one pass found, and the facts that a repair needs."""

    store_path: Path
    report: Report
    files: LogFiles
    config: ConfigFiles
    known: Positions | None = None
    """The positions, if they hold."""
    quarantine: Quarantine = field(default_factory=Quarantine)
    """The list as it should be: what lies there, with what was found."""
    trusted_end: int = 0
    record_crc_position: int = 0
    store_timestamp: int = 0
    queue_ends: dict[QueueKey, int] = field(default_factory=dict)
    derived: list[DamagedFile] = field(default_factory=list)
    """Derived files to make again."""
    hole_findings: dict[int, Finding] = field(default_factory=dict)
    """By position of the hole."""
    hole_timestamps: dict[int, int] = field(default_factory=dict)
    """By position of the hole: storeTimestamp of a record before it, or else behind it."""
    consumer_offsets: config_files.ConsumerOffsets | None = None
    """Cut back to the queues' ends, if that changes them."""


def check_store(
    store_path: Path, *, on_progress: Callable[[int, int], None] | None = None
) -> Check:
    """Look at everything in a store. Reads only; blocks for the disk.

    Args:
        store_path: the folder.
        on_progress: called with (bytes of the log done, bytes of the log).

    Raises:
        StoreError: it cannot be read, or is no store at all.
    """
    return _Checker(store_path, on_progress).run()


class _Checker:
    def __init__(self, store_path: Path, on_progress: Callable[[int, int], None] | None) -> None:
        self._store_path = store_path
        self._report = Report(store=str(store_path))
        file_size = self._file_size()
        files = LogFiles(store_path, file_size)
        self._check = Check(store_path, self._report, files, ConfigFiles(store_path))
        self._files = files
        self._on_progress = on_progress
        self._topics: TopicNumbers = {}
        self._damages: list[Damage] = []
        self._gaps: list[_Gap] = []
        self._last_entries: dict[QueueKey, tuple[int, int]] = {}  # (next queue_offset, position)
        self._exact: dict[int, tuple[QueueKey, int]] = {}  # physical_offset to message, by .cq

    def _file_size(self) -> int:
        if not (self._store_path / "commitlog").is_dir():
            raise StoreError(f"check {self._store_path}: no commitlog/ there: not a store")
        known = positions.load_or_none(positions.positions_path(self._store_path))
        return known.file_size_bytes if known else find_file_size(self._store_path) or 0

    def run(self) -> Check:
        check = self._check
        self._report.file_size_bytes = self._files.file_size_bytes
        derived = boot_files.derived_by_rocketmq(self._store_path)
        is_ours = positions.positions_path(self._store_path).exists()
        self._report.is_foreign = not is_ours or bool(derived)
        self._check_positions()
        self._check_boot_files(derived, is_ours=is_ours)
        logs = self._list_files()
        self._set_trust(logs)
        listed = self._load_quarantine()
        if logs is not None:
            self._walk(logs)
            self._check_tail(logs)
            self._name_losses()
            self._check_quarantine(listed)
            self._check_stale(logs)
            self._check_index(logs)
        self._check_floors()
        self._check_config()
        self._check_manifest()
        self._report.queue_count = len(check.queue_ends)
        return check

    def _find(
        self,
        code: Code,
        severity: Severity,
        path: Path | str,
        message: str,
        *,
        position: int | None = None,
        size: int | None = None,
    ) -> Finding:
        shown = Path(path)
        if shown.is_absolute() and shown.is_relative_to(self._store_path):
            shown = shown.relative_to(self._store_path)
        finding = Finding(
            code=code,
            severity=severity,
            path=str(shown),
            message=message,
            position=position,
            size=size,
        )
        self._report.findings.append(finding)
        return finding

    # ---- positions, boot files, names and sizes -------------------------------------------------

    def _check_positions(self) -> None:
        path = positions.positions_path(self._store_path)
        try:
            reports = positions.inspect_slots(path)
            if reports is None:
                return
            for report in reports:
                if report.reason is not None:
                    self._find(
                        Code.POSITIONS_DAMAGED,
                        Severity.WARNING,
                        path,
                        f"slot {report.slot}: {report.reason}",
                    )
            self._check.known = positions.newest(reports, path)
        except StoreCorruptError as error:
            self._find(Code.POSITIONS_DAMAGED, Severity.ERROR, path, str(error))

    def _check_boot_files(self, derived: Sequence[str], *, is_ours: bool) -> None:
        for name in derived:
            self._find(
                Code.ROCKETMQ_DERIVED,
                Severity.NOTE,
                name,
                "a real broker derived it from its log; shmq sets it aside before it appends",
            )
        if is_ours and not (self._store_path / boot_files.ABORT_FILE).exists():
            self._find(
                Code.ABORT_MISSING,
                Severity.WARNING,
                boot_files.ABORT_FILE,
                "missing: RocketMQ 5.0 to 5.3.1 would show empty queues",
            )

    def _list_files(self) -> list[LogFile] | None:
        try:
            logs = self._files.files() if self._files.file_size_bytes else []
        except StoreCorruptError as error:
            self._find(Code.LOG_ILLEGAL, Severity.ERROR, self._files.folder, str(error))
            return None
        self._report.file_count = len(logs)
        self._report.min_position = logs[0].file_position if logs else 0
        return logs

    def _set_trust(self, logs: Sequence[LogFile] | None) -> None:
        """Decide, as recovery does, what must hold and what must carry __CRC32#."""
        check = self._check
        if logs is None:
            return
        end = logs[-1].file_position + self._files.file_size_bytes if logs else 0
        check.trusted_end, check.record_crc_position = log_trust(
            self._files, logs, check.known, is_foreign=self._report.is_foreign
        )
        if check.trusted_end > end:
            self._find(
                Code.POSITIONS_AHEAD,
                Severity.ERROR,
                positions.positions_path(self._store_path),
                f"flushed_position {check.trusted_end}, but the log's files end at {end}: "
                "files are missing; restore them from a copy",
            )
        elif not self._report.is_foreign:
            check.trusted_end = max(check.trusted_end, self._last_frame_end(logs))

    def _last_frame_end(self, logs: Sequence[LogFile]) -> int:
        """Return where the last frame that holds ends, if that is behind what is trusted.

        Recovery cuts the log at the first frame behind the flushed position that does not hold. If
        frames follow that do, they may have been acknowledged since the position was noted: a
        repair keeps them. Files of ours hold no stale frames, so what holds is the log.
        """
        size = self._files.file_size_bytes
        for log in reversed(logs):
            file_end = log.file_position + size
            if file_end <= self._check.trusted_end:
                break
            scan = scan_log_file(
                self._files,
                log.file_position,
                topics={},
                trusted_end=file_end,
                record_crc_position=self._check.record_crc_position,
            )
            if scan.end is ScanEnd.BLANK:
                return file_end
            if scan.last_row is not None:
                return scan.last_row.physical_offset + scan.last_row.total_size
        return 0

    # ---- the log --------------------------------------------------------------------------------

    def _walk(self, logs: Sequence[LogFile]) -> None:
        """Scan file after file up to where the log ends."""
        check = self._check
        size = self._files.file_size_bytes
        total = len(logs) * size
        self._report.end_position = logs[-1].file_position + size if logs else 0
        for number, log in enumerate(logs):
            done = number * size

            def progress(passed: int) -> None:
                nonlocal done
                done += passed
                if self._on_progress is not None:
                    self._on_progress(done, total)

            scan = scan_log_file(
                self._files,
                log.file_position,
                topics=self._topics,
                trusted_end=check.trusted_end,
                record_crc_position=check.record_crc_position,
                on_progress=progress,
            )
            self._report.record_count += scan.row_count
            is_complete = scan.end in (ScanEnd.BLANK, ScanEnd.HOLE)
            self._note_damages(log, scan, is_complete=is_complete)
            self._note_gaps(log, scan)
            if not is_complete:
                self._report.end_position = scan.end_position
                break
            self._check_derived(log, scan)
        if self._on_progress is not None:
            self._on_progress(total, total)

    def _note_damages(self, log: LogFile, scan: FileScan, *, is_complete: bool) -> None:
        known = self._check.known
        file_end = log.file_position + self._files.file_size_bytes
        for damage in scan.damages:
            self._damages.append(damage)
            reaches_end = is_complete and damage.position + damage.size == file_end
            text = dict(core.MESSAGE_REASONS).get(damage.reason, "zeros where a record was")
            if known is not None and damage.position >= known.flushed_position:
                text += "; the next start cuts the log here, a repair keeps what follows"
            self._check.hole_findings[damage.position] = self._find(
                Code.BLANK_DAMAGED if reaches_end else Code.RECORD_DAMAGED,
                Severity.ERROR,
                log.path,
                f"{damage.size} bytes at {damage.position}: {text}",
                position=damage.position,
                size=damage.size,
            )
            self._check.hole_timestamps[damage.position] = _store_timestamp_at(
                scan.rows, damage.position
            )

    def _note_gaps(self, log: LogFile, scan: FileScan) -> None:
        """Note where a queue's offsets jump or repeat, in this file or since the last."""
        runs, entries, repeated = core.group(scan.rows, gap_limit=0)
        names = [topic_text(name) for name in self._topics]
        last_row = scan.last_row
        if last_row is not None:
            self._check.store_timestamp = max(self._check.store_timestamp, last_row.store_timestamp)
        again = 0
        for number, queue_id, first, count, _, place, *_ in runs:
            key = QueueKey(names[number], queue_id)
            begins_at = _ENTRY.unpack_from(entries, place * _ENTRY.size)[0]
            ends_at = _ENTRY.unpack_from(entries, (place + count - 1) * _ENTRY.size)[0]
            if key in self._last_entries:
                wanted, after = self._last_entries[key]
                if first > wanted:
                    self._gaps.append(_Gap(key, wanted, first, after, begins_at))
                again += max(0, min(wanted, first + count) - first)
            elif first > 0 and self._report.min_position == 0:
                # nothing has expired: a queue that does not begin at 0 lost its beginning
                self._gaps.append(_Gap(key, 0, first, -1, begins_at))
            end = max(first + count, self._last_entries.get(key, (0, 0))[0])
            self._last_entries[key] = (end, ends_at)
            self._check.queue_ends[key] = end
        if repeated + again:
            self._find(
                Code.QUEUE_OFFSET_REPEATED,
                Severity.WARNING,
                log.path,
                f"{repeated + again} records have a queue offset that was there already",
                position=log.file_position,
                size=self._files.file_size_bytes,
            )

    def _check_tail(self, logs: Sequence[LogFile]) -> None:
        for position, size in self._files.find_tail(self._report.end_position) if logs else ():
            self._find(
                Code.TAIL_NOT_ZERO,
                Severity.WARNING,
                self._files.path(self._files.file_position(position)),
                f"{size} bytes behind the last record, from {position} on",
                position=position,
                size=size,
            )

    # ---- derived files --------------------------------------------------------------------------

    def _derived_path(self, file_position: int) -> Path:
        folder = self._files.own_folder / consume_queue_files.CONSUME_QUEUE_FOLDER
        return folder / f"{file_position:020d}.cq"

    def _check_derived(self, log: LogFile, scan: FileScan) -> None:
        """Hold a complete file's ConsumeQueue file against what its log file says."""
        if self._report.is_foreign:
            return
        path = self._derived_path(log.file_position)
        grouped = consume_queue_files.group(scan, self._topics)
        wanted = consume_queue_files.encode(
            scan,
            grouped,
            file_size_bytes=self._files.file_size_bytes,
            record_crc_position=self._check.record_crc_position,
        )
        try:
            with ConsumeQueueFile(
                path,
                file_position=log.file_position,
                file_size_bytes=self._files.file_size_bytes,
            ) as file:
                for run in file.runs:
                    file.check(run)
                self._note_exact(file, scan.damages)
            if path.read_bytes() == wanted:
                return
            code, text = Code.DERIVED_WRONG, "it does not say what the log says"
        except FileNotFoundError:
            code, text = Code.DERIVED_MISSING, "missing; it is made from the log"
        except StoreCorruptError as error:
            code, text = Code.DERIVED_DAMAGED, str(error)
        finding = self._find(code, Severity.WARNING, path, text)
        self._check.derived.append(DamagedFile(log.file_position, finding))

    def _note_exact(self, file: ConsumeQueueFile, damages: Iterable[Damage]) -> None:
        """A derived file from before the damage knows which messages were in the holes."""
        for damage in damages:
            for run in file.runs:
                view = file.read(run, run.first_queue_offset, run.entry_count)
                entries = list(_ENTRY.iter_unpack(view))
                index = bisect.bisect_left(entries, (damage.position, -(1 << 63), 0))
                for place, (position, _, size) in enumerate(entries[index:], start=index):
                    if position >= damage.position + damage.size:
                        break
                    if size:
                        self._exact[position] = (run.key, run.first_queue_offset + place)

    def _complete(self, logs: Sequence[LogFile]) -> set[int]:
        return {
            log.file_position
            for log in logs
            if log.file_position + self._files.file_size_bytes <= self._report.end_position
        }

    def _check_index(self, logs: Sequence[LogFile]) -> None:
        if self._report.is_foreign:
            return
        check_index(
            self._files,
            self._find,
            complete=self._complete(logs),
            damaged={self._files.file_position(damage.position) for damage in self._damages},
        )

    def _check_stale(self, logs: Sequence[LogFile]) -> None:
        complete = self._complete(logs)
        folder = self._files.own_folder / consume_queue_files.CONSUME_QUEUE_FOLDER
        for path in sorted(folder.glob("*.cq")) if folder.is_dir() else ():
            if not path.stem.isdecimal() or int(path.stem) not in complete:
                self._find(
                    Code.DERIVED_STALE,
                    Severity.WARNING,
                    path,
                    "its log file is gone or not complete",
                )

    # ---- what was lost --------------------------------------------------------------------------

    def _name_losses(self) -> None:
        """Say which messages were in the holes: by derived files, gaps and the damaged headers."""
        lost: dict[int, dict[tuple[QueueKey, int], None]] = {
            damage.position: {} for damage in self._damages
        }
        begins = sorted(lost)
        for position, (key, queue_offset) in self._exact.items():
            begin = begins[bisect.bisect_right(begins, position) - 1]
            lost[begin][key, queue_offset] = None
            self._reach(key, queue_offset)
        unnamed = [damage for damage in self._damages if not lost[damage.position]]
        for damage in unnamed:
            if (message := _claim(damage)) and self._fits_a_gap(damage, *message):
                lost[damage.position][message] = None
        known = {message for messages in lost.values() for message in messages}
        room = {damage.position: damage.size // _FRAME_SIZE_MIN for damage in self._damages}
        for gap in sorted(self._gaps, key=lambda gap: gap.before):
            self._fill_gap(gap, lost, known, room, begins)
        for damage in unnamed:
            message = _claim(damage)
            if message is None or self._check.queue_ends.get(message[0]) != message[1]:
                continue
            if not lost[damage.position]:  # a gap tells more surely what the hole held
                lost[damage.position][message] = None
            self._reach(*message)
        for damage in self._damages:
            names = tuple(
                LostMessage(key.topic, key.queue_id, queue_offset)
                for key, queue_offset in sorted(lost[damage.position])
            )
            self._report.losses.append(
                Loss(
                    position=damage.position,
                    size=damage.size,
                    reason=damage.reason,
                    messages=names,
                    kept_as=None,
                )
            )

    def _reach(self, key: QueueKey, queue_offset: int) -> None:
        ends = self._check.queue_ends
        ends[key] = max(ends.get(key, 0), queue_offset + 1)

    def _fits_a_gap(self, damage: Damage, key: QueueKey, queue_offset: int) -> bool:
        return any(
            gap.key == key
            and gap.begin <= queue_offset < gap.end
            and gap.after < damage.position < gap.before
            for gap in self._gaps
        )

    def _fill_gap(
        self,
        gap: _Gap,
        lost: dict[int, dict[tuple[QueueKey, int], None]],
        known: set[tuple[QueueKey, int]],
        room: dict[int, int],
        begins: Sequence[int],
    ) -> None:
        """Give the offsets of a gap to the holes in it; what none can have is a finding."""
        first = bisect.bisect_right(begins, gap.after)
        last = bisect.bisect_left(begins, gap.before)
        holes = begins[first:last]
        capacity = sum(room[position] for position in holes)
        missing = 0
        if gap.end - gap.begin > capacity + len(known):
            missing = gap.end - gap.begin  # far more than any damage explains
        else:
            for queue_offset in range(gap.begin, gap.end):
                if (gap.key, queue_offset) in known:
                    continue
                hole = next((p for p in holes if len(lost[p]) < room[p]), None)
                if hole is None:
                    missing += 1
                    continue
                lost[hole][gap.key, queue_offset] = None
        if missing and gap.after >= 0:  # a queue may begin anywhere where nothing was damaged
            self._find(
                Code.QUEUE_OFFSET_MISSING,
                Severity.NOTE if self._report.is_foreign else Severity.WARNING,
                self._files.folder,
                f"{gap.key.topic} queue {gap.key.queue_id}: "
                f"{missing} of the offsets {gap.begin} to {gap.end - 1} have no record",
                position=gap.after,
                size=gap.before - gap.after,
            )

    # ---- lists ----------------------------------------------------------------------------------

    def _load_quarantine(self) -> Quarantine:
        path = Quarantine.path(self._store_path)
        try:
            listed = Quarantine.load(path)
        except StoreCorruptError as error:
            self._find(Code.QUARANTINE_DAMAGED, Severity.WARNING, path, str(error))
            listed = Quarantine()
        for tail in listed.saved_tails:
            if not (self._files.quarantine_folder / tail.file_name).is_file():
                self._find(
                    Code.KEPT_BYTES_MISSING,
                    Severity.WARNING,
                    self._files.quarantine_folder / tail.file_name,
                    f"{tail.size} bytes from {tail.position} on, kept aside, are gone",
                    position=tail.position,
                    size=tail.size,
                )
        return listed

    def _check_quarantine(self, listed: Quarantine) -> None:
        """Hold the list against the holes that are there."""
        holes = [Hole(damage.position, damage.size, damage.reason) for damage in self._damages]
        seen = {(hole.position, hole.size) for hole in holes}
        wrong = [hole for hole in listed.holes if (hole.position, hole.size) not in seen]
        right = listed
        for hole in wrong:
            right = right.without_holes(hole.position, hole.position + 1)
        right = right.with_holes(holes)
        self._check.quarantine = right
        if self._report.is_foreign or right == listed:
            return
        lacking = len(right.holes) + len(wrong) - len(listed.holes)
        self._find(
            Code.QUARANTINE_WRONG,
            Severity.WARNING,
            Quarantine.path(self._store_path),
            f"{len(wrong)} holes in the list are none, {lacking} holes are not in it",
        )

    def _check_floors(self) -> None:
        path = self._files.own_folder / consume_queue_files.FLOORS_FILE
        try:
            floors = consume_queue_files.load_floors(path)
        except StoreCorruptError as error:
            self._find(Code.FLOORS_DAMAGED, Severity.ERROR, path, str(error))
            return
        for key, end in floors.items():
            self._check.queue_ends.setdefault(key, end)

    def _check_config(self) -> None:
        config = self._check.config
        for name in config.names():
            try:
                loaded = config.file(name).load()
                if name in _CONFIG_LOADERS:
                    _CONFIG_LOADERS[name](config)
            except (ConfigError, StoreError) as error:
                self._find(Code.CONFIG_DAMAGED, Severity.ERROR, config.folder / name, str(error))
                continue
            if loaded.problem is not None:
                self._find(
                    Code.CONFIG_DAMAGED, Severity.WARNING, config.folder / name, loaded.problem
                )
            elif not loaded.is_checked and not self._report.is_foreign:
                self._find(
                    Code.CONFIG_UNCHECKED,
                    Severity.NOTE,
                    config.folder / name,
                    "without our checksum: RocketMQ or a person wrote it",
                )
        self._check_consumer_offsets()

    def _check_consumer_offsets(self) -> None:
        config = self._check.config
        try:
            contents = config.load_consumer_offsets()
        except (ConfigError, StoreError):
            return  # reported above
        offsets, clamped = config_files.clamp_consumer_offsets(
            contents.offsets, self._check.queue_ends
        )
        for item in clamped:
            self._find(
                Code.CONSUMER_OFFSET_AHEAD,
                Severity.WARNING,
                config.folder / config_files.ConsumerOffsets.FILE_NAME,
                f"{item.key} queue {item.queue_id}: {item.seen}, but the queue ends at {item.end}",
            )
        if clamped:
            self._check.consumer_offsets = config_files.ConsumerOffsets(
                data_version=contents.data_version, offsets=offsets, other=contents.other
            )

    def _check_manifest(self) -> None:
        path = manifest.manifest_path(self._store_path)
        try:
            manifest.load(path)
        except ShmError as error:
            self._find(Code.MANIFEST_DAMAGED, Severity.WARNING, path, str(error))


def _claim(damage: Damage) -> tuple[QueueKey, int] | None:
    """Which message a damaged header says it was: its queue and queue_offset."""
    if damage.identity is None:
        return None
    topic, queue_id, queue_offset = damage.identity
    return QueueKey(topic_text(topic), queue_id), queue_offset


def _store_timestamp_at(rows: bytearray, position: int) -> int:
    """Return the storeTimestamp of the last row before a place, or else of the first; 0 if none."""
    count = len(rows) // ROW_SIZE

    def place_of(index: int) -> int:
        return int(row_at(rows, index).physical_offset)

    index = bisect.bisect_left(range(count), position, key=place_of)
    return row_at(rows, max(0, index - 1)).store_timestamp if count else 0
