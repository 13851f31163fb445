"""Where consumers say how far they are: memory that all map, a slot of words for each of them.

Slot 0 has the number of the run that may end, written by who measures. Slot n has the count of
consumer n, and when that was; the consumer is its one writer, but for clear().
"""

import mmap
import os
from pathlib import Path

SLOT_WORDS = 16
"""Two cache lines."""
_SLOTS = 128


class Board:
    """It."""

    def __init__(self, path: str | Path) -> None:
        descriptor = os.open(path, os.O_RDWR)
        self.words = memoryview(mmap.mmap(descriptor, _SLOTS * SLOT_WORDS * 8)).cast("Q")
        os.close(descriptor)

    @staticmethod
    def create() -> tuple[int, str]:
        """Its descriptor, and a path by which children find it."""
        descriptor = os.memfd_create("bench-board")
        os.truncate(descriptor, _SLOTS * SLOT_WORDS * 8)
        return descriptor, f"/proc/{os.getpid()}/fd/{descriptor}"

    def clear(self) -> None:
        """No consumer is there any more, or yet."""
        for at in range(SLOT_WORDS, _SLOTS * SLOT_WORDS):
            self.words[at] = 0

    def counts(self) -> int:
        return sum(self.words[SLOT_WORDS::SLOT_WORDS])
