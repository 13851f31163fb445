"""The scheduler of the tests: each is run once, files stay together, what runs alone is alone."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.repository import ROOT
from tests.support.two_workers import ALONE, BESIDE_IN_CI, TwoWorkers, encodable, runs_alone

FILES = [f"tests/unit/test_{letter}.py" for letter in "abcdefgh"]
TESTS = [f"{file}::test_{number}" for file in FILES for number in range(len(file) % 7 + 1)]
LONELY = [f"{name}::test_more" if "::" not in name else name for name in ALONE]
JUDGED = [
    f"tests/{file}.py::test_{number}"
    for file in ("cluster/test_failover", "crash/test_succession", "systemd/test_services")
    for number in range(4)
]
"""Of files that have the machine to themselves in CI."""


class Worker:
    """As a worker of xdist: it begins a test when it knows the next one or that there is none."""

    def __init__(self, name: str) -> None:
        self.gateway = SimpleNamespace(id=name)
        self.shutting_down = False
        self.queue: deque[int | None] = deque()
        self.running: int | None = None

    def send_runtest_some(self, indices: Sequence[int]) -> None:
        assert not self.shutting_down, "what comes now is never done"
        self.queue += indices

    def shutdown(self) -> None:
        self.shutting_down = True
        self.queue.append(None)

    def begin(self) -> bool:
        if self.running is None and len(self.queue) >= 2 and self.queue[0] is not None:
            self.running = self.queue.popleft()
            return True
        return False

    @property
    def is_done(self) -> bool:
        return self.running is None and bool(self.queue) and self.queue[0] is None


class Run:
    """A whole run, its events in random order."""

    def __init__(
        self, tests: list[str], rng: random.Random, deaths: int = 0, judged: Sequence[str] = ()
    ) -> None:
        self.tests = tests
        self.judged = judged
        self.rng = rng
        self.deaths = deaths
        self.scheduler = TwoWorkers(2)
        self.workers: list[Worker] = []
        self.done: list[tuple[str, str]] = []
        """Test and worker."""
        self.died_in: list[str] = []
        for _ in range(2):
            self.join()
        for worker in self.workers:
            self.collected(worker)

    def is_alone(self, test: str) -> bool:
        return test in self.judged or test.startswith(tuple(ALONE))

    def join(self) -> Worker:
        worker = Worker(f"gw{len(self.done)}-{len(self.workers)}")
        self.workers.append(worker)
        self.scheduler.add_node(worker)  # type: ignore[arg-type]
        return worker

    def collected(self, worker: Worker) -> None:
        self.scheduler.add_node_collection(worker, self.tests)  # type: ignore[arg-type]
        if self.scheduler.collection_is_completed:
            self.scheduler.schedule()

    def step(self) -> None:
        worker = self.rng.choice(self.workers)
        known: Any = worker
        if worker.begin():
            assert worker.running is not None
            name = self.tests[worker.running]
            beside = [self.tests[w.running] for w in self.workers if w.running is not None]
            assert len(beside) == 1 or not any(map(self.is_alone, beside)), beside
            if self.deaths and self.rng.random() < 0.1:
                self.deaths -= 1
                self.workers.remove(worker)
                assert self.scheduler.remove_node(known) == name
                self.died_in.append(name)
                self.collected(self.join())
        elif worker.running is not None:
            index, worker.running = worker.running, None
            self.done.append((self.tests[index], worker.gateway.id))
            self.scheduler.mark_test_complete(known, index)
        elif worker.is_done:
            self.workers.remove(worker)
            assert self.scheduler.remove_node(known) is None
        if self.scheduler.tests_finished:
            for other in self.workers:
                other.shutdown()

    def to_the_end(self) -> None:
        for _ in range(100_000):
            if not self.workers:
                return
            self.step()
        raise AssertionError(f"it hangs: {len(self.done)} of {len(self.tests)} are done")


@pytest.mark.parametrize("tests", [TESTS + LONELY, LONELY + TESTS, TESTS, LONELY, TESTS[:1], []])
def test_each_test_is_run_once_and_those_of_alone_have_nothing_beside_them(
    tests: list[str], rng: random.Random
) -> None:
    for _ in range(50):
        run = Run(tests, rng)
        run.to_the_end()
        assert sorted(name for name, _ in run.done) == sorted(tests)
        assert not run.scheduler.has_pending
        of_files = {(name.partition("::")[0], worker) for name, worker in run.done}
        shared = Counter(file for file, _ in of_files if not file.startswith(tuple(ALONE)))
        assert set(shared.values()) <= {1}, "what a module shares was made twice"


@pytest.mark.parametrize("deaths", [0, 3])
def test_in_ci_what_computes_has_a_neighbour_and_nothing_else_has(
    deaths: int, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    tests = JUDGED[:6] + TESTS + LONELY + JUDGED[6:]
    for _ in range(50):
        run = Run(tests, rng, deaths, judged=JUDGED)
        run.to_the_end()
        assert sorted([name for name, _ in run.done] + run.died_in) == sorted(tests)
        if not deaths:
            assert len({worker for name, worker in run.done if name in JUDGED}) == 1
            assert len({worker for name, worker in run.done if name in TESTS}) == 2
    assert all(map(runs_alone, JUDGED + LONELY))
    monkeypatch.delenv("CI")
    assert not any(map(runs_alone, JUDGED))


def test_what_a_dead_worker_held_is_run_by_others(rng: random.Random) -> None:
    tests = TESTS + LONELY
    for deaths in range(1, 51):
        run = Run(tests, rng, deaths=deaths % 5)
        run.to_the_end()
        assert sorted([name for name, _ in run.done] + run.died_in) == sorted(tests)


def test_what_the_lists_name_exists() -> None:
    for name in ALONE:
        file, _, test = name.partition("::")
        assert f"def {test}" in (ROOT / file).read_text("utf-8")
    for place in BESIDE_IN_CI:
        assert (ROOT / place).exists()


def test_report_with_a_name_that_is_no_text_can_be_sent() -> None:
    report = {
        "sections": [("stderr", "no \udcff text")],
        "longrepr": {"größe": ["\udc80", 3, None]},
    }
    sent = encodable(report)
    assert sent == {
        "sections": [("stderr", "no \\udcff text")],
        "longrepr": {"größe": ["\\udc80", 3, None]},
    }
