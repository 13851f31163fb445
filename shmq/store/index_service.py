"""The message index of one store: built behind the log, and asked.

What lives here: `IndexService`. A thread builds the index file of each complete CommitLog file, the
newest first, with processor time that nobody else wants (binding/index.c). Nothing waits for it: a
file that is asked for before its turn is built by whoever asks, and the file that still grows is
indexed in memory when it is asked for, up to the last committed message. So an index costs a send
nothing, and a lookup never misses what is stored.

Which process: the broker; its thread and those of lookups. Writes: `shmq/index/`. May fail:
DiskFullError, StoreError: the thread tries again; a lookup fails. A file that does not hold is
built anew when that shows.
"""

from __future__ import annotations

import bisect
import logging
import os
import threading
from typing import TYPE_CHECKING

from shmq.core import core
from shmq.errors import ShmqError, StoreCorruptError, StoreError, SystemBusyError
from shmq.store.durable_file import disk_error
from shmq.store.index_files import (
    FIND_MAX,
    IndexFile,
    Stopped,
    drop_index,
    index_path,
    index_positions,
    write_index,
)
from shmq.threads import NamedThread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from shmq.clock import Clock
    from shmq.store.hot_log import HotLog
    from shmq.store.log_files import LogFiles
    from shmq.store.message_store import LogPositions

__all__ = ["IndexService"]

_log = logging.getLogger("shmq.store")

_RETRY_S = 10.0
_LULL_STEP_S = 0.1
_LULL_STEP_BYTES = 5 << 20
"""Fewer bytes appended during a step are a lull: 50 MB/s, as for derived files."""
_LULL_STEPS = 50
"""A lull is waited for during this many steps; then the file is built all the same."""
_OPEN_FILES_MAX = 64
_FRAMES_AT_A_TIME = 16_384
"""Frames indexed in memory without letting go of it: about half a millisecond."""
_NONE = 1 << 63
"""No file begins there."""
_OK = core.STATUS["OK"][0]
_BLANK = core.STATUS["BLANK"][0]


class _Partial:
    """The keys of a file that is in memory, as far as they were looked at."""

    def __init__(self, file_position: int) -> None:
        self.file_position = file_position
        self.reached = file_position
        self.parts: list[bytes] = []
        """Entries in order of places."""

    def find(self, hash_: int) -> Iterator[tuple[int, int]]:
        """(place, second) of the entries of a hash, the newest first."""
        for part in reversed(self.parts):
            yield from reversed(core.index_find(part, hash_))


