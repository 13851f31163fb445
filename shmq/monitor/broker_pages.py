"""The shared memory of one broker, as an exporter sees it: mapped read-only, read as it changes.

What lives here: `BrokerPages`, which maps the control, topics and stats objects of one store, and
`find_stores`, which says of which stores a runtime folder knows. Brokers come, die and are
succeeded meanwhile; what is mapped stays readable, and each look begins with who owns it now.

Nothing here waits or asks anybody. Words are read one by one while their writers go on, so numbers
of one look need not be of one moment; a row is believed if its generation was the same before and
after. May fail: ShmError and its kin for memory that is not there, not whole, or another release's.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from shmq.core import core
from shmq.core.fields import (
    control_place,
    field_place,
    read_chosen,
    read_ints,
    read_rows,
    struct_size,
)
from shmq.errors import ShmError
from shmq.shm import segment
from shmq.shm.in_use import marked_stores
from shmq.shm.incarnation import Incarnation
from shmq.shm.names import ObjectKind, ObjectName, StoreName, parse
from shmq.shm.segment import SHM_FOLDER

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "BrokerPages",
    "GroupProgress",
    "Latency",
    "QueueRow",
    "StatsLook",
    "find_stores",
    "hidden_folders",
    "segment_sizes",
]

_ROW_READS_MAX = 3
"""Tries to read a stats row that changes hands."""


def find_stores(runtime: Path) -> set[StoreName]:
    """Stores whose brokers have left a mark in this runtime folder. Root finds those of all users.

    A mark may outlive its memory. Which boot it names does not count: see `segment.attach`.
    """
    found: set[StoreName] = set()
    for folder in runtime.glob("broker-*.d"):
        with contextlib.suppress(ShmError, FileNotFoundError):  # not ours to trust, or gone
            owner_uid = folder.stat().st_uid if os.geteuid() == 0 else None
            found |= marked_stores(folder, owner_uid=owner_uid)
    return found


def hidden_folders(runtime: Path) -> list[str]:
    """Folders of brokers that this user may not look into, one line each: whose they are."""
    if os.path.exists(runtime) and not os.path.isdir(runtime):
        return [f"{runtime} is no folder"]
    found = []
    for folder in (runtime, *runtime.glob("broker-*.d")):
        if os.access(folder, os.R_OK | os.X_OK):
            continue
        try:
            owner = pwd.getpwuid(folder.stat().st_uid).pw_name
        except FileNotFoundError:
            continue
        except (PermissionError, KeyError):  # below a folder of theirs, or a uid without a name
            owner = "the brokers' user"
        who = "root" if owner == "root" else f"{owner}, or as root"
        found.append(f"{folder} is not to be read: run it as {who}")
    return found


def segment_sizes() -> dict[StoreName, dict[str, int]]:
    """Bytes in /dev/shm of each store, by kind of object."""
    sizes: dict[StoreName, dict[str, int]] = {}
    with os.scandir(SHM_FOLDER) as entries:
        for entry in entries:
            name = parse(entry.name)
            if name is not None:
                with contextlib.suppress(FileNotFoundError):
                    of_store = sizes.setdefault(name.store, {})
                    size = entry.stat(follow_symlinks=False).st_size
                    of_store[name.kind] = of_store.get(name.kind, 0) + size
    return sizes


class QueueRow(NamedTuple):
    """A queue as its row says."""

    topic: str
    """Its topic."""
    generation: int
    """Of the row."""
    queue_id: int
    """Its number."""
    min_queue_offset: int
    """First one kept."""
    visible_max: int
    """Consumers read below it."""
    messages_in: int
    """Appended since the row was made."""
    bytes_in: int
    """In their frames."""


@dataclass(frozen=True, slots=True)
class GroupProgress:
    """How far a group is in a queue."""

    group: str
    """Which."""
    queue_row: int
    """Row of the queue."""
    row_generation: int
    """Generation of that row."""
    consumer_offset: int
    """Next to consume."""
    passed_count: int
    """Passed since the broker began."""
    waiting_since_ms: int
    """Store time of the next one, since 1970; 0: there was none."""


class Latency(NamedTuple):
    """How long things took."""

    counts: tuple[int, ...] = ()
    """By bucket, core.LATENCY_BOUNDS_NS and longer."""
    sum_ns: int = 0
    """All of them."""


@dataclass(slots=True)
class StatsLook:
    """What a stats object says."""

    looked_ns: int = 0
    """CLOCK_MONOTONIC of the broker's last round."""
    head: dict[str, int] = field(default_factory=dict)
    """Fields of stats_head."""
    refusals: dict[int, int] = field(default_factory=dict)
    """Records refused, by positive status; those that were."""
    flush: Latency = field(default_factory=Latency)
    """Of syncs of the log."""
    send: Latency = field(default_factory=Latency)
    """Of sends."""
    values: dict[str, dict[str, int]] = field(default_factory=dict)
    """By metric and label."""
    groups: list[GroupProgress] = field(default_factory=list)
    """Groups in queues."""


