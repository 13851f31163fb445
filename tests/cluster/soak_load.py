"""The clients of test_soak.py, each a process: what they send and get they note in a spool.

python -m tests.cluster.soak_load KIND RUNTIME_FOLDER SPOOL NUMBER

answers `true` once it works. A line "pause" on its standard input ends the sending, and is answered
once nothing is under way; "go" begins it again. It ends when its standard input does.
"""

from __future__ import annotations

import itertools
import json
import os
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence

import shmq
from shmq.errors import ShmqError

TOPIC = "soak"
KEY = struct.Struct("<II")
SENT = struct.Struct("<IIB")
TIMEOUT_S = 60.0
BODY_BYTES = 1024
SLOT_S = 0.02
"""From one send to the next."""
MANY = 8
ASYNC_MAX = 16


class Spool:
    """Where one process notes what became of its messages, so that a killed one has said it."""

    def __init__(self, path: str, number: int) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._number = number
        self._sequence = itertools.count()

    def begin(self, count: int = 1) -> list[int]:
        """So many are about to be sent; their sequence numbers."""
        sequences = list(itertools.islice(self._sequence, count))
        self._note(sequences, is_acked=False)
        return sequences

    def acked(self, sequences: Sequence[int]) -> None:
        self._note(sequences, is_acked=True)

    def body(self, sequence: int) -> bytes:
        return KEY.pack(self._number, sequence).ljust(BODY_BYTES, b".")

    def got(self, messages: Sequence[shmq.Message]) -> None:
        os.write(self._fd, b"".join(bytes(each.body[: KEY.size]) for each in messages))

    def _note(self, sequences: Sequence[int], *, is_acked: bool) -> None:
        records = [SENT.pack(self._number, each, is_acked) for each in sequences]
        os.write(self._fd, b"".join(records))


class Orders:
    """What the test says."""

    def __init__(self) -> None:
        self._going = threading.Event()
        self._going.set()
        self._asked = threading.Event()
        self.ended = threading.Event()
        threading.Thread(target=self._hear, daemon=True, name="orders").start()

    def _hear(self) -> None:
        for line in sys.stdin:
            if line.strip() == "pause":
                self._going.clear()
                self._asked.set()
            else:
                self._going.set()
        self.ended.set()
        self._going.set()

    def keep_on(self, settle: Callable[[], None] = lambda: None) -> bool:
        """Wait while there is a pause, with nothing under way; False: it is over."""
        self.ended.wait(SLOT_S)
        if not self._going.is_set():
            settle()
            self._asked.wait()
            self._asked.clear()
            say(True)
            self._going.wait()
        return not self.ended.is_set()


def say(what: object) -> None:
    print(json.dumps(what), flush=True)


def complain(error: BaseException) -> None:
    """A send that failed is no acknowledged message; the test shows it if it fails."""
    print(f"soak_load {' '.join(sys.argv[1:2])}: {error}", file=sys.stderr, flush=True)


def connect(folder: str) -> shmq.Client:
    """However long no NameServer is there."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            return shmq.connect(folder)
        except ShmqError:
            if time.monotonic() > deadline:
                raise
            time.sleep(SLOT_S)


# ---- who sends -----------------------------------------------------------------------------------


def send_sync(folder: str, spool: Spool, orders: Orders) -> None:
    with connect(folder) as client, client.producer() as producer:
        _send_one(producer, spool)  # what it holds, it holds from here on
        say(True)
        while orders.keep_on():
            _send_one(producer, spool)


def _send_one(producer: shmq.Producer, spool: Spool) -> None:
    (sequence,) = spool.begin()
    try:
        producer.send(TOPIC, spool.body(sequence), timeout=TIMEOUT_S)
        spool.acked([sequence])
    except ShmqError as error:
        complain(error)


def send_async(folder: str, spool: Spool, orders: Orders) -> None:
    with connect(folder) as client, client.producer() as producer:
        flying: list[tuple[int, object]] = []

        def settle(left: int = 0) -> None:
            while len(flying) > left:
                sequence, future = flying.pop(0)
                try:
                    future.result()  # type: ignore[attr-defined] # concurrent.futures.Future
                    spool.acked([sequence])
                except ShmqError as error:
                    complain(error)

        def send() -> None:
            (sequence,) = spool.begin()
            body = spool.body(sequence)
            try:
                flying.append((sequence, producer.send_async(TOPIC, body, timeout=TIMEOUT_S)))
            except ShmqError as error:
                complain(error)

        send()  # with what settles futures, too
        settle()
        say(True)
        while orders.keep_on(settle):
            send()
            settle(ASYNC_MAX)
        settle()


def send_many(folder: str, spool: Spool, orders: Orders) -> None:
    with connect(folder) as client, client.producer() as producer:
        _send_one(producer, spool)  # what it holds, it holds from here on
        say(True)
        while orders.keep_on():
            sequences = spool.begin(MANY)
            try:
                producer.send_many(TOPIC, list(map(spool.body, sequences)), timeout=TIMEOUT_S)
                spool.acked(sequences)
            except ShmqError as error:
                complain(error)


def visit(folder: str, spool: Spool, orders: Orders) -> None:
    """One short-lived client after the other: each sends and reads a message, and is closed."""
    say(True)
    while orders.keep_on():
        with connect(folder) as client, client.producer() as producer:
            _send_one(producer, spool)
            try:
                with client.pull_consumer(TOPIC) as pull:
                    queue, *_ = pull.queues()
                    pull.pull(queue, max(pull.min_offset(queue), pull.max_offset(queue) - 1))
            except ShmqError as error:
                complain(error)


# ---- who consumes --------------------------------------------------------------------------------


def consume_push(folder: str, spool: Spool, orders: Orders, *, orderly: bool = False) -> None:
    group = "orderly" if orderly else "push"
    with (
        connect(folder) as client,
        client.push_consumer(
            group, lambda message, *_: spool.got([message]), orderly=orderly, threads=2
        ) as consumer,
    ):
        consumer.subscribe(TOPIC)
        say(True)
        orders.ended.wait()


def consume_orderly(folder: str, spool: Spool, orders: Orders) -> None:
    consume_push(folder, spool, orders, orderly=True)


def consume_lite(folder: str, spool: Spool, orders: Orders) -> None:
    with connect(folder) as client, client.lite_pull_consumer("lite") as consumer:
        consumer.subscribe(TOPIC)
        say(True)
        while not orders.ended.is_set():
            try:
                spool.got(consumer.poll(0.5))
            except ShmqError as error:
                complain(error)
                orders.ended.wait(SLOT_S)


KINDS: dict[str, Callable[[str, Spool, Orders], None]] = {
    "sync": send_sync,
    "async": send_async,
    "many": send_many,
    "visit": visit,
    "push": consume_push,
    "orderly": consume_orderly,
    "lite": consume_lite,
}
SENDERS = ("sync", "async", "many", "visit")
CONSUMERS = ("push", "orderly", "lite")


def main() -> None:
    kind, folder, path, number = sys.argv[1:]
    KINDS[kind](folder, Spool(path, int(number)), Orders())


if __name__ == "__main__":
    main()
