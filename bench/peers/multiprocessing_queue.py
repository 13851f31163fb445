"""multiprocessing.Queue of the standard library: a pipe, pickles, and a thread that feeds it."""

import multiprocessing
import platform
import queue
from collections.abc import Sequence
from typing import Any, ClassVar

from peer import Body, Consumer, Peer, Producer

Topic = list[Any]
"""A queue for each group."""


class QueueProducer(Producer):
    def __init__(self, topic: Topic) -> None:
        self._queues = topic

    def send(self, body: Body) -> None:
        for each in self._queues:
            each.put(body)

    def close(self) -> None:
        for each in self._queues:
            each.close()
            each.join_thread()


class QueueConsumer(Consumer):
    def __init__(self, topic: Topic, group: int) -> None:
        self._queue = topic[group]

    def receive(self, max_count: int, timeout_s: float) -> Sequence[Body]:
        try:
            return [self._queue.get(timeout=timeout_s)]
        except queue.Empty:
            return []

    def close(self) -> None:
        self._queue.close()


class MultiprocessingQueue(Peer):
    NAME = "mp.Queue"
    IS_DURABLE = False
    SETTINGS: ClassVar = {
        "server": "none; no bound on what waits in the producer's memory",
        "put": "put, one call a message; a thread pickles and writes",
        "batch": "the same: it has no other",
        "consumer": "get, one message at a time: it has no other",
    }

    def version(self) -> str:
        return f"Python {platform.python_version()}"

    def topic(self, name: str, *, members: int = 1, groups: int = 1) -> Topic:
        context = multiprocessing.get_context("spawn")
        return [context.Queue() for _ in range(groups)]

    @staticmethod
    def producer(topic: Topic) -> Producer:
        return QueueProducer(topic)

    @staticmethod
    def consumer(topic: Topic, group: int) -> Consumer:
        return QueueConsumer(topic, group)


PEER = MultiprocessingQueue
