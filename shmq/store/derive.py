"""What is derived from complete CommitLog files, made behind the flusher's back.

What lives here: `DeriveService`: one thread that turns each completed file into its ConsumeQueue
file, and the reads of those files. A file leaves hot memory only when this has been done. Which
process: the broker. Writes: `shmq/consumequeue/`. May fail: DiskFullError, StoreError: it is tried
again each second, and hot memory stays in use until it has worked.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING

from shmq.errors import ShmqError

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmq.store.consume_queue_files import ConsumeQueueFiles

__all__ = ["DeriveService"]

_log = logging.getLogger("shmq.store")

_RETRY_S = 1.0


class DeriveService:
    """Derives complete files in order. Threads may share it."""

    def __init__(self, files: ConsumeQueueFiles, *, on_derived: Callable[[int], None]) -> None:
        self._files = files
        self._on_derived = on_derived
        self._waiting: deque[int] = deque()
        self._lock = threading.Lock()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="shmq-derive", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Derive what waits, and end; what cannot be is derived when the store is opened again."""
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
                    return
                file_position = self._waiting[0]
            try:
                with self._lock:
                    self._files.add(file_position)
            except ShmqError as error:
                _log.error("file not derived, trying again: %s", error)
                with self._changed:
                    if self._changed.wait_for(lambda: self._stopping, _RETRY_S):
                        return
                continue
            with self._changed:
                self._waiting.popleft()
            self._on_derived(file_position)

    def close(self) -> None:
        """Close the files; the thread has ended."""
        self._files.close()
