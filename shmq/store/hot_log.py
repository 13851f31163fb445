"""The hot CommitLog: which file lies in which segment; making the next ready, retiring the oldest.

What lives here: `HotLog`. A file becomes ready when its memory and its file on disk are prepared;
it retires when the file is complete and synced, the slaves in sync have copied it or were waited
for, and its slot is wanted for a newer one. Memory that
every client has left is used again, other memory is unlinked and replaced.

Which process: the broker's keeper thread; `try_retire` is retention's, `wait_ready` and
`file_complete` are the flusher's.
Writes: hot slots (through the Appender), CommitLog files made ready. May fail: DiskFullError and
ShmFullError from `prepare`; nothing is half done then, and it may be called again.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, TypeVar

from shmq.clock import SYSTEM_CLOCK

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmq.core import core
    from shmq.store.log_channel import LogChannel
    from shmq.store.log_files import LogFiles
    from shmq.store.memory import HotSegment, StoreMemory

__all__ = ["HotLog", "SLAVES_WAIT_NS"]

SLAVES_WAIT_NS = 200_000_000
"""How long a file that could leave memory waits for slaves in sync: some 100 MB of copying. Then
they read the file instead; senders wait for memory, and for nobody who was stopped.
"""

_T = TypeVar("_T")


class HotLog:
    """Files in hot memory, by the physical_offset of their first byte."""

    def __init__(
        self,
        appender: core.Appender,
        memory: StoreMemory,
        files: LogFiles,
        channel: LogChannel,
        *,
        file_size_bytes: int,
        segment_count: int,
        zero_written: bool,
        remap_timeout_s: float,
        retired_bytes_max: int,
        is_copied: Callable[[int], bool],
    ) -> None:
        """Nothing happens yet; `is_copied`: whether the slaves in sync have all below a
        physical_offset. A file stays for them, for SLAVES_WAIT_NS at most: who becomes master goes
        on with this memory, which must reach back to the end of its own log.
        """
        self.file_size_bytes = file_size_bytes
        self.segment_count = segment_count
        self._appender = appender
        self._memory = memory
        self._files = files
        self._channel = channel
        self._zero_written = zero_written
        self._remap_timeout_s = remap_timeout_s
        self._retired_bytes_max = retired_bytes_max
        self._is_copied = is_copied
        self._awaited = (-1, 0)
        """The file that waits for slaves, and since when."""
        self._ready: dict[int, tuple[HotSegment, int]] = {}
        self._spare: list[HotSegment] = []
        self._unwanted: list[int] = []
        """Numbers of segments that are to go: a full disk may not take the list without them."""
        self._complete_end = 0
        self._derived_end = 0
        self._changed = threading.Condition()
        self._retiring = threading.Lock()

    # ---- the keeper's side -----------------------------------------------------------------------

    def adopt(self, file_position: int, hot: HotSegment, fd: int) -> None:
        """Take over a file that lies in memory already (adoption, or the last file at recovery)."""
        with self._changed:
            self._ready[file_position] = (hot, fd)
            self._changed.notify_all()
        self._channel.leave_behind(file_position)
        self._channel.offer(file_position, hot.segment)
        self._channel.announce(file_position)

    def set_complete(self, end_position: int) -> None:
        """Files below `end_position` are complete and synced (recovery)."""
        self._complete_end = max(self._complete_end, end_position)

    def set_derived(self, file_position: int) -> None:
        """The ConsumeQueue file of a complete file is made: it may leave memory."""
        self._derived_end = max(self._derived_end, file_position + self.file_size_bytes)

    @property
    def ready_end(self) -> int:
        """Behind the last file that is ready."""
        return max(self._ready, default=-self.file_size_bytes) + self.file_size_bytes

    @property
    def positions(self) -> list[int]:
        """Files in hot memory, oldest first."""
        return sorted(self._ready)

    def try_prepare(self, file_position: int) -> bool:
        """Make the file at `file_position`, the next one, ready. False: its slot still holds a file
        that is not synced yet. Takes tens of milliseconds where memory must be made.

        Raises:
            DiskFullError, ShmFullError: no room; nothing has changed.
        """
        with self._retiring:
            self._drop_unwanted()
        old = file_position - self.segment_count * self.file_size_bytes
        if old in self._ready and not self._retire(old):
            return False
        fd = self._files.make_ready(file_position, zero_written=self._zero_written)
        try:
            hot = self._spare.pop() if self._spare else self._memory.create_hot()
        except BaseException:
            os.close(fd)
            self._files.delete(file_position)
            raise
        # Offered before anything can be appended there: a client that asks for the file meanwhile
        # must get its memory, not the file, which has nothing yet. Announced once a successor would
        # find the segment in its slot: other memory it makes anew, whatever clients have mapped.
        self._channel.offer(file_position, hot.segment)
        self._appender.ready(file_position, hot.mapping, hot.number)
        with self._changed:
            self._ready[file_position] = (hot, fd)
            self._changed.notify_all()
        self._channel.announce(file_position)
        return True

    def try_retire_oldest(self) -> bool:
        """Take the oldest complete file out of memory before its slot is wanted, for the sake of
        its ConsumeQueue blocks. False: there is none but the last two.
        """
        positions = self.positions
        return len(positions) > 2 and self._retire(positions[0])

    def try_retire(self, file_position: int) -> bool:
        """Take the oldest file out of memory for good, for retention; True where it is not there
        (any more). False: it must stay, as one of the last two, or as one that is not complete.
        """
        positions = self.positions
        if file_position not in positions:
            return True
        return len(positions) > 2 and file_position == positions[0] and self._retire(file_position)

    def _retire(self, file_position: int) -> bool:
        """Take a file out of memory; False if it is not complete, synced and derived yet."""
        with self._retiring:  # the keeper and retention may want the same one
            return file_position not in self._ready or self._retire_now(file_position)

    def _retire_now(self, file_position: int) -> bool:
        if file_position + self.file_size_bytes > min(self._complete_end, self._derived_end):
            return False
        if not self._is_copied(file_position + self.file_size_bytes):
            now_ns = SYSTEM_CLOCK.monotonic_ns()
            if self._awaited[0] != file_position:
                self._awaited = (file_position, now_ns)
            if now_ns - self._awaited[1] < SLAVES_WAIT_NS:
                return False
        hot, fd = self._ready[file_position]
        self._appender.retire(file_position)
        with self._changed:
            del self._ready[file_position]
        os.close(fd)
        if self._channel.retire(file_position, self._remap_timeout_s):
            self._spare.append(hot)
        else:
            self._unwanted.append(hot.number)
            self._channel.enforce_budget(self._retired_bytes_max)
            self._drop_unwanted()
        return True

    def _drop_unwanted(self) -> None:
        while self._unwanted:
            self._memory.drop_hot(self._unwanted[0])
            del self._unwanted[0]

    def close(self) -> None:
        """Close the files' fds; the memory is the store memory's."""
        with self._changed:
            for _, fd in self._ready.values():
                os.close(fd)
            self._ready.clear()

    # ---- any thread ------------------------------------------------------------------------------

    def read(self, physical_offset: int, size: int) -> bytes | None:
        """A copy of bytes of one file; None if that file is not in memory (any more)."""
        place = physical_offset % self.file_size_bytes
        with self._changed:  # a file leaves under this lock before its memory is used again
            found = self._ready.get(physical_offset - place)
            if found is None:
                return None
            with memoryview(found[0].mapping) as view:
                return bytes(view[place : place + size])

    def look(self, file_position: int, use: Callable[[memoryview], _T]) -> _T | None:
        """What `use` makes of a file's memory, which it does not keep; None if that file is not in
        memory (any more). Nothing can leave memory meanwhile: a millisecond at most.
        """
        with self._changed:
            found = self._ready.get(file_position)
            if found is None:
                return None
            with memoryview(found[0].mapping) as view:
                return use(view)

    # ---- the flusher's side ----------------------------------------------------------------------

    def wait_ready(
        self, file_position: int, stopping: threading.Event
    ) -> tuple[HotSegment, int] | None:
        """The segment and fd of a file, once it is ready; None if `stopping` is set before."""
        with self._changed:
            self._changed.wait_for(lambda: file_position in self._ready or stopping.is_set())
            return self._ready.get(file_position)

    def interrupt(self) -> None:
        """Makes wait_ready look at its `stopping` event."""
        with self._changed:
            self._changed.notify_all()

    def file_complete(self, file_position: int) -> None:
        """The file is complete and synced."""
        self._complete_end = file_position + self.file_size_bytes
