"""Messages of 1 B to 16 MiB; a broker takes 4 unless max_message_size_bytes says otherwise."""

import argparse
import time

from measuring import HOT_SEGMENTS, Figure, cluster, count_for, figure, undisturbed

SIZES = (1, 16, 256, 4 << 10, 64 << 10, 1 << 20, 4 << 20, 16 << 20)
QUICK_SIZES = (1, 64 << 10, 16 << 20)
RECEIVE_MAX = 256
TIMEOUT_S = 60.0
TOPIC = "bodies"


def row_bodies(options: argparse.Namespace) -> dict[str, Figure]:
    """By the bytes of a body: send_oneway until all is accepted; then a consumer takes it all."""
    figures: dict[str, Figure] = {}
    with (
        cluster(
            max_message_size_bytes=SIZES[-1],
            hot_segment_count=HOT_SEGMENTS,
        ) as client,
        client.producer() as producer,
        client.consumer(TOPIC, "g") as consumer,
    ):
        client.create_topic(TOPIC, queues=1)
        for size in QUICK_SIZES if options.quick else SIZES:
            body, count = bytes(size), count_for(size, options.quick)

            def measure(_run: int, body: bytes = body, count: int = count) -> tuple[float, float]:
                send = producer.send_oneway
                begin = time.perf_counter()
                for _ in range(count):
                    send(TOPIC, body, timeout=TIMEOUT_S)
                producer.drain(TIMEOUT_S)
                sent = time.perf_counter()
                left = count
                while left > 0:
                    messages = consumer.receive(RECEIVE_MAX, timeout=TIMEOUT_S)
                    if not messages or any(len(one.body) != len(body) for one in messages):
                        raise SystemExit(f"{left} of {count} of {len(body)} B did not come")
                    left -= len(messages)
                taken = time.perf_counter()
                return (sent - begin) / count, (taken - sent) / count

            runs, share = undisturbed(measure, options.runs)
            label = f"{size} B a message"
            figures[f"{label}, sent"] = figure(
                [sent * 1e6 for sent, _ in runs],
                "us",
                "the interpreter; from 64 KiB on memory: two copies, one CRC, the flusher's copy",
                foreign_cpu_max=share,
            )
            figures[f"{label}, sent, bytes"] = figure(
                [size / sent / 1e6 for sent, _ in runs], "MB/s", "the same", foreign_cpu_max=share
            )
            figures[f"{label}, received in place"] = figure(
                [taken * 1e6 for _, taken in runs],
                "us",
                "one object and one cold frame head a message; behind the hot log the file",
                foreign_cpu_max=share,
            )
    return figures