class _Mapped:
    """One object, mapped as far as it is large now. Opened anew when its name leads elsewhere."""

    def __init__(self, name: ObjectName) -> None:
        self.name = name
        self._segment: segment.Segment | None = None
        self.inode = 0
        self.mapping: core.Mapping

    def look(self) -> core.Mapping:
        """The mapping, as large as the object.

        Raises:
            ShmError: there is no such object, or it is not what its name says.
        """
        try:
            status = os.stat(f"{SHM_FOLDER}{self.name}", follow_symlinks=False)
        except OSError as error:
            raise ShmError(f"attach {self.name}: {error.strerror}") from error
        if self._segment is None or status.st_ino != self.inode:
            self.close()
            owner_uid = status.st_uid if os.geteuid() == 0 else None
            self._segment = segment.attach(
                self.name, readonly=True, owner_uid=owner_uid, any_boot=True
            )
            self.inode = status.st_ino
            self._map(self._segment.size_bytes)
        elif status.st_size > self.mapping.size_bytes:
            self._map(status.st_size)
        return self.mapping

    def _map(self, size_bytes: int) -> None:
        assert self._segment is not None
        if hasattr(self, "mapping"):
            self.mapping.close()
        self.mapping = core.Mapping(self._segment.fileno(), size_bytes)

    def close(self) -> None:
        if self._segment is not None:
            self.mapping.close()
            self._segment.close()
            self._segment = None


