"""Stores that shmq left behind, for a real RocketMQ to take over, and what must be found in them.

What lives here: one function for each: the demo's, a shop with everything a message can have, one
whose broker was killed, one that fsck mended. Each runs real brokers and returns what was sent.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import shmq
from shmq.client.admin import Admin
from shmq.tools.demo import HEAD
from tests.cluster.namesrv_process import NamesrvProcess
from tests.support.broker_process import BrokerProcess
from tests.support.cluster import wait_for
from tests.support.dev_shm import RUN_TOKEN
from tests.support.repository import ROOT
from tests.support.rocketmq import Place

CLUSTER = f"{RUN_TOKEN}oracle"
TIMEOUT_S = 30.0
ORDERS, EVENTS, LONG, AGAIN = "orders", "events", "a-long-name-" + "x" * 115, "again"
SYNC, ASYNC, NOTES = "sync", "async", "notes"
LATER = "later"
BILLING = "billing"
DELAYS_MS = {0: 0, 1: 1_000, 2: 6_000, 3: 12_000}
"""By level, 0 for messages that do not wait."""
DELAY_LEVELS = "1s 6s 12s"
"""Of the broker of delayed_store: not RocketMQ's own, so that its broker.conf has to say them."""
LATER_ATTRIBUTES = {"message.type": "DELAY", "shmq.flush.disk.type": "SYNC_FLUSH"}
DEMO_LINES = 2000
DEMO_FILES = ("shmq/topic.py", "README.md", "shmq/core/include/shmq/crc.h")


@dataclass(frozen=True)
class Sent:
    """One message that was acknowledged."""

    topic: str
    place: Place
    message_id: str
    body: bytes
    tag: str | None = None
    keys: tuple[str, ...] = ()
    properties: Mapping[str, str] = field(default_factory=dict)
    flag: int = 0


@dataclass(frozen=True)
class Kept:
    """A store that nobody has open."""

    path: Path
    sent: tuple[Sent, ...] = ()
    consumed: frozenset[Place] = frozenset()
    """What group BILLING consumed of topic ORDERS."""


# ---- the demo ------------------------------------------------------------------------------------


