"""`shmq broker`: list brokers, show what one says of itself, have producers leave one."""

from __future__ import annotations

import click

from shmq.client.admin import Admin
from shmq.client.broker_settings import BrokerSetting
from shmq.config import names_of
from shmq.errors import ConfigError
from shmq.tools.cli.output import (
    bytes_text,
    cluster_option,
    echo_json,
    echo_table,
    json_option,
    named,
)

__all__ = ["broker"]


@click.group()
def broker() -> None:
    """Brokers: processes that own a store and its shared memory."""


@broker.command("list")
@json_option
@cluster_option
def _list(namesrv: str | None, is_json: bool) -> None:
    """List brokers and how they are."""
    with Admin(namesrv) as admin:
        states = admin.brokers()
    if is_json:
        echo_json({"brokers": [named(state) for state in states]})
        return
    echo_table(
        ("BROKER", "ID", "PHASE", "PID", "SESSIONS", "LOG", "NOT ON DISK", "PROBLEM"),
        (
            (
                state.broker_name,
                state.broker_id,
                state.phase,
                state.pid or "",
                state.session_count,
                bytes_text(state.committed_position),
                bytes_text(state.flush_behind_bytes),
                state.problem,
            )
            for state in states
        ),
    )


@broker.command("clean")
@click.argument("name", metavar="BROKER")
@cluster_option
def _clean(namesrv: str | None, name: str) -> None:
    """Have log files that have expired removed now, not at deleteWhen."""
    with Admin(namesrv) as admin:
        admin.delete_expired_commit_log(name)
    click.echo(f"{name}: removes what is older than fileReservedTime; see shmq broker show {name}")


@broker.command("wipe-write")
@click.argument("name", metavar="BROKER")
@cluster_option
def _wipe_write(namesrv: str | None, name: str) -> None:
    """Have producers leave a broker: no route leads them there any more, consumers go on.

    Running producers notice within 30 s. Topics that are order topics keep their queues there. It
    lasts as long as the NameServers and the broker do, or until add-write.
    """
    with Admin(namesrv) as admin:
        count = admin.wipe_write_perm(name)
    click.echo(f"{name}: routes of {count} topics lead no producer there; undo it with add-write")


@broker.command("add-write")
@click.argument("name", metavar="BROKER")
@cluster_option
def _add_write(namesrv: str | None, name: str) -> None:
    """Undo wipe-write."""
    with Admin(namesrv) as admin:
        count = admin.add_write_perm(name)
    click.echo(f"{name}: routes of {count} topics lead producers there again")


@broker.group("config")
def _config() -> None:
    """Settings of a running broker."""


@_config.command("get")
@click.argument("name", metavar="BROKER")
@click.argument("keys", metavar="[KEY]...", nargs=-1)
@click.option("--id", "broker_id", type=int, metavar="ID", help="This member; else the master.")
@click.option("--changed", is_flag=True, help="Only those that are not the default.")
@json_option
@cluster_option
def _get(
    namesrv: str | None,
    is_json: bool,
    changed: bool,
    broker_id: int | None,
    keys: tuple[str, ...],
    name: str,
) -> None:
    """Show settings: all, or those with a KEY in their names, which are ours or RocketMQ's."""
    with Admin(namesrv) as admin:
        found = admin.broker_config(name, broker_id)
    by_key = {
        key: [each for each in found if any(key in known for known in names_of(each.name))]
        for key in keys
    }
    for key, matching in by_key.items():
        if not matching:
            raise ConfigError(
                f"show setting {key} of broker {name}: it has none with that in its name",
                hint=f"shmq broker config get {name} shows all",
            )
    found = [
        each
        for each in found
        if (not keys or any(each in matching for matching in by_key.values()))
        and not (changed and each.value == each.default)
    ]
    if is_json:
        echo_json({"settings": [named(each) for each in found]})
        return
    echo_table(
        ("SETTING", "VALUE", "DEFAULT", "LIVE"),
        ((each.name, _value(each), each.default, "yes" if each.is_live else "") for each in found),
    )


def _value(setting: BrokerSetting) -> str:
    if setting.effective == setting.value:
        return setting.value
    return f"{setting.value} ({setting.effective})"


@_config.command("set")
@click.argument("name", metavar="BROKER")
@click.argument("changes", metavar="KEY=VALUE...", nargs=-1, required=True)
@click.option("--id", "broker_id", type=int, metavar="ID", help="This member; else the master.")
@cluster_option
def _set(namesrv: str | None, broker_id: int | None, changes: tuple[str, ...], name: str) -> None:
    """Change live settings of a running broker: all that are named, or none.

    They last until it ends: what is to last longer belongs into its file, too. Names are ours or
    RocketMQ's; shmq broker config get shows which are live.
    """
    wanted: dict[str, str] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not key or not equals:
            raise click.UsageError(f"{change}: wanted KEY=VALUE")
        if key in wanted:
            raise click.UsageError(f"{change}: {key} is set twice")
        wanted[key] = value
    with Admin(namesrv) as admin:
        now = admin.change_broker_config(name, wanted, broker_id)
    for key, value in now.items():
        click.echo(f"{name}: {key} = {value}, until it ends")


@broker.command("show")
@click.argument("name", metavar="BROKER")
@json_option
@cluster_option
def _show(namesrv: str | None, name: str, is_json: bool) -> None:
    """Show what a broker says of itself."""
    with Admin(namesrv) as admin:
        info = admin.runtime_info(name)
    if is_json:
        echo_json(info)
        return
    width = max(len(key) for key in info)
    for key, value in info.items():
        click.echo(f"{key.ljust(width)}  {value or '-'}")


@broker.command("epoch")
@click.argument("name", metavar="BROKER")
@click.option("--id", "broker_id", type=int, metavar="ID", help="This member; else the master.")
@json_option
@cluster_option
def _epoch(namesrv: str | None, is_json: bool, name: str, broker_id: int | None) -> None:
    """Show under which mastership which part of a broker's log was written."""
    with Admin(namesrv) as admin:
        if broker_id is None:
            masters = [member for member in admin.ha_members(name) if member.is_master]
            broker_id = masters[0].broker_id if masters else 0
        epochs = admin.epochs(name, broker_id)
    if is_json:
        rows = [{"epoch": epoch, "startOffset": start} for epoch, start in epochs]
        echo_json({"epochList": rows})
        return
    echo_table(("EPOCH", "STARTS AT"), epochs)
