"""A real Prometheus on a loaded broker: our rules hold in it, promtool's series bring each alert,
and every query of the dashboard finds something. Alerts by their real causes: test_alerts.py."""

from __future__ import annotations

import json
import random
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shmq.metrics import METRICS, MetricKind
from tests.cluster.steady_load import SteadyLoad
from tests.support.broker_process import ROOT, BrokerClient
from tests.support.cluster import Cluster, wait_for
from tests.support.exporter import Exporter
from tests.support.prometheus import MONITORING, Prometheus, hastened, tools
from tests.support.slave import Pair

pytestmark = [pytest.mark.ci, pytest.mark.cluster]

NAMES = re.compile(r"\bshmq_\w+")


def promtool(*arguments: str) -> str:
    done = subprocess.run(
        [tools().promtool, *arguments],
        cwd=MONITORING,
        capture_output=True,
        text=True,
        timeout=100.0,  # it counts for 25 s on a quiet machine
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def series_names() -> set[str]:
    """Every name that an expression may ask for."""
    names = set(METRICS)
    for metric in METRICS.values():
        if metric.kind is MetricKind.HISTOGRAM:
            names |= {f"{metric.name}_{part}" for part in ("bucket", "sum", "count")}
    return names


def test_rules_and_scrape_config_are_right() -> None:
    assert "rules found" in promtool("check", "config", "prometheus.yml")


def test_each_alert_comes_by_its_series_and_goes_with_it() -> None:
    assert "SUCCESS" in promtool("test", "rules", "shmq-alerts.test.yml")
    alerts = re.findall(r"- alert: (\w+)", (MONITORING / "shmq-alerts.yml").read_text("utf-8"))
    tests = (MONITORING / "shmq-alerts.test.yml").read_text("utf-8")
    assert sorted(re.findall(r"- name: (\w+)", tests)) == sorted(alerts)
    for name in alerts:
        expr = f'ALERTS{{alertname="{name}", alertstate="firing"}}'
        asked = re.findall(rf"expr: '{re.escape(expr)}'\n +exp_samples:( \[\])?", tests)
        assert asked == [" []", "", " []"], name


def test_each_alert_is_in_the_documentation_as_it_is() -> None:
    page = (ROOT / "docs/operate/monitoring.md").read_text("utf-8")
    rules = (MONITORING / "shmq-alerts.yml").read_text("utf-8")
    for name, expr in re.findall(r"- alert: (\w+)\n +expr: '(.*)'", rules):
        assert f"\n| {name} | `{expr}`" in page, name


def test_rules_ask_for_metrics_that_there_are() -> None:
    for name in ("shmq-recording.yml", "shmq-alerts.yml"):
        asked = set()
        for line in (MONITORING / name).read_text("utf-8").splitlines():
            if line.lstrip().startswith("expr:"):
                asked |= set(NAMES.findall(re.sub(r"\w+:\w+:\w+", "", line)))
        assert asked - series_names() == set()


def test_hastened_rules_are_the_rules_but_for_their_times() -> None:
    rules = "  expr: 'rate(x[5m]) > 30 and y offset 10m'\n  for: 30s\n  text: in 10m\n"
    assert hastened(rules) == (
        "  expr: 'rate(x[5s]) > 30 and y offset 30s'\n  for: 1s\n  text: in 10m\n"
    )


class Scene:
    """A master with a slave, load on it, the exporter, and a Prometheus that scrapes it."""

    def __init__(self, pair: Pair, prometheus: Prometheus) -> None:
        self.pair = pair
        self.prometheus = prometheus


@pytest.fixture
def scene(tmp_path: Path, cluster_name: str, rng: random.Random) -> Iterator[Scene]:
    (tmp_path / "slave").mkdir()
    settings: dict[str, Any] = {"ha_max_time_slave_not_catchup_ms": "1000"}
    with Cluster(tmp_path, cluster_name, **settings) as cluster:
        pair = Pair(tmp_path, cluster)
        with (
            pair.slave,
            Exporter(cluster.runtime, "--queues") as exporter,
            Prometheus(tmp_path / "prometheus", rng, target=exporter.target) as prometheus,
            cluster.connect() as client,
        ):
            pair.slave.wait_running()
            pair.await_in_sync()
            with SteadyLoad(client):
                yield Scene(pair, prometheus)


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((MONITORING / "shmq-dashboard.json").read_text("utf-8"))
    return found


def dashboard_queries() -> list[tuple[str, str]]:
    """(panel, expression) of each query, with its variables and intervals filled in."""
    filled = []
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            expr = target["expr"].replace("$__rate_interval", "10s")
            filled.append((panel["title"], re.sub(r"\$(?:cluster|broker|topic|group)", ".+", expr)))
    return filled


def test_dashboard_is_whole() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    cells = {(x, y) for p in places for x in range(p["x"], p["x"] + p["w"])
             for y in range(p["y"], p["y"] + p["h"])}  # fmt: skip
    assert len(cells) == sum(p["w"] * p["h"] for p in places), "panels lie over each other"
    for title, expr in dashboard_queries():
        assert set(NAMES.findall(expr)) <= series_names(), title
        assert "$" not in expr, title


NO_PANEL = {
    "shmq_store_waits": "there while not writable, and then an alert is",
    "shmq_topics": "people make topics, and know",
    "shmq_queues": "the same",
    "shmq_topic_messages": "lag and rates say what matters of a topic",
    "shmq_wakeups_total": "for who tunes one broker",
    "shmq_append_sleeps_total": "the same",
    "shmq_log_appended_bytes_total": "bytes in are there by topic",
    "shmq_files_rolled_total": "the same",
    "shmq_expired_files_total": "the log kept is there, and what went unread",
    "shmq_expired_bytes_total": "the same",
    "shmq_queue_messages_in_total": "by request only",
    "shmq_queue_messages": "the same",
    "shmq_queue_consumer_lag_messages": "the same",
    "shmq_build_info": "never changes under one exporter",
}
"""Metrics that no panel shows, and why nobody misses them."""


def test_each_metric_has_a_panel_or_a_reason_why_not() -> None:
    asked = set(NAMES.findall(" ".join(expr for _, expr in dashboard_queries())))
    shown = {re.sub("_(bucket|sum|count)$", "", name) for name in asked - METRICS.keys()}
    shown |= asked & METRICS.keys()
    assert sorted([*shown, *NO_PANEL]) == sorted(METRICS)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_query_of_the_dashboard_finds_something(scene: Scene) -> None:
    with BrokerClient(scene.pair.master, "stranger") as stranger:
        lane = stranger.lanes[0]
        for _ in range(20):  # a second's worth: its rate is to be seen
            lane.put(60, 1, b"into a queue that it has no grant for")
            threading.Event().wait(0.1)
    with scene.pair.cluster.connect() as client:
        client.producer().send("doomed", b"x", timeout=60.0)
        with client.consumer("doomed", group="strict", auto_settle=False) as consumer:
            message = consumer.try_next(60.0)
            assert message is not None
            consumer.send_back(message, -1)
    left = dict.fromkeys(dashboard_queries())

    def is_answered() -> bool:
        for title, expr in list(left):
            series = scene.prometheus.query(expr)
            if any(one["value"][1] != "NaN" for one in series):
                del left[title, expr]
        return not left

    try:
        wait_for(is_answered)
    except AssertionError:
        pytest.fail(f"without an answer: {list(left)}")
