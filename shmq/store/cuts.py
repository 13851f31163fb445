"""What a log lost when it was cut for its master's: `<store>/shmq/cuts.json`, and how it is cut.

What lives here: `Cut`, `CutList`, `CutPlan`, `begin_cut`, `finish_cuts`, `read_frames`. A member of
a replica set that comes back with messages that the master's log has not gives up the end of its
log from the first byte that differs: what was there is kept aside, and its messages are appended
again to the master's log, or counted as lost (shmq.broker.resend). Nothing of it is ever dropped
silently.

    {"format_version": 1,
     "cuts": [{"position": 4711, "end_position": 9000, "cut_at": 1788220800000, "is_done": true,
               "is_kept": true, "is_resent": true,
               "parts": [{"position": 4711, "size": 4289, "file_name": "cut-..."}],
               "next_position": 5000, "resent_count": 3, "present_count": 1, "lost_count": 0,
               "reason": ""}, ...]}
    crc32 0a1b2c3d                                CRC-32 of all bytes above

The order, so that a death between any two steps changes nothing: the cut is written down, with the
names that its parts will have; from here on whoever opens the store next finishes it first. Then
the positions are lowered, what was derived from the log behind the cut goes, each part is kept
aside (a whole file is moved into shmq/quarantine/, of the file in which the cut is a synced copy is
made), last file first; then the rest of that file is zeroed, the epochs are cut, and the cut is
done. Each step that was made before is found made.

Which process: the broker, under the store's lock, its store closed (`begin_cut`, `finish_cuts`);
one thread of a running broker (`CutList.save`). May fail: StoreCorruptError for a list that does
not hold, DiskFullError, StoreError; called again, it goes on.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from shmq.core import core
from shmq.errors import ConfigError, StoreCorruptError, StoreError
from shmq.json_fields import Fields
from shmq.shm import manifest as manifests
from shmq.shm.incarnation import boot_id
from shmq.store import checked_json, consume_queue_files, positions
from shmq.store.durable_file import disk_error, fsync_folder
from shmq.store.epochs import EpochFile
from shmq.store.index_files import drop_index, index_positions
from shmq.store.log_files import LogFiles, find_file_size
from shmq.store.store_lock import StoreLock

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = [
    "Cut",
    "CutFrame",
    "CutList",
    "CutPart",
    "CutPlan",
    "begin_cut",
    "finish_cuts",
    "read_frames",
]

_log = logging.getLogger("shmq.store")

FILE_NAME = "cuts.json"
FORMAT_VERSION = 1
_OK = core.STATUS["OK"][0]
_BLANK_SIZE = 8


class CutPart(NamedTuple):
    """What was cut of one file."""

    position: int
    """physical_offset of its first byte."""
    size: int
    """Bytes."""
    file_name: str
    """In shmq/quarantine/; it may be longer, with zeros behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One cut. A value."""

    position: int
    """physical_offset from which on the log was another one than the master's."""
    end_position: int
    """Where the log ended."""
    cut_at: int
    """When, ms since 1970."""
    parts: tuple[CutPart, ...]
    """By position."""
    is_done: bool = False
    """The log ends at `position` now."""
    is_kept: bool = True
    """Its parts are kept aside. False: the master had all of it, and has let it expire."""
    is_resent: bool = True
    """Its messages are to be appended again."""
    next_position: int = 0
    """What is before it has been looked at."""
    resent_count: int = 0
    """Messages appended again."""
    present_count: int = 0
    """Messages that the master had already."""
    lost_count: int = 0
    """Messages that neither is true of; they are in the parts alone."""
    reason: str = ""
    """Why the first of those was lost."""

    @property
    def is_settled(self) -> bool:
        """Whether each of its messages is counted."""
        return self.is_done and self.next_position >= self.end_position


class CutPlan(NamedTuple):
    """What is to be cut of a log, and what becomes of its messages."""

    position: int
    """From here on; the start of a frame, or of the first file: then nothing is left."""
    end_position: int
    """Where the log ends."""
    resent_from: int
    """What is before was the master's once; at `position`, or behind it."""
    is_kept: bool = True
    """As in Cut."""
    is_resent: bool = True
    """As in Cut."""
    reason: str = ""
    """Why its messages are lost, where they are not resent."""


class CutFrame(NamedTuple):
    """One frame of a cut."""

    physical_offset: int
    """Where it was."""
    end_position: int
    """Where the next one begins."""
    frame: bytes
    """Its bytes; empty where it does not hold."""
    said: Mapping[str, Any]
    """What core.parse_frame makes of it."""


