"""Client processes and their groups: what attaching, dividing queues and a death cost."""

import argparse
import os
import random
import signal
import time

from crowd import crowd
from daemons import pids_of
from measuring import Figure, cluster, figure, memory_mib, until_divided
from programs import cpu_ns, descendants

import shmq
from shmq.config import AUTO

CLIENTS = (10, 100, 1_000)
RING_BYTES = 256 << 10
SPARE_SESSIONS = 8
GROUPS = (1, 10, 100)
MEMBERS = 10
QUEUES = 16
QUIET_S = 30.0
"""A heartbeat of each client."""
SAMPLE = 20
"""Client processes whose memory is looked at."""


def _settings(client_count: int) -> dict[str, object]:
    return {
        "hot_segment_count": AUTO,
        "session_count": client_count + SPARE_SESSIONS,
        "ring_bytes": RING_BYTES,
        "session_count_max_per_uid": client_count + SPARE_SESSIONS,
    }


def row_clients(options: argparse.Namespace) -> dict[str, Figure]:
    """By the number of client processes: each connects, attaches and sends one message."""
    figures: dict[str, Figure] = {}
    for count in CLIENTS[:2] if options.quick else CLIENTS:
        with cluster(**_settings(count)) as client:
            client.create_topic("t", queues=QUEUES)
            before = {role: memory_mib(pid, "Private_Dirty") for role, pid in pids_of().items()}
            with crowd(client.namesrv, [("t", "")] * count) as pids:
                label = f"{count} clients"
                figures[f"{label}, attached, each"] = figure(
                    [pids.took_s / count * 1e3],
                    "ms",
                    "fork, two sockets, ring and page memory, three requests",
                )
                for role, pid in pids_of().items():
                    figures[f"{label}, memory of the {role}, each"] = figure(
                        [(memory_mib(pid, "Private_Dirty") - before[role]) / count * 1024],
                        "KiB",
                        "Python objects of a connection and a session",
                    )
                some = pids.alive[:: max(1, count // SAMPLE)]
                figures[f"{label}, memory of a client process"] = figure(
                    [memory_mib(pid, "Pss") for pid in some],
                    "MiB",
                    "what it wrote of the interpreter it was forked with; ring and page",
                )
                everybody = descendants()
                begin, used = time.perf_counter(), cpu_ns(everybody)
                time.sleep(QUIET_S / 15 if options.quick else QUIET_S)
                share = (cpu_ns(everybody) - used) / 1e7 / (time.perf_counter() - begin)
                figures[f"{label}, idle, all processes"] = figure(
                    [share], "% of a core", "heartbeats and safety timeouts of each client"
                )
    return figures


def row_groups(options: argparse.Namespace) -> dict[str, Figure]:
    """By the number of groups of 10 members, each process in one: all queues divided; again after
    a member of one group was killed.
    """
    figures: dict[str, Figure] = {}
    for count in GROUPS[:1] if options.quick else GROUPS:
        with (
            cluster(**_settings(count * MEMBERS)) as client,
            shmq.Admin(client.namesrv) as admin,
        ):
            groups = [f"g{number}" for number in range(count)]
            admin.create_topics([f"of-{group}" for group in groups], queues=QUEUES)
            places = [(f"of-{group}", group) for group in groups for _ in range(MEMBERS)]
            label = f"{count} groups of {MEMBERS}"
            with crowd(client.namesrv, places) as pids:
                begin = time.perf_counter()
                for group in groups:
                    _until_divided(admin, group, MEMBERS)
                took = time.perf_counter() - begin + pids.took_s
                figures[f"{label}, all queues divided, each member"] = figure(
                    [took / len(places) * 1e3],
                    "ms",
                    "attaching, and for each arrival three requests of each member of the group",
                )
                killed = []
                for _ in range(options.runs):
                    index = random.randrange(len(pids.alive))
                    pid, (_, group) = pids.alive.pop(index), pids.places.pop(index)
                    left = sum(place[1] == group for place in pids.places)
                    begin = time.perf_counter()
                    os.kill(pid, signal.SIGKILL)
                    _until_divided(admin, group, left)
                    killed.append((time.perf_counter() - begin) * 1e3)
                figures[f"{label}, divided again after a death"] = figure(
                    killed, "ms", "a closed socket, a notice, three requests of each member"
                )
    return figures


def _until_divided(admin: shmq.Admin, group: str, member_count: int) -> None:
    until_divided(admin, f"of-{group}", group, queue_count=QUEUES, member_count=member_count)
