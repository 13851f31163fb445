"""The demo: lines of files through a whole cluster, with a broker killed in the middle.

Run by `bin/demo [--keep FOLDER] [--lines N] [FILE...]`. It starts a NameServer and two brokers
(both masters, the topic spread over both) in a temporary folder, sends every line of the files from
two producer processes, keyed by file, and receives them in two members of one group; one broker
gets SIGKILL in the middle and its supervisor restarts it. Then digests per file are compared, and a
paced phase measures the latency. Prints; the last line sums up. Exit code 0 if nothing was lost or
out of order.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import shmq
from shmq.client.cleanup import forget_memory
from shmq.clock import SYSTEM_CLOCK
from shmq.threads import NamedThread

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

ROOT = Path(__file__).parents[2]
LINE_COUNT_MIN = 200_000
TOPIC = "demo"
LATENCY_TOPIC = "demo-latency"
QUEUES = 4
PACED_COUNT = 3000
PACED_INTERVAL_S = 0.001
HEAD = struct.Struct("<II")
RECORD = struct.Struct("<II16s")
SUFFIXES = {".py", ".pyi", ".md", ".c", ".h", ".toml", ".txt", ".hex"}
SEND_TIMEOUT_S = 30.0
IDLE_S = 1.0
"""All lines came, and for so long no more: nothing comes twice any more."""
STUCK_S = 30.0
"""Nothing came for so long: something is lost, or hangs."""


@dataclass
class _FileReport:
    """What became of one file."""

    lines: dict[int, bytes] = field(default_factory=dict)
    """Digest of each line, by number."""
    doubled: int = 0
    """Lines that came again."""
    out_of_order: int = 0
    """Lines that came before an earlier one had."""


def _now_s() -> float:
    return SYSTEM_CLOCK.monotonic_ns() / 1e9


def _line_digest(line: bytes | memoryview) -> bytes:
    return hashlib.blake2b(line, digest_size=16).digest()


def _jobs(paths: Sequence[Path], line_count_min: int) -> list[tuple[int, Path]]:
    """(file number, path) for each file, all repeated until there are lines enough."""
    lines = sum(len(path.read_bytes().splitlines()) for path in paths)
    if lines == 0:
        raise SystemExit("demo: the files have no lines; name others, or none for the repository's")
    repeats = -(-line_count_min // lines)
    return list(enumerate(path for _ in range(repeats) for path in paths))


def _default_files() -> list[Path]:
    skipped = {".venv", "build", ".git", "__pycache__"}
    return sorted(
        path
        for path in ROOT.rglob("*")
        if path.suffix in SUFFIXES and path.is_file() and not skipped & set(path.parts)
    )


# ---- child processes -----------------------------------------------------------------------------


def _produce(folder: str, jobs: Sequence[tuple[int, Path]]) -> None:
    with shmq.connect(folder) as client, client.producer("demo-producer") as producer:
        producer.queues(TOPIC)
        print("attached", flush=True)
        for number, path in jobs:
            key = f"{path.name}-{number}"
            for line_number, line in enumerate(path.read_bytes().splitlines()):
                body = HEAD.pack(number, line_number) + line
                producer.send_oneway(
                    TOPIC, body, key=key, keys=f"{key}:{line_number}", timeout=SEND_TIMEOUT_S
                )
        producer.drain(SEND_TIMEOUT_S)


def _consume(folder: str, spool: Path, stop: Path) -> None:
    """Receive until `stop` is there; note each line in `spool`."""
    received = 0
    with (
        shmq.connect(folder) as client,
        client.consumer(TOPIC, "demo-group") as consumer,
        open(spool, "wb") as notes,
    ):
        while not stop.exists():
            messages = consumer.receive(256, timeout=0.2)
            for message in messages:
                body = message.body
                number, line_number = HEAD.unpack_from(body)
                notes.write(RECORD.pack(number, line_number, _line_digest(body[HEAD.size :])))
            if messages:
                received += len(messages)
                print(received, flush=True)


def _pace(folder: str) -> None:
    """Send at a fixed rate, the time in each body."""
    with shmq.connect(folder) as client, client.producer("demo-paced") as producer:
        due = _now_s()
        waiting = threading.Event()
        for _ in range(PACED_COUNT):
            due += PACED_INTERVAL_S
            if due > _now_s():
                waiting.wait(due - _now_s())
            producer.send(LATENCY_TOPIC, struct.pack("<Q", SYSTEM_CLOCK.monotonic_ns()))


# ---- the demo ------------------------------------------------------------------------------------


def _child(role: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "shmq.tools.demo", "--role", role, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def _read_spool(spools: Sequence[Path]) -> dict[int, _FileReport]:
    """What was received, by file; order is judged within each consumer, which has a file's queue
    to itself as long as the group does not change.
    """
    reports: dict[int, _FileReport] = {}
    for spool in spools:
        last: dict[int, int] = {}
        for number, line_number, digest in RECORD.iter_unpack(spool.read_bytes()):
            report = reports.setdefault(number, _FileReport())
            if line_number in report.lines:
                report.doubled += 1
            elif line_number < last.get(number, -1):
                report.out_of_order += 1
            report.lines.setdefault(line_number, digest)
            last[number] = max(last.get(number, -1), line_number)
    return reports


def _run(root: Path, files: Sequence[Path], line_count_min: int) -> int:
    # Copies: a file that somebody writes to meanwhile would not be what was sent.
    copies = root / "files"
    copies.mkdir()
    for index, path in enumerate(files):
        shutil.copyfile(path, copies / f"{index:04}-{path.name}")
    jobs = _jobs(sorted(copies.iterdir()), line_count_min)
    sent = sum(len(path.read_bytes().splitlines()) for _, path in jobs)
    print(f"demo: {len(files)} files, {sent} lines; starting a NameServer and two brokers")
    with contextlib.ExitStack() as cluster:
        client = cluster.enter_context(shmq.local(root, brokers=2))
        for topic in (TOPIC, LATENCY_TOPIC):
            client.create_topic(topic, queues=QUEUES)
        folder = str(root / "run")
        stop = root / "stop"
        spools = [root / "consumer-0", root / "consumer-1"]
        consumers = [_child("consume", folder, str(spool), str(stop)) for spool in spools]
        for consumer in consumers:
            cluster.callback(consumer.kill)  # whatever happens; one that has ended is past it
        begin = _now_s()
        lists = [root / "jobs-0", root / "jobs-1"]
        for index, path in enumerate(lists):
            path.write_text("\n".join(f"{n} {p}" for n, p in jobs[index::2]), encoding="utf-8")
        producers = [_child("produce", folder, str(path)) for path in lists]
        for producer in producers:
            cluster.callback(producer.kill)
            assert producer.stdout is not None
            producer.stdout.readline()  # a broker killed before would be unknown to it
        progress = _Progress(consumers)
        progress.wait_for(sent // 3)
        killed = _kill_broker(client, progress.count)
        for producer in producers:
            if producer.wait() != 0:
                raise SystemExit(f"demo: a producer ended with {producer.returncode}")
        progress.wait_for(sent)
        elapsed = _now_s() - begin
        progress.wait_for_silence()
        stop.touch()
        for consumer in consumers:
            consumer.wait()
        reports = _read_spool(spools)
        latencies = _paced(client, folder)
    received, lost, out_of_order, doubled, wrong = _compare(jobs, reports)
    print(f"demo: broker {killed} was killed in the middle and came back")
    p50_us = sorted(latencies)[len(latencies) // 2] / 1000 if latencies else float("nan")
    print(
        f"demo: {sent} lines sent, {received} received, {lost} lost, {out_of_order} out of order, "
        f"{doubled} doubled, p50 {p50_us:.1f} us, {sent / elapsed:.0f} msg/s"
    )
    return 0 if not (lost or out_of_order or wrong) else 1


def _kill_broker(client: shmq.Client, count: int) -> str:
    name = "broker-a"
    os.kill(client.link(name).connection.identity.pid, signal.SIGKILL)
    print(f"demo: {count} lines received; {name} gets SIGKILL now")
    return name


class _Progress:
    """How many lines the consumers have received, twice delivered ones counted twice."""

    def __init__(self, consumers: Sequence[subprocess.Popen[str]]) -> None:
        self._counts = [0] * len(consumers)
        self._changed = threading.Condition()
        # A consumer that has nothing to do says nothing: each is heard by a thread of its own.
        self._followers = [
            NamedThread(target=self._follow, args=(index, consumer), daemon=True)
            for index, consumer in enumerate(consumers)
        ]
        for follower in self._followers:
            follower.start()

    @property
    def count(self) -> int:
        """Lines so far."""
        return sum(self._counts)

    def wait_for(self, count: int) -> None:
        """Wait until so many have come, or none comes any more."""
        with self._changed:
            while self.count < count:
                if not all(follower.is_alive() for follower in self._followers):
                    raise SystemExit("demo: a consumer ended early")
                if not self._changed.wait(STUCK_S):
                    print(f"demo: {self.count} lines received, and none for {STUCK_S:.0f} s")
                    return

    def wait_for_silence(self) -> None:
        """Wait until nothing has come for a while."""
        with self._changed:
            while self._changed.wait(IDLE_S):
                pass

    def _follow(self, index: int, consumer: subprocess.Popen[str]) -> None:
        assert consumer.stdout is not None
        for line in consumer.stdout:
            with self._changed:
                self._counts[index] = int(line)
                self._changed.notify()


def _paced(client: shmq.Client, folder: str) -> list[int]:
    """Latencies in ns from just before send to the consumer, at 1,000 messages a second."""
    latencies: list[int] = []
    with client.consumer(LATENCY_TOPIC, "demo-latency-group") as consumer:
        consumer.receive(1, timeout=0.1)  # joins the group before the first message
        pacer = _child("pace", folder)
        while len(latencies) < PACED_COUNT:
            message = consumer.try_next(5.0)
            if message is None:
                break
            latencies.append(
                SYSTEM_CLOCK.monotonic_ns() - struct.unpack_from("<Q", message.body)[0]
            )
        pacer.wait()
    return latencies


def _compare(
    jobs: Sequence[tuple[int, Path]], reports: dict[int, _FileReport]
) -> tuple[int, int, int, int, int]:
    """(received, lost, out of order, doubled, files whose digest differs)."""
    received = lost = out_of_order = doubled = wrong = 0
    known: dict[Path, tuple[int, str]] = {}
    for number, path in jobs:
        if path not in known:
            lines = path.read_bytes().splitlines()
            digest = hashlib.blake2b(b"".join(map(_line_digest, lines))).hexdigest()
            known[path] = len(lines), digest
        count, digest = known[path]
        report = reports.get(number, _FileReport())
        received += len(report.lines)
        lost += count - len(report.lines)
        out_of_order += report.out_of_order
        doubled += report.doubled
        came = b"".join(report.lines[line] for line in sorted(report.lines))
        if hashlib.blake2b(came).hexdigest() != digest:
            wrong += 1
            print(f"demo: {path}: what came out differs from what went in")
    print(f"demo: {len(jobs) - wrong} of {len(jobs)} file digests agree")
    return received, lost, out_of_order, doubled, wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo, or one of its child processes; the exit code."""
    parser = argparse.ArgumentParser(prog="bin/demo", description="shmq at work.")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave the stores there")
    parser.add_argument(
        "--lines",
        type=int,
        default=LINE_COUNT_MIN,
        metavar="N",
        help=f"repeat the files until there are as many lines; {LINE_COUNT_MIN} unless said",
    )
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("files", nargs="*", metavar="FILE", help="whose lines are sent")
    options = parser.parse_args(arguments)
    if options.role == "produce":
        pairs = (line.split(" ", 1) for line in Path(options.files[1]).read_text().splitlines())
        _produce(options.files[0], [(int(number), Path(path)) for number, path in pairs])
        return 0
    if options.role == "consume":
        _consume(options.files[0], Path(options.files[1]), Path(options.files[2]))
        return 0
    if options.role == "pace":
        _pace(options.files[0])
        return 0
    files = [Path(name).absolute() for name in options.files] or _default_files()
    for path in files:
        if not path.is_file():
            print(f"demo: {path}: no such file", file=sys.stderr)
            return 64
    if options.keep is None:
        with tempfile.TemporaryDirectory(prefix="shmq-demo-") as folder:
            try:
                return _run(Path(folder), files, options.lines)
            finally:
                forget_memory(Path(folder), Path(folder, "run"))
    options.keep.mkdir(parents=True, exist_ok=True)
    code = _run(options.keep.absolute(), files, options.lines)
    for rest in options.keep.iterdir():
        if rest.name in {"run", "stop", "files", "cluster.toml"} or rest.name.startswith(
            ("jobs-", "consumer-")
        ):
            shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # of the terminal: its children get it as well, and say nothing
        if "--role" not in sys.argv:
            print("demo: interrupted", file=sys.stderr)
        sys.exit(130)
