"""Many consumers in one program: what joining, waiting and a message to all of them cost."""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from audience import STAMP
from daemons import pids_of
from measuring import Figure, Foreign, cluster, figure, memory_mib, program

from shmq.config import AUTO

COUNTS = (10, 100, 1_000)
SETTLE_S = 35.0
"""Rounds follow a start after 1, 2, 4, 8 and 16 s, then each 20 s."""
IDLE_S = 30.0
"""A heartbeat, and each consumer's rounds one and a half times."""
TOPIC = "all"
JOINING = "a group and its retry topic: two files as a whole; requests, each answered"


def row_consumers(options: argparse.Namespace) -> dict[str, Figure]:
    """By the number of consumers, each in a group of its own, in one program on asyncio."""
    figures: dict[str, Figure] = {}
    for count in COUNTS[:2] if options.quick else COUNTS:
        label = f"{count} consumers in one program"
        with cluster(hot_segment_count=AUTO) as client, client.producer() as producer:
            client.create_topic(TOPIC, queues=1)
            with _audience(str(client.namesrv), TOPIC) as audience:
                pids = {"program": audience.pid, "broker": pids_of()["broker"]}
                before = {role: memory_mib(pid, "Private_Dirty") for role, pid in pids.items()}
                foreign = Foreign()
                first_ms, last_ms, thread_count = _ask(audience, f"join {count}")
                more = {"foreign_cpu_max": round(foreign.share(), 2)}
                figures |= {
                    f"{label}, the first to join": figure([first_ms], "ms", JOINING, **more),
                    f"{label}, the last to join": figure([last_ms], "ms", JOINING, **more),
                    f"{label}, threads": figure([thread_count], "", "none for a consumer"),
                }
                for role, pid in pids.items():
                    figures[f"{label}, memory of the {role}, each"] = figure(
                        [(memory_mib(pid, "Private_Dirty") - before[role]) / count * 1024],
                        "KiB",
                        "Python objects",
                    )
                time.sleep(0 if options.quick else SETTLE_S)
                idle = _ask(audience, f"idle {IDLE_S / 10 if options.quick else IDLE_S}")
                figures[f"{label}, idle"] = figure(
                    [idle], "% of a core", "two requests of each consumer's rounds, each 20 s"
                )
                foreign = Foreign()
                heard = []
                for _ in range(options.runs):
                    producer.send(TOPIC, STAMP.pack(time.monotonic_ns()))
                    heard.append(_ask(audience, "hear") / 1e6)
                figures[f"{label}, a message to all"] = figure(
                    heard,
                    "ms",
                    "a task of the loop and a read for each",
                    foreign_cpu_max=round(foreign.share(), 2),
                )
    return figures


@contextmanager
def _audience(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The program, connected; it ends with the block."""
    with program(Path(__file__).with_name("audience.py"), *arguments) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process


def _ask(process: subprocess.Popen[str], line: str) -> Any:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    return json.loads(answer) if answer else sys.exit("the audience ended; what it said: above")
