"""Every reader of the store's files against files that nobody wrote: `... SEED COUNT FOLDER`.

A small store is made, each file of it is damaged in turn in one of the ways that disks, people and
bugs have, and everything that reads it is called. What may come out is an answer or an error of
ours; the process runs under the sanitizers, and the test sets it a time. Prints what it did as one
line of JSON.
"""

from __future__ import annotations

import io
import json
import logging
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from shmq.core import core
from shmq.errors import ShmqError
from shmq.shm import manifest as manifests
from shmq.shm.incarnation import boot_id
from shmq.shm.manifest import Manifest
from shmq.shm.names import ObjectKind, new_generation
from shmq.store import consume_queue_files, positions
from shmq.store.config_files import (
    ConfigFiles,
    ConsumerOffsets,
    DataVersion,
    DelayOffsets,
    SubscriptionGroups,
    Topics,
)
from shmq.store.consume_queue_files import ConsumeQueueFile, QueueKey
from shmq.store.index_files import (
    FIND_MAX,
    IndexFile,
    build,
    index_path,
    index_positions,
    write_index,
)
from shmq.store.log_files import LogFiles
from shmq.store.positions import Positions
from shmq.store.quarantine import Quarantine
from shmq.store.recovery import recover_files
from shmq.subscription import SubscriptionGroupConfig
from shmq.tools import inspect
from shmq.tools.fsck import fsck
from shmq.topic import TopicConfig
from tests.unit.store.stores import Writer

FILE_SIZE = 8192
EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def make_store(store_path: Path) -> None:
    """A store with every kind of file: four log files, a hole, what is derived, all of config."""
    writer = Writer(store_path, file_size=FILE_SIZE).fill(90)
    writer.damage(writer.records[20])
    (store_path / "shmq").mkdir()
    _save_positions(store_path, writer.position)
    _save_positions(store_path, writer.position)
    recovered = recover_files(store_path, FILE_SIZE)
    recovered.consume_queues.close()
    consume_queue_files.save_floors(
        store_path / "shmq" / consume_queue_files.FLOORS_FILE, {QueueKey("gone", 1): 17}
    )
    for file_position in recovered.consume_queues.file_positions:
        write_index(LogFiles(store_path, FILE_SIZE), file_position)
    _save_manifest(store_path)
    files = ConfigFiles(store_path)
    (store_path / "config").mkdir()
    files.store(
        Topics(data_version=DataVersion(), topics={"orders": TopicConfig(topic_name="orders")})
    )
    groups = {"readers": SubscriptionGroupConfig(group_name="readers")}
    files.store(SubscriptionGroups(data_version=DataVersion(), groups=groups))
    files.store(ConsumerOffsets(offsets={"orders@readers": {0: 5, 1: 7}}))
    files.store(DelayOffsets(offsets={1: 5, 2: 17}))


def _save_positions(store_path: Path, flushed: int) -> None:
    path = positions.positions_path(store_path)
    last = positions.load(path)
    known = Positions(
        flushed_position=flushed,
        min_position=0,
        store_generation=1,
        boot_id=bytes(16),
        store_timestamp=5,
        file_size_bytes=FILE_SIZE,
        sequence=last.sequence if last else 0,
    )
    positions.save(path, known, durable=False)


def _save_manifest(store_path: Path) -> None:
    manifest = Manifest(
        layout_version=core.LAYOUT_VERSION,
        boot_id=boot_id(),
        generation=new_generation(),
        cluster_name="fuzz",
        broker_name="broker-a",
        broker_id=0,
        file_size_bytes=FILE_SIZE,
        uid=0,
    )
    for kind in (ObjectKind.CONTROL, ObjectKind.ARENA, ObjectKind.HOT):
        manifest = manifest.with_object(manifest.store.object(kind, 0), size_bytes=FILE_SIZE)
    manifests.save(manifest, manifests.manifest_path(store_path))


# ---- readers -------------------------------------------------------------------------------------


def read_positions(store_path: Path) -> None:
    positions.load(positions.positions_path(store_path))


def read_manifest(store_path: Path) -> None:
    manifests.load(manifests.manifest_path(store_path))


def read_quarantine(store_path: Path) -> None:
    path = Quarantine.path(store_path)
    Quarantine.load(path).save(path)


def read_floors(store_path: Path) -> None:
    consume_queue_files.load_floors(store_path / "shmq" / consume_queue_files.FLOORS_FILE)


def read_consume_queues(store_path: Path) -> None:
    """Each derived file: its header, its runs, all their entries."""
    for path in (store_path / "shmq" / consume_queue_files.CONSUME_QUEUE_FOLDER).glob("*.cq"):
        with ConsumeQueueFile(
            path, file_position=int(path.stem), file_size_bytes=FILE_SIZE
        ) as file:
            for run in file.runs:
                file.find(*run.key)
                file.check(run)
                entries = file.read(run, run.first_queue_offset, run.entry_count)
                assert len(entries) == run.entry_count * 24


