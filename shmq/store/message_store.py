"""MessageStore: one store, from its files and its shared memory to the threads that serve it.

What lives here: the facade that a broker owns: open (adopt what a dead predecessor left in memory,
or recover from files), start, stop. Queues, sessions and positions are reached through it. Wiring
only: the work is in adoption.py, append.py, flush.py, hot_log.py, sessions.py, queues.py,
log_files.py, recovery.py, retention.py.

Which process: the broker; a second one for the same folder is refused by the store's lock. May
fail: StoreError and ShmError with their kin; what was opened is closed again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from shmq.clock import SYSTEM_CLOCK, Clock
from shmq.core import core
from shmq.core.fields import control_place, read_ints, struct_size
from shmq.errors import (
    ServiceNotAvailableError,
    ShmError,
    ShmqError,
    StoreCorruptError,
    TopicNotExistError,
)
from shmq.shm import manifest as manifests
from shmq.shm.budget import (
    HotLogRequest,
    Machine,
    open_files_wanted,
    plan_sizes,
    raise_open_files,
)
from shmq.shm.fd_store import FdStore
from shmq.shm.in_use import InUseMark
from shmq.shm.incarnation import boot_id
from shmq.shm.names import ObjectKind
from shmq.status import BrokerRole, FlushDiskType
from shmq.store import boot_files, positions
from shmq.store.adoption import MARK_TIMEOUT_MS, Adoption, discard
from shmq.store.append import AppendService
from shmq.store.consume_queue_files import QueueKey
from shmq.store.derive import DeriveService
from shmq.store.durable_file import disk_error, make_folder
from shmq.store.epochs import EpochFile
from shmq.store.expire import LogExpiry
from shmq.store.flush import FlushService
from shmq.store.frame_reader import FrameReader
from shmq.store.hot_log import HotLog
from shmq.store.index_service import IndexService
from shmq.store.log_channel import LogChannel
from shmq.store.log_files import LogFiles, find_file_size
from shmq.store.lookup import Lookup
from shmq.store.memory import StoreMemory, completion_size
from shmq.store.message_lookup import MessageLookup
from shmq.store.quarantine import Hole, Quarantine
from shmq.store.queues import Queues
from shmq.store.recovery import RecoveredLog, log_trust, open_consume_queues, recover_files
from shmq.store.replica import LogBegin, MasterLog, ReplicaService, begin_log
from shmq.store.replica_set import ReplicaSet
from shmq.store.retention import Retention
from shmq.store.services import StoreService
from shmq.store.sessions import Sessions
from shmq.store.stats import Stats
from shmq.store.stopped_log import LogPrefix, StoppedLog, leaving_path
from shmq.store.store_lock import StoreLock
from shmq.store.succession import check_frames
from shmq.topic import SCHEDULE_TOPIC

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from shmq.config import StoreConfig
    from shmq.errors import FlushFailedError
    from shmq.shm.budget import HotLogPlan
    from shmq.shm.mastership import Mastership
    from shmq.store.consume_queue_files import ConsumeQueueFiles
    from shmq.store.expire import ExpiredFile
    from shmq.store.scan import Damage

__all__ = ["LogPositions", "MessageStore"]

_log = logging.getLogger("shmq.store")

_FILES_AHEAD = 2
"""Files that are kept ready ahead of the one appended to, where nobody asked for hot segments."""
_REMAP_TIMEOUT_S = 0.1
"""How long clients get to leave a retired segment before its memory is replaced."""
_POSITIONS_INTERVAL_NS = 1_000_000_000
_FLUSH_LOOK_S = 0.001
_REPLAY_FRAMES = 100_000
"""Frames replayed between two looks at what the arena needs."""
_OK = core.STATUS["OK"][0]
_BLANK = core.STATUS["BLANK"][0]
_NO_TOPIC = core.STATUS["NO_TOPIC"][0]
_ARENA_FULL = core.STATUS["ARENA_FULL"][0]
_FLUSH_FAILED = -core.STATUS["FLUSH_FAILED"][0]


class LogPositions(NamedTuple):
    """How far the log is, in physical_offsets."""

    min_position: int
    """First byte kept."""
    hot_min_position: int
    """First byte in memory."""
    committed_position: int
    """Behind the last committed frame."""
    flushed_position: int
    """Bytes below it are on disk."""
    confirmed_position: int
    """Bytes below it are on the replicas of the SyncStateSet."""


class MessageStore:
    """One store. Open it, start it, stop it; a context manager that does all three.

    Attributes that others use: `queues`, `sessions`, `channel`, `appender` (for subscriptions and
    rights of issue B's broker through sessions), `positions`, `retention`.
    """

    def __init__(
        self,
        config: StoreConfig,
        *,
        clock: Clock = SYSTEM_CLOCK,
        on_session_ended: Callable[[int, str], None] | None = None,
        on_expired: Callable[[ExpiredFile], None] | None = None,
        mastership: Mastership | None = None,
        master_epoch: int | None = None,
        is_unclean: bool = False,
        must_adopt: bool = False,
        is_slave: bool = False,
        begin: LogBegin | None = None,
        stopped: StoppedLog | None = None,
        fd_store: FdStore | None = None,
    ) -> None:
        """Nothing happens yet.

        Args:
            config: of the store.
            clock: time; the core's own clocks are the kernel's.
            mastership: held, of a member of a replica set: `open` goes on with the memory of the
                one that was master last, and says in its record where memory is now.
            master_epoch: of this mastership, from a Controller; None: counted on from the last.
            is_unclean: go on with our own log where another member's memory is not for our files:
                what only that has is given up.
            must_adopt: go on with the memory of the last master, or not at all (decision 0024).
            on_session_ended: called with (session, reason) from a service thread when a client
                broke a rule or did not answer; its session is closed already.
            on_expired: called with each file that retention took, in its thread; must not wait.
            is_slave: it takes no message, it copies a master's log (`follow`).
            begin: where the log of a slave begins if it has none.
            stopped: what the slave's store was that this process had on the same files until now.
            fd_store: what systemd keeps for this process, if it does.
        """
        self._fd_store = fd_store or FdStore({})
        self.config = config
        self._is_slave = is_slave
        self._begin = begin
        self._clock = clock
        self._on_session_ended = on_session_ended or (lambda _session, _reason: None)
        self._on_expired = on_expired or (lambda _expired: None)
        self._is_member = mastership is not None
        self._adoption = Adoption(
            config,
            mastership=mastership,
            given_epoch=master_epoch,
            is_unclean=is_unclean,
            must_adopt=must_adopt,
            is_slave=is_slave,
            stopped=stopped,
        )
        self._undo = contextlib.ExitStack()
        self._failure: FlushFailedError | None = None
        self._positions_due_ns = 0
        self._record_crc_position: int | None = None
        self._waits_for_slaves = config.broker_role is BrokerRole.SYNC_MASTER and not is_slave
        self.queues: Queues
        self.replica: ReplicaService
        """What copies a master's log, where this is a slave."""
        self.retention: Retention
        """What removes old files; from `open` on."""
        self.sizes: dict[str, int]
        """What sizes came to, by the names of their settings: also those left to auto."""
        self.stats: Stats
        """What exporters are told; from `open` on."""
        self.is_adopted = False
        """Whether `open` found the memory of a predecessor."""
        self.predecessor_path: Path | None = None
        """Folder of the store whose owner was master last, where that is another one."""
        self.is_inherited = False
        """Whether that was the memory of another member of the replica set."""
        self.master_epoch = 0
        """Of the mastership under which it is written; 0: of none, as in a store on its own."""
        self.epochs: EpochFile
        """Which part of the log was written under which mastership; from `open` on."""
        self.recovered: RecoveredLog | None = None
        """What `open` found in the files; None after adoption."""

    # ---- opening ---------------------------------------------------------------------------------

    def open(self) -> None:
        """Take the lock, then the memory of a dead predecessor, or else recover from files.

        Blocks for as long as recovery takes.

        Raises:
            StoreLockedError: a living broker has it.
            StoreError, ShmError and their kin: it cannot be opened; everything is released.
        """
        config = self.config
        with contextlib.ExitStack() as undo:
            make_folder(config.store_path)
            undo.callback(StoreLock(config.store_path).release)
            _make_private(config.store_path / "shmq")
            self._runtime_path = config.runtime_folder()
            _make_private(self._runtime_path)
            self._manifest_path = manifests.manifest_path(config.store_path)
            self._positions_path = positions.positions_path(config.store_path)
            made = contextlib.ExitStack()
            self.is_adopted = self._adoption.adopt(self._adopt_log, undo)
            if not self.is_adopted:
                made = self._recover(undo)
            self.predecessor_path = self._adoption.predecessor_path
            self.is_inherited = self._adoption.is_inherited
            self.master_epoch = self._adoption.master_epoch
            self.epochs = self._adoption.epochs
            if self._is_member:
                self.epochs = self.epochs.begin(
                    self.master_epoch, self.positions.committed_position
                )
            boot_files.make_abort(config.store_path)
            boot_files.write_broker_conf(config, file_size_bytes=self.file_size_bytes)
            # Who takes over makes clients wait; what is on disk of positions is true all the same.
            self._save_positions(is_clean=False, is_durable=not self.is_inherited)
            self._retain()
            made.pop_all()
            self._fd_store.drop_others()  # of memory that is gone
            self._undo = undo.pop_all()

    def _adopt_log(
        self, memory: StoreMemory, undo: contextlib.ExitStack, prefix: LogPrefix | None
    ) -> None:
        """Take over memory; `prefix`: our files, where another member's files were flushed to."""
        fields = read_ints(memory.control, "control_config", struct_size("segment_header"))
        self.file_size_bytes = fields["file_size_bytes"]
        segment_count = fields["hot_slot_count"]
        raise_open_files(
            open_files_wanted(
                segment_count=segment_count, session_count=fields["session_slot_count"]
            )
        )
        self._wire(memory, undo, segment_count, fields["session_slot_count"])
        used = set()
        for file_position, hot in memory.hot_files():
            self._appender.adopt_hot(file_position, hot.mapping)
            if prefix is None:
                fd = self._files.open(file_position, readonly=False)
            else:
                fd = self._files.make_ready(file_position, zero_written=False)
            self._hot_log.adopt(file_position, hot, fd)
            used.add(hot.number)
        for number in set(memory.hot_numbers()) - used:
            memory.drop_hot(number)
        if prefix is not None:
            self._appender.take_files(self.config.broker_id + 1, prefix.end_position)
        status = self._appender.adopt()
        if status != _OK:
            raise StoreCorruptError(f"adopt {memory.store}: the last turn does not hold ({status})")
        now = self.positions
        check_frames(memory, now.flushed_position, now.committed_position)
        complete_end = now.flushed_position - now.flushed_position % self.file_size_bytes
        self._hot_log.set_complete(complete_end)
        known = positions.load_or_none(self._positions_path)
        trust = log_trust(self._files, self._files.files(), known, is_foreign=False)
        derived = open_consume_queues(
            self._files,
            end_position=complete_end,
            record_crc_position=trust.record_crc_position,
            on_damage=self._quarantine,
        )
        self._derive_from(derived, undo, is_adopted=True, is_foreign=False)
        self._open_queues(memory)
        if prefix is not None:
            self._take_min(prefix)
        lost = self.sessions.find_lost()
        memory.sweep(lost)
        _log.info(
            "adopted store=%s committed_position=%d flushed_position=%d queues=%d sessions=%d",
            memory.store,
            now.committed_position,
            now.flushed_position,
            len(self.queues),
            len(lost),
        )

    def _take_min(self, prefix: LogPrefix) -> None:
        """What is kept of the log and its queues is what our files have, not the dead master's."""
        self._appender.set_min_position(prefix.min_position)
        for topic, queue_id, handle in self.queues:
            cold = prefix.cold_queues.get(QueueKey(topic, queue_id))
            hot_min = self.queues.hot_min(handle)
            self.queues.set_min(handle.row, hot_min if cold is None else cold.min_queue_offset)

    def _open_queues(self, memory: StoreMemory) -> None:
        self.queues = Queues(self._appender, memory)
        self.replica = ReplicaService(
            self._appender,
            self.queues,
            file_size_bytes=self.file_size_bytes,
            row_flags=self.row_flags,
            grow_arena=lambda: self._appender.grow_arena(memory.grow_arena()),
        )

    def _quarantine(self, damages: Sequence[Damage]) -> None:
        """Enter damage of complete files in the quarantine list: readers skip it, nothing is lost
        twice.
        """
        path = Quarantine.path(self.config.store_path)
        now_ms = self._clock.wall_ms()
        holes = [Hole(d.position, d.size, d.reason, found_at=now_ms) for d in damages]
        Quarantine.load(path).with_holes(holes).save(path)
        for hole in holes:
            _log.error(
                "damage position=%d size=%d reason=%s", hole.position, hole.size, hole.reason
            )

    def _recover(self, undo: contextlib.ExitStack) -> contextlib.ExitStack:
        """Scan the files, make new memory, and put what is behind the last complete file into it.

        Returns:
            What removes that memory again, in `undo` until the caller empties it.
        """
        config = self.config
        plan = self._plan()
        self.file_size_bytes = plan.file_size_bytes
        files = LogFiles(config.store_path, plan.file_size_bytes)
        files.make_folders()
        if self._begin is not None and not files.files():
            begin_log(files, self._positions_path, self._begin)
        recovered = recover_files(
            config.store_path,
            plan.file_size_bytes,
            delay_levels_ms=config.delay_levels_ms,
            is_slave=self._is_slave,
        )
        self.recovered = recovered
        manifest = StoreMemory.new_manifest(config, plan.file_size_bytes, os.geteuid())
        mark = undo.enter_context(
            InUseMark.take(self._runtime_path, manifest.store, timeout_ms=MARK_TIMEOUT_MS)
        )
        memory = StoreMemory.create(
            manifest,
            self._manifest_path,
            mark,
            config,
            plan,
            begin_position=recovered.min_position,
        )
        undo.callback(memory.close)
        drop = undo.enter_context(contextlib.ExitStack())
        drop.callback(memory.drop)
        self._wire(memory, undo, plan.segment_count, plan.session_count)
        self._appender.grow_arena(memory.arena.size_bytes // core.BLOCK_SIZE)
        is_foreign = recovered.is_foreign
        self._derive_from(recovered.consume_queues, undo, is_adopted=False, is_foreign=is_foreign)
        self._open_queues(memory)
        for (topic, queue_id), (low, high) in recovered.cold_queues.items():
            handle = self.queues.add(
                topic,
                queue_id,
                flags=self.row_flags(topic),
                first_queue_offset=high,
                is_in_log=True,
            )
            self.queues.set_min(handle.row, low)
        self._load_last_file(memory, recovered)
        memory.declare_whole(master_epoch=self._adoption.next_epoch(0, is_ours=False))
        self._adoption.declare()
        _log.info(
            "recovered path=%s min_position=%d end_position=%d holes=%d queues=%d",
            config.store_path,
            recovered.min_position,
            recovered.end_position,
            len(recovered.holes),
            len(self.queues),
        )
        return drop

    def _plan(self) -> HotLogPlan:
        config = self.config
        known = positions.load_or_none(self._positions_path)
        file_size = config.commit_log_file_size_bytes
        existing = known.file_size_bytes if known else find_file_size(config.store_path)
        if existing is None and self._begin is not None:
            existing = self._begin.file_size_bytes
        if existing and file_size and existing != file_size:
            raise ShmError(
                f"open {config.store_path}: its files have {existing} bytes, "
                f"commit_log_file_size_bytes is {file_size}; leave it at auto"
            )
        machine = Machine.read()
        for line in machine.warnings:
            _log.warning("%s", line)
        plan = plan_sizes(
            HotLogRequest(
                file_size_bytes=existing or file_size,
                segment_count=config.hot_segment_count,
                arena_bytes=config.arena_bytes,
                session_count=config.session_count,
                ring_bytes=config.ring_bytes,
                completion_bytes=completion_size(config.lane_count, config.completion_count),
                max_message_size_bytes=config.max_message_size_bytes,
            ),
            machine,
        )
        for line in plan.shrunk:
            _log.warning("%s", line)
        raise_open_files(plan.open_files)
        return plan

    def _wire(
        self, memory: StoreMemory, undo: contextlib.ExitStack, segment_count: int, sessions: int
    ) -> None:
        config = self.config
        self.sizes = self._sizes(memory, segment_count, sessions)
        self._memory = memory
        self._files = LogFiles(config.store_path, self.file_size_bytes)
        self._files.make_folders()
        self._appender = core.Appender(
            memory.control,
            memory.topics,
            memory.arena,
            flush_timeout=config.sync_flush_timeout_ms / 1000,
            replica_timeout=config.slave_timeout_ms / 1000,
            delay_ms=config.delay_levels_ms,
            policy=_POLICIES[config.waiting_policy],
        )
        undo.callback(self._appender.close)
        self._appender.set_slave(self._is_slave)
        self.stats = Stats(memory, self._appender)
        undo.callback(self.stats.close)
        self.replica_set = ReplicaSet(self._appender)
        self.channel = LogChannel(
            self._files, file_size_bytes=self.file_size_bytes, on_drop=self._end_session
        )
        undo.callback(self.channel.stop)
        self._hot_log = HotLog(
            self._appender,
            memory,
            self._files,
            self.channel,
            file_size_bytes=self.file_size_bytes,
            segment_count=segment_count,
            zero_written=config.flush_disk_type is FlushDiskType.SYNC_FLUSH,
            remap_timeout_s=_REMAP_TIMEOUT_S,
            retired_bytes_max=self.sizes["retired_bytes_max"],
            is_copied=self.replica_set.has_all,
        )
        undo.callback(self._hot_log.close)
        lanes = config.lane_count
        self.sessions = Sessions(
            self._appender,
            memory,
            self.channel,
            slot_count=sessions,
            lane_count=lanes,
            lane_capacity_bytes=1 << ((self.sizes["ring_bytes"] // lanes).bit_length() - 1),
            completion_capacity=config.completion_count,
            fd_store=self._fd_store,
        )
        undo.callback(self.sessions.close_kept)
        self._segment_count = segment_count
        self._append = AppendService(
            self._appender,
            self._hot_log,
            memory,
            files_ahead=self._files_ahead,
            derive_failure=lambda: self._derive.failure,
            check_room=lambda: self.retention.check_room(),
            on_session_ended=self._end_sessions,
            on_replica_need=lambda: self.replica.serve(),
            on_tick=self._tick,
        )
        self._flush = FlushService(
            self._appender,
            self._hot_log,
            interval_s=config.flush_interval_ms / 1000,
            unflushed_bytes_max=self.sizes["unflushed_bytes_max"],
            on_failed=self._fail,
            on_file_complete=lambda file_position: self._derive.put(file_position),
        )

    def _sizes(self, memory: StoreMemory, segment_count: int, sessions: int) -> dict[str, int]:
        config = self.config
        hot_bytes = segment_count * self.file_size_bytes
        chosen = {
            "retired_bytes_max": hot_bytes // 2,
            "unflushed_bytes_max": hot_bytes // 4,
            "ring_bytes": _RING_BYTES_DEFAULT,
        }
        for name in chosen:
            asked = getattr(config, name)
            chosen[name] = chosen[name] if asked is None else asked
        return chosen | {
            "commit_log_file_size_bytes": self.file_size_bytes,
            "hot_segment_count": segment_count,
            "arena_bytes": memory.arena_bytes_max,
            "session_count": sessions,
        }

    def _files_ahead(self) -> int:
        """Files that are kept ready ahead. Who asked for hot segments gets them for bursts; with
        slaves at least one stays behind: they go on with this memory if they have its begin.
        """
        if not self.replica_set.is_empty:
            return max(1, min(_FILES_AHEAD, self._segment_count - 2))
        ahead = self._segment_count - 1 if self.config.hot_segment_count else _FILES_AHEAD
        return min(ahead, self._segment_count - 1)

    def _derive_from(
        self,
        files: ConsumeQueueFiles,
        undo: contextlib.ExitStack,
        *,
        is_adopted: bool,
        is_foreign: bool,
    ) -> None:
        self._derive = DeriveService(
            files,
            on_derived=self._derived,
            log_end=lambda: self.positions.committed_position,
            waiting_max=self._segment_count // 4,
        )
        undo.callback(self._derive.close)
        for file_position in files.file_positions:
            self._hot_log.set_derived(file_position)
        self._index: IndexService | None = None
        if self.config.message_index_enable:
            self._index = IndexService(
                self._files, self._hot_log, positions=lambda: self.positions, clock=self._clock
            )
            undo.callback(self._index.close)
            self._index.take(files.file_positions, is_adopted=is_adopted, is_foreign=is_foreign)

    def _derived(self, file_position: int) -> None:
        self._hot_log.set_derived(file_position)
        if self._index is not None:
            self._index.put(file_position)

    def _retain(self) -> None:
        expiry = LogExpiry(
            self._appender,
            self._hot_log,
            self.queues,
            self._derive,
            self._files,
            trim=self._append.trim,
            forget=self.channel.forget,
        )
        self.retention = Retention(
            self.config,
            expiry,
            clock=self._clock,
            min_position=lambda: self.positions.min_position,
            last_store_ms=self._store_timestamp,
            on_expired=self._expired,
        )

    def _expired(self, expired: ExpiredFile) -> None:
        if self._index is not None:
            self._index.expire()
        self._on_expired(expired)

    def _load_last_file(self, memory: StoreMemory, recovered: RecoveredLog) -> None:
        """Bring the file in which appends go on into memory, and replay its frames."""
        size = self.file_size_bytes
        end = recovered.end_position
        file_position = end - end % size
        is_new = not any(file.file_position == file_position for file in self._files.files())
        if not is_new:
            fd = self._files.open(file_position, readonly=False)
        else:
            fd = self._files.make_ready(
                file_position,
                zero_written=self.config.flush_disk_type is FlushDiskType.SYNC_FLUSH,
            )
        hot = memory.create_hot()
        if not is_new:
            with memoryview(hot.mapping) as view:
                _read_fully(fd, view[: end - file_position], 0)
            os.fdatasync(fd)
        self._appender.ready(file_position, hot.mapping, hot.number)
        self._hot_log.adopt(file_position, hot, fd)
        self._hot_log.set_complete(file_position)
        self._replay(file_position, end, recovered)
        # Before offsets are reserved: a reserved entry says where the log ended then, and one that
        # said less would be taken for cold, with all those before it.
        self._appender.begin_at(end, recovered.store_timestamp)
        self._appender.take_files(self.config.broker_id + 1, end)
        for (topic, queue_id), queue_end in recovered.queue_ends.items():
            handle = self.queues.add(
                topic,
                queue_id,
                flags=self.row_flags(topic),
                first_queue_offset=queue_end,
                is_in_log=True,
            )
            while self._appender.reserve(handle.row, queue_end) == _ARENA_FULL:
                self._appender.grow_arena(self._memory.grow_arena())
        self._appender.set_min_position(recovered.min_position)

    def _replay(self, position: int, end: int, recovered: RecoveredLog) -> None:
        demands = 0
        if recovered.record_crc_position <= position:
            demands = core.CHECK_RECORD_CRC
        holes = sorted((hole.position, hole.size) for hole in recovered.holes)
        while position < end:
            limit = min((at for at, _ in holes if at >= position), default=end)
            status, position, _, _, topic, queue_id, queue_offset, reason = self._appender.replay(
                position, min(limit, end), demands, _REPLAY_FRAMES
            )
            if status == _NO_TOPIC:
                assert topic is not None
                name = topic.decode("utf-8", "surrogateescape")
                self.queues.add(
                    name,
                    queue_id,
                    flags=self.row_flags(name),
                    first_queue_offset=queue_offset,
                    is_in_log=True,
                )
            elif status == _ARENA_FULL:
                self._appender.grow_arena(self._memory.grow_arena())
            elif status != _OK:
                raise StoreCorruptError(
                    f"replay {self.config.store_path} at {position}: status {status}, "
                    f"reason {reason}, though the scan had passed it; run fsck"
                )
            elif position == limit < end:
                position += next(hole_size for at, hole_size in holes if at == limit)

    # ---- running ---------------------------------------------------------------------------------

    def start(self, *, on_flushed: Callable[[], None] | None = None) -> None:
        """Begin to flush, and to take messages.

        Args:
            on_flushed: called in between, once the files hold all that the log has; what it raises
                goes on to the caller, and no message is taken. Blocks for as long as the disk does.

        Raises:
            FlushFailedError: the disk refused.
        """
        self.channel.start()
        self._derive.start()
        if self._index is not None:
            self._index.start()
        flushed = self.positions.flushed_position
        if on_flushed is not None:
            self._flush.set_interval(0.0)  # somebody waits
        self._flush.start(flushed - flushed % self.file_size_bytes)
        if on_flushed is not None:
            self._await_flushed()
            self._flush.set_interval(self.config.flush_interval_ms / 1000)
            on_flushed()
        self._append.start()
        self.retention.start()

    def _await_flushed(self) -> None:
        while (now := self.positions).flushed_position < now.committed_position:  # ends: no appends
            if self._failure is not None:
                raise self._failure
            time.sleep(_FLUSH_LOOK_S)

    def stop(self, *, keep_memory: bool = False, succeeds: bool = False) -> StoppedLog | None:
        """Take nothing more, flush everything, release everything.

        Args:
            keep_memory: leave the shared memory to a successor, which adopts it and its sessions;
                otherwise it is removed.
            succeeds: a slave's, that becomes master in this process: what it knows is handed on
                where that is all there is to know, and its memory with it, to be released later.

        Raises:
            FlushFailedError: the disk had refused; what was not flushed is in memory only, which
                is therefore left for a successor.
        """
        self.retention.stop()
        self.replica.unfollow()
        self._append.stop()
        self._flush.stop()
        self.replica_set.close()
        self._derive.stop()
        if self._index is not None:
            self._index.stop()
        is_flushed = self.positions.flushed_position == self.positions.committed_position
        stopped = None
        with contextlib.ExitStack() as undo:
            undo.push(self._undo)
            self._undo = contextlib.ExitStack()
            self._save_positions(is_clean=is_flushed and not keep_memory, is_durable=not succeeds)
            for session in self.sessions.live:
                if not keep_memory:
                    self.sessions.close(session)
            if succeeds and is_flushed and self._failure is None and self._derive.failure is None:
                with contextlib.suppress(OSError):  # its list is gone: it is removed as ever
                    stopped = self._hand_on()
        if is_flushed and not keep_memory and stopped is None:
            discard(self._memory.manifest, self._manifest_path, self._runtime_path)
        if self._failure is not None:
            raise self._failure
        return stopped

    def _hand_on(self) -> StoppedLog:
        now = self.positions
        path = leaving_path(self.config.store_path)
        return StoppedLog(
            LogPrefix(now.committed_position, now.min_position, self._derive.cold_queues()),
            sequence=self._saved.sequence,
            memory=self._memory.hand_on(path),
            leaving_path=path,
            runtime_path=self._runtime_path,
        )

    def __enter__(self) -> MessageStore:
        self.open()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ---- replication -----------------------------------------------------------------------------

    def follow(self, master: MasterLog) -> None:
        """Copy this master's log from now on; see ReplicaService.follow."""
        self._record_crc_position = master.record_crc_position
        self.replica.follow(master)

    def take_queue_ends(self, ends: Mapping[QueueKey, int]) -> None:
        """Queues of which the master keeps no message go on where its own do, in memory and on
        disk; see ReplicaService.take_ends. Blocks for the disk.
        """
        self.replica.take_ends(ends)
        self._derive.raise_floors(ends)

    def open_control(self) -> int:
        """A read-only fd of the control segment, for a slave or a master; the caller closes it."""
        return self._memory.open_readonly(ObjectKind.CONTROL)

    @property
    def log_begin(self) -> LogBegin:
        """Where the log of a slave of this store begins."""
        return LogBegin(
            self.file_size_bytes, self.positions.min_position, self._saved.record_crc_position
        )

    # ---- facts -----------------------------------------------------------------------------------

    @property
    def positions(self) -> LogPositions:
        """How far the log is, as of now."""
        load = self._memory.control.load64
        return LogPositions(
            min_position=load(control_place("append_positions", "min_position")),
            hot_min_position=load(control_place("append_positions", "hot_min_position")),
            committed_position=load(control_place("append_positions", "committed_position")),
            flushed_position=load(control_place("flush_positions", "flushed_position")),
            confirmed_position=load(control_place("replica_positions", "confirmed_position")),
        )

    @property
    def generation(self) -> str:
        """Which memory this is: random, made anew when it could not be adopted."""
        return self._memory.manifest.generation

    def counters(self) -> dict[str, int]:
        """What the append thread has counted since the memory was made."""
        return read_ints(self._memory.control, "counters", control_place("counters"))

    def appender_state(self) -> dict[str, int]:
        """What only the append role knows: blocked, arena_free_blocks, log_end, ready_end."""
        return self._appender.state()

    @property
    def failure(self) -> FlushFailedError | None:
        """Why the store takes no more messages for good; None while it does."""
        return self._failure

    @property
    def append_problem(self) -> str | None:
        """Why no further CommitLog file can be made: sends will wait. None where one can."""
        return self._append.problem

    def row_flags(
        self,
        topic: str,
        flush_disk_type: FlushDiskType | None = None,
        broker_role: BrokerRole | None = None,
    ) -> int:
        """Row flags (core.ROW_*) of a topic's queues with these levels; None: the store's."""
        flags = self.default_flags(flush_disk_type, broker_role)
        return flags | (core.ROW_SCHEDULE if topic == SCHEDULE_TOPIC else 0)

    def default_flags(
        self, flush_disk_type: FlushDiskType | None = None, broker_role: BrokerRole | None = None
    ) -> int:
        """Row flags that the levels alone give; None: the store's."""
        level = flush_disk_type or self.config.flush_disk_type
        flags = core.ROW_FLUSH if level is FlushDiskType.SYNC_FLUSH else 0
        return flags | self._replica_flag(broker_role)

    def _replica_flag(self, broker_role: BrokerRole | None) -> int:
        is_waiting = self._waits_for_slaves
        if broker_role is not None:
            is_waiting = broker_role is BrokerRole.SYNC_MASTER
        return core.ROW_REPLICA if is_waiting else 0

    def wait_for_slaves(
        self, is_waiting: bool, role_of: Callable[[str], BrokerRole | None]
    ) -> None:
        """Whether messages count, and show themselves, only once they are confirmed: of a
        SYNC_MASTER and of its slaves. Holds for the queues there are, too.

        Args:
            is_waiting: for topics that do not say.
            role_of: what a topic says (TopicConfig.broker_role).
        """
        self._waits_for_slaves = is_waiting
        for topic, queue_id, handle in self.queues:
            is_writable, flags = self.queues.state(handle)
            wanted = flags & ~core.ROW_REPLICA | self._replica_flag(role_of(topic))
            if wanted != flags:
                with contextlib.suppress(TopicNotExistError):  # deleted meanwhile
                    self.queues.set(topic, queue_id, flags=wanted, is_writable=is_writable)

    def open_service(self, service_id: int, *, is_reading: bool = False) -> StoreService:
        """A service of the broker that appends messages of its own; see StoreService."""
        return StoreService(
            self._memory,
            self.sessions,
            service_id,
            is_reading=is_reading,
            message_size_max=self.config.max_message_size_bytes,
        )

    def read_cold(
        self, topic: str, queue_id: int, queue_offset: int, entry_count: int
    ) -> tuple[int, bytes] | None:
        """ConsumeQueue entries that are not in memory any more, from files; see
        DeriveService.read.
        """
        return self._derive.read(topic, queue_id, queue_offset, entry_count)

    @property
    def frames(self) -> FrameReader:
        """Copies of messages, for clients that do not map the log."""
        return FrameReader(self.lookup, self.queues, self._hot_log, self._files, self._derive)

    @property
    def lookup(self) -> Lookup:
        """Entries and times of messages, for requests that ask by them."""
        return Lookup(self._memory, self.queues, self._hot_log, self._files, self._derive)

    @property
    def message_lookup(self) -> MessageLookup:
        """Messages by key, id, place and time, for requests that ask for them."""
        return MessageLookup(
            self.lookup,
            self._index,
            positions=lambda: self.positions,
            file_size_bytes=self.file_size_bytes,
            clock=self._clock,
        )

    @property
    def index_waiting_count(self) -> int:
        """Complete CommitLog files that are not indexed yet; 0 without an index."""
        return 0 if self._index is None else self._index.waiting_count

    def check(self) -> None:
        """Return if messages can be stored.

        Raises:
            ServiceNotAvailableError, FlushFailedError: why not.
        """
        if self._failure is not None:
            raise self._failure
        status = self._memory.control.load32(control_place("append_positions", "store_status"))
        if status:
            raise ServiceNotAvailableError(
                f"store a message in {self.config.store_path}: appends wait, status {status}"
            )

    # ---- what the services report ----------------------------------------------------------------

    def _fail(self, failure: FlushFailedError) -> None:
        self._failure = failure
        self._appender.set_status(_FLUSH_FAILED)

    def _end_sessions(self) -> None:
        for session, status in self.sessions.ended():
            self._end_session(session, f"it broke a rule of the ring (status {status})")

    def _end_session(self, session: int, reason: str) -> None:
        _log.warning("session ended session=%d reason=%s", session, reason)
        self.sessions.close(session)
        self._on_session_ended(session, reason)

    @property
    def _store_timestamp(self) -> int:
        """Highest storeTimestamp given out, ms since 1970."""
        return self._memory.control.load64(control_place("append_positions", "store_timestamp"))

    def _tick(self) -> None:
        now_ns = self._clock.monotonic_ns()
        if now_ns < self._positions_due_ns:
            return
        self._positions_due_ns = now_ns + _POSITIONS_INTERVAL_NS
        try:
            self._save_positions(is_clean=False)
        except ShmqError as error:
            _log.warning("positions not saved, recovery will scan further back: %s", error)

    def _save_positions(self, *, is_clean: bool, is_durable: bool = True) -> None:
        now = self.positions
        known = positions.Positions(
            flushed_position=now.flushed_position,
            min_position=now.min_position,
            store_generation=int(self._memory.manifest.generation, 16),
            boot_id=boot_id(),
            store_timestamp=self._store_timestamp,
            file_size_bytes=self.file_size_bytes,
            is_clean=is_clean,
        )
        last = getattr(self, "_saved", None) or positions.load_or_none(self._positions_path)
        if last is not None:
            known = replace(
                known, sequence=last.sequence, record_crc_position=last.record_crc_position
            )
        if self.recovered is not None:  # it moves on where RocketMQ had the store in between
            known = replace(known, record_crc_position=self.recovered.record_crc_position)
        if self._record_crc_position is not None:
            known = replace(known, record_crc_position=self._record_crc_position)
        if last is not None and replace(known, sequence=0) == replace(last, sequence=0):
            self._saved = last
            return
        self._saved = positions.save(self._positions_path, known, durable=is_durable)


_RING_BYTES_DEFAULT = 1 << 20
_POLICIES = {
    "blocking": core.WAIT_BLOCKING,
    "adaptive": core.WAIT_ADAPTIVE,
    "busy_spin": core.WAIT_BUSY_SPIN,
}


def _make_private(folder: Path) -> None:
    """Make a folder of ours if it is not there; StoreError where the system refuses."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(f"make the folder {folder}", error) from error


def _read_fully(fd: int, view: memoryview, place: int) -> None:
    """Fill the view from the file; ShmError at its end."""
    got = 0
    while got < len(view):
        count = os.preadv(fd, [view[got : got + (64 << 20)]], place + got)
        if count == 0:
            raise StoreCorruptError(f"read a CommitLog file: it ends at {place + got}")
        got += count
