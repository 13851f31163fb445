"""What a live segment holds, field by field, from the tables that the core was compiled with.

What lives here: which structs lie where in each kind of segment: named objects, and the memory that
a client and its broker share through fds (rings, consumer pages, chunk memory), which a process has
as /proc/PID/fd/N. Reads the object's bytes through a read-only fd, so it works while the broker
runs: a word may be newer than the one before it, and no word is half of two.

Which process: inspect. What may fail: ShmError for an object that is not there or not ours to read.
"""

import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from shmq.core import core
from shmq.core.fields import read_struct, struct_size
from shmq.errors import OwnerError, ShmError
from shmq.shm.names import ObjectKind, ObjectName
from shmq.shm.segment import SHM_FOLDER

__all__ = ["Part", "SegmentReader", "is_memfd", "parts"]

_ROW_CHUNK = 256
# A service's ring is an ingress ring in a named object.
_KINDS = {
    ObjectKind.CONTROL: core.KIND_CONTROL,
    ObjectKind.TOPICS: core.KIND_TOPICS,
    ObjectKind.ARENA: core.KIND_ARENA,
    ObjectKind.COMPLETION: core.KIND_COMPLETION,
    ObjectKind.STATS: core.KIND_STATS,
    ObjectKind.SERVICE: core.KIND_INGRESS,
    ObjectKind.HOT: core.KIND_HOT,
}


def is_memfd(target: str) -> bool:
    """Whether this is the /proc/PID/fd/N of memory without a name."""
    try:
        return os.readlink(target).startswith("/memfd:")
    except OSError:
        return False


class Part(NamedTuple):
    """One struct in a segment."""

    struct: str
    """Its name in layout.h."""
    label: str
    """What it is here: "queue_row 7"."""
    place: int
    """Byte in the segment."""
    is_used: bool
    """False for a slot or row that holds nothing."""
    values: dict[str, int | bytes | tuple[int, ...]]
    """By field."""


