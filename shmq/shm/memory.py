"""How much memory this process can still get before the kernel kills somebody for it.

What lives here: `memory_left` (RAM and memory cgroups, v1 and v2) and `require_memory`, which every
allocation of this room passes. A mount says no to what does not fit, a memory limit does not: it
kills. /dev/shm may be as large as the RAM, and memfds are on no mount with a size at all.

Which process: whoever allocates; about 0.2 ms a call. Nothing is written. What may fail:
ShmFullError, naming the limit; LimitError without an fd; ShmError without /proc. Between the
question and the allocation others may take the memory: this catches what can be seen, the plan in
budget.py the rest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from shmq.errors import ShmError, ShmFullError
from shmq.shm.fds import open_error

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "MemoryRoom",
    "Mount",
    "READ_ONLY_OPTIONS",
    "memory_left",
    "memory_room",
    "memory_total",
    "mount_of",
    "require_memory",
]

_KIB = 1 << 10
# What an allocation leaves to the stacks and heaps around it.
_MARGIN_BYTES = 8 << 20
# cgroup v1 says "no limit" with the largest multiple of a page; nobody has an EiB.
_UNLIMITED_FROM = 1 << 60
_OCTAL_ESCAPE = re.compile(r"\\([0-7]{3})")


def require_memory(what: str, *, wanted_bytes: int, proc: Path = Path("/proc")) -> None:
    """Return if `wanted_bytes` more can be allocated without the kernel having to kill.

    Args:
        what: verb and object for the message, such as "create /shmq...".
        wanted_bytes: what is about to be allocated.
        proc: where proc is mounted.

    Raises:
        ShmFullError: there is not that much; names the limit and the remedy.
        ShmError: no meminfo.
    """
    left, source = memory_left(proc)
    if wanted_bytes + _MARGIN_BYTES > left:
        raise ShmFullError(
            f"{what}: {wanted_bytes} bytes wanted, {left} left by {source}; raise MemoryMax= in the"
            " unit or docker --memory, or lower hot_segment_count or session_count"
        )


class MemoryRoom(NamedTuple):
    """What a process may still have of memory."""

    left_bytes: int
    """Before the kernel kills for it."""
    source: str
    """Which limit says so."""
    limit_bytes: int
    """That limit."""


def memory_left(proc: Path = Path("/proc")) -> tuple[int, str]:
    """Return the bytes that can still be charged to this process, and the limit that says so; as
    `memory_room`.
    """
    room = memory_room(proc)
    return room.left_bytes, room.source


def memory_room(proc: Path = Path("/proc"), *, pid: int | None = None) -> MemoryRoom:
    """Return what a process may still be charged, by the limit that leaves it least.

    That is the least of MemAvailable and, for the own memory cgroup and each above it (v1 and v2),
    limit minus usage plus the page cache that would be given back first.

    Args:
        proc: where proc is mounted; the cgroup mounts are found through it.
        pid: of the process; None: this one.

    Raises:
        ShmError: no meminfo.
    """
    machine = MemoryRoom(
        _meminfo(proc, "MemAvailable"), "MemAvailable of the machine", _meminfo(proc, "MemTotal")
    )
    limits = _cgroup_limits(proc, "self" if pid is None else str(pid))
    return min(
        [machine, *(MemoryRoom(own.left_bytes, str(own.path), own.limit_bytes) for own in limits)]
    )


def memory_total(proc: Path = Path("/proc")) -> int:
    """Return the bytes of memory that this process and what it reads of files may have: those of
    the machine, or of the least limit of its memory cgroups.

    Args:
        proc: where proc is mounted.

    Raises:
        ShmError: no meminfo.
    """
    totals = [_meminfo(proc, "MemTotal")]
    totals += [folder.limit_bytes for folder in _cgroup_limits(proc)]
    return min(totals)


READ_ONLY_OPTIONS = frozenset({"ro", "emergency_ro"})
"""Options of a mount that takes no writes; the latter of one that the kernel found damaged."""


class Mount(NamedTuple):
    """One line of mountinfo."""

    root: str
    """Which part of the file system is mounted."""
    point: str
    """Where."""
    kind: str
    """Which file system."""
    options: frozenset[str]
    """Of the mount and of the file system: "ro" is among them if either is read-only."""


def mount_of(path: str | Path, proc: Path = Path("/proc")) -> Mount:
    """Return the mount that a folder or file is on.

    Raises:
        OSError: there is no such path, or no mountinfo.
    """
    real = Path(path).resolve(strict=True)
    found = None
    for mount in _mounts(_read(proc / "self" / "mountinfo")):
        # The longest that leads there; of equal ones the last, which covers the others.
        if real.is_relative_to(mount.point) and (
            found is None or len(mount.point) >= len(found.point)
        ):
            found = mount
    if found is None:
        raise FileNotFoundError(f"{path}: on no mount of {proc}/self/mountinfo")
    return found


def _meminfo(proc: Path, key: str) -> int:
    """Return a figure of /proc/meminfo in bytes."""
    try:
        return int(_read(proc / "meminfo").partition(f"{key}:")[2].split()[0]) * _KIB
    except OSError as error:
        raise open_error(f"read {proc}/meminfo", error) from error
    except (ValueError, IndexError) as error:
        raise ShmError(f"read {proc}/meminfo: no {key}; mount /proc") from error


class _Limit(NamedTuple):
    """A limit of a memory cgroup."""

    path: Path
    """The file that says so."""
    limit_bytes: int
    left_bytes: int
    """Of it, page cache that would be given back first included."""


def _cgroup_limits(proc: Path, process: str = "self") -> Iterator[_Limit]:
    """Yield the limits of a process's memory cgroups and of those above them."""
    try:
        membership = _read(proc / process / "cgroup")
        mounts = _read(proc / "self" / "mountinfo")
    except OSError:
        # A kernel without cgroups has no such files, and no such limits.
        return
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _limits_above(mounts, path, "cgroup2", None, _V2)
        elif "memory" in controllers.split(","):
            yield from _limits_above(mounts, path, "cgroup", "memory", _V1)


