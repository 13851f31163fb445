"""What the machine gives, and sizes that fit into it.

What lives here: `Machine` (room in /dev/shm, memory, limits: read once at start), `plan_sizes` (the
hot log's sizes: what somebody asked for is taken or refused, what nobody asked for shrinks to what
is there) and `raise_open_files`. Memory that does not fit is thus a message at start, not a SIGBUS
or an OOM kill under load.

Which process: the broker at start; tools to explain. Nothing is written but the process's own soft
limit of open files. What may fail: ShmFullError (the mount), LimitError (memory, limits),
ConfigError (a size that can never be right); each names the setting or mount option to change.

Where a byte counts: named objects (hot log, arena, control, topics, completions, service rings) in
/dev/shm and in the memory of the cgroup; memfds (ingress rings, consumer pages) in memory only.
"""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from shmq.core import core
from shmq.errors import ConfigError, LimitError, ShmError, ShmFullError
from shmq.shm.fds import RESERVED_MAX
from shmq.shm.memory import memory_left, mount_of
from shmq.shm.segment import SHM_FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "FDS_PER_SESSION",
    "FILE_SIZE_BYTES_DEFAULT",
    "FILE_SIZE_BYTES_FLOOR",
    "HotLogPlan",
    "HotLogRequest",
    "Machine",
    "SEGMENT_COUNT_FLOOR",
    "SEGMENT_COUNT_MAX",
    "open_files_wanted",
    "plan_sizes",
    "raise_open_files",
]

_KIB = 1 << 10
_MIB = 1 << 20
_GIB = 1 << 30
_PAGE_BYTES = 4096

FILE_SIZE_BYTES_DEFAULT = 64 * _MIB
"""A CommitLog file where nobody asks and there is room."""
FILE_SIZE_BYTES_FLOOR = 8 * _MIB
"""The least that is chosen unasked: the largest message (4 MiB) and its frame fit, with room."""
SEGMENT_COUNT_FLOOR = 3
"""One segment being written, one prepared, one being retired."""
SEGMENT_COUNT_MAX = core.HOT_SLOT_MAX
"""More slots than the control segment has cannot be asked for."""

_SEGMENT_COUNT_DEFAULT_MAX = 16
_HOT_BYTES_DEFAULT_MAX = _GIB
_HOT_SHARE_OF_FREE = 8
# First with a quarter of the free room left to others, and only if nothing fits so, with all of it.
_SHARES = ((3, 4), (1, 1))
_ARENA_SHARE_OF_HOT = 4
_ARENA_BYTES_FLOOR = _MIB
_SESSION_COUNT_DEFAULT = 256
_RING_BYTES_DEFAULT = _MIB
_RING_BYTES_FLOOR = 256 * _KIB
# A frame around the largest body: fixed fields, topic and 32,767 bytes of properties, rounded up.
_FRAME_BYTES_MAX = 64 * _KIB

# What the process itself takes beside the log (DESIGN 11: under 80 MB for NameServer and broker).
_PROCESS_BYTES = 64 * _MIB
# Sockets, epoll, logs, store files, their LRU; then, for each session, its socket, pidfd, eventfd,
# completion object, ring, consumer page and chunk memory, and one to spare for the moment of
# passing.
_FDS_OF_BROKER = 32
_FDS_PER_SEGMENT = 2
FDS_PER_SESSION = 8
_MAPS_OF_BROKER = 1024
_MAPS_PER_SESSION = 4

_UNLIMITED_FROM = 1 << 60


