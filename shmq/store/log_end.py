"""How much of its replica set's log a store has on disk, whoever asks: its own broker or another.

What lives here: `LogEnd` and `log_end`, for a member that is about to become master without being
told, and looks first whether the log of the one that was master last says more. Reads only, and
takes no lock: the store may be open, and is ahead of what is read then.

Which process: a broker's, of any member. May fail: StoreCorruptError, StoreError where a file does
not hold or cannot be read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from shmq.store import positions
from shmq.store.epochs import EpochFile
from shmq.store.log_files import LogFiles

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LogEnd", "log_end"]


class LogEnd(NamedTuple):
    """The end of a log. Of two of one replica set the greater one has all that the other has, but
    for what the lesser one's member wrote when it was master alone.
    """

    master_epoch: int
    """Of the mastership under which its last byte was written; 0: under none."""
    end_position: int
    """physical_offset behind its last byte."""


def log_end(store_path: Path) -> LogEnd:
    """The end of the log of a store; (0, 0) where there is no store. Blocks for the disk.

    Raises:
        StoreCorruptError: its positions or its epochs do not hold.
        StoreVersionError: a newer shmq wrote them.
        StoreError: a file cannot be read.
    """
    known = positions.load(positions.positions_path(store_path))
    if known is None:
        return LogEnd(0, 0)
    end = known.flushed_position
    if not known.is_clean:  # it was killed: there may be more, up to the first byte never written
        files = LogFiles(store_path, known.file_size_bytes)
        end = max([end, *(begin + size for begin, size in files.find_tail(end))])
    return LogEnd(EpochFile.load(store_path).epoch_at(end), end)
