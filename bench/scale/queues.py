"""1 to 100,000 queues: what sending to all of them in turn costs, and taking from all of them."""

import argparse
import os
import signal
import time
from typing import NamedTuple

from daemons import pids_of
from measuring import Figure, cluster, figure, memory_mib
from reporting import RowFailed

import shmq
from shmq.config import AUTO
from shmq.errors import ShmqError

COUNTS = (1, 10, 100, 1_000, 10_000, 100_000)
QUEUES_OF_A_TOPIC = 1_000
"""At most: more of them are more topics."""
MESSAGES = 400_000
ARENA_BYTES_EACH = 16 << 10
"""Room for a queue's places: a block of 4 KiB or more of each is in memory at once."""
ARENA_BYTES_MIN = 256 << 20
RECEIVE_MAX = 500
WAIT_MAX_S = 120.0


def row_queues(options: argparse.Namespace) -> dict[str, Figure]:
    """By the number of queues of all topics together. One run: a cluster is made for each."""
    figures: dict[str, Figure] = {}
    failed: list[str] = []
    for count in COUNTS[:4] if options.quick else COUNTS:
        topics = [f"t{number:04}" for number in range(-(-count // QUEUES_OF_A_TOPIC))]
        queues = min(count, QUEUES_OF_A_TOPIC)
        each = max(queues, MESSAGES // (10 if options.quick else 1) // len(topics))
        total = each * len(topics)
        with (
            cluster(
                hot_segment_count=AUTO,
                arena_bytes=max(ARENA_BYTES_MIN, count * ARENA_BYTES_EACH),
            ) as client,
            shmq.Admin(client.namesrv) as admin,
        ):

            def note(what: str, value: float, unit: str, bound: str, count: int = count) -> None:
                figures[f"{count} queues, {what}"] = figure([value], unit, bound)

            before = memory_mib(pids_of()["broker"], "Private_Dirty")
            begin = time.perf_counter()
            admin.create_topics(topics, queues=queues)
            took = time.perf_counter() - begin
            note("making them, each", took / count * 1e6, "us", "Python of the broker, per queue")

            with client.producer() as producer:
                for topic in topics:
                    producer.send(topic, b"first")
                begin = time.perf_counter()
                for topic in topics:
                    for _ in range(each):
                        producer.send_oneway(topic, b"one more", timeout=WAIT_MAX_S)
                producer.drain(WAIT_MAX_S)
                took = time.perf_counter() - begin
                note("a put to each in turn", took / total * 1e9, "ns/message", "the interpreter")
                grown = memory_mib(pids_of()["broker"], "Private_Dirty") - before
                note("memory of the broker", grown, "MiB", "Python objects; 128 B a queue row")

                taken = [_take(client, topic, each + 1) for topic in topics]
                first_ms = [one.first_s * 1e3 for one in taken]
                figures[f"{count} queues, first message"] = figure(
                    first_ms, "ms", "joining the group, its queues assigned and looked into"
                )
                took = sum(one.rest_s for one in taken)
                received = sum(one.rest_count for one in taken)
                note(
                    "taking all",
                    took / received * 1e9,
                    "ns/message",
                    "one frame head a message, and looks into each queue",
                )

                begin = time.perf_counter()
                os.kill(pids_of()["broker"], signal.SIGKILL)
                try:
                    producer.send(topics[0], b"back", timeout=WAIT_MAX_S)
                except ShmqError as error:
                    failed.append(f"{count} queues, SIGKILL to first accepted send: {error}")
                else:
                    took = time.perf_counter() - begin
                    note("SIGKILL to first accepted send", took, "s", "as with one, and a row each")
    if failed:
        raise RowFailed("; ".join(failed), figures)
    return figures


class _Taken(NamedTuple):
    """All of a topic, by one consumer."""

    first_s: float
    """From joining to the first receive that gave anything."""
    rest_s: float
    rest_count: int
    """Messages that came behind those of the first receive."""


def _take(client: shmq.Client, topic: str, count: int) -> _Taken:
    begin = time.perf_counter()
    with client.consumer(topic, "g") as consumer:
        left = count - len(consumer.receive(RECEIVE_MAX, timeout=WAIT_MAX_S))
        first, rest = time.perf_counter(), left
        while left > 0:
            messages = consumer.receive(RECEIVE_MAX, timeout=WAIT_MAX_S)
            if not messages:
                raise SystemExit(f"{topic}: {left} of {count} messages did not come")
            left -= len(messages)
        return _Taken(first - begin, time.perf_counter() - first, rest)
