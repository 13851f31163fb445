"""The generated pages of docs/reference are what their generators write today."""

from collections.abc import Callable
from dataclasses import fields

import pytest

from shmq import config
from shmq.metrics import METRICS, MetricKind
from shmq.tools.cli.page import cli_page
from shmq.tools.config_page import config_page
from shmq.tools.metrics_page import metrics_page
from tests.support.repository import ROOT


@pytest.mark.parametrize(
    ("name", "module", "make"),
    [
        ("configuration.md", "shmq.tools.config_page", config_page),
        ("cli.md", "shmq.tools.cli.page", cli_page),
        ("metrics.md", "shmq.tools.metrics_page", metrics_page),
    ],
)
def test_page_is_up_to_date(name: str, module: str, make: Callable[[], str]) -> None:
    page = ROOT / "docs" / "reference" / name
    assert page.read_text(encoding="utf-8") == make(), (
        f"run: python -m {module} > docs/reference/{name}"
    )


@pytest.mark.parametrize(
    "role",
    [config.StoreConfig, config.BrokerConfig, config.NamesrvConfig, config.ClusterConfig],
    ids=lambda role: role.__name__,
)
def test_every_setting_is_on_the_page(role: type) -> None:
    page = config_page()
    assert [spec.name for spec in fields(role) if f"\n| {spec.name} |" not in page] == []


def test_every_metric_is_on_the_page() -> None:
    page = metrics_page()
    assert [name for name in METRICS if f"\n| {name} |" not in page] == []


def test_metrics_are_named_as_prometheus_asks() -> None:
    for metric in METRICS.values():
        is_counter = metric.kind is MetricKind.COUNTER
        assert metric.name.endswith("_total") == is_counter, metric.name
        assert metric.name.startswith("shmq_"), metric.name
        assert not {"_ms", "_ns", "_percent", "_mb"} & {metric.name[-3:], metric.name[-8:]}


def test_every_verb_is_on_the_page() -> None:
    page = cli_page()
    for verb in ("dev", "pub", "sub", "topic create", "group reset", "shm clean", "fsck"):
        assert f"## `shmq {verb} " in page
