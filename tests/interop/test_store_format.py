"""A million messages: what producers sent is what readers see and what lies on disk, byte for byte.

Two producer processes, 64 queues, bodies of 1 B to 4 MiB, 256 MiB of log in the default set and
4 GiB in a full run. Read while it is sent (from memory), read again from the start (from files),
and decoded from the CommitLog's files by a decoder that knows nothing of shmq.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from shmq.config import StoreConfig
from shmq.store.queues import QueueHandle
from tests.interop import format_messages
from tests.interop.format_messages import TAGS, Plan
from tests.support import rocketmq_decoder
from tests.support.client_process import ClientProcess
from tests.support.queue_reader import QueueReader
from tests.support.scale import is_full_run, scaled
from tests.support.store_process import StoreClient, StoreProcess

MESSAGE_COUNT = 1_000_000
PRODUCER_COUNT = 2
TOPICS = ("format-a", "format-b", "format-c", "%RETRY%format")
QUEUES = [(topic, queue_id) for topic in TOPICS for queue_id in range(16)]
FRAME_BYTES = 185  # about what a frame has beside its body, with these topics and properties


class Sent(NamedTuple):
    """What a queue's next message must be."""

    plan: Plan
    number: int


class Truth:
    """All that was sent, and what each queue must show next."""

    def __init__(self, seed: int, plans: list[Plan]) -> None:
        self.pool = format_messages.pool(seed)
        self.plans = plans
        self.numbers: dict[tuple[int, int], NDArray[np.int64]] = {
            (plan.producer, queue): np.flatnonzero(plan.queues == queue)
            for plan in plans
            for queue in range(len(QUEUES))
        }

    def count(self, queue: int) -> int:
        """Messages of a queue, all producers'."""
        return sum(len(self.numbers[plan.producer, queue]) for plan in self.plans)

    def body(self, sent: Sent) -> bytes:
        place = int(sent.plan.places[sent.number])
        return self.pool[place : place + int(sent.plan.sizes[sent.number])]


class QueueCheck:
    """Holds the messages of one queue against the truth as they come: each producer's in its
    order, each once.
    """

    def __init__(self, truth: Truth, queue: int) -> None:
        self._truth = truth
        self._queue = queue
        self._next = {plan.producer: 0 for plan in truth.plans}
        self._digest = hashlib.blake2b(digest_size=16)
        self.count = 0

    def take(self, flag: int, queue_offset: int, body: bytes) -> Sent:
        """The next message of the queue; says which it is."""
        producer, number = flag >> 24, flag & 0xFFFFFF
        at = self._next[producer]
        assert number == self._truth.numbers[producer, self._queue][at]
        self._next[producer] = at + 1
        assert queue_offset == self.count
        self.count += 1
        sent = Sent(self._truth.plans[producer], number)
        assert body == self._truth.body(sent), (self._queue, queue_offset)
        self._digest.update(flag.to_bytes(4, "big"))
        self._digest.update(body)
        return sent

    def finish(self) -> bytes:
        """All must have come; the digest of them."""
        assert self.count == self._truth.count(self._queue)
        return self._digest.digest()


@pytest.fixture
def config(tmp_path: Path, cluster_name: str) -> StoreConfig:
    return StoreConfig(
        store_path=tmp_path / "store",
        runtime_path=tmp_path / "run",
        cluster_name=cluster_name,
        commit_log_file_size_bytes=scaled(16, 64) << 20,
        hot_segment_count=4,
    )


@pytest.mark.slow
@pytest.mark.timeout(3600 if is_full_run() else 240)
def test_what_was_sent_is_read_hot_and_cold_and_decoded_from_disk(
    config: StoreConfig, rng: random.Random
) -> None:
    seed = rng.getrandbits(32)
    log_bytes = scaled(256 << 20, 4 << 30)
    body_bytes = (log_bytes - MESSAGE_COUNT * FRAME_BYTES) // PRODUCER_COUNT
    plans = [
        format_messages.plan(
            seed,
            producer,
            count=MESSAGE_COUNT // PRODUCER_COUNT,
            queue_count=len(QUEUES),
            body_bytes=body_bytes,
        )
        for producer in range(PRODUCER_COUNT)
    ]
    truth = Truth(seed, plans)
    with StoreProcess(config) as store:
        handles = [store.add_queue(topic, queue_id) for topic, queue_id in QUEUES]
        hot = _read_while_sending(store, handles, truth, seed, body_bytes)
        assert _read_from_the_start(store, handles, truth) == hot
        end = store.facts()["positions"]["committed_position"]
    assert 0.8 * log_bytes < end < 1.2 * log_bytes
    assert _decode(config.store_path, truth, end) == hot
    _check_folder(config)


