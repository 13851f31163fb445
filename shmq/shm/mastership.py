"""Mastership: which member of a replica set is master, as the kernel says it.

What lives here: `Mastership`, an exclusive flock in the private folder that the members of one
broker_name share, and beside it the record of who has it and where the set's memory is listed:

    mastership.lock   held (flock) by the master for life: freed by its death, kept while it is
                      stopped, since it may go on
    mastership.json   MasterRecord as JSON, and behind it one line with the CRC of every byte before
                      it; written by the holder of the lock only, replaced by rename

A lock file can be deleted and made anew by a person or a cleaner while its holder lives. So whoever
gets the lock believes it only if the life in the record has ended too, and a holder looks now and
and then whether its file is still the one at that path (`hold`): if not, it locks the new one, or
learns that another has, and must not go on as master. Where the record was deleted too, memory
itself tells: the head of a master's control segment names the life that owns it
(`living_master`).

Both files are of one boot, as the memory is: a record of another boot says only how far epochs are.
Which process: any member, one at a time. What may fail: OwnerError: another life has it; ShmError:
the folder or the record cannot be used.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote_to_bytes

import orjson

from shmq.clock import SYSTEM_CLOCK
from shmq.errors import ConfigError, FencedError, OwnerError, ShmError
from shmq.json_fields import Fields
from shmq.shm.fds import open_error
from shmq.shm.header import SegmentHeader
from shmq.shm.in_use import marked_stores
from shmq.shm.incarnation import Incarnation, boot_id
from shmq.shm.lock_file import LockFile, holder_of, open_private
from shmq.shm.names import ObjectKind, StoreName
from shmq.shm.segment import SHM_FOLDER

__all__ = [
    "MasterRecord",
    "Mastership",
    "control_header",
    "holder_pid",
    "living_master",
    "load_record",
]

_LOCK_NAME: Final = "mastership.lock"
_RECORD_NAME: Final = "mastership.json"
_WHAT: Final = "the lock of mastership"
_RECORD_BYTES_MAX: Final = 64 << 10
_CRC_LINE = re.compile(rb"crc32 ([0-9a-f]{8})\n")
_CRC_LINE_SIZE: Final = len(b"crc32 00000000\n")
_RETRY_INTERVAL_S: Final = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class MasterRecord:
    """What the last master wrote of itself."""

    broker_name: str
    """The name that the members share."""
    broker_id: int
    """Its own id among them, as configured."""
    master_epoch: int
    """Counts masterships; 0 before the first."""
    manifest_path: Path
    """Where the memory that it serves from is listed."""
    owner: Incarnation | None
    """The life that is master; None: it has given mastership up, in order."""
    boot_id: bytes
    """Boot of the write, 16 bytes."""

    @property
    def store_path(self) -> Path:
        """The folder of the store of whoever wrote it."""
        return self.manifest_path.parent.parent

    @property
    def is_of_this_boot(self) -> bool:
        """Whether lives and memory of it can still be there."""
        return self.boot_id == boot_id()

    @property
    def lives(self) -> bool:
        """Whether the life that wrote it is master, or may go on as such: a stopped one may."""
        return self.owner is not None and self.is_of_this_boot and self.owner.is_alive()


class Mastership:
    """The right to be master of one broker_name. A context manager that gives it up."""

    __slots__ = ("_folder", "_lock", "_record")

    def __init__(self, lock: LockFile, folder: Path, record: MasterRecord | None) -> None:
        """Not for callers: see `take` and `try_take`."""
        self._lock = lock
        self._folder = folder
        self._record = record

    @classmethod
    def take(cls, folder: Path, *, timeout_ms: int) -> Mastership:
        """Take mastership, waiting up to `timeout_ms` for a holder that is about to end.

        Args:
            folder: the replica set's own, existing, mode 0700, owned by the effective uid.
            timeout_ms: 0 = do not wait.

        Raises:
            OwnerError: another life has it.
            LimitError: no fd is left.
            ShmError: the folder or the record cannot be used.
        """
        deadline_ns = SYSTEM_CLOCK.monotonic_ns() + timeout_ms * 1_000_000
        while True:
            taken = cls.try_take(folder)
            if taken is not None:
                return taken
            if SYSTEM_CLOCK.monotonic_ns() >= deadline_ns:
                raise OwnerError(
                    f"become master in {folder}: {_describe(load_record(folder))}; a promotion"
                    " waits until that process has ended: stop it, or kill it if it hangs",
                    hint="shmq ha status shows who is master",
                )
            time.sleep(_RETRY_INTERVAL_S)

    @classmethod
    def try_take(cls, folder: Path) -> Mastership | None:
        """Take mastership if no other life has it; never waits.

        Raises:
            OwnerError, LimitError, ShmError: the folder or the record cannot be used.
        """
        lock = LockFile.try_take(folder, _LOCK_NAME, what=_WHAT)
        if lock is None:
            return None
        with contextlib.ExitStack() as undo:
            undo.callback(lock.release)
            record = load_record(folder)
            if record is not None and record.lives and record.owner != Incarnation.current():
                return None  # its lock file was taken away from it
            undo.pop_all()
            return cls(lock, folder, record)

    @property
    def record(self) -> MasterRecord | None:
        """What the last master wrote: a predecessor, until `declare`; None: there was none."""
        return self._record

    @property
    def is_held(self) -> bool:
        """True until `release`, and in the process that took it only."""
        return self._lock.is_held

    def declare(
        self, *, broker_name: str, broker_id: int, master_epoch: int, manifest_path: Path
    ) -> MasterRecord:
        """Say who is master now, and where its memory is listed: from here on it is ours.

        Raises:
            FencedError: the epoch is older than the last one.
            ShmError: mastership was given up, or the folder refuses; the last record stands.
        """
        if not self.is_held:
            raise ShmError(f"declare mastership in {self._folder}: it was given up")
        last = self._record
        if last is not None and master_epoch < last.master_epoch:
            raise FencedError(
                f"declare mastership in {self._folder}: master epoch {master_epoch}, the last one"
                f" was {last.master_epoch}"
            )
        record = MasterRecord(
            broker_name=broker_name,
            broker_id=broker_id,
            master_epoch=master_epoch,
            manifest_path=manifest_path.absolute(),
            owner=Incarnation.current(),
            boot_id=boot_id(),
        )
        self._write(record)
        return record

    def hold(self) -> None:
        """Return if nobody else can be master: our lock is the one that others would take.

        A lock file that was taken away is made again. To be called now and then.

        Raises:
            FencedError: another holds the lock by now: this process must not go on as master.
            OwnerError, LimitError, ShmError: the folder cannot be used.
        """
        if self._lock.is_in_place():
            return
        if not self.is_held:
            raise FencedError(f"stay master in {self._folder}: mastership was given up")
        made = LockFile.try_take(self._folder, _LOCK_NAME, what=_WHAT)
        if made is None:
            raise FencedError(
                f"stay master in {self._folder}: {_LOCK_NAME} was deleted, and another process"
                " holds the one that is there now"
            )
        self._lock.release()
        self._lock = made
        if self._record is not None:
            self._write(self._record)  # whoever deletes one file deletes both

    def release(self) -> None:
        """Give mastership up while this process lives on; twice does nothing. Never raises for a
        folder that is gone: the lock is free all the same.
        """
        record = self._record
        if record is not None and record.owner == Incarnation.current():
            with contextlib.suppress(ShmError):
                if self._lock.is_in_place():  # else the record is another's by now
                    self._write(replace(record, owner=None))
        self._lock.release()

    def forget(self) -> None:
        """Remove the record of a master whose store is gone for good; while mastership is held.

        Raises:
            ShmError: the folder refuses; the record stands.
        """
        with open_private(self._folder) as folder_fd:
            try:
                os.unlink(_RECORD_NAME, dir_fd=folder_fd)
            except OSError as error:
                raise open_error(f"remove {self._folder / _RECORD_NAME}", error) from error
        self._record = None

    def __enter__(self) -> Mastership:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _write(self, record: MasterRecord) -> None:
        """Replace the record. No fsync: it is of this boot, like the memory that it names."""
        temporary = f"{_RECORD_NAME}.tmp"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with open_private(self._folder) as folder_fd:
            try:
                with open(os.open(temporary, flags, 0o600, dir_fd=folder_fd), "wb") as file:
                    file.write(_encode(record))
                os.rename(temporary, _RECORD_NAME, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
            except OSError as error:
                raise open_error(f"write {self._folder / _RECORD_NAME}", error) from error
        self._record = record


def holder_pid(folder: Path) -> int | None:
    """The process that holds the lock of mastership, as the kernel lists it (proc_locks(5)); None:
    nobody does, or a process of another pid namespace. It may hold it and have declared nothing.

    Raises:
        ShmError: it cannot be looked at.
    """
    return holder_of(folder / _LOCK_NAME)


def living_master(folder: Path) -> Incarnation | None:
    """Another life that is master here, as the memory says that is marked in this folder.

    Raises:
        OwnerError, ShmError: the folder or /proc cannot be read.
    """
    own = Incarnation.current()
    for store in marked_stores(folder):
        header = control_header(store)
        if header is None:
            continue
        if header.master_epoch > 0 and header.owner != own and header.owner.is_alive():
            return header.owner
    return None


def control_header(store: StoreName) -> SegmentHeader | None:
    """The head of a store's control segment; None: it has no memory (any more), or its creator died
    before anybody could be told of it.
    """
    name = store.object(ObjectKind.CONTROL, 0)
    try:
        fd = os.open(f"{SHM_FOLDER}{name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        header = SegmentHeader.read(fd, name=str(name))
    except ShmError:
        return None
    finally:
        os.close(fd)
    return header if header.is_finished else None


def load_record(folder: Path) -> MasterRecord | None:
    """What the last master of a folder wrote; None: there was none.

    Raises:
        ShmError: it cannot be read, or was damaged.
    """
    path = folder / _RECORD_NAME
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise open_error(f"read {path}", error) from error
    with open(fd, "rb") as file:
        data = file.read(_RECORD_BYTES_MAX)
    return _decode(data, path)


def _describe(record: MasterRecord | None) -> str:
    if record is None or record.owner is None:
        return "another process holds it"
    return (
        f"broker {record.broker_name}:{record.broker_id}, process {record.owner.pid}, has been"
        f" master since epoch {record.master_epoch}"
    )


def _encode(record: MasterRecord) -> bytes:
    body = orjson.dumps(
        {
            "broker_name": record.broker_name,
            "broker_id": record.broker_id,
            "master_epoch": record.master_epoch,
            "manifest_path": quote(os.fsencode(record.manifest_path)),  # its bytes need be no text
            "pid": record.owner.pid if record.owner else 0,
            "start_time": record.owner.start_time if record.owner else 0,
            "boot_id": record.boot_id.hex(),
        },
        option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE,
    )
    return body + b"crc32 %08x\n" % zlib.crc32(body)


def _decode(data: bytes, path: Path) -> MasterRecord:
    body, crc_line = data[:-_CRC_LINE_SIZE], data[-_CRC_LINE_SIZE:]
    match = _CRC_LINE.fullmatch(crc_line)
    try:
        if match is None or zlib.crc32(body) != int(match[1], 16):
            raise ValueError("its crc32 line does not hold")
        take = Fields(orjson.loads(body), what=str(path))
        pid, start_time = take.number("pid"), take.number("start_time")
        return MasterRecord(
            broker_name=take.text("broker_name"),
            broker_id=take.number("broker_id"),
            master_epoch=take.number("master_epoch"),
            manifest_path=Path(os.fsdecode(unquote_to_bytes(take.text("manifest_path")))),
            owner=Incarnation(pid, start_time) if pid else None,
            boot_id=bytes.fromhex(take.text("boot_id")),
        )
    except (ValueError, ConfigError) as error:
        raise ShmError(
            f"read {path}: {error}; move it away once no member of this broker_name runs: the next"
            " master then starts from its own memory and files"
        ) from error
