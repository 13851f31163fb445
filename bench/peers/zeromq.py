"""ZeroMQ over ipc: PUSH and PULL, and XPUB and SUB for several groups; nothing is stored."""

import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

from peer import Body, Consumer, Peer, Producer

Topic = tuple[str, int, int]
"""Address, members of a group, groups."""


class ZeroMQProducer(Producer):
    def __init__(self, topic: Topic) -> None:
        import zmq

        address, _, groups = topic
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH if groups == 1 else zmq.XPUB)
        self._copied_below = zmq.COPY_THRESHOLD
        if groups > 1:
            self._socket.setsockopt(zmq.XPUB_NODROP, 1)
            self._socket.setsockopt(zmq.XPUB_VERBOSE, 1)  # each subscription is told
        self._socket.bind(address)
        self._missing = groups if groups > 1 else 0

    def send(self, body: Body) -> None:
        while self._missing:
            self._socket.recv()  # a subscription
            self._missing -= 1
        self._socket.send(body, copy=len(body) < self._copied_below)

    def close(self) -> None:
        self._context.destroy(linger=0)


class ZeroMQConsumer(Consumer):
    def __init__(self, topic: Topic) -> None:
        import zmq

        address, _, groups = topic
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PULL if groups == 1 else zmq.SUB)
        if groups > 1:
            self._socket.subscribe(b"")
        self._socket.connect(address)
        self._zmq = zmq
        self._is_copied = True

    def receive(self, max_count: int, timeout_s: float) -> Sequence[Body]:
        if not self._socket.poll(int(timeout_s * 1000)):
            return []
        bodies: list[Body] = []
        receive, now, is_copied = self._socket.recv, self._zmq.NOBLOCK, self._is_copied
        try:
            while len(bodies) < max_count:
                body = receive(now, is_copied)
                bodies.append(body if is_copied else body.buffer)
        except self._zmq.Again:
            pass
        # How the next ones are taken: nothing says how large they are before they are there.
        if bodies:
            self._is_copied = len(bodies[-1]) < self._zmq.COPY_THRESHOLD
        return bodies

    def close(self) -> None:
        self._context.destroy(linger=0)


class ZeroMQ(Peer):
    NAME = "zeromq"
    IS_DURABLE = False
    SETTINGS: ClassVar = {
        "server": "none; ipc, one I/O thread, high-water mark 1,000 messages a side: a full queue "
        "makes the sender wait (XPUB_NODROP for several groups)",
        "put": "send, one call a message; copy=False from 64 KiB on",
        "batch": "the same: it gathers by itself",
        "consumer": "poll, then recv without waiting up to 500 times; copy=False from 64 KiB on",
    }

    def version(self) -> str:
        import zmq

        return f"pyzmq {version('pyzmq')}, libzmq {zmq.zmq_version()}"

    def start(self, folder: Path, *, is_flushed: bool) -> None:
        self._folder = os.open(folder, os.O_PATH)

    def stop(self) -> None:
        os.close(self._folder)

    def topic(self, name: str, *, members: int = 1, groups: int = 1) -> Topic:
        return f"ipc:///proc/{os.getpid()}/fd/{self._folder}/{name}", members, groups

    @staticmethod
    def producer(topic: Topic) -> Producer:
        return ZeroMQProducer(topic)

    @staticmethod
    def consumer(topic: Topic, group: int) -> Consumer:
        return ZeroMQConsumer(topic)


PEER = ZeroMQ
