"""What bin/bench makes of what it measured: percentiles, memory, how a figure grows."""

import os
import sys
from collections.abc import Iterator
from importlib import import_module
from types import SimpleNamespace

import pytest

from tests.support.repository import ROOT


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """Its modules, which name each other as programs do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys, "path", [*(str(ROOT / "bench" / n) for n in ("micro", "scale")), *sys.path]
        )
        yield SimpleNamespace(**{name: import_module(name) for name in ("measuring", "fits")})


@pytest.mark.parametrize(
    ("values", "part", "wanted"),
    [
        ([7], 0.5, 7),
        ([7], 0.999, 7),
        ([1, 2], 0.5, 1),
        ([1, 2, 3], 0.5, 2),
        (range(1, 101), 0.5, 50),
        (range(1, 101), 0.99, 99),
        (range(1, 101), 0.999, 100),
        (range(1, 2001), 0.999, 1998),
        (range(1, 101), 1.0, 100),
        (range(1, 101), 0.0, 1),
    ],
)
def test_percentile_is_the_least_value_that_so_many_do_not_exceed(
    bench: SimpleNamespace, values: range, part: float, wanted: int
):
    assert bench.measuring.percentile(values, part) == wanted
    assert sum(value <= wanted for value in values) >= part * len(values)


def test_percentile_of_nothing_is_no_figure(bench: SimpleNamespace):
    with pytest.raises(IndexError):
        bench.measuring.percentile([], 0.5)


def test_memory_is_the_sum_of_what_was_asked_for(bench: SimpleNamespace):
    anonymous, file, both = (
        bench.measuring.memory_mib(os.getpid(), *kinds)
        for kinds in (("RssAnon",), ("RssFile",), ("RssAnon", "RssFile"))
    )
    assert min(anonymous, file) > 0
    assert both == pytest.approx(anonymous + file, rel=0.1)
    assert bench.measuring.memory_mib(os.getpid(), "Private_Dirty") > 0


def _sized(what: str, medians: dict[int, float]) -> dict[str, dict[str, float]]:
    return {f"{size} {what}": {"median": median} for size, median in medians.items()}


def test_linear_figure_has_its_line_and_exponent_one(bench: SimpleNamespace):
    figures = _sized("topics, memory", {1_000: 2.0, 100: 0.2, 10_000: 20.0})
    found = bench.fits.fits(figures)["topics, memory"]
    assert found["constant"] == pytest.approx(0, abs=1e-9)
    assert found["per_thousand"] == pytest.approx(2)
    assert found["exponent"] == pytest.approx(1)
    assert found["sizes"] == [100, 1_000, 10_000]


def test_exponent_is_that_of_the_last_step(bench: SimpleNamespace):
    figures = _sized("queues, each", {1: 9.0, 10: 5.0, 100: 500.0, 1_000: 500.0})
    assert bench.fits.fits(figures)["queues, each"]["exponent"] == 0
    figures |= _sized("queues, each", {10_000: 50_000.0})
    assert bench.fits.fits(figures)["queues, each"]["exponent"] == pytest.approx(2)


def test_constant_is_what_is_there_without_any(bench: SimpleNamespace):
    found = bench.fits.fits(_sized("clients, start", {10: 5.1, 100: 6.0, 1_000: 15.0}))
    assert found["clients, start"]["constant"] == pytest.approx(5)
    assert found["clients, start"]["per_thousand"] == pytest.approx(10)


def test_what_was_not_there_has_no_exponent(bench: SimpleNamespace):
    found = bench.fits.fits(_sized("clients, idle", {10: 0.0, 100: 0.4}))
    assert found["clients, idle"]["exponent"] is None


def test_figure_of_one_size_or_none_has_no_fit(bench: SimpleNamespace):
    figures = _sized("MiB of log, cold read", {1: 3.0}) | {"puts without scrapes": {"median": 1.0}}
    assert bench.fits.fits(figures) == {}
