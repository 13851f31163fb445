"""`shmq topic`: list, show, create, change and delete topics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from shmq.client.admin import Admin
from shmq.tools.cli.output import (
    cluster_option,
    confirm,
    echo_json,
    echo_table,
    json_option,
    named,
    time_text,
)
from shmq.topic import Permission, TopicConfig, is_system_topic

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["topic"]

_PERMISSIONS = {
    "rw": Permission.READ | Permission.WRITE,
    "r": Permission.READ,
    "w": Permission.WRITE,
    "none": Permission(0),
}


@click.group()
def topic() -> None:
    """Topics: where messages are sent, each with some queues on one or more brokers."""


@topic.command("list")
@click.option("--all", "with_system", is_flag=True, help="Topics of the system too.")
@json_option
@cluster_option
def _list(namesrv: str | None, is_json: bool, with_system: bool) -> None:
    """List topics."""
    with Admin(namesrv) as admin:
        found = {
            name: configs
            for name, configs in admin.topics().items()
            if with_system or not is_system_topic(name)
        }
    if is_json:
        echo_json({"topics": [_json(name, configs) for name, configs in found.items()]})
        return
    rows = []
    for name, configs in found.items():
        total = sum(config.write_queue_nums for config in configs.values())
        perm = " ".join(sorted({_perm(config.perm) for config in configs.values()}))
        rows.append((name, total, perm, " ".join(configs)))
    echo_table(("TOPIC", "QUEUES", "PERM", "BROKERS"), rows)


@topic.command("show")
@click.argument("name", metavar="TOPIC")
@json_option
@cluster_option
def _show(namesrv: str | None, name: str, is_json: bool) -> None:
    """Show a topic's configuration, its queues and what is in them."""
    with Admin(namesrv) as admin:
        configs = admin.topic(name)
        stats = admin.topic_stats(name)
    if is_json:
        echo_json({**_json(name, configs), "queues": [named(row) for row in stats]})
        return
    for broker_name, config in configs.items():
        attributes = " ".join(f"{key}={value}" for key, value in config.attributes.items())
        click.echo(
            f"{name} on {broker_name}: read queues {config.read_queue_nums}, write queues "
            f"{config.write_queue_nums}, perm {_perm(config.perm)}"
            f"{', order' if config.order else ''}{', ' + attributes if attributes else ''}"
        )
    echo_table(
        ("BROKER", "QUEUE", "MIN", "MAX", "MESSAGES", "LAST STORED (UTC)"),
        (
            (
                row.broker_name,
                row.queue_id,
                row.min_offset,
                row.max_offset,
                row.max_offset - row.min_offset,
                time_text(row.last_update_ms),
            )
            for row in stats
        ),
    )


def _changes(function: click.decorators.FC) -> click.decorators.FC:
    for option in (
        click.option("--read-queues", type=click.IntRange(1), help="Only those read."),
        click.option("--write-queues", type=click.IntRange(0), help="Only those written."),
        click.option("--perm", type=click.Choice(list(_PERMISSIONS)), help="What it allows."),
        click.option("--order/--no-order", default=None, help="Keep routes when a broker dies."),
        click.option(
            "-a",
            "--attribute",
            "attributes",
            multiple=True,
            metavar="KEY=VALUE",
            help="E.g. shmq.flush.disk.type=SYNC_FLUSH; KEY= takes it away.",
        ),
        click.option("-b", "--broker", "brokers", multiple=True, help="Only there; repeatable."),
        json_option,
        cluster_option,
    ):
        function = option(function)
    return function


@topic.command("create")
@click.argument("name", metavar="TOPIC")
@click.option("-q", "--queues", type=click.IntRange(1), default=8, show_default=True)
@_changes
def _create(name: str, **options: Any) -> None:
    """Create a topic, on all brokers unless some are named."""
    _change(name, force=False, is_new=True, **options)


@topic.command("update")
@click.argument("name", metavar="TOPIC")
@click.option("-q", "--queues", type=click.IntRange(1))
@click.option("--force", is_flag=True, help="Drop queues although a group has not drained them.")
@_changes
def _update(name: str, **options: Any) -> None:
    """Change a topic; what is not named stays.

    To shrink one: fewer --write-queues first, then, once its groups have drained the rest, fewer
    --read-queues.
    """
    _change(name, is_new=False, **options)


def _change(
    name: str,
    *,
    queues: int | None,
    read_queues: int | None,
    write_queues: int | None,
    perm: str | None,
    order: bool | None,
    attributes: tuple[str, ...],
    brokers: tuple[str, ...],
    force: bool,
    is_new: bool,
    is_json: bool,
    namesrv: str | None,
) -> None:
    pairs: dict[str, str | None] = {}
    for text in attributes:
        key, equals, value = text.partition("=")
        if not equals:
            raise click.UsageError(f"--attribute {text}: wanted KEY=VALUE")
        pairs[key] = value or None
    with Admin(namesrv) as admin:
        if not is_new:
            admin.topic(name)  # a name that was mistyped makes no topic
        configs = admin.create_topic(
            name,
            queues=queues,
            read_queues=read_queues,
            write_queues=write_queues,
            perm=None if perm is None else _PERMISSIONS[perm],
            order=order,
            attributes=pairs,
            brokers=brokers or None,
            force=force,
        )
    if is_json:
        echo_json(_json(name, configs))
        return
    for broker_name, config in configs.items():
        click.echo(
            f"{name} on {broker_name}: read queues {config.read_queue_nums}, "
            f"write queues {config.write_queue_nums}, perm {_perm(config.perm)}"
        )


@topic.command("delete")
@click.argument("name", metavar="TOPIC")
@click.option("-b", "--broker", "brokers", multiple=True, help="Only there; repeatable.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@cluster_option
def _delete(namesrv: str | None, name: str, brokers: tuple[str, ...], yes: bool) -> None:
    """Delete a topic with all its messages."""
    with Admin(namesrv) as admin:
        admin.topic(name)
        confirm(f"delete topic {name} and its messages", yes)
        done = admin.delete_topic(name, brokers=brokers or None)
    click.echo(f"{name}: deleted on {', '.join(done)}")


def _perm(perm: Permission) -> str:
    text = ("r" if perm & Permission.READ else "") + ("w" if perm & Permission.WRITE else "")
    return text or "none"


def _json(name: str, configs: Mapping[str, TopicConfig]) -> dict[str, object]:
    return {
        "topic": name,
        "brokers": {broker_name: config.to_dict() for broker_name, config in configs.items()},
    }
