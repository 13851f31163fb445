"""Power is cut between any two calls to the disk; of what was not synced some part is there.

A store process works under a recorder (recorder.c): several files, both durability levels, a death
with an adoption, a death with a recovery from files, a stop in order. From its record images of the
disk are made, and each is recovered, twice: what was acknowledged or visible on a SYNC_FLUSH topic
by then is there, the log before its end is as it was written, and the second run changes nothing.
Recoveries that found a tail are recorded in turn, and cut as well.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from shmq.config import StoreConfig
from shmq.status import FlushDiskType
from shmq.store.consume_queue_files import QueueKey
from shmq.store.recovery import RecoveredLog, recover_files
from tests.crash.ledger import body_of
from tests.crash.recorded_disk import (
    DROP,
    HOWS,
    KEEP,
    RecordedDisk,
    inodes_of,
    recording,
    write_image,
)
from tests.crash.scene import wipe
from tests.crash.witness import Known, Witness
from tests.support.repository import ROOT
from tests.support.rocketmq_decoder import decode_commit_log
from tests.support.scale import scaled
from tests.support.store_process import StoreProcess

pytestmark = [pytest.mark.crash, pytest.mark.timeout(scaled(120, 14_400))]

FILE_SIZE = 128 * 1024
IMAGES = scaled(300, 100_000)
NESTED = scaled(4, 400)
"""Recoveries that are recorded and cut."""
NESTED_IMAGES = 25
_RECOVER = """
import sys
from pathlib import Path
from shmq.store.recovery import recover_files
recover_files(Path(sys.argv[1]), int(sys.argv[2])).consume_queues.close()
"""


class Recorded(NamedTuple):
    """What happened."""

    disk: RecordedDisk
    known: list[Known]
    """In order of their moments, which are places in the record."""


@pytest.fixture
def recorded(tmp_path: Path, cluster_name: str, rng: random.Random) -> Recorded:
    config = StoreConfig(
        store_path=tmp_path / "store",
        runtime_path=tmp_path / "run",
        cluster_name=cluster_name,
        commit_log_file_size_bytes=FILE_SIZE,
        max_message_size_bytes=16 * 1024,
        flush_interval_ms=5,
        flush_disk_type=rng.choice(list(FlushDiskType)),  # its files are prepared in another way
    )
    record = tmp_path / "record"
    environ = recording(config.store_path, record)
    witness = Witness(rng, moment=lambda: record.stat().st_size)
    store = StoreProcess(config, environ=environ)
    try:
        witness.attach(store)
        work(witness, rng)
        store.kill()
        store = store.restart(environ=environ)
        assert store.is_adopted
        witness.resume(store)
        work(witness, rng)
        witness.put(8)
        store.kill()
        witness.detach()
        wipe(config)
        store = store.restart(environ=environ)
        assert not store.is_adopted
        witness.attach(store)
        work(witness, rng)
        witness.settle()
        witness.detach()
        store.stop()
    finally:
        store.abandon()
        wipe(config)
    bodies = {frame.body for frame in decode_commit_log(config.store_path / "commitlog")}
    assert all(body_of(known.sent, known.size) in bodies for known in witness.known.values())
    return Recorded(
        RecordedDisk(record, config.store_path),
        sorted(witness.known.values(), key=lambda known: known.moment),
    )


def work(witness: Witness, chance: random.Random) -> None:
    """Send more than a file holds, now with many under way and now with few."""
    for _ in range(60):
        witness.put(chance.choice((1, 1, 2, 20)))
        witness.look()
        if chance.random() < 0.2:
            witness.settle()


class Seen(NamedTuple):
    """What a recovery left."""

    recovered: RecoveredLog
    log: bytes
    files: dict[str, bytes]


def recover(store_path: Path) -> Seen:
    recovered = recover_files(store_path, FILE_SIZE)
    recovered.consume_queues.close()
    files = {
        str(path.relative_to(store_path)): path.read_bytes()
        for path in sorted(store_path.rglob("*"))
        if path.is_file()
    }
    logs = [data for path, data in files.items() if path.startswith("commitlog/") and data]
    return Seen(recovered, b"".join(logs), files)


def judge(store_path: Path, known: list[Known], whole: bytes) -> Seen:
    """Recover an image and hold it to what was known when the power was cut.

    Args:
        store_path: where the image lies.
        known: what somebody had been told or had seen by then.
        whole: the log as it was in the page cache then.
    """
    seen = recover(store_path)
    recovered, log = seen.recovered, seen.log
    end = recovered.end_position
    assert recovered.holes == (), "what was not synced was taken for damage"
    assert log[:end] == whole[:end]
    assert not any(log[end:])
    for one in known:
        frame = one.physical_offset
        size = int.from_bytes(log[frame : frame + 4], "big")
        assert 0 < size <= end - frame, f"lost: {one}; the log ends at {end}"
        assert int.from_bytes(log[frame + 20 : frame + 28], "big") == one.queue_offset
        assert body_of(one.sent, one.size) in log[frame : frame + size], one
    if known:
        taken = max(one.queue_offset for one in known) + 1
        assert recovered.queue_ends[QueueKey("sync", 0)] >= taken
    again = recover(store_path)
    assert again.files == seen.files
    assert again.recovered.end_position == end
    assert again.recovered.queue_ends == recovered.queue_ends
    return seen


def whole_log(disk: RecordedDisk, count: int, chance: random.Random) -> bytes:
    """The log as every process saw it behind `count` calls."""
    image = disk.image(count, KEEP, chance)
    return b"".join(
        data for path, data in sorted(image.items()) if path.startswith("commitlog/") and data
    )


def known_at(recorded: Recorded, count: int) -> list[Known]:
    """What was known when so many calls were recorded."""
    end = recorded.disk.entries[count - 1].end if count else 0
    return [known for known in recorded.known if known.moment <= end]


def test_power_cut_between_any_two_calls_loses_nothing_that_was_safe(
    recorded: Recorded, tmp_path: Path, rng: random.Random
) -> None:
    disk = recorded.disk
    folder = tmp_path / "image"
    nested = 0
    for number in range(IMAGES):
        count = rng.randrange(len(disk.entries) + 1)
        how = HOWS[number % len(HOWS)]
        known = known_at(recorded, count)
        whole = whole_log(disk, count, rng)
        image = disk.image(count, how, rng)
        write_image(image, folder)
        try:
            seen = judge(folder, known, whole)
        except BaseException:
            print(f"image: {count} of {len(disk.entries)} calls, {how}")  # for people
            raise
        shutil.rmtree(folder)
        if seen.recovered.saved_tails and nested < NESTED:
            nested += 1
            cut_recovery(image, known, whole, tmp_path, rng)
    assert nested == NESTED, "too few recoveries found a tail"


def cut_recovery(
    image: dict[str, bytes | None],
    known: list[Known],
    whole: bytes,
    tmp_path: Path,
    chance: random.Random,
) -> None:
    """Cut the power again while what it left is recovered."""
    folder, record = tmp_path / "recovered", tmp_path / "record-of-recovery"
    write_image(image, folder)
    files = {path: data for path, data in image.items() if data is not None}
    inodes = inodes_of(folder, files)
    subprocess.run(
        [sys.executable, "-c", _RECOVER, str(folder), str(FILE_SIZE)],
        cwd=ROOT,
        check=True,
        env=recording(folder, record),
    )
    disk = RecordedDisk(record, folder, before=files, inodes=inodes)
    assert disk.entries
    for number in range(NESTED_IMAGES):
        count = chance.randrange(len(disk.entries) + 1)
        again = tmp_path / "image-of-recovery"
        write_image(disk.image(count, HOWS[number % len(HOWS)], chance), again)
        judge(again, known, whole)
        shutil.rmtree(again)
    shutil.rmtree(folder)
    record.unlink()


def test_disk_that_ignores_syncs_is_seen_to_lose_what_was_safe(
    recorded: Recorded, tmp_path: Path, rng: random.Random
) -> None:
    """The check's own check: were a sync missing, it would see that."""
    count = len(recorded.disk.entries)
    image = recorded.disk.image(count, DROP, rng, is_deaf=True)
    write_image(image, tmp_path / "image")
    with pytest.raises(AssertionError, match="lost"):
        judge(tmp_path / "image", known_at(recorded, count), whole_log(recorded.disk, count, rng))
