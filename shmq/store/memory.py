"""The shared memory of one store: its objects, made new or adopted from a dead predecessor.

What lives here: `StoreMemory` keeps segments, their mappings and the manifest together, grows what
grows, and makes and drops hot segments and completion objects. It decides nothing about messages.

Which process: the broker, under the store's in-use mark. Writes: objects in /dev/shm, segment heads
(through the core), the manifest. May fail: ShmError and its kin, with the remedy; a failed creation
leaves nothing behind.
"""

from __future__ import annotations

import copy
import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shmq.core import core
from shmq.core.fields import control_place, field_place, read_ints, struct_size
from shmq.errors import LayoutVersionError, ShmError, ShmFullError
from shmq.shm import manifest as manifests
from shmq.shm import reaper, segment
from shmq.shm.incarnation import Incarnation, boot_id
from shmq.shm.manifest import Manifest
from shmq.shm.names import ObjectKind, StoreName, new_generation

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from shmq.config import StoreConfig
    from shmq.shm.budget import HotLogPlan
    from shmq.shm.in_use import InUseMark

__all__ = ["HotSegment", "StoreMemory", "completion_size", "ingress_size"]

_log = logging.getLogger("shmq.store")

QUEUE_ROW_SIZE = core.LAYOUT["queue_row"][0]
TOPIC_ROW_SIZE = core.LAYOUT["topic_row"][0]
STATS_ROW_SIZE = core.LAYOUT["stats_row"][0]
_GROW_ROWS = 1024
"""Rows added at a time: 128 KiB of queue rows, 384 KiB of topic rows at most."""
_FIRST_ROWS = 64
_STATS_ROWS_MAX = 1 << 17
_LARGER = {
    ObjectKind.CONTROL: "; raise queue_row_count_max and start the broker again",
    ObjectKind.TOPICS: "; raise topic_row_count_max and start the broker again",
    ObjectKind.ARENA: "; raise arena_bytes and start the broker again",
}
"""What to do where an object has its largest size, by kind."""
_GROW_BLOCKS = 256
"""ConsumeQueue blocks added at a time: 1 MiB."""


