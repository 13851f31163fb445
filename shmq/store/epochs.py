"""`<store>/shmq/epochs.json`: under which mastership which part of the log was written.

What lives here: `Epoch` and `EpochFile`, RocketMQ's epochFileCheckpoint (EpochFileCache): the list
of (master_epoch, start_position), both growing. Two members of a replica set whose lists agree up
to an entry have the same bytes up to the end of it, and not beyond: `common_end` says where that
is, and a member that was master alone cuts its log there before it copies (decision 0020). Entries
do not go with the files that retention takes: by them a slave that was away for long is told from
one whose log was never this one (common_log.plan_cut), and one mastership is some 60 bytes.

    {                                             indented by two
      "format_version": 1,
      "epochs": [{"master_epoch": 1, "start_position": 0}, ...]
    }
    crc32 0a1b2c3d                                CRC-32 of all bytes above

Which process: the store's owner, under its lock, one thread at a time: as master when it takes
mastership, as slave what its master says. Each change is durable when it returns. What may fail:
StoreCorruptError: the file does not hold; DiskFullError, StoreError.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from shmq.errors import ConfigError, FencedError, StoreCorruptError
from shmq.json_fields import Fields
from shmq.store import checked_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

__all__ = ["Epoch", "EpochFile", "common_end"]

FILE_NAME = "epochs.json"
FORMAT_VERSION = 1


class Epoch(NamedTuple):
    """One mastership."""

    master_epoch: int
    """Its number; they grow."""
    start_position: int
    """physical_offset of the first byte written under it; it ends where the next one starts."""


@dataclass(frozen=True, slots=True)
class EpochFile:
    """The list of one store. A value: what changes it writes the file and gives a new one."""

    path: Path
    """Where it lies."""
    epochs: tuple[Epoch, ...] = ()
    """Oldest first."""

    @classmethod
    def load(cls, store_path: Path) -> EpochFile:
        """The list of the store in `store_path`; empty where there is no file.

        Raises:
            StoreCorruptError: the file does not hold.
            StoreVersionError: a newer shmq wrote it.
            StoreError: it cannot be read.
        """
        path = store_path / "shmq" / FILE_NAME
        fields = checked_json.load_fields(path, FORMAT_VERSION)
        if fields is None:
            return cls(path)
        try:
            epochs = tuple(
                Epoch(item.number("master_epoch"), item.number("start_position"))
                for item in (Fields(entry, what=str(path)) for entry in fields.items("epochs"))
            )
        except ConfigError as error:
            raise StoreCorruptError(str(error)) from error
        if not _grows(epochs):
            raise StoreCorruptError(
                f"read {path}: {len(epochs)} epochs that do not grow; restore it, or move it away:"
                " this store is then copied anew from its master"
            )
        return cls(path, epochs)

    @property
    def last_epoch(self) -> int:
        """The newest master_epoch; 0: none yet."""
        return self.epochs[-1].master_epoch if self.epochs else 0

    def epoch_at(self, end_position: int) -> int:
        """Under which mastership the last byte before a position was written; 0: under none."""
        return max(
            (e.master_epoch for e in self.epochs if e.start_position < end_position), default=0
        )

    def begin(self, master_epoch: int, start_position: int) -> EpochFile:
        """A mastership begins where the log ends now. The one it replaces may have written nothing:
        it is forgotten then.

        Raises:
            FencedError: it is older than the last one.
            DiskFullError, StoreError: the old list stands.
        """
        if master_epoch == self.last_epoch:
            return self
        if master_epoch < self.last_epoch:
            raise FencedError(
                f"write {self.path}: master epoch {master_epoch}, the last one is {self.last_epoch}"
            )
        kept = tuple(epoch for epoch in self.epochs if epoch.start_position < start_position)
        return self._save((*kept, Epoch(master_epoch, start_position)))

    def replace(self, epochs: Iterable[Epoch]) -> EpochFile:
        """The list is another one: a slave's is what its master says.

        Raises:
            StoreCorruptError: epochs or positions do not grow.
            DiskFullError, StoreError: the old list stands.
        """
        wanted = tuple(Epoch(*epoch) for epoch in epochs)
        if not _grows(wanted):
            raise StoreCorruptError(f"write {self.path}: {wanted}: epochs that do not grow")
        return self if wanted == self.epochs else self._save(wanted)

    def cut(self, end_position: int) -> EpochFile:
        """The log was cut at `end_position`: nothing begins behind it."""
        kept = tuple(epoch for epoch in self.epochs if epoch.start_position < end_position)
        return self if kept == self.epochs else self._save(kept)

    def _save(self, epochs: tuple[Epoch, ...]) -> EpochFile:
        data: dict[str, object] = {
            "format_version": FORMAT_VERSION,
            "epochs": [epoch._asdict() for epoch in epochs],
        }
        checked_json.save(self.path, data)
        return EpochFile(self.path, epochs)


def common_end(
    ours: Sequence[Epoch], our_end: int, theirs: Sequence[Epoch], their_end: int
) -> int | None:
    """Where two logs stop being the same, as their epochs say (EpochFileCache.findConsistentPoint).

    Args:
        ours: epochs of one log, oldest first.
        our_end: physical_offset behind its last frame.
        theirs: epochs of the other.
        their_end: its end.

    Returns:
        The physical_offset up to which they are the same; None: they have no epoch in common.
    """
    their_spans = dict(_spans(theirs, their_end))
    for epoch, end in reversed(_spans(ours, our_end)):
        their_span_end = their_spans.get(epoch)
        if their_span_end is not None:
            return min(end, their_span_end)
    return None


def _spans(epochs: Sequence[Epoch], log_end: int) -> list[tuple[Epoch, int]]:
    """Each epoch with the position at which it ends."""
    ends = [*(epoch.start_position for epoch in epochs[1:]), log_end]
    return list(zip(epochs, ends, strict=False))


def _grows(epochs: Sequence[Epoch]) -> bool:
    pairs = itertools.pairwise(epochs)
    return all(epoch.master_epoch > 0 and epoch.start_position >= 0 for epoch in epochs) and all(
        before.master_epoch < after.master_epoch and before.start_position < after.start_position
        for before, after in pairs
    )
