"""What a disk may hold after a power cut, made from a record of all that was done to a folder.

What lives here: `recording`, the environment in which a process is recorded (recorder.c);
`RecordedDisk`, which reads a record and makes images. What was synced is there. Of the rest an
image has an arbitrary part: names per folder as far as some moment, sizes of some moment, data in
pages or sectors of which each is as old as it likes. A crash may fall between any two calls.
"""

from __future__ import annotations

import math
import struct
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.support.compiled import library

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Mapping

_SOURCE = Path(__file__).with_name("recorder.c")
_HEAD = struct.Struct("<IIQQQ")
_MAKE, _WRITE, _RESIZE, _RENAME, _LINK, _REMOVE, _BEGIN, _END = range(1, 9)
_FOLDER = 1
_PAGE = 4096
_SECTOR = 512

DROP = "drop"
"""Nothing is there that was not synced."""
KEEP = "keep"
"""Everything is there."""
TIME = "time"
"""Everything is there up to some moment, and nothing later that was not synced."""
PAGES = "pages"
"""Each page of 4 KiB, each size and each folder's names are of some moment of their own."""
SECTORS = "sectors"
"""As PAGES, but pages are torn into sectors of 512 bytes."""
HOWS = (DROP, KEEP, TIME, PAGES, SECTORS)


def recording(folder: Path, record: Path) -> dict[str, str]:
    """The environment of a process whose doings in `folder` go to the end of `record`."""
    return {
        "LD_PRELOAD": str(library(_SOURCE, "-ldl", "-pthread")),
        "SHMQ_RECORD_FOLDER": str(folder),
        "SHMQ_RECORD_FILE": str(record),
    }


_Reach = Callable[[int, list[int]], float]


class Entry(NamedTuple):
    """One call."""

    kind: int
    path: str
    """Within the folder."""
    data: bytes
    inode: int
    place: int
    end: int
    """Where it ends in the record: what somebody saw when the record had this size was after it."""


class _Change(NamedTuple):
    index: int
    place: int
    data: bytes | None
    """None: a change of the size to `place`."""


@dataclass(eq=False)
class _Node:
    """A file, whatever its names."""

    changes: list[_Change] = field(default_factory=list)
    synced: int = 0
    """Changes before this entry are on disk."""


class _Naming(NamedTuple):
    index: int
    folder: str
    gone: str | None
    path: str | None
    node: _Node | None


class RecordedDisk:
    """A record, and what was in the folder before."""

    def __init__(
        self,
        record: Path,
        folder: Path,
        *,
        before: Mapping[str, bytes] | None = None,
        inodes: Mapping[str, int] | None = None,
    ) -> None:
        """Read the record of what was done to `folder`.

        Args:
            record: the file that the recorder wrote.
            folder: which it was; as in `recording`.
            before: files that were there, all on disk.
            inodes: of those, as `inodes_of` gave them before the recording.
        """
        self.entries = _read(record, folder)
        self._before = before or {}
        self._inodes = inodes or {}

    def image(
        self, count: int, how: str, chance: random.Random, *, is_deaf: bool = False
    ) -> dict[str, bytes | None]:
        """Files (None: a folder) by path after a cut behind `count` entries.

        Args:
            count: how many entries had happened.
            how: which part of what was not synced is there, one of HOWS.
            chance: decides the rest.
            is_deaf: a disk that ignores every sync: shows that a check sees a loss.
        """
        nodes, namings, folders_synced = self._walk(count, is_deaf=is_deaf)
        moment = chance.randrange(count + 1)

        def reach(synced: int, indexes: list[int]) -> float:
            """Up to which entry changes count that were not synced."""
            if how == DROP:
                return synced
            if how == KEEP:
                return math.inf
            if how == TIME:
                return max(synced, moment)
            return chance.choice([synced, *(index + 1 for index in indexes if index >= synced)])

        names: dict[str, _Node | None] = {}
        by_folder = defaultdict(list)
        for naming in namings:
            by_folder[naming.folder].append(naming.index)
        limits = {
            folder: reach(folders_synced.get(folder, 0), indexes)
            for folder, indexes in by_folder.items()
        }
        for naming in namings:
            if naming.index < limits[naming.folder]:
                if naming.gone is not None:
                    names.pop(naming.gone, None)
                if naming.path is not None:
                    names[naming.path] = naming.node
        contents = {id(node): _content(node, how, reach, chance) for node in nodes}
        return {
            path: None if node is None else contents[id(node)]
            for path, node in names.items()
            if _is_reachable(path, names)
        }

    def _walk(
        self, count: int, *, is_deaf: bool
    ) -> tuple[list[_Node], list[_Naming], dict[str, int]]:
        """Every file ever, every change of names, and up to where each folder is synced."""
        nodes: list[_Node] = []
        by_inode: dict[int, _Node] = {}
        namings: list[_Naming] = []
        folders_synced: dict[str, int] = {}
        begun: dict[int, int] = {}

        def add(inode: int) -> _Node:
            nodes.append(_Node())
            by_inode[inode] = nodes[-1]
            return nodes[-1]

        def name(index: int, gone: str | None, path: str | None, node: _Node | None) -> None:
            where = path if path is not None else gone
            assert where is not None
            namings.append(_Naming(index, where.rpartition("/")[0], gone, path, node))

        for path, data in self._before.items():
            node = add(self._inodes[path])
            node.changes.append(_Change(-1, 0, data))
            for parent in reversed(Path(path).parents[:-1]):
                name(-1, None, str(parent), None)
            name(-1, None, path, node)
        for index, entry in enumerate(self.entries[:count]):
            found = by_inode.get(entry.inode)
            if entry.kind == _MAKE:
                if entry.path:  # the folder itself is always there
                    made = None if entry.place == _FOLDER else add(entry.inode)
                    name(index, None, entry.path, made)
            elif entry.kind in (_WRITE, _RESIZE):
                if found is None and entry.kind == _RESIZE and entry.place == 0:
                    # Its maker was killed before it could write that down; another one begins anew.
                    found = add(entry.inode)
                    name(index, None, entry.path, found)
                assert found is not None, entry
                data_or_size = entry.data if entry.kind == _WRITE else None
                found.changes.append(_Change(index, entry.place, data_or_size))
            elif entry.kind == _RENAME:
                name(index, entry.path, entry.data.decode(), found)
            elif entry.kind == _LINK:
                name(index, None, entry.data.decode(), found)
            elif entry.kind == _REMOVE:
                name(index, entry.path, None, None)
            elif entry.kind == _BEGIN:
                begun[entry.place] = index
            elif not is_deaf:
                if found is None:
                    folders_synced[entry.path] = begun[entry.place]
                else:
                    found.synced = max(found.synced, begun[entry.place])
        return nodes, namings, folders_synced


