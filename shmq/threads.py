"""Threads whose names the kernel knows, too: what `top -H` and `ps -L` show of a busy process.

Python keeps a thread's name to itself before 3.14; here each thread tells the kernel as it begins.
Writes: /proc/thread-self/comm. Nothing fails: where that is not to be written, the thread goes by
the name of its process.
"""

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

__all__ = ["NamedThread", "thread_pool"]

_COMM: Final = Path("/proc/thread-self/comm")
_SIZE_MAX: Final = 15
"""Bytes of a name that the kernel keeps (TASK_COMM_LEN)."""


class NamedThread(threading.Thread):
    """A thread that is called `name` outside this process, too; else as threading.Thread."""

    def run(self) -> None:
        """As threading.Thread's, in the thread."""
        _show_name(self.name)
        super().run()


def thread_pool(name: str, thread_max: int | None = None) -> ThreadPoolExecutor:
    """An executor all of whose threads, `thread_max` at most, are called `name` outside this
    process; None: as many as asyncio gives a loop.
    """
    return ThreadPoolExecutor(
        thread_max, thread_name_prefix=name, initializer=_show_name, initargs=(name,)
    )


def _show_name(name: str) -> None:
    with contextlib.suppress(OSError):
        _COMM.write_bytes(os.fsencode(name)[:_SIZE_MAX])
