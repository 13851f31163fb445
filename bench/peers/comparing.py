"""The program: which peers and rows, the rounds in which the peers take turns, what is said."""

import argparse
import importlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from backlog import row_backlog
from fetching import cache_folder, python_packages
from measuring import Foreign, machine
from outcome import Outcome
from peer import NotHad, Peer, PeerError
from rows import FLUSHED_ROWS, FULL, QUICK, ROWS, Life, Row, Scale
from session import folder_of_run, running

PEERS = {
    "shmq": "shmq_itself",
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
BACKLOG = "backlog"
"""A row that starts and ends servers itself."""


def main(description: str) -> int:
    parser = argparse.ArgumentParser(prog="bin/bench peers", description=description)
    how_much = parser.add_mutually_exclusive_group()
    how_much.add_argument("--quick", action="store_true", help="under 3 minutes; the default")
    how_much.add_argument("--full", action="store_true", help="all sizes, longer, 5 rounds")
    parser.add_argument("--only", default=",".join(PEERS), help=f"of {', '.join(PEERS)}")
    rows = [*ROWS, *FLUSHED_ROWS, BACKLOG]
    parser.add_argument("--rows", help=f"of {', '.join(rows)}; all, but {BACKLOG} only with --full")
    parser.add_argument("--rounds", type=int, help="in each of which every peer has a turn")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument(
        "--out", type=Path, help="write the JSON there, too; figures not taken are kept"
    )
    parser.add_argument("--table", type=Path, help="write the table into this Markdown file")
    options = parser.parse_args()
    scale = FULL if options.full else QUICK
    names = _chosen(parser, "peers", options.only, list(PEERS))
    usual = rows if options.full else rows[:-1]
    chosen = _chosen(parser, "rows", options.rows or ",".join(usual), rows)
    rounds = scale.rounds if options.rounds is None else options.rounds
    if rounds < 1:
        parser.error("--rounds: wanted 1 or more")
    outcome = Outcome(machine(), options.out)
    kinds = dict(_to_be_had(names, outcome))
    counts: dict[str, dict[str, int]] = {name: {} for name in kinds}
    took: dict[str, float] = {}
    begin = time.perf_counter()
    for number in range(rounds):
        first = number % max(1, len(kinds))  # nobody is always behind the same one
        for name in [*list(kinds)[first:], *list(kinds)[:first]]:
            turn = time.perf_counter()
            if number > 0 and turn - begin + took[name] > scale.budget_s:
                print(f"round {number + 1} of {rounds}: {name} left out, no time", file=sys.stderr)
                continue
            outcome.round = number + 1
            _live(kinds[name], chosen, scale, counts[name], outcome)
            took[name] = time.perf_counter() - turn
            print(f"round {number + 1} of {rounds}: {name} {took[name]:.1f} s", file=sys.stderr)
    outcome.show()
    if options.out:
        outcome.write(options.out)
    if options.table:
        outcome.write_table(options.table)
    if options.json:
        print(json.dumps(outcome.result()))
    return 1 if outcome.has_failed else 0


def _chosen(parser: argparse.ArgumentParser, what: str, text: str, there: list[str]) -> list[str]:
    """In the order in which they are there."""
    names = text.split(",")
    unknown = sorted(set(names) - set(there))
    if unknown:
        parser.error(f"no such {what}: {', '.join(unknown)}; there are {', '.join(there)}")
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


def _live(
    kind: type[Peer], chosen: list[str], scale: Scale, counts: dict[str, int], outcome: Outcome
) -> None:
    """One turn of one peer: a life for the rows that want it as it is, one for those on disk."""
    for is_flushed, rows in ((False, ROWS), (True, FLUSHED_ROWS)):
        wanted: dict[str, Row] = {name: row for name, row in rows.items() if name in chosen}
        if not wanted or (is_flushed and not kind.IS_DURABLE):
            continue
        asked = "start of the server"
        try:
            with (
                folder_of_run() as folder,
                running(kind, cache_folder(), folder, sys.path, is_flushed=is_flushed) as session,
            ):
                outcome.introduce(kind.NAME, session.peer.version(), kind.SETTINGS)
                life = Life(session, scale, counts)
                for name, row in wanted.items():
                    asked = name
                    foreign = Foreign()
                    for value in row(life):  # what came before a failure is kept
                        outcome.add(kind.NAME, value, foreign.share())
        except PeerError as error:
            # What is left of a flow that failed would be in the next row.
            outcome.fail(kind.NAME, asked, str(error))
    if BACKLOG in chosen and kind.IS_DURABLE:
        foreign = Foreign()
        try:
            for value in row_backlog(kind, cache_folder(), sys.path, scale):
                outcome.add(kind.NAME, value, foreign.share())
        except PeerError as error:
            outcome.fail(kind.NAME, BACKLOG, str(error))
