"""The programs that are measured: each a process, told by lines on its standard input what to do.

It prints a line when it is ready, and one for each that it was told.
"""

import asyncio
import collections
import json
import os
import struct
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future

import shmq
import shmq.aio

BATCH = 500
RECEIVE_MAX = 256
TIMEOUT_S = 60.0
QUIET_S = 0.3
"""Nothing has come for so long: nothing is on its way."""
STAMP = struct.Struct("<Q92x")
"""When a message was sent, monotonic ns: 100 B."""


def produce(folder: str, topic: str, verb: str, size: str) -> None:
    """Sends as many as it is told, and answers when all are accepted."""
    body = bytes(int(size))
    many = [body] * max(1, min(BATCH, (8 << 20) // len(body)))
    with shmq.connect(folder) as client, client.producer() as producer:

        def send_oneway(count: int) -> None:
            send = producer.send_oneway
            for _ in range(count):
                send(topic, body, timeout=TIMEOUT_S)
            producer.drain(TIMEOUT_S)

        def send_many(count: int) -> None:
            while count > 0:
                producer.send_many(topic, many[:count], timeout=TIMEOUT_S)
                count -= len(many)

        def send(count: int) -> None:
            one = producer.send
            for _ in range(count):
                one(topic, body, timeout=TIMEOUT_S)

        verbs = {"send_oneway": send_oneway, "send_many": send_many, "send": send}
        verbs[verb](1)
        _say("ready")
        for line in sys.stdin:
            verbs[verb](int(line))
            _say("done")


def consume(folder: str, topic: str, group: str, kind: str) -> None:
    """Receives as many as it is told; told 0, until nothing comes."""
    with shmq.connect(folder) as client, client.consumer(topic, group) as consumer:

        def objects(timeout: float) -> int:
            return len(consumer.receive(RECEIVE_MAX, timeout=timeout))

        def columns(timeout: float) -> int:
            return len(consumer.receive_many(timeout=timeout))

        take: Callable[[float], int] = {"objects": objects, "columns": columns}[kind]
        _say("ready")
        for line in sys.stdin:
            left = int(line)
            if left == 0:
                while take(QUIET_S):
                    pass
            while left > 0:
                count = take(TIMEOUT_S)
                if not count:
                    raise SystemExit(f"consume {topic}: {left} did not come in {TIMEOUT_S:.0f} s")
                left -= count
            _say("done")


def pace(folder: str, topic: str, policy: str, rate: str) -> None:
    """Sends as many as it is told, at a rate per second; above 10,000 it never sleeps."""
    pause = _sleep_until if int(rate) <= 10_000 else _yield_until
    with (
        shmq.connect(folder, policy=shmq.WaitingPolicy(policy)) as client,
        client.producer() as producer,
    ):
        _say("ready")
        for line in sys.stdin:
            due = time.perf_counter()
            for _ in range(int(line)):
                due += 1 / int(rate)
                pause(due)
                producer.send_oneway(topic, STAMP.pack(time.monotonic_ns()))
            _say("done")


def hear(folder: str, topic: str, policy: str) -> None:
    """Waits for as many as it is told; answers when the last one came, and how old each was."""
    with (
        shmq.connect(folder, policy=shmq.WaitingPolicy(policy)) as client,
        client.consumer(topic, "hear") as consumer,
    ):
        _say("ready")
        for line in sys.stdin:
            ages: list[int] = []
            now_ns = 0
            for _ in range(int(line)):
                message = consumer.try_next(TIMEOUT_S)
                now_ns = time.monotonic_ns()
                if message is None:
                    raise SystemExit(f"hear {topic}: nothing came in {TIMEOUT_S:.0f} s")
                ages.append(now_ns - STAMP.unpack_from(message.body)[0])
            _say(json.dumps({"at_ns": now_ns, "ages_ns": ages}))


def loop(folder: str, topic: str, kind: str) -> None:
    """Told "verb count", does it on threads or in a loop, and answers how long that took; "quiet"
    once nothing comes any more; "hear" how old each message was.
    """
    if kind == "threads":
        with (
            shmq.connect(folder) as client,
            client.producer() as producer,
            client.consumer(topic, "loop") as consumer,
        ):
            _obey(
                lambda verb, count: _on_threads(producer, consumer, topic, verb, count),
            )
        return
    import uvloop

    factory = uvloop.new_event_loop if kind == "uvloop" else asyncio.new_event_loop

    async def main(runner: asyncio.Runner) -> tuple[shmq.aio.Producer, shmq.aio.Consumer]:
        client = await shmq.aio.connect(folder)
        return client.producer(), await client.consumer(topic, "loop")

    with asyncio.Runner(loop_factory=factory) as runner:
        aio_producer, aio_consumer = runner.run(main(runner))
        _obey(
            lambda verb, count: runner.run(
                _in_loop(aio_producer, aio_consumer, topic, verb, count)
            ),
        )


def _obey(do: Callable[[str, int], object]) -> None:
    do("send", 1)
    _say("ready")
    for line in sys.stdin:
        verb, count = line.split()
        begin = time.perf_counter()
        found = do(verb, int(count))
        _say(json.dumps(time.perf_counter() - begin if found is None else found))


def _on_threads(
    producer: shmq.Producer, consumer: shmq.Consumer, topic: str, verb: str, count: int
) -> list[int] | float | None:
    body = bytes(100)
    if verb == "send":
        for _ in range(count):
            producer.send(topic, body, timeout=TIMEOUT_S)
    elif verb == "send64":
        flying: collections.deque[Future[shmq.SendResult]] = collections.deque()
        for _ in range(count):
            if len(flying) == 64:
                flying.popleft().result()
            flying.append(producer.send_async(topic, body, timeout=TIMEOUT_S))
        for future in flying:
            future.result()
    elif verb == "follow":
        for _ in range(count):
            producer.send_oneway(topic, body, timeout=TIMEOUT_S)
        producer.drain(TIMEOUT_S)
        begin = time.perf_counter()
        for _, _ in zip(range(count), consumer, strict=False):
            pass
        return time.perf_counter() - begin
    elif verb == "quiet":
        while consumer.receive(1000, timeout=QUIET_S):
            pass
    else:
        ages = []
        for message in consumer:
            ages.append(time.monotonic_ns() - STAMP.unpack_from(message.body)[0])
            if len(ages) == count:
                return ages
    return None


async def _in_loop(
    producer: shmq.aio.Producer, consumer: shmq.aio.Consumer, topic: str, verb: str, count: int
) -> list[int] | float | None:
    body = bytes(100)
    if verb == "send":
        for _ in range(count):
            await producer.send(topic, body, timeout=TIMEOUT_S)
    elif verb == "send64":

        async def some() -> None:
            for _ in range(count // 64):
                await producer.send(topic, body, timeout=TIMEOUT_S)

        await asyncio.gather(*(some() for _ in range(64)))
    elif verb == "follow":
        for _ in range(count):
            await producer.send_oneway(topic, body, timeout=TIMEOUT_S)
        await producer.drain(TIMEOUT_S)
        begin = time.perf_counter()
        left = count
        async for _ in consumer:
            left -= 1
            if left == 0:
                return time.perf_counter() - begin
    elif verb == "quiet":
        while await consumer.receive(1000, timeout=QUIET_S):
            pass
    else:
        ages = []
        async for message in consumer:
            ages.append(time.monotonic_ns() - STAMP.unpack_from(message.body)[0])
            if len(ages) == count:
                return ages
    return None


def _sleep_until(due: float) -> None:
    while time.perf_counter() < due:
        time.sleep(max(0.0, due - time.perf_counter()))


def _yield_until(due: float) -> None:
    while time.perf_counter() < due:
        os.sched_yield()


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    {"produce": produce, "consume": consume, "pace": pace, "hear": hear, "loop": loop}[sys.argv[1]](
        *sys.argv[2:]
    )
