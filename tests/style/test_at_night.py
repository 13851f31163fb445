"""The page for the night has a row for each alert and for each status of a refused send."""

import re

from shmq.core import core
from tests.support.repository import ROOT

PAGE = (ROOT / "docs/operate/at-night.md").read_text("utf-8")


def test_each_alert_has_a_row() -> None:
    rules = (ROOT / "systemd/monitoring/shmq-alerts.yml").read_text("utf-8")
    alerts = re.findall(r"- alert: (\w+)", rules)
    rows = re.findall(r"^\| (Shmq\w+) \| .*`.+` ", PAGE, re.MULTILINE)
    assert rows == alerts


def test_each_status_has_a_row_with_what_it_means() -> None:
    rows = re.findall(r"^\| ([A-Z_]+) \| (.+) \|$", PAGE, re.MULTILINE)
    assert dict(rows) == {name: text for name, (_, text) in core.STATUS.items()}
