"""The reaper: removes shared memory that nobody will come back for, and nothing else.

What lives here: `reap`, for whoever cleans a machine (`shmq shm clean`), and `sweep`, for the
broker that knows exactly what of its own it wants.

An object is removed only if every one of these holds, asked in this order:

  1. its name parses as ours, it is a plain object, and this uid owns it;
  2. one of the given runtime folders has a mark file for its store (this folder's broker made it),
     unless the memory is of another boot and can be adopted by nobody, or `unmarked` names it;
  3. the in-use mark is free, and the reaper holds it from here to the end: no broker starts between
     the question and the answer;
  4. the incarnation in the store's control segment, if there is one, does not run any more;
  5. every given manifest that exists can be read, and none wants the object. They are read now, not
     before: a broker that died a moment ago may have listed it a moment before that;
  6. the name still leads to the inode that was looked at.

Doubt keeps. Which process: any of the same uid. Written: names removed from /dev/shm, mark files of
stores that have nothing left. What may fail: a folder that cannot be trusted keeps everything.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import stat
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shmq.errors import ShmError
from shmq.shm import manifest as manifests_file
from shmq.shm.header import SegmentHeader
from shmq.shm.in_use import InUseMark, marked_stores
from shmq.shm.incarnation import boot_id
from shmq.shm.names import ObjectKind, ObjectName, StoreName, parse
from shmq.shm.segment import SHM_FOLDER, unlink

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

    from shmq.shm.manifest import Manifest

__all__ = ["Finding", "Verdict", "reap", "sweep"]

_log = logging.getLogger("shmq.shm")


class Verdict(enum.StrEnum):
    """What became of an object, and why."""

    REMOVED = "removed"
    """Nobody wants it and nobody holds it."""
    WOULD_REMOVE = "would remove"
    """The same, in a dry run."""
    GONE = "gone"
    """Somebody else removed or replaced it meanwhile."""
    IN_USE = "in use"
    """A living process holds the store, possibly a stopped one."""
    WANTED = "wanted"
    """A manifest lists it: its broker will adopt it."""
    OTHER_OWNER = "other owner"
    """Another uid's; the reaper of that uid decides."""
    UNMARKED = "unmarked"
    """No given runtime folder knows its store; a broker elsewhere may want it."""
    IN_DOUBT = "in doubt"
    """It looks odd, or something that might want it could not be read."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict on one object."""

    name: str
    """Name in /dev/shm, without the slash."""
    verdict: Verdict
    """What was done."""
    reason: str
    """One line for a person."""
    size_bytes: int
    """Its size."""


@dataclass(frozen=True, slots=True)
class _Object:
    """One object as it was listed."""

    name: ObjectName
    status: os.stat_result

    def find(self, verdict: Verdict, reason: str) -> Finding:
        return Finding(self.name.file_name, verdict, reason, self.status.st_size)


def reap(
    runtime_folders: Iterable[Path],
    manifests: Iterable[Path],
    *,
    dry_run: bool,
    unmarked: Collection[StoreName] = (),
) -> list[Finding]:
    """Remove the leftovers of dead brokers; see the module for the rule. Never waits.

    Args:
        runtime_folders: of all brokers this caller answers for; absent ones are skipped.
        manifests: paths of their stores' manifests, present or not; read here.
        dry_run: remove nothing, say what would be.
        unmarked: stores to remove, once their owner is dead, although no given folder knows them:
            named one by one by a person who knows that nobody will want their unflushed messages.

    Returns:
        A finding for every object whose name parses as ours, sorted by name.

    Raises:
        ShmError: /dev/shm or /proc cannot be read.
    """
    folders = [folder for folder in runtime_folders if os.path.lexists(folder)]
    manifest_paths = list(manifests)
    boot8 = boot_id().hex()[:8]
    findings = []
    by_store: defaultdict[StoreName, list[_Object]] = defaultdict(list)
    for found in _list_objects():
        kept = _strange(found)
        if kept is None:
            by_store[found.name.store].append(found)
        else:
            findings.append(kept)
    for store, objects in by_store.items():
        with contextlib.ExitStack() as held:
            kept_all = _claim(store, objects, folders, held, boot8=boot8, unmarked=unmarked)
            if kept_all is not None:
                verdict, reason = kept_all
                findings += [found.find(verdict, reason) for found in objects]
            else:
                findings += _judge(objects, manifest_paths, dry_run=dry_run)
    if not dry_run:
        _drop_marks(folders, manifest_paths)
    return sorted(findings, key=lambda finding: finding.name)


def sweep(mark: InUseMark, *, keep: Collection[ObjectName]) -> list[ObjectName]:
    """Remove every object of the mark's store that is not in `keep`.

    For the broker, after adoption (clients that went while it was dead) and at the end.

    Args:
        mark: held: the right to do this.
        keep: what is still wanted.

    Returns:
        What was removed.

    Raises:
        ShmError: the mark is not held, or an object cannot be removed.
    """
    if not mark.is_held:
        raise ShmError(f"sweep {mark.store}: its in-use mark is not held; take it first")
    swept = [
        found.name
        for found in _list_objects()
        if found.name.store == mark.store
        and found.name not in keep
        and found.status.st_uid == os.geteuid()
    ]
    return [name for name in swept if unlink(name)]