@dataclass(frozen=True, slots=True)
class CutList:
    """The cuts of one store. A value: what changes it writes the file and gives a new one."""

    store_path: Path
    """Folder of the store."""
    cuts: tuple[Cut, ...] = ()
    """Oldest first."""

    @classmethod
    def load(cls, store_path: Path) -> CutList:
        """The list of a store; empty where there is no file.

        Raises:
            StoreCorruptError: the file does not hold.
            StoreVersionError: a newer shmq wrote it.
            StoreError: it cannot be read.
        """
        path = store_path / "shmq" / FILE_NAME
        take = checked_json.load_fields(path, FORMAT_VERSION)
        if take is None:
            return cls(store_path)
        try:
            return cls(store_path, tuple(_cut(item, path) for item in take.items("cuts")))
        except ConfigError as error:
            raise StoreCorruptError(str(error)) from error

    @property
    def unsettled(self) -> Cut | None:
        """The oldest cut with messages that are not counted yet."""
        return next((cut for cut in self.cuts if cut.is_done and not cut.is_settled), None)

    def save(self, cut: Cut) -> CutList:
        """Put a cut in the place of the one of the same position and time, or behind all.

        Raises:
            DiskFullError, StoreError: the old list stands.
        """
        kept = [one for one in self.cuts if not _is_same(one, cut)]
        at = next((i for i, one in enumerate(self.cuts) if _is_same(one, cut)), len(kept))
        return self._save((*kept[:at], cut, *kept[at:]))

    def remove(self, cut: Cut) -> CutList:
        """Forget a cut. Errors as `save`."""
        return self._save(tuple(one for one in self.cuts if not _is_same(one, cut)))

    def forget_removed(self) -> CutList:
        """Forget the settled cuts whose parts a person has removed: they were seen to."""
        folder = self.store_path / "shmq" / "quarantine"
        kept = tuple(
            cut
            for cut in self.cuts
            if not cut.is_settled or any((folder / part.file_name).exists() for part in cut.parts)
        )
        return self if kept == self.cuts else self._save(kept)

    def _save(self, cuts: tuple[Cut, ...]) -> CutList:
        data: dict[str, object] = {
            "format_version": FORMAT_VERSION,
            "cuts": [
                {
                    **{name: getattr(cut, name) for name in cut.__slots__ if name != "parts"},
                    "parts": [part._asdict() for part in cut.parts],
                }
                for cut in cuts
            ],
        }
        checked_json.save(self.store_path / "shmq" / FILE_NAME, data)
        return CutList(self.store_path, cuts)


# ---- cutting -------------------------------------------------------------------------------------


def begin_cut(store_path: Path, plan: CutPlan, *, cut_at: int) -> None:
    """Write down that the log of a closed store is cut; `finish_cuts` then does it.

    Args:
        store_path: folder of the store.
        plan: what of it.
        cut_at: now, ms since 1970.

    Raises:
        StoreLockedError: somebody has it open.
        DiskFullError, StoreError: nothing has changed.
    """
    with StoreLock(store_path):
        _refuse_memory(store_path)
        cut = Cut(
            position=plan.position,
            end_position=plan.end_position,
            cut_at=cut_at,
            parts=_parts(store_path, plan, cut_at),
            is_kept=plan.is_kept,
            is_resent=plan.is_resent,
            next_position=plan.resent_from,
            reason=plan.reason,
        )
        CutList.load(store_path).save(cut)
    _log.warning(
        "cut begins position=%d end=%d kept=%s", plan.position, plan.end_position, plan.is_kept
    )


def _refuse_memory(store_path: Path) -> None:
    """Shared memory that is to be adopted has what would be cut."""
    path = manifests.manifest_path(store_path)
    manifest = manifests.load(path)
    if manifest is not None and manifest.boot_id == boot_id():
        raise StoreError(f"cut the log of {store_path}: its memory is there still ({path})")


def _parts(store_path: Path, plan: CutPlan, cut_at: int) -> tuple[CutPart, ...]:
    size = find_file_size(store_path)
    if not size:
        return ()
    parts = []
    for file in LogFiles(store_path, size).files():
        begin = max(plan.position, file.file_position)
        end = min(plan.end_position, file.file_position + size)
        if begin < end:
            parts.append(CutPart(begin, end - begin, f"cut-{begin:020d}-{cut_at}.bin"))
    return tuple(parts)


def finish_cuts(store_path: Path) -> None:
    """Make the cuts that were begun, before a store is opened; none is the common case.

    Raises:
        StoreCorruptError, DiskFullError, StoreError: call it again.
    """
    known = CutList.load(store_path)
    for cut in known.cuts:
        if cut.is_done:
            continue
        size = find_file_size(store_path)
        if size:
            _cut_log(LogFiles(store_path, size), cut)
        EpochFile.load(store_path).cut(cut.position)
        known = known.save(replace(cut, is_done=True)) if cut.is_kept else known.remove(cut)
        _log.warning("cut position=%d end=%d", cut.position, cut.end_position)


