"""The same program on threads, on asyncio's loop and on uvloop's."""

import argparse
import json
import time

from measuring import Figure, cluster, figure, percentile, undisturbed
from programs import programs

from shmq.config import AUTO

KINDS = ("threads", "asyncio", "uvloop")
COUNTS = {"send": 20_000, "send64": 50_000, "follow": 100_000}
BOUNDS = {
    "send": "two hand-overs between cores; those that spin do without a turn of the loop",
    "send64": "a task, a future and a turn of the loop for each; one wake-up for many",
    "follow": "one coroutine step a message",
}
WHAT = {
    "send": "send, one after the other",
    "send64": "send, 64 at once",
    "follow": "iterate over a consumer",
}
RATE = 1_000
SECONDS = 2
TOPIC = "e2e"


def row_loops(options: argparse.Namespace) -> dict[str, Figure]:
    """100 B; latency: idle, at 1,000 messages a second, from send_oneway to the task's hands."""
    figures = {}
    for kind in KINDS:
        with cluster(hot_segment_count=AUTO) as client, programs() as started:
            client.create_topic(TOPIC, queues=1)
            looped = started.start("loop", client.namesrv, TOPIC, kind)
            for verb, most in COUNTS.items():
                count = most // (10 if options.quick else 1)

                def measure(_run: int, verb=verb, count=count, looped=looped) -> float:
                    begin = time.perf_counter()
                    took = float(looped.ask(f"{verb} {count}"))
                    assert 0 < took <= time.perf_counter() - begin
                    return count / took

                rates, share = undisturbed(measure, options.runs)
                label = f"{kind}: {WHAT[verb]}"
                figures[label] = figure(rates, "messages/s", BOUNDS[verb], foreign_cpu_max=share)
            pacer = started.start("pace", client.namesrv, TOPIC, "adaptive", RATE)
            count = RATE * SECONDS // (10 if options.quick else 1)

            def hear(_run: int, looped=looped, pacer=pacer, count=count) -> list[int]:
                looped.ask("quiet 0")
                looped.tell(f"hear {count}")
                pacer.ask(count)
                return sorted(json.loads(looped.answer()))

            runs, share = undisturbed(hear, options.runs)
            for label, part in {"p50": 0.5, "p99": 0.99}.items():
                figures[f"{kind}: latency idle {label}"] = figure(
                    [percentile(ages, part) / 1000 for ages in runs],
                    "us",
                    "two wake-ups of idle cores, and of a loop: epoll, a task",
                    foreign_cpu_max=share,
                )
    return figures
