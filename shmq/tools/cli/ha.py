"""`shmq ha`: the members of replica sets, who is master, a planned switch-over."""

from __future__ import annotations

import click

from shmq.client.admin import Admin
from shmq.tools.cli.output import (
    bytes_text,
    cluster_option,
    echo_json,
    echo_table,
    json_option,
    named,
)

__all__ = ["ha"]


@click.group()
def ha() -> None:
    """Replica sets: a master, and members that take its place."""


@ha.command("status")
@click.argument("name", metavar="[BROKER]", required=False)
@json_option
@cluster_option
def _status(namesrv: str | None, is_json: bool, name: str | None) -> None:
    """Show the members of BROKER, or of all: who is master, and how far each one is."""
    with Admin(namesrv) as admin:
        members = admin.ha_members(name)
    if is_json:
        echo_json({"members": [named(member) for member in members]})
        return
    echo_table(
        ("BROKER", "ID", "ROLE", "EPOCH", "PID", "LOG", "ON DISK", "RESENT", "LOST", "PROBLEM"),
        (
            (
                member.broker_name,
                member.broker_id,
                member.role,
                member.master_epoch,
                member.pid,
                bytes_text(member.committed_position),
                bytes_text(member.flushed_position),
                member.resent_count,
                member.lost_count,
                member.problem or member.replica_problem,
            )
            for member in members
        ),
    )


@ha.command("switch")
@click.argument("name", metavar="BROKER")
@click.option("--to", "to_id", type=int, metavar="ID", help="This member; else the lowest id.")
@click.option(
    "--unclean", is_flag=True, help="Also one that lacks messages, which are then given up."
)
@cluster_option
def _switch(namesrv: str | None, name: str, to_id: int | None, unclean: bool) -> None:
    """Have another member of BROKER become master: for an upgrade, say. No send fails.

    The master flushes and hands its memory over; clients go on at the new one as after a restart.
    """
    with Admin(namesrv) as admin:
        member = admin.switch_master(name, to_id, is_unclean=unclean)
    click.echo(
        f"{name}: broker_id {member.broker_id} is master now, epoch {member.master_epoch},"
        f" process {member.pid}"
    )
