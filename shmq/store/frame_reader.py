"""Copies of messages of one queue, for readers that do not map the log.

What lives here: `FrameReader`. It finds the entries of a queue as every reader does (lookup.py, or
the ConsumeQueue files) and copies their frames from memory or their file, whole and unchanged.
Bounded by the caller in messages and bytes, so that no answer holds more memory than that.

Which process: the broker, any thread. Writes nothing. Blocks for the disk where memory does not
have it. May fail: StoreError for a file that cannot be read; MessageTooLargeError.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, NamedTuple

from shmq.errors import MessageTooLargeError, StoreError

if TYPE_CHECKING:
    from collections.abc import Collection

    from shmq.store.derive import DeriveService
    from shmq.store.hot_log import HotLog
    from shmq.store.log_files import LogFiles
    from shmq.store.lookup import Lookup
    from shmq.store.queues import Queues

__all__ = ["FrameReader", "Frames"]

_ENTRY = struct.Struct("<QqQ")
_FRAME_SIZE_MIN = 91
"""Fixed fields of a record; less is a hole (consume_queue.h)."""
_QUEUE_OFFSET_PLACE = 20
_PHYSICAL_OFFSET_PLACE = 28
_LOOK_MAX = 4096
"""Entries looked at for one answer: a filter that nothing passes comes to an end, too."""


class Frames(NamedTuple):
    """What was found."""

    frames: bytes
    """Frame behind frame, in order of their queue_offset."""
    frame_count: int
    """How many."""
    next_offset: int
    """The queue_offset to go on at."""
    min_offset: int
    """First kept in the queue."""
    max_offset: int
    """Behind the last that may be read."""
    last_position: int
    """physical_offset of the last message looked at; -1: of none."""


class FrameReader:
    """Reads of one store. Threads may share it."""

    def __init__(
        self,
        lookup: Lookup,
        queues: Queues,
        hot_log: HotLog,
        files: LogFiles,
        derive: DeriveService,
    ) -> None:
        self._lookup = lookup
        self._queues = queues
        self._hot_log = hot_log
        self._files = files
        self._derive = derive

    def read(
        self,
        topic: str,
        queue_id: int,
        queue_offset: int,
        *,
        count_max: int,
        bytes_max: int,
        frame_bytes_max: int,
        tag_codes: Collection[int] | None = None,
    ) -> Frames:
        """Copies of the messages from queue_offset on.

        Args:
            topic: the topic.
            queue_id: of it.
            queue_offset: where to begin.
            count_max: messages at most.
            bytes_max: bytes at most, but for one message, which always may come.
            frame_bytes_max: bytes of that one message at most.
            tag_codes: hashes of the tags that are wanted; None: all messages.

        Raises:
            TopicNotExistError: there is no such queue.
            MessageTooLargeError: the first message is larger than frame_bytes_max.
            StoreError: a file cannot be read.
        """
        now = self._queues.offsets(self._queues.find(topic, queue_id))
        low, high = now.min_queue_offset, now.visible_max
        parts: list[bytes] = []
        size = 0
        at, last = queue_offset, min(high, queue_offset + _LOOK_MAX)
        position = -1
        with _OpenFiles(self._files, self._hot_log.file_size_bytes) as files:
            while low <= at < last:
                begin = at
                at, entries = self._entries(topic, queue_id, at, min(last - at, count_max))
                for place, code, frame_size in _ENTRY.iter_unpack(entries):
                    if frame_size >= _FRAME_SIZE_MIN and (tag_codes is None or code in tag_codes):
                        if parts and (len(parts) >= count_max or size + frame_size > bytes_max):
                            return Frames(b"".join(parts), len(parts), at, low, high, position)
                        if frame_size > frame_bytes_max:
                            raise MessageTooLargeError(
                                f"pull queue {queue_id} of {topic} at {at}: a record of "
                                f"{frame_size} bytes, and an answer holds {frame_bytes_max}",
                                hint="who consumes larger messages needs the right to map the log",
                            )
                        frame = self._frame(files, place, frame_size, at)
                        if frame is not None:
                            parts.append(frame)
                            size += frame_size
                    at += 1
                    position = place
                if at == begin:
                    break  # what is behind expired this moment
        return Frames(b"".join(parts), len(parts), at, low, high, position)

    def _entries(
        self, topic: str, queue_id: int, queue_offset: int, count: int
    ) -> tuple[int, bytes]:
        """Entries from queue_offset on, and the queue_offset of the first, above it where those
        between are gone; none where all are.
        """
        handle = self._queues.find(topic, queue_id)
        entries = self._lookup.hot_entries(handle, queue_offset, count)
        if entries is not None:
            return queue_offset, entries
        cold = self._derive.read(topic, queue_id, queue_offset, count)
        return (queue_offset, b"") if cold is None else cold

    def _frame(
        self, files: _OpenFiles, physical_offset: int, size: int, queue_offset: int
    ) -> bytes | None:
        """A frame; None if its record is lost: it is not what its entry says."""
        frame = self._hot_log.read(physical_offset, size) or files.read(physical_offset, size)
        if frame is None or len(frame) != size:
            return None
        if int.from_bytes(frame[:4], "big") != size:
            return None
        said = struct.unpack_from(">QQ", frame, _QUEUE_OFFSET_PLACE)
        return frame if said == (queue_offset, physical_offset) else None


class _OpenFiles:
    """The file read last; a context manager."""

    def __init__(self, files: LogFiles, file_size_bytes: int) -> None:
        self._files = files
        self._file_size_bytes = file_size_bytes
        self._position = -1
        self._fd = -1

    def read(self, physical_offset: int, size: int) -> bytes | None:
        """Bytes of the file there; None if it is not kept (any more)."""
        place = physical_offset % self._file_size_bytes
        if self._position != physical_offset - place:
            self.close()
            try:
                self._fd = self._files.open(physical_offset - place, readonly=True)
            except StoreError:
                return None
            self._position = physical_offset - place
        return os.pread(self._fd, size, place)

    def close(self) -> None:
        """Close it."""
        fd, self._fd, self._position = self._fd, -1, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> _OpenFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
