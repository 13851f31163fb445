"""`<store>/shmq/quarantine.json`: which bytes of the log hold no frame, and which tails were kept.

What lives here: the list of holes and of saved tails, with a checksum (checked_json.py). The log
itself is left as it is: a hole stays a hole until `fsck --repair` rewrites it, and readers step
over it. Adding what is there already changes nothing, so that recovery may run twice.

    {"format_version": 1,
     "holes": [{"position": 4711, "size": 265, "reason": "BODY_CRC", "topic": "orders",
                "queue_id": 3, "queue_offset": 17, "found_at": 1788220800000}, ...],
     "saved_tails": [{"position": ..., "size": ..., "file_name": "tail-...", "found_at": ...}, ...]}

Which process: the broker at recovery and when a derived file is built anew; fsck. What may fail:
StoreCorruptError for a list that does not hold; DiskFullError, StoreError.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Self

from shmq.errors import ConfigError, StoreCorruptError
from shmq.json_fields import Fields
from shmq.store import checked_json

__all__ = ["FORMAT_VERSION", "Hole", "KeptTail", "QUARANTINE_FILE", "Quarantine"]

QUARANTINE_FILE = "quarantine.json"
FORMAT_VERSION = 1


class Hole(NamedTuple):
    """Bytes of the log in which no frame holds, with the log going on behind them."""

    position: int
    """physical_offset of the first byte."""
    size: int
    """Bytes up to the next frame that holds, or to the end of the file."""
    reason: str
    """What is wrong with the first frame: a name of core.MESSAGE_REASONS, or ZEROS."""
    topic: str | None = None
    """Of the message that the first frame says it was, where that can be believed."""
    queue_id: int | None = None
    """As `topic`."""
    queue_offset: int | None = None
    """As `topic`."""
    found_at: int = 0
    """When it was first found, ms since 1970."""

    @property
    def end(self) -> int:
        """physical_offset behind it."""
        return self.position + self.size


class KeptTail(NamedTuple):
    """Bytes that lay behind the last frame and were set aside before they were zeroed."""

    position: int
    size: int
    file_name: str
    """In shmq/quarantine/."""
    found_at: int = 0
    """ms since 1970."""


@dataclass(frozen=True, slots=True)
class Quarantine:
    """The list. A value: what adds or removes gives a new one."""

    holes: tuple[Hole, ...] = ()
    """By position; no two overlap."""
    saved_tails: tuple[KeptTail, ...] = ()
    """In the order in which they were kept."""
    other: Mapping[str, object] = field(default_factory=dict)
    """Keys that we do not know."""

    @staticmethod
    def path(store_path: Path) -> Path:
        """Return where the list of a store lies."""
        return store_path / "shmq" / QUARANTINE_FILE

    @classmethod
    def load(cls, path: Path) -> Self:
        """Return the list in a file; empty without one.

        Raises:
            StoreCorruptError: it does not hold; names file, line and reason.
            StoreVersionError: a newer shmq wrote it.
            StoreError: it cannot be read.
        """
        take = checked_json.load_fields(path, FORMAT_VERSION)
        if take is None:
            return cls()
        try:
            holes = tuple(_hole(item, path) for item in take.items("holes"))
            tails = tuple(_tail(item, path) for item in take.items("saved_tails"))
            return cls(holes=holes, saved_tails=tails, other=take.rest())
        except ConfigError as error:
            raise StoreCorruptError(f"read {error}") from error

    def save(self, path: Path) -> None:
        """Replace the list in a file, durably.

        Raises:
            DiskFullError, StoreError: the old list stands.
        """
        data: dict[str, object] = {
            "format_version": FORMAT_VERSION,
            "holes": [
                {key: value for key, value in hole._asdict().items() if value is not None}
                for hole in self.holes
            ],
            "saved_tails": [tail._asdict() for tail in self.saved_tails],
            **self.other,
        }
        checked_json.save(path, data)

    def with_holes(self, holes: Iterable[Hole]) -> "Quarantine":
        """Return a list that has these holes too; one that touches others becomes one with them."""
        merged: list[Hole] = []
        for hole in sorted((*self.holes, *holes), key=lambda hole: (hole.position, -hole.size)):
            before = merged[-1] if merged else None
            if before is not None and hole.position < before.end:
                if hole.end > before.end:
                    merged[-1] = before._replace(size=hole.end - before.position)
                continue
            merged.append(hole)
        return self if tuple(merged) == self.holes else replace(self, holes=tuple(merged))

    def without_holes(self, begin: int, end: int) -> "Quarantine":
        """Return a list without the holes that begin in begin..end: repaired, or expired."""
        left = tuple(hole for hole in self.holes if not begin <= hole.position < end)
        return self if left == self.holes else replace(self, holes=left)

    def with_tails(self, tails: Iterable[KeptTail]) -> "Quarantine":
        """Return a list that has these tails too; known by their file names."""
        known = {tail.file_name for tail in self.saved_tails}
        new = tuple(tail for tail in tails if tail.file_name not in known)
        return replace(self, saved_tails=self.saved_tails + new) if new else self


def _hole(item: Mapping[str, object], path: Path) -> Hole:
    take = Fields(item, what=f"{path}: hole")
    has_identity = item.get("topic") is not None
    return Hole(
        position=take.number("position"),
        size=take.number("size"),
        reason=take.text("reason"),
        topic=take.optional_text("topic"),
        queue_id=take.number("queue_id") if has_identity else None,
        queue_offset=take.number("queue_offset") if has_identity else None,
        found_at=take.number("found_at", 0),
    )


def _tail(item: Mapping[str, object], path: Path) -> KeptTail:
    take = Fields(item, what=f"{path}: saved tail")
    return KeptTail(
        position=take.number("position"),
        size=take.number("size"),
        file_name=take.text("file_name"),
        found_at=take.number("found_at", 0),
    )
