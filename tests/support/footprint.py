"""What processes hold: fds, threads, maps and memory, and what lies in /dev/shm and in folders.

What lives here: `Footprint` of a process, counted by kind, so that a difference says what leaked;
`names_of` for folders. A kind is a name without its numbers: those of a restarted broker differ.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

_NUMBERS = re.compile(r"[0-9a-f]{8,}|\d+")


class Footprint(NamedTuple):
    """Of one process; it must not end meanwhile."""

    fds: Counter[str]
    """By what they lead to."""
    threads: Counter[str]
    """By name."""
    maps: Counter[str]
    """Of shared memory and files; memory without a file is the allocator's: `own_memory_kib`."""

    @classmethod
    def of(cls, pid: int) -> Footprint:
        process = Path(f"/proc/{pid}")
        tasks = process.joinpath("task").iterdir()
        maps = []
        for line in process.joinpath("maps").read_text("utf-8", "replace").splitlines():
            _, _, _, _, inode, *name = line.split(maxsplit=5)
            if inode != "0":
                maps.append(kind(name[0].strip()))
        return cls(
            Counter(map(kind, _links(process / "fd"))),
            Counter(kind(task.joinpath("comm").read_text("utf-8").strip()) for task in tasks),
            Counter(maps),
        )

    @property
    def counts(self) -> dict[str, Counter[str]]:
        """All that can be compared one by one."""
        return {"fds": self.fds, "threads": self.threads, "maps": self.maps}


def own_memory_kib(pid: int) -> int:
    """What a process has in memory without a file or shared memory behind it."""
    process = Path(f"/proc/{pid}")
    for line in process.joinpath("smaps_rollup").read_text("utf-8").splitlines():
        if line.startswith("Pss_Anon:"):
            return int(line.split()[1])
    raise AssertionError(f"{process}: no Pss_Anon; wanted Linux 5.0 or newer")


def kind(name: str) -> str:
    """A name without its numbers, and without its folder's if it has another."""
    folder, _, last = name.rpartition("/") if name.startswith("/") else ("", "", name)
    return _NUMBERS.sub("#", f"{Path(folder).name}/{last}" if last.isdecimal() else last)


def names_of(folder: Path, prefix: str = "") -> Counter[str]:
    """All files below a folder whose names begin so, by kind."""
    return Counter(kind(name) for _, _, names in os.walk(folder) for name in names
                   if name.startswith(prefix))  # fmt: skip


def differences(
    before: Mapping[str, Counter[str]],
    now: Mapping[str, Counter[str]],
    caches: Mapping[str, int] | None = None,
    slack: Mapping[tuple[str, str], int] | None = None,
) -> Iterable[str]:
    """What is more or less than before, as a person reads it.

    Args:
        before: counts of kinds.
        now: the same, later.
        caches: kinds of which there may be any number up to a bound.
        slack: by which of the counts and kind: there may be so many more or less.
    """
    for what in sorted({*before, *now}):
        was, is_ = before.get(what, Counter()), now.get(what, Counter())
        for name in sorted({*was, *is_}):
            most = (caches or {}).get(name)
            change = abs(is_[name] - was[name])
            if change > (slack or {}).get((what, name), 0) if most is None else is_[name] > most:
                bound = "" if most is None else f", {most} at most"
                yield f"{what}: {name}: {was[name]} before, {is_[name]} now{bound}"


def _links(folder: Path) -> Iterable[str]:
    for name in os.listdir(folder):
        try:
            yield os.readlink(folder / name)
        except FileNotFoundError:  # closed meanwhile
            continue
