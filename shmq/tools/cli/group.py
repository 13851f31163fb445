"""`shmq group`: list consumer groups, show their lag and members, change and reset them."""

from __future__ import annotations

from typing import Any

import click

from shmq.client.admin import Admin
from shmq.clock import SYSTEM_CLOCK
from shmq.subscription import SubscriptionGroupConfig, is_system_group
from shmq.tools.cli.output import (
    TIME_WANTED,
    cluster_option,
    confirm,
    echo_json,
    echo_table,
    json_option,
    named,
    parse_time_ms,
    time_text,
)
from shmq.topic import BROKER_ID_MAX, DLQ_REPLAY_GROUP

__all__ = ["group"]

_LONG_MAX = (1 << 63) - 1
"""Offsets are longs."""


@click.group()
def group() -> None:
    """Consumer groups: members share a topic's queues; the group's offsets say how far it is."""


@group.command("list")
@click.option("--all", "with_system", is_flag=True, help="Groups of the system too.")
@json_option
@cluster_option
def _list(namesrv: str | None, is_json: bool, with_system: bool) -> None:
    """List groups with their members and lag."""
    with Admin(namesrv) as admin:
        names = [name for name in admin.groups() if with_system or not _is_of_system(name)]
        rows = []
        for name in names:
            queues = admin.lag(name)
            topics = " ".join(sorted({queue.topic for queue in queues}))
            lag_sum = sum(queue.lag for queue in queues)
            rows.append((name, len(admin.members(name)), lag_sum, topics))
    if is_json:
        keys = ("group", "members", "lag", "topics")
        echo_json({"groups": [dict(zip(keys, (*r[:3], r[3].split()), strict=True)) for r in rows]})
        return
    echo_table(("GROUP", "MEMBERS", "LAG", "TOPICS"), rows)


def _is_of_system(name: str) -> bool:
    return is_system_group(name) or name == DLQ_REPLAY_GROUP


@group.command("lag")
@click.argument("name", metavar="GROUP")
@click.option("-t", "--topic", help="Only this topic.")
@json_option
@cluster_option
def _lag(namesrv: str | None, name: str, topic: str | None, is_json: bool) -> None:
    """Show how far a group is in each queue, and who has it.

    LAG counts messages; LAG (S) is how long the oldest of them has waited since it was stored.
    LOCKED: the member has it to itself, to consume it in order; or who still has.
    """
    with Admin(namesrv) as admin:
        rows = admin.lag(name, topic=topic)
    if is_json:
        echo_json({"group": name, "queues": [named(row) for row in rows]})
        return
    echo_table(
        (
            "TOPIC",
            "BROKER",
            "QUEUE",
            "MAX",
            "CONSUMED",
            "LAG",
            "LAG (S)",
            "LAST CONSUMED (UTC)",
            "MEMBER",
            "LOCKED",
        ),
        (
            (
                row.topic,
                row.broker_name,
                row.queue_id,
                row.broker_offset,
                "" if row.consumer_offset < 0 else row.consumer_offset,
                row.lag,
                f"{row.lag_ms / 1000:.3f}",
                time_text(row.last_consumed_ms),
                row.client_id,
                "yes" if row.locked_by == row.client_id != "" else row.locked_by,
            )
            for row in rows
        ),
    )


@group.command("members")
@click.argument("name", metavar="GROUP")
@json_option
@cluster_option
def _members(namesrv: str | None, name: str, is_json: bool) -> None:
    """Show who is in a group now."""
    with Admin(namesrv) as admin:
        found = admin.members(name)
    if is_json:
        echo_json({"group": name, "members": [named(row) for row in found]})
        return
    echo_table(
        ("CLIENT", "BROKERS"), ((row.client_id, " ".join(row.broker_names)) for row in found)
    )