@dataclass(frozen=True, slots=True)
class Machine:
    """What is there for us, at the moment of reading."""

    shm_free_bytes: int
    """Free in /dev/shm, for this uid."""
    shm_total_bytes: int
    """Size of that mount."""
    memory_bytes: int
    """Memory that can still be charged to us: the least of RAM and all memory cgroups above us."""
    memory_source: str
    """Which limit that is, for messages."""
    open_file_limit: int
    """RLIMIT_NOFILE, the hard one: `raise_open_files` may go as far."""
    map_count_limit: int
    """vm.max_map_count."""
    warnings: tuple[str, ...] = ()
    """One line each, to be logged: nothing that stops us."""

    @classmethod
    def read(cls) -> Machine:
        """Read it from the mount, /proc and the process's limits. Does not block.

        Raises:
            ShmError: /dev/shm or /proc is not there.
        """
        try:
            mount = os.statvfs(SHM_FOLDER)
            kind = mount_of(SHM_FOLDER).kind
            maps = int(Path("/proc/sys/vm/max_map_count").read_text("ascii"))
            swaps = Path("/proc/swaps").read_text("utf-8", "replace").splitlines()[1:]
        except (OSError, ValueError) as error:
            raise ShmError(
                f"read the machine's limits: {error}; mount /proc and {SHM_FOLDER}"
            ) from error
        warnings = []
        if swaps:
            warnings.append(
                "swap is on: shared memory may be swapped out and then costs a disk access a page;"
                " swapoff -a, or MemorySwapMax=0 in the unit"
            )
        if kind != "tmpfs":
            warnings.append(f"{SHM_FOLDER} is on {kind}, not tmpfs")
        memory_bytes, memory_source = memory_left()
        hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        return cls(
            shm_free_bytes=mount.f_bavail * mount.f_frsize,
            shm_total_bytes=mount.f_blocks * mount.f_frsize,
            memory_bytes=memory_bytes,
            memory_source=memory_source,
            open_file_limit=_UNLIMITED_FROM if hard_limit == resource.RLIM_INFINITY else hard_limit,
            map_count_limit=maps,
            warnings=tuple(warnings),
        )


@dataclass(frozen=True, slots=True)
class HotLogRequest:
    """Sizes as configured. None = nobody asked: may shrink to what is there."""

    file_size_bytes: int | None = None
    """commit_log_file_size_bytes, a multiple of 4096; an existing store's own counts as asked."""
    segment_count: int | None = None
    """hot_segment_count, 3 to 64."""
    arena_bytes: int | None = None
    """arena_bytes: how far the ConsumeQueue arena may grow; it is not allocated up front."""
    session_count: int | None = None
    """session_count: clients at a time; their memory is allocated as they come."""
    ring_bytes: int | None = None
    """ring_bytes: memory of one session's rings."""
    completion_bytes: int = 64 * _KIB
    """Size of one session's completion object, as the layout gives it."""
    fixed_bytes: int = 2 * _MIB
    """Control and topics segments and service rings, as the layout gives them."""
    max_message_size_bytes: int = 4 * _MIB
    """max_message_size_bytes: a file must hold one such message and its frame."""


@dataclass(frozen=True, slots=True)
class HotLogPlan:
    """Sizes that fit."""

    file_size_bytes: int
    """Size of a CommitLog file and of a hot segment."""
    segment_count: int
    """Hot segments."""
    arena_bytes: int
    """Growth limit of the ConsumeQueue arena."""
    session_count: int
    """Sessions at a time."""
    ring_bytes: int
    """Memfd memory of one session."""
    shm_bytes: int
    """Room in /dev/shm if everything is used to its limit."""
    memory_bytes: int
    """Memory if everything is used to its limit."""
    open_files: int
    """File descriptors for that."""
    shrunk: tuple[str, ...] = field(default=())
    """What became smaller than its default, one line each, for the log."""


def plan_sizes(request: HotLogRequest, machine: Machine) -> HotLogPlan:
    """Return sizes that fit the machine. Pure.

    Plentiful room gives 64 MiB files and a hot log of an eighth of the free room, at most 1 GiB, in
    3 to 16 segments; a container's 64 MiB gives 3 segments of 8 MiB.

    Args:
        request: explicit sizes are taken as they are or refused, never changed.
        machine: from `Machine.read`.

    Raises:
        ConfigError: an explicit size is out of range whatever the machine.
        ShmFullError: it does not fit into /dev/shm.
        LimitError: it does not fit into the memory, open file or map limit.
    """
    _check_request(request)
    memory_bytes = machine.memory_bytes - _PROCESS_BYTES
    for numerator, denominator in _SHARES:
        shm_room = machine.shm_free_bytes * numerator // denominator
        memory_room = memory_bytes * numerator // denominator
        for file_size_bytes, segment_count in _hot_logs(request, machine.shm_free_bytes):
            arena_bytes = _arena_bytes(request, file_size_bytes * segment_count)
            named_bytes = request.fixed_bytes + file_size_bytes * segment_count + arena_bytes
            sessions = _sessions(
                request,
                machine,
                segment_count=segment_count,
                shm_room=shm_room - named_bytes,
                memory_room=memory_room - named_bytes,
            )
            if sessions is not None:
                return _plan(request, file_size_bytes, segment_count, arena_bytes, *sessions)
    raise _refusal(request, machine)


