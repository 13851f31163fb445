"""faster-fifo: a ring in shared memory between processes of one parent; nothing is stored."""

import multiprocessing
import queue
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from peer import TIMEOUT_S, Body, Consumer, Peer, Producer

Topic = list[Any]
"""A queue for each group."""
_BYTES = 32 << 20


class FifoProducer(Producer):
    def __init__(self, topic: Topic) -> None:
        self._queues = topic

    def send(self, body: Body) -> None:
        for each in self._queues:
            each.put(body, timeout=TIMEOUT_S)

    def put_many(self, bodies: Sequence[Body]) -> None:
        for each in self._queues:
            each.put_many(bodies, timeout=TIMEOUT_S)


class FifoConsumer(Consumer):
    def __init__(self, topic: Topic, group: int) -> None:
        self._queue = topic[group]

    def receive(self, max_count: int, timeout_s: float) -> Sequence[Body]:
        try:
            bodies: list[Body] = self._queue.get_many(
                timeout=timeout_s, max_messages_to_get=max_count
            )
        except queue.Empty:
            return []
        return bodies


class Fifo(Peer):
    NAME = "faster-fifo"
    IS_DURABLE = False
    SETTINGS: ClassVar = {
        "server": f"none; rings of {_BYTES >> 20} MiB; a full one makes the sender wait",
        "put": "put, one call a message",
        "batch": "put_many of 500",
        "consumer": "get_many(500)",
    }

    def version(self) -> str:
        return version("faster-fifo")

    def start(self, folder: Path, *, is_flushed: bool) -> None:
        # Its locks come from the default context, and would not go to processes started afresh.
        multiprocessing.set_start_method("spawn", force=True)

    def topic(self, name: str, *, members: int = 1, groups: int = 1) -> Topic:
        import faster_fifo

        return [faster_fifo.Queue(max_size_bytes=_BYTES) for _ in range(groups)]

    @staticmethod
    def producer(topic: Topic) -> Producer:
        return FifoProducer(topic)

    @staticmethod
    def consumer(topic: Topic, group: int) -> Consumer:
        return FifoConsumer(topic, group)


PEER = Fifo
