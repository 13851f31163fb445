"""The manifest: which shared memory a store wants kept, written on disk before it is used.

What lives here: `Manifest` and its file, `<store>/shmq/manifest.json`: JSON for people, and behind
it one line with the CRC of every byte before it.

    {                                             RocketMQ-free, indented by two
      "layout_version": 1, "boot_id": "...", ...
      "objects": [{"kind": "control", "n": 0, "name": "/shmq...", "size_bytes": 65536}, ...]
    }
    crc32 0a1b2c3d                                zlib.crc32 of all bytes above

Order for whoever makes an object: create, list it here (`save`), use it; to drop one: take it off
the list, unlink. So a crash at any step leaves either an unlisted object that nobody has used,
which the reaper or the broker's own sweep removes, or a listed one that is whole. A listed object
that is missing was taken away by somebody else (logind's RemoveIPC), and the broker recovers from
files.

Completion objects, one per client, are not listed: their names follow from the generation and the
session slot, and the slots stand in the control segment. A client coming or going writes no file.
Nor is the stats object: each broker makes it anew, and nobody adopts it.
Everything else changes with a roll or a growth, a few times a second at most.

Which process: the broker writes, under its in-use mark; the reaper and tools read. What may fail:
ShmError for an unreadable file, naming file, line and reason; DiskFullError. Nothing here deletes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import zlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import orjson

from shmq.errors import DiskFullError, DiskReadOnlyError, ShmError
from shmq.shm.fds import open_error
from shmq.shm.names import ObjectKind, ObjectName, StoreName, parse
from shmq.shm.segment import SHM_FOLDER

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "Manifest",
    "ObjectEntry",
    "is_in_memory",
    "is_listed_kind",
    "load",
    "manifest_path",
    "save",
]

_SIZE_LIMIT_BYTES = 16 << 20
_CRC_LINE = re.compile(rb"crc32 ([0-9a-f]{8})\n")
_CRC_LINE_SIZE = len(b"crc32 00000000\n")
_UNLISTED_KINDS = frozenset({ObjectKind.COMPLETION, ObjectKind.STATS})
_FIELDS: Final[dict[str, type]] = {
    "layout_version": int,
    "boot_id": str,
    "generation": str,
    "cluster_name": str,
    "broker_name": str,
    "broker_id": int,
    "file_size_bytes": int,
    "uid": int,
}
_ENTRY_FIELDS: Final[dict[str, type]] = {"kind": str, "n": int, "name": str, "size_bytes": int}


@dataclass(frozen=True, slots=True)
class ObjectEntry:
    """One listed object."""

    name: ObjectName
    """Its full name; kind and number are in it."""
    size_bytes: int
    """Size when it was listed; control, topics and arena segments may have grown since."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What one store wants kept. A value: `with_object` and `without_object` give a new one."""

    layout_version: int
    """SHMQ_LAYOUT_VERSION of the memory."""
    boot_id: bytes
    """Boot under which it was made, 16 bytes; after a reboot none of it is there."""
    generation: str
    """Store generation, 16 hex digits."""
    cluster_name: str
    """brokerClusterName as configured, not the label."""
    broker_name: str
    """brokerName as configured."""
    broker_id: int
    """brokerId: 0 = master."""
    file_size_bytes: int
    """mappedFileSizeCommitLog: size of a hot segment."""
    uid: int
    """Owner of the objects."""
    objects: tuple[ObjectEntry, ...] = ()
    """In the order in which they were listed."""
    store: StoreName = field(init=False, compare=False, repr=False)
    """What all the objects' names begin with; follows from the fields above."""
    _listed: frozenset[ObjectName] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Name the store, once: the reaper asks for each of thousands of objects.

        Raises:
            ShmError: a field is out of range.
        """
        store = StoreName.make(
            cluster_name=self.cluster_name,
            broker_name=self.broker_name,
            broker_id=self.broker_id,
            boot_id=self.boot_id,
            generation=self.generation,
        )
        object.__setattr__(self, "store", store)
        object.__setattr__(self, "_listed", frozenset(entry.name for entry in self.objects))

    def with_object(self, name: ObjectName, *, size_bytes: int) -> Manifest:
        """Return a manifest that lists `name` too; listed already, it gets the new size.

        Raises:
            ShmError: another store's object, or of a kind that is never listed.
        """
        if name.store != self.store or name.kind in _UNLISTED_KINDS:
            raise ShmError(f"list {name} in the manifest of {self.store}: it does not belong there")
        entry = ObjectEntry(name, size_bytes)
        if name in self._listed:
            listed = tuple(entry if old.name == name else old for old in self.objects)
        else:
            listed = (*self.objects, entry)
        return replace(self, objects=listed)

    def without_object(self, name: ObjectName) -> Manifest:
        """Return a manifest that does not list `name`."""
        return replace(self, objects=tuple(old for old in self.objects if old.name != name))

    def wants(self, name: ObjectName) -> bool:
        """Say whether a successor of the broker would look for this object.

        True for what is listed, and for completion objects while the control segment is: it decides
        about them, and the broker sweeps what it does not want.
        """
        if name.store != self.store:
            return False
        if name.kind in _UNLISTED_KINDS:
            return self.store.object(ObjectKind.CONTROL, 0) in self._listed
        return name in self._listed


def manifest_path(store_path: Path) -> Path:
    """Return where the manifest of the store in `store_path` lies."""
    return store_path / "shmq" / "manifest.json"


def is_listed_kind(kind: ObjectKind) -> bool:
    """Whether objects of a kind are listed."""
    return kind not in _UNLISTED_KINDS


def is_in_memory(manifest: Manifest) -> bool:
    """Whether every listed object is still there: what somebody took away no successor can adopt.

    It says nothing about what is in them. Any process; does not block.
    """
    return all(os.path.exists(f"{SHM_FOLDER}{entry.name}") for entry in manifest.objects)


def save(manifest: Manifest, path: Path) -> None:
    """Replace the manifest at `path`, durably: afterwards it is the new one, whatever happens.

    Blocks for two fsyncs. The caller holds the store's lock: there is one writer. A crash leaves
    the old file or the new one, and perhaps a `.tmp` that the next save overwrites.

    Args:
        manifest: the new contents.
        path: from `manifest_path`; its folder exists.

    Raises:
        DiskFullError, DiskReadOnlyError, LimitError: the old file stands.
        ShmError: the file cannot be written; the old one stands.
    """
    data = _encode(manifest)
    temporary = path.with_suffix(".json.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(temporary, flags, 0o600), "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
        folder_fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder_fd)
        finally:
            os.close(folder_fd)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFullError(f"write {path}: {error.strerror}; free space there") from error
        if error.errno == errno.EROFS:
            raise DiskReadOnlyError(
                f"write {path}: the file system is read-only; see the kernel's log for why, then"
                " remount it"
            ) from error
        if error.errno in {errno.EMFILE, errno.ENFILE}:
            raise open_error(f"write {path}", error) from error
        raise ShmError(f"write {path}: {error.strerror}; can this user write there?") from error


def load(path: Path) -> Manifest | None:
    """Read the manifest at `path`; None if there is none.

    Raises:
        ShmError: it cannot be read, or its contents cannot be trusted; names file, line, reason.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ShmError(f"read {path}: {error.strerror}") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _SIZE_LIMIT_BYTES:
            raise ShmError(f"read {path}: not a plain file of at most {_SIZE_LIMIT_BYTES} bytes")
        with open(fd, "rb", closefd=False) as file:
            data = file.read(min(status.st_size, _SIZE_LIMIT_BYTES))
    except OSError as error:
        raise ShmError(f"read {path}: {error.strerror}") from error
    finally:
        os.close(fd)
    return _decode(data, path)


