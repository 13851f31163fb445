"""Topics and their queues: what making, finding, remembering and keeping them costs."""

import argparse
import json
import os
import signal
import time
from contextlib import ExitStack

from daemons import pids_of
from measuring import Figure, cluster, figure, memory_mib, percentile, undisturbed
from programs import Program, Programs, programs

import shmq
from shmq.config import AUTO
from shmq.errors import ShmqError

COUNTS = (100, 1_000, 10_000)
QUEUES = 8
LOOKS = 200
"""Topics that are asked for and sent to, evenly spread."""
WAIT_MAX_S = 120.0
BESIDE = (0, 10_000)
RATE = 1_000
"""Messages a second on the busy topic."""
SECONDS = 2


def _counts(options: argparse.Namespace) -> tuple[int, ...]:
    return COUNTS[:2] if options.quick else COUNTS


def _names(count: int) -> list[str]:
    return [f"t{number:06}" for number in range(count)]


def row_topics(options: argparse.Namespace) -> dict[str, Figure]:
    """By the number of topics with 8 queues each. One run: a cluster is made for each."""
    figures: dict[str, Figure] = {}
    for count in _counts(options):
        names = _names(count)
        some = names[:: max(1, count // LOOKS)][:LOOKS]
        with cluster(hot_segment_count=AUTO) as client, shmq.Admin(client.namesrv) as admin:
            before = {role: memory_mib(pid, "Private_Dirty") for role, pid in pids_of().items()}

            def note(what: str, value: float, unit: str, bound: str, count: int = count) -> None:
                figures[f"{count} topics, {what}"] = figure([value], unit, bound)

            begin = time.perf_counter()
            admin.create_topics(names, queues=QUEUES)
            took = time.perf_counter() - begin
            note("making them, each", took / count * 1e6, "us", "Python of the broker, per queue")

            begin = time.perf_counter()
            for name in some:
                client.routes.route(name, is_fresh=True)
            took = (time.perf_counter() - begin) / len(some)
            note("a route query", took * 1e6, "us", "one request and its answer")

            with client.producer() as producer:
                begin = time.perf_counter()
                for name in some:
                    producer.send(name, b"first")
                took = (time.perf_counter() - begin) / len(some)
                note("a first send", took * 1e6, "us", "a route, a grant, a send")
                begin = time.perf_counter()
                for name in some:
                    producer.send(name, b"second")
                took = (time.perf_counter() - begin) / len(some)
                note("a second send", took * 1e6, "us", "two hand-overs between cores")

            begin = time.perf_counter()
            admin.create_topic("one-more", queues=QUEUES)
            took = time.perf_counter() - begin
            note("one more", took * 1e3, "ms", "topics.json is written as a whole")

            for role, pid in pids_of().items():
                more = memory_mib(pid, "Private_Dirty") - before[role]
                note(f"memory of the {role}", more, "MiB", "Python objects; 128 B a queue row")

            with client.producer() as producer:
                producer.send(some[0], b"before")
                begin = time.perf_counter()
                os.kill(pids_of()["broker"], signal.SIGKILL)
                producer.send(some[0], b"back", timeout=WAIT_MAX_S)
                took = time.perf_counter() - begin
            note("SIGKILL to first accepted send", took, "s", "as without them, and topics.json")

            begin = time.perf_counter()
            os.kill(pids_of()["namesrv"], signal.SIGKILL)
            _until_known(client, names[-1])
            took = time.perf_counter() - begin
            note("NameServer killed to all routes back", took, "s", "its start, one registration")
    return figures


def _until_known(client: shmq.Client, topic: str) -> None:
    deadline = time.perf_counter() + WAIT_MAX_S
    while True:
        try:
            # A client that knows nothing: another believes what it knew while nobody answers.
            with shmq.connect(client.namesrv) as fresh:
                fresh.routes.route(topic)
            return
        except ShmqError as error:
            if time.perf_counter() > deadline:
                raise SystemExit(f"topic {topic} is not known again: {error}") from error
        time.sleep(0.005)


def row_beside(options: argparse.Namespace) -> dict[str, Figure]:
    """Latency of one busy topic, alone and beside idle ones: two clusters, in turns."""
    figures = {}
    count = RATE * SECONDS // (10 if options.quick else 1)
    with ExitStack() as stack, programs() as started:
        ears = {
            idle_count: _ears(stack, started, idle_count)
            for idle_count in ((0, 1_000) if options.quick else BESIDE)
        }

        def measure(run: int) -> dict[int, list[int]]:
            ages = {}
            for idle_count in sorted(ears, reverse=run % 2 == 1):
                listener, pacer = ears[idle_count]
                listener.tell(count)
                pacer.ask(count)
                ages[idle_count] = sorted(json.loads(listener.answer())["ages_ns"])
            return ages

        runs, share = undisturbed(measure, options.runs)
    for label, part in {"p50": 0.5, "p99": 0.99}.items():
        taken = {
            idle_count: [percentile(run[idle_count], part) for run in runs] for idle_count in ears
        }
        for idle_count, values in taken.items():
            figures[f"latency beside {idle_count} idle topics, {label}"] = figure(
                [value / 1000 for value in values],
                "us",
                "as without them",
                foreign_cpu_max=share,
            )
        alone, beside = taken.values()
        figures[f"latency beside idle topics / without, {label}"] = figure(
            [b / a for a, b in zip(alone, beside, strict=True)],
            "x",
            "1, if they cost nothing",
            foreign_cpu_max=share,
        )
    return figures


def _ears(stack: ExitStack, started: Programs, idle_count: int) -> tuple[Program, Program]:
    """A cluster with so many idle topics, and who listens and sends on its busy one."""
    client = stack.enter_context(cluster(hot_segment_count=AUTO))
    with shmq.Admin(client.namesrv) as admin:
        admin.create_topics([*_names(idle_count), "busy"], queues=QUEUES)
    listener = started.start("hear", client.namesrv, "busy", "adaptive")
    return listener, started.start("pace", client.namesrv, "busy", "adaptive", RATE)
