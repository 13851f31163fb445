"""bin/bench micro: what one message costs, on this machine, through a real broker.

    bin/bench micro [--quick] [--json] [--rows put,send,...] [--out FILE]

Each figure is the median of several runs, with the least and the greatest beside it. A private
cluster (shmq.local) is started for each group of rows; its store lies in this checkout, on the file
system that is measured. Compare ratios, not absolute times: machines and neighbours differ.
"""

import argparse
import json
import os
import platform
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import shmq
from shmq.client.broker_link import BrokerLink
from shmq.remoting.codes import RequestCode

ROOT = Path(__file__).parents[1]
SIZES = {"16B": 16, "100B": 100, "1KiB": 1 << 10, "64KiB": 64 << 10, "1MiB": 1 << 20}
BURST_BYTES = 384 << 20
"""Frames of one burst: fits the hot log."""

Figure = dict[str, Any]


def machine() -> dict[str, Any]:
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_1m": os.getloadavg()[0],
    }


@contextmanager
def cluster() -> Iterator[shmq.Client]:
    """A broker whose store is on the checkout's file system."""
    with (
        tempfile.TemporaryDirectory(prefix=".bench-", dir=ROOT) as folder,
        shmq.local(folder) as client,
    ):
        yield client


def queue_of(client: shmq.Client, topic: str, **attributes: str) -> tuple[BrokerLink, int, int]:
    """A fresh topic of one queue: its link and handle."""
    link = client.link("broker-a")
    fields: dict[str, Any] = {"topic": topic, "readQueueNums": 1, "writeQueueNums": 1}
    if attributes:
        fields["attributes"] = ",".join(
            f"+{k.replace('_', '.')}={v}" for k, v in attributes.items()
        )
    link.call(RequestCode.UPDATE_AND_CREATE_TOPIC, fields)
    ((_, (row, generation)),) = link.grant_send(topic)
    return link, row, generation


def runs_of(measure: Callable[[int], float], runs: int, unit: str, bound: str) -> Figure:
    """Median, least and greatest of `runs` runs."""
    values = [measure(run) for run in range(runs)]
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "runs": runs,
        "unit": unit,
        "bound": bound,
    }


