"""What a start costs: after a kill, after a reboot, with all derived files lost. And idleness."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import ROOT, Figure, Foreign, figure, memory_mib, queue_of, runs_of, settings

import shmq
from shmq.config import StoreConfig
from shmq.errors import ShmqError
from shmq.store.message_store import MessageStore

GIB = 1 << 30
TAKEOVER_MAX_S = 30.0
TAKEOVER_PAUSE_S = 12.0
"""The supervisor waits longer after each death, until a broker has lived for 10 s."""


def row_recovery(options: argparse.Namespace) -> dict[str, Figure]:
    """A log of 1 KiB messages: adopted from memory, recovered with and without derived files."""
    gib = 0.25 if options.quick else 1.0
    figures = {}
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=ROOT) as folder:
        with settings(hot_segment_count=12), shmq.local(folder) as client:
            link, row, generation = queue_of(client, "recover")
            lane, bodies = link.lanes[0], [bytes(1024)] * 1000
            for _ in range(int(gib * GIB) // (1000 * 1178)):
                lane.put_many(row, generation, bodies, timeout=60.0)
            lane.drain(60.0)
            figures["kill to first accepted send"] = figure(
                [_killed(client, folder) for _ in range(options.runs)],
                "s",
                "a Python process starts, maps the hot log, checks what is not flushed",
            )
        store = Path(folder, "broker-a")

        def opened(_run: int, without_derived: bool) -> float:
            if without_derived:
                shutil.rmtree(store / "shmq")
            out = subprocess.run(
                [sys.executable, __file__, str(store), str(Path(folder, "own"))],
                check=True,
                capture_output=True,
                text=True,
            )
            return float(out.stdout) / gib

        figures["recovery, files complete"] = runs_of(
            lambda run: opened(run, False), options.runs, "s/GiB", "new hot memory; the last file"
        )
        figures["recovery, all scanned"] = runs_of(
            lambda run: opened(run, True),
            options.runs,
            "s/GiB",
            "reading each file (page cache), two CRCs and an entry a message, in one thread",
        )
    return figures


def _killed(client: shmq.Client, folder: str) -> float:
    """Seconds from SIGKILL to the first send that its successor accepts."""
    producer = client.producer()
    producer.send("recover", b"before")
    begin = time.perf_counter()
    os.kill(_broker(folder), signal.SIGKILL)
    problem: ShmqError | None = None
    while time.perf_counter() - begin < TAKEOVER_MAX_S:
        try:
            producer.send("recover", b"after")
        except ShmqError as error:
            problem = error
            continue
        took = time.perf_counter() - begin
        time.sleep(TAKEOVER_PAUSE_S)
        return took
    raise SystemExit(f"no send was accepted {TAKEOVER_MAX_S} s after the kill: {problem}")


def _broker(folder: str) -> int:
    """The process that serves the store."""
    record = next(Path(folder, "run", "supervisor.d").glob("*.json"))
    return int(json.loads(record.read_text())["pid"])


def row_standing(options: argparse.Namespace) -> dict[str, Figure]:
    """Start of NameServer, broker and first message; what both take while nothing happens."""
    starts, idles, sizes, shares = [], [], [], []
    for _ in range(options.runs):
        with tempfile.TemporaryDirectory(prefix=".bench-", dir=ROOT) as folder:
            foreign = Foreign()
            begin = time.perf_counter()
            with shmq.local(folder) as client:
                client.producer().send("first", b"message")
                starts.append(time.perf_counter() - begin)
                time.sleep(3.0)
                pids = [_broker(folder), _parent_of(folder)]
                before = sum(_cpu_s(pid) for pid in pids)
                seconds = 3.0 if options.quick else 10.0
                time.sleep(seconds)
                idles.append((sum(_cpu_s(pid) for pid in pids) - before) / seconds * 100)
                sizes.append(sum(memory_mib(pid, "RssAnon", "RssFile") for pid in pids))
            shares.append(foreign.share())
    disturbed = {"foreign_cpu_max": round(max(shares), 2)}
    return {
        "start to first message": figure(
            starts, "s", "three interpreters start one after the other", **disturbed
        ),
        "idle NameServer and broker": figure(
            idles, "% of a core", "timers: keeper and saver once a second, heartbeats", **disturbed
        ),
        "memory beside the log": figure(
            sizes, "MiB", "two interpreters (anonymous and file pages)", **disturbed
        ),
    }


def _parent_of(folder: str) -> int:
    """The NameServer: it started the broker."""
    fields = Path(f"/proc/{_broker(folder)}/stat").read_text().rpartition(")")[2].split()
    return int(fields[1])


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def open_store(store_path: str, runtime_path: str) -> None:
    """The other process of row_recovery: prints how long opening took."""
    config = StoreConfig(store_path=Path(store_path), runtime_path=Path(runtime_path))
    store = MessageStore(config)
    begin = time.perf_counter()
    store.open()
    print(time.perf_counter() - begin)
    store.start()
    store.stop(keep_memory=False)


if __name__ == "__main__":
    open_store(sys.argv[1], sys.argv[2])
