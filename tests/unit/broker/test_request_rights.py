"""Every request that a broker serves stands in the table of rights of its page."""

from __future__ import annotations

import re

from shmq.broker.broker import Broker
from shmq.broker.processors.table import processor_table
from shmq.config import BrokerConfig
from shmq.remoting.codes import RequestCode
from shmq.shm.mastership import Mastership
from tests.support.repository import ROOT


def test_every_request_has_its_right_on_the_page(tmp_path) -> None:
    page = (ROOT / "docs" / "reference" / "broker-requests.md").read_text("utf-8")
    table = page.split("\n## Rights\n")[1].split("\n## ")[0]
    with Mastership.take(tmp_path, timeout_ms=0) as mastership:
        config = BrokerConfig(store_path=tmp_path)
        broker = Broker(config, mastership=mastership, on_told=lambda **_: None)
        try:
            served = {RequestCode(code).name for code in processor_table(broker)}
        finally:
            broker.stop()  # its event loop
    rows = "\n".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| "))
    in_rows = re.findall(r"[A-Z][A-Z_]{3,}", rows)
    assert sorted(served - set(in_rows)) == [], "served, and the page says no right"
    assert sorted(set(in_rows) - served) == [], "on the page, and not served"
    assert len(in_rows) == len(set(in_rows)), "one row each"
