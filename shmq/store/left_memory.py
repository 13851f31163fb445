"""The memory that the last master of a replica set left: whether it is there, and its list.

What lives here: `has_memory` and `find_list`. The list (manifest.json) lies in the store of whoever
was master, and that may be gone with its disk, while the memory is there. Then the names in
/dev/shm are the list: the marks in the replica set's own folder say which stores have memory, and
the head of a control segment under which mastership it was written last.

A store that has no list has no memory, or somebody has moved the list away so that its memory
counts no more: names are not looked at then. But where the disk is lost and its broker was started
again, a folder is there that never saw that mastership: its epochs are older than the record. What
is in it says nothing of the memory.

Which process: whoever elects, and the member that takes over. Reads only. What may fail: ShmError
for a list, epochs or a folder that cannot be read.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from shmq.core.fields import read_ints, struct_size
from shmq.errors import ShmError, StoreError
from shmq.shm import manifest as manifests
from shmq.shm import segment
from shmq.shm.in_use import marked_stores
from shmq.shm.mastership import control_header
from shmq.shm.names import ObjectKind, label, parse
from shmq.shm.segment import SHM_FOLDER
from shmq.store.epochs import EpochFile

if TYPE_CHECKING:
    from pathlib import Path

    from shmq.shm.header import SegmentHeader
    from shmq.shm.manifest import Manifest
    from shmq.shm.mastership import MasterRecord
    from shmq.shm.names import StoreName

__all__ = ["find_list", "has_memory", "is_recorded_store"]

_HEAD_SIZE: Final = struct_size("segment_header") + struct_size("control_config")


def has_memory(folder: Path, record: MasterRecord) -> bool:
    """Whether the memory that the last master left is there, all of it, whatever is in it.

    Args:
        folder: the replica set's own.
        record: what the last master wrote there.

    Raises:
        ShmError: its list or the folder cannot be read.
    """
    if not record.is_of_this_boot:
        return False
    manifest = manifests.load(record.manifest_path)
    if manifest is None:
        return _find_store(folder, record) is not None
    return manifest.boot_id == record.boot_id and manifests.is_in_memory(manifest)


def find_list(folder: Path, record: MasterRecord, *, cluster_name: str) -> Manifest | None:
    """The list of that memory, made of names where its store is gone; None: there is none.

    Args:
        folder: the replica set's own.
        record: what the last master wrote there.
        cluster_name: of the replica set; names have its label only.

    Raises:
        ShmError: the list or the folder cannot be read.
    """
    manifest = manifests.load(record.manifest_path)
    if manifest is not None or not record.is_of_this_boot:
        return manifest
    found = _find_store(folder, record)
    if found is None or found[0].cluster != label(cluster_name):
        return None
    store, header = found
    file_size = _file_size_bytes(store)
    entries = []
    try:
        with os.scandir(SHM_FOLDER) as listed:
            for entry in listed:
                name = parse(entry.name)
                if name is None or name.store != store or not manifests.is_listed_kind(name.kind):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    size = entry.stat(follow_symlinks=False).st_size
                    # Of another size: its maker was killed while it made it, nothing is in it.
                    if name.kind is not ObjectKind.HOT or size == file_size:
                        entries.append(manifests.ObjectEntry(name, size))
    except OSError as error:
        raise ShmError(f"list {SHM_FOLDER}: {error.strerror}") from error
    return manifests.Manifest(
        layout_version=header.layout_version,
        boot_id=header.boot_id,
        generation=store.generation,
        cluster_name=cluster_name,
        broker_name=record.broker_name,
        broker_id=store.broker_id,
        file_size_bytes=file_size,
        uid=header.owner_uid,
        objects=tuple(sorted(entries, key=lambda entry: str(entry.name))),
    )


def is_recorded_store(store_path: Path, record: MasterRecord) -> bool:
    """Whether a store is the one of the record's mastership, or went on behind it; False: that disk
    is lost, not mounted, or has an older copy.

    Raises:
        ShmError: its epochs cannot be read.
    """
    try:
        return EpochFile.load(store_path).last_epoch >= record.master_epoch
    except StoreError as error:
        raise ShmError(str(error), hint=error.hint) from error


def _file_size_bytes(store: StoreName) -> int:
    """The size of a file of its log, and so of a hot segment."""
    with segment.attach(store.object(ObjectKind.CONTROL, 0), readonly=True) as control:
        head = os.pread(control.fileno(), _HEAD_SIZE, 0)
    return read_ints(head, "control_config", struct_size("segment_header"))["file_size_bytes"]


def _find_store(folder: Path, record: MasterRecord) -> tuple[StoreName, SegmentHeader] | None:
    if is_recorded_store(record.store_path, record):
        return None
    for store in marked_stores(folder):
        header = control_header(store)
        if header is not None and (header.boot_id, header.master_epoch, header.owner_uid) == (
            record.boot_id,
            record.master_epoch,
            os.geteuid(),
        ):
            return store, header
    return None
