"""The exporter: what a scrape takes as there are more series, and whether senders notice it."""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from measuring import Figure, cluster, figure, queue_of

import shmq

COUNTS = (100, 1_000, 10_000)
"""Series of topics; three each."""
SERIES_OF_A_TOPIC = 3
SCRAPES = 20
PUTS = 2_000_000
TURNS = 5
_TICKS = os.sysconf("SC_CLK_TCK")


@contextmanager
def exporter(runtime: Path) -> Iterator[tuple[int, str]]:
    """One exporter: its pid and URL."""
    process = subprocess.Popen(
        [
            sys.executable, "-P", "-m", "shmq.exporter",
            "--runtime", str(runtime), "--listen", "127.0.0.1:0",
        ],
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,  # Ctrl-C at the terminal is not for it
    )  # fmt: skip
    assert process.stderr is not None
    try:
        found = next(m for line in process.stderr if (m := re.search(r"metrics at (\S+)", line)))
        yield process.pid, found[1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        process.stderr.close()


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _scrape(url: str) -> int:
    with urllib.request.urlopen(url) as answer:
        page = answer.read()
    return sum(not line.startswith(b"#") for line in page.splitlines())


def row_exporter(options: argparse.Namespace) -> dict[str, Figure]:
    """A scrape by the number of series, and single puts with a scrape a second beside them."""
    figures: dict[str, Figure] = {}
    for count in COUNTS[:2] if options.quick else COUNTS:
        topics = [f"t{number:06}" for number in range(count // SERIES_OF_A_TOPIC)]
        with cluster() as client, shmq.Admin(client.namesrv) as admin:
            admin.create_topics(topics, queues=4)
            with exporter(Path(client.namesrv)) as (pid, url):
                series = _scrape(url)
                took, begin_cpu_s = [], _cpu_s(pid)
                for _ in range(SCRAPES):
                    begin = time.perf_counter()
                    _scrape(url)
                    took.append((time.perf_counter() - begin) * 1e3)
                cpu_ms = (_cpu_s(pid) - begin_cpu_s) / SCRAPES * 1e3
        name = f"{count} series of topics"
        bound = f"Python of the exporter; {series} series in all"
        figures[f"{name}, a scrape"] = figure(took, "ms", bound)
        figures[f"{name}, its processor time"] = figure([cpu_ms], "ms", "the same")
    figures |= _beside()
    return figures


def _beside() -> dict[str, Figure]:
    """In turns, with and without scrapes."""
    with cluster() as client:
        link, row, generation = queue_of(client, "beside")
        put, drain, body = link.lanes[0].put, link.lanes[0].drain, bytes(100)
        with exporter(Path(client.namesrv)) as (_pid, url):
            took: dict[bool, list[float]] = {False: [], True: []}
            for turn in range(2 * TURNS):
                is_scraped = turn % 2 == 1
                with _scraping(url) if is_scraped else nullcontext():
                    begin = time.perf_counter()
                    for _ in range(PUTS):
                        put(row, generation, body)
                    drain(60.0)
                    took[is_scraped].append((time.perf_counter() - begin) / PUTS * 1e9)
    return {
        "puts without scrapes": figure(took[False], "ns/message", "the producer's core"),
        "puts beside a scrape a second": figure(
            took[True], "ns/message", "the same; the exporter wants a core now and then"
        ),
    }


@contextmanager
def _scraping(url: str) -> Iterator[None]:
    """A scrape a second beside the block."""
    program = (
        "import sys, time, urllib.request\n"
        "while True:\n    urllib.request.urlopen(sys.argv[1]).read()\n    time.sleep(1)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, url], process_group=0)
    try:
        yield
    finally:
        process.terminate()
        process.wait()
