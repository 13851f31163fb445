"""Sending from Python: single calls, batches, synchronous; bursts, sustained; 1 to 64 at once."""

import argparse
import sys
import time
from contextlib import ExitStack

from measuring import (
    CHUNK_SIZE,
    FRAME_BYTES,
    SIZES,
    Figure,
    cluster,
    count_for,
    program,
    queue_of,
    runs_of,
)

import shmq

BATCH = 1000
PRODUCERS = (1, 2, 8, 64)


def row_put(options: argparse.Namespace) -> dict[str, Figure]:
    """Single calls that wait for nothing, until the last is done (burst)."""
    figures = {}
    for name, size in SIZES.items():
        with cluster() as client:
            link, row, generation = queue_of(client, f"put-{name}")
            if size > CHUNK_SIZE:
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

            bound = "the producer's core: one call, its clock, its key"
            if size > CHUNK_SIZE:
                bound = "memory: two copies of the body, one CRC, all from DRAM"
            figures[f"put {name}"] = runs_of(measure, options.runs, "ns/message", bound)
    return figures


def row_put_many(options: argparse.Namespace) -> dict[str, Figure]:
    """Batches of 1,000 bodies (burst)."""
    figures = {}
    for name, size in list(SIZES.items())[:3]:
        with cluster() as client:
            link, row, generation = queue_of(client, f"many-{name}")
            lane, bodies = link.lanes[0], [bytes(size)] * BATCH
            batches = max(1, count_for(size, options.quick) // BATCH)

            def measure(
                _run: int, lane=lane, bodies=bodies, batches=batches, handle=(row, generation)
            ) -> float:
                begin = time.perf_counter()
                for _ in range(batches):
                    lane.put_many(*handle, bodies, timeout=60.0)
                lane.drain(60.0)
                return (time.perf_counter() - begin) / (batches * BATCH) * 1e9

            figures[f"put_many {name}"] = runs_of(
                measure, options.runs, "ns/message", "append thread: copy, two CRCs, entry"
            )
    return figures


def row_send(options: argparse.Namespace) -> dict[str, Figure]:
    """Synchronous sends, one in flight: through the core, and through Producer.send."""
    figures = {}
    bound = "two hand-overs between cores"
    for name, size in SIZES.items():
        count = min(20_000, count_for(size, options.quick))
        with cluster() as client:
            link, row, generation = queue_of(client, "send")
            if size > CHUNK_SIZE:
                link.grant_chunk()
            lane, body = link.lanes[0], bytes(size)
            producer = client.producer()
            producer.send("send", body)

            def core_send(
                _run: int, lane=lane, handle=(row, generation), body=body, count=count
            ) -> float:
                begin = time.perf_counter()
                for _ in range(count):
                    lane.send(*handle, body)
                return (time.perf_counter() - begin) / count * 1e9

            def public_send(_run: int, producer=producer, body=body, count=count) -> float:
                begin = time.perf_counter()
                for _ in range(count):
                    producer.send("send", body)
                return (time.perf_counter() - begin) / count * 1e9

            def public_oneway(_run: int, producer=producer, body=body, count=count) -> float:
                begin = time.perf_counter()
                for _ in range(count):
                    producer.send_oneway("send", body)
                producer.drain(60.0)
                return (time.perf_counter() - begin) / count * 1e9

            unit = "ns/message"
            figures[f"send {name}"] = runs_of(core_send, options.runs, unit, bound)
            figures[f"Producer.send {name}"] = runs_of(public_send, options.runs, unit, bound)
            if size == 100:
                figures[f"Producer.send_oneway {name}"] = runs_of(
                    public_oneway, options.runs, unit, "the interpreter"
                )
    return figures


def row_sustained(options: argparse.Namespace) -> dict[str, Figure]:
    """Batches without a pause, four times what the hot log holds: the disk sets the pace."""
    total_bytes = (1 if options.quick else 3) << 30
    figures = {}
    for name in ("100B", "1KiB", "1MiB"):
        size = SIZES[name]
        with cluster() as client:
            link, row, generation = queue_of(client, f"sustained-{name}")
            if size > CHUNK_SIZE:
                link.grant_chunk()
            lane = link.lanes[0]
            bodies = [bytes(size)] * max(1, min(BATCH, (4 << 20) // size))

            def measure(_run: int, lane=lane, bodies=bodies, handle=(row, generation)) -> float:
                rounds = total_bytes // (len(bodies) * (len(bodies[0]) + FRAME_BYTES))
                begin = time.perf_counter()
                for _ in range(rounds):
                    lane.put_many(*handle, bodies, timeout=60.0)
                lane.drain(60.0)
                return (time.perf_counter() - begin) / (rounds * len(bodies)) * 1e9

            bound = "two cores for producer, append thread, flusher and derived files; the disk"
            made = runs_of(measure, min(options.runs, 3), "ns/message", bound)
            made["mb_per_s"] = round((size + FRAME_BYTES) / made["median"] * 1e3)
            figures[f"sustained put_many {name}"] = made
    return figures


def row_producers(options: argparse.Namespace) -> dict[str, Figure]:
    """As many processes, each with a session of its own, together; single calls of 100 B."""
    figures = {}
    for producers in PRODUCERS:
        for verb in ("put", "put_many"):
            with cluster() as client, ExitStack() as stack:
                queue_of(client, "many")
                total = count_for(100, options.quick, most=512_000)
                folder = str(client._folder.path)
                children = [
                    stack.enter_context(program(__file__, folder, verb, total // producers))
                    for _ in range(producers)
                ]
                for child in children:
                    assert child.stdout is not None
                    child.stdout.readline()

                def measure(_run: int, children=children, total=total) -> float:
                    begin = time.perf_counter()
                    for child in children:
                        child.stdin.write("go\n")
                        child.stdin.flush()
                    for child in children:
                        child.stdout.readline()
                    return (time.perf_counter() - begin) / total * 1e9

                figures[f"{producers} producers {verb} 100B"] = runs_of(
                    measure,
                    options.runs,
                    "ns/message",
                    "processor time of producers and append thread on all cores",
                )
    return figures


def produce(folder: str, verb: str, count: int) -> None:
    """One of row_producers."""
    with shmq.connect(folder) as client:
        link = client.link("broker-a")
        ((_, (row, generation)),) = link.grant_send("many", is_auto_create=False)
        lane, body = link.lanes[0], bytes(100)
        bodies = [body] * min(BATCH, count)
        lane.put(row, generation, body)
        lane.drain(60.0)
        print("ready", flush=True)
        for _ in sys.stdin:
            if verb == "put":
                for _ in range(count):
                    lane.put(row, generation, body, timeout=60.0)
            else:
                for _ in range(count // len(bodies)):
                    lane.put_many(row, generation, bodies, timeout=60.0)
            lane.drain(60.0)
            print("done", flush=True)


if __name__ == "__main__":
    produce(sys.argv[1], sys.argv[2], int(sys.argv[3]))
