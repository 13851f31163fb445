"""A store whose messages are older than a broker keeps, and settings with which it looks often."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from tests.unit.store.stores import Writer

FILE_SIZE = 256 << 10
HOUR_MS = 3_600_000
OLD_COUNT = 400
ALWAYS = ";".join(f"{hour:02d}" for hour in range(24))
SETTINGS = {
    "commit_log_file_size_bytes": str(FILE_SIZE),
    "max_message_size_bytes": "64KiB",
    "delete_when": ALWAYS,
    "clean_resource_interval_ms": "20",
}


def old_store(store_path: Path, *, also: Mapping[str, int] | None = None) -> int:
    """A store with messages of four days ago in one queue, and a newer one behind them; where the
    newer ones begin, in files. `also`: topics with so many old messages, and no newer ones.
    """
    now_ms = time.time_ns() // 1_000_000
    writer = Writer(store_path, file_size=FILE_SIZE)
    for topic, count in (also or {}).items():
        for _ in range(count):
            writer.put(topic, 0, store_timestamp=now_ms - 96 * HOUR_MS)
    for number in range(OLD_COUNT):
        body = b"%d" % number + bytes(8 << 10)
        writer.put("orders", 0, body, store_timestamp=now_ms - 96 * HOUR_MS)
    writer.roll()
    writer.put("orders", 0, b"%d" % OLD_COUNT, store_timestamp=now_ms - HOUR_MS)
    return writer.position // FILE_SIZE
