"""The Controller's journal: what it decided, durable before anybody is told.

What lives here: `Journal`, one append-only file, and its codec. Each line is a CRC-32 of eight hex
digits, a space and a JSON object with a number that grows by one. The first line is a snapshot of
everything, each other one the records of one outcome, so that an outcome is there whole or not at
all. A crash can tear the last line only: it was answered to nobody, and is left out. A line
that does not hold with one that holds behind it was damaged later: the journal is refused then.

Opening it, and every 4,096 lines, the file is replaced by a snapshot; the one before stays as
`.bak`, a torn line in it included. Whoever has it open holds `controller.lock`.

Which process: the active Controller, in its thread; blocks for an fsync a line. What may fail:
StoreLockedError, StoreCorruptError, DiskFullError, StoreError. Behind a failed append nothing more
is taken: the line may be there or not, and only opening it again says.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import orjson

from shmq.controller.replicas import Record, ReplicasInfoTable, decode_record, encode_record
from shmq.errors import ConfigError, StoreCorruptError, StoreError, StoreLockedError
from shmq.json_fields import Fields
from shmq.shm.lock_file import LockFile
from shmq.store.durable_file import disk_error, read_file, replace_file, write_fully

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Journal", "Replayed", "encode_records", "encode_snapshot", "replay"]

FILE_NAME: Final = "controller.journal"
LOCK_NAME: Final = "controller.lock"
FORMAT_VERSION: Final = 1
_LINES_MAX: Final = 4096
"""Records between two snapshots: some hundred bytes each, so a start reads 1 MiB or so."""
_SIZE_MAX: Final = 256 << 20
_RESTORE: Final = (
    "restore the file, from a copy or from its version before, which is beside it as .bak; without"
    " it, move it away: members register anew, and epochs go on behind the highest that one knows"
)
_LINE: Final = re.compile(rb"([0-9a-f]{8}) (\{.*\})")


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a journal says."""

    table: ReplicasInfoTable
    number: int
    """Of its last line; 0: it was empty."""
    torn_bytes: int
    """Of a last line that was not written in full."""


def encode_snapshot(table: ReplicasInfoTable, number: int) -> bytes:
    """The first line of a journal."""
    data = {"format_version": FORMAT_VERSION, "number": number, "snapshot": table.snapshot()}
    return _encode_line(data)


def encode_records(records: Sequence[Record], number: int) -> bytes:
    """A line with the records of one outcome."""
    return _encode_line(
        {"number": number, "records": [encode_record(record) for record in records]}
    )


def replay(data: bytes, *, what: str) -> Replayed:
    """The state that a journal's bytes lead to.

    Args:
        data: all of them.
        what: where they are from, for messages.

    Raises:
        StoreCorruptError: it is damaged, or not a journal of this format.
    """
    lines = data.split(b"\n")
    rest = lines.pop()  # what is behind the last newline: nothing, or a torn line
    decoded = [_decode_line(line) for line in lines]
    holding = [index for index, line in enumerate(decoded) if line is not None]
    if not data:
        return Replayed(ReplicasInfoTable(), 0, 0)
    whole = holding[-1] + 1 if holding else 0
    if len(holding) != whole or not holding or len(lines) - whole > (0 if rest else 1):
        bad = next((index for index, line in enumerate(decoded) if line is None), 0)
        raise StoreCorruptError(
            f"read {what}, line {bad + 1}: its checksum does not hold, and it is not a last line"
            " that was torn",
            hint=_RESTORE,
        )
    try:
        table, number = _replay_lines([line for line in decoded[:whole] if line is not None])
    except ConfigError as error:
        raise StoreCorruptError(f"read {what}: {error}", hint=_RESTORE) from error
    torn = sum(len(line) + 1 for line in lines[whole:]) + len(rest)
    return Replayed(table, number, torn)


def _replay_lines(lines: Sequence[dict[str, object]]) -> tuple[ReplicasInfoTable, int]:
    first = Fields(lines[0], what="line 1")
    version, number = first.number("format_version"), first.number("number")
    if version != FORMAT_VERSION:
        raise ConfigError(f"line 1: format {version}, wanted {FORMAT_VERSION}")
    snapshot = lines[0].get("snapshot")
    if not isinstance(snapshot, dict):
        raise ConfigError("line 1: no snapshot")
    table = ReplicasInfoTable.restore(snapshot)
    for index, line in enumerate(lines[1:], 2):
        fields = Fields(line, what=f"line {index}")
        seen, number = fields.number("number"), number + 1
        if seen != number:
            raise ConfigError(f"line {index}: number {seen}, wanted {number}")
        for item in fields.items("records"):
            table.apply(decode_record(item))
    return table, number


def _encode_line(data: dict[str, object]) -> bytes:
    body = orjson.dumps(data)
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _decode_line(line: bytes) -> dict[str, object] | None:
    match = _LINE.fullmatch(line)
    if match is None or zlib.crc32(match[2]) != int(match[1], 16):
        return None
    try:
        value = orjson.loads(match[2])
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


class Journal:
    """The journal of one folder, open for this process alone.

    Args:
        folder: existing, 0700, of this uid.

    Raises:
        StoreLockedError: another Controller is active there.
        StoreCorruptError: the file does not hold.
        DiskFullError, StoreError, ShmError: file or folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self._fd = -1
        lock = LockFile.try_take(folder, LOCK_NAME, what="the Controller's lock")
        if lock is None:
            raise StoreLockedError(f"open {self._path}: another Controller is active")
        self._lock = lock
        try:
            self.replayed = replay(
                read_file(self._path, size_max=_SIZE_MAX) or b"", what=str(self._path)
            )
            self._number = self.replayed.number
            self._compact(self.replayed.table)
        except BaseException:
            self.close()
            raise

    def append(self, records: Sequence[Record], table: ReplicasInfoTable) -> None:
        """Make the records of one outcome durable. Blocks for an fsync; without any, does nothing.

        Args:
            records: in order.
            table: the state before them, for a snapshot where it is time for one.

        Raises:
            DiskFullError, StoreError: whether they are there is known once it is opened again.
        """
        if not records:
            return
        if self._fd < 0:
            raise StoreError(f"append to {self._path}: an append before failed; open it again")
        fd, self._fd = self._fd, -1  # until this line stands
        if self._lines >= _LINES_MAX:
            os.close(fd)
            self._compact(table)
            fd, self._fd = self._fd, -1
        line = encode_records(records, self._number + 1)
        try:
            write_fully(fd, line, self._size)
            os.fsync(fd)
        except OSError as error:
            os.close(fd)
            raise disk_error(f"append to {self._path}", error) from error
        self._fd = fd
        self._number += 1
        self._lines += 1
        self._size += len(line)

    def close(self) -> None:
        """Close it and give the lock up; twice does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        self._lock.release()

    def _compact(self, table: ReplicasInfoTable) -> None:
        line = encode_snapshot(table, self._number)
        replace_file(self._path, line, keep_backup=True)
        try:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise disk_error(f"open {self._path}", error) from error
        self._size = len(line)
        self._lines = 0
