"""A process with a store and nothing else: opens it, or lets all its complete files expire.

    store_process.py open|expire FOLDER

It prints how many seconds that took, with `expire` those of one file, 0 if none was complete; and
goes on until its input ends.
"""

import sys
import time
from pathlib import Path

from shmq.clock import SystemClock
from shmq.config import StoreConfig
from shmq.store.message_store import MessageStore

AGE_MS = 100 * 3_600_000
"""Older than file_reserved_hours has it."""
WAIT_MAX_S = 600.0
LOOK_S = 0.001


class _AgingClock(SystemClock):
    """The system's, which can be put forward, all of it together."""

    __slots__ = ("_ahead_ms",)

    def __init__(self) -> None:
        self._ahead_ms = 0

    def advance(self, ms: int) -> None:
        self._ahead_ms += ms

    def monotonic_ns(self) -> int:
        return super().monotonic_ns() + self._ahead_ms * 1_000_000

    def boottime_ns(self) -> int:
        return super().boottime_ns() + self._ahead_ms * 1_000_000

    def wall_ms(self) -> int:
        return super().wall_ms() + self._ahead_ms


def main(verb: str, path: Path) -> None:
    clock = _AgingClock()
    config = StoreConfig(
        store_path=path,
        runtime_path=path.parent / "own",
        delete_when=";".join(f"{hour:02}" for hour in range(24)),
        clean_resource_interval_ms=10,
        delete_commit_log_files_interval_ms=0,
        delete_file_batch_max=1_000_000,
    )
    store = MessageStore(config, clock=clock)
    begin = time.perf_counter()
    store.open()
    took = time.perf_counter() - begin
    store.start()
    if verb == "expire":
        complete = store.positions.committed_position // store.file_size_bytes
        begin = time.perf_counter()
        clock.advance(AGE_MS)
        while (count := store.retention.expired_file_count) < complete:
            if time.perf_counter() - begin > WAIT_MAX_S:
                raise SystemExit(f"expire the files of {path}: {count} of {complete} went")
            time.sleep(LOOK_S)
        took = (time.perf_counter() - begin) / complete if complete else 0.0
    print(took, flush=True)
    sys.stdin.read()
    store.stop(keep_memory=False)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