def _read_while_sending(
    store: StoreProcess, handles: list[QueueHandle], truth: Truth, seed: int, body_bytes: int
) -> list[bytes]:
    """Start the producers and read all queues until everything has come; a digest per queue."""
    rows = tuple(handle.row for handle in handles)
    checks = [QueueCheck(truth, queue) for queue in range(len(QUEUES))]
    with StoreClient(store) as client:
        producers = [
            ClientProcess(
                store,
                "tests.interop.format_producer",
                rows=rows,
                chunk_bytes=32 << 20,
                seed=seed,
                producer=plan.producer,
                count=len(plan),
                body_bytes=body_bytes,
                handles=[list(handle) for handle in handles],
            )
            for plan in truth.plans
        ]
        try:
            readers = [
                QueueReader(store, client, handle, topic, queue_id)
                for handle, (topic, queue_id) in zip(handles, QUEUES, strict=True)
            ]
            missing = MESSAGE_COUNT
            while missing:
                got = _read_round(readers, checks)
                missing -= got
                if not got:
                    assert all(process.process.poll() is None for process in producers)
            for process in producers:
                assert process.hear() == {"sent": MESSAGE_COUNT // PRODUCER_COUNT}
                process.say()
                assert process.end() == 0
        finally:
            for process in producers:
                process.close()
    return [check.finish() for check in checks]


def _read_round(readers: list[QueueReader], checks: list[QueueCheck]) -> int:
    """What each queue has now; how many messages that was."""
    got = 0
    for reader, check in zip(readers, checks, strict=True):
        for message in reader.read(1024):
            sent = check.take(message.flag, message.queue_offset, message.body_bytes)
            if sent.number % 16 == 0:
                assert (message.topic, message.queue_id) == (reader.topic, reader.queue_id)
                _check_properties(
                    sent,
                    message.properties | {"TAGS": message.tag or ""},
                    " ".join(message.keys),
                )
            got += 1
    return got


def _check_properties(sent: Sent, properties: dict[str, str], keys: str) -> None:
    assert properties.get("TAGS", "") == TAGS[sent.plan.tags[sent.number]]
    assert keys == " ".join(sent.plan.keys(sent.number))
    own = sent.plan.properties(sent.number)
    assert {name: properties.get(name) for name in own} == own
    assert len(properties["UNIQ_KEY"]) == 32


def _read_from_the_start(
    store: StoreProcess, handles: list[QueueHandle], truth: Truth
) -> list[bytes]:
    """A new client reads everything again, with CRCs: most of it comes from files by now."""
    digests = []
    cold_count = 0
    with StoreClient(store, producer=False) as client:
        for queue, (topic, queue_id) in enumerate(QUEUES):
            check = QueueCheck(truth, queue)
            reader = QueueReader(store, client, handles[queue], topic, queue_id)
            while messages := reader.read(1024, verify=True):
                for message in messages:
                    check.take(message.flag, message.queue_offset, message.body_bytes)
            digests.append(check.finish())
            cold_count += reader.cold_count
        assert client.reader.lost_count == 0
        assert len(client.log_map.files()) <= 4 + 16 + 1, "files mapped: hot ones and a bounded few"
    assert cold_count > MESSAGE_COUNT // 4
    return digests


def _decode(store_path: Path, truth: Truth, end: int) -> list[bytes]:
    """Every frame on disk: a digest per queue. The decoder holds offsets, CRCs, BLANK frames and
    the zeros behind the end to RocketMQ's rules; here the contents are held against the truth.
    """
    checks = {key: QueueCheck(truth, queue) for queue, key in enumerate(QUEUES)}
    reached = 0
    for frame in _frames(store_path):
        check = checks[frame.topic, frame.queue_id]
        sent = check.take(frame.flag, frame.queue_offset, frame.body)
        _check_properties(sent, frame.properties, frame.properties.get("KEYS", ""))
        assert frame.tags_code == rocketmq_decoder.java_hash(TAGS[sent.plan.tags[sent.number]])
        # A turn takes its time when it begins, so a record may be born a little later than stored.
        assert frame.born_timestamp <= frame.store_timestamp + 1000
        assert (frame.reconsume_times, frame.prepared_transaction_offset) == (0, 0)
        assert frame.store_host == ("127.0.0.1", 10911)
        reached = frame.physical_offset + frame.total_size
    assert reached == end
    return [checks[key].finish() for key in QUEUES]


def _frames(store_path: Path) -> Iterator[rocketmq_decoder.Frame]:
    stored = 0
    for frame in rocketmq_decoder.decode_commit_log(store_path / "commitlog"):
        assert frame.store_timestamp >= stored, "storeTimestamp never goes back"
        stored = frame.store_timestamp
        yield frame


def _check_folder(config: StoreConfig) -> None:
    """The one state from which every RocketMQ release rebuilds itself."""
    names = {path.name for path in config.store_path.iterdir()}
    assert {"commitlog", "abort", "broker.conf", "lock", "shmq"} <= names
    assert not names & {"checkpoint", "consumequeue", "index"}
    lines = (config.store_path / "broker.conf").read_text(encoding="utf-8").splitlines()
    settings = dict(line.split("=", 1) for line in lines if "=" in line and line[0] != "#")
    size = int(settings["mappedFileSizeCommitLog"])
    assert size == config.commit_log_file_size_bytes
    assert settings["brokerName"] == config.broker_name
    assert Path(settings["storePathRootDir"]) == config.store_path
    files = sorted((config.store_path / "commitlog").iterdir())
    assert [path.name for path in files] == [f"{n * size:020d}" for n in range(len(files))]
    assert {path.stat().st_size for path in files} == {size}
