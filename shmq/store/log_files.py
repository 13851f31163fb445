"""The files of the CommitLog: `commitlog/<20 digits>`, each exactly one file size, no gap between.

What lives here: `LogFiles`: which files there are and whether they can be what they must be, the
next file prepared aside and renamed in, and the tail behind the last frame set aside and zeroed.
No frame is read or written here.

    <store>/commitlog/00000000000000000000     the file of physical_offset 0 .. file size - 1
    <store>/shmq/prepare/00000000000067108864  the next one, allocated, not yet part of the log
    <store>/shmq/quarantine/tail-...           bytes that lay behind the last frame, set aside

As RocketMQ leaves them, a last file of no length does not count, a last file of zeros is a file
like any other, and folders inside commitlog/ are not looked at. Files are never recycled: a stale
frame behind the tail would be taken for a message by whoever scans.

Which process: the broker, under its lock: the preparing thread calls `prepare` and `install`,
recovery `clear_tail`, retention `delete`; tools read. What may fail: StoreCorruptError naming the
file, DiskFullError, StoreError; then nothing half-done stays. All calls block for the disk.
"""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from shmq.errors import StoreCorruptError, StoreError
from shmq.store.durable_file import FILE_MODE, disk_error, fsync_folder, make_folder, write_fully

__all__ = [
    "COMMIT_LOG_FOLDER",
    "LogFile",
    "LogFiles",
    "OWN_FOLDER",
    "PREPARE_FOLDER",
    "QUARANTINE_FOLDER",
    "SavedTail",
    "file_name",
    "find_file_size",
]

COMMIT_LOG_FOLDER = "commitlog"
OWN_FOLDER = "shmq"
"""What RocketMQ does not know lies in here."""
PREPARE_FOLDER = "prepare"
QUARANTINE_FOLDER = "quarantine"

_FILE_NAME = re.compile(r"\d{20}")
_POSITION_LIMIT = 1 << 63  # RocketMQ counts in signed 64-bit numbers
_CHUNK_BYTES = 1 << 20
_ZEROS = bytes(_CHUNK_BYTES)


class LogFile(NamedTuple):
    """One file of the log."""

    file_position: int
    """physical_offset of its first byte."""
    path: Path
    """Where it lies."""


class SavedTail(NamedTuple):
    """Bytes set aside before they were zeroed."""

    position: int
    """physical_offset of the first byte set aside."""
    size: int
    """Bytes; what followed them in the file was zero."""
    file_name: str
    """Name of the copy in shmq/quarantine/."""


def file_name(file_position: int) -> str:
    """Return the name of the log file that begins at `file_position`."""
    return f"{file_position:020d}"


def find_file_size(store_path: Path) -> int | None:
    """Return the size of the log files that are there, bytes, or None if there are none.

    Raises:
        StoreError: the folder cannot be read.
    """
    sizes = [entry.stat().st_size for entry in _entries(store_path / COMMIT_LOG_FOLDER)]
    return max(sizes, default=0) or None


