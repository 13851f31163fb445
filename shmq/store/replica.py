"""A slave's side of replication: which master it copies, and what its replica turns ask for.

What lives here: `MasterLog`, what a slave is given of its master's memory; `LogBegin`, where the
log of a new slave begins; `ReplicaService`. The bytes are copied by the append thread (replica.h),
without the GIL. It stops where it needs something: a file of the master mapped, a queue's row; the
keeper calls `serve` then. A frame of the master that does not hold is never copied: it is said, and
looked at again each second, for the master's file may hold it though its memory does not.

Which process: a slave's broker. Writes: queue rows, through the Appender. May fail: ShmFullError
and its kin where rows cannot grow; it is tried again.
"""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from shmq.core import core
from shmq.core.fields import control_place
from shmq.errors import TopicNotExistError
from shmq.store import positions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from shmq.store.consume_queue_files import QueueKey
    from shmq.store.log_files import LogFiles
    from shmq.store.queues import Queues

__all__ = ["LogBegin", "MasterLog", "ReplicaService", "ReplicaState", "begin_log"]

_log = logging.getLogger("shmq.store")

_FILE_TIMEOUT_S = 0.5
"""For the master's answer to a request for a file; it gives it in a millisecond."""
_HOLE_MAX = 1 << 20
"""Queue offsets that are filled at most; a queue that lost more begins anew."""
_OK = core.STATUS["OK"][0]
_OFFSET_TOO_SMALL = core.STATUS["OFFSET_TOO_SMALL"][0]
_ARENA_FULL = core.STATUS["ARENA_FULL"][0]


class ReplicaState(StrEnum):
    """How a slave does."""

    ALONE = "ALONE"
    """It follows no master."""
    COPYING = "COPYING"
    """It follows one."""
    DAMAGED = "DAMAGED"
    """The next frame of the master's log does not hold."""
    BEHIND = "BEHIND"
    """The master's log begins behind the end of ours: what is between is kept nowhere."""
    DIVERGED = "DIVERGED"
    """The master's log ends before ours, or is another one."""


class LogBegin(NamedTuple):
    """Where the log of a slave that has none begins: as its master's."""

    file_size_bytes: int
    """Of the master's CommitLog files."""
    begin_position: int
    """First byte the master keeps; a file begins there."""
    record_crc_position: int
    """physical_offset from which on its records carry `__CRC32#`."""


@dataclass(slots=True)
class MasterLog:
    """What a slave gets of its master. The fds are the receiver's to close."""

    control_fd: int
    """Its control segment, read-only."""
    log_fd: int
    """Our end of its log channel."""
    event_fd: int
    """Wakes its append thread."""
    socket_fd: int
    """Our end of the socket on which it wakes ours."""
    record_crc_position: int
    """As in LogBegin."""

    def close(self) -> None:
        """Close the fds."""
        for fd in (self.control_fd, self.log_fd, self.event_fd, self.socket_fd):
            if fd >= 0:
                os.close(fd)
        self.control_fd = self.log_fd = self.event_fd = self.socket_fd = -1


def begin_log(files: LogFiles, positions_path: Path, begin: LogBegin) -> None:
    """Make the first file of an empty log, so that recovery finds a log that begins there.

    Raises:
        DiskFullError, StoreError: nothing is left behind that recovery would not take.
    """
    positions.save(
        positions_path,
        positions.Positions(
            flushed_position=begin.begin_position,
            min_position=begin.begin_position,
            store_generation=0,
            boot_id=bytes(16),
            store_timestamp=0,
            file_size_bytes=begin.file_size_bytes,
            record_crc_position=begin.record_crc_position,
        ),
        durable=True,
    )
    os.close(files.make_ready(begin.begin_position, zero_written=False))


