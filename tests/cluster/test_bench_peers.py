"""bin/bench peers: shmq beside its peers; here beside the one that every machine has."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.repository import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def _bench(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "bench/peers.py", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, **environment},
    )


def test_same_work_through_shmq_and_a_peer(tmp_path: Path):
    out, docs = tmp_path / "figures.json", tmp_path / "table.md"
    docs.write_text("a\n<!-- bin/bench peers writes from here -->\nold\n<!-- to here -->\nz\n")
    done = _bench(
        *("--quick", "--rounds", 1, "--only", "shmq,mp.Queue", "--rows", "start,sync,fanout"),
        *("--json", "--out", out, "--table", docs),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result == json.loads(done.stdout.splitlines()[-1])
    assert result["missing"] == {}
    figures = result["figures"]
    assert figures.keys() == {
        "start to first message, shmq",
        "start to first message, mp.Queue",
        "send, each waited for, 100B, shmq",
        "batches 100B to 4 groups, shmq",
        "batches 100B to 4 groups, mp.Queue",
    }
    theirs = figures["batches 100B to 4 groups, mp.Queue"]
    ours = figures["batches 100B to 4 groups, shmq"]
    assert theirs["shmq_is_better_by"] == pytest.approx(ours["median"] / theirs["median"])
    slower = figures["start to first message, mp.Queue"]
    faster = figures["start to first message, shmq"]
    assert slower["shmq_is_better_by"] == pytest.approx(slower["median"] / faster["median"])
    for peer in ("shmq", "mp.Queue"):
        assert all(text in done.stdout for text in result["peers"][peer]["settings"].values())
    before, *table, after = docs.read_text().splitlines()
    assert (before, after) == ("a", "z")
    assert "old" not in table
    assert sum("| s |" in line or "| messages/s |" in line for line in table) == 3


def test_what_cannot_be_had_is_named(tmp_path: Path):
    done = _bench(
        *("--only", "redis,zeromq", "--rounds", 1, "--json"),
        XDG_CACHE_HOME=str(tmp_path),
        PIP_NO_INDEX="1",
    )
    assert done.returncode == 1, done.stderr
    assert "redis: left out: " in done.stdout
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["missing"].keys() == {"redis", "zeromq"}
    assert result["figures"] == {}
    assert [path for path in tmp_path.glob("shmq/peers/*") if path.is_dir()] == []


@pytest.mark.parametrize("option", ["rows", "only", "sizes"])
def test_unknown_row_peer_or_size_is_named(option: str):
    done = _bench(f"--{option}", "nothing")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "nothing; there are " in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--out", "/proc/version/figures.json"), "--out /proc/version/figures.json: "),
        (("--out", "README.md"), "--out README.md: "),
        (("--table", "README.md"), "no lines <!-- bin/bench peers writes from here -->"),
        (("--rounds", 0), "--rounds 0: wanted 1 or more"),
        (("--patience", 0), "--patience 0.0: wanted more than 0"),
    ],
)
def test_what_cannot_come_about_is_said_before_anything_is_measured(
    arguments: tuple[object, ...], said: str
):
    done = _bench("--only", "multiprocessing.Queue", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert said in line


def test_what_was_measured_before_ctrl_c_is_written(tmp_path: Path):
    out = tmp_path / "new" / "figures.json"
    with subprocess.Popen(
        [
            *(sys.executable, "bench/peers.py", "--rounds", "1000", "--only", "mp.Queue"),
            *("--full", "--rows", "start", "--json", "--out", out),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as bench:
        assert bench.stderr is not None
        assert bench.stderr.readline().startswith("round 1 of 1000: mp.Queue")
        os.killpg(bench.pid, signal.SIGINT)  # as a terminal does
        said, _ = bench.communicate(timeout=60)  # until all that it started has ended, too
    assert bench.returncode == 130
    result = json.loads(out.read_text())
    assert result == json.loads(said.splitlines()[-1])
    (figure,) = result["figures"].values()
    assert figure["median"] > 0


_SPOILED = """
import multiprocessing.queues as queues
put, get, number, before = queues.Queue.put, queues.Queue.get, 0, None
def lossy(self, body):
    global number
    number += 1
    if number != 3:
        put(self, body)
def doubling(self, body):
    global number, before
    number += 1
    put(self, before if number % 10 == 3 else body)
    before = body
def unfair(self, body):
    global number
    number += 1
    for _ in range({5: 2, 6: 0}.get(number, 1)):
        put(self, body)
def other(self, **keywords):
    return b"x" * len(get(self, **keywords))
def longer(self, **keywords):
    return get(self, **keywords) + b"x"
def same(self, **keywords):
    global before
    body = get(self, **keywords)
    before = before or body
    return before