@dataclass(frozen=True, slots=True)
class LogFiles:
    """The CommitLog's files in one store."""

    store_path: Path
    """Folder of the store."""
    file_size_bytes: int
    """Size of every file, mappedFileSizeCommitLog."""

    @property
    def folder(self) -> Path:
        """commitlog/."""
        return self.store_path / COMMIT_LOG_FOLDER

    @property
    def own_folder(self) -> Path:
        """shmq/, for what RocketMQ does not know."""
        return self.store_path / OWN_FOLDER

    @property
    def prepare_folder(self) -> Path:
        """shmq/prepare/."""
        return self.own_folder / PREPARE_FOLDER

    @property
    def quarantine_folder(self) -> Path:
        """shmq/quarantine/."""
        return self.own_folder / QUARANTINE_FOLDER

    def path(self, file_position: int) -> Path:
        """Return where the file that begins at `file_position` lies, or would."""
        return self.folder / file_name(file_position)

    def file_position(self, position: int) -> int:
        """Return where the file that holds `position` begins."""
        return position - position % self.file_size_bytes

    def make_folders(self) -> None:
        """Make what is missing of commitlog/ and shmq/, and drop files that were being prepared.

        Raises:
            DiskFullError, StoreError.
        """
        for folder in (self.folder, self.prepare_folder, self.quarantine_folder):
            make_folder(folder)
        for name in os.listdir(self.prepare_folder):
            with contextlib.suppress(OSError):
                os.unlink(self.prepare_folder / name)

    def files(self) -> list[LogFile]:
        """Return the files in order, each of the right size and next to its neighbour.

        Raises:
            StoreCorruptError: something there cannot be what it must be.
            StoreError: the folder cannot be read.
        """
        entries = sorted(_entries(self.folder), key=lambda entry: entry.name)
        if entries and entries[-1].stat().st_size == 0:
            entries.pop()  # made and not yet sized when its broker died
        files: list[LogFile] = []
        for entry in entries:
            path = Path(entry.path)
            status = entry.stat(follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode):
                raise StoreCorruptError(f"open {path}: not a plain file; move it elsewhere")
            if not _FILE_NAME.fullmatch(entry.name) or int(entry.name) >= _POSITION_LIMIT:
                raise StoreCorruptError(
                    f"open {path}: wanted 20 decimal digits as its name; move it elsewhere"
                )
            if status.st_size != self.file_size_bytes:
                raise StoreCorruptError(
                    f"open {path}: {status.st_size} bytes, wanted {self.file_size_bytes}; "
                    "is commit_log_file_size_bytes (mappedFileSizeCommitLog) what it was?"
                )
            file_position = int(entry.name)
            wanted = files[-1].file_position + self.file_size_bytes if files else None
            if wanted is not None and file_position != wanted:
                raise StoreCorruptError(
                    f"open {path}: the file before it ends at {wanted}, so "
                    f"{file_name(wanted)} is missing; restore it from a copy"
                )
            if file_position % self.file_size_bytes:
                raise StoreCorruptError(
                    f"open {path}: its name is no multiple of the file size {self.file_size_bytes}"
                )
            files.append(LogFile(file_position, path))
        return files

    def make_ready(self, file_position: int, *, zero_written: bool) -> int:
        """Return an fd to write the file of `file_position` with; it is made if it is not there.

        A file that is there already is taken: recovery has zeroed it (`clear_tail`). Arguments,
        result and errors as `prepare`, `install` and `open`.
        """
        path = self.path(file_position)
        if path.exists() and path.stat().st_size > 0:
            return self.open(file_position, readonly=False)
        return self.install(self.prepare(file_position, zero_written=zero_written))

    def prepare(self, file_position: int, *, zero_written: bool) -> int:
        """Allocate the file of `file_position` aside, durably; it is no part of the log yet.

        Args:
            file_position: a multiple of the file size.
            zero_written: write its zeros out, so that a later fdatasync has no metadata to write:
                for SYNC_FLUSH. Otherwise its blocks are only reserved.

        Returns:
            `file_position`, for `install`.

        Raises:
            DiskFullError, StoreError: nothing is left behind.
        """
        assert file_position % self.file_size_bytes == 0, file_position
        path = self.prepare_folder / file_name(file_position)
        fd = -1
        try:
            path.unlink(missing_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(path, flags, FILE_MODE)
            os.posix_fallocate(fd, 0, self.file_size_bytes)
            if zero_written:
                for place in range(0, self.file_size_bytes, _CHUNK_BYTES):
                    size = min(_CHUNK_BYTES, self.file_size_bytes - place)
                    write_fully(fd, memoryview(_ZEROS)[:size], place)
            os.fsync(fd)
        except OSError as error:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            raise disk_error(f"prepare {path} ({self.file_size_bytes} bytes)", error) from error
        finally:
            if fd >= 0:
                os.close(fd)
        return file_position

    def install(self, file_position: int) -> int:
        """Make the prepared file part of the log, durably.

        Returns:
            an fd to write it with (O_RDWR); the caller closes it.

        Raises:
            StoreError: a file is there already, or none was prepared.
        """
        prepared = self.prepare_folder / file_name(file_position)
        path = self.path(file_position)
        if path.exists() and path.stat().st_size > 0:
            raise StoreError(f"install {path}: there is a file already; it is never replaced")
        try:
            fd = os.open(prepared, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.rename(prepared, path)
                fsync_folder(self.folder)
                fsync_folder(self.prepare_folder)
            except BaseException:
                os.close(fd)
                raise
        except OSError as error:
            raise disk_error(f"install {path}", error) from error
        return fd

    def open(self, file_position: int, *, readonly: bool = True) -> int:
        """Return an fd of a file of the log; the caller closes it.

        Opened for writing, what RocketMQ left sparse is allocated first: no write into the file
        can run out of room later.

        Raises:
            StoreCorruptError: it has another size than it must have.
            DiskFullError, StoreError: it cannot be opened, or not be allocated.
        """
        path = self.path(file_position)
        mode = os.O_RDONLY if readonly else os.O_RDWR
        try:
            fd = os.open(path, mode | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                size = os.fstat(fd).st_size
                if size != self.file_size_bytes:
                    raise StoreCorruptError(
                        f"open {path}: {size} bytes, wanted {self.file_size_bytes}"
                    )
                if not readonly:
                    os.posix_fallocate(fd, 0, self.file_size_bytes)
            except BaseException:
                os.close(fd)
                raise
        except OSError as error:
            raise disk_error(f"open {path}", error) from error
        return fd

    def delete(self, file_position: int) -> None:
        """Remove the first file of the log (retention), or the last while it is all zero, durably.

        Open fds keep its bytes.

        Raises:
            StoreError: another file, or the only one: nothing was removed.
        """
        files = self.files()
        path = self.path(file_position)
        is_first = len(files) > 1 and files[0].file_position == file_position
        try:
            if not is_first and not self._is_unused(files, file_position):
                raise StoreError(f"delete {path}: only the first of several files may go")
            os.unlink(path)
            fsync_folder(self.folder)
        except OSError as error:
            raise disk_error(f"delete {path}", error) from error

    def _is_unused(self, files: list[LogFile], file_position: int) -> bool:
        """Say whether it is the last file and nothing was ever written to it."""
        if not files or files[-1].file_position != file_position:
            return False
        fd = self.open(file_position)
        try:
            return not any(True for _ in _dirty_chunks(fd, 0, self.file_size_bytes))
        finally:
            os.close(fd)

    def find_tail(self, position: int) -> list[tuple[int, int]]:
        """Return (physical_offset, bytes) of what is not zero from `position` on, one per file.

        The bytes reach to the last one in that file that is not zero. Reads only.

        Raises:
            StoreError: a file cannot be read.
        """
        tails = []
        for file in self.files():
            begin = max(0, position - file.file_position)
            if begin >= self.file_size_bytes:
                continue
            fd = self.open(file.file_position)
            try:
                dirty = list(_dirty_chunks(fd, begin, self.file_size_bytes))
                if dirty:
                    end = _dirty_end(fd, dirty[-1])
                    tails.append((file.file_position + begin, end - begin))
            except OSError as error:
                raise disk_error(f"read {file.path}", error) from error
            finally:
                os.close(fd)
        return tails

    def clear_tail(self, position: int) -> list[SavedTail]:
        """Zero every byte of the log from `position` on, durably; what is not zero is kept aside.

        Before the first append after a recovery: a frame of an earlier life behind the tail would
        be taken for a message by the next one that scans. A crash in between leaves the copy whole
        or absent; run again, the rest is kept and zeroed.

        Args:
            position: physical_offset behind the last frame.

        Returns:
            the copies made, one for each file that had anything there; none if all was zero.

        Raises:
            DiskFullError: no room for a copy; nothing was zeroed in that file.
            StoreError: a file cannot be read or written.
        """
        saved = []
        for file in self.files():
            if file.file_position + self.file_size_bytes > position:
                tail = self._clear_file(file, max(0, position - file.file_position))
                if tail is not None:
                    saved.append(tail)
        return saved

    def _clear_file(self, file: LogFile, begin: int) -> SavedTail | None:
        """Keep aside and zero what a file holds from byte `begin` on."""
        try:
            fd = os.open(file.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                dirty = list(_dirty_chunks(fd, begin, self.file_size_bytes))
                if not dirty:
                    return None
                end = _dirty_end(fd, dirty[-1])
                tail = self._keep(fd, "tail", file.file_position + begin, begin, end)
                for place, size in dirty:
                    write_fully(fd, memoryview(_ZEROS)[:size], place)
                os.fdatasync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise disk_error(f"clear the tail of {file.path}", error) from error
        return tail

    def keep_aside(self, position: int, size: int) -> SavedTail:
        """Copy bytes of one file into quarantine, before they are written over.

        Args:
            position: physical_offset of the first.
            size: bytes, all in the file of `position`.

        Raises:
            DiskFullError, StoreError: nothing is left behind.
        """
        file_position = self.file_position(position)
        fd = self.open(file_position)
        try:
            begin = position - file_position
            return self._keep(fd, "hole", position, begin, begin + size)
        finally:
            os.close(fd)

    def _keep(self, fd: int, kind: str, position: int, begin: int, end: int) -> SavedTail:
        """Copy bytes begin..end of the open file into quarantine, whole or not at all."""
        number = 0
        while (self.quarantine_folder / _kept_name(kind, position, number)).exists():
            number += 1  # bounded by the files there: each has its own number
        path = self.quarantine_folder / _kept_name(kind, position, number)
        self._copy(fd, path, begin, end)
        return SavedTail(position, end - begin, path.name)

    def _copy(self, fd: int, path: Path, begin: int, end: int) -> None:
        """Copy bytes begin..end of the open file to `path` in quarantine, whole or not at all."""
        temporary = path.with_suffix(".tmp")
        make_folder(self.quarantine_folder)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            copy_fd = os.open(temporary, flags, FILE_MODE)
            try:
                for place in range(begin, end, _CHUNK_BYTES):
                    chunk = os.pread(fd, min(_CHUNK_BYTES, end - place), place)
                    write_fully(copy_fd, chunk, place - begin)
                os.fsync(copy_fd)
            finally:
                os.close(copy_fd)
            os.rename(temporary, path)
            fsync_folder(self.quarantine_folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise disk_error(f"keep bytes of the log aside as {path}", error) from error

    # ---- for a cut (cuts.py): each may be made again after a death -------------------------------

    def copy_aside(self, position: int, size: int, name: str) -> None:
        """Copy bytes of one file into quarantine under a name, unless that was done before.

        Raises:
            DiskFullError, StoreError: nothing is left behind.
        """
        path = self.quarantine_folder / name
        if path.exists():
            return
        fd = self.open(self.file_position(position))
        try:
            begin = position % self.file_size_bytes
            self._copy(fd, path, begin, begin + size)
        finally:
            os.close(fd)

    def zero_from(self, position: int) -> None:
        """Zero the rest of the file of `position`, durably.

        Raises:
            StoreError: the file cannot be read or written.
        """
        path = self.path(self.file_position(position))
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                for place, size in _dirty_chunks(
                    fd, position % self.file_size_bytes, self.file_size_bytes
                ):
                    write_fully(fd, memoryview(_ZEROS)[:size], place)
                os.fdatasync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise disk_error(f"zero {path} from {position} on", error) from error

    def move_aside(self, file_position: int, name: str) -> None:
        """Move the last file of the log into quarantine, durably.

        Raises:
            StoreError: it is not the last, or cannot be moved; it is where it was.
        """
        self._take_last(file_position, self.quarantine_folder / name)

    def remove_last(self, file_position: int) -> None:
        """Remove the last file of the log, durably. Errors as `move_aside`."""
        self._take_last(file_position, None)

    def _take_last(self, file_position: int, to: Path | None) -> None:
        path = self.path(file_position)
        if self.files()[-1].path != path:
            raise StoreError(f"take {path} out of the log: it is not the last file")
        try:
            if to is None:
                os.unlink(path)
            else:
                os.rename(path, to)
                fsync_folder(self.quarantine_folder)
            fsync_folder(self.folder)
        except OSError as error:
            raise disk_error(f"take {path} out of the log", error) from error


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield what is in the folder, folders left out; nothing if it is not there."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if not entry.is_dir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise disk_error(f"read {folder}", error) from error


def _kept_name(kind: str, position: int, number: int) -> str:
    return f"{kind}-{position:020d}-{number}.bin"


def _dirty_chunks(fd: int, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield (place, size) of the chunks in begin..end of an open file that are not all zero.

    What was allocated and never written is zero without being read: a failover waits for this.
    """
    place = begin
    while (place := _next_written(fd, place, end)) < end:
        size = min(_CHUNK_BYTES - place % _CHUNK_BYTES, end - place)
        chunk = os.pread(fd, size, place)
        if chunk != _ZEROS[: len(chunk)]:
            yield place, size
        place += size


def _next_written(fd: int, place: int, end: int) -> int:
    """Return the first place from `place` on that may have been written; `end` if none was."""
    if place >= end:
        return end
    try:
        return min(os.lseek(fd, place, os.SEEK_DATA), end)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return end  # nothing but holes up to the end of the file


def _dirty_end(fd: int, chunk: tuple[int, int]) -> int:
    """Return the place behind the last byte of a chunk that is not zero."""
    place, size = chunk
    return place + len(os.pread(fd, size, place).rstrip(b"\0"))
