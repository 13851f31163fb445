"""What is used while nothing happens: processor time of all, system calls of who waits."""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import Figure, cluster, figure, runs_of
from programs import descendants, lull, programs

from shmq.config import AUTO

TOPIC = "e2e"
SECONDS = 10.0
SETTLE_S = 3.0
"""After a start until nothing of it is left to do."""
TRACED_MAX_S = 10.0
"""For strace to have taken hold of all threads."""
WHOSE = {"its thread": False, "all threads": True}
TOTAL = re.compile(r"^\s*100\.00\s+\S+\s+(?:\d+\s+)?(\d+)\s+(?:\d+\s+)?total", re.MULTILINE)


def row_idle(options: argparse.Namespace) -> dict[str, Figure]:
    """NameServer, broker and guard, without clients but the one that looks; and with clients."""
    seconds = SECONDS / 5 if options.quick else SECONDS
    figures = {}

    def measure(pids: set[int]) -> float:
        before = _cpu_ns(pids)
        begin = time.perf_counter()
        time.sleep(seconds)
        return (_cpu_ns(pids) - before) / 1e7 / (time.perf_counter() - begin)

    with cluster(hot_segment_count=AUTO) as client, programs() as started:
        client.create_topic(TOPIC, queues=8)
        time.sleep(SETTLE_S)
        daemons = descendants()
        bound = "timers: keeper and saver once a second, heartbeats"
        unit = "% of a core"
        figures["idle cluster"] = runs_of(lambda _: measure(daemons), options.runs, unit, bound)
        producers = [started.start("produce", client.namesrv, TOPIC, "send", 100) for _ in range(2)]
        consumers = [
            started.start("consume", client.namesrv, TOPIC, "g", "objects") for _ in range(2)
        ]
        for consumer in consumers:
            consumer.ask(0)
            consumer.tell(1)
        time.sleep(SETTLE_S)
        everybody = daemons | {program.pid for program in (*producers, *consumers)}
        figures["idle cluster and 4 clients"] = runs_of(
            lambda _: measure(everybody), options.runs, unit, bound
        )
        for producer in producers:
            producer.ask(20)  # ends the waits of the consumers
        for consumer in consumers:
            consumer.answer()
    return figures


def row_calls(options: argparse.Namespace) -> dict[str, Figure]:
    """Of a consumer that waits and a producer whose broker is stopped: of the thread that waits,
    and of all threads of its program. Counted by strace -c.
    """
    strace = shutil.which("strace")
    if strace is None:
        print("calls: left out, no strace here: apt install strace", file=sys.stderr)
        return {}
    seconds = SECONDS / 5 if options.quick else SECONDS
    counts: dict[str, list[float]] = {}
    shares = []
    # A stopped broker would be fenced while its producer is looked at.
    with (
        cluster(hot_segment_count=AUTO, broker_hung_timeout_ms=60_000) as client,
        programs() as started,
    ):
        client.create_topic(TOPIC, queues=8)
        consumer = started.start("consume", client.namesrv, TOPIC, "g", "objects")
        producer = started.start("produce", client.namesrv, TOPIC, "send", 100)
        broker = client.link("broker-a").connection.identity.pid
        time.sleep(SETTLE_S)
        for _ in range(options.runs):
            consumer.ask(0)
            consumer.tell(1)
            shares.append(lull())
            for whose, has_all in WHOSE.items():
                found = counts.setdefault(f"waiting consumer, {whose}", [])
                found.append(_calls(strace, consumer.pid, seconds, has_all=has_all))
            os.kill(broker, signal.SIGSTOP)
            try:
                producer.tell(1)
                time.sleep(SETTLE_S)
                for whose, has_all in WHOSE.items():
                    found = counts.setdefault(f"blocked producer, {whose}", [])
                    found.append(_calls(strace, producer.pid, seconds, has_all=has_all))
            finally:
                os.kill(broker, signal.SIGCONT)
            producer.answer()
            consumer.answer()
    return {
        f"system calls, {label}": figure(
            found,
            "calls",
            "safety timeouts; in its other threads heartbeats and rebalancing",
            seconds=seconds,
            foreign_cpu_max=round(max(shares), 2),
        )
        for label, found in counts.items()
    }


def _calls(strace: str, pid: int, seconds: float, *, has_all: bool) -> float:
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as summary:
        tracer = subprocess.Popen(
            [strace, *(["-f"] if has_all else []), "-c", "-o", summary.name, "-p", str(pid)],
            stderr=subprocess.DEVNULL,
        )
        try:
            deadline = time.perf_counter() + TRACED_MAX_S
            while not _is_traced(pid, tracer.pid, has_all) and time.perf_counter() < deadline:
                time.sleep(0.01)
            time.sleep(seconds)
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.wait()
        found = TOTAL.search(summary.read())
    return float(found[1]) if found else 0.0


def _is_traced(pid: int, tracer_pid: int, has_all: bool) -> bool:
    """Whether strace has the first thread, or all of them."""
    return all(
        f"TracerPid:\t{tracer_pid}\n" in path.read_text()
        for path in Path(f"/proc/{pid}/task").glob("*/status" if has_all else f"{pid}/status")
    )


def _cpu_ns(pids: set[int]) -> int:
    """Processor time of all threads."""
    return sum(
        int(path.read_text().split()[0])
        for pid in pids
        for path in Path(f"/proc/{pid}/task").glob("*/schedstat")
    )