class SegmentReader:
    """The bytes of one object, read through a read-only fd. A context manager.

    Args:
        name: of the object, or the path of a memfd (see is_memfd).

    Raises:
        ShmError: it is not there.
        OwnerError: this user may not read it.
    """

    def __init__(self, name: ObjectName | str) -> None:
        self.name = name
        is_named = isinstance(name, ObjectName)
        path = f"{SHM_FOLDER}{name}" if is_named else str(name)
        links = os.O_NOFOLLOW if is_named else 0
        try:
            self._fd = os.open(path, os.O_RDONLY | links | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError as error:
            raise ShmError(f"inspect {name}: no such object in {SHM_FOLDER}") from error
        except PermissionError as error:
            raise OwnerError(f"inspect {name}: no right for uid {os.geteuid()}") from error
        except OSError as error:
            raise ShmError(f"inspect {name}: {error.strerror}") from error
        status = os.fstat(self._fd)
        self.size_bytes = status.st_size
        if not stat.S_ISREG(status.st_mode):
            os.close(self._fd)
            raise ShmError(f"inspect {name}: not a shared memory object")

    @property
    def kind(self) -> int:
        """core.KIND_*: as its name says; memory without a name says it itself.

        Raises:
            ShmError: it is too small to.
        """
        if isinstance(self.name, ObjectName):
            return _KINDS[self.name.kind]
        return _number(self.struct("segment_header", 0, "segment_header"), "kind")

    def read(self, place: int, size: int) -> bytes:
        """Return bytes of the object; fewer at its end."""
        return os.pread(self._fd, size, place)

    def struct(self, name: str, place: int, label: str, *, is_used: bool = True) -> Part:
        """Return the struct `name` at `place`.

        Raises:
            ShmError: the object ends before it.
        """
        size = struct_size(name)
        data = self.read(place, size)
        if len(data) != size:
            raise ShmError(
                f"inspect {self.name}: {name} at {place}: the object has {self.size_bytes} bytes"
            )
        return Part(name, label, place, is_used, read_struct(data, name))

    def array(self, name: str, place: int, count: int) -> Iterator[Part]:
        """Yield `count` structs that follow one another, as far as the object reaches."""
        size = struct_size(name)
        for first in range(0, count, _ROW_CHUNK):
            data = self.read(place + first * size, min(_ROW_CHUNK, count - first) * size)
            for index in range(len(data) // size):
                values = read_struct(data, name, index * size)
                at = place + (first + index) * size
                is_used = any(data[index * size : (index + 1) * size])
                yield Part(name, f"{name} {first + index}", at, is_used, values)

    def close(self) -> None:
        """Close the object."""
        os.close(self._fd)

    def __enter__(self) -> "SegmentReader":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def parts(reader: SegmentReader) -> Iterator[Part]:
    """Yield every struct of a segment that has a header, in the order of their places.

    Raises:
        ShmError: the object is too small for what it should be.
    """
    yield reader.struct("segment_header", 0, "segment_header")
    match reader.kind:
        case core.KIND_CONTROL:
            yield from _control(reader)
        case core.KIND_TOPICS:
            rows = (reader.size_bytes - core.TOPIC_ROWS_PLACE) // struct_size("topic_row")
            yield from reader.array("topic_row", core.TOPIC_ROWS_PLACE, max(0, rows))
        case core.KIND_ARENA:
            yield from _arena(reader)
        case core.KIND_COMPLETION:
            yield from _completion(reader)
        case core.KIND_INGRESS:
            yield from reader.array("lane", core.LANES_PLACE, core.LANE_MAX)
            yield from reader.array("latency", core.LANE_LATENCY_PLACE, core.LANE_MAX)
        case core.KIND_CONSUMER:
            yield from reader.array("sleeper", core.SLEEPERS_PLACE, core.CONSUMER_BELL_MAX)
            claims = (reader.size_bytes - core.CLAIMS_PLACE) // struct_size("claim")
            yield from reader.array("claim", core.CLAIMS_PLACE, max(0, claims))
        case core.KIND_STATS:
            yield from _stats(reader)
        case core.KIND_CHUNK:
            return  # behind its head bodies, as their producers cut it up
        case core.KIND_HOT:
            raise ShmError(f"inspect {reader.name}: a hot segment holds frames, no structs")
        case other:
            raise ShmError(f"inspect {reader.name}: kind {other}, wanted memory of shmq's")


def _number(part: Part, field: str) -> int:
    value = part.values[field]
    assert isinstance(value, int), (part.label, field)
    return value


def _control(reader: SegmentReader) -> Iterator[Part]:
    place = struct_size("segment_header")
    config = reader.struct("control_config", place, "control_config")
    yield config
    head = ("append_positions", "flush_positions", "replica_positions", "sleep_line", "counters")
    for name in head:
        place += core.LINE
        part = reader.struct(name, place, name)
        yield part
        if name == "append_positions":
            row_count = _number(part, "queue_row_count")
    turn_size = (
        struct_size("turn_header")
        + core.TURN_RING_MAX * struct_size("turn_ring")
        + core.SERVICE_MAX * struct_size("turn_service")
    )
    for number in range(2):
        at = _number(config, "turn_records_place") + number * turn_size
        yield reader.struct("turn_header", at, f"turn_record {number}")
        rings = at + struct_size("turn_header")
        for part in reader.array("turn_ring", rings, core.TURN_RING_MAX):
            yield part._replace(label=f"turn_record {number} {part.label}")
        services = rings + core.TURN_RING_MAX * struct_size("turn_ring")
        for part in reader.array("turn_service", services, core.SERVICE_MAX):
            yield part._replace(label=f"turn_record {number} {part.label}")
    sessions = _number(config, "session_slot_count")
    for name, field, count in (
        ("hot_slot", "hot_slots_place", _number(config, "hot_slot_count")),
        ("service_slot", "service_slots_place", core.SERVICE_MAX),
        ("session_slot", "session_slots_place", sessions),
        ("ring_slot", "ring_slots_place", sessions * core.LANE_MAX),
        ("queue_row", "queue_rows_place", row_count),
    ):
        yield from reader.array(name, _number(config, field), count)


def _arena(reader: SegmentReader) -> Iterator[Part]:
    for number in range(1, reader.size_bytes // core.BLOCK_SIZE):
        place = number * core.BLOCK_SIZE
        head = reader.struct("block_header", place, f"block {number}")
        is_used = _number(head, "generation") not in (0, 1)
        yield head._replace(is_used=is_used)
        begin = place + struct_size("block_header")
        for part in reader.array("entry", begin, core.BLOCK_ENTRIES):
            yield part._replace(label=f"block {number} {part.label}")


def _completion(reader: SegmentReader) -> Iterator[Part]:
    yield from reader.array("bell_line", core.BELLS_PLACE, core.LANE_MAX + core.CONSUMER_BELL_MAX)
    size = struct_size("completion")
    count = (reader.size_bytes - core.COMPLETIONS_PLACE) // size
    yield from reader.array("completion", core.COMPLETIONS_PLACE, max(0, count))


def _stats(reader: SegmentReader) -> Iterator[Part]:
    place = struct_size("segment_header")
    head = reader.struct("stats_head", place, "stats_head")
    yield head
    place += struct_size("stats_head")
    yield reader.struct("refusals", place, "refusals")
    place += struct_size("refusals")
    for label in ("flush", "send"):
        yield reader.struct("latency", place, f"latency {label}")
        place += struct_size("latency")
    yield from reader.array("stats_row", core.STATS_ROWS_PLACE, _number(head, "row_count"))
