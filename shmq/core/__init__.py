"""The compiled floor: shared layouts, rings, turns, frames; behind a thin binding.

Purpose: everything that touches a protocol word of shared memory, and everything per message.
Process: all of them; the append and flush loops run in the broker only.
Writes: what the caller's handles give the right to (see the heads of include/shmq/*.h).
Reads: shared memory, range-checked once.
May import: nothing of shmq.
Never: opens a file or a name, logs, decides policy.

Importing it refuses a core of another layout than this package was written for.
"""

import shmq.core._core as core

__all__ = ["LAYOUT_WANTED", "core"]

LAYOUT_WANTED = 2
"""SHMQ_LAYOUT_VERSION this package was written for."""

if core.LAYOUT_VERSION != LAYOUT_WANTED:
    raise ImportError(
        f"import shmq.core: the compiled core has layout {core.LAYOUT_VERSION}, "
        f"this package needs {LAYOUT_WANTED}: reinstall shmq"
    )
