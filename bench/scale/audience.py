"""One program with many consumers, each in a group of its own, that wait: on one asyncio loop.

It prints a line when it is connected, and one for each that it is told: "join N": how long the
first and the last took, ms, and its threads; "idle S": what share of a core it used in so many
seconds; "hear": how long after a message was sent the last consumer had it, ns.
"""

import asyncio
import json
import struct
import sys
import threading
import time

import shmq
import shmq.aio

SEEN = 100
"""Consumers whose joining is told apart: the first, and the last."""
STAMP = struct.Struct("<Q")
HEAR_S = 120.0
FOR_EVER_S = 3600.0


class Audience:
    """The consumers of one client."""

    def __init__(self, client: shmq.aio.Client, topic: str) -> None:
        self._client = client
        self._topic = topic
        self._consumers: list[shmq.aio.Consumer] = []
        self._waiting: list[asyncio.Future[list[shmq.Message]]] = []

    async def join(self, count: str) -> object:
        took_s = []
        for number in range(int(count)):
            begin = time.perf_counter()
            consumer = await self._client.consumer(
                self._topic,
                f"g{number}",
                from_where=shmq.ConsumeFromWhere.CONSUME_FROM_LAST_OFFSET,
            )
            took_s.append(time.perf_counter() - begin)
            self._consumers.append(consumer)
        self._wait()
        first, last = took_s[:SEEN], took_s[-SEEN:]
        means = [sum(some) / len(some) * 1e3 for some in (first, last)]
        return [*means, threading.active_count()]

    async def idle(self, seconds: str) -> object:
        begin, used = time.perf_counter(), time.process_time()
        await asyncio.sleep(float(seconds))
        return (time.process_time() - used) / (time.perf_counter() - begin) * 100

    async def hear(self) -> object:
        async with asyncio.timeout(HEAR_S):
            heard = await asyncio.gather(*self._waiting)
        now_ns = time.monotonic_ns()
        self._wait()
        return now_ns - STAMP.unpack(heard[0][0].body)[0]

    def _wait(self) -> None:
        self._waiting = [
            asyncio.ensure_future(consumer.receive(1, timeout=FOR_EVER_S))
            for consumer in self._consumers
        ]

    def leave(self) -> None:
        for task in self._waiting:
            task.cancel()


async def _main(folder: str, topic: str) -> None:
    loop = asyncio.get_running_loop()
    async with shmq.aio.connect(folder) as client:
        await client.producer().send(topic, b"before")
        audience = Audience(client, topic)
        print("ready", flush=True)
        verbs = {"join": audience.join, "idle": audience.idle, "hear": audience.hear}
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            verb, *arguments = line.split()
            print(json.dumps(await verbs[verb](*arguments)), flush=True)
        audience.leave()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], sys.argv[2]))
