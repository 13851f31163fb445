"""Many messages indexed, and looked up."""

import argparse
import os
import random
import time
from pathlib import Path

from measuring import FILE_BYTES, Figure, Foreign, cluster, figure, percentile, queue_of

import shmq
from shmq.store import index_files
from shmq.store.log_files import LogFiles

MESSAGES = 10_000_000
LOOKUPS = 2_000
MILLION = 1_000_000
_POLL_S = 0.05
_CATCH_UP_S = 120.0


def row_looking(options: argparse.Namespace) -> dict[str, Figure]:
    """10,000,000 messages of 100 B, each with a UNIQ_KEY and a key of its own."""
    count = MESSAGES // (10 if options.quick else 1)
    lookups = LOOKUPS // (10 if options.quick else 1)
    foreign = Foreign()
    with cluster(message_index_enable="true") as client:
        link, row, generation = queue_of(client, "many")
        lane, body = link.lanes[0], bytes(100)
        put = lane.put
        begin = time.perf_counter()
        for number in range(count):
            put(row, generation, body, None, f"order-{number}")
        lane.drain(60.0)
        sent_s = time.perf_counter() - begin
        store = client.namesrv.parent / "broker-a"  # as shmq.local lays it out
        files = LogFiles(store, FILE_BYTES)
        behind_s = _catch_up(store, files)
        sizes = [
            index_files.index_path(store, at).stat().st_size
            for at in index_files.index_positions(store)
        ]
        indexed = _indexed(store)
        with shmq.Admin(client.namesrv) as admin:
            figures = _look_up(admin, count, lookups)
        builds = _build_times(files, index_files.index_positions(store))
    share = {"foreign_cpu_max": round(foreign.share(), 2), "messages": count}
    figures |= {
        "index disk": figure(
            [sum(sizes) / indexed * MILLION / 1e6], "MB/million", "16 B a key, 2 keys", **share
        ),
        "index disk a key": figure([sum(sizes) / indexed / 2], "B", "the entry", **share),
        "index build": figure(
            [sum(builds) / indexed * MILLION * 1e3],
            "ms/million",
            "processor time: a copy of the log, one hash a key, eight passes of sorting",
            **share,
        ),
        "index behind after sending": figure(
            [behind_s], "s", "derived files come first, then idle time", **share
        ),
        "send meanwhile": figure([sent_s / count * 1e9], "ns/message", "the producer", **share),
    }
    return figures


def _indexed(store: Path) -> int:
    """Messages in the files that are indexed."""
    total = 0
    for at in index_files.index_positions(store):
        path = index_files.index_path(store, at)
        with index_files.IndexFile(path, file_position=at, file_size_bytes=FILE_BYTES) as file:
            total += file.header.frame_count
    return total


def _catch_up(store: Path, files: LogFiles) -> float:
    """Seconds until every complete file that has left the append thread is indexed."""
    begin = time.perf_counter()
    wanted = len([f for f in files.files() if _is_complete(files, f.file_position)])
    while len(index_files.index_positions(store)) < wanted:
        if time.perf_counter() - begin > _CATCH_UP_S:
            raise TimeoutError(f"{len(index_files.index_positions(store))} of {wanted} indexed")
        time.sleep(_POLL_S)
    return time.perf_counter() - begin


def _is_complete(files: LogFiles, file_position: int) -> bool:
    """Whether the next file has a message: then this one has all of its own."""
    path = files.path(file_position + files.file_size_bytes)
    if not path.exists():
        return False
    with path.open("rb") as file:
        return any(os.pread(file.fileno(), 8, 0))


def _build_times(files: LogFiles, positions: list[int]) -> list[float]:
    """Seconds of processor time to build each index file, from the page cache, written nowhere."""
    times = []
    for at in positions:
        begin = time.process_time()
        index_files.build(files, at, write=lambda _data, _place: None)
        times.append(time.process_time() - begin)
    return times


def _look_up(admin: shmq.Admin, count: int, lookups: int) -> dict[str, Figure]:
    chance = random.Random(1)
    ids, by_key, by_id = [], [], []
    for number in (chance.randrange(count) for _ in range(lookups)):
        begin = time.perf_counter()
        (message,) = admin.find_messages("many", key=f"order-{number}")
        by_key.append((time.perf_counter() - begin) * 1e6)
        ids.append(message.message_id)
    for message_id in ids:
        begin = time.perf_counter()
        admin.get_message(message_id)
        by_id.append((time.perf_counter() - begin) * 1e6)
    figures = {}
    for name, taken in (("key", by_key), ("id", by_id)):
        taken.sort()
        bound = "two requests, and one page of each index file"
        for label, part in {"p50": 0.5, "p99": 0.99}.items():
            figures[f"lookup by {name}, {label}"] = figure(
                [percentile(taken, part)], "us", bound, lookups=len(taken)
            )
    return figures