def inodes_of(folder: Path, paths: Iterable[str]) -> dict[str, int]:
    """The inodes by which a record will call files that are there."""
    return {path: (folder / path).stat().st_ino for path in paths}


def write_image(image: Mapping[str, bytes | None], folder: Path) -> None:
    """Make an image's files, below a folder that is made, too."""
    folder.mkdir()
    for path, data in sorted(image.items()):
        if data is None:
            (folder / path).mkdir(exist_ok=True)
        else:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)


def _content(node: _Node, how: str, reach: _Reach, chance: random.Random) -> bytes:
    """The bytes of a file as they may be."""
    data = bytearray()
    late: list[_Change] = []
    sizes: dict[int, int] = {}
    size = 0
    for change in node.changes:
        end = change.place + len(change.data or b"")
        size = end if change.data is None else max(size, end)
        if change.index >= node.synced:
            late.append(change)
            sizes[change.index] = size
        elif change.data is None:
            del data[size:]
            data.extend(bytes(size - len(data)))
        else:
            data.extend(bytes(size - len(data)))
            data[change.place : change.place + len(change.data)] = change.data
    if not late:
        return bytes(data)
    limit = reach(node.synced, [change.index for change in late])
    final_size = max(
        ((index, size) for index, size in sizes.items() if index < limit), default=(0, len(data))
    )[1]
    writes = [change for change in late if change.data is not None]
    room = max([final_size, len(data), *(w.place + len(w.data or b"") for w in writes)])
    data.extend(bytes(room - len(data)))
    if how in (PAGES, SECTORS):
        unit = _PAGE if how == PAGES else _SECTOR
        units = {
            number
            for w in writes
            for number in range(w.place // unit, (w.place + len(w.data or b"") - 1) // unit + 1)
        }
        limits = {number: reach(node.synced, [w.index for w in writes]) for number in sorted(units)}
        for write in writes:
            _apply_units(data, write, unit, limits)
    else:
        for write in writes:
            if write.index < limit:
                data[write.place : write.place + len(write.data or b"")] = write.data or b""
    return bytes(data[:final_size])


def _apply_units(data: bytearray, write: _Change, unit: int, limits: Mapping[int, float]) -> None:
    """Write those pages or sectors of it that are as new as that."""
    assert write.data is not None
    end = write.place + len(write.data)
    at = write.place
    while at < end:
        following = min(end, (at // unit + 1) * unit)
        if write.index < limits[at // unit]:
            data[at:following] = write.data[at - write.place : following - write.place]
        at = following


def _is_reachable(path: str, names: Mapping[str, object]) -> bool:
    """Whether the folders that lead to it are there."""
    return all(str(parent) in names for parent in Path(path).parents[:-1])


def _read(record: Path, folder: Path) -> list[Entry]:
    data = record.read_bytes()
    prefix = f"{folder}/"
    entries = []
    at = 0
    while at < len(data):
        kind, path_size, data_size, inode, place = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        path = data[at : at + path_size].decode()
        at += path_size
        payload = data[at : at + data_size]
        at += data_size
        if kind in (_RENAME, _LINK):
            payload = payload.decode().removeprefix(prefix).encode()
        path = path.removeprefix(prefix) if path != str(folder) else ""
        entries.append(Entry(kind, path, payload, inode, place, at))
    return entries
