"""bin/bench measures: its programs run, and give a figure for each of their rows."""

import json
import os
import signal
import subprocess
import sys
import time
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
    done = _bench(verb, "--rows", "nothing")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "no such rows: nothing; there are " in line


@pytest.mark.parametrize("verb", ["micro", "e2e", "index", "scale", "peers", "failover"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "Expecting property name"),
        ("[]", '"bench" in it is null, not "VERB"'),
        ('{"figures": {}}', '"bench" in it is null, not "VERB"'),
        ('{"bench": "instructions", "figures": {}}', '"bench" in it is "instructions", not "VERB"'),
        ('{"bench": "VERB"}', 'no object "figures" in it'),
        ('{"bench": "VERB", "figures": []}', 'no object "figures" in it'),
        ('{"bench": "VERB", "figures": {"a": 1}}', 'of "a" in it is missing or of another type'),
        ('{"bench": "VERB", "figures": {"a": {}}}', 'of "a" in it is missing or of another type'),
    ],
)
def test_file_of_another_kind_is_refused_before_anything_is_measured(
    tmp_path: Path, verb: str, text: str, said: str
):
    out = tmp_path / "figures.json"
    out.write_text(text.replace("VERB", verb))
    done = _bench(verb, "--out", str(out))
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert said.replace("VERB", verb) in line
    assert out.read_text() == text.replace("VERB", verb)


def test_out_is_named_from_the_callers_folder(tmp_path: Path):
    (tmp_path / "figures.json").write_text("{")
    done = subprocess.run(
        [ROOT / "bin/bench", "micro", "--rows", "base", "--out", "figures.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 2
    assert "--out figures.json: want a file to write, or that of an earlier run" in done.stderr


def test_peers_that_are_no_object_are_refused(tmp_path: Path):
    out = tmp_path / "figures.json"
    out.write_text('{"bench": "peers", "figures": {}, "peers": []}')
    done = _bench("peers", "--out", str(out))
    assert (done.returncode, done.stdout) == (2, "")
    assert 'no object "peers" in it' in done.stderr


@pytest.mark.parametrize("verb", ["micro", "failover", "instructions"])
def test_out_that_cannot_be_written_is_said_before_anything_is_measured(verb: str):
    done = _bench(verb, "--out", "/proc/version/figures.json")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "--out /proc/version/figures.json: want a file to write" in line


@pytest.mark.parametrize("path", sorted((ROOT / "bench/results").iterdir()), ids=lambda p: p.stem)
def test_results_say_what_took_them(path: Path):
    verb = path.stem.rpartition("-")[2]
    assert json.loads(path.read_text())["bench"] == verb
    assert (ROOT / "bench" / f"{verb}.py").exists()


def _bench(verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, f"bench/{verb}.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_row_that_fails_is_named_and_its_figures_hold(tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT / 'bench/micro')!r})\n"
        "from measuring import figure\n"
        "from reporting import RowFailed, run\n"
        "def bad(_options):\n"
        "    raise RowFailed('no send was accepted', {'taken': figure([1.0], 's', '')})\n"
        "def good(_options):\n"
        "    return {'behind it': figure([2.0], 's', '')}\n"
        "sys.exit(run('rows', '', {'bad': bad, 'good': good}))\n"
    )
    done = subprocess.run(
        [sys.executable, program, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "bin/bench rows: row bad failed: no send was accepted\n"
    assert json.loads(done.stdout.splitlines()[-1])["figures"].keys() == {"taken", "behind it"}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_was_measured_before_an_interruption_is_written(
    tmp_path: Path, number: int, status: int
):
    arguments = ("--quick", "--runs", "1", "--rows", "base,latency", "--out", "new/figures.json")
    with _started(tmp_path, "micro", *arguments) as bench:
        assert bench.stdout is not None
        while "disk 256MiB in order" not in bench.stdout.readline():
            pass
        time.sleep(3)  # the next row's programs are there, too
        for _ in range(2):  # who does not wait
            os.killpg(bench.pid, number)
            time.sleep(0.1)
        _, said = bench.communicate(timeout=60)
    assert bench.returncode == status
    assert said == "interrupted in row latency: what was measured before it\n"
    figures = json.loads((tmp_path / "new/figures.json").read_text())["figures"]
    assert "zlib.crc32 64MiB" in figures


def test_interrupted_failover_counts_the_rounds_there_were(tmp_path: Path):
    arguments = ("--rounds", "1000", "--out", "figures.json")
    with _started(tmp_path, "failover", *arguments) as bench:
        assert bench.stdout is not None
        while not bench.stdout.readline().startswith("round 1: "):
            pass
        os.killpg(bench.pid, signal.SIGINT)
        _, said = bench.communicate(timeout=60)
    assert bench.returncode == 130
    (line,) = said.splitlines()
    assert line.startswith("interrupted: ")
    result = json.loads((tmp_path / "figures.json").read_text())["figures"]["async kill"]
    assert 1 <= result["rounds"] < 1000
    assert (result["lost"], result["problems"]) == (0, [])


def _started(folder: Path, verb: str, *arguments: str) -> subprocess.Popen[str]:
    """In a folder, and a process group of its own, as a shell starts it."""
    return subprocess.Popen(
        [sys.executable, ROOT / f"bench/{verb}.py", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