"""


@pytest.mark.parametrize(
    ("spoiled", "row", "reason"),
    [
        ("put = lossy", "fanout", "15 of 16 came, and no more for 2 s"),
        ("put = unfair", "fanout", "group 1 of 4 got 5 messages of 4"),
        ("get = other", "fanout", "group 1 of 4 got messages with other bytes than were sent"),
        ("get = longer", "fanout", "group 1 of 4 got messages with other bytes than were sent"),
        ("put = doubling", "latency", "that were sent are not there"),
        ("get = same", "latency", "that were sent are not there"),
    ],
)
def test_messages_that_are_not_what_was_sent_fail_the_run(
    tmp_path: Path, spoiled: str, row: str, reason: str
):
    (tmp_path / "sitecustomize.py").write_text(f"{_SPOILED}queues.Queue.{spoiled}\n")
    done = _bench(
        *("--quick", "--rounds", 1, "--only", "mp.Queue", "--rows", row, "--json"),
        *("--patience", 2),
        PYTHONPATH=str(tmp_path),
    )
    assert done.returncode == 1
    (failed,) = json.loads(done.stdout.splitlines()[-1])["failed"]
    assert (failed["peer"], failed["row"]) == ("mp.Queue", row)
    assert reason in failed["reason"]


def _module(monkeypatch: pytest.MonkeyPatch, name: str) -> Any:
    """One of bench/peers."""
    for folder in ("e2e", "micro", "peers"):
        monkeypatch.syspath_prepend(str(ROOT / "bench" / folder))
    return importlib.import_module(name)


def test_messages_that_were_due_while_a_send_hung_are_as_old_as_that(monkeypatch):
    peer = _module(monkeypatch, "peer")
    interval_ns, count, hung_at = 1_000_000, 200, 50
    hung_ns = 100 * interval_ns
    ages: list[int] = []

    class Hanging(peer.Producer):
        def put(self, body):
            if len(ages) == hung_at:
                time.sleep(hung_ns / 1e9)
            ages.append(time.monotonic_ns() - peer.STAMP.unpack_from(body)[0])

    said = Hanging().work(verb="pace", size=100, count=count, interval_ns=interval_ns)
    assert len(ages) == count
    # What was due meanwhile waited for the rest of it, whether or not somebody sent it by then.
    assert all(
        ages[hung_at + number] >= hung_ns - (number + 1) * interval_ns for number in range(100)
    )
    assert sum(ages) >= sum(range(100)) * interval_ns
    # Nor was it the pacer that held them up.
    assert len(said["late_ns"]) <= count - 99


def test_a_pacer_hands_over_in_time_though_sleeps_end_late(monkeypatch):
    peer = _module(monkeypatch, "peer")
    late_s, sleep = 250e-6, time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(seconds + late_s))
    ages: list[int] = []

    class Quick(peer.Producer):
        def put(self, body):
            ages.append(time.monotonic_ns() - peer.STAMP.unpack_from(body)[0])

    said = Quick().work(verb="pace", size=100, count=100, interval_ns=2_000_000)
    # Beside other work it may be late now and then, but not by the sleep.
    assert sorted(ages)[10] < 100_000
    assert sorted(said["late_ns"])[10] <= sorted(ages)[10]
    assert 0 < said["pacer_cpu_ns"] < said["end_ns"] - said["begin_ns"]


def test_latencies_say_what_of_them_is_the_pacers_and_what_they_cost():
    done = _bench(*("--quick", "--rounds", 1, "--only", "mp.Queue", "--rows", "latency", "--json"))
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])["figures"]
    for rate in ("1,000/s", "10,000/s", "half its maximum"):
        assert figures[f"processor time, latency {rate}, mp.Queue"]["unit"] == "s/million"
        known = figures[f"latency {rate} p99, mp.Queue"]
        assert 0 <= known["pacer_late_p50_us"] <= known["pacer_late_p99_us"]
        assert known["pacer_late_p50_us"] < figures[f"latency {rate} p50, mp.Queue"]["median"]
        assert 0 < known["pacer_waited_for"] <= 1
        assert known["pacer_s_per_million"] > 0


@pytest.mark.parametrize("warm_up_s", [0.0, 1.0])
def test_a_peer_that_wants_it_is_paced_before_its_latency_is_taken(
    monkeypatch, tmp_path: Path, warm_up_s: float
):
    kind = _module(monkeypatch, "multiprocessing_queue").PEER
    monkeypatch.setattr(kind, "WARM_UP_S", warm_up_s)
    rows, session = (_module(monkeypatch, name) for name in ("rows", "session"))
    paced: list[int] = []
    flow = session.Session.flow

    def seen(self, line, verb, size, count, **order):
        paced.extend([count] if verb == "pace" else [])
        return flow(self, line, verb, size, count, **order)

    monkeypatch.setattr(session.Session, "flow", seen)
    with session.running(kind, tmp_path, tmp_path, sys.path) as living:
        values = list(rows.row_latency(rows.Life(living, rows.QUICK, {})))
    assert len(values) == 3 * 4
    assert len(paced) == 3 if warm_up_s == 0 else len(paced) >= 3 + 3


def test_one_size_can_be_had_alone_and_in_batches():
    done = _bench(
        *("--quick", "--rounds", 1, "--only", "mp.Queue", "--rows", "throughput"),
        *("--sizes", "1KiB", "--json"),
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])["figures"]
    assert {name for name in figures if not name.startswith("processor time")} == {
        "single 1KiB 1:1, mp.Queue",
        "batches 1KiB 1:1, mp.Queue",
    }


def _figure(peer: str, values: list[float], **more: object) -> dict[str, object]:
    return {
        "median": values[len(values) // 2],
        "min": min(values),
        "max": max(values),
        "runs": len(values),
        "unit": "us",
        "row": "a",
        "peer": peer,
        "is_more_better": False,
        "by_round": {str(number): value for number, value in enumerate(values)},
        **more,
    }


_PLACE = "<!-- bin/bench peers writes from here -->\n<!-- to here -->\n"


def test_the_table_has_the_spread_of_several_runs(monkeypatch, tmp_path: Path):
    figures = {
        "a, shmq": _figure("shmq", [1.0, 2.0, 3.0], taken="now"),
        "a, other": _figure("other", [10.0, 10.0, 60.0], taken="now"),
        "a, old": _figure("old", [6.0, 7.0, 8.0], taken="then"),
        "a, once": _figure("once", [4.0], taken="then"),
    }
    earlier = {"peers": {name: {} for name in ("shmq", "other", "old", "once")}, "figures": figures}
    outcome = _module(monkeypatch, "outcome").Outcome({}, earlier)
    docs = tmp_path / "table.md"
    docs.write_text(_PLACE)
    outcome.write_table(docs)
    assert "| a | us | 2 (1–3) | 10 (10×, 5–20) | 7 (6–8) | 4 |" in docs.read_text()


def test_a_table_is_not_written_where_figures_of_it_would_be_lost(tmp_path: Path):
    docs = tmp_path / "table.md"
    begin, end = _PLACE.splitlines()
    text = f"{begin}\n| | unit | shmq | redis |\n|---|---|---|---|\n| a | us | 2 | |\n{end}\n"
    docs.write_text(text)
    start = ("--quick", "--rounds", 1, "--only", "mp.Queue", "--rows", "start", "--table", docs)
    done = _bench(*start)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "1 of its figures would be lost, as 'a, shmq': give the --out that has them" in line
    assert docs.read_text() == text
    out = tmp_path / "figures.json"
    earlier = {"bench": "peers", "machine": {}, "peers": {"shmq": {}}}
    failed = [
        {"peer": "shmq", "row": "latency", "reason": "it did"},
        {"peer": "mp.Queue", "row": "start", "reason": "it did, too"},
    ]
    figures = {"a, shmq": _figure("shmq", [2.0], taken="then", bound="")}
    out.write_text(json.dumps({**earlier, "figures": figures, "failed": failed}))
    done = _bench(*start, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "| a | us | 2 |  |" in docs.read_text()
    assert "| start to first message | s |  | " in docs.read_text()
    assert json.loads(out.read_text())["failed"] == failed[:1]


def test_no_table_is_written_where_nothing_could_be_measured(tmp_path: Path):
    docs = tmp_path / "table.md"
    docs.write_text(_PLACE)
    done = _bench(
        *("--quick", "--only", "redis", "--rows", "start", "--table", docs),
        XDG_CACHE_HOME=str(tmp_path),
        PIP_NO_INDEX="1",
    )
    assert done.returncode == 1
    assert docs.read_text() == _PLACE


def test_a_ratio_to_what_another_run_took_is_dropped(monkeypatch, tmp_path: Path):
    module = _module(monkeypatch, "outcome")
    earlier = {
        "peers": {"shmq": {}, "other": {}},
        "figures": {
            "a, shmq": _figure("shmq", [2.0], taken="now", shmq_is_better_by=1.0),
            "a, other": _figure("other", [2.0], taken="then", shmq_is_better_by=7.0),
        },
    }
    outcome = module.Outcome({}, earlier)
    assert "shmq_is_better_by" not in outcome.result()["figures"]["a, other"]
    docs = tmp_path / "table.md"
    docs.write_text(_PLACE)
    outcome.write_table(docs)
    assert "| a | us | 2 | 2 |" in docs.read_text()
