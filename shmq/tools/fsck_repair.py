"""Mends what fsck found: never shortens good data, keeps aside whatever it writes over.

What lives here: `repair`. A hole of the log becomes records again, of exactly its size: for each
message known to have been there one with its topic, queue and queue offset, whose body says that
it is lost and whose property SHMQ_LOST says why; the rest is filled with records of rolled back
transactions, which are in no queue. So a real RocketMQ, which would cut the log at the first record
that does not hold, reads on. Derived files, lists and positions are made again from the log; config
comes back from its backup.

Which process: fsck --repair, under the store's lock. Each step is whole or not done, and may be
done again: a repair that dies is finished by the next. What may fail: DiskFullError, StoreError.
"""

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from shmq.clock import SYSTEM_CLOCK, Clock
from shmq.core import core
from shmq.errors import ConfigError
from shmq.shm import manifest
from shmq.shm.incarnation import boot_id
from shmq.store import boot_files, consume_queue_files, positions
from shmq.store.consume_queue_files import topic_bytes
from shmq.store.durable_file import disk_error, fsync_folder, replace_file, write_fully
from shmq.store.index_files import drop_index
from shmq.store.positions import Positions
from shmq.store.quarantine import KeptTail, Quarantine
from shmq.store.recovery import open_consume_queues
from shmq.tools.fsck_check import Check
from shmq.tools.fsck_findings import Code, Finding, Loss

__all__ = ["LOST_PROPERTY", "lost_records", "repair"]

_DROPPED = (Code.DERIVED_STALE, Code.INDEX_DAMAGED, Code.INDEX_WRONG, Code.INDEX_STALE)
"""Findings that are mended by removing their file: the broker makes it when it is wanted."""
LOST_PROPERTY = "SHMQ_LOST"
"""Property of a record that stands for a lost one; its value is the reason."""
_FILLER_TOPIC = b"SHMQ_LOST"
_FILLER_SIZE_MAX = 1 << 20
_ROLLBACK = 0xC  # sysFlag of a rolled back transaction: in no queue, in no index
_HOST = bytes([127, 0, 0, 1]) + (10911).to_bytes(4, "big")
"""Where there is no record behind the hole to take the broker's address from."""
_SYS_FLAG_PLACE = 36
_STORE_HOST_PLACE = 64
_HOST_V6_FLAGS = 0x30
_BLANK_SIZE = 8
_RECORD_MAGICS = (b"\xda\xa3\x20\xa7", b"\xda\xa3\x20\xab")
_FIXED_SIZE = 91  # of a V1 record, IPv4 hosts, with nothing in it (message.h)
_TOPIC_SIZE_V1_MAX = 127


def repair(check: Check, *, clock: Clock = SYSTEM_CLOCK) -> None:
    """Mend what a check found, and say so in its report.

    Args:
        check: from `check_store`, of a store whose lock the caller holds.
        clock: for names of files that are kept aside.

    Raises:
        DiskFullError, StoreError: what was mended so far stays mended.
    """
    _Repair(check, clock).run()


