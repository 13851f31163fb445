"""A few CommitLog files without a broker: memfds of frames, and a reader of them, for tests of what
a client does with the log. The frames are the core's own; the segments it reads are laid out by
the core's own verbs.
"""

from __future__ import annotations

import os
import struct
from typing import Self

from shmq.core import core

FILE_SIZE = 64 * 1024
STORE_TIMESTAMP = 1_700_000_000_456
BORN_TIMESTAMP = 1_700_000_000_123
HOST = bytes([127, 0, 0, 1]) + (10911).to_bytes(4, "big")
ENTRY = struct.Struct("<QqQ")
BLANK_MAGIC = 0xCBD43194


def memfd(size: int, content: bytes = b"") -> int:
    """A memfd of `size` bytes that begins with `content`; the caller closes it."""
    fd = os.memfd_create("shmq-test", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    os.pwrite(fd, content, 0)
    return fd


def encode_properties(properties: dict[str, str]) -> bytes:
    return b"".join(
        name.encode() + b"\x01" + value.encode() + b"\x02" for name, value in properties.items()
    )


class LogInMemory:
    """Files of FILE_SIZE bytes, each a memfd; messages of one queue. A context manager."""

    def __init__(self, file_count: int = 2, *, begin_file: int = 0) -> None:
        self.begin = begin_file * FILE_SIZE
        self.file_fds = [memfd(FILE_SIZE) for _ in range(file_count)]
        self.entries: list[bytes] = []
        self._place = self.begin
        # Everything below the end of the last file counts as committed.
        with_control = memfd(core.control_size(4))
        self.control = core.Mapping(with_control, core.control_size(4), writable=True)
        core.init_control(
            self.control,
            file_size_bytes=FILE_SIZE,
            hot_slot_count=4,
            session_slot_count=4,
            queue_row_max=64,
            topic_row_max=64,
            arena_block_max=16,
            message_size_max=1 << 20,
            store_host=HOST,
            begin_position=self.begin + file_count * FILE_SIZE,
        )
        arena_fd = memfd(core.BLOCK_SIZE)
        self.arena = core.Mapping(arena_fd, core.BLOCK_SIZE)
        os.close(with_control)
        os.close(arena_fd)
        self.log_map = core.LogMap(file_size=FILE_SIZE)
        self.reader = core.Reader(self.control, self.arena, self.log_map)

    def map(self, *, hot: bool = False) -> None:
        """Map all files."""
        for number, fd in enumerate(self.file_fds):
            self.log_map.add(self.begin + number * FILE_SIZE, fd, hot=hot)

    def write(self, physical_offset: int, data: bytes) -> None:
        number, place = divmod(physical_offset - self.begin, FILE_SIZE)
        os.pwrite(self.file_fds[number], data, place)

    def put_frame(self, frame: bytes, tags_code: int = 0) -> int:
        """Append a frame as it is, where there is room for it; its physical_offset."""
        physical_offset = self._place
        self.write(physical_offset, frame)
        self._place += len(frame)
        self.entries.append(ENTRY.pack(physical_offset, tags_code, len(frame)))
        return physical_offset

    def put(
        self,
        body: bytes,
        properties: dict[str, str] | None = None,
        *,
        topic: str = "TopicA",
        tags_code: int = 0,
    ) -> int:
        """Append a message; its physical_offset."""
        size = 91 + len(topic) + len(body) + len(encode_properties(properties or {})) + 20
        room = FILE_SIZE - self._place % FILE_SIZE
        if size + 8 > room:
            self.write(self._place, struct.pack(">II", room, BLANK_MAGIC))
            self._place += room
        frame = core.encode_frame(
            topic.encode(),
            queue_id=3,
            queue_offset=len(self.entries),
            physical_offset=self._place,
            store_timestamp=STORE_TIMESTAMP,
            sys_flag=0,
            born_timestamp=BORN_TIMESTAMP,
            born_host=HOST,
            store_host=HOST,
            body=body,
            properties=encode_properties(properties or {}),
        )
        return self.put_frame(frame, tags_code)

    def read(
        self, queue_offset: int = 0, count: int = 1000, **options: object
    ) -> list[core.Message]:
        """The messages from queue_offset on; all of them must be readable."""
        data = b"".join(self.entries[queue_offset:])
        status, messages, _ = self.reader.read_entries(data, queue_offset, count, **options)  # type: ignore[arg-type]
        assert status == 0
        return messages

    def message(
        self, body: bytes = b"body", properties: dict[str, str] | None = None, topic: str = "TopicA"
    ) -> core.Message:
        """Append a message and give it back as received."""
        self.put(body, properties, topic=topic)
        if not self.log_map.files():
            self.map()
        return self.read(len(self.entries) - 1)[0]

    def close(self) -> None:
        self.reader.close()
        self.log_map.close()
        for fd in self.file_fds:
            os.close(fd)
        self.file_fds = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
