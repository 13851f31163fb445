"""The append role in a thread of this process, over memfds: for tests that take the role's own
verbs, or need a log that nobody flushes and no file is prepared for. Appender, rings and memory are
the product's; what a MessageStore adds (files, manifest, names) is not needed there.
"""

from __future__ import annotations

import os
import threading
from typing import Self

from shmq.core import core
from tests.unit.core.log_in_memory import HOST, memfd

FILE_SIZE = 256 * 1024
LANE_CAPACITY = 64 * 1024
COMPLETIONS = 64


def mapped(size: int, *, reserve: int = 0) -> core.Mapping:
    fd = memfd(size)
    mapping = core.Mapping(fd, size, writable=True, reserve=reserve)
    os.close(fd)
    return mapping


class StoreInThread:
    """One session of two lanes, one queue, as many hot segments as asked. A context manager."""

    def __init__(self, hot_count: int = 2) -> None:
        row, topic_row = core.LAYOUT["queue_row"][0], core.LAYOUT["topic_row"][0]
        self.control = mapped(core.control_size(4) + 16 * row)
        self.topics = mapped(core.TOPIC_ROWS_PLACE + 16 * topic_row)
        self.arena = mapped(64 * core.BLOCK_SIZE)
        core.init_control(
            self.control,
            file_size_bytes=FILE_SIZE,
            hot_slot_count=4,
            session_slot_count=4,
            queue_row_max=16,
            topic_row_max=16,
            arena_block_max=64,
            message_size_max=64 * 1024,
            store_host=HOST,
            begin_position=0,
        )
        self.appender = core.Appender(self.control, self.topics, self.arena)
        self.appender.grow_arena(64)
        self.log_map = core.LogMap(file_size=FILE_SIZE)
        for number in range(hot_count):
            self.add_hot(number)
        self.queue = self.appender.add_queue(self.appender.add_topic(b"T"), 0, 0, 0)
        self.ingress = mapped(core.RING_DATA_PLACE + 2 * LANE_CAPACITY)
        entries = 2 * COMPLETIONS * core.LAYOUT["completion"][0]
        self.completion = mapped(core.COMPLETIONS_PLACE + entries)
        self.consumer = mapped(2 * core.CLAIMS_PLACE)
        self.event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.appender.set_grant(0, self.queue[0], True)
        self.appender.attach(
            0,
            ingress=self.ingress,
            completion=self.completion,
            consumer=self.consumer,
            chunk=None,
            event_fd=self.event_fd,
            fresh=True,
            lane_count=2,
            lane_capacity_bytes=LANE_CAPACITY,
            completion_capacity=COMPLETIONS,
            claim_capacity=8,
        )
        self.lane = core.Lane(
            self.control, self.ingress, self.completion, session=0, lane=0, event_fd=self.event_fd
        )
        self.reader = core.Reader(
            self.control,
            self.arena,
            self.log_map,
            consumer=self.consumer,
            completion=self.completion,
        )
        self._thread: threading.Thread | None = None
        self.run()

    def add_hot(self, number: int) -> None:
        """One more hot segment, known to the log map too."""
        fd = memfd(FILE_SIZE)
        segment = core.Mapping(fd, FILE_SIZE, writable=True)
        self.appender.ready(number * FILE_SIZE, segment, number)
        self.log_map.add(number * FILE_SIZE, fd, hot=True)
        os.close(fd)

    def run(self) -> None:
        self._thread = threading.Thread(target=self.appender.run)
        self._thread.start()

    def close(self) -> None:
        self.lane.close()
        self.reader.close()
        self.log_map.close()
        self.appender.stop()
        if self._thread:
            self._thread.join()
        self.appender.close()
        os.close(self.event_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
