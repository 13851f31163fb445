"""The program: which peers and rows, the rounds in which the peers take turns, what is said."""

import argparse
import dataclasses
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from backlog import row_backlog
from fetching import cache_folder, python_packages
from measuring import SIZES, Foreign, machine
from outcome import NoTablePlace, Outcome, check_table
from peer import NotHad, Peer, PeerError
from reporting import FIGURE, Interruption, Shape, earlier
from rows import FLUSHED_ROWS, FULL, QUICK, ROWS, Life, Row, Scale
from session import PATIENCE_S, folder_of_run, running

PEERS = {
    "shmq": "shmq_itself",
    "shmq-busy-spin": "shmq_busy_spin",
    "redis": "redis_streams",
    "nats": "nats_jetstream",
    "zeromq": "zeromq",
    "iceoryx2": "iceoryx",
    "mp.Queue": "multiprocessing_queue",
    "faster-fifo": "fifo",
    "rocketmq-java": "rocketmq_java",
    "rocketmq-python": "rocketmq_python",
}
"""By name: the file beside this one."""
SPINNING = "shmq-busy-spin"
"""Unless it is asked for, only where each of the three that spin has a core."""
SPINNING_CORES = 3
PACKAGES = {"pyzmq": "zeromq", "multiprocessing.Queue": "mp.Queue"}
"""What else --only takes for a peer."""
_SERVER = "start of the server"
"""What fails, as a row, where there is none yet."""
BACKLOG = "backlog"
"""A row that starts and ends servers itself."""
PEER_FIGURE: Shape = {
    **FIGURE,
    "peer": str,
    "row": str,
    "taken": str,
    "by_round": dict,
    "is_more_better": bool,
}


def main(description: str) -> int:
    parser = argparse.ArgumentParser(prog="bin/bench peers", description=description)
    how_much = parser.add_mutually_exclusive_group()
    how_much.add_argument("--quick", action="store_true", help="under 3 minutes; the default")
    how_much.add_argument("--full", action="store_true", help="all sizes, longer, 5 rounds")
    parser.add_argument(
        "--only",
        help=f"of {', '.join(PEERS)}; all, but {SPINNING} only with {SPINNING_CORES} or more cores",
    )
    rows = [*ROWS, *FLUSHED_ROWS, BACKLOG]
    parser.add_argument("--rows", help=f"of {', '.join(rows)}; all, but {BACKLOG} only with --full")
    parser.add_argument(
        "--sizes",
        help=f"of {', '.join(SIZES)}, for row throughput; single calls and batches of each",
    )
    parser.add_argument("--rounds", type=int, help="in each of which every peer has a turn")
    parser.add_argument(
        "--patience",
        type=float,
        default=PATIENCE_S,
        metavar="SECONDS",
        help=f"a flow in which nothing comes for so long has failed; {PATIENCE_S:g}",
    )
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument(
        "--out", type=Path, help="write the JSON there, too; figures not taken are kept"
    )
    parser.add_argument("--table", type=Path, help="write the table into this Markdown file")
    options = parser.parse_args()
    scale = FULL if options.full else QUICK
    can_spin = len(os.sched_getaffinity(0)) >= SPINNING_CORES
    all_peers = [name for name in PEERS if name != SPINNING or can_spin]
    asked = ",".join(all_peers) if options.only is None else options.only
    asked = ",".join(PACKAGES.get(name, name) for name in asked.split(","))
    names = _chosen(parser, "peers", asked, list(PEERS))
    usual = rows if options.full else rows[:-1]
    asked = ",".join(usual) if options.rows is None else options.rows
    chosen = _chosen(parser, "rows", asked, rows)
    if options.sizes is not None:
        sizes = _chosen(parser, "sizes", options.sizes, list(SIZES))
        scale = dataclasses.replace(scale, sizes=tuple(sizes), has_large_batches=True)
    rounds = scale.rounds if options.rounds is None else options.rounds
    if rounds < 1:
        parser.exit(2, f"{parser.prog}: --rounds {rounds}: wanted 1 or more\n")
    if not options.patience > 0:
        parser.exit(2, f"{parser.prog}: --patience {options.patience}: wanted more than 0\n")
    kept = earlier(parser, options.out, PEER_FIGURE, more=("peers",))
    outcome = Outcome(machine(), kept)
    if options.table:
        try:
            check_table(options.table, kept)
        except NoTablePlace as reason:
            parser.exit(2, f"{parser.prog}: {reason}\n")
    interruption = Interruption()
    try:
        kinds = dict(_to_be_had(names, outcome))
        turns = {
            name: Turns(kind, chosen, scale, outcome, options.patience)
            for name, kind in kinds.items()
        }
        _take_turns(turns, rounds, scale, outcome)
    except KeyboardInterrupt:
        print("interrupted: what was measured so far", file=sys.stderr)
    outcome.show()
    if options.out:
        outcome.write(options.out)
    if options.table and not outcome.is_empty:
        outcome.write_table(options.table)
    if options.json:
        print(json.dumps(outcome.result()))
    return interruption.status or (1 if outcome.has_failed or outcome.is_empty else 0)


