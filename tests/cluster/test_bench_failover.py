"""bin/bench failover: its rounds on real processes end with zeros, and it sees what is wrong."""

import importlib.util
import json
import subprocess
import sys
from types import ModuleType

import pytest

from tests.support.repository import ROOT
from tests.support.scale import scaled


@pytest.mark.cluster
@pytest.mark.timeout(scaled(180, 7200))
@pytest.mark.parametrize(
    ("mode", "rounds"), [("async", scaled(7, 1000)), ("sync", scaled(3, 1000))]
)
def test_death_of_a_master_costs_no_message(mode: str, rounds: int) -> None:
    command = [sys.executable, "bench/failover.py", "--rounds", str(rounds), "--mode", mode]
    done = subprocess.run(
        [*command, "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=scaled(170, 7000),
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["rounds"] == rounds
    assert [result[kind] for kind in ("lost", "doubled", "out_of_order")] == [0, 0, 0]
    assert set(result["consumer"].values()) == {0}
    assert result["acknowledged"] > 0
    assert set(result["first_send_ms"]) == {"median", "p99", "max"}


@pytest.fixture(scope="module")
def ledger() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ledger", ROOT / "bench/failover/ledger.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # for its dataclasses
    spec.loader.exec_module(module)
    return module


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
    ledger: ModuleType,
    sequences: list[int],
    lost: list[int],
    doubled: list[int],
    out_of_order: list[int],
) -> None:
    seen = ledger.Seen()
    for sequence in sequences:
        seen.see(sequence)
    seen = ledger.seen_of(json.loads(json.dumps(seen.to_json())))
    assert seen.lost(range(4)) == lost
    assert (seen.doubled, seen.out_of_order) == (doubled, out_of_order)
