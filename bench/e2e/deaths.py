"""What a death costs the others: of the broker, of a member of a group. And what a start takes.

Each run has a cluster of its own: the supervisor waits longer after each further death.
"""

import argparse
import json
import os
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from measuring import ROOT, Figure, cluster, count_for, figure
from programs import lull, programs
from roles import STAMP

import shmq
from shmq.config import AUTO

TOPIC = "e2e"
QUEUES = 8
MEMBERS = (2, 8)
BEFORE = "100B"
"""Messages of this size are in the log when its broker dies."""
WAIT_MAX_S = 30.0
LOOK_S = 0.0002
SPARE_S = 4.0
"""After a start the supervisor has a spare broker ready by then."""


def row_kill(options: argparse.Namespace) -> dict[str, Figure]:
    """From SIGKILL to the broker until a send is accepted, and until a waiting consumer has it."""
    accepted, received, shares = [], [], []
    for _ in range(options.runs):
        with cluster(hot_segment_count=AUTO) as client, programs() as started:
            client.create_topic(TOPIC, queues=QUEUES)
            started.start("produce", client.namesrv, "before", "send_many", 100).ask(
                count_for(100, options.quick)
            )
            listener = started.start("hear", client.namesrv, TOPIC, "adaptive")
            producer = client.producer()
            listener.tell(1)
            producer.send(TOPIC, STAMP.pack(time.monotonic_ns()))
            listener.answer()
            listener.tell(1)
            time.sleep(SPARE_S)
            shares.append(lull())
            begin_ns = time.monotonic_ns()
            os.kill(client.link("broker-a").connection.identity.pid, signal.SIGKILL)
            producer.send(TOPIC, STAMP.pack(begin_ns), timeout=WAIT_MAX_S)
            accepted.append((time.monotonic_ns() - begin_ns) / 1e9)
            received.append((json.loads(listener.answer())["at_ns"] - begin_ns) / 1e9)
    disturbed = {"foreign_cpu_max": round(max(shares), 2)}
    bound = "the dead process is torn down, a spare adopts its memory, clients attach again"
    return {
        "SIGKILL to first accepted send": figure(accepted, "s", bound, **disturbed),
        "SIGKILL to first message received": figure(received, "s", bound, **disturbed),
    }


def row_reassign(options: argparse.Namespace) -> dict[str, Figure]:
    """From SIGKILL to a member until its queues are others'."""
    figures = {}
    with cluster(hot_segment_count=AUTO) as client, programs() as started:
        client.create_topic(TOPIC, queues=QUEUES)
        for member_count in MEMBERS[:1] if options.quick else MEMBERS:
            took, shares = [], []
            group = f"of-{member_count}"
            with ExitStack() as stack:
                living = []
                for _ in range(member_count - 1):
                    member = stack.enter_context(shmq.connect(client.namesrv))
                    living.append(member.consumer(TOPIC, group))
                for _ in range(options.runs):
                    victim = started.start("consume", client.namesrv, TOPIC, group, "objects")
                    _wait_until_held(living, QUEUES - QUEUES // member_count)
                    shares.append(lull())
                    begin = time.perf_counter()
                    victim.kill()
                    _wait_until_held(living, QUEUES)
                    took.append((time.perf_counter() - begin) * 1000)
            figures[f"re-assignment, 1 of {member_count} killed"] = figure(
                took,
                "ms",
                "a closed socket, a notice, three requests of each member",
                foreign_cpu_max=round(max(shares), 2),
            )
    return figures


def _wait_until_held(members: list[shmq.Consumer], count: int) -> None:
    """Until the members have so many queues between them."""
    deadline = time.perf_counter() + WAIT_MAX_S
    held = -1
    while held != count:
        held = len({queue for member in members for queue in member.assigned})
        if time.perf_counter() > deadline:
            raise SystemExit(f"re-assignment: {held} of {count} queues after {WAIT_MAX_S:.0f} s")
        time.sleep(LOOK_S)


def row_dev(options: argparse.Namespace) -> dict[str, Figure]:
    """From starting `shmq dev` until a program has sent a message and received it."""
    _started()  # bytecode and page cache
    shares, took = [], []
    for _ in range(options.runs):
        shares.append(lull())
        took.append(_started())
    bound = "four interpreters start one after the other: dev, its guard, NameServer, broker"
    return {
        "shmq dev to first message": figure(took, "s", bound, foreign_cpu_max=round(max(shares), 2))
    }


def _started() -> float:
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=ROOT) as folder:
        run = Path(folder, "run")
        begin = time.perf_counter()
        process = subprocess.Popen(
            [ROOT / "bin/shmq", "dev", "--folder", folder, "--runtime", run],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            with _connected(run) as client:
                _send_first(client, begin + WAIT_MAX_S)
                with client.consumer(TOPIC, "first") as consumer:
                    if consumer.try_next(WAIT_MAX_S) is None:
                        raise SystemExit("shmq dev: the first message did not arrive")
                return time.perf_counter() - begin
        finally:
            process.terminate()
            process.wait()


def _connected(run: Path) -> shmq.Client:
    deadline = time.perf_counter() + WAIT_MAX_S
    while True:
        try:
            return shmq.connect(run)
        except shmq.ShmqError as error:
            if time.perf_counter() > deadline:
                raise SystemExit(f"shmq dev did not come up: {error}") from error
        time.sleep(LOOK_S)


def _send_first(client: shmq.Client, deadline: float) -> None:
    """Until a broker is there that makes the topic."""
    with client.producer() as producer:
        while True:
            try:
                producer.send(TOPIC, b"first")
                return
            except shmq.ShmqError as error:
                if time.perf_counter() > deadline:
                    raise SystemExit(f"shmq dev takes no message: {error}") from error
            time.sleep(LOOK_S)
