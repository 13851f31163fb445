"""The flusher's thread: which file it writes, and what happens when the disk refuses.

What lives here: `FlushService`. The bytes are moved by the core (binding/flush.c) without the GIL;
this thread only opens the next file and judges errors. Which process: the broker. Writes: CommitLog
files, `flushed_position`. May fail: an error of the disk ends the service for good; the store is
told through `on_failed` and takes no more messages.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from typing import TYPE_CHECKING

from shmq.core import core
from shmq.errors import FlushFailedError
from shmq.threads import NamedThread

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmq.store.hot_log import HotLog

__all__ = ["FlushService"]

_log = logging.getLogger("shmq.store")

_STOPPED = core.STATUS["STOPPED"][0]
_OK = core.STATUS["OK"][0]


class FlushService:
    """Runs the flusher file by file in one thread."""

    def __init__(
        self,
        appender: core.Appender,
        hot_log: HotLog,
        *,
        interval_s: float,
        unflushed_bytes_max: int,
        on_failed: Callable[[FlushFailedError], None],
        on_file_complete: Callable[[int], None],
    ) -> None:
        self._flusher = core.Flusher(appender, interval=interval_s, bytes_max=unflushed_bytes_max)
        self._hot_log = hot_log
        self._on_failed = on_failed
        self._on_file_complete = on_file_complete
        self._stopping = threading.Event()
        self._thread = NamedThread(target=self._run, name="shmq-flush", daemon=True)

    def start(self, file_position: int) -> None:
        """Begin with the file at `file_position`, in which flushed_position lies."""
        self._file_position = file_position
        self._thread.start()

    def stop(self) -> None:
        """Flush what is committed, then end the thread. Blocks for as long as the disk takes."""
        self._stopping.set()
        self._flusher.stop()
        self._hot_log.interrupt()
        if self._thread.is_alive():
            self._thread.join()

    def set_interval(self, interval_s: float) -> None:
        """How long ASYNC_FLUSH gathers a group, in seconds."""
        self._flusher.set_interval(interval_s)

    def _run(self) -> None:
        position = self._file_position
        while True:  # one round per file, until a stop or an error
            ready = self._hot_log.wait_ready(position, self._stopping)
            if ready is None:
                return
            hot, fd = ready
            status, error, what = self._flusher.run(fd, position, hot.mapping)
            if status == _STOPPED:
                return
            if status != _OK:
                failure = FlushFailedError(
                    f"{what} the CommitLog file at {position}: {os.strerror(error)} "
                    f"({errno.errorcode.get(error, error)}); the store takes no more messages: "
                    "see to the disk, then restart the broker"
                )
                _log.error("flush failed: %s", failure)
                self._on_failed(failure)
                return
            self._hot_log.file_complete(position)
            self._on_file_complete(position)
            position += self._hot_log.file_size_bytes