def _take_turns(turns: dict[str, "Turns"], rounds: int, scale: Scale, outcome: Outcome) -> None:
    """All rounds, in each of which every peer has one."""
    took: dict[str, float] = {}
    begin = time.perf_counter()
    for number in range(rounds):
        first = number % max(1, len(turns))  # nobody is always behind the same one
        for name in [*list(turns)[first:], *list(turns)[:first]]:
            turn = time.perf_counter()
            if number > 0 and turn - begin + took[name] > scale.budget_s:
                print(f"round {number + 1} of {rounds}: {name} left out, no time", file=sys.stderr)
                continue
            outcome.round = number + 1
            parts = turns[name].take(deadline=min(begin + scale.budget_s, turn + scale.turn_s))
            took[name] = time.perf_counter() - turn
            said = ", ".join(f"{part} {seconds:.1f}" for part, seconds in parts.items())
            print(
                f"round {number + 1} of {rounds}: {name} {took[name]:.1f} s ({said})",
                file=sys.stderr,
            )


def _chosen(parser: argparse.ArgumentParser, what: str, text: str, there: list[str]) -> list[str]:
    """In the order in which they are there."""
    names = text.split(",")
    unknown = sorted(set(names) - set(there))
    if unknown:
        said = f"no such {what}: {', '.join(unknown)}; there are {', '.join(there)}"
        parser.exit(2, f"{parser.prog}: {said}\n")
    return [name for name in there if name in names]


def _to_be_had(names: list[str], outcome: Outcome) -> Iterator[tuple[str, type[Peer]]]:
    """Those whose packages and programs are here, or come."""
    for name in names:
        module = PEERS[name]
        try:
            packages = python_packages(module, cache_folder())
            if packages is not None:
                sys.path.append(str(packages))
            kind: type[Peer] = importlib.import_module(module).PEER
            kind.fetch(cache_folder())
        except NotHad as reason:
            outcome.miss(name, str(reason))
        else:
            yield name, kind


class Turns:
    """Of one peer."""

    def __init__(
        self,
        kind: type[Peer],
        chosen: list[str],
        scale: Scale,
        outcome: Outcome,
        patience_s: float,
    ) -> None:
        self._kind = kind
        self._chosen = chosen
        self._scale = scale
        self._outcome = outcome
        self._patience_s = patience_s
        self._counts: dict[str, int] = {}
        self._took: dict[str, float] = {}
        self._deadline = math.inf

    def take(self, *, deadline: float) -> dict[str, float]:
        """One turn: a life for the rows that want the peer as it is, one for those on disk.

        Args:
            deadline: of perf_counter(); a row that would begin after it is left out.

        Returns:
            What took how many seconds.
        """
        self._took = {}
        self._deadline = deadline
        self._live(ROWS, is_flushed=False)
        if self._kind.IS_DURABLE:
            self._live(FLUSHED_ROWS, is_flushed=True)
            if BACKLOG in self._chosen and self._has_time([BACKLOG]):
                self._drain_backlog()
        return self._took

    def _live(self, rows: dict[str, Row], *, is_flushed: bool) -> None:
        wanted = [name for name in rows if name in self._chosen]
        if not wanted or not self._has_time(wanted):
            return
        kind, outcome = self._kind, self._outcome
        begin = time.perf_counter()
        asked = _SERVER
        outcome.begin(kind.NAME, asked)
        try:
            with (
                folder_of_run() as folder,
                running(kind, cache_folder(), folder, sys.path, is_flushed=is_flushed) as session,
            ):
                session.patience_s = self._patience_s
                outcome.introduce(kind.NAME, session.peer.version(), kind.SETTINGS)
                life = Life(session, self._scale, self._counts)
                self._note("server", begin)
                while wanted and self._has_time(wanted):
                    asked = wanted.pop(0)
                    begin, foreign = time.perf_counter(), Foreign()
                    outcome.begin(kind.NAME, asked)
                    for value in rows[asked](life):  # what came before a failure is kept
                        outcome.add(kind.NAME, value, foreign.share())
                    self._note(asked, begin)
                begin = time.perf_counter()
            self._note("end", begin)
        except PeerError as error:
            # What is left of a flow that failed would be in the next row.
            outcome.fail(kind.NAME, asked, str(error))

    def _drain_backlog(self) -> None:
        begin, foreign = time.perf_counter(), Foreign()
        self._outcome.begin(self._kind.NAME, BACKLOG)
        try:
            for value in row_backlog(self._kind, cache_folder(), sys.path, self._scale):
                self._outcome.add(self._kind.NAME, value, foreign.share())
        except PeerError as error:
            self._outcome.fail(self._kind.NAME, BACKLOG, str(error))
        self._note(BACKLOG, begin)

    def _has_time(self, rows: list[str]) -> bool:
        if time.perf_counter() < self._deadline:
            return True
        print(f"{self._kind.NAME}: {', '.join(rows)} left out, no time", flush=True)
        return False

    def _note(self, what: str, begin: float) -> None:
        self._took[what] = self._took.get(what, 0.0) + time.perf_counter() - begin
