"""bin/bench measures: its programs run, and give a figure for each of their rows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.repository import ROOT
from tests.support.scale import is_full_run

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.mark.timeout(700 if is_full_run() else 120)
@pytest.mark.parametrize(
    ("verb", "rows", "wanted"),
    [
        ("micro", "standing", ["start to first message", "memory beside the log"]),
        (
            "e2e",
            "send_many,kill,reassign",
            [
                "send_many 100B 2 producers received",
                "SIGKILL to first accepted send",
                "SIGKILL to first message received",
                "re-assignment, 1 of 2 killed",
            ],
        ),
        (
            "index",
            "sending,looking",
            ["send with / without an index", "index disk a key", "lookup by id, p99"],
        ),
        (
            "scale",
            "topics,groups,bodies" + (",queues,ends,brokers,log" if is_full_run() else ""),
            [
                "16777216 B a message, received in place",
                "1000 topics, making them, each",
                "1000 topics, NameServer killed to all routes back",
                "1 groups of 10, divided again after a death",
            ],
        ),
    ],
)
def test_bench_measures(tmp_path: Path, verb: str, rows: str, wanted: list[str]):
    out = tmp_path / "figures.json"
    done = subprocess.run(
        [
            sys.executable,
            f"bench/{verb}.py",
            "--quick",
            *("--runs", "1", "--rows", rows, "--out", str(out)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600 if is_full_run() else 100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())["figures"]
    assert all(figures[label]["median"] > 0 for label in wanted), figures.keys()


@pytest.mark.parametrize("verb", ["micro", "e2e", "index", "scale"])
def test_unknown_row_is_named(verb: str):
    done = subprocess.run(
        [sys.executable, f"bench/{verb}.py", "--rows", "nothing"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "no such rows: nothing; there are " in line
