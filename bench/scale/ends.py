"""Producers and consumers, 1 to 64 of each as processes, at one broker; and the same at 1 to 4."""

import argparse
import time
from contextlib import AbstractContextManager
from pathlib import Path

from measuring import SIZES, WARM_UP_S, Figure, figure, memory_mib, settings, undisturbed
from programs import cpu_ns, descendants
from session import Flow, Line, Session, folder_of_run, running
from shmq_itself import Shmq

ENDS = (1, 4, 16, 64)
BROKERS = (1, 2, 3, 4)
ENDS_OF_BROKERS = 4
"""Producers, and consumers, of the second row."""
SPARE_SESSIONS = 8
RING_BYTES = 256 << 10
SIZE = SIZES["100B"]
MESSAGES = {"put": 400_000, "batch": 1_000_000}
"""Of one run, by all producers."""
CALLS = {"put": "single calls", "batch": "batches"}
QUIET_S = 10.0
BOUND = "processor time of producers, append thread, flusher and consumers on all cores"


def row_ends(options: argparse.Namespace) -> dict[str, Figure]:
    """By the number of producers, and as many consumers, one group, of one topic."""
    figures: dict[str, Figure] = {}
    for count in ENDS[:2] if options.quick else ENDS:
        with (
            settings(
                session_count=2 * count + SPARE_SESSIONS,
                session_count_max_per_uid=2 * count + SPARE_SESSIONS,
                ring_bytes=RING_BYTES,
            ),
            folder_of_run() as folder,
            _session(folder, 1) as session,
        ):
            line = session.line(producers=count, consumers=count)
            figures |= _flows(session, line, f"{count} producers and consumers", options)
    return figures


def row_brokers(options: argparse.Namespace) -> dict[str, Figure]:
    """By the number of masters: 4 producers and 4 consumers of a topic on all of them."""
    figures: dict[str, Figure] = {}
    for count in BROKERS[:2] if options.quick else BROKERS:
        label = f"{count} brokers"
        with folder_of_run() as folder, _session(folder, count) as session:
            figures[f"{label}, start"] = figure(
                [session.start_seconds], "s", "an interpreter each, on all cores"
            )
            time.sleep(WARM_UP_S)
            daemons = descendants()
            figures[f"{label}, memory of the daemons"] = figure(
                [sum(memory_mib(pid, "Private_Dirty") for pid in daemons)],
                "MiB",
                "an interpreter and its hot log each; the NameServer",
            )
            begin, used = time.perf_counter(), cpu_ns(daemons)
            time.sleep(QUIET_S / 10 if options.quick else QUIET_S)
            share = (cpu_ns(daemons) - used) / 1e7 / (time.perf_counter() - begin)
            figures[f"{label}, idle"] = figure([share], "% of a core", "timers of each")
            line = session.line(producers=ENDS_OF_BROKERS, consumers=ENDS_OF_BROKERS)
            figures |= _flows(session, line, label, options)
    return figures


def _session(folder: Path, brokers: int) -> AbstractContextManager[Session]:
    """A cluster in a folder, whose clients are those of bin/bench peers."""
    kind = type("Brokers", (Shmq,), {"BROKERS": brokers, "__module__": Shmq.__module__})
    return running(kind, folder, folder, list(_clients_path()))


def _clients_path() -> tuple[str, ...]:
    """Where clients find their modules."""
    bench = Path(__file__).resolve().parents[1]
    return tuple(str(bench / name) for name in ("peers", "e2e", "micro", ".."))


def _flows(
    session: Session, line: Line, label: str, options: argparse.Namespace
) -> dict[str, Figure]:
    """Until the last message is consumed and completed."""
    figures = {}
    for verb, calls in CALLS.items():
        count = MESSAGES[verb] // (10 if options.quick else 1)
        session.flow(line, verb, SIZE, count // 10)

        def measure(_run: int, verb: str = verb, count: int = count) -> Flow:
            return session.flow(line, verb, SIZE, count)

        flows, share = undisturbed(measure, options.runs)
        figures[f"{label}, {calls} of 100 B"] = figure(
            [flow.rate for flow in flows], "messages/s", BOUND, foreign_cpu_max=share
        )
        figures[f"{label}, {calls} of 100 B, processor time"] = figure(
            [flow.cpu_seconds * 1e6 / flow.count for flow in flows],
            "s/million",
            "the same",
            foreign_cpu_max=share,
        )
    return figures