def _encode(manifest: Manifest) -> bytes:
    """Return the file's bytes."""
    fields: dict[str, object] = {key: getattr(manifest, key) for key in _FIELDS}
    fields["boot_id"] = manifest.boot_id.hex()
    fields["objects"] = [
        {
            "kind": entry.name.kind.value,
            "n": entry.name.n,
            "name": str(entry.name),
            "size_bytes": entry.size_bytes,
        }
        for entry in manifest.objects
    ]
    body = orjson.dumps(fields, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    return body + b"crc32 %08x\n" % zlib.crc32(body)


def _decode(data: bytes, path: Path) -> Manifest:
    """Return the manifest in the file's bytes, every field checked."""
    body, crc_line = data[:-_CRC_LINE_SIZE], data[-_CRC_LINE_SIZE:]
    match = _CRC_LINE.fullmatch(crc_line)
    last_line = data.count(b"\n") + (not data.endswith(b"\n"))
    if match is None:
        raise _unreadable(path, last_line, "the crc32 line is missing: the file was cut or edited")
    if zlib.crc32(body) != int(match[1], 16):
        wanted = f"{zlib.crc32(body):08x}"
        raise _unreadable(
            path,
            last_line,
            f"crc32 {match[1].decode()}, wanted {wanted}: the file was damaged or edited",
        )
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _unreadable(path, error.lineno, error.msg) from error
    _check_fields(path, body, fields, {**_FIELDS, "objects": list})
    entries = []
    for item in fields["objects"]:
        _check_fields(path, body, item, _ENTRY_FIELDS)
        name = parse(item["name"])
        if name is None or (name.kind.value, name.n) != (item["kind"], item["n"]):
            raise _unreadable(
                path, _line_of(body, item["name"]), f"{item['name']!r} is no name of such an object"
            )
        entries.append(ObjectEntry(name, item["size_bytes"]))
    try:
        boot_id = bytes.fromhex(fields["boot_id"])
        manifest = Manifest(
            **{**{key: fields[key] for key in _FIELDS}, "boot_id": boot_id}, objects=tuple(entries)
        )
    except (ValueError, ShmError) as error:
        raise _unreadable(path, 1, str(error)) from error
    for entry in entries:
        if entry.name.store != manifest.store:
            raise _unreadable(
                path,
                _line_of(body, str(entry.name)),
                f"{entry.name} is no object of {manifest.store}",
            )
    return manifest


def _check_fields(path: Path, body: bytes, seen: object, wanted: dict[str, type]) -> None:
    """Return if `seen` is an object with exactly the wanted keys and types, no number negative."""
    if not isinstance(seen, dict):
        raise _unreadable(path, 1, f"{type(seen).__name__} where an object was wanted")
    for key in wanted.keys() - seen.keys():
        raise _unreadable(path, 1, f"the key {key!r} is missing")
    for key, value in seen.items():
        kind = wanted.get(key)
        if kind is None:
            raise _unreadable(path, _line_of(body, key), f"the key {key!r} is unknown")
        is_negative = isinstance(value, int) and value < 0
        if type(value) is not kind or is_negative:
            reason = f"{key} is {value!r}, wanted {kind.__name__}"
            raise _unreadable(path, _line_of(body, key), reason)


def _line_of(body: bytes, text: str) -> int:
    """Return the line on which the quoted text stands first, counted from 1."""
    place = body.find(orjson.dumps(text))
    return body.count(b"\n", 0, max(place, 0)) + 1


def _unreadable(path: Path, line: int, reason: str) -> ShmError:
    """Return the error for a manifest that cannot be trusted."""
    return ShmError(
        f"read {path}, line {line}: {reason}; move it away to start from the files alone"
    )