@group.command("reset")
@click.argument("name", metavar="GROUP")
@click.option("-t", "--topic", required=True)
@click.option(
    "--to",
    "place",
    required=True,
    metavar="first|last|@TIME|OFFSET",
    help=f"Where it goes on. Times: {TIME_WANTED}.",
)
@click.option("-q", "--queue", "queue_id", type=click.IntRange(0), help="Only this queue.")
@click.option("-b", "--broker", "brokers", multiple=True, help="Only there; repeatable.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@cluster_option
def _reset(
    namesrv: str | None,
    name: str,
    topic: str,
    place: str,
    queue_id: int | None,
    brokers: tuple[str, ...],
    yes: bool,
    is_json: bool,
) -> None:
    """Have a group go on elsewhere in a topic; living members are told at once."""
    whence, timestamp, queue_offset = _whence(place)
    with Admin(namesrv) as admin:
        admin.topic(topic)
        confirm(f"reset group {name} in {topic} to {place}", yes)
        done = admin.reset_offset(
            name,
            topic,
            whence=whence,
            timestamp=timestamp,
            queue_offset=queue_offset,
            queue_id=-1 if queue_id is None else queue_id,
            brokers=brokers or None,
        )
    if is_json:
        keys = ("brokerName", "queueId", "consumerOffset")
        echo_json({"group": name, "queues": [dict(zip(keys, row, strict=True)) for row in done]})
        return
    echo_table(("BROKER", "QUEUE", "NEXT"), done)


@group.command("skip")
@click.argument("name", metavar="GROUP")
@click.option("-t", "--topic", help="Only this topic; else all that it consumes.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@cluster_option
def _skip(namesrv: str | None, name: str, topic: str | None, yes: bool, is_json: bool) -> None:
    """Have a group skip everything that waits for it now; living members are told at once."""
    with Admin(namesrv) as admin:
        waiting = sum(row.lag for row in admin.lag(name, topic=topic))
        confirm(f"have group {name} skip {waiting} messages", yes)
        done = admin.skip_backlog(name, topic=topic)
    if is_json:
        keys = ("topic", "brokerName", "queueId")
        echo_json({"group": name, "queues": [dict(zip(keys, row, strict=True)) for row in done]})
        return
    click.echo(f"{name}: skipped {waiting} messages in {len(done)} queues")


@group.command("clone")
@click.argument("source", metavar="FROM")
@click.argument("name", metavar="GROUP")
@click.option("-t", "--topic", help="Only this topic; else all that FROM consumes.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@cluster_option
def _clone(
    namesrv: str | None, source: str, name: str, topic: str | None, yes: bool, is_json: bool
) -> None:
    """Have GROUP go on where FROM is; FROM stays as it is, living members of GROUP are told."""
    with Admin(namesrv) as admin:
        confirm(f"set the offsets of group {name} to those of {source}", yes)
        done = admin.clone_offsets(source, name, topic=topic)
    if is_json:
        keys = ("topic", "brokerName", "queueId", "consumerOffset")
        echo_json({"group": name, "queues": [dict(zip(keys, row, strict=True)) for row in done]})
        return
    echo_table(("TOPIC", "BROKER", "QUEUE", "NEXT"), done)


def _whence(place: str) -> tuple[str, int, int]:
    """(whence, timestamp in ms, queue_offset)."""
    if place in {"first", "last"}:
        return place, 0, 0
    if place.startswith("@"):
        return "timestamp", parse_time_ms(place, now_ms=SYSTEM_CLOCK.wall_ms()), 0
    if place.isdecimal() and int(place) <= _LONG_MAX:
        return "offset", 0, int(place)
    raise click.UsageError(f"--to {place}: wanted first, last, an offset, or {TIME_WANTED}")


@group.command("show")
@click.argument("name", metavar="GROUP")
@json_option
@cluster_option
def _show(namesrv: str | None, name: str, is_json: bool) -> None:
    """Show a group's configuration."""
    with Admin(namesrv) as admin:
        configs = admin.group(name)
    if is_json:
        brokers = {broker_name: config.to_dict() for broker_name, config in configs.items()}
        echo_json({"group": name, "brokers": brokers})
        return
    for broker_name, config in configs.items():
        for key, value in config.to_dict().items():
            if key != "groupName":
                click.echo(f"{name} on {broker_name}: {key} = {value}")


def _settings(function: click.decorators.FC) -> click.decorators.FC:
    for option in (
        click.option(
            "--retries",
            "retry_max_times",
            type=click.IntRange(0),
            help="Deliveries after the first before a message is a dead letter.",
        ),
        click.option(
            "--retry-queues",
            "retry_queue_nums",
            type=click.IntRange(1),
            help="Queues of its retry topic.",
        ),
        click.option(
            "--consume-timeout",
            "consume_timeout_minute",
            type=click.IntRange(1),
            metavar="MINUTES",
            help="What a listener may take for a message.",
        ),
        click.option(
            "--enable/--disable",
            "consume_enable",
            default=None,
            help="Whether its members get messages.",
        ),
        click.option(
            "--broadcast/--no-broadcast",
            "consume_broadcast_enable",
            default=None,
            help="Whether members may broadcast.",
        ),
        click.option(
            "--from-min/--no-from-min",
            "consume_from_min_enable",
            default=None,
            help="Whether it may start at the first message kept.",
        ),
        click.option(
            "--notify/--no-notify",
            "notify_consumer_ids_changed_enable",
            default=None,
            help="Whether members are told at once when others come or go.",
        ),
        click.option(
            "--orderly/--no-orderly",
            "consume_message_orderly",
            default=None,
            help="Whether its members consume in order; others are refused.",
        ),
        click.option(
            "--broker-id",
            type=click.IntRange(0, BROKER_ID_MAX),
            help="The member of a replica set that it reads files from; 0: the master.",
        ),
        click.option(
            "--slow-broker-id",
            "which_broker_when_consume_slowly",
            type=click.IntRange(0, BROKER_ID_MAX),
            help="And the one when it is far behind.",
        ),
        click.option("-b", "--broker", "brokers", multiple=True, help="Only there; repeatable."),
        cluster_option,
    ):
        function = option(function)
    return function


@group.command("create")
@click.argument("name", metavar="GROUP")
@_settings
def _create(namesrv: str | None, name: str, brokers: tuple[str, ...], **settings: Any) -> None:
    """Create or replace a group, on all brokers unless some are named."""
    config = SubscriptionGroupConfig(group_name=name, **_given(settings))
    with Admin(namesrv) as admin:
        done = admin.create_group(config, brokers=brokers or None)
    click.echo(f"{name}: on {', '.join(done)}")


@group.command("update")
@click.argument("name", metavar="GROUP")
@_settings
def _update(namesrv: str | None, name: str, brokers: tuple[str, ...], **settings: Any) -> None:
    """Change a group; what is not named stays."""
    with Admin(namesrv) as admin:
        done = admin.update_group(name, brokers=brokers or None, **_given(settings))
    click.echo(f"{name}: changed on {', '.join(done)}")


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value is not None}


@group.command("delete")
@click.argument("name", metavar="GROUP")
@click.option("--forget-offsets", is_flag=True, help="Also how far it was.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@cluster_option
def _delete(namesrv: str | None, name: str, forget_offsets: bool, yes: bool) -> None:
    """Delete a group and its retry topic; its dead letters stay."""
    with Admin(namesrv) as admin:
        confirm(f"delete group {name}", yes)
        done = admin.delete_group(name, forget_offsets=forget_offsets)
    click.echo(f"{name}: deleted on {', '.join(done)}")
