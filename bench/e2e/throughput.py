"""Messages from 1 to 8 producer processes to a consumer: how many are accepted, how many arrive."""

import argparse
import time

from measuring import HOT_SEGMENTS, SIZES, Figure, cluster, count_for, figure, undisturbed
from programs import programs

from shmq.config import AUTO

PRODUCERS = (1, 2, 8)
SENDING = ("100B", "1KiB", "1MiB")
SEND_MAX = 100_000
"""Of one run of `send`, which waits for each."""
TOPIC = "e2e"
QUEUES = 8
BOUNDS = {
    "send_oneway": "processor time of producers, append thread and consumer on all cores",
    "send_many": "processor time of producers, append thread and consumer on all cores",
    "send": "two hand-overs between cores for each, while a consumer is woken too",
}
CONSUMERS = {"objects": "one object a message", "columns": "one frame head a message"}


def row_sending(options: argparse.Namespace, *, verb: str) -> dict[str, Figure]:
    """From the first call until the last message is accepted; and until the consumer has it."""
    figures = {}
    for name in SENDING[:1] if options.quick else SENDING:
        size = SIZES[name]
        most = SEND_MAX if verb == "send" else 1_000_000
        count = count_for(size, options.quick, most=most)
        with (
            cluster(hot_segment_count=AUTO if options.quick else HOT_SEGMENTS) as client,
            programs() as started,
        ):
            client.create_topic(TOPIC, queues=QUEUES)
            folder = client.namesrv
            all_producers = [
                started.start("produce", folder, TOPIC, verb, size)
                for _ in range(2 if options.quick else PRODUCERS[-1])
            ]
            consumer = started.start("consume", folder, TOPIC, "g", "columns")
            consumer.ask(0)
            for producer_count in (n for n in PRODUCERS if n <= len(all_producers)):
                producers = all_producers[:producer_count]
                each = max(1, count // producer_count)

                def measure(
                    _run: int, producers=producers, each=each, consumer=consumer
                ) -> tuple[float, float]:
                    total = each * len(producers)
                    consumer.tell(total)
                    begin = time.perf_counter()
                    for producer in producers:
                        producer.tell(each)
                    for producer in producers:
                        producer.answer()
                    accepted = time.perf_counter()
                    consumer.answer()
                    received = time.perf_counter()
                    return total / (accepted - begin), total / (received - begin)

                measured, share = undisturbed(measure, options.runs)
                for index, what in enumerate(("accepted", "received")):
                    label = f"{verb} {name} {producer_count} producers {what}"
                    figures[label] = figure(
                        [rates[index] for rates in measured],
                        "messages/s",
                        "memory" if size >= 1 << 20 else BOUNDS[verb],
                        foreign_cpu_max=share,
                    )
    return figures


def row_consume(options: argparse.Namespace) -> dict[str, Figure]:
    """What one producer sends (send_many) to one consumer: while it is sent, and afterwards."""
    figures = {}
    for name in SENDING[:1] if options.quick else SENDING:
        size = SIZES[name]
        count = count_for(size, options.quick)
        for kind, bound in CONSUMERS.items():
            with cluster(hot_segment_count=AUTO) as client, programs() as started:
                client.create_topic(TOPIC, queues=QUEUES)
                folder = client.namesrv
                producer = started.start("produce", folder, TOPIC, "send_many", size)
                consumer = started.start("consume", folder, TOPIC, "g", kind)
                consumer.ask(0)

                def flow(_run: int, producer=producer, consumer=consumer, count=count) -> float:
                    begin = time.perf_counter()
                    consumer.tell(count)
                    producer.ask(count)
                    consumer.answer()
                    return count / (time.perf_counter() - begin)

                def backlog(_run: int, producer=producer, consumer=consumer, count=count) -> float:
                    producer.ask(count)
                    begin = time.perf_counter()
                    consumer.ask(count)
                    return count / (time.perf_counter() - begin)

                for what, measure, limit in (
                    ("flow", flow, "producer, append thread, flusher and consumer share the cores"),
                    ("backlog", backlog, bound),
                ):
                    values, share = undisturbed(measure, options.runs)
                    figures[f"consume {what} {kind} {name}"] = figure(
                        values, "messages/s", limit, foreign_cpu_max=share
                    )
    return figures
