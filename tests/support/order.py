"""What orderly listeners did, in one file of all members, and whether it was in order.

What lives here: the record and `check_order`. A listener appends a record when it begins a message
and one when it has done with it, in one write each to a file that all members have open O_APPEND:
the order of the file is the order of what happened, and what a killed member wrote stays. Any
process of a test writes; the test reads. Nothing is timed.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

__all__ = ["BEGIN", "END", "Event", "OrderFound", "check_order", "note", "read_events"]

BEGIN, END = 1, 2
_RECORD = struct.Struct("<IIIQ")
"""Kind, member, key, number in the key."""


class Event(NamedTuple):
    """One record."""

    kind: int
    member: int
    key: int
    number: int


def note(fd: int, kind: int, member: int, key: int, number: int) -> None:
    """Append one record."""
    assert os.write(fd, _RECORD.pack(kind, member, key, number)) == _RECORD.size


def read_events(path: Path) -> list[Event]:
    """All records of a file."""
    data = path.read_bytes()
    return [Event(*fields) for fields in _RECORD.iter_unpack(data)]


@dataclass
class OrderFound:
    """What a history was, beside being in order."""

    done: dict[int, int]
    """By key: how many of its messages are done, from 0 on without a gap."""
    again_count: int = 0
    """Messages that began once more after they were done."""
    step_back_count: int = 0
    """How often a key went on at an earlier place."""


def check_order(events: list[Event]) -> OrderFound:
    """AssertionError unless each key was consumed in order, by one listener at a time.

    A message may begin when the one before it of its key has been done with, or once more (and then
    those behind it come again, in order): what a killed member was at is delivered again. Nobody is
    done with a message after somebody else has begun one of that key.
    """
    found = OrderFound({})
    last: dict[int, Event] = {}
    for index, event in enumerate(events):
        before = last.get(event.key)
        done = found.done.get(event.key, 0)
        if event.kind == BEGIN:
            where = f"record {index}: {event} begins after {before}, {done} done"
            assert event.number <= done, f"{where}: one before it is not done"
            if before is not None:
                next_number = before.number + (before.kind == END)
                assert event.number <= next_number, f"{where}: some in between are passed over"
                assert (
                    before.kind == END
                    or before.member != event.member
                    or (before.number == event.number)
                ), f"{where}: its member is at another"
                found.step_back_count += event.number < next_number
            found.again_count += event.number < done
        else:
            assert before is not None
            assert before == event._replace(kind=BEGIN), (
                f"record {index}: {event} ends after {before}: two listeners at a time"
            )
            found.done[event.key] = max(done, event.number + 1)
        last[event.key] = event
    return found