def demo_stores(folder: Path) -> list[Kept]:
    """bin/demo --keep: two brokers, of which one was killed and came back."""
    done = subprocess.run(
        [
            ROOT / "bin/demo", "--keep", str(folder), "--lines", str(DEMO_LINES),
            *(str(ROOT / name) for name in DEMO_FILES),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r" 0 lost, 0 out of order", done.stdout), done.stdout
    return [Kept(folder / "broker-a"), Kept(folder / "broker-b")]


def demo_lines() -> Iterator[tuple[str, bytes]]:
    """(key, body) of each line that the demo sends, for as often as it repeats the files."""
    files = sorted(
        (f"{index:04}-{Path(name).name}", (ROOT / name).read_bytes().splitlines())
        for index, name in enumerate(DEMO_FILES)
    )
    repeats = -(-DEMO_LINES // sum(len(lines) for _, lines in files))
    for number, (name, lines) in enumerate(files * repeats):
        for line_number, line in enumerate(lines):
            yield f"{name}-{number}:{line_number}", HEAD.pack(number, line_number) + line


# ---- brokers -------------------------------------------------------------------------------------


def broker(folder: Path, name: str, port: int, runtime: Path, **settings: str) -> BrokerProcess:
    """A broker whose store is folder/store-<name>, and whose messages name this port."""
    return BrokerProcess(
        folder,
        CLUSTER,
        name=name,
        runtime=runtime,
        **{"listen_port": str(port), **settings},  # type: ignore[arg-type]
    )


def _send(producer: shmq.Producer, topic: str, body: bytes, **options: object) -> Sent:
    keys = options.get("keys", ())
    result = producer.send(topic, body, timeout=TIMEOUT_S, **options)  # type: ignore[arg-type]
    queue = result.message_queue
    assert isinstance(keys, tuple)
    return Sent(
        topic,
        Place(queue.broker_name, queue.queue_id, result.queue_offset),
        result.message_id,
        body,
        **{**options, "keys": keys},  # type: ignore[arg-type]
    )


# ---- a shop --------------------------------------------------------------------------------------


def shop_store(folder: Path, port: int) -> Kept:
    """Everything a message can have; several log files; a SIGKILL on the way; a group half through;
    a topic that was deleted, and one that was made again.
    """
    runtime = folder / "run-shop"
    with (
        NamesrvProcess(runtime),
        broker(folder, "shop", port, runtime) as shop,
        shmq.connect(runtime) as client,
        Admin(runtime) as admin,
    ):
        for topic in (ORDERS, EVENTS, LONG, AGAIN, "gone"):
            admin.create_topic(topic, queues=4 if topic == ORDERS else 2)
        producer = client.producer()
        _send(producer, "gone", b"deleted with its topic")
        early = [_send(producer, AGAIN, b"before the topic was deleted") for _ in range(4)]
        for topic in ("gone", AGAIN):
            admin.delete_topic(topic)
        admin.create_topic(AGAIN, queues=2)
        sent = list(_orders(producer, 0))
        shop.kill()
        shop.restart()
        sent += _orders(producer, 300)
        sent += [_send(producer, LONG, b"%d" % n, keys=(f"long-{n}",)) for n in range(5)]
        sent += [_send(producer, EVENTS, bytes([n % 251]) * n) for n in range(1, 200, 7)]
        sent += [_send(producer, AGAIN, b"after", keys=("again",)) for _ in range(6)]
        assert min(m.place.queue_offset for m in sent if m.topic == AGAIN) == len(early) // 2
        with client.consumer(ORDERS, BILLING) as consumer:
            consumed = frozenset(_consume(consumer, 250))
    return Kept(folder / "store-shop", tuple(sent), consumed)


def _orders(producer: shmq.Producer, first: int) -> Iterator[Sent]:
    for number in range(first, first + 300):
        yield _send(
            producer,
            ORDERS,
            f"order {number}: ☃ größer".encode() if number % 50 else os.urandom(1 << 20),
            tag=("new", "paid", "größe", None)[number % 4],
            keys=(f"order-{number}", f"customer-{number % 100}"),
            properties={"nummer": str(number), "größe": "☃ 10 m"} if number % 3 else {},
            flag=number - 300,
        )


def _consume(consumer: shmq.Consumer, count: int) -> Iterator[Place]:
    """Take so many messages, one after the other, and settle each."""
    for _ in range(count):
        message = consumer.try_next(TIMEOUT_S)
        assert message is not None
        yield Place("shop", message.queue_id, message.queue_offset)
        consumer.settle(message)


# ---- a broker that was killed --------------------------------------------------------------------


def killed_store(folder: Path, port: int) -> Kept:
    """The folder of a broker as SIGKILL left it: what is in memory only is not in it."""
    runtime = folder / "run-killed"
    with (
        NamesrvProcess(runtime),
        broker(folder, "killed", port, runtime, flush_interval_ms="1000") as killed,
        shmq.connect(runtime) as client,
        Admin(runtime) as admin,
    ):
        flush = {"shmq.flush.disk.type": "SYNC_FLUSH"}
        admin.create_topic(SYNC, queues=2, attributes=flush)
        admin.create_topic(ASYNC, queues=2)
        producer = client.producer()
        sent = []
        for number in range(200):
            topic = SYNC if number < 100 and number % 3 == 0 else ASYNC
            sent.append(_send(producer, topic, b"%d" % number, keys=(f"k{number}",)))
        killed.kill()
        kept = folder / "killed"
        shutil.copytree(folder / "store-killed", kept, ignore=shutil.ignore_patterns("*.sock"))
    return Kept(kept, tuple(sent))


# ---- messages that wait --------------------------------------------------------------------------


def delayed_store(folder: Path, port: int) -> tuple[Path, dict[bytes, int]]:
    """A store whose messages are delivered in part, and wait in part when its broker is stopped;
    by body the level of each.
    """
    runtime = folder / "run-delays-before"
    levels: dict[bytes, int] = {}
    with (
        NamesrvProcess(runtime),
        broker(folder, "delays", port, runtime, message_delay_level=DELAY_LEVELS) as delays,
        shmq.connect(runtime) as client,
        Admin(runtime) as admin,
    ):
        wait_for(client.routes.brokers, "the registration")
        admin.create_topic(LATER, queues=2, attributes=LATER_ATTRIBUTES)
        producer = client.producer()
        with client.consumer(LATER, "sees-the-first") as consumer:
            for level in (0, 1):
                for number in range(10):
                    body = b"of shmq, level %d, %d" % (level, number)
                    levels[body] = level
                    producer.send(LATER, body, delay_level=level, timeout=TIMEOUT_S)
            seen = set()
            while len(seen) < len(levels):
                message = consumer.try_next(TIMEOUT_S)
                assert message is not None
                seen.add(bytes(message.body))
                message.settle()
        for level in (2, 3):
            for number in range(10):
                body = b"of shmq, level %d, %d" % (level, number)
                levels[body] = level
                producer.send(LATER, body, delay_level=level, timeout=TIMEOUT_S)
        assert delays.stop() == 0
    return delays.store_path, levels


# ---- a store that was damaged and mended ---------------------------------------------------------


def mended_store(folder: Path, port: int) -> tuple[Kept, Sent]:
    """Bits flipped in one record in the middle of the log, then fsck --repair; and what is lost."""
    runtime = folder / "run-mended"
    with (
        NamesrvProcess(runtime),
        broker(folder, "mended", port, runtime),
        shmq.connect(runtime) as client,
    ):
        wait_for(client.routes.brokers, "the registration")
        client.create_topic(NOTES, queues=2)
        producer = client.producer()
        sent = [
            _send(producer, NOTES, b"message number %d" % number, keys=(f"m{number}",))
            for number in range(200)
        ]
    store = folder / "store-mended"
    lost = sent.pop(100)
    log = store / "commitlog" / ("0" * 20)
    data = log.read_bytes()
    with log.open("r+b") as file:
        file.seek(data.index(lost.body))
        file.write(b"MESSAGE")
    done = subprocess.run(
        [sys.executable, "-m", "shmq.tools.fsck", str(store), "--repair"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    return Kept(store, tuple(sent)), lost


# ---- moving --------------------------------------------------------------------------------------


def moved(store: Path, to: Path, *, port: int | None = None) -> Path:
    """A copy of a store, its broker.conf told where it lies now (docs/operate)."""
    subprocess.run(["cp", "-r", "--sparse=always", store, to], check=True)
    changes = {"storePathRootDir": str(to), "storePathCommitLog": str(to / "commitlog")}
    if port is not None:
        changes["listenPort"] = str(port)
    conf = to / "broker.conf"
    lines = conf.read_text("ascii").splitlines()
    for name, value in changes.items():
        lines = [f"{name}={value}" if line.startswith(f"{name}=") else line for line in lines]
    conf.write_text("\n".join(lines) + "\n", "ascii")
    return to


def by_topic(sent: tuple[Sent, ...]) -> dict[str, list[Sent]]:
    """What was sent, by topic."""
    topics = defaultdict(list)
    for message in sent:
        topics[message.topic].append(message)
    return topics