class IndexService:
    """The index of one store. Threads may share it."""

    def __init__(
        self,
        files: LogFiles,
        hot_log: HotLog,
        *,
        positions: Callable[[], LogPositions],
        clock: Clock,
    ) -> None:
        """Nothing happens yet.

        Args:
            files: the log.
            hot_log: what of it is in memory.
            positions: how far it is.
            clock: for the deadlines of lookups.
        """
        self._clock = clock
        self._files = files
        self._hot_log = hot_log
        self._positions = positions
        self._complete: list[int] = []
        self._waiting: set[int] = set()
        self._open: dict[int, IndexFile] = {}  # least recently used first
        self._partials: dict[int, _Partial] = {}
        self._lock = threading.Lock()  # of _open
        self._partial_lock = threading.Lock()
        self._changed = threading.Condition()  # of _complete and _waiting
        self._stopping = False
        self._is_expiring = False
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.failure: ShmqError | None = None
        """Why the next file could not be built at the last attempt; None where it could."""
        self._thread = NamedThread(target=self._run, name="shmq-index", daemon=True)

    # ---- life ------------------------------------------------------------------------------------

    def take(self, complete: Iterable[int], *, is_adopted: bool, is_foreign: bool) -> None:
        """Take over the index files that are there, before `start`. Files that do not hold go, and
        are built anew: nobody syncs them, so that a power cut leaves such.

        Args:
            complete: the complete files of the log, in order.
            is_adopted: memory outlived the broker, so there was no power cut.
            is_foreign: RocketMQ wrote the log last: what was indexed before may be gone.

        Raises:
            StoreError: a file that is of no use cannot be removed.
        """
        self._complete = list(complete)
        known = set(self._complete)
        folder = index_path(self._files.store_path, 0).parent
        try:
            for left in folder.glob("*.tmp"):
                left.unlink(missing_ok=True)
        except OSError as error:
            raise disk_error(f"clean {folder}", error) from error
        there = set(index_positions(self._files.store_path))
        stale = there if is_foreign else there - known
        if not is_adopted:
            stale |= {
                file_position for file_position in there - stale if self._is_torn(file_position)
            }
        for file_position in stale:
            drop_index(self._files.store_path, file_position)
        self._waiting = known - (there - stale)

    def _is_torn(self, file_position: int) -> bool:
        """Whether header or directory of an index file do not hold."""
        try:
            self._open_file(file_position).close()
        except StoreCorruptError as error:
            _log.warning("building an index file anew: %s", error)
            return True
        return False

    def start(self) -> None:
        """Begin to build."""
        self._thread.start()

    def stop(self) -> None:
        """End soon: what is not built is built by a successor."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._stop_fd >= 0:
            os.eventfd_write(self._stop_fd, 1)
        if self._thread.is_alive():
            self._thread.join()

    def close(self) -> None:
        """Close the files; the thread has ended and nobody asks any more."""
        with self._lock:
            for file in self._open.values():
                file.close()
            self._open.clear()
        fd, self._stop_fd = self._stop_fd, -1
        if fd >= 0:
            os.close(fd)

    def put(self, file_position: int) -> None:
        """The CommitLog file there is complete, synced, and may leave memory."""
        with self._changed:
            bisect.insort(self._complete, file_position)
            self._waiting.add(file_position)
            self._changed.notify_all()

    def expire(self) -> None:
        """Log files were removed: their index files go, too, in the service's thread."""
        with self._changed:
            self._is_expiring = True
            self._changed.notify_all()

    @property
    def waiting_count(self) -> int:
        """Complete files that are not built yet."""
        with self._changed:
            return len(self._waiting)

    # ---- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:  # until stop()
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_expiring or self._stopping)
                if self._stopping:
                    return
                self._is_expiring = False
            file_position = _NONE
            try:
                self._drop_expired()
                with self._changed:
                    if not self._waiting:
                        continue
                    file_position = max(self._waiting)
                self._wait_for_lull()
                write_index(self._files, file_position, is_idle=True, stop_fd=self._stop_fd)
                self._built(file_position)
            except Stopped:
                return
            except ShmqError as error:
                if file_position < self._positions().min_position:
                    continue  # it expired meanwhile
                if self.failure is None:
                    _log.error("index not built, trying again: %s", error)
                self.failure = error
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping, _RETRY_S)

    def _wait_for_lull(self) -> None:
        """Idle time is what nobody wants; memory and its caches are shared all the same."""
        with self._changed:
            for _ in range(_LULL_STEPS):
                if self._stopping:
                    return
                before = self._positions().committed_position
                self._changed.wait_for(lambda: self._stopping, _LULL_STEP_S)
                if self._positions().committed_position - before < _LULL_STEP_BYTES:
                    return

    def _built(self, file_position: int) -> None:
        self.failure = None
        self._forget(file_position)
        with self._changed:
            self._waiting.discard(file_position)

    def _drop_expired(self) -> None:
        """Remove the index files of log files that retention has taken."""
        min_position = self._positions().min_position
        with self._changed:
            gone = self._complete[: bisect.bisect_left(self._complete, min_position)]
        for file_position in gone:
            self._forget(file_position)
            drop_index(self._files.store_path, file_position)
            with self._changed:
                self._complete.remove(file_position)
                self._waiting.discard(file_position)

    # ---- lookups ---------------------------------------------------------------------------------

    def find(self, hash_: int, *, begin_ms: int, end_ms: int, deadline_ns: int) -> Iterator[int]:
        """Yield the physical_offsets of messages that may have a key, the newest first.

        Whoever asked looks at the messages: another key may have the same hash.

        Args:
            hash_: from `index_files.key_hash`.
            begin_ms: stored then or later, ms since 1970.
            end_ms: stored then or before.
            deadline_ns: of the clock's monotonic_ns().

        Raises:
            SystemBusyError: the deadline is over; what was given until then stands.
            StoreError and its kin: a file cannot be read or built.
        """
        now = self._positions()
        size = self._files.file_size_bytes
        first = now.min_position - now.min_position % size
        last = now.committed_position - now.committed_position % size
        for file_position in range(last, first - 1, -size):
            below = 1 << 32
            while True:  # ends: `below` falls
                _check(self._clock, deadline_ns)
                try:
                    found = self._find_in(file_position, hash_, below, begin_ms, end_ms)
                except StoreError:
                    if file_position < self._positions().min_position:
                        return  # it expired meanwhile, and so did what is older
                    raise
                for place, second in found:
                    if begin_ms // 1000 <= second <= end_ms // 1000:
                        yield file_position + place
                if len(found) < FIND_MAX:
                    break
                below = found[-1][0]

    def _find_in(
        self, file_position: int, hash_: int, below: int, begin_ms: int, end_ms: int
    ) -> list[tuple[int, int]]:
        """At most FIND_MAX entries of one file."""
        with self._changed:
            at = bisect.bisect_left(self._complete, file_position)
            is_complete = self._complete[at : at + 1] == [file_position]
        if not is_complete:
            found = self._find_in_memory(file_position, hash_, below)
            if found is not None:
                return found
        self._partials.pop(file_position, None)
        for attempt in range(2):  # once more if a page does not hold and the file is built anew
            with self._lock:
                file = self._get(file_position)
                header = file.header
                if header.last_store_timestamp < begin_ms or header.first_store_timestamp > end_ms:
                    return []
                try:
                    return file.find(hash_, below=below)
                except StoreCorruptError as error:
                    if attempt:
                        raise
                    _log.warning("building an index file anew: %s", error)
            write_index(self._files, file_position)
            self._built(file_position)
        raise AssertionError("not reached")

    def _get(self, file_position: int) -> IndexFile:
        """The open file, the most recently used now; built if it is missing or does not hold."""
        file = self._open.pop(file_position, None)
        if file is None:
            try:
                file = self._open_file(file_position)
            except (FileNotFoundError, StoreCorruptError):
                write_index(self._files, file_position)
                with self._changed:
                    self._waiting.discard(file_position)
                file = self._open_file(file_position)
        self._open[file_position] = file
        if len(self._open) > _OPEN_FILES_MAX:
            self._open.pop(next(iter(self._open))).close()
        return file

    def _open_file(self, file_position: int) -> IndexFile:
        return IndexFile(
            index_path(self._files.store_path, file_position),
            file_position=file_position,
            file_size_bytes=self._files.file_size_bytes,
        )

    def _forget(self, file_position: int) -> None:
        """Look at the file anew next time: another one may lie there."""
        with self._lock:
            file = self._open.pop(file_position, None)
            if file is not None:
                file.close()
        with self._partial_lock:
            self._partials.pop(file_position, None)

    # ---- files in memory -------------------------------------------------------------------------

    def _find_in_memory(
        self, file_position: int, hash_: int, below: int
    ) -> list[tuple[int, int]] | None:
        """Entries of a file that may still grow; None if it is not in memory any more."""
        with self._partial_lock:
            partial = self._partials.get(file_position)
            if partial is None:
                partial = self._partials[file_position] = _Partial(file_position)
            end = min(
                self._positions().committed_position, file_position + self._files.file_size_bytes
            )
            while partial.reached < end:  # each round moves on
                if not self._advance(partial, end):
                    self._partials.pop(file_position, None)
                    return None
            found = []
            for entry in partial.find(hash_):
                if entry[0] < below:
                    found.append(entry)
                    if len(found) == FIND_MAX:
                        break
            return found

    def _advance(self, partial: _Partial, end: int) -> bool:
        """Index some more frames; False if the file is not in memory any more."""
        file_position = partial.file_position
        file_end = file_position + self._files.file_size_bytes

        def look(view: memoryview) -> tuple[int, bytes]:
            status, place, entries, *_ = core.index_memory(
                view,
                file_position=file_position,
                begin=partial.reached,
                end=end,
                frame_limit=_FRAMES_AT_A_TIME,
            )
            if status == _BLANK:
                return end, entries
            if status == _OK:
                return place, entries
            # Damage that recovery passed over: frames before it count when they are met again.
            behind, status = core.resync(
                view,
                position=file_position,
                begin=min(place + 1, end),
                end=end,
                file_end=file_end,
                demands=0,
            )
            _, _, entries, *_ = core.index_memory(
                view, file_position=file_position, begin=partial.reached, end=place, frame_limit=end
            )
            return (behind if status == _OK else end), entries

        reached = self._hot_log.look(file_position, look)
        if reached is None:
            return False
        partial.reached, entries = reached
        if entries:
            partial.parts.append(entries)
        return True


def _check(clock: Clock, deadline_ns: int) -> None:
    if clock.monotonic_ns() > deadline_ns:
        raise SystemBusyError(
            "look up a key: the time for it is over; ask for a shorter span of time, or again: "
            "what was indexed meanwhile stays"
        )
