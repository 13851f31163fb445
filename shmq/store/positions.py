"""`<store>/shmq/positions`: how far the log was known to be safe, in two slots of 4 KiB.

What lives here: `Positions` and its file. It is a lower bound that recovery starts from: behind
`flushed_position` a frame that does not hold is the tail, before it it is damage. It is written
now and then, at shutdown and after recovery, never by the flusher, so it may lag; it must not lead.

    byte  size  field                  (little-endian)
       0     8  magic "shmqposi"
       8     4  format_version, 1
      12     4  is_clean, 1 after an orderly stop
      16     8  sequence, of this write; the slot is sequence & 1
      24     8  flushed_position
      32     8  min_position
      40     8  store_generation
      48    16  boot_id
      64     8  store_timestamp, ms since 1970
      72     8  file_size_bytes
      80     8  record_crc_position
      88  4004  zero
    4092     4  CRC-32 of the 4,092 bytes before it

A slot counts if magic, version and CRC hold and the padding is zero; of two that count the higher
sequence wins. A write touches one slot, so a torn one leaves the other: the write before. Where a
slot is damaged nobody knows whether it was the newer, so `is_clean` is not believed then.

Which process: the broker, under its lock, one thread at a time; recovery and tools read. What may
fail: StoreCorruptError if neither slot counts; StoreVersionError; DiskFullError, StoreError.
"""

import logging
import os
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

from shmq.errors import StoreCorruptError, StoreVersionError
from shmq.store.durable_file import disk_error, read_file, replace_file, write_fully

__all__ = [
    "FORMAT_VERSION",
    "POSITIONS_FILE",
    "Positions",
    "SLOT_SIZE",
    "SlotReport",
    "decode",
    "inspect_slots",
    "load",
    "load_or_none",
    "newest",
    "positions_path",
    "save",
]

_log = logging.getLogger("shmq.store")

POSITIONS_FILE = "positions"
FORMAT_VERSION = 1
SLOT_SIZE = 4096
_MAGIC = b"shmqposi"
_FIELDS = struct.Struct("<8sIIQQQQ16sQQQ")
_CRC = struct.Struct("<I")
_PADDING = bytes(SLOT_SIZE - _FIELDS.size - _CRC.size)
_BOOT_ID_SIZE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """What one write says."""

    flushed_position: int
    """physical_offset: every byte of the log below it was on disk."""
    min_position: int
    """physical_offset of the first byte kept."""
    store_generation: int
    """Generation of the shared memory in which the log lived; 0: none yet."""
    boot_id: bytes
    """Boot of the write, 16 bytes."""
    store_timestamp: int
    """Highest storeTimestamp given out, ms since 1970: it never goes back."""
    file_size_bytes: int
    """Size of the log files."""
    record_crc_position: int = 0
    """physical_offset from which on every record carries __CRC32#: behind what RocketMQ wrote."""
    is_clean: bool = False
    """An orderly stop: the log ends at flushed_position and nothing followed."""
    sequence: int = 0
    """Counts writes; `save` gives the next."""


@dataclass(frozen=True, slots=True)
class SlotReport:
    """What one slot holds, for tools."""

    slot: int
    """0 or 1."""
    positions: Positions | None
    """What it says, or None if it does not count."""
    reason: str | None
    """Why it does not count; None if it does, or if nothing was ever written to it."""


def positions_path(store_path: Path) -> Path:
    """Return where the positions of a store lie."""
    return store_path / "shmq" / POSITIONS_FILE


def load(path: Path) -> Positions | None:
    """Return the newest positions, or None if there is no file.

    Raises:
        StoreCorruptError: neither slot counts, or the file has another size.
        StoreVersionError: a newer shmq wrote it.
        StoreError: it cannot be read.
    """
    reports = inspect_slots(path)
    return None if reports is None else newest(reports, path)


def load_or_none(path: Path) -> Positions | None:
    """Return the newest positions that hold, or None: whoever has none scans the whole log.

    Raises:
        StoreVersionError, StoreError: as `load`.
    """
    try:
        return load(path)
    except StoreCorruptError as error:
        _log.warning("positions lost, the whole log is scanned: %s", error)
        return None


def newest(reports: tuple[SlotReport, SlotReport], path: Path) -> Positions:
    """Return what the newer slot that counts says; `path` is for the message.

    Raises:
        StoreCorruptError: neither counts.
    """
    good = [report.positions for report in reports if report.positions is not None]
    if not good:
        reasons = "; ".join(f"slot {report.slot}: {report.reason}" for report in reports)
        raise StoreCorruptError(f"read {path}: {reasons}")
    found = max(good, key=lambda positions: positions.sequence)
    if any(report.reason for report in reports):
        found = replace(found, is_clean=False)
    return found


