"""shmq, by its public names."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, NamedTuple

from measuring import settings, until_divided
from peer import RECEIVE_MAX, TIMEOUT_S, Body, Consumer, Peer, Producer

import shmq

COPIED_MAX_BYTES = 1024
"""Of a body; above it a view in place is quicker."""


class Topic(NamedTuple):
    """What clients need to know of it."""

    folder: str
    """Runtime folder."""
    name: str
    policy: str
    """How they wait."""

    def connect(self) -> shmq.Client:
        return shmq.connect(self.folder, policy=shmq.WaitingPolicy(self.policy))


class ShmqProducer(Producer):
    def __init__(self, topic: Topic) -> None:
        self._topic = topic.name
        self._client = topic.connect()
        self._producer = self._client.producer()

    def send(self, body: Body) -> None:
        self._producer.send(self._topic, body, timeout=TIMEOUT_S)

    def put(self, body: Body) -> None:
        self._producer.send_oneway(self._topic, body, timeout=TIMEOUT_S)

    def put_many(self, bodies: Sequence[Body]) -> None:
        self._producer.send_many(self._topic, bodies, timeout=TIMEOUT_S)

    def flush(self) -> None:
        self._producer.drain(TIMEOUT_S)

    def put_repeatedly(self, body: Body, count: int) -> None:
        send, topic = self._producer.send_oneway, self._topic
        for _ in range(count):
            send(topic, body, timeout=TIMEOUT_S)
        self.flush()

    def close(self) -> None:
        self._producer.close()
        self._client.close()


class ShmqConsumer(Consumer):
    def __init__(self, topic: Topic, group: int) -> None:
        self._client = topic.connect()
        self._consumer = self._client.consumer(topic.name, f"group-{group}")
        self._ahead: shmq.MessageBatch | None = None

    def receive(self, max_count: int, timeout_s: float) -> Sequence[Body]:
        batch, self._ahead = self._ahead, None
        if not batch:
            batch = self._consumer.receive_many(max_count, timeout=timeout_s)
        is_small = batch.body_bytes <= COPIED_MAX_BYTES * len(batch)
        return batch.bodies(copy=True) if is_small else batch.bodies()

    def complete(self) -> None:
        # Asking for more settles what was handed out.
        self._ahead = self._consumer.receive_many(RECEIVE_MAX, timeout=0.0)

    def close(self) -> None:
        self._consumer.close()
        self._client.close()


class Shmq(Peer):
    NAME = "shmq"
    BROKERS: ClassVar = 1
    """Masters."""
    POLICY: ClassVar = shmq.WaitingPolicy.ADAPTIVE
    """Of the broker and its clients; it is the default."""
    SETTINGS: ClassVar = {
        "server": "NameServer and one broker, defaults (ASYNC_FLUSH each 10 ms; SYNC_FLUSH)",
        "put": "send_oneway, one call a message; drain at the end",
        "batch": "send_many of 500",
        "consumer": "receive_many(500), settled by the next; up to 1 KiB as bytes, else views",
    }

    def version(self) -> str:
        return version("shmq")

    def start(self, folder: Path, *, is_flushed: bool) -> None:
        level = "SYNC_FLUSH" if is_flushed else "ASYNC_FLUSH"
        with settings(flush_disk_type=level, waiting_policy=self.POLICY.value):
            self._client = shmq.local(folder, brokers=self.BROKERS)

    def stop(self) -> None:
        self._client.close()

    def topic(self, name: str, *, members: int = 1, groups: int = 1) -> Topic:
        self._client.create_topic(name, queues=_queues(members))
        return Topic(str(self._client.namesrv), name, self.POLICY.value)

    def settle(self, topic: Topic, *, members: int, groups: int) -> None:
        if members == 1:
            return
        with shmq.Admin(topic.folder) as admin:
            for group in range(groups):
                until_divided(
                    admin,
                    topic.name,
                    f"group-{group}",
                    queue_count=_queues(members) * self.BROKERS,
                    member_count=members,
                )

    @staticmethod
    def producer(topic: Topic) -> Producer:
        return ShmqProducer(topic)

    @staticmethod
    def consumer(topic: Topic, group: int) -> Consumer:
        return ShmqConsumer(topic, group)


def _queues(members: int) -> int:
    """Of a topic on each broker, with so many members in each of its groups."""
    return 1 if members == 1 else 2 * members


PEER = Shmq
