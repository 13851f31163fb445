"""What a message costs the core, in instructions: a change that makes it worse shows here."""

import copy
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.repository import ROOT
from tests.support.require import require_program

PROGRAM = ROOT / "bench/instructions.py"


def test_no_stage_takes_more_instructions_than_was_written_down():
    require_program("valgrind", "valgrind")
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--check", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, (
        f"{done.stderr}If it is worth it, write it down: bin/bench instructions"
    )
    counted = json.loads(done.stdout.splitlines()[-1])
    assert counted["figures"].keys() == {
        "send",
        "send_batch",
        "append",
        "append_batch",
        "complete",
        "receive",
        "receive_batch",
    }


def test_stage_that_grew_is_named_with_both_counts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [*sys.path])  # it puts its neighbours' folder there
    spec = importlib.util.spec_from_file_location("bench_instructions", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    before = json.loads(bench.RESULTS.read_text(encoding="utf-8"))
    now = copy.deepcopy(before)
    assert bench.grown(now, before) == []
    now["figures"]["append"]["instructions"] *= 1.1
    now["figures"]["send"]["instructions"] *= 1.01
    (line,) = bench.grown(now, before)
    assert line.startswith("append: ")
    assert "(+10.0%, allowed 2%)" in line
    now["machine"]["compiler"] = "another"
    assert bench.grown(now, before) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file or directory"),
        ("{", "Expecting property name"),
        ('{"figures": {}}', '"bench" in it is null, not "instructions"'),
        ('{"bench": "instructions"}', 'no object "figures" in it'),
        ('{"bench": "instructions", "figures": {"send": {}}}', '"instructions" of "send" in it is'),
        ('{"bench": "instructions", "figures": {}}', "no figures append, append_batch, complete, "),
    ],
)
def test_file_that_counts_cannot_be_compared_with_is_not_growth(
    tmp_path: Path, text: str | None, said: str
):
    written = tmp_path / "counts.json"
    if text is not None:
        written.write_text(text)
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--check", "--out", str(written)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert said in line
