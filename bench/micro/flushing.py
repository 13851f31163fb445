"""SYNC_FLUSH beside the device's own fdatasync rate, same sizes, same file system, same minute."""

import argparse
import os
import time

from measuring import FRAME_BYTES, ROOT, Figure, cluster, figure, queue_of, runs_of

BODY_BYTES = 1024
FILE_BYTES = 16 << 20
IN_FLIGHT = 64


def row_flush(options: argparse.Namespace) -> dict[str, Figure]:
    """1 KiB messages, one and 64 in flight; the ratios are taken run by run."""
    count = 200 if options.quick else 2_000
    unit = "1/s"
    with cluster(flush_disk_type="SYNC_FLUSH", hot_segment_count=4) as client:
        link, row, generation = queue_of(client, "sync", shmq_flush_disk_type="SYNC_FLUSH")
        lane, body = link.lanes[0], bytes(BODY_BYTES)

        def one(_run: int) -> float:
            begin = time.perf_counter()
            for _ in range(count):
                lane.send(row, generation, body, timeout=30.0)
            return count / (time.perf_counter() - begin)

        def many(_run: int) -> float:
            total = count * 10
            begin = time.perf_counter()
            pending: list[int] = []
            for _ in range(total):
                if len(pending) == IN_FLIGHT:
                    lane.wait(pending.pop(0), 30.0)
                pending.append(lane.put(row, generation, body, keep=True))
            for sequence in pending:
                lane.wait(sequence, 30.0)
            return total / (time.perf_counter() - begin)

        def device(_run: int) -> float:
            path = ROOT / ".bench-device"
            size = BODY_BYTES + FRAME_BYTES
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            try:
                os.pwrite(fd, bytes(FILE_BYTES), 0)
                os.fsync(fd)
                begin = time.perf_counter()
                for index in range(count):
                    os.pwrite(fd, bytes(size), (index * size) % (FILE_BYTES - size))
                    os.fdatasync(fd)
                return count / (time.perf_counter() - begin)
            finally:
                os.close(fd)
                path.unlink()

        rates: dict[str, list[Figure]] = {"device": [], "one": [], "many": []}
        for _ in range(options.runs):
            rates["device"].append(runs_of(device, 1, unit, ""))
            rates["one"].append(runs_of(one, 1, unit, ""))
            rates["many"].append(runs_of(many, 1, unit, ""))
    values = {name: [made["median"] for made in runs] for name, runs in rates.items()}
    bounds = {
        "device": ("device fdatasync 1KiB", "the disk"),
        "one": ("SYNC_FLUSH 1 in flight 1KiB", "one fdatasync each, four hand-overs around it"),
        "many": ("SYNC_FLUSH 64 in flight 1KiB", "one fdatasync for those that came meanwhile"),
    }
    figures = {label: figure(values[name], unit, bound) for name, (label, bound) in bounds.items()}
    for name in ("one", "many"):
        ratios = [
            ours / device for ours, device in zip(values[name], values["device"], strict=True)
        ]
        figures[f"{bounds[name][0]} / device"] = figure(ratios, "ratio", bounds[name][1])
    return figures
