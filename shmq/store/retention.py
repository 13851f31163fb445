"""When old CommitLog files go: by age at an hour of the day, by how full the disk is, by request.

What lives here: `Retention`, which decides round by round and has `LogExpiry` do it (expire.py),
and what it decides by: `AgeClock`, `DiskUsage`, `plan_round`. The rules are RocketMQ's
(DefaultMessageStore.CleanCommitLogService), with three differences, each on the side of keeping:

- A file's age is that of its newest message, not that of its mtime, which a copy changes.
- The wall clock is not believed at once: see `AgeClock`.
- A full disk makes messages go before their time only if that would help: where others fill the
  disk, ours would go in vain.

One round each clean_resource_interval_ms, and at most delete_file_batch_max files in it, each some
time after the one before, oldest first; never the file that is appended to, never one that is not
on disk. What consumers have read does not matter: who had not is counted (expired_unread.py of the
broker).

Which process: the broker, a thread of its own (`check_room`: the keeper). Writes through LogExpiry.
May fail: what the disk says; it is logged, and tried again in the next round.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from shmq.errors import DiskFullError, ShmqError
from shmq.shm.memory import READ_ONLY_OPTIONS, mount_of
from shmq.threads import NamedThread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from shmq.clock import Clock
    from shmq.config import StoreConfig
    from shmq.store.expire import ExpiredFile, KeptFile, LogExpiry

__all__ = [
    "AgeClock",
    "DiskState",
    "DiskUsage",
    "Retention",
    "Round",
    "disk_state",
    "disk_usage",
    "plan_round",
]

_log = logging.getLogger("shmq.store")

_HOUR_MS = 3_600_000
STEP_MS = 60_000
"""Wall and monotonic time may part by so much between two looks: slewing, a slow machine."""
HOLD_MS = _HOUR_MS
"""How long a wall clock that stepped must stay where it is before ages are counted by it: time for
NTP, or a person, to set right what was wrong."""


class DiskUsage(NamedTuple):
    """How full a file system is, as `df` sees it."""

    used_bytes: int
    """Taken by whoever."""
    free_bytes: int
    """Left for users other than root."""

    @property
    def used_ratio(self) -> int:
        """Percent used, rounded up (RocketMQ UtilAll.getDiskPartitionSpaceUsedPercent)."""
        total = self.used_bytes + self.free_bytes
        return -(-self.used_bytes * 100 // total) if total else 0


class DiskState(NamedTuple):
    """What a file system has left, and whether it takes anything."""

    usage: DiskUsage
    """Of its bytes."""
    free_files: int
    """Files that can still be made (inodes)."""
    file_max: int
    """Files that there may be; 0 where the file system has no such limit."""
    is_read_only: bool
    """It, or its mount; also where the kernel has made it so for an error."""


def disk_state(path: str | Path) -> DiskState:
    """Look at the file system of a folder.

    Raises:
        OSError: it cannot be asked.
    """
    said = os.statvfs(path)
    is_read_only = bool(said.f_flag & os.ST_RDONLY)
    # ext4 of Linux 6.15 on says it there alone; without a descriptor it cannot be read.
    with contextlib.suppress(OSError):
        is_read_only |= not READ_ONLY_OPTIONS.isdisjoint(mount_of(path).options)
    return DiskState(_usage_of(said), said.f_favail, said.f_files, is_read_only)


def disk_usage(path: str | os.PathLike[str]) -> DiskUsage:
    """How full the file system of a folder is. Errors as `disk_state`."""
    return _usage_of(os.statvfs(path))


def _usage_of(said: os.statvfs_result) -> DiskUsage:
    used = (said.f_blocks - said.f_bfree) * said.f_frsize
    return DiskUsage(used, said.f_bavail * said.f_frsize)


class AgeClock:
    """The time by which messages age: the wall clock, unless it has stepped a moment ago.

    While the wall clock moves on as the monotonic one does, it is the time. A step either way is
    believed once it has held for HOLD_MS; until then time goes on from before it. A machine that
    slept has stepped as well. At the start there is nothing to compare with but the newest message:
    if the wall clock says that all there is has expired, it is held to have stepped just now.

    Args:
        clock: monotonic and wall time.
        last_store_ms: storeTimestamp of the newest message, ms since 1970; 0: there is none.
        reserved_ms: age at which messages expire.
    """

    __slots__ = ("_base_ms", "_base_ns", "_clock", "_step_ms", "_step_ns")

    def __init__(self, clock: Clock, *, last_store_ms: int, reserved_ms: int) -> None:
        self._clock = clock
        self._base_ns = clock.monotonic_ns()
        wall_ms = clock.wall_ms()
        is_leap = 0 < last_store_ms <= wall_ms - reserved_ms
        self._base_ms = last_store_ms if is_leap else wall_ms
        self._step_ms = wall_ms - self._base_ms
        self._step_ns = self._base_ns

    def now_ms(self) -> int:
        """Milliseconds since 1970."""
        now_ns, wall_ms = self._clock.monotonic_ns(), self._clock.wall_ms()
        expected_ms = self._base_ms + (now_ns - self._base_ns) // 1_000_000
        step_ms = wall_ms - expected_ms
        if abs(step_ms) <= STEP_MS:
            self._base_ms, self._base_ns, self._step_ms = wall_ms, now_ns, 0
            return wall_ms
        if abs(step_ms - self._step_ms) > STEP_MS:  # another step than the one that is held
            _log.warning("the wall clock stepped by %d s: ages go on as before", step_ms // 1000)
            self._step_ms, self._step_ns = step_ms, now_ns
        if now_ns - self._step_ns < HOLD_MS * 1_000_000:
            return expected_ms
        _log.warning("the wall clock stayed %d s off: ages go by it now", step_ms // 1000)
        self._base_ms, self._base_ns, self._step_ms = wall_ms, now_ns, 0
        return wall_ms


class Round(NamedTuple):
    """What one round is to do."""

    file_positions: Sequence[int]
    """Files that go, oldest first."""
    reason: str
    """Why; empty where none goes."""
    is_in_vain: bool
    """The disk is so full that messages would go before their time, and it would not help."""


def plan_round(
    files: Sequence[KeptFile],
    *,
    min_position: int,
    now_ms: int,
    is_time: bool,
    disk: DiskUsage,
    config: StoreConfig,
) -> Round:
    """Decide which files go.

    Args:
        files: those that may go, oldest first; what is below min_position is half gone already.
        min_position: physical_offset of the first byte kept.
        now_ms: by the AgeClock.
        is_time: it is one of the hours of deleteWhen, or somebody has asked.
        disk: of the store.
        config: of the store.
    """
    most = config.delete_file_batch_max
    half_gone = [file.file_position for file in files if file.file_position < min_position]
    if half_gone:
        return Round(half_gone[:most], "what was begun", False)
    expired = []
    for file in files:  # in order: a younger file is never taken before an older one
        if now_ms - file.last_store_ms < config.file_reserved_hours * _HOUR_MS:
            break
        expired.append(file.file_position)
    ratio = 0 if disk.free_bytes >= config.disk_ample_free_bytes else disk.used_ratio
    forcible = config.disk_space_clean_forcibly_ratio
    is_in_vain = False
    if ratio > forcible and config.clean_file_forcibly_enable:
        excess = disk.used_bytes - (disk.used_bytes + disk.free_bytes) * forcible // 100
        is_in_vain = sum(file.size_bytes for file in files) < excess
        if not is_in_vain:
            wanted = max(1, -(-excess // files[0].size_bytes), len(expired))
            chosen = [file.file_position for file in files[: min(wanted, most)]]
            return Round(chosen, f"the disk is {ratio} % full", False)
    if is_time or ratio > config.disk_max_used_space_ratio:
        return Round(expired[:most], "age", is_in_vain)
    return Round((), "", is_in_vain)


class Retention:
    """One store's. Threads may share it.

    Attributes:
        expired_file_count: files removed since the store was opened.
        expired_bytes: what they had.
        problem: why messages cannot be kept as they should, for people; None where all is well.
    """

    def __init__(
        self,
        config: StoreConfig,
        expiry: LogExpiry,
        *,
        clock: Clock,
        min_position: Callable[[], int],
        last_store_ms: int,
        on_expired: Callable[[ExpiredFile], None],
        look: Callable[[str | os.PathLike[str]], DiskUsage] = disk_usage,
    ) -> None:
        """Nothing happens yet.

        Args:
            config: of the store.
            expiry: removes files.
            clock: monotonic and wall time.
            min_position: physical_offset of the first byte kept, as of now.
            last_store_ms: storeTimestamp of the newest message.
            on_expired: told of each file that went, in this thread; must not wait.
            look: how full the disk is.
        """
        self._config = config
        self._expiry = expiry
        self._min_position = min_position
        self._on_expired = on_expired
        self._look = look
        self._age_clock = AgeClock(
            clock,
            last_store_ms=last_store_ms,
            reserved_ms=config.file_reserved_hours * _HOUR_MS,
        )
        self._is_asked = False
        self._is_full = False
        self._wanted = threading.Event()
        self._stopping = threading.Event()
        self._thread = NamedThread(target=self._run, name="shmq-retention", daemon=True)
        self.expired_file_count = 0
        self.expired_bytes = 0
        self.problem: str | None = None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the file at hand; blocks until then."""
        self._stopping.set()
        self._wanted.set()
        if self._thread.is_alive():
            self._thread.join()

    def request(self) -> None:
        """Let what has expired go now, whatever the hour (RocketMQ's deleteExpiredCommitLog)."""
        self._is_asked = True
        self._wanted.set()

    def wake(self) -> None:
        """Look now: settings have changed."""
        self._wanted.set()

    def check_room(self) -> None:
        """Return if another file may be made.

        Raises:
            DiskFullError: the disk is nearly full.
        """
        usage = self._usage()
        limit = self._config.disk_space_warning_level_ratio
        if usage is None or usage.free_bytes >= self._config.disk_ample_free_bytes:
            ratio = 0
        else:
            ratio = usage.used_ratio
        if ratio <= limit:
            self._is_full = False
            return
        if not self._is_full:
            self._is_full = True
            self._wanted.set()  # it is not the next round's business
        raise DiskFullError(
            f"make the next CommitLog file in {self._config.store_path}: the disk is {ratio} % "
            f"full, wanted at most {limit} (disk_space_warning_level_ratio)"
        )

    # ---- rounds ----------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():  # as long as the store is open
            went = 0
            try:
                went = len(self.round())
            except ShmqError as error:
                self.problem = str(error)
                _log.error("old files stay, trying again: %s", error)
            # A full batch is followed by the next at once where the disk waits for it.
            is_urgent = self._is_full and went == self._config.delete_file_batch_max
            if is_urgent:  # whoever has those files mapped leaves them, and then there is room
                self._stopping.wait(self._config.delete_commit_log_files_interval_ms / 1000)
            else:
                self._wanted.wait(self._config.clean_resource_interval_ms / 1000)
            self._wanted.clear()

    def round(self) -> list[ExpiredFile]:
        """One look, and the files that went by it. The service's thread calls it, or a test.

        Raises:
            DiskFullError, StoreError: a file could not be removed; those before it are.
        """
        now_ms = self._age_clock.now_ms()
        files = self._expiry.files(now_ms)
        is_asked, self._is_asked = self._is_asked, False
        usage = self._usage() or DiskUsage(0, self._config.disk_ample_free_bytes)
        hour = f"{time.localtime(now_ms // 1000).tm_hour:02}"
        plan = plan_round(
            files,
            min_position=self._min_position(),
            now_ms=now_ms,
            is_time=is_asked or hour in self._config.delete_when.split(";"),
            disk=usage,
            config=self._config,
        )
        self._note(plan, usage)
        gone: list[ExpiredFile] = []
        for file_position in plan.file_positions:
            # With a pause in between, so that the disk has time for others.
            pause_s = self._config.delete_commit_log_files_interval_ms / 1000 if gone else 0.0
            if self._stopping.wait(pause_s):
                break
            expired = self._expiry.expire(file_position)
            if expired is None:  # it is in memory still, and the files behind it are as well
                break
            gone.append(expired)
            self.expired_file_count += 1
            self.expired_bytes += expired.size_bytes
            _log.info(
                "expired file_position=%d reason=%s queues=%d",
                file_position,
                plan.reason,
                len(expired.spans),
            )
            self._on_expired(expired)
        is_more = is_asked and len(gone) == self._config.delete_file_batch_max
        if is_more:  # asked once, all that has expired goes, batch by batch
            self.request()
        return gone

    def _note(self, plan: Round, usage: DiskUsage) -> None:
        """Say once what is wrong, and once that it is over."""
        problem = None
        if plan.is_in_vain:
            problem = (
                f"the disk of {self._config.store_path} is {usage.used_ratio} % full, and not by "
                "this store: its messages stay; make room, or move the store"
            )
        if problem != self.problem:
            if problem is not None:
                _log.error("%s", problem)
            self.problem = problem

    def _usage(self) -> DiskUsage | None:
        try:
            return self._look(self._config.store_path)
        except OSError as error:
            _log.warning("ask how full the disk of %s is: %s", self._config.store_path, error)
            return None