def _cut_log(files: LogFiles, cut: Cut) -> None:
    size = files.file_size_bytes
    logs = files.files()
    is_empty = not logs or cut.position <= logs[0].file_position
    _lower_positions(files.store_path, cut.position, is_empty=is_empty)
    consume_queue_files.drop_behind(files.store_path, cut.position, file_size_bytes=size)
    for file_position in index_positions(files.store_path):
        if file_position + size > cut.position:
            drop_index(files.store_path, file_position)
    files.make_folders()
    names = {files.file_position(part.position): part for part in cut.parts}
    for log in reversed(logs):
        file_position = log.file_position
        if file_position + size <= cut.position:
            break
        part = names.get(file_position)
        if file_position < cut.position:
            if part is not None and cut.is_kept:
                files.copy_aside(part.position, part.size, part.file_name)
            files.zero_from(cut.position)
        elif part is not None and cut.is_kept:
            files.move_aside(file_position, part.file_name)
        else:
            files.remove_last(file_position)


def _lower_positions(store_path: Path, position: int, *, is_empty: bool) -> None:
    """What is behind the cut was on disk, and is no more: recovery must not miss it."""
    path = positions.positions_path(store_path)
    if is_empty:  # a log that begins anew has positions of its own
        try:
            path.unlink(missing_ok=True)
            fsync_folder(path.parent)
        except OSError as error:
            raise disk_error(f"delete {path}", error) from error
        return
    try:
        known = positions.load(path)
    except StoreCorruptError:
        return  # recovery does not believe them either
    if known is None or known.flushed_position <= position:
        return
    lowered = replace(known, flushed_position=position, is_clean=False)
    for _ in range(2):  # both slots: a damaged newer one must not bring the older back
        lowered = positions.save(path, lowered, durable=True)


# ---- what was cut --------------------------------------------------------------------------------


def read_frames(fd: int, part: CutPart, begin: int) -> Iterator[CutFrame]:
    """Yield the frames of a part from `begin` on, in order; BLANK frames are left out.

    A frame that does not hold is given without its bytes, and the next one that holds is looked
    for.

    Args:
        fd: of the part's file, open for reading; it may be another process's, and change.
        part: what it has.
        begin: physical_offset, in the part.

    Raises:
        StoreError: the file cannot be read, or is shorter.
    """
    end = part.position + part.size
    while end - begin >= _BLANK_SIZE:
        head = _read(fd, part, begin, _BLANK_SIZE)
        size = int.from_bytes(head[:4], "big")
        if head[4:] == _BLANK_MAGIC:
            return
        frame = _read(fd, part, begin, size) if _BLANK_SIZE < size <= end - begin else b""
        status, _, said = core.parse_frame(frame, physical_offset=begin) if frame else (1, 0, None)
        if status == _OK and said is not None:
            yield CutFrame(begin, begin + size, frame, said)
            begin += size
        else:
            after = _next_frame(fd, part, begin + 1)
            yield CutFrame(begin, after, b"", {})
            begin = after


def _next_frame(fd: int, part: CutPart, begin: int) -> int:
    """Where the next frame that holds begins, or the end of the part."""
    end = part.position + part.size
    rest = _read(fd, part, begin, end - begin)
    found, status = core.resync(rest, position=begin, begin=begin, end=end, file_end=end)
    return found if status == _OK else end


def _read(fd: int, part: CutPart, physical_offset: int, size: int) -> bytes:
    try:
        data = os.pread(fd, size, physical_offset - part.position)
    except OSError as error:
        raise disk_error(f"read {part.file_name}", error) from error
    if len(data) != size:
        raise StoreError(
            f"read {part.file_name}: {len(data)} bytes at {physical_offset}, wanted {size}; "
            "restore the file, or remove it: what it has is lost then"
        )
    return data


_BLANK_MAGIC = b"\xcb\xd4\x31\x94"


def _is_same(one: Cut, other: Cut) -> bool:
    return (one.position, one.cut_at) == (other.position, other.cut_at)


def _cut(item: Mapping[str, object], path: Path) -> Cut:
    take = Fields(item, what=f"{path}: cut")
    return Cut(
        position=take.number("position"),
        end_position=take.number("end_position"),
        cut_at=take.number("cut_at"),
        parts=tuple(
            CutPart(part.number("position"), part.number("size"), part.text("file_name"))
            for part in (Fields(one, what=f"{path}: part") for one in take.items("parts"))
        ),
        is_done=take.flag("is_done"),
        is_kept=take.flag("is_kept"),
        is_resent=take.flag("is_resent"),
        next_position=take.number("next_position"),
        resent_count=take.number("resent_count"),
        present_count=take.number("present_count"),
        lost_count=take.number("lost_count"),
        reason=take.text("reason"),
    )