def _list_objects() -> list[_Object]:
    """Return what in /dev/shm bears a name of ours, whoever made it."""
    objects = []
    try:
        with os.scandir(SHM_FOLDER) as entries:
            for entry in entries:
                name = parse(entry.name)
                if name is not None:
                    with contextlib.suppress(FileNotFoundError):
                        objects.append(_Object(name, entry.stat(follow_symlinks=False)))
    except OSError as error:
        raise ShmError(f"list {SHM_FOLDER}: {error.strerror}") from error
    return objects


def _strange(found: _Object) -> Finding | None:
    """Return why the object is not ours to judge, or None."""
    if found.status.st_uid != os.geteuid():
        return found.find(
            Verdict.OTHER_OWNER, f"owned by uid {found.status.st_uid}, not {os.geteuid()}"
        )
    if not stat.S_ISREG(found.status.st_mode):
        return found.find(Verdict.IN_DOUBT, "not a shared memory object")
    return None


def _claim(
    store: StoreName,
    objects: list[_Object],
    folders: list[Path],
    held: contextlib.ExitStack,
    *,
    boot8: str,
    unmarked: Collection[StoreName],
) -> tuple[Verdict, str] | None:
    """Take the store's marks into `held`; return why its objects must stay, or None."""
    is_marked = False
    for folder in folders:
        try:
            mark = InUseMark.try_take(folder, store, make=False)
            if mark is not None:
                held.callback(mark.release)
                is_marked = True
            elif store in marked_stores(folder):
                return Verdict.IN_USE, f"a process holds its in-use mark in {folder}"
        except ShmError as error:
            return Verdict.IN_DOUBT, str(error)
    owner_pid = _living_owner(objects)
    if owner_pid is not None:
        return Verdict.IN_USE, f"its owner, process {owner_pid}, is alive"
    if not is_marked and store not in unmarked and store.boot8 == boot8:
        return Verdict.UNMARKED, "no runtime folder that was given knows this store"
    return None


def _living_owner(objects: list[_Object]) -> int | None:
    """Return the pid of the store's owner if that incarnation still runs."""
    for found in objects:
        if found.name.kind is not ObjectKind.CONTROL:
            continue
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            fd = os.open(f"{SHM_FOLDER}{found.name}", flags)
        except OSError:
            continue
        try:
            header = SegmentHeader.read(fd, name=str(found.name))
        except ShmError:
            # Too short for a header: its creator died before anybody could be told of it.
            continue
        finally:
            os.close(fd)
        if header.is_finished and header.owner.is_alive():
            return header.owner.pid
    return None


def _judge(objects: list[_Object], manifest_paths: list[Path], *, dry_run: bool) -> list[Finding]:
    """Remove what no manifest wants of a store that the caller has claimed."""
    try:
        manifests = _load_all(manifest_paths)
    except ShmError as error:
        reason = f"a manifest that might want it cannot be read: {error}"
        return [found.find(Verdict.IN_DOUBT, reason) for found in objects]
    return [_judge_one(found, manifests, dry_run=dry_run) for found in objects]


def _judge_one(found: _Object, manifests: list[Manifest], *, dry_run: bool) -> Finding:
    """Remove one object of a claimed store unless a manifest wants it."""
    if any(manifest.wants(found.name) for manifest in manifests):
        return found.find(Verdict.WANTED, "a manifest lists it; its broker will adopt it")
    if dry_run:
        return found.find(Verdict.WOULD_REMOVE, "no manifest wants it and no process holds it")
    try:
        now = os.stat(f"{SHM_FOLDER}{found.name}", follow_symlinks=False)
        if not os.path.samestat(now, found.status) or not unlink(found.name):
            return found.find(Verdict.GONE, "replaced or removed by somebody else")
    except FileNotFoundError:
        return found.find(Verdict.GONE, "removed by somebody else")
    except ShmError as error:
        return found.find(Verdict.IN_DOUBT, str(error))
    _log.info("removed leftover name=%s size_bytes=%d", found.name, found.status.st_size)
    return found.find(Verdict.REMOVED, "no manifest wanted it and no process held it")


def _load_all(paths: list[Path]) -> list[Manifest]:
    """Read the manifests that exist."""
    loaded = (manifests_file.load(path) for path in paths)
    return [manifest for manifest in loaded if manifest is not None]


def _drop_marks(folders: list[Path], manifest_paths: list[Path]) -> None:
    """Remove the mark files of stores that have no object and no manifest any more."""
    for folder in folders:
        try:
            for store in marked_stores(folder):
                mark = InUseMark.try_take(folder, store, make=False)
                if mark is None:
                    continue
                with mark:
                    is_wanted = any(
                        manifest.store == store for manifest in _load_all(manifest_paths)
                    )
                    has_objects = any(found.name.store == store for found in _list_objects())
                    if not is_wanted and not has_objects:
                        mark.remove()
        except ShmError as error:
            _log.warning("kept mark files folder=%s reason=%s", folder, error)
