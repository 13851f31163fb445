"""Where a broadcasting consumer keeps how far it is: a file of its own.

What lives here: `LocalOffsetStore`. In clustering the brokers keep the offsets of a group; in
broadcasting each member consumes everything, so each has its own (RocketMQ LocalFileOffsetStore).
Which process: the program's; one at a time. Writes the file, replaced as a whole and synced, and
what it was before beside it (".bak"): a file that cannot be read is made up for by that. May fail:
ConfigError when neither is what was written; OSError.
"""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING

import orjson

from shmq.errors import ConfigError
from shmq.result import MessageQueue

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["LocalOffsetStore"]

_log = logging.getLogger("shmq.client")


class LocalOffsetStore:
    """Offsets of one member by queue."""

    def __init__(self, path: Path) -> None:
        """Read the file, if there is one.

        Raises:
            ConfigError: it holds something else, and so does its backup.
        """
        self._path = path
        self._backup = path.with_name(f"{path.name}.bak")
        self._saved: dict[MessageQueue, int] = {}
        if not path.exists() and not self._backup.exists():
            return
        try:
            self._saved = _read(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            try:
                self._saved = _read(self._backup)
            except (OSError, ValueError, KeyError, TypeError):
                raise ConfigError(
                    f"read the offsets in {path}: {error!r}; wanted what a consumer saved there; "
                    "remove the file to begin anew"
                ) from None
            _log.warning("read offsets path=%s: %r; those before it count", path, error)

    def offset(self, queue: MessageQueue) -> int | None:
        """The next queue_offset to consume; None if the queue is not known."""
        return self._saved.get(queue)

    def save(self, offsets: Mapping[MessageQueue, int]) -> None:
        """Write these beside what is known of other queues, if anything is new. It is on disk when
        this returns.

        Raises:
            OSError: nothing has changed.
        """
        changed = {**self._saved, **offsets}
        if changed == self._saved:
            return
        rows = [
            {"topic": topic, "brokerName": name, "queueId": queue_id, "offset": offset}
            for (topic, name, queue_id), offset in sorted(changed.items())
        ]
        self._path.parent.mkdir(parents=True, exist_ok=True)
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
        self._saved = changed


def _read(path: Path) -> dict[MessageQueue, int]:
    return {
        MessageQueue(row["topic"], row["brokerName"], row["queueId"]): int(row["offset"])
        for row in orjson.loads(path.read_bytes())["offsetTable"]
    }
