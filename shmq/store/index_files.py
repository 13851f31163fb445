"""Where messages with a key are: one derived file beside each complete CommitLog file.

What lives here: building, checking and reading `<store>/shmq/index/<20 digits>.idx`. Everything in
it follows from the CommitLog file alone, so the same bytes come out each time it is built.

    byte  size  field                     (little-endian)
       0     8  magic "shmqindx"
       8     4  format_version, 1
      12     4  header_size, 128
      16     8  file_position             of the CommitLog file
      24     8  file_size_bytes           of the CommitLog file
      32     8  end_position              where its frames end: of the BLANK frame
      40     8  frame_count               frames that were looked at
      48     8  entry_count
      56     8  first_store_timestamp     ms since 1970: the lowest; 0 without frames
      64     8  last_store_timestamp      the highest
      72     4  page_size_bytes           4096: 256 entries
      76     4  page_count
      80    40  zero
     120     4  CRC-32 of the directory
     124     4  CRC-32 of the 124 bytes before it
     128        entries: entry_count x 16, sorted by (hash, place)
                directory: page_count x 16

    entry: hash u64, place u32 (of the frame, in its file), second u32 (storeTimestamp, since 1970)
    directory row: hash u64 of the page's first entry, CRC-32 of the page u32, zero u32

Header and directory are checked when the file is opened, a page each time it is read. The hash is
that of core/include/shmq/index.h. An entry is a hint: whoever follows it looks at the message.

Written to a temporary file and renamed, and not synced: what a power cut leaves of it does not
hold, and is built again. Which process: the broker; fsck checks, inspect shows. What may fail:
StoreCorruptError (then build anew), StoreVersionError, DiskFullError, StoreError.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import os
import struct
import zlib
from array import array
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, NamedTuple

from shmq.core import core
from shmq.errors import StoreCorruptError
from shmq.store.derived_file import CRC_SIZE, DerivedFile
from shmq.store.durable_file import FILE_MODE, disk_error, make_folder, write_fully
from shmq.store.log_files import OWN_FOLDER, LogFiles, file_name
from shmq.store.recovery import NO_RECORD_CRC, scan_log_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

__all__ = [
    "ENTRY_SIZE",
    "Entry",
    "FIND_MAX",
    "INDEX_FOLDER",
    "IndexFile",
    "IndexHeader",
    "Stopped",
    "build",
    "drop_index",
    "index_path",
    "index_positions",
    "is_same",
    "key_hash",
    "write_index",
]

INDEX_FOLDER = "index"
FORMAT_VERSION = 1
ENTRY_SIZE = 16
PAGE_BYTES = 4096
ENTRIES_MAX = 4 << 20
"""Entries gathered at a time: 64 MiB, and as much to sort them. A file with more keys is read more
than once, each time for a part of all hashes."""
_ENTRY_SPACING_BYTES = 128
"""Of the log for each entry, as memory is taken at first: short messages of two keys have more."""
_PARTS_MAX = 256
"""So many parts hold the keys of any file that does not have one key again and again; for such a
file more memory is taken instead."""
FIND_MAX = 256
"""Entries given at a time."""
_SUFFIX = ".idx"
_MAGIC = b"shmqindx"
_HEADER = struct.Struct("<8sIIQQQQQqqII40xII")
_HEADER_SIZE = _HEADER.size
_ROW_SIZE = 16
_PAGE_ENTRIES = PAGE_BYTES // ENTRY_SIZE
_ENTRY = struct.Struct("<QII")
_HASHES = 1 << 64
_PLACE_END = 1 << 32
_numbers = itertools.count()
"""For names of temporary files: two threads may build the same file at a time."""
assert _HEADER_SIZE == 128

_OK = core.STATUS["OK"][0]
_BLANK = core.STATUS["BLANK"][0]
_FULL = core.STATUS["FULL"][0]
_STOPPED = core.STATUS["STOPPED"][0]


class Stopped(Exception):  # an outcome, as StopIteration is
    """The build was told to end."""


class Entry(NamedTuple):
    """One key of one message."""

    hash: int
    """Of topic and key."""
    place: int
    """Byte of the frame in its CommitLog file."""
    second: int
    """Its storeTimestamp, whole seconds since 1970."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexHeader:
    """What an index file says of itself and of its CommitLog file."""

    file_position: int
    file_size_bytes: int
    end_position: int
    """physical_offset of the BLANK frame."""
    frame_count: int
    entry_count: int
    first_store_timestamp: int
    """ms since 1970, the lowest of all frames."""
    last_store_timestamp: int
    """ms since 1970, the highest of all frames."""
    page_size_bytes: int
    page_count: int


