"""A broker that counts every Python function it calls, in all threads, for tests.

`python -m tests.support.profiled_broker ...` is `python -m shmq.broker ...` with the number of
calls so far in the file that SHMQ_TEST_CALLS names: 8 bytes, written by mapped memory.
"""

import mmap
import os
import sys
import threading
from types import FrameType

from shmq.broker.__main__ import main


def _count_calls(path: str) -> None:
    with open(path, "r+b") as file:
        count = memoryview(mmap.mmap(file.fileno(), 8)).cast("Q")

    def seen(_frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            count[0] += 1

    threading.setprofile(seen)
    sys.setprofile(seen)


if __name__ == "__main__":
    _count_calls(os.environ["SHMQ_TEST_CALLS"])
    sys.exit(main())
