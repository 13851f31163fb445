"""iceoryx2: publish-subscribe through shared memory without a copy; nothing is stored."""

import ctypes
import os
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from peer import Body, Consumer, Peer, Producer

Topic = tuple[str, str, str, int]
"""Folder of its files, prefix of its memory, name, groups."""
_BUFFER = 256
_BORROWED = 64


def _service(topic: Topic) -> tuple[Any, Any]:
    """The node, which has to be kept, and the service."""
    import iceoryx2

    folder, prefix, name, groups = topic
    iceoryx2.set_log_level(iceoryx2.LogLevel.Fatal)
    config = iceoryx2.config.default()
    config.global_cfg.root_path = iceoryx2.Path.new(folder)
    config.global_cfg.prefix = iceoryx2.FileName.new(prefix)
    node = iceoryx2.NodeBuilder.new().config(config).create(iceoryx2.ServiceType.Ipc)
    service = (
        node.service_builder(iceoryx2.ServiceName.new(name))
        .publish_subscribe(iceoryx2.Slice[ctypes.c_uint8])
        .enable_safe_overflow(False)
        .history_size(0)
        .subscriber_max_buffer_size(_BUFFER)
        .subscriber_max_borrowed_samples(_BORROWED)
        .max_subscribers(max(1, groups))
        .max_publishers(1)
        .max_nodes(groups + 2)
        .open_or_create()
    )
    return node, service


class IceoryxProducer(Producer):
    def __init__(self, topic: Topic) -> None:
        import iceoryx2

        self._node, self._service = _service(topic)
        self._publisher = (
            self._service.publisher_builder()
            .backpressure_strategy(iceoryx2.BackpressureStrategy.RetryUntilDelivered)
            .allocation_strategy(iceoryx2.AllocationStrategy.PowerOfTwo)
            .initial_max_slice_len(1 << 10)
            .create()
        )
        self._missing = topic[3]

    def send(self, body: Body) -> None:
        while self._missing and self._service.dynamic_config.number_of_subscribers < self._missing:
            time.sleep(0.001)
        self._missing = 0
        size = len(body)
        sample = self._publisher.loan_slice_uninit(size)
        ctypes.memmove(sample.payload_ptr, body, size)
        sample.assume_init().send()

    def close(self) -> None:
        self._publisher.delete()


class IceoryxConsumer(Consumer):
    def __init__(self, topic: Topic) -> None:
        self._node, self._service = _service(topic)
        self._subscriber = self._service.subscriber_builder().buffer_size(_BUFFER).create()
        self._samples: list[Any] = []

    def receive(self, max_count: int, timeout_s: float) -> Sequence[Body]:
        receive, samples = self._subscriber.receive, self._samples
        deadline = time.monotonic() + timeout_s
        while len(samples) < _BORROWED:
            sample = receive()
            if sample is not None:
                samples.append(sample)
            elif samples or time.monotonic() > deadline:
                break
            else:
                os.sched_yield()
        return [sample.payload().as_memory_view() for sample in samples]

    def complete(self) -> None:
        for sample in self._samples:
            sample.delete()
        self._samples.clear()

    def close(self) -> None:
        self._subscriber.delete()


class Iceoryx(Peer):
    NAME = "iceoryx2"
    IS_DURABLE = False
    HAS_GROUPS = False
    SETTINGS: ClassVar = {
        "server": f"none; slices of bytes, {_BUFFER} in a subscriber's buffer; a full one makes "
        "the sender try again",
        "put": "loan_slice_uninit, one copy of the body, send",
        "batch": "the same: it has no other",
        "consumer": f"receive up to {_BORROWED} times, views without a copy; polls, giving up the "
        "core in between",
        "groups": "members cannot share a topic: it has no row of a group of 4",
    }

    def version(self) -> str:
        return version("iceoryx2")

    def start(self, folder: Path, *, is_flushed: bool) -> None:
        self._folder = folder
        self._prefix = f"bench{os.getpid()}_"

    def stop(self) -> None:
        for left in Path("/dev/shm").glob(f"{self._prefix}*"):  # of workers that were killed
            left.unlink()

    def topic(self, name: str, *, members: int = 1, groups: int = 1) -> Topic:
        return str(self._folder), self._prefix, name, groups

    @staticmethod
    def producer(topic: Topic) -> Producer:
        return IceoryxProducer(topic)

    @staticmethod
    def consumer(topic: Topic, group: int) -> Consumer:
        return IceoryxConsumer(topic)


PEER = Iceoryx
