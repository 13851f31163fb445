"""A log of 1 MiB to 20 GiB: opened in order, after a kill, after a reboot; read cold; expired."""

import argparse
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from backlog import leave_cache
from measuring import ROOT, Figure, figure, program, settings
from remains import Memory
from session import folder_of_run

import shmq
from shmq.config import AUTO

MIB_OF_LOG = (1, 128, 1_024, 20_480)
FREE_FACTOR = 2
"""So many times its size must be free on the disk."""
BODY = 1 << 10
FRAME = BODY + 154
"""Of one message in the log."""
BATCH = 1_000
RECEIVE_MAX = 500
TOPIC, GROUP = "log", "g"
WAIT_MAX_S = 600.0
_PROGRAM = Path(__file__).with_name("store_process.py")
BOUND_OPEN = "new hot memory; the last file; a list of the others"


def row_log(options: argparse.Namespace) -> dict[str, Figure]:
    """By MiB of log, messages of 1 KiB in one queue. One run: a store is made for each."""
    figures: dict[str, Figure] = {}
    for mib in MIB_OF_LOG[:2] if options.quick else MIB_OF_LOG:
        free_mib = shutil.disk_usage(ROOT).free >> 20
        if free_mib < FREE_FACTOR * mib:
            wanted = FREE_FACTOR * mib
            print(f"log of {mib} MiB: left out: {free_mib} MiB free in {ROOT}, wanted {wanted}")
            continue
        with folder_of_run() as folder:
            try:
                figures |= _of(mib, folder)
            except KeyboardInterrupt:
                with suppress(FileNotFoundError):  # it has none
                    Memory(folder / "broker-a").wipe()
                raise
    return figures


def _of(mib: int, folder: Path) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}

    def note(what: str, value: float, unit: str, bound: str) -> None:
        figures[f"{mib} MiB of log, {what}"] = figure([value], unit, bound)

    count = max(BATCH, (mib << 20) // FRAME)
    with settings(hot_segment_count=AUTO), shmq.local(folder) as client:
        client.create_topic(TOPIC, queues=1)
        with client.producer() as producer:
            bodies = [bytes(BODY)] * BATCH
            begin = time.perf_counter()
            for _ in range(count // BATCH):
                producer.send_many(TOPIC, bodies, timeout=WAIT_MAX_S)
            took = time.perf_counter() - begin
        sent = count // BATCH * BATCH
        note("written", sent * FRAME / took / 1e6, "MB/s", "the disk, once memory is full")

    store = folder / "broker-a"
    with _store("open", store) as took:
        note("open, stopped in order", took, "s", BOUND_OPEN)
    with _store("open", store, is_killed=True):
        pass
    with _store("open", store, is_killed=True) as took:
        note("open, killed", took, "s", "its memory is adopted; frames not flushed are checked")
    Memory(store).wipe()
    with _store("open", store) as took:
        note("open, killed, its memory gone", took, "s", f"{BOUND_OPEN}, whose frames are checked")

    leave_cache(folder)
    with shmq.local(folder) as client, client.consumer(TOPIC, GROUP) as consumer:
        begin, left = time.perf_counter(), sent
        while left > 0:
            messages = consumer.receive(RECEIVE_MAX, timeout=WAIT_MAX_S)
            if not messages:
                raise SystemExit(f"log of {mib} MiB: {left} of {sent} messages did not come")
            left -= len(messages)
        took = time.perf_counter() - begin
    note("cold read", sent * FRAME / took / 1e6, "MB/s", "the disk; one cold frame head a message")

    with _store("expire", store) as took:
        pass
    if took:  # there was a complete file
        note("expired, a file", took * 1e3, "ms", "one removal, one fsync, at a time")
    return figures


@contextmanager
def _store(verb: str, store: Path, *, is_killed: bool = False) -> Iterator[float]:
    """A process of store_process.py: how long what it does took. It ends in order with the block,
    or is killed.
    """
    with program(_PROGRAM, verb, store) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        if said:
            yield float(said)
        if is_killed:
            process.kill()
    status = process.returncode
    if not said or status != (-signal.SIGKILL if is_killed else 0):
        raise SystemExit(f"{_PROGRAM.name} {verb} {store} ended with {status}; what it said: above")