def _aligned(size: int) -> int:
    return -(-size // core.PAGE) * core.PAGE


def ingress_size(lane_count: int, lane_capacity_bytes: int) -> int:
    """Bytes of a session's ingress object (layout.h shmq_ingress_size)."""
    return core.RING_DATA_PLACE + lane_count * lane_capacity_bytes


def completion_size(lane_count: int, completion_capacity: int) -> int:
    """Bytes of a session's completion object (layout.h shmq_completion_size)."""
    entry = core.LAYOUT["completion"][0]
    return _aligned(core.COMPLETIONS_PLACE + lane_count * completion_capacity * entry)


@dataclass(slots=True)
class HotSegment:
    """One segment of the hot CommitLog."""

    number: int
    """Number in its object's name, never reused within a store generation."""
    segment: segment.Segment
    """The object."""
    mapping: core.Mapping
    """Mapped for writing."""


class StoreMemory:
    """All named objects of one store. One owner; its methods are called by one thread at a time,
    but for `create_completion` and `drop_completion`, which may run beside the others.
    """

    def __init__(self, manifest: Manifest, path: Path, mark: InUseMark) -> None:
        self.manifest = manifest
        self.store: StoreName = manifest.store
        self._path = path
        self._mark = mark
        self._segments: dict[ObjectKind, segment.Segment] = {}
        self._hot: dict[int, HotSegment] = {}
        self._next_hot = 0
        self._master_epoch = 0
        self._lock = threading.Lock()
        self._is_handed_on = False
        self.control: core.Mapping
        self.topics: core.Mapping
        self.arena: core.Mapping
        self.stats: core.Mapping | None = None

    # ---- making and adopting ---------------------------------------------------------------------

    @staticmethod
    def new_manifest(config: StoreConfig, file_size_bytes: int, uid: int) -> Manifest:
        """A manifest of a store generation that has no objects yet."""
        return Manifest(
            layout_version=core.LAYOUT_VERSION,
            boot_id=boot_id(),
            generation=new_generation(),
            cluster_name=config.cluster_name,
            broker_name=config.broker_name,
            broker_id=config.broker_id,
            file_size_bytes=file_size_bytes,
            uid=uid,
        )

    @classmethod
    def create(
        cls,
        manifest: Manifest,
        path: Path,
        mark: InUseMark,
        config: StoreConfig,
        plan: HotLogPlan,
        *,
        begin_position: int,
    ) -> StoreMemory:
        """Make control, topics and arena for a new generation; listed before they are made.

        Nobody adopts them before `declare_whole`: what is in them meanwhile is half a recovery.

        Args:
            manifest: from `new_manifest`.
            path: where the manifest lies.
            mark: held.
            config: of the store.
            plan: sizes that fit.
            begin_position: physical_offset of the first byte kept.

        Raises:
            ShmFullError, LimitError, ShmError: nothing is left behind.
        """
        memory = cls(manifest, path, mark)
        control_base = core.control_size(plan.session_count)
        block_max = plan.arena_bytes // core.BLOCK_SIZE
        sizes = {
            ObjectKind.CONTROL: _aligned(control_base + _FIRST_ROWS * QUEUE_ROW_SIZE),
            ObjectKind.TOPICS: _aligned(core.TOPIC_ROWS_PLACE + _FIRST_ROWS * TOPIC_ROW_SIZE),
            ObjectKind.ARENA: min(_GROW_BLOCKS, block_max) * core.BLOCK_SIZE,
        }
        for kind, size in sizes.items():
            memory.manifest = memory.manifest.with_object(
                memory.store.object(kind, 0), size_bytes=size
            )
        try:
            # Listed before they are made: whoever comes after a death in here finds them all.
            manifests.save(memory.manifest, path)
            for kind, size in sizes.items():
                memory._segments[kind] = segment.create(
                    memory.store.object(kind, 0), size_bytes=size
                )
            memory._map(config, plan.session_count, block_max)
            core.init_control(
                memory.control,
                file_size_bytes=plan.file_size_bytes,
                hot_slot_count=plan.segment_count,
                session_slot_count=plan.session_count,
                queue_row_max=config.queue_row_count_max,
                topic_row_max=config.topic_row_count_max,
                arena_block_max=block_max,
                message_size_max=config.max_message_size_bytes,
                store_host=_host_bytes(config),
                begin_position=begin_position,
            )
        except BaseException:
            memory.drop()
            raise
        return memory

    def declare_whole(self, *, master_epoch: int = 0) -> None:
        """Recovery has filled the new memory: from now on a successor adopts it. Killed before, it
        leaves memory without a magic, and its successor starts from the files again.
        """
        self.take(master_epoch=master_epoch)

    @classmethod
    def attach(
        cls, manifest: Manifest, path: Path, mark: InUseMark, config: StoreConfig
    ) -> StoreMemory:
        """Attach to what a dead predecessor left, after checking that it is whole.

        Raises:
            LayoutVersionError, OwnerError: another release of shmq or another uid made it.
            LimitError: no fd is left.
            ShmError: an object is missing or damaged; the caller recovers from files. Nothing was
                changed.
        """
        memory = cls(manifest, path, mark)
        try:
            for entry in manifest.objects:
                kind = entry.name.kind
                if kind in (ObjectKind.CONTROL, ObjectKind.TOPICS, ObjectKind.ARENA):
                    memory._segments[kind] = segment.attach(entry.name, readonly=False)
            if len(memory._segments) != 3:
                raise ShmError(f"adopt {memory.store}: the manifest lists no control segment")
            if manifest.layout_version != core.LAYOUT_VERSION:
                raise LayoutVersionError(
                    f"adopt {memory.store}: layout {manifest.layout_version}, need"
                    f" {core.LAYOUT_VERSION}; start the release that wrote it and stop it with"
                    " keep_memory=never, so that its messages are in files, then start this one"
                )
            config_size = core.LAYOUT["control_config"][0]
            with core.Mapping(
                memory._segments[ObjectKind.CONTROL].fileno(), 2 * config_size
            ) as head:
                fields = read_ints(head, "control_config", core.LAYOUT["segment_header"][0])
            if fields["file_size_bytes"] != manifest.file_size_bytes:
                raise ShmError(
                    f"adopt {memory.store}: file size {fields['file_size_bytes']} in memory, "
                    f"{manifest.file_size_bytes} in the manifest"
                )
            memory._map(config, fields["session_slot_count"], fields["arena_block_max"])
            for entry in manifest.objects:
                if entry.name.kind is ObjectKind.HOT:
                    memory._attach_hot(entry.name.n, entry.size_bytes)
        except BaseException:
            memory.close()
            raise
        return memory

    def take(self, *, master_epoch: int) -> None:
        """Say in the heads whose it is now: ours, under this mastership."""
        self._master_epoch = master_epoch
        for kind, mapping in (
            (ObjectKind.TOPICS, self.topics),
            (ObjectKind.ARENA, self.arena),
            (ObjectKind.CONTROL, self.control),
        ):
            self.write_head(mapping, kind, 0)
        if self.stats is not None:
            self.write_head(self.stats, ObjectKind.STATS, 0)

    @property
    def master_epoch(self) -> int:
        """Of the mastership under which it was written last."""
        return self.control.load64(field_place("segment_header", "master_epoch"))

    @property
    def files_owner(self) -> int | None:
        """broker_id of the member whose files its flushed_position speaks of; None: a take-over
        was begun and not ended.
        """
        owner = self.control.load64(control_place("flush_positions", "files_owner"))
        return owner - 1 if owner else None

    def hot_files(self) -> list[tuple[int, HotSegment]]:
        """The files that a predecessor had in memory, oldest first: where they begin, and their
        segments.
        """
        fields = read_ints(self.control, "control_config", struct_size("segment_header"))
        found = []
        for index in range(fields["hot_slot_count"]):
            place = fields["hot_slots_place"] + index * struct_size("hot_slot")
            slot = read_ints(self.control, "hot_slot", place)
            hot = self._hot.get(slot["object_number"])
            if slot["state"] in (core.HOT_READY, core.HOT_LIVE) and hot is not None:
                found.append((slot["file_position"], hot))
        return sorted(found, key=lambda item: item[0])

    def _map(self, config: StoreConfig, sessions: int, block_max: int) -> None:
        self.arena_bytes_max = block_max * core.BLOCK_SIZE
        control, topics, arena = (
            self._segments[kind]
            for kind in (ObjectKind.CONTROL, ObjectKind.TOPICS, ObjectKind.ARENA)
        )
        control_max = core.control_size(sessions) + config.queue_row_count_max * QUEUE_ROW_SIZE
        topics_max = core.TOPIC_ROWS_PLACE + config.topic_row_count_max * TOPIC_ROW_SIZE
        self.control = core.Mapping(
            control.fileno(), control.size_bytes, writable=True, reserve=_aligned(control_max)
        )
        self.topics = core.Mapping(
            topics.fileno(), topics.size_bytes, writable=True, reserve=_aligned(topics_max)
        )
        self.arena = core.Mapping(
            arena.fileno(), arena.size_bytes, writable=True, reserve=self.arena_bytes_max
        )

    def write_head(self, mapping: core.Mapping, kind: ObjectKind, number: int) -> None:
        """Write the segment head of an object of this store, the magic last."""
        magic, core_kind = _HEADS[kind]
        owner = Incarnation.current()
        mapping.init_header(
            kind=core_kind,
            magic=magic,
            store_generation=int(self.manifest.generation, 16),
            boot_id=self.manifest.boot_id,
            owner_pid=owner.pid,
            owner_uid=self.manifest.uid,
            owner_start_time=owner.start_time,
            master_epoch=self._master_epoch,
            number=number,
        )

    # ---- growing ---------------------------------------------------------------------------------

    def grow_queue_rows(self) -> None:
        """Make room for more queue rows.

        Raises:
            ShmFullError: no memory, or queue_row_count_max is reached; nothing has changed.
        """
        self._grow(ObjectKind.CONTROL, self.control, _GROW_ROWS * QUEUE_ROW_SIZE)

    def grow_topic_rows(self) -> None:
        """Make room for more topic rows; errors as grow_queue_rows."""
        self._grow(ObjectKind.TOPICS, self.topics, _GROW_ROWS * TOPIC_ROW_SIZE)

    def grow_arena(self) -> int:
        """Make room for more ConsumeQueue blocks; returns how many blocks there are now."""
        self._grow(ObjectKind.ARENA, self.arena, _GROW_BLOCKS * core.BLOCK_SIZE)
        return self.arena.size_bytes // core.BLOCK_SIZE

    def grow_stats_rows(self) -> None:
        """Make room for more stats rows; errors as grow_queue_rows."""
        assert self.stats is not None
        self._grow(ObjectKind.STATS, self.stats, _GROW_ROWS * STATS_ROW_SIZE)

    def _grow(self, kind: ObjectKind, mapping: core.Mapping, step: int) -> None:
        size = min(_aligned(mapping.size_bytes + step), mapping.reserve_bytes)
        if size == mapping.size_bytes:
            raise ShmFullError(
                f"grow {self.store} {kind}: it has its largest size, {size} bytes"
                f"{_LARGER.get(kind, '')}"
            )
        with self._lock:
            segment.grow(self._segments[kind], size_bytes=size)
            mapping.grow(size)

    # ---- hot segments ----------------------------------------------------------------------------

    def create_hot(self) -> HotSegment:
        """Make one more hot segment, allocated and populated. Takes tens of milliseconds."""
        with self._lock:
            number = self._next_hot
            self._next_hot += 1
        name = self.store.object(ObjectKind.HOT, number)
        made = segment.create(name, size_bytes=self.manifest.file_size_bytes)
        try:
            mapping = core.Mapping(made.fileno(), made.size_bytes, writable=True, populate=True)
        except BaseException:
            segment.unlink(name)
            made.close()
            raise
        hot = HotSegment(number, made, mapping)
        try:
            with self._lock:
                manifest = self.manifest.with_object(name, size_bytes=made.size_bytes)
                manifests.save(manifest, self._path)
                self.manifest = manifest
                self._hot[number] = hot
        except BaseException:  # a full disk: the next attempt takes another name
            segment.unlink(name)
            mapping.close()
            made.close()
            raise
        return hot

    def _attach_hot(self, number: int, size_bytes: int) -> None:
        name = self.store.object(ObjectKind.HOT, number)
        made = segment.attach(name, readonly=False, size_bytes=size_bytes)
        mapping = core.Mapping(made.fileno(), made.size_bytes, writable=True)
        self._hot[number] = HotSegment(number, made, mapping)
        self._next_hot = max(self._next_hot, number + 1)

    def hot(self, number: int) -> HotSegment | None:
        """The hot segment of that number, if there is one."""
        return self._hot.get(number)

    def hot_numbers(self) -> Iterable[int]:
        """Numbers of all hot segments."""
        return tuple(self._hot)

    def drop_hot(self, number: int) -> None:
        """Forget and unlink a hot segment; whoever has mapped it keeps its bytes.

        Raises:
            DiskFullError and others of `manifests.save`: it is there still; call it again.
        """
        with self._lock:
            hot = self._hot[number]
            manifest = self.manifest.without_object(hot.segment.name)
            manifests.save(manifest, self._path)
            self.manifest = manifest
            del self._hot[number]
        segment.unlink(hot.segment.name)
        hot.segment.close()

    # ---- the stats object ------------------------------------------------------------------------

    def create_stats(self) -> core.Mapping:
        """Make the stats object of this life, in the place of a predecessor's; `drop_stats` ends
        it. No manifest lists it: there is nothing in it to adopt.
        """
        name = self.store.object(ObjectKind.STATS, 0)
        segment.unlink(name)
        size = _aligned(core.STATS_ROWS_PLACE + _FIRST_ROWS * STATS_ROW_SIZE)
        made = segment.create(name, size_bytes=size)
        self._segments[ObjectKind.STATS] = made
        reserve = _aligned(core.STATS_ROWS_PLACE + _STATS_ROWS_MAX * STATS_ROW_SIZE)
        self.stats = core.Mapping(made.fileno(), size, writable=True, reserve=reserve)
        self.write_head(self.stats, ObjectKind.STATS, 0)
        return self.stats

    def drop_stats(self) -> None:
        """Unlink the stats object; exporters that have it mapped keep its last numbers."""
        segment.unlink(self.store.object(ObjectKind.STATS, 0))

    # ---- completion objects ----------------------------------------------------------------------

    def create_completion(
        self, session: int, size_bytes: int
    ) -> tuple[segment.Segment, core.Mapping]:
        """Make the completion object of a session; one left over from a dead session is
        replaced.
        """
        name = self.store.object(ObjectKind.COMPLETION, session)
        segment.unlink(name)
        made = segment.create(name, size_bytes=size_bytes)
        try:
            mapping = core.Mapping(made.fileno(), size_bytes, writable=True)
            self.write_head(mapping, ObjectKind.COMPLETION, session)
        except BaseException:
            segment.unlink(name)
            made.close()
            raise
        return made, mapping

    def adopt_completion(
        self, session: int, size_bytes: int
    ) -> tuple[segment.Segment, core.Mapping]:
        """Attach to the completion object that a predecessor made for a session."""
        name = self.store.object(ObjectKind.COMPLETION, session)
        made = segment.attach(name, readonly=False, size_bytes=size_bytes)
        return made, core.Mapping(made.fileno(), size_bytes, writable=True)

    def drop_completion(self, session: int) -> None:
        """Unlink a session's completion object; the client's mapping stays valid."""
        segment.unlink(self.store.object(ObjectKind.COMPLETION, session))

    # ---- passing and ending ----------------------------------------------------------------------

    def open_readonly(self, kind: ObjectKind) -> int:
        """A new read-only fd of the control, topics or arena segment; the caller closes it."""
        return segment.open_readonly(self._segments[kind])

    def sweep(self, sessions: Iterable[int]) -> None:
        """Remove objects of this store that nobody wants: all but the listed and these
        sessions'.
        """
        keep = {entry.name for entry in self.manifest.objects}
        keep |= {self.store.object(ObjectKind.COMPLETION, session) for session in sessions}
        if self.stats is not None:
            keep.add(self.store.object(ObjectKind.STATS, 0))
        for name in reaper.sweep(self._mark, keep=keep):
            _log.info("swept object=%s", name)

    def hand_on(self, path: Path) -> StoreMemory:
        """Itself for another owner, who closes it: `close` here does nothing from now on. The list
        of its objects goes to `path`: they are not this store's any more.
        """
        other = copy.copy(self)
        self._path.rename(path)
        self._is_handed_on = True
        return other

    def close(self) -> None:
        """Unmap and close; the objects stay for a successor."""
        if self._is_handed_on:
            return
        for mapping in (
            getattr(self, "control", None),
            getattr(self, "topics", None),
            self.stats,
        ):
            if mapping is not None:
                mapping.close()
        if hasattr(self, "arena"):
            self.arena.close()
        for hot in self._hot.values():
            hot.mapping.close()
            hot.segment.close()
        self._hot.clear()
        for made in self._segments.values():
            made.close()
        self._segments.clear()

    def drop(self) -> None:
        """Close, and remove every object of this store and its manifest."""
        self.close()
        manifests.manifest_path(self._path.parent.parent).unlink(missing_ok=True)
        reaper.sweep(self._mark, keep=())


_HEADS = {
    ObjectKind.CONTROL: (core.MAGIC_CONTROL, core.KIND_CONTROL),
    ObjectKind.TOPICS: (core.MAGIC_TOPICS, core.KIND_TOPICS),
    ObjectKind.ARENA: (core.MAGIC_ARENA, core.KIND_ARENA),
    ObjectKind.COMPLETION: (core.MAGIC_COMPLETION, core.KIND_COMPLETION),
    ObjectKind.STATS: (core.MAGIC_STATS, core.KIND_STATS),
    ObjectKind.SERVICE: (core.MAGIC_INGRESS, core.KIND_INGRESS),
}


def _host_bytes(config: StoreConfig) -> bytes:
    """broker_ip and listen_port as a record has them: 4 + 4 bytes, big-endian."""
    address = bytes(int(part) for part in config.broker_ip.split("."))
    return address + config.listen_port.to_bytes(4, "big")