def open_files_wanted(*, segment_count: int, session_count: int) -> int:
    """Return how many files a broker may have open at a time: for `raise_open_files`."""
    return _FDS_OF_BROKER + _FDS_PER_SEGMENT * segment_count + FDS_PER_SESSION * session_count


def raise_open_files(open_files: int) -> None:
    """Raise the soft limit of open files, where it is lower, to `open_files` and, as far as the
    hard one allows it, what a process keeps for its own files beside them.

    Raises:
        LimitError: the hard limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with_reserve = open_files + RESERVED_MAX
    if soft == resource.RLIM_INFINITY or soft >= with_reserve:
        return
    if hard != resource.RLIM_INFINITY and hard < open_files:
        raise LimitError(
            f"open {open_files} files: the hard limit is {hard}; raise LimitNOFILE= in the unit, or"
            " ulimit -Hn, or lower session_count"
        )
    if hard != resource.RLIM_INFINITY:
        with_reserve = min(with_reserve, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (with_reserve, hard))


def _check_request(request: HotLogRequest) -> None:
    """Refuse explicit sizes that no machine could make right."""
    least = request.max_message_size_bytes + _FRAME_BYTES_MAX
    size = request.file_size_bytes
    if size is not None and (size < least or size % _PAGE_BYTES):
        raise ConfigError(
            f"commit_log_file_size_bytes={size}: wanted a multiple of {_PAGE_BYTES} of at least"
            f" {least} (max_message_size_bytes={request.max_message_size_bytes} and its frame);"
            " raise it, or lower max_message_size_bytes"
        )
    count = request.segment_count
    if count is not None and not SEGMENT_COUNT_FLOOR <= count <= SEGMENT_COUNT_MAX:
        raise ConfigError(
            f"hot_segment_count={count}: wanted {SEGMENT_COUNT_FLOOR} to {SEGMENT_COUNT_MAX}"
        )
    for key in ("arena_bytes", "session_count", "ring_bytes"):
        value = getattr(request, key)
        if value is not None and value < 1:
            raise ConfigError(f"{key}={value}: wanted 1 or more")


def _hot_logs(request: HotLogRequest, shm_free_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield (file size, segment count) from the most wanted to the least."""
    hot_bytes = min(_HOT_BYTES_DEFAULT_MAX, shm_free_bytes // _HOT_SHARE_OF_FREE)
    for file_size_bytes in _file_sizes(request):
        if request.segment_count is not None:
            yield file_size_bytes, request.segment_count
            continue
        wanted = min(hot_bytes // file_size_bytes, _SEGMENT_COUNT_DEFAULT_MAX)
        for segment_count in range(max(wanted, SEGMENT_COUNT_FLOOR), SEGMENT_COUNT_FLOOR - 1, -1):
            yield file_size_bytes, segment_count


def _file_sizes(request: HotLogRequest) -> Iterator[int]:
    """Yield file sizes from the most wanted to the least; one if it was asked for."""
    if request.file_size_bytes is not None:
        yield request.file_size_bytes
        return
    least = request.max_message_size_bytes + _FRAME_BYTES_MAX
    floor = max(FILE_SIZE_BYTES_FLOOR, 1 << (least - 1).bit_length())
    size = max(FILE_SIZE_BYTES_DEFAULT, floor)
    while size >= floor:
        yield size
        size //= 2


def _arena_bytes(request: HotLogRequest, hot_bytes: int) -> int:
    """Return how far the arena may grow beside such a hot log."""
    if request.arena_bytes is not None:
        return request.arena_bytes
    share = hot_bytes // _ARENA_SHARE_OF_HOT
    return max(_ARENA_BYTES_FLOOR, share // _PAGE_BYTES * _PAGE_BYTES)


def _sessions(
    request: HotLogRequest, machine: Machine, *, segment_count: int, shm_room: int, memory_room: int
) -> tuple[int, int] | None:
    """Return (session count, ring bytes) for the room left, or None if there is too little."""
    wanted = request.session_count or _SESSION_COUNT_DEFAULT
    ring_sizes = (
        [request.ring_bytes]
        if request.ring_bytes is not None
        else [_RING_BYTES_DEFAULT, _RING_BYTES_DEFAULT // 2, _RING_BYTES_FLOOR]
    )
    for ring_bytes in ring_sizes:
        possible = min(
            wanted,
            _sessions_by_limits(machine, segment_count),
            shm_room // request.completion_bytes,
            memory_room // (request.completion_bytes + ring_bytes),
        )
        if possible == wanted:
            return wanted, ring_bytes
    # Only an unasked-for number of sessions shrinks, with the smallest rings tried above.
    return (possible, ring_bytes) if request.session_count is None and possible > 0 else None


def _sessions_by_limits(machine: Machine, segment_count: int) -> int:
    """Return how many sessions the open file and map limits allow, 0 or less for none."""
    fds = machine.open_file_limit - _FDS_OF_BROKER - _FDS_PER_SEGMENT * segment_count
    maps = machine.map_count_limit - _MAPS_OF_BROKER
    return min(fds // FDS_PER_SESSION, maps // _MAPS_PER_SESSION)


def _plan(
    request: HotLogRequest,
    file_size_bytes: int,
    segment_count: int,
    arena_bytes: int,
    session_count: int,
    ring_bytes: int,
) -> HotLogPlan:
    """Return the plan with its sums."""
    shm_bytes = (
        request.fixed_bytes
        + file_size_bytes * segment_count
        + arena_bytes
        + session_count * request.completion_bytes
    )
    shrunk = [
        f"{key}={value}, smaller than the default {default} for lack of room"
        for key, value, default in (
            ("commit_log_file_size_bytes", file_size_bytes, FILE_SIZE_BYTES_DEFAULT),
            ("session_count", session_count, _SESSION_COUNT_DEFAULT),
            ("ring_bytes", ring_bytes, _RING_BYTES_DEFAULT),
        )
        if value < default and getattr(request, _FIELD_OF_KEY.get(key, key)) is None
    ]
    return HotLogPlan(
        file_size_bytes=file_size_bytes,
        segment_count=segment_count,
        arena_bytes=arena_bytes,
        session_count=session_count,
        ring_bytes=ring_bytes,
        shm_bytes=shm_bytes,
        memory_bytes=shm_bytes + session_count * ring_bytes,
        open_files=open_files_wanted(segment_count=segment_count, session_count=session_count),
        shrunk=tuple(shrunk),
    )


_FIELD_OF_KEY = {
    "commit_log_file_size_bytes": "file_size_bytes",
    "hot_segment_count": "segment_count",
}
_KEYS = (
    "commit_log_file_size_bytes",
    "hot_segment_count",
    "arena_bytes",
    "session_count",
    "ring_bytes",
)


def _refusal(request: HotLogRequest, machine: Machine) -> ShmError:
    """Return the error that names what was asked, what is there, and what to change."""
    file_size_bytes, segment_count = list(_hot_logs(request, 0))[-1]
    arena_bytes = _arena_bytes(request, file_size_bytes * segment_count)
    least = _plan(
        request,
        file_size_bytes,
        segment_count,
        arena_bytes,
        request.session_count or 1,
        request.ring_bytes or _RING_BYTES_FLOOR,
    )
    values = {key: getattr(request, _FIELD_OF_KEY.get(key, key)) for key in _KEYS}
    asked = ", ".join(f"{key}={value}" for key, value in values.items() if value is not None)
    what = f"plan the hot log ({asked or 'smallest sizes'})"
    lower = f" or lower {asked.replace('=', ' below ')}" if asked else ""
    if least.shm_bytes > machine.shm_free_bytes:
        return ShmFullError(
            f"{what}: needs {least.shm_bytes} bytes in {SHM_FOLDER}, {machine.shm_free_bytes} of"
            f" {machine.shm_total_bytes} are free; mount -o remount,size=... {SHM_FOLDER}, docker"
            f" --shm-size,{lower or ' or `shmq shm clean` if dead brokers left memory there'}"
        )
    if least.memory_bytes + _PROCESS_BYTES > machine.memory_bytes:
        return LimitError(
            f"{what}: needs {least.memory_bytes + _PROCESS_BYTES} bytes of memory,"
            f" {machine.memory_bytes} are left by {machine.memory_source}; raise MemoryMax= in the"
            f" unit or docker --memory{',' if lower else ''}{lower}"
        )
    return LimitError(
        f"{what}: needs {least.open_files} open files and"
        f" {_MAPS_OF_BROKER + _MAPS_PER_SESSION * least.session_count} maps; RLIMIT_NOFILE is"
        f" {machine.open_file_limit}, vm.max_map_count {machine.map_count_limit}; raise"
        f" LimitNOFILE= in the unit or sysctl vm.max_map_count{',' if lower else ''}{lower}"
    )
