"""A file of our own beside a CommitLog file, open for reading: what all such files have in common.

What lives here: `DerivedFile`: opening, whole reads, and the first fields of a header: 8 bytes
magic, 4 bytes version, and its own CRC at its end. ConsumeQueue files and index files build on it.
Which process: whoever reads a store. Writes nothing. May fail: StoreCorruptError where the file
does not hold (it is made again from the log), StoreVersionError, StoreError.
"""

from __future__ import annotations

import os
import zlib
from typing import TYPE_CHECKING, Any, Self

from shmq.errors import StoreCorruptError, StoreVersionError
from shmq.store.durable_file import disk_error

if TYPE_CHECKING:
    import struct
    from pathlib import Path

__all__ = ["CRC_SIZE", "DerivedFile"]

CRC_SIZE = 4


class DerivedFile:
    """Owns its fd; a context manager.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is none.
        StoreError: it cannot be opened.
    """

    __slots__ = ("_fd", "_path")

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise disk_error(f"open {path}", error) from error

    def _pread(self, size: int, place: int) -> bytes:
        try:
            data = os.pread(self._fd, size, place)
        except OSError as error:
            raise disk_error(f"read {self._path}", error) from error
        if len(data) != size:
            raise StoreCorruptError(f"read {self._path}: it ends at byte {place + len(data)}")
        return data

    def _read_head(
        self, layout: struct.Struct, *, magic: bytes, format_version: int
    ) -> tuple[bytes, tuple[Any, ...]]:
        """The header's bytes, and its fields behind magic and version."""
        data = self._pread(layout.size, 0)
        crc = int.from_bytes(data[-CRC_SIZE:], "little")
        if zlib.crc32(data[:-CRC_SIZE]) != crc:
            raise StoreCorruptError(f"read {self._path}: the header's CRC does not hold")
        seen, version, *fields = layout.unpack(data)
        if seen != magic:
            raise StoreCorruptError(f"read {self._path}: magic {seen!r}, wanted {magic!r}")
        if version != format_version:
            raise StoreVersionError(
                f"read {self._path}: format {version}, this shmq knows {format_version}"
            )
        return data, tuple(fields)

    def close(self) -> None:
        """Close the file. Twice does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