class _Repair:
    def __init__(self, check: Check, clock: Clock) -> None:
        self._check = check
        self._files = check.files
        self._store_path = check.store_path
        self._now_ms = clock.wall_ms()
        self._mended_files: set[int] = set()
        self._kept: list[KeptTail] = []

    def run(self) -> None:
        findings = self._check.report.findings
        is_log_whole = not any(
            finding.code in (Code.LOG_ILLEGAL, Code.POSITIONS_AHEAD) for finding in findings
        )
        self._files.make_folders()
        self._mend_config()
        if is_log_whole:
            self._mend_tail()
            self._mend_holes()
            self._mend_lists()
            self._mend_positions()
            self._mend_derived()
        self._mend_manifest()
        self._mend_boot_files()

    def _found(self, *codes: Code) -> list[Finding]:
        return [finding for finding in self._check.report.findings if finding.code in codes]

    def _set_aside(self, path: Path) -> Path:
        """Move a file that does not hold into quarantine, under a name of its own."""
        kept = self._files.quarantine_folder / f"{path.name}.{self._now_ms}"
        try:
            os.rename(path, kept)
            fsync_folder(kept.parent)
            fsync_folder(path.parent)
        except OSError as error:
            raise disk_error(f"move {path} to {kept}", error) from error
        return kept

    # ---- the log --------------------------------------------------------------------------------

    def _mend_tail(self) -> None:
        findings = self._found(Code.TAIL_NOT_ZERO)
        if findings:
            tails = self._files.clear_tail(self._check.report.end_position)
            self._kept += [KeptTail(*tail, found_at=self._now_ms) for tail in tails]
        for finding in findings:
            finding.is_repaired = True

    def _mend_holes(self) -> None:
        report = self._check.report
        report.losses = [self._mend_hole(loss) for loss in report.losses]

    def _mend_hole(self, loss: Loss) -> Loss:
        """Rewrite one hole; unmended if no record fits into it."""
        file_position = self._files.file_position(loss.position)
        records = lost_records(
            loss,
            file_end=file_position + self._files.file_size_bytes,
            host=self._host_behind(loss),
            store_timestamp=self._check.hole_timestamps[loss.position] or self._now_ms,
        )
        if records is None:
            return loss
        kept = self._files.keep_aside(loss.position, loss.size)
        fd = self._files.open(file_position, readonly=False)
        try:
            write_fully(fd, records, loss.position - file_position)
            os.fdatasync(fd)
        except OSError as error:
            path = self._files.path(file_position)
            raise disk_error(f"rewrite {loss.position} in {path}", error) from error
        finally:
            os.close(fd)
        self._kept.append(KeptTail(*kept, found_at=self._now_ms))
        self._mended_files.add(file_position)
        self._check.quarantine = self._check.quarantine.without_holes(
            loss.position, loss.position + loss.size
        )
        self._check.hole_findings[loss.position].is_repaired = True
        return replace(loss, kept_as=kept.file_name)

    def _host_behind(self, loss: Loss) -> bytes:
        """The store host of the record behind a hole: the address is part of message ids."""
        position = loss.position + loss.size
        if position >= self._check.report.end_position:
            return _HOST
        file_position = self._files.file_position(position)
        fd = self._files.open(file_position, readonly=True)
        try:
            head = os.pread(fd, _FIXED_SIZE, position - file_position)
        finally:
            os.close(fd)
        if len(head) < _FIXED_SIZE or head[4:8] not in _RECORD_MAGICS:
            return _HOST
        sys_flag = int.from_bytes(head[_SYS_FLAG_PLACE : _SYS_FLAG_PLACE + 4], "big")
        if sys_flag & _HOST_V6_FLAGS:
            return _HOST
        return head[_STORE_HOST_PLACE : _STORE_HOST_PLACE + len(_HOST)]

    # ---- lists, positions, derived files ---------------------------------------------------------

    def _mend_lists(self) -> None:
        path = Quarantine.path(self._store_path)
        findings = self._found(Code.QUARANTINE_DAMAGED, Code.QUARANTINE_WRONG)
        if self._found(Code.QUARANTINE_DAMAGED):
            self._set_aside(path)
        if findings or self._kept or self._mended_files:
            self._check.quarantine = self._check.quarantine.with_tails(self._kept)
            self._check.quarantine.save(path)
        for finding in findings:
            finding.is_repaired = True
        floors_path = self._files.own_folder / consume_queue_files.FLOORS_FILE
        for finding in self._found(Code.FLOORS_DAMAGED):
            kept = self._set_aside(floors_path)
            finding.message += f"; kept as {kept.name}, queues that expired begin at 0 again"
            finding.is_repaired = True

    def _mend_positions(self) -> None:
        findings = self._found(Code.POSITIONS_DAMAGED)
        if not findings:
            return
        path = positions.positions_path(self._store_path)
        report = self._check.report
        known = self._check.known or Positions(
            flushed_position=report.end_position,
            min_position=report.min_position,
            store_generation=0,
            boot_id=boot_id(),
            store_timestamp=self._check.store_timestamp,
            file_size_bytes=report.file_size_bytes,
            record_crc_position=min(self._check.record_crc_position, report.end_position),
        )
        if self._check.known is None:
            self._set_aside(path)
        for _ in range(2):  # both slots
            known = positions.save(path, replace(known, is_clean=False), durable=True)
        for finding in findings:
            finding.is_repaired = True

    def _mend_derived(self) -> None:
        check = self._check
        for finding in self._found(*_DROPPED):
            try:
                os.unlink(self._store_path / finding.path)
            except OSError as error:
                raise disk_error(f"delete {finding.path}", error) from error
            finding.is_repaired = True
        if check.report.is_foreign:
            return
        stale = self._mended_files | {item.file_position for item in check.derived}
        folder = self._files.own_folder / consume_queue_files.CONSUME_QUEUE_FOLDER
        for file_position in self._mended_files:
            drop_index(self._store_path, file_position)
        for file_position in stale:
            (folder / f"{file_position:020d}.cq").unlink(missing_ok=True)
        queues = open_consume_queues(
            self._files,
            end_position=check.report.end_position,
            record_crc_position=check.record_crc_position,
        )
        queues.close()
        for item in check.derived:
            item.finding.is_repaired = True

    # ---- config, manifest, boot files ------------------------------------------------------------

    def _mend_config(self) -> None:
        config = self._check.config
        for finding in self._found(Code.CONFIG_DAMAGED):
            file = config.file(Path(finding.path).name)
            try:
                loaded = file.load()
            except ConfigError:
                continue  # no backup to take it from
            if loaded.problem is None:
                continue  # it is JSON, but says what it must not: a person must decide
            if file.path.exists():
                kept = self._files.quarantine_folder / f"{file.path.name}.{self._now_ms}"
                shutil.copyfile(file.path, kept)
            replace_file(file.path, file.backup_path.read_bytes())
            finding.is_repaired = True
        offsets = self._check.consumer_offsets
        if offsets is not None:
            version = offsets.data_version.following(wall_ms=self._now_ms)
            config.store(replace(offsets, data_version=version))
            for finding in self._found(Code.CONSUMER_OFFSET_AHEAD):
                finding.is_repaired = True

    def _mend_manifest(self) -> None:
        for finding in self._found(Code.MANIFEST_DAMAGED):
            kept = self._set_aside(manifest.manifest_path(self._store_path))
            finding.message += f"; kept as {kept.name}, the next start recovers from files"
            finding.is_repaired = True

    def _mend_boot_files(self) -> None:
        for finding in self._found(Code.ABORT_MISSING):
            boot_files.make_abort(self._store_path)
            finding.is_repaired = True
        if self._mended_files:  # what was derived from the log speaks of another one now
            boot_files.set_derived_aside(self._store_path)
            for finding in self._found(Code.ROCKETMQ_DERIVED):
                finding.is_repaired = True


