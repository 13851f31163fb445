"""Where a broadcasting consumer keeps how far it is: a file of its own.

What lives here: `LocalOffsetStore`. In clustering the brokers keep the offsets of a group; in
broadcasting each member consumes everything, so each has its own (RocketMQ LocalFileOffsetStore).
Which process: the program's; one at a time, which holds a lock on a file beside it (".lock"): of
two that kept their offsets in one file, each would begin where the other was. Topics of one program
may share a file. Writes the file, replaced as a whole and synced, and what it was before beside it
(".bak"): a file that cannot be read is made up for by that. May fail: ConfigError when neither is
what was written, or when somebody else keeps his offsets there; OSError.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
from typing import TYPE_CHECKING, ClassVar, cast

import orjson

from shmq.errors import ConfigError
from shmq.result import MessageQueue

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["LocalOffsetStore"]

_log = logging.getLogger("shmq.client")


class LocalOffsetStore:
    """Offsets of one member in one topic, by queue. Threads may share it."""

    def __init__(self, path: Path, topic: str) -> None:
        """Read the file, if there is one, and keep others from it until close().

        Raises:
            ConfigError: it holds something else, and so does its backup; it cannot be written
                there; or another member keeps its offsets of this topic, or another process any.
        """
        self._topic = topic
        self._file = _File.of(path, topic)

    def offset(self, queue: MessageQueue) -> int | None:
        """The next queue_offset to consume; None if the queue is not known."""
        return self._file.saved.get(queue)

    def save(self, offsets: Mapping[MessageQueue, int]) -> None:
        """Write these beside what is known of other queues, if anything is new. It is on disk when
        this returns.

        Raises:
            OSError: nothing has changed.
        """
        self._file.save(self._topic, offsets)

    def close(self) -> None:
        """Let others have the file; nothing is saved any more. Twice does nothing."""
        self._file.leave(self._topic)


class _File:
    """One file, of all the topics of this process that keep their offsets in it."""

    _known: ClassVar[dict[tuple[int, str], _File]] = {}
    """By process, for a child of a fork knows its parent's, and by the path they lead to."""
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, path: Path) -> None:
        self._path = path
        self._backup = path.with_name(f"{path.name}.bak")
        self._saving = threading.Lock()
        self.topics: set[str] = set()
        self.saved: dict[MessageQueue, int] = {}
        self._fd = self._lock_file()
        try:
            self._read()
        except BaseException:
            os.close(self._fd)
            raise

    @classmethod
    def of(cls, path: Path, topic: str) -> _File:
        key = os.getpid(), os.path.realpath(path)
        with cls._lock:
            file = cls._known.get(key)
            if file is None:
                cls._known[key] = file = cls(path)
            elif topic in file.topics:
                raise ConfigError(
                    f"keep offsets of {topic} in {path}: another consumer of this program does",
                    hint="give each member an offset_file of its own",
                )
            file.topics.add(topic)
            return file

    def leave(self, topic: str) -> None:
        with self._lock, self._saving:
            self.topics.discard(topic)
            for key in [key for key, file in self._known.items() if file is self]:
                if not self.topics:
                    del self._known[key]
                    os.close(self._fd)

    def _lock_file(self) -> int:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(
                self._path.with_name(f"{self._path.name}.lock"),
                os.O_RDWR | os.O_CREAT | os.O_CLOEXEC,
                0o644,
            )
        except OSError as error:
            raise ConfigError(
                f"keep offsets in {self._path}: {error}",
                hint="give an offset_file in a folder that this user may write",
            ) from None
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            raise ConfigError(
                f"keep offsets in {self._path}: another process does ({error.strerror})",
                hint="give each member an offset_file of its own",
            ) from None
        return fd

    def _read(self) -> None:
        if not self._path.exists() and not self._backup.exists():
            return
        try:
            self.saved = _read(self._path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            try:
                self.saved = _read(self._backup)
            except (OSError, ValueError, KeyError, TypeError):
                raise ConfigError(
                    f"read the offsets in {self._path}: {error!r}; wanted what a consumer saved "
                    "there; remove the file to begin anew"
                ) from None
            _log.warning("read offsets path=%s: %r; those before it count", self._path, error)

    def save(self, topic: str, offsets: Mapping[MessageQueue, int]) -> None:
        with self._saving:
            changed = {**self.saved, **offsets}
            if topic in self.topics and changed != self.saved:
                self._write(changed)
                self.saved = changed

    def _write(self, offsets: Mapping[MessageQueue, int]) -> None:
        rows = [
            {"topic": topic, "brokerName": name, "queueId": queue_id, "offset": offset}
            for (topic, name, queue_id), offset in sorted(offsets.items())
        ]
        folder = self._path.parent
        folder.mkdir(parents=True, exist_ok=True)
        made = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        try:
            with made.open("wb") as file:
                file.write(orjson.dumps({"offsetTable": rows}, option=orjson.OPT_INDENT_2))
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileNotFoundError):
                os.replace(self._path, self._backup)
            os.replace(made, self._path)
        except OSError:
            made.unlink(missing_ok=True)
            raise
        folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder_fd)  # the names, too
        finally:
            os.close(folder_fd)


def _read(path: Path) -> dict[MessageQueue, int]:
    rows: list[dict[str, object]] = orjson.loads(path.read_bytes())["offsetTable"]
    return dict(map(_offset_of, rows))


def _offset_of(row: Mapping[str, object]) -> tuple[MessageQueue, int]:
    found = row["topic"], row["brokerName"], row["queueId"], row["offset"]
    if tuple(map(type, found)) != (str, str, int, int):
        raise ValueError(f"{row}: no offset of a queue")
    topic, name, queue_id, offset = cast("tuple[str, str, int, int]", found)
    return MessageQueue(topic, name, queue_id), offset