@dataclass(frozen=True, slots=True)
class _CgroupFiles:
    """What the files of a memory controller are called."""

    limits: tuple[str, ...]
    usage: str
    cache_keys: tuple[str, ...]


_V2 = _CgroupFiles(
    ("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file")
)
_V1 = _CgroupFiles(
    ("memory.limit_in_bytes",),
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)


def _limits_above(
    mounts: str, path: str, kind: str, option: str | None, files: _CgroupFiles
) -> Iterator[_Limit]:
    """Yield the limits in the folder of `path` and in each above it, up to the mount."""
    found = _cgroup_mount(mounts, kind, option)
    if found is None:
        return
    root, mount = found
    # In a container the path may be the host's, and the mount only our part of it.
    inside = path.removeprefix(root) if root != "/" else path
    folder = mount / inside.strip("/")
    while True:
        yield from _limits_of(folder, files)
        if folder == mount or mount not in folder.parents:
            return
        folder = folder.parent


def _limits_of(folder: Path, files: _CgroupFiles) -> Iterator[_Limit]:
    """Yield one cgroup's limits, if it has any."""
    for name in files.limits:
        try:
            limit = int(_read(folder / name))
            if limit >= _UNLIMITED_FROM:
                continue
            usage = int(_read(folder / files.usage))
            lines = _read(folder / "memory.stat").splitlines()
            statistics = dict(line.split(" ", 1) for line in lines)
            cache = sum(int(statistics.get(key, "0")) for key in files.cache_keys)
        except (OSError, ValueError):
            # No such file (the root cgroup), or "max": no limit here.
            continue
        yield _Limit(folder / name, limit, max(limit - usage + cache, 0))


def _read(path: Path) -> str:
    """Return a small file of the kernel's; open() without pathlib's detours."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _cgroup_mount(mounts: str, kind: str, option: str | None) -> tuple[str, Path] | None:
    """Return (root inside the hierarchy, mount point) of a cgroup hierarchy, or None."""
    for mount in _mounts(mounts):
        if mount.kind == kind and (option is None or option in mount.options):
            return mount.root, Path(mount.point)
    return None


def _mounts(text: str) -> Iterator[Mount]:
    """Yield what each line of mountinfo says."""
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(" "), after.split(" ")
        if len(fields) >= 6 and len(kinds) >= 3:
            options = frozenset(fields[5].split(",")) | frozenset(kinds[2].split(","))
            yield Mount(_plain(fields[3]), _plain(fields[4]), kinds[0], options)


def _plain(text: str) -> str:
    """Undo mountinfo's octal escapes."""
    return _OCTAL_ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