class BrokerPages:
    """The memory of one store.

    Args:
        store: whose.
    """

    def __init__(self, store: StoreName) -> None:
        self.store = store
        self._control = _Mapped(store.object(ObjectKind.CONTROL, 0))
        self._topics = _Mapped(store.object(ObjectKind.TOPICS, 0))
        self._stats = _Mapped(store.object(ObjectKind.STATS, 0))
        self._names: dict[tuple[int, int], str] = {}
        """Topics of the last look, by (row, generation)."""
        self._labels: dict[tuple[int, int, int], str] = {}
        """Labels of the last look, by (inode of the stats object, row, generation)."""
        self.control: core.Mapping

    def look(self) -> None:
        """Be ready to be read: the control segment is mapped as far as it is large now.

        Raises:
            ShmError and its kin: it is not there, or cannot be read.
        """
        self.control = self._control.look()

    def owner(self) -> Incarnation:
        """The broker that has it, or had it last."""
        head = read_ints(self.control, "segment_header")
        return Incarnation(head["owner_pid"], head["owner_start_time"])

    def ints(self, name: str) -> dict[str, int]:
        """The numbers of a struct at the beginning of the control segment."""
        return read_ints(self.control, name, control_place(name))

    def session_states(self) -> list[int]:
        """States of the clients' session slots, in use or not."""
        config = self.ints("control_config")
        rows = read_rows(
            self.control,
            "session_slot",
            config["session_slots_place"],
            config["session_slot_count"],
        )
        return [row["state"] for row in rows if row["service_id"] == 0]

    # ---- queues ------------------------------------------------------------------------------

    def queue_rows(self) -> dict[int, QueueRow]:
        """All queues, by row.

        Raises:
            ShmError: the topics segment is not there.
        """
        begin = self.ints("control_config")["queue_rows_place"]
        size = struct_size("queue_row")
        room = max(0, self.control.size_bytes - begin) // size
        count = min(self.ints("append_positions")["queue_row_count"], room)
        topics = self._topics.look()
        known, self._names = self._names, {}
        names: dict[int, str | None] = {}
        rows = read_chosen(self.control, "queue_row", begin, count, _ROW_FIELDS)
        # Read behind them: a row that changed hands meanwhile has another generation now.
        after = read_chosen(self.control, "queue_row", begin, count, ("generation",))
        found = {}
        for index, (row, (generation,)) in enumerate(zip(rows, after, strict=True)):
            state, row_generation, topic_row, *numbers = row
            if state not in _LIVE or row_generation != generation:
                continue
            if topic_row not in names:
                names[topic_row] = self._topic(topics, topic_row, known)
            topic = names[topic_row]
            if topic is not None:
                found[index] = QueueRow(topic, generation, *numbers)
        return found

    def _topic(
        self, topics: core.Mapping, index: int, known: dict[tuple[int, int], str]
    ) -> str | None:
        place = core.TOPIC_ROWS_PLACE + index * struct_size("topic_row")
        if place + struct_size("topic_row") > topics.size_bytes:
            return None
        generation = topics.load32(place + _TOPIC_GENERATION)
        name = self._names.get((index, generation)) or known.get((index, generation))
        if name is None:
            size = min(read_ints(topics, "topic_row", place)["topic_size"], core.TOPIC_SIZE_MAX)
            name = _text(topics, place + field_place("topic_row", "topic"), size)
            if topics.load32(place + _TOPIC_GENERATION) != generation:
                return None
        self._names[index, generation] = name
        return name

    # ---- stats -------------------------------------------------------------------------------

    def stats(self) -> StatsLook:
        """What the broker says.

        Raises:
            ShmError: it has no stats object: it is starting, or ended.
        """
        stats = self._stats.look()
        place = struct_size("segment_header")
        head = read_ints(stats, "stats_head", place)
        place += struct_size("stats_head")
        by_status = [stats.load64(place + 8 * status) for status in range(_STATUS_COUNT)]
        place += struct_size("refusals")
        look = StatsLook(
            looked_ns=head["looked_ns"],
            head=head,
            refusals={status: count for status, count in enumerate(by_status) if count},
            flush=_latency(stats, place),
            send=_latency(stats, place + struct_size("latency")),
        )
        room = (stats.size_bytes - core.STATS_ROWS_PLACE) // struct_size("stats_row")
        known, self._labels = self._labels, {}
        for index in range(min(head["row_count"], room)):
            self._row(stats, index, look, known)
        return look

    def _row(
        self,
        stats: core.Mapping,
        index: int,
        look: StatsLook,
        known: dict[tuple[int, int, int], str],
    ) -> None:
        size = struct_size("stats_row")
        place = core.STATS_ROWS_PLACE + index * size
        for _ in range(_ROW_READS_MAX):
            generation = stats.load32(place)
            row = read_ints(stats, "stats_row", place)
            key = self._stats.inode, index, generation
            label = known.get(key)
            if label is None:
                length = min(row["label_size"], _LABEL_SIZE_MAX)
                label = _text(stats, place + _LABEL, length)
            if generation & 1 == 0 and stats.load32(place) == generation:
                break
        else:
            return
        self._labels[key] = label
        if row["kind"] == core.STATS_VALUE:
            metric, _, text = label.partition("\n")
            look.values.setdefault(metric, {})[text] = row["value"]
        elif row["kind"] == core.STATS_CONSUMER_OFFSET:
            look.groups.append(
                GroupProgress(
                    label,
                    row["queue_row"],
                    row["row_generation"],
                    row["value"],
                    row["passed_count"],
                    row["waiting_since"],
                )
            )

    def close(self) -> None:
        """Let go of the memory."""
        for mapped in (self._control, self._topics, self._stats):
            mapped.close()


def _text(memory: core.Mapping, place: int, size: int) -> str:
    with memoryview(memory) as view:
        return bytes(view[place : place + size]).decode("utf-8", "replace")


def _latency(stats: core.Mapping, place: int) -> Latency:
    buckets = len(core.LATENCY_BOUNDS_NS) + 1
    counts = tuple(stats.load64(place + 8 * bucket) for bucket in range(buckets))
    return Latency(counts, stats.load64(place + field_place("latency", "sum_ns")))


_LIVE = (core.ROW_ACTIVE, core.ROW_READ_ONLY)
_ROW_FIELDS = (
    "state",
    "generation",
    "topic_row",
    "queue_id",
    "min_queue_offset",
    "visible_max",
    "messages_in",
    "bytes_in",
)
"""The first three, then QueueRow's numbers."""
_STATUS_COUNT = 64
_LABEL = field_place("stats_row", "label")
_LABEL_SIZE_MAX = 256
_TOPIC_GENERATION = field_place("topic_row", "generation")