class ReplicaService:
    """A slave's replica turns, and what they ask for.

    Args:
        appender: of the store, a slave's.
        queues: of the store.
        file_size_bytes: of the CommitLog files.
        row_flags: core.ROW_* flags of a topic's queues.
        grow_arena: makes ConsumeQueue blocks.
    """

    def __init__(
        self,
        appender: core.Appender,
        queues: Queues,
        *,
        file_size_bytes: int,
        row_flags: Callable[[str], int],
        grow_arena: Callable[[], None],
    ) -> None:
        self._appender = appender
        self._queues = queues
        self._file_size_bytes = file_size_bytes
        self._row_flags = row_flags
        self._grow_arena = grow_arena
        self._log_map: core.LogMap | None = None
        self._control: core.Mapping | None = None
        self._lock = threading.Lock()
        self._making = threading.Lock()
        """Of queues: two threads make some."""
        self._state = ReplicaState.ALONE
        self._problem: str | None = None
        self._problem_position = 0

    @property
    def state(self) -> ReplicaState:
        """How it does."""
        return self._state

    @property
    def problem(self) -> str | None:
        """Why it does not go on, for people; None where it does."""
        return self._problem

    @property
    def master_position(self) -> int | None:
        """The master's committed position as of now; None without a master."""
        with self._lock:
            return None if self._control is None else self._control.load64(_COMMITTED_PLACE)

    # ---- following ---------------------------------------------------------------------------

    def follow(self, master: MasterLog) -> None:
        """Copy from this master from now on; its fds are ours.

        Raises:
            ValueError: its memory is of another layout or file size, or we follow one.
            OSError: an fd cannot be mapped; nothing is followed.
        """
        try:
            control = core.Mapping(master.control_fd, core.PAGE)
            log_map = core.LogMap(file_size=self._file_size_bytes)
            try:
                log_map.start(master.log_fd)
                self._appender.follow(
                    control,
                    log_map,
                    event_fd=master.event_fd,
                    socket_fd=master.socket_fd,
                    record_crc_position=master.record_crc_position,
                )
            except BaseException:
                log_map.close()
                control.close()
                raise
        finally:
            master.close()
        with self._lock:
            self._control, self._log_map = control, log_map
            self._set(ReplicaState.COPYING, None)

    def unfollow(self) -> None:
        """Copy no more; what was copied stays. Twice is once."""
        with self._lock:
            control, log_map = self._control, self._log_map
            self._control = self._log_map = None
            if control is None or log_map is None:
                return
            self._appender.unfollow()
            self._set(ReplicaState.ALONE, None)
        log_map.close()
        control.close()

    def refuse(self, problem: str) -> None:
        """The master's log is not to be copied over ours, and why; until one is followed."""
        with self._lock:
            self._set(ReplicaState.DIVERGED, problem)

    # ---- the keeper --------------------------------------------------------------------------

    def serve(self) -> None:
        """Get what replica turns wait for, if they wait; in the keeper's thread.

        Raises:
            ShmFullError and its kin: call it again.
        """
        need, position, topic, queue_id, queue_offset, reason = self._appender.replica_need()
        if need == 0 and position > self._problem_position and self._problem is not None:
            self._set(ReplicaState.COPYING, None)
        if need == 0:
            return
        if need == core.NEED_QUEUE:
            assert topic is not None
            with self._making:
                self._make_queue(topic.decode("utf-8", "surrogateescape"), queue_id, queue_offset)
        elif need == core.NEED_FILE:
            if not self._map_file(position):
                return
        elif need == core.NEED_MASTER:
            self._set(
                ReplicaState.DIVERGED,
                f"copy at {position}: the master's log ends before; it is not the log that was "
                "copied",
            )
        elif need == core.NEED_REPAIR:
            self._set(
                ReplicaState.DAMAGED,
                f"copy the frame at {position}: {core.MESSAGE_REASONS[reason][1]}; the master's "
                "log is damaged there, it was not copied: run fsck on the master's store",
            )
        if need in (core.NEED_REPAIR, core.NEED_MASTER):
            self._problem_position = position
        self._appender.replica_go_on()

    def _map_file(self, position: int) -> bool:
        """Have the master's file at a position mapped; False: not now."""
        with self._lock:
            log_map = self._log_map
        if log_map is None:
            return False
        file_position = position - position % self._file_size_bytes
        status = log_map.request_file(file_position, _FILE_TIMEOUT_S)
        if status == _OFFSET_TOO_SMALL:
            self._problem_position = position
            self._set(
                ReplicaState.BEHIND,
                f"copy at {position}: the master does not keep that file any more; this slave's "
                "store must begin anew",
            )
        return status == _OK

    def take_ends(self, ends: Mapping[QueueKey, int]) -> None:
        """Queues of which the master keeps no message go on where its own do. Those of which our
        log has some are there already: it has all that the master has appended.

        Raises:
            ShmFullError and its kin, StoreError: call it again.
        """
        with self._making:
            for (topic, queue_id), end in ends.items():
                try:
                    handle = self._queues.find(topic, queue_id)
                except TopicNotExistError:
                    continue  # its topic comes with the next look
                now = self._queues.offsets(handle)
                if now.max_queue_offset < end and now.min_queue_offset == now.max_queue_offset:
                    is_writable, flags = self._queues.state(handle)
                    self._queues.delete(topic, queue_id)
                    self._queues.add(
                        topic, queue_id, flags=flags, first_queue_offset=end, is_in_log=True
                    )
                    self._queues.set(topic, queue_id, flags=flags, is_writable=is_writable)

    def _make_queue(self, topic: str, queue_id: int, queue_offset: int) -> None:
        """Bring a queue to where its next message stands."""
        flags = self._row_flags(topic)
        try:
            handle = self._queues.find(topic, queue_id)
        except TopicNotExistError:
            handle = None
        if handle is not None:
            now = self._queues.offsets(handle)
            hole = queue_offset - now.max_queue_offset
            if now.max_queue_offset > now.min_queue_offset and 0 <= hole <= _HOLE_MAX:
                # The offsets of messages that were damaged at the master: nobody else gets them.
                while self._appender.reserve(handle.row, queue_offset) == _ARENA_FULL:
                    self._grow_arena()
                return
            # It has nothing, or the master's was deleted and made anew.
            self._queues.delete(topic, queue_id)
        self._queues.add(
            topic, queue_id, flags=flags, first_queue_offset=queue_offset, is_in_log=True
        )

    def _set(self, state: ReplicaState, problem: str | None) -> None:
        if problem is not None and problem != self._problem:
            _log.error("replica %s: %s", state.lower(), problem)
        elif state is not self._state:
            _log.info("replica state=%s", state)
        self._state, self._problem = state, problem


_COMMITTED_PLACE = control_place("append_positions", "committed_position")
