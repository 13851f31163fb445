"""The wall clock of real processes, set to and fro by a test.

What lives here: `WallClock`. Processes that are started with its `environment` read CLOCK_REALTIME
through wall_clock.c; no other clock of theirs, and nobody else's, is touched.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from tests.support.compiled import library

_SOURCE = Path(__file__).with_name("wall_clock.c")


class WallClock:
    """How far the wall clock is off, for all processes that were given it."""

    def __init__(self, folder: Path) -> None:
        path = folder / "wall-clock"
        path.write_bytes(bytes(8))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 8)
        self.environment = {
            "LD_PRELOAD": str(library(_SOURCE)),
            "SHMQ_WALL_CLOCK_FILE": str(path),
        }
        """What a process is started with, beside what it has."""

    def set(self, *, days: float) -> None:
        """So many days off, of either sign, from now on."""
        self._memory[:] = int(days * 86_400_000).to_bytes(8, "little", signed=True)
