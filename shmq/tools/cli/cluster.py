"""`shmq cluster`: clusters, their brokers, and what is wrong in them."""

from __future__ import annotations

import click

from shmq.client.admin import Admin
from shmq.tools.cli.output import cluster_option, echo_json, echo_table, json_option

__all__ = ["cluster"]


@click.group()
def cluster() -> None:
    """Clusters: brokers that belong together, found through the NameServers."""


@cluster.command("list")
@json_option
@cluster_option
def _list(namesrv: str | None, is_json: bool) -> None:
    """List clusters, NameServers, brokers and what their supervisor says of them."""
    with Admin(namesrv) as admin:
        names = admin.namesrvs()
        states = admin.brokers()
        wards = admin.supervised()
    restarts = {ward["name"]: ward for ward in wards}
    rows = [
        (
            state.cluster_name,
            state.broker_name,
            state.broker_id,
            state.phase,
            state.pid,
            restarts.get(state.broker_name, {}).get("restartCount", 0),
            state.problem,
        )
        for state in states
    ]
    known = {state.broker_name for state in states}
    rows += [
        ("", ward["name"], 0, ward["phase"], ward["pid"], ward["restartCount"], ward["problem"])
        for ward in wards
        if ward["name"] not in known
    ]
    keys = ("cluster", "brokerName", "brokerId", "phase", "pid", "restartCount", "problem")
    if is_json:
        brokers = [dict(zip(keys, row, strict=True)) for row in rows]
        echo_json({"namesrvs": names, "brokers": brokers})
        return
    click.echo(f"NameServers: {', '.join(names)}")
    echo_table(("CLUSTER", "BROKER", "ID", "PHASE", "PID", "RESTARTS", "PROBLEM"), rows)
