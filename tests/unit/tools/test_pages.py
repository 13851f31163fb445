"""The generated pages of docs/reference are what their generators write today."""

from collections.abc import Callable
from dataclasses import fields

import pytest

from shmq import config
from shmq.tools.cli.page import cli_page
from shmq.tools.config_page import config_page
from tests.support.repository import ROOT


@pytest.mark.parametrize(
    ("name", "module", "make"),
    [
        ("configuration.md", "shmq.tools.config_page", config_page),
        ("cli.md", "shmq.tools.cli.page", cli_page),
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


def test_every_verb_is_on_the_page() -> None:
    page = cli_page()
    for verb in ("dev", "pub", "sub", "topic create", "group reset", "shm clean", "fsck"):
        assert f"## `shmq {verb} " in page