def lost_records(
    loss: Loss, *, file_end: int, store_timestamp: int, host: bytes = _HOST
) -> bytes | None:
    """Return bytes that fill a hole exactly and hold where they lie; None if none can.

    Args:
        loss: the hole and the messages that were in it.
        file_end: physical_offset behind its file: a hole that reaches there ends in a BLANK frame.
        host: address of the broker as a record has it.
        store_timestamp: for the records, ms since 1970.
    """
    ends_file = loss.position + loss.size == file_end
    room = loss.size - _BLANK_SIZE if ends_file else loss.size
    parts = _parts(loss, room)
    data = bytearray()
    if not ends_file and not _fill_up(parts, room - sum(part.size for part in parts)):
        return None
    for part in parts:
        data += part.encode(loss.position + len(data), store_timestamp, host)
    if ends_file:
        rest = loss.size - len(data)
        data += rest.to_bytes(4, "big") + b"\xcb\xd4\x31\x94" + bytes(rest - _BLANK_SIZE)
    assert len(data) == loss.size, (len(data), loss)
    return bytes(data)


@dataclass(slots=True)
class _Part:
    """One record to be written."""

    topic: bytes
    queue_id: int
    queue_offset: int
    sys_flag: int
    reason: str
    body_size: int = 0
    has_marker: bool = False

    @property
    def _properties(self) -> bytes:
        return f"{LOST_PROPERTY}\x01{self.reason}\x02".encode() if self.has_marker else b""

    @property
    def size(self) -> int:
        """Bytes of the record."""
        fixed = _FIXED_SIZE + (len(self.topic) > _TOPIC_SIZE_V1_MAX) + core.CRC_PROPERTY_SIZE
        return fixed + len(self.topic) + len(self._properties) + self.body_size

    def encode(self, position: int, store_timestamp: int, host: bytes) -> bytes:
        """Return the record for this place."""
        text = f"shmq: lost to damage on disk ({self.reason})".encode()
        return core.encode_frame(
            self.topic,
            queue_id=self.queue_id,
            queue_offset=self.queue_offset,
            physical_offset=position,
            store_timestamp=store_timestamp,
            sys_flag=self.sys_flag,
            born_timestamp=store_timestamp,
            born_host=host,
            store_host=host,
            body=text[: self.body_size].ljust(self.body_size),
            properties=self._properties,
        )


def _parts(loss: Loss, room: int) -> list[_Part]:
    """Return a record for each lost message, as many as fit, marked where there is room."""
    parts = []
    left = room
    for message in loss.messages:
        part = _Part(
            topic_bytes(message.topic), message.queue_id, message.queue_offset, 0, loss.reason
        )
        if part.size > left:
            break
        left -= part.size
        parts.append(part)
    for part in parts:
        bare = part.size
        part.has_marker = True
        if part.size - bare > left:
            part.has_marker = False
            break
        left -= part.size - bare
    return parts


def _fill_up(parts: list[_Part], rest: int) -> bool:
    """Make the records take `rest` bytes more, to the last; False if that cannot be."""
    while rest > 0:
        if parts and rest <= _FILLER_SIZE_MAX:
            parts[-1].body_size += rest
            return True
        if rest < _Part(_FILLER_TOPIC[:1], 0, 0, _ROLLBACK, "").size:
            return False
        filler = _Part(_FILLER_TOPIC, 0, 0, _ROLLBACK, "filler")
        if filler.size > rest:
            filler.topic = _FILLER_TOPIC[: len(_FILLER_TOPIC) - (filler.size - rest)]
        filler.body_size = max(0, min(rest, _FILLER_SIZE_MAX) - filler.size)
        rest -= filler.size
        parts.insert(0, filler)
    return True
