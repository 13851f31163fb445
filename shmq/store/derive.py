"""What is derived from complete CommitLog files, made behind the flusher's back.

What lives here: `DeriveService`: one thread that turns each completed file into its ConsumeQueue
file, and the reads of those files. A file leaves hot memory only when this has been done; as long
as there is memory enough it is done in a lull of the appends, for it costs more processor time than
they do. Which process: the broker. Writes: `shmq/consumequeue/`. May fail: DiskFullError,
StoreError: it is tried again each second, and hot memory stays in use until it has worked.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING

from shmq.errors import ShmqError
from shmq.store.consume_queue_files import load_floors
from shmq.store.recovery import QueueRange
from shmq.threads import NamedThread

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping

    from shmq.store.consume_queue_files import ConsumeQueueFiles, QueueKey

__all__ = ["DeriveService"]

_log = logging.getLogger("shmq.store")

_RETRY_S = 1.0
_LULL_STEP_S = 0.02
_LULL_STEP_BYTES = 1 << 20
"""Fewer bytes appended during a step are a lull: 50 MB/s leave most of a core."""
_LULL_STEPS = 50
"""A lull is waited for during this many steps; then the file is derived all the same."""


class DeriveService:
    """Derives complete files in order. Threads may share it.

    Attributes:
        failure: why the next file could not be derived at the last attempt; None where it could.
    """

    def __init__(
        self,
        files: ConsumeQueueFiles,
        *,
        on_derived: Callable[[int], None],
        log_end: Callable[[], int],
        waiting_max: int,
    ) -> None:
        """Nothing happens yet.

        Args:
            files: where to.
            on_derived: called with the position of each file that is done, in the service's thread.
            log_end: the physical_offset behind the last message appended.
            waiting_max: files that may wait for a lull; with more, none is waited for.
        """
        self._files = files
        self._on_derived = on_derived
        self._log_end = log_end
        self._waiting_max = waiting_max
        self._waiting: deque[int] = deque()
        self._lock = threading.Lock()
        self._changed = threading.Condition()
        self._stopping = False
        self.failure: ShmqError | None = None
        self._thread = NamedThread(target=self._run, name="shmq-derive", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End when all complete files are derived: no more of them wait than hot memory has room
        for, and opening the store again would do the same. Those that the disk refuses are left to
        that. Blocks for the processor and the disk.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def put(self, file_position: int) -> None:
        """The CommitLog file there is complete and synced."""
        with self._changed:
            self._waiting.append(file_position)
            self._changed.notify_all()

    def is_derived(self, file_position: int) -> bool:
        """Whether the file's ConsumeQueue file is made."""
        with self._lock:
            return file_position in self._files.file_positions[-64:]

    @property
    def first_position(self) -> int | None:
        """The oldest file that is derived."""
        with self._lock:
            return next(iter(self._files.file_positions), None)

    def last_store_times(self, *, skip: Container[int] = ()) -> dict[int, int]:
        """By file: when its newest message was stored, ms since 1970; 0: it has none.

        Raises:
            StoreError and its kin: a file had to be built anew and could not be.
        """
        with self._lock:
            return {
                file_position: self._files.last_store_timestamp(file_position)
                for file_position in self._files.file_positions
                if file_position not in skip
            }

    def queue_ends(self, file_position: int) -> dict[QueueKey, int]:
        """By queue: the queue_offset behind its last message in a file; nothing of a file whose
        derived files went already. Errors as `last_store_times`.
        """
        with self._lock:
            if file_position not in self._files.file_positions:
                return {}
            return self._files.queue_ends(file_position)

    def raise_floors(self, ends: Mapping[QueueKey, int]) -> None:
        """Remember how far queues were of which no message is kept; as ConsumeQueueFiles does."""
        with self._lock:
            self._files.raise_floors(ends)

    def cold_queues(self) -> dict[QueueKey, QueueRange]:
        """As recovery finds them: RecoveredLog.cold_queues.

        Raises:
            StoreCorruptError, StoreError: the list of what retention took cannot be read.
        """
        with self._lock:
            floors = load_floors(self._files.floors_path)
            found = {key: QueueRange(end, end) for key, end in floors.items()}
            return found | {key: QueueRange(low, high) for key, low, high in self._files.queues()}

    def expire(self, file_position: int) -> None:
        """Remove everything that is derived from the oldest log file. Here goes whatever else there
        will be one of for each log file; called again, it does what is left.

        Raises:
            DiskFullError, StoreError: call it again.
        """
        with self._lock:
            if file_position in self._files.file_positions:
                self._files.expire(file_position)

    def read(
        self, topic: str, queue_id: int, queue_offset: int, entry_count: int
    ) -> tuple[int, bytes] | None:
        """Entries of a queue from the files: (queue_offset of the first, 24 bytes each), or None if
        no file has that offset or one behind it. Blocks for the disk.

        Raises:
            StoreError and its kin: a file had to be built anew and could not be.
        """
        with self._lock:
            found = self._files.read(topic, queue_id, queue_offset, entry_count)
            return None if found is None else (found[0], bytes(found[1]))

    def _run(self) -> None:
        while True:  # until stop()
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if not self._waiting:
                    return  # stopping
                file_position = self._waiting[0]
            self._wait_for_lull()
            try:
                with self._lock:
                    self._files.add(file_position)
            except ShmqError as error:
                if self.failure is None:
                    _log.error("file not derived, trying again: %s", error)
                self.failure = error
                if self._stopping:
                    return
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping, _RETRY_S)
                continue
            self.failure = None
            with self._changed:
                self._waiting.popleft()
            self._on_derived(file_position)

    def _wait_for_lull(self) -> None:
        with self._changed:
            for _ in range(_LULL_STEPS):
                if self._stopping or len(self._waiting) > self._waiting_max:
                    return
                before = self._log_end()
                self._changed.wait(_LULL_STEP_S)
                if self._log_end() - before < _LULL_STEP_BYTES:
                    return

    def close(self) -> None:
        """Close the files; the thread has ended."""
        self._files.close()
