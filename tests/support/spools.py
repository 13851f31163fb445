"""What programs under test note in files, in records of one size: each is read once.

What lives here: `Spools`. A program appends records to a file of its own, unbuffered; one that is
killed may leave a torn one at the end, which is not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


class Spools:
    """The files of a folder whose names match, however many there will be.

    Args:
        folder: where they lie.
        pattern: of their names.
        record_size: bytes of a record.
    """

    def __init__(self, folder: Path, pattern: str, record_size: int) -> None:
        self._folder = folder
        self._pattern = pattern
        self._record_size = record_size
        self._ends: dict[Path, int] = {}

    def read(self) -> Iterator[bytes]:
        """The records that have come since, those of a file together."""
        for path in sorted(self._folder.glob(self._pattern)):
            begin = self._ends.get(path, 0)
            with path.open("rb") as file:
                file.seek(begin)
                data = file.read()
            data = data[: len(data) // self._record_size * self._record_size]
            self._ends[path] = begin + len(data)
            if data:
                yield data