def read_index(store_path: Path) -> None:
    """Each index file: its header, its directory, every page, and lookups in it."""
    for file_position in index_positions(store_path):
        path = index_path(store_path, file_position)
        with IndexFile(path, file_position=file_position, file_size_bytes=FILE_SIZE) as file:
            hashes = {entry.hash for entry in file.entries(0, file.header.entry_count)}
            for hash_ in (0, (1 << 64) - 1, *hashes):
                assert len(file.find(hash_)) <= FIND_MAX


def build_index(store_path: Path) -> None:
    """Each complete log file as an index file, whatever stands in it."""
    files = LogFiles(store_path, FILE_SIZE)
    for log in files.files():
        build(files, log.file_position, write=lambda _data, _place: None)


def read_config(store_path: Path) -> None:
    files = ConfigFiles(store_path)
    for load in (
        files.load_topics,
        files.load_subscription_groups,
        files.load_consumer_offsets,
        files.load_delay_offsets,
    ):
        load()


def recover(store_path: Path) -> None:
    """As a broker does, twice: the second run changes nothing."""
    log = store_path / "commitlog"
    recovered = recover_files(store_path, FILE_SIZE)
    try:
        end = recovered.end_position
        after = {path.name: path.read_bytes() for path in log.iterdir()}
        for key, (low, high) in recovered.cold_queues.items():
            at = low
            while at < high:
                found = recovered.consume_queues.read(*key, at, 1000)
                if found is None:
                    break
                at = found[0] + len(found[1]) // 24
    finally:
        recovered.consume_queues.close()
    again = recover_files(store_path, FILE_SIZE)
    again.consume_queues.close()
    assert again.end_position == end
    assert again.holes == recovered.holes
    assert {path.name: path.read_bytes() for path in log.iterdir()} == after


def check(store_path: Path) -> None:
    report = fsck(store_path)
    assert report.exit_code in (0, 1, 3)


def repair(store_path: Path) -> None:
    """What fsck says it has repaired opens."""
    report = fsck(store_path, is_repairing=True)
    if report.exit_code in (0, 2):
        recover(store_path)


def show(store_path: Path) -> None:
    """The store and the file that was written last, as a person looks at them; a problem is an
    exit code.
    """
    files = (path for path in store_path.rglob("*") if path.is_file())
    damaged = max(files, key=lambda path: path.stat().st_mtime_ns)
    for path in (store_path, damaged):
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            assert inspect.main([str(path), "--count", "1000"]) in (0, 1)


READERS: dict[str, tuple[Callable[[Path], None], ...]] = {
    "commitlog/*": (recover, check, repair, show, build_index),
    "shmq/positions": (read_positions, recover, check, show),
    "shmq/manifest*": (read_manifest, check, show),
    "shmq/quarantine.json": (read_quarantine, recover, check, show),
    "shmq/queue_floors.json": (read_floors, recover, check, show),
    "shmq/consumequeue/*.cq": (read_consume_queues, recover, check, show),
    "shmq/index/*.idx": (read_index, check, show),
    "config/*": (read_config, check, show),
}


# ---- damage --------------------------------------------------------------------------------------


def damage(rng: random.Random, data: bytes) -> bytes:
    """A file that is not what was written."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        if not changed:
            changed += rng.randbytes(rng.randrange(64))
            continue
        place = rng.randrange(len(changed))
        kind = rng.randrange(9)
        if kind <= 1:
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            changed[place : place + 4] = rng.choice(EDGES).to_bytes(
                4, rng.choice(("big", "little"))
            )
        elif kind == 3:
            size = rng.randrange(1, 600)
            changed[place : place + size] = bytes(min(size, len(changed) - place))
        elif kind == 4:
            other = rng.randrange(len(changed))
            changed[place : place + 300] = changed[other : other + 300]
        elif kind == 5:
            del changed[place:]
        elif kind == 6:
            changed += rng.randbytes(rng.randrange(1, 300))
        elif kind == 7:
            del changed[place : place + rng.randrange(1, 20)]
        else:
            changed[place:place] = rng.randbytes(rng.randrange(1, 20))
    if rng.random() < 0.7:  # most damage leaves the size as it was
        changed = changed[: len(data)] + bytes(max(0, len(data) - len(changed)))
    return bytes(changed)


def main(seed: int, count: int, folder: Path) -> None:
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    logging.disable(logging.CRITICAL)
    whole = folder / "whole"
    make_store(whole)
    for _ in range(count):
        pattern = rng.choice(list(READERS))
        outcomes[_one(rng, whole, folder / "store", pattern)] += 1
    print(json.dumps(outcomes))


def _one(rng: random.Random, whole: Path, store_path: Path, pattern: str) -> str:
    shutil.copytree(whole, store_path)
    try:
        path = rng.choice(sorted(path for path in store_path.glob(pattern) if path.is_file()))
        path.write_bytes(damage(rng, path.read_bytes()))
        read = rng.choice(READERS[pattern])
        try:
            read(store_path)
        except ShmqError as error:
            return f"{read.__name__}: {type(error).__name__}"
        return f"{read.__name__}: ok"
    finally:
        shutil.rmtree(store_path)


if __name__ == "__main__":
    main(int(sys.argv[1], 0), int(sys.argv[2]), Path(sys.argv[3]))
