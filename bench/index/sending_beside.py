"""Sending while an index is built behind it, and without one."""

import argparse
import os
import statistics
import time

from measuring import Figure, Foreign, cluster, figure, queue_of
from programs import cpu_ns, descendants

import shmq

BATCH = 1000
MESSAGES = 4_000_000
"""Of 100 B, with a key: 1.2 GiB, beyond the hot log, so that files complete meanwhile."""


def row_sending(options: argparse.Namespace) -> dict[str, Figure]:
    """Batches of 1,000 messages of 100 B with a UNIQ_KEY and a key each; with and without, in
    turns.
    """
    count = MESSAGES // (10 if options.quick else 1)
    taken: dict[bool, list[float]] = {True: [], False: []}
    used: dict[bool, list[float]] = {True: [], False: []}
    shares = []
    for run in range(options.runs):
        # Who comes second meets what the first left to write: the first changes.
        for has_index in (True, False) if run % 2 else (False, True):
            with cluster(message_index_enable=str(has_index).lower()) as client:
                foreign = Foreign()
                ours = {os.getpid(), *descendants()}
                before = cpu_ns(ours)
                taken[has_index].append(_send(client, count))
                used[has_index].append((cpu_ns(ours) - before) / count)
                shares.append(foreign.share())
    more = {
        "foreign_cpu_max": round(max(shares), 2),
        "foreign_cpu_median": round(statistics.median(shares), 2),
    }
    ratios = [a / b for a, b in zip(taken[True], taken[False], strict=True)]
    costs = [a / b for a, b in zip(used[True], used[False], strict=True)]
    best = min(taken[True]) / min(taken[False])
    bound = "producer, append thread, flusher and derived files on the cores there are"
    return {
        "send 100B with an index": figure(taken[True], "ns/message", bound, **more),
        "send 100B without an index": figure(taken[False], "ns/message", bound, **more),
        "send with / without an index": figure(ratios, "x", "the same", **more),
        "send with / without an index, best runs": figure([best], "x", "the same", **more),
        "processor time while sending, with an index": figure(
            used[True], "ns/message", "all threads of all processes", **more
        ),
        "processor time while sending, with / without": figure(
            costs, "x", "what the index takes from the sends", **more
        ),
    }


def _send(client: shmq.Client, count: int) -> float:
    link, row, generation = queue_of(client, "many")
    lane, bodies = link.lanes[0], [bytes(100)] * BATCH
    begin = time.perf_counter()
    for number in range(count // BATCH):
        lane.put_many(row, generation, bodies, None, f"batch-{number}")
    lane.drain(60.0)
    return (time.perf_counter() - begin) / count * 1e9
