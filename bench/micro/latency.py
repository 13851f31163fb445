"""From just before put to the consumer's hands in another process, per waiting policy."""

import argparse
import json
import os
import struct
import sys
import time

from measuring import Figure, Foreign, cluster, figure, percentile, program, queue_of

import shmq

RATES = {"idle": 1_000, "busy": 20_000}
"""Messages a second."""
SECONDS = 3
POLICIES = ("blocking", "adaptive", "busy_spin")
PERCENTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
BOUNDS = {
    "idle": "two wake-ups of idle cores, one after the other",
    "busy": "hand-overs among three processes that yield to each other on two cores",
}


def row_latency(options: argparse.Namespace) -> dict[str, Figure]:
    """idle: 1,000 messages a second, all asleep in between. busy: 20,000, all awake."""
    figures = {}
    for policy in POLICIES:
        for load in ("idle", "busy"):
            count = RATES[load] * SECONDS // (10 if options.quick else 1)
            runs: list[list[int]] = []
            shares = []
            for _ in range(options.runs):
                foreign = Foreign()
                runs.append(_run(policy, load, count))
                shares.append(foreign.share())
            for label, share in PERCENTILES.items():
                values = [percentile(run, share) for run in runs]
                figures[f"latency {load} {policy} {label}"] = figure(
                    values, "ns", BOUNDS[load], foreign_cpu_max=round(max(shares), 2)
                )
    return figures


def _run(policy: str, load: str, count: int) -> list[int]:
    with cluster(waiting_policy=policy) as client:
        queue_of(client, "latency")
        folder = str(client._folder.path)
        with (
            program(__file__, folder, policy, count) as child,
            shmq.connect(folder, policy=shmq.WaitingPolicy(policy)) as producing,
        ):
            assert child.stdout is not None
            child.stdout.readline()
            lane = producing.link("broker-a").lanes[0]
            ((_, (row, generation)),) = producing.link("broker-a").grant_send(
                "latency", is_auto_create=False
            )
            pause = _sleep_until if load == "idle" else _yield_until
            due = time.perf_counter()
            for _ in range(count):
                due += 1 / RATES[load]
                pause(due)
                lane.put(row, generation, _stamp())
            latencies = json.loads(child.stdout.readline())
    if len(latencies) < count:
        raise SystemExit(f"latency {load} {policy}: {len(latencies)} of {count} messages came")
    return sorted(latencies)


def _stamp() -> bytes:
    return struct.pack("<Q92x", time.monotonic_ns())


def _sleep_until(due: float) -> None:
    while time.perf_counter() < due:
        time.sleep(max(0.0, due - time.perf_counter()))


def _yield_until(due: float) -> None:
    while time.perf_counter() < due:
        os.sched_yield()


def consume(folder: str, policy: str, count: int) -> None:
    """The other end."""
    latencies: list[int] = []
    with (
        shmq.connect(folder, policy=shmq.WaitingPolicy(policy)) as client,
        client.consumer("latency", "bench") as consumer,
    ):
        consumer.receive(1, timeout=0.5)
        print("ready", flush=True)
        while len(latencies) < count:
            message = consumer.try_next(10.0)
            if message is None:
                break
            latencies.append(time.monotonic_ns() - struct.unpack_from("<Q", message.body)[0])
    print(json.dumps(latencies), flush=True)


if __name__ == "__main__":
    consume(sys.argv[1], sys.argv[2], int(sys.argv[3]))
