"""Every bit of a small store flipped: each flip is found, and costs the record it hit and no other.

The store: 64 KiB of log in four files, three of them complete, with records of every shape; its
positions, its lists, its derived files and config. The full run flips all 524,288 bits of the log
and every bit of the other files; the default set takes some of each kind of byte.

What is exempt, and why:
  - the bytes behind the eight of a BLANK frame: nothing was stored there and nobody reads them;
    RocketMQ leaves there what was there before;
  - of a reader that checks what it reads from a file whose derived file holds: the name of the
    `__CRC32#` property itself, because records that RocketMQ wrote have none. Recovery and fsck,
    which know from where on there must be one, find it;
  - copies under shmq/quarantine/: they are kept for a person, nothing reads them;
  - lock, abort and broker.conf: nobody reads what they say.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from shmq.config import StoreConfig
from shmq.core import core
from shmq.errors import ConfigError, ShmqError
from shmq.store import positions
from shmq.store.config_files import ConfigFiles
from shmq.store.message_store import MessageStore
from shmq.store.positions import Positions
from shmq.store.recovery import RecoveredLog, recover_files
from shmq.tools.fsck import fsck
from shmq.tools.fsck_findings import Code, Report
from tests.stress import file_fuzzer
from tests.support.dev_shm import RUN_TOKEN
from tests.support.scale import is_full_run, scaled
from tests.support.store_process import ClientSide
from tests.unit.store.stores import Record, Writer, blank

FILE_SIZE = 16 << 10
FILE_COUNT = 4
ENTRY_SIZE = 24
BITS_PER_KIND = 60
STORE_FILE_SIZE = 80 << 10
"""Of the store that a broker opens: its files cannot be as small."""
OK = core.STATUS["OK"][0]


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory: a recovery syncs a dozen times."""
    with tempfile.TemporaryDirectory(prefix=f"{RUN_TOKEN}bits", dir="/dev/shm") as made:
        yield Path(made)


# ---- the store -----------------------------------------------------------------------------------


def _write(store_path: Path, rng: random.Random, *, file_size: int, log_bytes: int) -> Writer:
    """Records of every shape: both versions, both kinds of hosts, large and empty bodies."""
    writer = Writer(store_path, file_size=file_size)
    topics = ("orders", "paid", "t" * 127, "v" * 200, "%RETRY%group")
    while writer.position < log_bytes:
        properties = b"UNIQ_KEY\x01%032X\x02" % rng.getrandbits(128)
        if rng.random() < 0.5:
            properties += b"TAGS\x01tag\x02KEYS\x01a b\x02"
        writer.put(
            rng.choice(topics),
            rng.randrange(3),
            rng.randbytes(rng.choice((0, 1, 7, 100, 300, 2000))),
            properties=properties,
            sys_flag=rng.choice((0, 0, 0, 0x10, 0x20, 0x30)),
        )
    return writer


def _say_flushed(store_path: Path, writer: Writer) -> None:
    """Positions that say that all of it was on disk, in both slots."""
    path = positions.positions_path(store_path)
    path.parent.mkdir(exist_ok=True)
    known = Positions(
        flushed_position=writer.position,
        min_position=0,
        store_generation=1,
        boot_id=bytes(16),
        store_timestamp=5,
        file_size_bytes=writer.file_size,
    )
    for _ in range(2):
        known = positions.save(path, known, durable=False)


@dataclass(frozen=True)
class Region:
    """Bytes of the log of one kind."""

    kind: str
    begin: int
    end: int
    victim: Record | None = None


# Of a record with IPv4 hosts, in order: name, bytes.
_FIELDS = (
    ("totalSize", 4),
    ("magic", 4),
    ("bodyCRC", 4),
    ("queueId", 4),
    ("flag", 4),
    ("queueOffset", 8),
    ("physicalOffset", 8),
    ("sysFlag", 4),
    ("bornTimestamp", 8),
    ("bornHost", 8),
    ("storeTimestamp", 8),
    ("storeHost", 8),
    ("reconsumeTimes", 4),
    ("preparedTransactionOffset", 8),
    ("body length", 4),
)


def _regions(writer: Writer) -> list[Region]:
    """Every byte of the log, by kind; a record's tail of body, topic and properties is one."""
    regions = []
    for record in writer.records:
        at = record.position
        for name, size in _FIELDS:
            regions.append(Region(name, at, at + size, record))
            at += size
        end = record.position + record.size
        regions.append(Region("body, topic, properties", at, end - 20, record))
        regions.append(Region("__CRC32# name", end - 20, end - 11, record))
        regions.append(Region("__CRC32# value", end - 11, end, record))
    ends = [record.position + record.size for record in writer.records]
    for file_end in range(writer.file_size, writer.position, writer.file_size):
        begin = max(end for end in ends if end <= file_end - 8)
        assert writer.read(begin, 8) == blank(file_end - begin)
        regions.append(Region("BLANK", begin, begin + 8))
        regions.append(Region("behind BLANK", begin + 8, file_end))
    last_end = writer.position - writer.position % writer.file_size + writer.file_size
    regions.append(Region("behind the tail", writer.position, last_end))
    return [region for region in regions if region.begin < region.end]


