"""Where a broadcasting consumer keeps how far it is: a file of its own.

What lives here: `LocalOffsetStore`. In clustering the brokers keep the offsets of a group; in
broadcasting each member consumes everything, so each has its own (RocketMQ LocalFileOffsetStore).
Which process: the program's; one at a time. Writes the file, replaced as a whole. May fail:
ConfigError when the file is not what was written; OSError.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import orjson

from shmq.errors import ConfigError
from shmq.result import MessageQueue

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["LocalOffsetStore"]


class LocalOffsetStore:
    """Offsets of one topic by queue."""

    def __init__(self, path: Path) -> None:
        """Read the file, if there is one.

        Raises:
            ConfigError: it holds something else.
        """
        self._path = path
        self._saved: dict[MessageQueue, int] = {}
        if path.exists():
            try:
                table = orjson.loads(path.read_bytes())["offsetTable"]
                self._saved = {
                    MessageQueue(row["topic"], row["brokerName"], row["queueId"]): int(
                        row["offset"]
                    )
                    for row in table
                }
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(
                    f"read the offsets in {path}: {error!r}; wanted what a consumer saved there; "
                    "remove the file to begin anew"
                ) from None

    def offset(self, queue: MessageQueue) -> int | None:
        """The next queue_offset to consume; None if the queue is not known."""
        return self._saved.get(queue)

    def save(self, offsets: Mapping[MessageQueue, int]) -> None:
        """Write these beside what is known of other queues, if anything is new."""
        changed = {**self._saved, **offsets}
        if changed == self._saved:
            return
        rows = [
            {"topic": topic, "brokerName": name, "queueId": queue_id, "offset": offset}
            for (topic, name, queue_id), offset in sorted(changed.items())
        ]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        made = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        made.write_bytes(orjson.dumps({"offsetTable": rows}, option=orjson.OPT_INDENT_2))
        os.replace(made, self._path)
        self._saved = changed