def count_for(size: int, quick: bool) -> int:
    count = min(1_000_000, BURST_BYTES // (size + 170))
    return max(16, count // 10 if quick else count)


# ---- rows ----------------------------------------------------------------------------------------


def row_put(options: argparse.Namespace) -> dict[str, Figure]:
    """Single calls that wait for nothing, until the last is done (burst)."""
    figures = {}
    for name, size in SIZES.items():
        with cluster() as client:
            link, row, generation = queue_of(client, f"put-{name}")
            if size > 32 << 10:
                link.grant_chunk()
            lane, body, count = link.lanes[0], bytes(size), count_for(size, options.quick)

            def measure(
                _run: int, lane=lane, body=body, count=count, row=row, generation=generation
            ) -> float:
                put = lane.put
                begin = time.perf_counter()
                for _ in range(count):
                    put(row, generation, body)
                lane.drain(60.0)
                return (time.perf_counter() - begin) / count * 1e9

            figures[f"put {name}"] = runs_of(
                measure,
                options.runs,
                "ns/message",
                "producer call and append thread, one core each",
            )
    return figures


def row_put_many(options: argparse.Namespace) -> dict[str, Figure]:
    """Batches of 1,000 bodies."""
    figures = {}
    for name, size in list(SIZES.items())[:3]:
        with cluster() as client:
            link, row, generation = queue_of(client, f"many-{name}")
            lane, bodies = link.lanes[0], [bytes(size)] * 1000
            batches = max(1, count_for(size, options.quick) // 1000)

            def measure(
                _run: int, lane=lane, bodies=bodies, batches=batches, handle=(row, generation)
            ) -> float:
                begin = time.perf_counter()
                for _ in range(batches):
                    lane.put_many(*handle, bodies, timeout=60.0)
                lane.drain(60.0)
                return (time.perf_counter() - begin) / (batches * 1000) * 1e9

            figures[f"put_many {name}"] = runs_of(
                measure, options.runs, "ns/message", "append thread: copy, two CRCs, entry"
            )
    return figures


def row_send(options: argparse.Namespace) -> dict[str, Figure]:
    """Synchronous sends, one in flight: through the core, and through Producer.send."""
    count = 5_000 if options.quick else 50_000
    with cluster() as client:
        link, row, generation = queue_of(client, "send")
        lane, body = link.lanes[0], bytes(100)
        producer = client.producer()
        producer.send("send", body)

        def core_send(_run: int) -> float:
            begin = time.perf_counter()
            for _ in range(count):
                lane.send(row, generation, body)
            return (time.perf_counter() - begin) / count * 1e9

        def public_send(_run: int) -> float:
            begin = time.perf_counter()
            for _ in range(count):
                producer.send("send", body)
            return (time.perf_counter() - begin) / count * 1e9

        def public_oneway(_run: int) -> float:
            begin = time.perf_counter()
            for _ in range(count):
                producer.send_oneway("send", body)
            producer.drain(60.0)
            return (time.perf_counter() - begin) / count * 1e9

        bound = "two hand-overs between cores"
        return {
            "send 100B": runs_of(core_send, options.runs, "ns/message", bound),
            "Producer.send 100B": runs_of(public_send, options.runs, "ns/message", bound),
            "Producer.send_oneway 100B": runs_of(
                public_oneway, options.runs, "ns/message", "the interpreter"
            ),
        }


def row_receive(options: argparse.Namespace) -> dict[str, Figure]:
    """Reading back what a burst wrote: Message objects, and columns."""
    count = 100_000 if options.quick else 1_000_000
    with cluster() as client:
        link, row, generation = queue_of(client, "receive")
        lane = link.lanes[0]
        for _ in range(count // 1000):
            lane.put_many(row, generation, [bytes(100)] * 1000, timeout=60.0)
        lane.drain(60.0)

        def read(verb: Callable[..., Any], batch: int) -> float:
            position, begin = 0, time.perf_counter()
            while position < count:
                _, _, position = verb(row, generation, position, batch)
            return (time.perf_counter() - begin) / count * 1e9

        return {
            "receive objects 100B": runs_of(
                lambda _: read(link.reader.read, 256), options.runs, "ns/message", "allocation"
            ),
            "receive columns 100B": runs_of(
                lambda _: read(link.reader.read_columns, 1024),
                options.runs,
                "ns/message",
                "memory: one frame head per message",
            ),
        }


def row_flush(options: argparse.Namespace) -> dict[str, Figure]:
    """SYNC_FLUSH at 1 and 64 in flight, beside the device's own fdatasync."""
    count = 200 if options.quick else 2_000
    with cluster() as client:
        link, row, generation = queue_of(client, "sync", shmq_flush_disk_type="SYNC_FLUSH")
        lane, body = link.lanes[0], bytes(1024)

        def one(_run: int) -> float:
            begin = time.perf_counter()
            for _ in range(count):
                lane.send(row, generation, body, timeout=30.0)
            return count / (time.perf_counter() - begin)

        def many(_run: int) -> float:
            total, window = count * 10, 64
            begin = time.perf_counter()
            pending: list[int] = []
            for _ in range(total):
                if len(pending) == window:
                    lane.wait(pending.pop(0), 30.0)
                pending.append(lane.put(row, generation, body, keep=True))
            for sequence in pending:
                lane.wait(sequence, 30.0)
            return total / (time.perf_counter() - begin)

        def device(_run: int) -> float:
            path = ROOT / ".bench-device"
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            try:
                os.pwrite(fd, bytes(4 << 20), 0)
                os.fdatasync(fd)
                begin = time.perf_counter()
                for index in range(count):
                    os.pwrite(fd, bytes(1280), (index * 1280) % (4 << 20))
                    os.fdatasync(fd)
                return count / (time.perf_counter() - begin)
            finally:
                os.close(fd)
                path.unlink()

        unit = "1/s"
        return {
            "device fdatasync 1280B": runs_of(device, options.runs, unit, "the disk"),
            "SYNC_FLUSH 1 in flight 1KiB": runs_of(one, options.runs, unit, "one fdatasync each"),
            "SYNC_FLUSH 64 in flight 1KiB": runs_of(many, options.runs, unit, "group commit"),
        }


def row_latency(options: argparse.Namespace) -> dict[str, Figure]:
    """From just before put to the consumer's hands in another process, per waiting policy."""
    count = 500 if options.quick else 5_000
    figures = {}
    for policy in ("blocking", "adaptive", "busy_spin"):
        with cluster() as client:
            queue_of(client, "latency")
            folder = str(client._folder.path)
            child = subprocess.Popen(
                [sys.executable, __file__, "--consume", folder, policy, str(count)],
                stdout=subprocess.PIPE,
                text=True,
            )
            assert child.stdout is not None
            child.stdout.readline()
            producer = client.producer()
            due = time.perf_counter()
            for _ in range(count):
                due += 0.001
                while time.perf_counter() < due:
                    time.sleep(max(0.0, due - time.perf_counter()))
                producer.send_oneway("latency", struct.pack("<Q", time.monotonic_ns()))
            latencies = sorted(json.loads(child.stdout.readline()))
            child.wait()
            for label, share in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)):
                value = latencies[min(len(latencies) - 1, int(len(latencies) * share))]
                figures[f"latency 1000/s {policy} {label}"] = {
                    "median": value,
                    "min": latencies[0],
                    "max": latencies[-1],
                    "runs": 1,
                    "unit": "ns",
                    "bound": "wake-ups of idle cores",
                }
    return figures


def consume(folder: str, policy: str, count: int) -> None:
    """The other end of row_latency."""
    latencies = []
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


def row_base(options: argparse.Namespace) -> dict[str, Figure]:
    """What the memory and a CRC cost without us."""
    data, target = bytes(64 << 20), bytearray(64 << 20)

    def copy(_run: int) -> float:
        begin = time.perf_counter()
        target[:] = data
        return len(data) / (time.perf_counter() - begin) / 1e9

    def crc(_run: int) -> float:
        begin = time.perf_counter()
        zlib.crc32(data)
        return len(data) / (time.perf_counter() - begin) / 1e9

    return {
        "memcpy 64MiB": runs_of(copy, options.runs, "GB/s", "memory"),
        "zlib.crc32 64MiB": runs_of(crc, options.runs, "GB/s", "one core"),
    }


ROWS = {
    "base": row_base,
    "put": row_put,
    "put_many": row_put_many,
    "send": row_send,
    "receive": row_receive,
    "flush": row_flush,
    "latency": row_latency,
}


def main() -> int:
    if len(sys.argv) == 5 and sys.argv[1] == "--consume":
        consume(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        return 0
    parser = argparse.ArgumentParser(prog="bin/bench micro", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the messages")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {', '.join(ROWS)}")
    parser.add_argument("--runs", type=int, default=5, help="runs of each figure")
    parser.add_argument("--out", type=Path, help="write the JSON there, too")
    options = parser.parse_args()
    names = options.rows.split(",")
    unknown = sorted(set(names) - set(ROWS))
    if unknown:
        parser.error(f"no such rows: {', '.join(unknown)}; there are {', '.join(ROWS)}")
    result: dict[str, Any] = {"machine": machine(), "figures": {}}
    for name in names:
        for label, figure in ROWS[name](options).items():
            result["figures"][label] = figure
            print(
                f"{label:32} {figure['median']:14,.1f} {figure['unit']:11}"
                f" ({figure['min']:,.1f} to {figure['max']:,.1f}, {figure['runs']} runs)",
                flush=True,
            )
    text = json.dumps(result, indent=2)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    if options.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