def key_hash(topic: str | None, key: str) -> int:
    """The hash that entries of a key have.

    Args:
        topic: of a word of KEYS; None: `key` is a UNIQ_KEY, the same in all topics.
        key: the key.
    """
    return core.index_hash(
        b"" if topic is None else topic.encode("utf-8", "surrogateescape"),
        key.encode("utf-8", "surrogateescape"),
    )


def index_path(store_path: Path, file_position: int) -> Path:
    """Where the index file of a CommitLog file lies, or would."""
    return store_path / OWN_FOLDER / INDEX_FOLDER / f"{file_name(file_position)}{_SUFFIX}"


def index_positions(store_path: Path) -> list[int]:
    """The CommitLog files that have an index file, in order; whether it holds is not looked at."""
    folder = store_path / OWN_FOLDER / INDEX_FOLDER
    return sorted(int(path.stem) for path in folder.glob(f"{'[0-9]' * 20}{_SUFFIX}"))


# ---- building ------------------------------------------------------------------------------------


def write_index(
    files: LogFiles, file_position: int, *, is_idle: bool = False, stop_fd: int = -1
) -> None:
    """Build the index file of a complete CommitLog file, or build it anew.

    Args:
        files: the log.
        file_position: of a complete file.
        is_idle: take only processor time that nobody else wants; else as much as there is.
        stop_fd: readable (an eventfd): end soon; -1: never.

    Raises:
        Stopped: by `stop_fd`.
        DiskFullError, StoreError: nothing is left behind.
    """
    path = index_path(files.store_path, file_position)
    make_folder(path.parent)
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{next(_numbers)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(temporary, flags, FILE_MODE)
        try:
            build(
                files,
                file_position,
                write=lambda data, place: write_fully(fd, data, place),
                is_idle=is_idle,
                stop_fd=stop_fd,
            )
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise disk_error(f"write {path}", error) from error
        raise


class _Overflow(Exception):
    """More entries than fit at a time."""


def build(
    files: LogFiles,
    file_position: int,
    *,
    write: Callable[[bytes, int], None],
    is_idle: bool = False,
    stop_fd: int = -1,
    entries_max: int = ENTRIES_MAX,
) -> None:
    """Give the bytes of the index file of a complete CommitLog file, piece by piece.

    Args:
        files: the log.
        file_position: of a complete file.
        write: called with (bytes, place in the file), in no order; again from the start if there
            are more keys than fit at a time.
        is_idle: as in `write_index`.
        stop_fd: as in `write_index`.
        entries_max: gathered at a time.

    Raises:
        Stopped: by `stop_fd`.
        StoreError: the log cannot be read.
    """
    fd = files.open(file_position)
    try:
        parts = 1
        limit = min(entries_max, files.file_size_bytes // _ENTRY_SPACING_BYTES + 1)
        while True:  # ends: a file has less than one key in two bytes
            builder = _Builder(files, fd, file_position, is_idle, stop_fd, limit)
            try:
                builder.run(parts, write)
                return
            except _Overflow:
                if limit < entries_max or parts == _PARTS_MAX:
                    limit *= 4
                else:
                    parts *= 4
    except OSError as error:
        raise disk_error(f"read {files.path(file_position)}", error) from error
    finally:
        os.close(fd)


class _Builder:
    """One CommitLog file as an index file."""

    def __init__(
        self,
        files: LogFiles,
        fd: int,
        file_position: int,
        is_idle: bool,
        stop_fd: int,
        entries_max: int,
    ) -> None:
        self._files = files
        self._fd = fd
        self._file_position = file_position
        self._is_idle = is_idle
        self._stop_fd = stop_fd
        self._entries_max = entries_max
        self._holes: Sequence[tuple[int, int]] = ()
        self._is_scanned = False

    def run(self, parts: int, write: Callable[[bytes, int], None]) -> None:
        directory = bytearray()
        rest = b""
        written = 0
        for part in range(parts):
            place, entries, *facts = self._gather(
                part * _HASHES // parts, (part + 1) * _HASHES // parts - 1
            )
            entries = rest + entries
            whole = len(entries) if part == parts - 1 else len(entries) // PAGE_BYTES * PAGE_BYTES
            rest = entries[whole:]
            entries = entries[:whole]
            directory += core.index_directory(entries, PAGE_BYTES)
            write(entries, _HEADER_SIZE + written)
            written += whole
        write(bytes(directory), _HEADER_SIZE + written)
        header = _HEADER.pack(
            _MAGIC,
            FORMAT_VERSION,
            _HEADER_SIZE,
            self._file_position,
            self._files.file_size_bytes,
            place,
            facts[0],
            written // ENTRY_SIZE,
            facts[1],
            facts[2],
            PAGE_BYTES,
            len(directory) // _ROW_SIZE,
            zlib.crc32(directory),
            0,
        )[:-CRC_SIZE]
        write(header + zlib.crc32(header).to_bytes(CRC_SIZE, "little"), 0)

    def _gather(self, low: int, high: int) -> tuple[int, bytes, int, int, int]:
        """(end_position, entries, frame_count, first and last store time) of a range of hashes."""
        while True:  # at most twice: the scan finds every hole
            status, place, entries, frame_count, first, last = core.index_file(
                self._fd,
                file_position=self._file_position,
                file_size=self._files.file_size_bytes,
                holes=self._holes,
                low=low,
                high=high,
                entry_limit=self._entries_max,
                idle=self._is_idle,
                stop_fd=self._stop_fd,
            )
            if status in (_OK, _BLANK):
                return place, entries, frame_count, first, last
            if status == _STOPPED:
                raise Stopped
            if status == _FULL:
                raise _Overflow
            if self._is_scanned:
                raise StoreCorruptError(
                    f"index {self._files.path(self._file_position)}: no frame at {place}, though "
                    "the scan had passed it; run fsck"
                )
            self._find_holes()

    def _find_holes(self) -> None:
        """Damage is rare: a scan with all checks says where frames go on behind it."""
        scan = scan_log_file(
            self._files,
            self._file_position,
            topics={},
            trusted_end=self._file_position + self._files.file_size_bytes,
            record_crc_position=NO_RECORD_CRC,
        )
        self._holes = [(hole.position, hole.position + hole.size) for hole in scan.damages]
        self._is_scanned = True


# ---- reading -------------------------------------------------------------------------------------


class IndexFile(DerivedFile):
    """One index file, open for reading. Owns its fd; a context manager. Threads may share it.

    Args:
        path: the file.
        file_position: of its CommitLog file.
        file_size_bytes: of its CommitLog file.

    Raises:
        FileNotFoundError: there is none.
        StoreCorruptError: header or directory do not hold, or belong to another file.
        StoreVersionError: a newer shmq wrote it.
        StoreError: it cannot be read.
    """

    __slots__ = ("_crcs", "_firsts", "header")

    def __init__(self, path: Path, *, file_position: int, file_size_bytes: int) -> None:
        super().__init__(path)
        try:
            self.header, directory_crc = self._read_header(file_position, file_size_bytes)
            self._firsts, self._crcs = self._read_directory(directory_crc)
        except BaseException:
            self.close()
            raise

    def _read_header(self, file_position: int, file_size_bytes: int) -> tuple[IndexHeader, int]:
        data, (header_size, *fields, directory_crc, _) = self._read_head(
            _HEADER, magic=_MAGIC, format_version=FORMAT_VERSION
        )
        names = IndexHeader.__dataclass_fields__
        header = IndexHeader(**dict(zip(names, fields, strict=True)))
        entries_size = header.entry_count * ENTRY_SIZE
        seen = (header_size, *astuple(header)[:2], header.page_size_bytes, header.page_count)
        wanted = (
            _HEADER_SIZE,
            file_position,
            file_size_bytes,
            PAGE_BYTES,
            -(-entries_size // PAGE_BYTES),
        )
        size = _HEADER_SIZE + entries_size + header.page_count * _ROW_SIZE
        if seen != wanted or any(data[80:120]) or size != os.fstat(self._fd).st_size:
            raise StoreCorruptError(f"read {self._path}: it is not of this CommitLog file")
        return header, directory_crc

    def _read_directory(self, directory_crc: int) -> tuple[array[int], array[int]]:
        header = self.header
        place = _HEADER_SIZE + header.entry_count * ENTRY_SIZE
        data = self._pread(header.page_count * _ROW_SIZE, place)
        if zlib.crc32(data) != directory_crc:
            raise StoreCorruptError(f"read {self._path}: the directory's CRC does not hold")
        words = array("Q", data)
        return words[::2], words[1::2]

    def find(self, hash_: int, *, below: int = _PLACE_END) -> list[tuple[int, int]]:
        """(place, second) of entries of a hash, the newest first, at most FIND_MAX.

        Args:
            hash_: from `key_hash`.
            below: only places before this one: to go on behind the last of an answer.

        Raises:
            StoreCorruptError: a page does not hold: build the file anew.
            StoreError: it cannot be read.
        """
        found: list[tuple[int, int]] = []
        for page in range(bisect.bisect_right(self._firsts, hash_) - 1, -1, -1):
            entries = self.page(page)
            end = bisect.bisect_left(entries, (hash_, below, 0))
            begin = bisect.bisect_left(entries, (hash_, 0, 0))
            found += [entry[1:] for entry in reversed(entries[begin:end])]
            if begin > 0 or len(found) >= FIND_MAX:
                break
        return found[:FIND_MAX]

    def page(self, page: int) -> Sequence[tuple[int, int, int]]:
        """The entries of a page, as (hash, place, second). Errors as `find`."""
        begin = page * _PAGE_ENTRIES
        count = min(_PAGE_ENTRIES, self.header.entry_count - begin)
        data = self._pread(count * ENTRY_SIZE, _HEADER_SIZE + begin * ENTRY_SIZE)
        if zlib.crc32(data) != self._crcs[page]:
            raise StoreCorruptError(f"read {self._path}: page {page} does not hold")
        return list(_ENTRY.iter_unpack(data))

    def entries(self, first: int, limit: int) -> Iterator[Entry]:
        """Yield entries in their order, from number `first` on, at most `limit`; for tools."""
        for page in range(first // _PAGE_ENTRIES, self.header.page_count):
            skipped = max(0, first - page * _PAGE_ENTRIES)
            for fields in self.page(page)[skipped : skipped + limit]:
                yield Entry(*fields)
                limit -= 1
            if limit <= 0:
                return


def drop_index(store_path: Path, file_position: int) -> None:
    """Remove an index file; it is built again when it is wanted.

    Raises:
        StoreError: the system refuses.
    """
    path = index_path(store_path, file_position)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(f"delete {path}", error) from error


def is_same(files: LogFiles, file_position: int) -> bool:
    """Whether the index file says what its CommitLog file says, byte for byte; for fsck.

    Raises:
        StoreError: one of them cannot be read.
    """
    path = index_path(files.store_path, file_position)
    is_equal = True
    size = 0

    with path.open("rb") as file:

        def compare(data: bytes, place: int) -> None:
            nonlocal is_equal, size
            is_equal = is_equal and os.pread(file.fileno(), len(data), place) == data
            size = max(size, place + len(data))

        build(files, file_position, write=compare)
        return is_equal and size == os.fstat(file.fileno()).st_size
