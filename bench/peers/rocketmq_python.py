"""Apache RocketMQ 5 with its official Python client, over gRPC to the broker's Proxy."""

import os
import threading
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, ClassVar

import rocketmq_server
from peer import TIMEOUT_S, Body, Consumer, Producer
from rocketmq_server import Place, RocketMQ

_FLYING_MAX = 256
_CACHED = 4_096


def _configuration(place: Place) -> Any:
    os.environ["HOME"] = place.folder  # the client writes its log there, from its import on
    from rocketmq.v5.client import ClientConfiguration, Credentials

    return ClientConfiguration(place.proxy, Credentials(), request_timeout=int(TIMEOUT_S))


class PythonProducer(Producer):
    def __init__(self, place: Place) -> None:
        configuration = _configuration(place)
        from rocketmq.v5.model import Message
        from rocketmq.v5.producer import Producer as Client

        self._message, self._topic = Message, place.topic
        self._producer = Client(configuration, (self._topic,))
        self._producer.startup()
        self._room = threading.Semaphore(_FLYING_MAX)
        self._failed: list[BaseException] = []

    def _made(self, body: Body) -> Any:
        message = self._message()
        message.topic = self._topic
        message.body = body
        return message

    def send(self, body: Body) -> None:
        self._producer.send(self._made(body))

    def put(self, body: Body) -> None:
        self._room.acquire()
        self._producer.send_async(self._made(body)).add_done_callback(self._sent)

    def _sent(self, future: Any) -> None:
        error = future.exception()
        if error is not None:
            self._failed.append(error)
        self._room.release()

    def flush(self) -> None:
        for _ in range(_FLYING_MAX):
            self._room.acquire()
        self._room.release(_FLYING_MAX)
        if self._failed:
            raise self._failed[0]

    def close(self) -> None:
        self._producer.shutdown()


class PythonConsumer(Consumer):
    def __init__(self, place: Place, group: int) -> None:
        configuration = _configuration(place)
        from rocketmq.v5.consumer import PushConsumer
        from rocketmq.v5.consumer.push import ConsumeResult, MessageListener
        from rocketmq.v5.model import FilterExpression

        consumer = self

        class Listener(MessageListener):  # type: ignore[misc]
            def consume(self, message: Any) -> Any:
                consumer.arrive(message.body)
                return ConsumeResult.SUCCESS

        self._come = threading.Condition()
        self._bodies: list[Body] = []
        self._consumer = PushConsumer(
            configuration,
            place.group(group),
            Listener(),
            {place.topic: FilterExpression()},
            max_cache_message_count=_CACHED,
        )
        self._consumer.startup()

    def arrive(self, body: Body) -> None:
        """In the client's threads."""
        with self._come:
            self._bodies.append(body)
            self._come.notify()

    def receive(self, max_count: int, timeout_s: float) -> Sequence[Body]:
        with self._come:
            if not self._bodies:
                self._come.wait(timeout_s)
            bodies, self._bodies = self._bodies, []
            return bodies

    def close(self) -> None:
        self._consumer.shutdown()


class RocketMQPython(RocketMQ):
    NAME = "rocketmq-python"
    SETTINGS: ClassVar = {
        "server": rocketmq_server.SETTINGS,
        "put": f"send_async, {_FLYING_MAX} under way at most",
        "batch": "the same: the client has no other",
        "consumer": f"PushConsumer, 20 threads, {_CACHED} cached; complete when the listener has "
        "returned",
        "client": "rocketmq-python-client over gRPC",
    }

    def version(self) -> str:
        client = version("rocketmq-python-client")
        return f"server {rocketmq_server.VERSION}, rocketmq-python-client {client}"

    @staticmethod
    def producer(topic: Place) -> Producer:
        return PythonProducer(topic)

    @staticmethod
    def consumer(topic: Place, group: int) -> Consumer:
        return PythonConsumer(topic, group)


PEER = RocketMQPython
