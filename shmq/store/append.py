"""The append thread and its keeper.

What lives here: `AppendService`. The append thread runs the turns in the core (turn.h) without the
GIL. The keeper is a thread of ours that prepares what the append thread will soon need: the next
file and its memory, ConsumeQueue blocks; and tells the store of sessions that ended.

Which process: the broker. Writes: nothing itself; the Appender and the hot log do. May fail: a full
disk or /dev/shm stops the appends with a clear status, and so do a read-only file system, a limit
of memory and one of open files: what failed is tried again until the cause is gone.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from shmq.core import core
from shmq.core.fields import control_place
from shmq.errors import DiskReadOnlyError, LimitError, ShmError, ShmFullError, ShmqError
from shmq.threads import NamedThread

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmq.store.hot_log import HotLog
    from shmq.store.memory import StoreMemory

__all__ = ["AppendService"]

_log = logging.getLogger("shmq.store")

_RETRY_S = 0.005
"""Between two looks whether the flusher has finished the file whose memory is wanted."""
_REFUSED_RETRY_S = 0.2
"""Between two attempts after the disk or /dev/shm was full, or the like."""
_IDLE_S = 1.0
_TRIM_ROWS = 4096
"""Queue rows trimmed while the append thread stands still: about 0.1 ms."""

_ARENA_FULL = -core.STATUS["ARENA_FULL"][0]
_STATUSES = (
    (ShmFullError, -core.STATUS["SHM_FULL"][0]),
    (LimitError, -core.STATUS["LIMIT"][0]),
    (DiskReadOnlyError, -core.STATUS["DISK_READ_ONLY"][0]),
    (ShmqError, -core.STATUS["DISK_FULL"][0]),
)
"""What senders are told for an error; the first that it is."""


class AppendService:
    """Two threads: turns, and their keeper.

    Attributes:
        problem: why no further file can be made ready, in one line; None where one can.
    """

    def __init__(
        self,
        appender: core.Appender,
        hot_log: HotLog,
        memory: StoreMemory,
        *,
        files_ahead: Callable[[], int],
        derive_failure: Callable[[], ShmqError | None],
        check_room: Callable[[], None],
        on_session_ended: Callable[[], None],
        on_replica_need: Callable[[], None],
        on_tick: Callable[[], None],
    ) -> None:
        self._appender = appender
        self._hot_log = hot_log
        self._memory = memory
        self._files_ahead = files_ahead
        self._derive_failure = derive_failure
        self._check_room = check_room
        self._on_session_ended = on_session_ended
        self._on_replica_need = on_replica_need
        self._on_tick = on_tick
        self.problem: str | None = None
        self._refused = 0
        self._stopping = False
        self._thread = NamedThread(target=appender.run, name="shmq-append", daemon=True)
        self._keeper = NamedThread(target=self._keep, name="shmq-keeper", daemon=True)

    def start(self) -> None:
        """Begin to take messages."""
        self._thread.start()
        self._keeper.start()

    def stop(self) -> None:
        """Stop after the turn at hand; blocks until both threads have ended."""
        self._stopping = True
        self._appender.stop()
        if self._thread.is_alive():
            self._thread.join()
        self._appender.stop_events()
        if self._keeper.is_alive():
            self._keeper.join()

    def _keep(self) -> None:
        timeout_s = 0.0
        while True:  # until stop(): the keeper lives as long as the append thread
            events = self._appender.wait_events(timeout_s)
            if events & core.EVENT_STOP:
                return
            timeout_s = _IDLE_S
            try:
                if events & core.EVENT_ARENA or self._is_out_of_blocks():
                    self._make_blocks()
                self._on_replica_need()  # each time: what failed is tried again
                if not self._prepare_ahead():
                    timeout_s = _RETRY_S
                    if (failure := self._derive_failure()) is not None:
                        raise failure  # nobody frees the memory that is waited for
                self._refuse(None)
            except ShmqError as error:
                self._refuse(error)
                timeout_s = _REFUSED_RETRY_S
            if events & core.EVENT_SESSION:
                self._on_session_ended()
            self._on_tick()

    def _prepare_ahead(self) -> bool:
        """Make files ready until enough are; False if one must wait for the flusher."""
        size = self._hot_log.file_size_bytes
        while not self._stopping:  # bounded by the hot slots
            log_end = self._appender.state()["log_end"]
            ready_end = self._hot_log.ready_end
            if ready_end - (log_end - log_end % size) > self._files_ahead() * size:
                return True
            self._check_room()
            if not self._hot_log.try_prepare(ready_end):
                return ready_end - log_end > size
            self.trim()
        return True

    def trim(self) -> None:
        """Free the ConsumeQueue blocks of what is not in hot memory any more."""
        min_position = self._hot_log.positions[0]
        first = 0
        count = self._memory.control.load32(_QUEUE_ROW_COUNT_PLACE)
        while first < count:
            self._appender.trim(first, _TRIM_ROWS, min_position)
            first += _TRIM_ROWS

    def _make_blocks(self) -> None:
        """More ConsumeQueue blocks: by growing, or else by retiring the oldest file."""
        try:
            self._appender.grow_arena(self._memory.grow_arena())
        except ShmError:
            while self._hot_log.try_retire_oldest():  # bounded by the hot slots
                self.trim()
                if not self._is_out_of_blocks():
                    return
            if not (self._is_out_of_blocks() and self._appender.state()["arena_free_blocks"]):
                raise
            # A topic has gone meanwhile.
            self._appender.grow_arena(self._memory.arena.size_bytes // core.BLOCK_SIZE)

    def _is_out_of_blocks(self) -> bool:
        """Whether turns wait for blocks: said once as an event, and true until there are some."""
        return bool(self._appender.state()["blocked"] == _ARENA_FULL)

    def _refuse(self, error: ShmqError | None) -> None:
        """Say why sends will wait once what is ready is full; without an error, that they go on."""
        self.problem = None if error is None else f"appends wait: {error}"
        status = next((status for kind, status in _STATUSES if isinstance(error, kind)), 0)
        if status != self._refused:
            if error is not None:
                _log.error("%s", self.problem)
            else:
                _log.warning("appends go on")
            self._refused = status
            self._appender.set_status(status)


_QUEUE_ROW_COUNT_PLACE = control_place("append_positions", "queue_row_count")
