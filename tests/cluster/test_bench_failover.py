"""bin/bench failover: its rounds on real processes end with zeros, and it sees what is wrong."""

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from types import SimpleNamespace

import pytest

from tests.support.repository import ROOT
from tests.support.scale import scaled

ROUNDS = {
    "async kill": scaled(10, 1000),
    "sync kill": scaled(0, 1000),
    "async stop": scaled(1, 50),
    "sync any": scaled(8, 1000),
    "async slave": scaled(0, 200),
    "async both": scaled(2, 200),
    "sync both": scaled(1, 200),
    "async controller": scaled(4, 200),
    "sync controller": scaled(0, 200),
    "async lock": scaled(1, 100),
    "async upgrade": scaled(1, 100),
    "async wiped": scaled(1, 200),
    "sync wiped": scaled(2, 200),
    "async all-wiped": scaled(1, 100),
}
"""By mode and what happens; those of 0 are full runs' alone."""
CASES = [name for name, count in ROUNDS.items() if count]


@pytest.mark.cluster
@pytest.mark.timeout(scaled(180, 7200))
@pytest.mark.parametrize(("mode", "how"), [name.split() for name in CASES], ids=CASES)
def test_fault_under_load_costs_no_message(mode: str, how: str) -> None:
    rounds = ROUNDS[f"{mode} {how}"]
    command = [sys.executable, "bench/failover.py", "--rounds", str(rounds), "--mode", mode]
    done = subprocess.run(
        [*command, "--how", how, "--hung-ms", "2000", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=scaled(170, 7000),
        check=False,
    )
    print(done.stdout[-2000:])
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["rounds"] == rounds
    assert [result[kind] for kind in ("lost", "doubled", "out_of_order")] == [0, 0, 0]
    assert set(result["consumer"].values()) == {0}
    assert result["acknowledged"] > 0
    if (mode, how) == ("sync", "wiped"):  # its slave had more than the master's files
        assert result["taken_over"] > 0
    assert set(result["first_send_ms"]) == {"median", "p99", "max"}


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """What the bench counts with; its modules name each other as programs do."""
    folders = [str(ROOT / "bench" / name) for name in ("micro", "e2e", "failover")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*folders, *sys.path])
        names = ("ledger", "books", "faults")
        yield SimpleNamespace(**{name: import_module(name) for name in names})


@pytest.mark.parametrize(
    ("sequences", "lost", "doubled", "out_of_order"),
    [
        ([0, 1, 2, 3], [], [], []),
        ([0, 1, 3], [2], [], []),
        ([0, 1, 2], [3], [], []),
        ([0, 1, 1, 2, 3], [], [1], []),
        ([0, 2, 1, 3], [], [], [1]),
        ([0, 2, 1, 1, 3, 0], [], [1, 0], [1]),
        ([], [0, 1, 2, 3], [], []),
    ],
)
def test_ledger_names_what_is_lost_doubled_and_out_of_order(
    bench: SimpleNamespace,
    sequences: list[int],
    lost: list[int],
    doubled: list[int],
    out_of_order: list[int],
) -> None:
    seen = bench.ledger.Seen()
    for sequence in sequences:
        seen.see(sequence)
    seen = bench.ledger.seen_of(json.loads(json.dumps(seen.to_json())))
    assert seen.lost(range(4)) == lost
    assert (seen.doubled, seen.out_of_order) == (doubled, out_of_order)


def test_books_owe_what_memory_alone_had_only_where_it_was_confirmed(
    bench: SimpleNamespace,
) -> None:
    """Of six sends the fault comes during the fourth; the third and the fourth were in the memory
    that it took. The first was stored and is lost, the last is doubled: both are faults."""
    ledger, books, faults = bench.ledger, bench.books, bench.faults
    ok, stored = ledger.Outcome.SEND_OK, ledger.Outcome.STORED
    outcomes = [stored, ok, ok, stored, ok, ok]
    told = [[ledger.Told(at, 10 * at, 10 * at + 9, outcome) for at, outcome in enumerate(outcomes)]]
    struck = faults.Struck(34, 35, frozenset({(0, 2), (0, 3)}))
    rounds = [books.Round(struck, 1.0, True)]

    def count(how: str, sequences: list[int], *, is_sync: bool) -> list[int]:
        seen = ledger.Seen()
        for sequence in sequences:
            seen.see(sequence)
        made = books.Books(told, rounds, faults.FAULTS[how], is_sync=is_sync)
        problems: list[str] = []
        found = made.differences("stored", {0: seen}, problems)
        assert len(problems) == sum(number > 0 for number in found.values())
        return [found["lost"], found["doubled"], made.memory_gone({0: seen})]

    whole = [0, 1, 2, 3, 4, 5]
    assert count("wiped", whole, is_sync=True) == [0, 0, 0]
    assert count("wiped", [1, 4, 5, 5], is_sync=False) == [1, 1, 2]
    assert count("wiped", [0, 1, 4, 5], is_sync=True) == [1, 0, 1]
    assert count("all-wiped", [0, 1, 4, 5], is_sync=True) == [0, 0, 2]
    assert count("wiped", [0, 1, 2, 3, 3, 4, 5], is_sync=True) == [0, 0, 0]
    assert count("kill", [0, 1, 2, 3, 3, 4, 5], is_sync=True) == [0, 1, 0]
