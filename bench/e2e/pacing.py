"""From just before send_oneway to the message in the hands of a consumer in another process."""

import argparse
import json

from measuring import Figure, cluster, figure, percentile, undisturbed
from programs import programs

import shmq
from shmq.config import AUTO

RATES = {"idle": 1_000, "loaded": 20_000}
"""Messages a second."""
SECONDS = 2
PERCENTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
BOUNDS = {
    "idle": "two wake-ups of idle cores, one after the other",
    "loaded": "hand-overs among three processes on as many cores as there are",
}
TOPIC = "e2e"


def row_latency(options: argparse.Namespace, *, policy: shmq.WaitingPolicy) -> dict[str, Figure]:
    """idle: all asleep between two messages; loaded: nobody gets to sleep."""
    figures = {}
    for load, rate in RATES.items():
        count = rate * SECONDS // (10 if options.quick else 1)
        with (
            cluster(hot_segment_count=AUTO, waiting_policy=policy.value) as client,
            programs() as started,
        ):
            client.create_topic(TOPIC, queues=1)
            listener = started.start("hear", client.namesrv, TOPIC, policy.value)
            pacer = started.start("pace", client.namesrv, TOPIC, policy.value, rate)

            def measure(_run: int, listener=listener, pacer=pacer, count=count) -> list[int]:
                listener.tell(count)
                pacer.ask(count)
                return sorted(json.loads(listener.answer())["ages_ns"])

            runs, share = undisturbed(measure, options.runs)
            for label, part in PERCENTILES.items():
                figures[f"latency {load} {policy.value} {label}"] = figure(
                    [percentile(ages, part) / 1000 for ages in runs],
                    "us",
                    BOUNDS[load],
                    foreign_cpu_max=share,
                )
    return figures
