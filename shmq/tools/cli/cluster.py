"""`shmq cluster`: clusters, their brokers, and what is wrong in them."""

from __future__ import annotations

import click

from shmq.client.admin import Admin
from shmq.remoting.runtime_folder import broker_socket_name
from shmq.tools.cli.output import cluster_option, echo_json, echo_table, json_option
from shmq.tools.members import problem_of

__all__ = ["cluster"]


@click.group()
def cluster() -> None:
    """Clusters: brokers that belong together, found through the NameServers."""


@cluster.command("list")
@json_option
@cluster_option
def _list(namesrv: str | None, is_json: bool) -> None:
    """List clusters, NameServers, brokers and what their supervisor says of them.

    A broker without a cluster is in no route: it stands by, starts, or does not run.
    """
    with Admin(namesrv) as admin:
        names = admin.namesrvs()
        states = admin.brokers()
        wards = {ward["socketName"]: ward for ward in admin.supervised()}
        members = {member.socket_name: member for member in admin.ha_members()}
    rows = []
    for state in states:
        socket_name = broker_socket_name(state.broker_name, state.broker_id)
        member = members.pop(socket_name, None)
        ward = wards.pop(socket_name, {})
        problem = state.problem or (problem_of(member) if member else "") or ward.get("problem")
        rows.append((*state[:4], state.pid, ward.get("restartCount", 0), problem or ""))
    for socket_name, member in members.items():  # they stand by, or serve and have not registered
        ward = wards.pop(socket_name, {})
        problem = problem_of(member) or ward.get("problem")
        rows.append(
            (
                *("", member.broker_name, member.broker_id, member.phase),
                *(member.pid, ward.get("restartCount", 0), problem or ""),
            )
        )
    rows += [
        ("", ward["name"], 0, ward["phase"], ward["pid"], ward["restartCount"], ward["problem"])
        for ward in wards.values()
    ]
    keys = ("cluster", "brokerName", "brokerId", "phase", "pid", "restartCount", "problem")
    if is_json:
        brokers = [dict(zip(keys, row, strict=True)) for row in rows]
        echo_json({"namesrvs": names, "brokers": brokers})
        return
    click.echo(f"NameServers: {', '.join(names)}")
    echo_table(("CLUSTER", "BROKER", "ID", "PHASE", "PID", "RESTARTS", "PROBLEM"), rows)
