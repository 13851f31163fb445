"""How a CommitLog file goes, with everything that belongs to it. This is the one place for that.

What lives here: `LogExpiry`. Whatever is derived from a log file, one file for one file, is removed
by `DeriveService.expire`, which this calls before the log file itself. The order makes every death
in between harmless: readers are turned away first, then what is derived goes (the floors of its
queues are on disk before), then the file. What is left over is found by the next round, since it
lies below the minimum position, or by recovery, which derives it anew. The index of keys is not
waited for: its service drops what lies below that position by itself (index_service.py).

Which process: the broker, retention's thread. Writes: queue rows and min_position through the
Appender; removes files. May fail: DiskFullError, StoreError; called again, it goes on.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from shmq.store.quarantine import Quarantine

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmq.core import core
    from shmq.store.derive import DeriveService
    from shmq.store.hot_log import HotLog
    from shmq.store.log_files import LogFiles
    from shmq.store.queues import Queues

__all__ = ["ExpiredFile", "ExpiredSpan", "KeptFile", "LogExpiry"]

_log = logging.getLogger("shmq.store")


class KeptFile(NamedTuple):
    """A complete file of the log, which may go."""

    file_position: int
    """physical_offset of its first byte."""
    size_bytes: int
    """What it takes on disk."""
    last_store_ms: int
    """When its newest message was stored, ms since 1970."""


class ExpiredSpan(NamedTuple):
    """What a queue lost with a file."""

    topic: str
    queue_id: int
    begin: int
    """queue_offset of the first message that is gone."""
    end: int
    """queue_offset behind the last: the queue's minimum now."""


class ExpiredFile(NamedTuple):
    """A file that went."""

    file_position: int
    size_bytes: int
    spans: tuple[ExpiredSpan, ...]
    """By queue; those of deleted topics are not among them."""


class LogExpiry:
    """Removes the oldest file of the log."""

    def __init__(
        self,
        appender: core.Appender,
        hot_log: HotLog,
        queues: Queues,
        derive: DeriveService,
        files: LogFiles,
        *,
        trim: Callable[[], None],
        forget: Callable[[int], None],
    ) -> None:
        """Nothing happens yet; `trim` frees the ConsumeQueue blocks of what left memory, `forget`
        has everybody leave a file that was removed.
        """
        self._appender = appender
        self._hot_log = hot_log
        self._queues = queues
        self._derive = derive
        self._files = files
        self._trim = trim
        self._forget = forget
        self._times: dict[int, int] = {}

    def files(self, now_ms: int) -> list[KeptFile]:
        """The files that may go, oldest first: complete, derived, and followed by another.

        Args:
            now_ms: the time. A file without messages, or with some from the future (the clock was
                wrong then), counts as filled when it was first seen here.

        Raises:
            StoreError: the folder cannot be read.
        """
        derived = self._derive.last_store_times(skip=self._times)
        for file_position, last_store_ms in derived.items():
            is_sane = 0 < last_store_ms <= now_ms
            self._times[file_position] = last_store_ms if is_sane else now_ms
        size = self._files.file_size_bytes
        kept = []
        for log in self._files.files()[:-1]:
            known = self._times.get(log.file_position)
            if known is None:
                if not self._is_half_gone(log.file_position):
                    break  # not derived yet, and nothing behind it is
                known = 0
            kept.append(KeptFile(log.file_position, size, known))
        return kept

    def _is_half_gone(self, file_position: int) -> bool:
        """Whether it is older than all that is derived: what belonged to it went before."""
        first = self._derive.first_position
        return first is not None and file_position < first

    def expire(self, file_position: int) -> ExpiredFile | None:
        """Remove the oldest file; None while it cannot leave memory.

        Raises:
            DiskFullError, StoreError: it is half gone; call it again.
        """
        size = self._files.file_size_bytes
        if not self._hot_log.try_retire(file_position):
            return None
        self._trim()
        spans = []
        for key, end in self._derive.queue_ends(file_position).items():
            begin = self._queues.raise_min(*key, end)
            if begin is not None:
                spans.append(ExpiredSpan(*key, begin, end))
        self._appender.set_min_position(file_position + size)
        self._derive.expire(file_position)
        self._files.delete(file_position)
        self._forget(file_position)
        self._times.pop(file_position, None)
        self._forget_holes(file_position + size)
        return ExpiredFile(file_position, size, tuple(spans))

    def _forget_holes(self, min_position: int) -> None:
        path = Quarantine.path(self._files.store_path)
        known = Quarantine.load(path)
        left = known.without_holes(0, min_position)
        if left is not known:
            left.save(path)
