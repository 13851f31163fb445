"""What a slave's store knows when it stops for its own process to become master.

What lives here: `StoppedLog`. Recovery finds out from files what the store that just stopped knew:
where the log ends and which queues lie in complete files. A takeover has clients waiting, so it is
handed on instead; and the slave's own memory, which nobody needs any more, is unmapped and removed
once the new master serves.

That memory's manifest has another name meanwhile, `leaving.json`: the store's own is the one of the
memory that it serves from. Killed in between, whoever opens the store next removes both.

Which process: a broker's, between a slave's stop and the new master's first second. Writes: removes
the slave's objects in /dev/shm and their list. May fail: ShmError, where they cannot be removed;
they are left to the next one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from shmq.errors import StoreCorruptError
from shmq.shm import manifest as manifests
from shmq.shm import reaper
from shmq.shm.in_use import InUseMark
from shmq.shm.incarnation import boot_id
from shmq.store import positions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from shmq.store.consume_queue_files import QueueKey
    from shmq.store.memory import StoreMemory
    from shmq.store.recovery import QueueRange

__all__ = ["LogPrefix", "StoppedLog", "leaving_path", "remove_leaving"]

_MARK_TIMEOUT_MS: Final = 1000


class LogPrefix(NamedTuple):
    """Our files, where the log goes on in another member's memory."""

    end_position: int
    """physical_offset behind the last frame; every byte of the files from there on is zero."""
    min_position: int
    """physical_offset of the first byte kept."""
    cold_queues: Mapping[QueueKey, QueueRange]
    """As RecoveredLog has them."""


@dataclass(frozen=True, slots=True)
class StoppedLog:
    """The log of a slave that stopped in order, all of it on disk."""

    prefix: LogPrefix
    """What recovery would find."""
    sequence: int
    """Of the positions that were written last: nobody has opened the store since."""
    memory: StoreMemory
    """The slave's, mapped yet."""
    leaving_path: Path
    """Where its manifest lies now."""
    runtime_path: Path
    """Where its in-use mark lies."""

    def holds(self, positions_path: Path) -> bool:
        """Whether the files are as they were left, as far as their positions tell."""
        try:
            known = positions.load(positions_path)
        except StoreCorruptError:
            return False
        return known is not None and known.is_clean and known.sequence == self.sequence

    def release(self) -> None:
        """Unmap the memory and remove it. Blocks for some ten milliseconds.

        Raises:
            OwnerError, ShmError: it cannot be removed.
        """
        self.memory.close()
        remove_leaving(self.leaving_path, self.runtime_path)


def leaving_path(store_path: Path) -> Path:
    """Where the manifest of memory lies that is to be removed."""
    return store_path / "shmq" / "leaving.json"


def remove_leaving(path: Path, runtime_path: Path) -> None:
    """Remove the memory that `leaving.json` lists, and the list; nothing without it.

    Raises:
        OwnerError, ShmError: it cannot be removed; the list stays.
    """
    manifest = manifests.load(path)
    if manifest is None:
        return
    if manifest.boot_id == boot_id():
        mark = InUseMark.take(runtime_path, manifest.store, timeout_ms=_MARK_TIMEOUT_MS)
        with mark:
            reaper.sweep(mark, keep=())
            mark.remove()
    path.unlink(missing_ok=True)
