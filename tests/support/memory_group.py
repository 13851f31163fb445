"""A real memory cgroup of a test's own, v1 or v2: root only, else skipped."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from tests.support.require import require_or_skip, require_root

_KINDS = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "-1"),
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "max"),
)
_numbers = itertools.count()


class MemoryGroup:
    """A memory cgroup, beside and not below the one the test runs in. It has no limit yet."""

    def __init__(self, folder: Path, limit: str, usage: str, unlimited: str) -> None:
        self.folder = folder
        self._limit = limit
        self._usage = usage
        self._unlimited = unlimited
        self._members: dict[int, Path] = {}

    def limit(self, size: int | None) -> None:
        """Let its members have so many bytes; None: as many as there are."""
        (self.folder / self._limit).write_text(self._unlimited if size is None else str(size))

    @property
    def usage(self) -> int:
        """Bytes charged to it."""
        return int((self.folder / self._usage).read_text())

    @property
    def kill_count(self) -> int:
        """Processes of it that the kernel killed for memory."""
        name = "memory.oom_control" if "limit" in self._limit else "memory.events"
        lines = (self.folder / name).read_text().splitlines()
        return int(dict(line.split() for line in lines)["oom_kill"])

    @contextlib.contextmanager
    def of(self, pid: int) -> Iterator[None]:
        """What a process takes from now on is charged to it; its own group has it back then."""
        before = self._own_group(pid)
        (self.folder / "cgroup.procs").write_text(str(pid))
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                (before / "cgroup.procs").write_text(str(pid))

    def _own_group(self, pid: int) -> Path:
        for line in Path(f"/proc/{pid}/cgroup").read_text("utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == ("memory" if "limit" in self._limit else ""):
                return self.folder.parent / path.lstrip("/")
        raise AssertionError(f"process {pid} is in no memory cgroup")


@contextlib.contextmanager
def memory_group() -> Iterator[MemoryGroup]:
    """Make one; it goes with the block, when nobody is in it any more."""
    require_root()
    for root, limit, usage, unlimited in _KINDS:
        folder = root / f"shmq-test-{os.getpid()}-{next(_numbers)}"
        try:
            folder.mkdir()
        except OSError:
            continue
        made = MemoryGroup(folder, limit, usage, unlimited)
        try:
            made.limit(None)
        except OSError:
            folder.rmdir()
            continue
        try:
            yield made
        finally:
            folder.rmdir()
        return
    require_or_skip("no right to make a memory cgroup")
