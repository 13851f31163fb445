"""Reading back what a burst wrote: Message objects and columns, and the core's share of it."""

import argparse
import time
from collections.abc import Callable
from typing import Any

from measuring import CHUNK_SIZE, SIZES, Figure, cluster, count_for, queue_of, runs_of

from shmq.config import AUTO


def row_receive(options: argparse.Namespace) -> dict[str, Figure]:
    """From memory, every body's address in hand; no byte of a body is copied or looked at.

    With segments asked for explicitly all but one are kept for what comes, and what was written
    leaves memory when its file is complete; so they are not asked for here.
    """
    figures = {}
    for name, size in SIZES.items():
        count = count_for(size, options.quick)
        with cluster(hot_segment_count=AUTO) as client:
            link, row, generation = queue_of(client, "receive")
            if size > CHUNK_SIZE:
                link.grant_chunk()
            lane, sent = link.lanes[0], 0
            bodies = [bytes(size)] * max(1, min(1000, (4 << 20) // size, count))
            while sent < count:
                lane.put_many(row, generation, bodies, timeout=60.0)
                sent += len(bodies)
            lane.drain(60.0)

            def read(
                verb: Callable[..., Any], batch: int, total=sent, handle=(row, generation)
            ) -> float:
                position, begin = 0, time.perf_counter()
                while position < total:
                    status, _, after = verb(*handle, position, batch)
                    if after == position:
                        raise SystemExit(f"read at {position} of {total}: status {status}")
                    position = after
                return (time.perf_counter() - begin) / total * 1e9

            figures[f"receive objects {name}"] = runs_of(
                lambda _, reader=link.reader, read=read: read(reader.read, 256),
                options.runs,
                "ns/message",
                "one object a message, and a frame head that is not in the cache",
            )
            figures[f"receive columns {name}"] = runs_of(
                lambda _, reader=link.reader, read=read: read(reader.read_columns, 1024),
                options.runs,
                "ns/message",
                "memory: one frame head a message",
            )
    return figures
