"""What was told, what was seen, and the difference.

A stream is what one producer sends to one queue: sequences from 0 on, in the order of the sends.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

BODY = struct.Struct("<QQ84x")
"""Stream and sequence: 100 B."""
_LINE = struct.Struct("<QQQB")


class Outcome(IntEnum):
    """What a producer was told of a send."""

    FAILED = 0
    """Nothing: it raised."""
    STORED = 1
    """It is stored, and not confirmed: SLAVE_NOT_AVAILABLE, FLUSH_SLAVE_TIMEOUT."""
    SEND_OK = 2


class Told(NamedTuple):
    """One send, and what its producer was told."""

    sequence: int
    begin_ns: int
    end_ns: int
    outcome: Outcome

    @property
    def is_acked(self) -> bool:
        """It was told that the message is stored."""
        return self.outcome is not Outcome.FAILED


class Ledger:
    """What one producer was told, in a file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=1 << 16)
        self.count = 0
        self.acked_count = 0

    def note(self, told: Told) -> None:
        self.count += 1
        self.acked_count += told.is_acked
        self._file.write(_LINE.pack(*told))

    def close(self) -> None:
        self._file.close()


def read_ledger(path: Path) -> Iterator[Told]:
    for *times, outcome in _LINE.iter_unpack(path.read_bytes()):
        yield Told(*times, Outcome(outcome))


@dataclass
class Seen:
    """What a reader found of one stream, in the order in which it found it."""

    last: int = -1
    """The greatest sequence so far."""
    missing: set[int] = field(default_factory=set)
    """Below the last, and not seen."""
    doubled: list[int] = field(default_factory=list)
    out_of_order: list[int] = field(default_factory=list)
    """Seen after a later one, for the first time."""

    def see(self, sequence: int) -> None:
        if sequence > self.last:
            self.missing.update(range(self.last + 1, sequence))
            self.last = sequence
        elif sequence in self.missing:
            self.missing.remove(sequence)
            self.out_of_order.append(sequence)
        else:
            self.doubled.append(sequence)

    def lost(self, acked: Iterable[int]) -> list[int]:
        return [sequence for sequence in acked if sequence > self.last or sequence in self.missing]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"missing": sorted(self.missing)}


def seen_of(fields: dict[str, Any]) -> Seen:
    """As to_json gave it."""
    return Seen(**fields | {"missing": set(fields["missing"])})