def inspect_slots(path: Path) -> tuple[SlotReport, SlotReport] | None:
    """Return what each slot holds, or None if there is no file.

    Raises:
        StoreCorruptError: the file has another size.
        StoreVersionError: a newer shmq wrote it.
        StoreError: it cannot be read.
    """
    data = read_file(path, size_max=2 * SLOT_SIZE)
    return None if data is None else decode(data, path)


def decode(data: bytes, path: Path) -> tuple[SlotReport, SlotReport]:
    """Return what each slot of a file's bytes holds; `path` is for the message.

    Raises:
        StoreCorruptError, StoreVersionError: as `inspect_slots`.
    """
    if len(data) != 2 * SLOT_SIZE:
        raise StoreCorruptError(f"read {path}: {len(data)} bytes, wanted {2 * SLOT_SIZE}")
    first = _inspect(0, data[:SLOT_SIZE], path)
    second = _inspect(1, data[SLOT_SIZE:], path)
    return _wiped(first, second), _wiped(second, first)


def save(path: Path, positions: Positions, *, durable: bool) -> Positions:
    """Write the next version; the caller is the file's only writer.

    Args:
        path: in a folder that exists; made with both slots if it is not there.
        positions: what to write; its sequence is that of the last version, from `load` or `save`.
        durable: wait until it is on disk.

    Returns:
        what was written, with its sequence.

    Raises:
        DiskFullError, StoreError: the last version stands.
    """
    written = replace(positions, sequence=positions.sequence + 1)
    slot = _encode(written)
    if not path.exists():
        slots = [bytes(SLOT_SIZE), slot] if written.sequence & 1 else [slot, bytes(SLOT_SIZE)]
        replace_file(path, b"".join(slots))
        return written
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            write_fully(fd, slot, (written.sequence & 1) * SLOT_SIZE)
            if durable:
                os.fdatasync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise disk_error(f"write {path}", error) from error
    return written


def _encode(positions: Positions) -> bytes:
    assert len(positions.boot_id) == _BOOT_ID_SIZE, positions.boot_id
    fields = _FIELDS.pack(
        _MAGIC,
        FORMAT_VERSION,
        positions.is_clean,
        positions.sequence,
        positions.flushed_position,
        positions.min_position,
        positions.store_generation,
        positions.boot_id,
        positions.store_timestamp,
        positions.file_size_bytes,
        positions.record_crc_position,
    )
    body = fields + _PADDING
    return body + _CRC.pack(zlib.crc32(body))


def _wiped(report: SlotReport, other: SlotReport) -> SlotReport:
    """Tell a slot that was never written from one that was: the second write fills both."""
    empty = report.positions is None and report.reason is None
    if empty and (other.positions is None or other.positions.sequence > 1):
        return replace(report, reason="all zero, though both slots were written")
    return report


def _inspect(slot: int, data: bytes, path: Path) -> SlotReport:
    if data == bytes(SLOT_SIZE):
        return SlotReport(slot, None, None)
    body = data[: -_CRC.size]
    (crc,) = _CRC.unpack(data[-_CRC.size :])
    if zlib.crc32(body) != crc:
        reason = f"CRC {crc:08x}, wanted {zlib.crc32(body):08x}"
        return SlotReport(slot, None, reason)
    magic, version, clean, sequence, *rest = _FIELDS.unpack_from(data)
    if magic != _MAGIC:
        return SlotReport(slot, None, f"magic {magic!r}, wanted {_MAGIC!r}")
    if version != FORMAT_VERSION:
        raise StoreVersionError(f"read {path}: format {version}, this shmq knows {FORMAT_VERSION}")
    flushed, minimum, generation, boot_id, timestamp, file_size, record_crc = rest
    if clean > 1 or sequence & 1 != slot or body[_FIELDS.size :] != _PADDING:
        return SlotReport(slot, None, "fields that no writer of ours could have written")
    return SlotReport(
        slot,
        Positions(
            flushed_position=flushed,
            min_position=minimum,
            store_generation=generation,
            boot_id=boot_id,
            store_timestamp=timestamp,
            file_size_bytes=file_size,
            record_crc_position=record_crc,
            is_clean=bool(clean),
            sequence=sequence,
        ),
        None,
    )