def _bits(regions: list[Region], rng: random.Random) -> Iterator[tuple[Region, int]]:
    """(region, bit): all of them, or some of each kind and all of one record and one BLANK."""
    if is_full_run():
        for region in regions:
            for bit in range(region.begin * 8, region.end * 8):
                yield region, bit
        return
    victim = rng.choice([region.victim for region in regions if region.victim])
    small = [region for region in regions if region.end - region.begin <= 16]
    for region in small:
        if region.victim is victim or (region.kind == "BLANK" and rng.random() < 0.5):
            for bit in range(region.begin * 8, region.end * 8):
                yield region, bit
    for kind in sorted({region.kind for region in regions}):
        of_kind = [
            region for region in regions if region.kind == kind and region.end > region.begin
        ]
        for _ in range(BITS_PER_KIND):
            region = rng.choice(of_kind)
            yield region, rng.randrange(region.begin * 8, region.end * 8)


class Flips:
    """The log's files, open, with one bit changed at a time."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def flip(self, bit: int) -> None:
        """Flip one; flip it again to have it back."""
        byte = self._writer.read(bit // 8, 1)[0]
        self._writer.write(bit // 8, bytes([byte ^ 1 << bit % 8]))


# ---- the log: recovery and fsck ------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(36_000 if is_full_run() else 240)
def test_recovery_loses_the_record_that_a_flip_hit_and_no_other(
    folder: Path, rng: random.Random
) -> None:
    store_path = folder / "store"
    writer = _write(
        store_path, rng, file_size=FILE_SIZE, log_bytes=(FILE_COUNT - 1) * FILE_SIZE + 9000
    )
    _say_flushed(store_path, writer)
    whole = _recover(store_path)
    assert whole.holes == ()
    flips = Flips(writer)
    shutil.copytree(store_path, folder / "whole")
    kinds = set()
    for region, bit in _bits(_regions(writer), rng):
        kinds.add(region.kind)
        _forget_derived(store_path)
        flips.flip(bit)
        recovered = _recover(store_path)
        _check_recovered(recovered, whole, region, bit)
        _check_entries(store_path, writer, region, bit)
        if region.kind == "behind the tail":
            assert writer.read(bit // 8, 1) == b"\0", "zeroed before the first append"
        else:
            flips.flip(bit)
    assert len(kinds) == len(_FIELDS) + 6


def _recover(store_path: Path) -> RecoveredLog:
    recovered = recover_files(store_path, FILE_SIZE)
    recovered.consume_queues.close()
    return recovered


def _forget_derived(store_path: Path) -> None:
    own = store_path / "shmq"
    for name in ("consumequeue", "quarantine"):
        shutil.rmtree(own / name, ignore_errors=True)
    (own / "quarantine.json").unlink(missing_ok=True)


def _check_recovered(
    recovered: RecoveredLog, whole: RecoveredLog, region: Region, bit: int
) -> None:
    what = (region, bit)
    assert recovered.end_position == whole.end_position, what
    assert recovered.min_position == whole.min_position, what
    ends = dict(whole.queue_ends)
    if region.victim is not None:
        victim = region.victim
        (hole,) = recovered.holes
        assert (hole.position, hole.size) == (victim.position, victim.size), what
        key = (victim.topic, victim.queue_id)
        if ends[key] == victim.queue_offset + 1 and recovered.queue_ends.get(key) != ends[key]:
            # The newest of its queue, and a flip in the words that say which message it is.
            ends[key] -= 1
            if ends[key] == 0:
                del ends[key]
        claimed, claimed_offset = _claim(region, bit)
        if ends.get(claimed) == claimed_offset and recovered.queue_ends[claimed] != claimed_offset:
            # It says now that it was the next of a queue: that offset is not given out, to be safe.
            ends[claimed] += 1
        assert recovered.saved_tails == (), what
    elif region.kind == "BLANK":
        (hole,) = recovered.holes
        assert hole.position == region.begin, what
    elif region.kind == "behind the tail":
        assert recovered.holes == (), what
        (tail,) = recovered.saved_tails
        assert tail.position <= bit // 8 < tail.position + tail.size, what
    else:
        assert recovered.holes == (), what
    assert recovered.queue_ends == ends, what


def _claim(region: Region, bit: int) -> tuple[tuple[str, int], int]:
    """Which message the victim says it was, once `bit` of it is flipped: queue, queue_offset."""
    victim = region.victim
    assert victim is not None
    flipped = 1 << (region.end - 1 - bit // 8) * 8 + bit % 8  # RocketMQ's integers are big-endian
    queue_id = victim.queue_id ^ (flipped if region.kind == "queueId" else 0)
    queue_offset = victim.queue_offset ^ (flipped if region.kind == "queueOffset" else 0)
    return (victim.topic, queue_id), queue_offset


def _check_entries(store_path: Path, writer: Writer, region: Region, bit: int) -> None:
    """The derived files list every record of the complete files but the victim, which is a hole."""
    recovered = recover_files(store_path, FILE_SIZE)
    try:
        cold_end = writer.position - writer.position % FILE_SIZE
        seen = {}
        for (topic, queue_id), (low, high) in recovered.cold_queues.items():
            at = low
            while at < high:
                found = recovered.consume_queues.read(topic, queue_id, at, 1000)
                assert found is not None
                at = found[0]
                for place in range(0, len(found[1]), ENTRY_SIZE):
                    entry = bytes(found[1][place : place + ENTRY_SIZE])
                    physical_offset = int.from_bytes(entry[:8], "little")
                    size = int.from_bytes(entry[16:], "little")
                    if size:
                        seen[topic, queue_id, at] = physical_offset, size
                    at += 1
        wanted = {
            (record.topic, record.queue_id, record.queue_offset): (record.position, record.size)
            for record in writer.records
            if record.position < cold_end and record is not region.victim
        }
        assert seen == wanted, (region, bit)
    finally:
        recovered.consume_queues.close()


@pytest.mark.slow
@pytest.mark.timeout(36_000 if is_full_run() else 240)
def test_fsck_finds_every_flip_in_the_log(folder: Path, rng: random.Random) -> None:
    """The derived files hold, as in a store that was in use; fsck looks at every frame all the
    same.
    """
    store_path = folder / "store"
    writer = _write(
        store_path, rng, file_size=FILE_SIZE, log_bytes=(FILE_COUNT - 1) * FILE_SIZE + 9000
    )
    _say_flushed(store_path, writer)
    ends = dict(_recover(store_path).queue_ends)
    (store_path / "abort").touch()
    flips = Flips(writer)
    assert fsck(store_path).exit_code == 0, fsck(store_path).findings
    for region, bit in _bits(_regions(writer), rng):
        flips.flip(bit)
        _check_report(fsck(store_path), ends, region, bit)
        flips.flip(bit)
    assert fsck(store_path).exit_code == 0


def _check_report(
    report: Report, ends: Mapping[tuple[str, int], int], region: Region, bit: int
) -> None:
    what = (region, bit, report.findings)
    codes = {finding.code for finding in report.findings}
    if region.victim is not None:
        assert Code.RECORD_DAMAGED in codes, what
        (loss,) = report.losses
        assert (loss.position, loss.size) == (region.victim.position, region.victim.size), what
        known = [(m.topic, m.queue_id, m.queue_offset) for m in loss.messages]
        victim = region.victim
        right = (victim.topic, victim.queue_id, victim.queue_offset)
        claimed, claimed_offset = _claim(region, bit)
        # A header that says now that it was the next of a queue: nothing contradicts it.
        believed = ends.get(claimed) == claimed_offset
        assert known in ([], [right], *([[(*claimed, claimed_offset)]] if believed else [])), what
    elif region.kind == "BLANK":
        assert Code.BLANK_DAMAGED in codes, what
    elif region.kind == "behind the tail":
        assert Code.TAIL_NOT_ZERO in codes, what
    else:
        assert report.exit_code == 0, what
        return
    assert report.exit_code == 1, what


# ---- the other files -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(36_000 if is_full_run() else 240)
def test_every_flip_in_the_other_files_is_found_by_fsck_and_loses_nothing(
    folder: Path, rng: random.Random
) -> None:
    """Positions, lists, derived files, floors, manifest, config: recovery comes to the same log,
    or refuses with an error of ours that names the file.
    """
    store_path = folder / "store"
    file_fuzzer.make_store(store_path)
    (store_path / "abort").touch()
    assert {finding.code for finding in fsck(store_path).findings} == {Code.RECORD_DAMAGED}
    whole = recover_files(store_path, file_fuzzer.FILE_SIZE)
    whole.consume_queues.close()
    shutil.copytree(store_path, folder / "whole")
    for path in sorted((folder / "whole").rglob("*")):
        place = path.relative_to(folder / "whole")
        if (
            not path.is_file()
            or place.parts[0] in ("commitlog", "abort")
            or path.stat().st_size == 0
        ):
            continue
        good = path.read_bytes()
        count = len(good) * 8
        bits = range(count) if is_full_run() else rng.sample(range(count), min(count, 25))
        for bit in bits:
            damaged = bytearray(good)
            damaged[bit // 8] ^= 1 << bit % 8
            (store_path / place).write_bytes(damaged)
            _check_other_file(store_path, folder / "whole", place, bit, whole)


def _check_other_file(
    store_path: Path, good: Path, place: Path, bit: int, whole: RecoveredLog
) -> None:
    what = (str(place), bit)
    is_kept_copy = place.parts[:2] == ("shmq", "quarantine")
    if not is_kept_copy:
        report = fsck(store_path)
        assert report.unusable is not None or {finding.code for finding in report.findings} - {
            Code.RECORD_DAMAGED
        }, what
    try:
        recovered = recover_files(store_path, file_fuzzer.FILE_SIZE)
    except ShmqError as error:
        names = place.name in str(error)
        assert names, (what, error)  # noqa: PT017 # a flip may raise or not; if it does, it names the file
    else:
        recovered.consume_queues.close()
        assert recovered.end_position == whole.end_position, what
        assert recovered.queue_ends == whole.queue_ends, what
        assert [h[:2] for h in recovered.holes] == [h[:2] for h in whole.holes], what
        assert recovered.cold_queues == whole.cold_queues, what
    if place.parts[0] == "config":
        _check_config(store_path, place, what)
    shutil.rmtree(store_path)
    shutil.copytree(good, store_path)


def _check_config(store_path: Path, place: Path, what: tuple[str, int]) -> None:
    """Damage is said; nothing is taken from the damaged file."""
    if place.suffix == ".bak":
        return
    try:
        loaded = ConfigFiles(store_path).file(place.name).load()
    except ConfigError as error:
        names = place.name in str(error)
        assert names, (what, error)  # noqa: PT017 # as above
    else:
        assert loaded.problem is not None, what


# ---- readers -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(36_000 if is_full_run() else 240)
def test_readers_miss_the_record_that_a_flip_hit_and_no_other(
    folder: Path, cluster_name: str, rng: random.Random
) -> None:
    """The whole way: a broker opens the damaged store, a consumer reads every queue, from memory
    and from files. Half of the time the derived files are there and hold, so that recovery does
    not look at the frames behind them.
    """
    config = StoreConfig(
        store_path=folder / "store",
        runtime_path=folder / "run",
        cluster_name=cluster_name,
        commit_log_file_size_bytes=STORE_FILE_SIZE,
        hot_segment_count=3,
        max_message_size_bytes=8 << 10,
        session_count=2,
        arena_bytes=1 << 20,
    )
    writer = _write(
        config.store_path,
        rng,
        file_size=STORE_FILE_SIZE,
        log_bytes=STORE_FILE_SIZE + STORE_FILE_SIZE // 2,
    )
    _say_flushed(config.store_path, writer)
    with MessageStore(config):
        pass
    _say_flushed(config.store_path, writer)
    shutil.copytree(config.store_path, folder / "whole")
    regions = _regions(writer)
    for _ in range(scaled(20, 3000)):
        region = rng.choice([rng.choice(regions), regions[-1], regions[-2]])
        bit = rng.randrange(region.begin * 8, region.end * 8)
        if rng.random() < 0.5:
            _forget_derived(config.store_path)
        elif region.kind == "__CRC32# name":
            continue
        Flips(writer).flip(bit)
        _check_readers(config, writer, region, bit)
        shutil.rmtree(config.store_path)
        shutil.copytree(folder / "whole", config.store_path)


def _check_readers(config: StoreConfig, writer: Writer, region: Region, bit: int) -> None:
    wanted = {
        (record.topic, record.queue_id, record.queue_offset): record.body
        for record in writer.records
        if record is not region.victim
    }
    seen = {}
    with ExitStack() as undo:
        store = undo.enter_context(MessageStore(config))
        offer = store.sessions.open(uid=0, pid=1, pid_start_time=1, producer=False)
        client = ClientSide(offer, dict(offer.fds))  # type: ignore[arg-type] # an Offer by socket
        undo.callback(client.close)
        for topic, queue_id, handle in store.queues:
            at, end = 0, store.queues.offsets(handle).visible_max
            while at < end:
                status, messages, reached = client.reader.read(*handle, at)
                if status == core.STATUS["OFFSET_TOO_SMALL"][0]:
                    cold = store.read_cold(topic, queue_id, at, 100)
                    assert cold is not None
                    _, messages, reached = client.reader.read_entries(bytes(cold[1]), cold[0], 100)
                assert reached > at, (region, bit, status)
                at = reached
                for message in messages:
                    seen[topic, queue_id, message.queue_offset] = message.body_bytes
        lost_count = client.reader.lost_count
    assert seen == wanted, (region, bit)
    assert lost_count in ((0, 1) if region.victim else (0,)), (region, bit)
