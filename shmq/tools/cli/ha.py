"""`shmq ha`: members of replica sets, who is master and in sync, elections, a switch-over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shmq.client.admin import Admin
from shmq.tools.cli.output import (
    bytes_text,
    cluster_option,
    confirm,
    echo_json,
    echo_table,
    json_option,
    named,
)
from shmq.tools.members import problem_of

if TYPE_CHECKING:
    from shmq.remoting.controller_requests import SyncStateData

__all__ = ["ha"]


@click.group()
def ha() -> None:
    """Replica sets: a master, and members that take its place."""


@ha.command("status")
@click.argument("name", metavar="[BROKER]", required=False)
@json_option
@cluster_option
def _status(namesrv: str | None, is_json: bool, name: str | None) -> None:
    """Show the members of BROKER, or of all: who is master, and how far each one is.

    Where one is behind, it is looked at twice, half a second apart, for the time until it has
    caught up; a dash: it does not come closer. IN SYNC: its master counts it, and waits for it
    where sends are to be on a slave.
    """
    with Admin(namesrv) as admin:
        members = admin.ha_progress(name)
    if not members:
        nobody = "no member of such a replica set answers"
        raise click.ClickException(f"{name}: {nobody}" if name else "no broker answers")
    if is_json:
        echo_json({"members": [named(member) for member in members]})
        return
    echo_table(
        (
            *("BROKER", "ID", "ROLE", "EPOCH", "PID", "LOG", "ON DISK", "BEHIND", "CAUGHT UP IN"),
            *("IN SYNC", "RESENT", "LOST", "PROBLEM"),
        ),
        (
            (
                member.broker_name,
                member.broker_id,
                member.role,
                member.master_epoch,
                member.pid,
                bytes_text(member.committed_position),
                bytes_text(member.flushed_position),
                "" if member.lag_bytes is None else bytes_text(member.lag_bytes),
                _time_left(member.catch_up_s),
                "" if member.is_in_sync is None else _yes(member.is_in_sync),
                member.resent_count,
                member.lost_count,
                problem_of(member),
            )
            for member in members
        ),
    )


def _time_left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return "caught up" if seconds == 0 else f"{seconds:.0f} s" if seconds >= 10 else "< 10 s"


@ha.command("sync-state")
@click.argument("name", metavar="[BROKER]", required=False)
@json_option
@cluster_option
def _sync_state(namesrv: str | None, is_json: bool, name: str | None) -> None:
    """Show what the Controller says of BROKER, or of all: who was elected, and who is in sync.

    A member that is in sync has every confirmed message: without the master's memory only such a
    one is elected.
    """
    with Admin(namesrv) as admin:
        states = admin.sync_states(name)
    if name is not None and not states:
        raise click.ClickException(f"{name}: the Controller knows no such replica set")
    if is_json:
        echo_json({"replicaSets": [_state_json(state) for state in states]})
        return
    echo_table(
        ("BROKER", "EPOCH", "ID", "MASTER", "IN SYNC", "ALIVE", "LOG EPOCH", "LOG", "ADDRESS"),
        (
            (
                state.info.broker_name,
                state.info.master_epoch,
                member.broker_id,
                _mastership(state, member.broker_id),
                "learner" if member.is_async_learner else _yes(member.is_in_sync),
                _yes(member.is_alive),
                member.log_epoch,
                bytes_text(member.log_end),
                member.broker_address,
            )
            for state in states
            for member in state.members
        ),
    )


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "no"


def _mastership(state: SyncStateData, broker_id: int) -> str:
    if state.info.master_broker_id != broker_id:
        return ""
    return "yes" if state.info.is_begun else "elected"


def _state_json(state: SyncStateData) -> dict[str, object]:
    info = state.info
    return {
        **info.to_fields(),
        "syncStateSet": sorted(info.sync_state_set),
        "members": [
            {
                "brokerId": member.broker_id,
                "brokerAddress": member.broker_address,
                "alive": member.is_alive,
                "inSync": member.is_in_sync,
                "asyncLearner": member.is_async_learner,
                "logEpoch": member.log_epoch,
                "maxOffset": member.log_end,
                "electionPriority": member.election_priority,
            }
            for member in state.members
        ],
    }


@ha.command("elect")
@click.argument("name", metavar="BROKER")
@click.option("--to", "to_id", type=int, metavar="ID", help="This member.")
@json_option
@cluster_option
def _elect(namesrv: str | None, is_json: bool, name: str, to_id: int | None) -> None:
    """Have the Controller elect a master of BROKER by hand; the one that there is hands over.

    Without --to it elects whom it would by itself, if nobody is master. A learner is never elected,
    nor a member that would lack confirmed messages.
    """
    with Admin(namesrv) as admin:
        member = admin.elect_master(name, to_id)
    if is_json:
        echo_json(named(member))
        return
    click.echo(
        f"{name}: broker_id {member.broker_id} is master now, epoch {member.master_epoch},"
        f" process {member.pid}"
    )


@ha.command("clean")
@click.argument("name", metavar="BROKER")
@click.option("--id", "ids", type=int, multiple=True, metavar="ID", help="This member; repeatable.")
@click.option("--living", is_flag=True, help="Also members that send heartbeats.")
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask.")
@cluster_option
def _clean(
    namesrv: str | None, is_sure: bool, name: str, ids: tuple[int, ...], living: bool
) -> None:
    """Have the Controller forget members of BROKER, or all of it: RocketMQ's cleanBrokerMetadata.

    Their stores stay as they are.
    """
    whom = ", ".join(str(each) for each in ids) or "every member"
    confirm(f"have the Controller forget {whom} of {name}", is_sure)
    with Admin(namesrv) as admin:
        admin.clean_broker_data(name, ids, is_living_cleaned=living)
    click.echo(f"{name}: {whom} forgotten; one that starts again registers anew")


@ha.command("switch")
@click.argument("name", metavar="BROKER")
@click.option(
    "--to",
    "to_id",
    type=int,
    metavar="ID",
    help="This member; else the one whose log goes furthest, no learner.",
)
@click.option(
    "--unclean", is_flag=True, help="Also one that lacks messages, which are then given up."
)
@cluster_option
def _switch(namesrv: str | None, name: str, to_id: int | None, unclean: bool) -> None:
    """Have another member of BROKER become master: for an upgrade, say. No send fails.

    The master flushes and hands its memory over; clients go on at the new one as after a restart.
    Where a Controller leads BROKER, it is asked to elect that member.
    """
    with Admin(namesrv) as admin:
        member = admin.switch_master(name, to_id, is_unclean=unclean)
    click.echo(
        f"{name}: broker_id {member.broker_id} is master now, epoch {member.master_epoch},"
        f" process {member.pid}"
    )
