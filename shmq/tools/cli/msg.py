"""`shmq msg`: look up messages, and send one again."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from shmq.client.admin import Admin
from shmq.client.message_finder import MESSAGE_COUNT_DEFAULT, MESSAGE_COUNT_MAX
from shmq.clock import SYSTEM_CLOCK
from shmq.tools.cli.output import (
    TIME_WANTED,
    cluster_option,
    confirm,
    echo_json,
    echo_table,
    json_option,
    parse_time_ms,
    printable,
    time_text,
)
from shmq.tools.cli.sub import Format, message_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shmq.client.stored_message import StoredMessage

__all__ = ["msg"]

_BODY_SHOWN = 64
_FOREVER_MS = (1 << 63) - 1
_TOPIC_HELP = "Only of this topic."
_BROKER_HELP = "Only there."


@click.group()
def msg() -> None:
    """Messages: looked up by id, key, time or place; sent again."""


@msg.command("get")
@click.argument("message_ids", metavar="ID...", nargs=-1, required=True)
@click.option("-t", "--topic", help=_TOPIC_HELP)
@click.option("-b", "--broker", help=_BROKER_HELP)
@click.option("-f", "--format", "format_text", help="As in `shmq sub`.")
@json_option
@cluster_option
def _get(
    namesrv: str | None,
    message_ids: tuple[str, ...],
    topic: str | None,
    broker: str | None,
    format_text: str | None,
    is_json: bool,
) -> None:
    """Show messages by id: what a send printed (UNIQ_KEY), an offsetMsgId, or BROKER@PLACE.

    PLACE is a physical offset, the byte of the CommitLog at which the record begins.
    """
    with Admin(namesrv) as admin:
        found = [_find(admin, text, topic, broker) for text in message_ids]
    if is_json or format_text is not None:
        _print(found, format_text, is_json)
        return
    for number, message in enumerate(found):
        if number:
            click.echo()
        _show(message)


def _find(admin: Admin, text: str, topic: str | None, broker: str | None) -> StoredMessage:
    name, mark, place = text.rpartition("@")
    if mark and name and place.isdecimal():
        return admin.message_at(name, int(place))
    return admin.get_message(text, topic=topic, broker=broker)


@msg.command("find")
@click.argument("topic")
@click.option("-k", "--key", help="One of the words that they were sent with.")
@click.option("--from", "begin", metavar="TIME", help=f"Stored then or later: {TIME_WANTED}.")
@click.option("--to", "end", metavar="TIME", help="Stored then or before.")
@click.option("-q", "--queue", "queue_id", type=click.IntRange(0), help="Only of this queue.")
@click.option(
    "-o",
    "--offset",
    "queue_offset",
    type=click.IntRange(0),
    help="From this queue offset on, in order; with --queue and --broker.",
)
@click.option("-b", "--broker", help=_BROKER_HELP)
@click.option(
    "-c",
    "--count",
    type=click.IntRange(1, MESSAGE_COUNT_MAX),
    default=MESSAGE_COUNT_DEFAULT,
    show_default=True,
    help="At most so many: the newest, but for --offset.",
)
@click.option("-f", "--format", "format_text", help="As in `shmq sub`.")
@json_option
@cluster_option
def _find_command(
    namesrv: str | None,
    topic: str,
    key: str | None,
    begin: str | None,
    end: str | None,
    queue_id: int | None,
    queue_offset: int | None,
    broker: str | None,
    count: int,
    format_text: str | None,
    is_json: bool,
) -> None:
    """Find messages of TOPIC by key, time or queue offset; the newest first.

    Without a key it shows what was stored last, or in a span of time.
    """
    if key is not None and not key:
        raise click.UsageError("--key: wanted one of the words that a message was sent with")
    now_ms = SYSTEM_CLOCK.wall_ms()
    begin_ms = 0 if begin is None else parse_time_ms(begin, now_ms=now_ms)
    end_ms = _FOREVER_MS if end is None else parse_time_ms(end, now_ms=now_ms)
    with Admin(namesrv) as admin:
        if queue_offset is None:
            found = admin.find_messages(
                topic,
                key=key,
                begin_ms=begin_ms,
                end_ms=end_ms,
                queue_id=queue_id,
                broker=broker,
                max_count=count,
            )
        elif queue_id is None or key or begin or end:
            raise click.UsageError("--offset wants --queue, and neither --key nor times")
        else:
            found = admin.read_messages(
                topic,
                queue_id,
                queue_offset,
                broker=broker or _only_broker(admin, topic),
                max_count=count,
            )
    _print(found, format_text, is_json)


def _only_broker(admin: Admin, topic: str) -> str:
    names = list(admin.topic(topic))
    if len(names) > 1:
        raise click.UsageError(f"--offset: {topic} is on {', '.join(names)}; say --broker")
    return names[0]


@msg.command("resend")
@click.argument("message_ids", metavar="ID...", nargs=-1, required=True)
@click.option("--to", "target", metavar="TOPIC", help="Where to; else where it was sent first.")
@click.option("-t", "--topic", help=_TOPIC_HELP)
@click.option("-b", "--broker", help=_BROKER_HELP)
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@cluster_option
def _resend(
    namesrv: str | None,
    message_ids: tuple[str, ...],
    target: str | None,
    topic: str | None,
    broker: str | None,
    yes: bool,
    is_json: bool,
) -> None:
    """Send messages once more, as new ones: every group of the topic gets them again."""
    with Admin(namesrv) as admin:
        found = [_find(admin, text, topic, broker) for text in message_ids]
        topics = ", ".join(sorted({target or message.origin_topic for message in found}))
        confirm(f"send {len(found)} messages to {topics} once more", yes)
        done = [(message, admin.resend_message(message, topic=target)) for message in found]
    rows = [
        (
            message.message_id,
            result.message_id,
            result.message_queue.topic,
            result.message_queue.broker_name,
            result.message_queue.queue_id,
            result.queue_offset,
        )
        for message, result in done
    ]
    if is_json:
        keys = ("originMessageId", "messageId", "topic", "brokerName", "queueId", "queueOffset")
        echo_json({"messages": [dict(zip(keys, row, strict=True)) for row in rows]})
        return
    echo_table(("ORIGIN", "NEW ID", "TOPIC", "BROKER", "QUEUE", "OFFSET"), rows)


# ---- printing ------------------------------------------------------------------------------------


def _print(found: Sequence[StoredMessage], format_text: str | None, is_json: bool) -> None:
    if format_text is not None:
        form = Format(format_text)
        for message in found:
            sys.stdout.buffer.write(form(message))
        return
    if is_json:
        echo_json({"messages": [_json(message) for message in found]})
        return
    echo_table(
        ("STORED (UTC)", "BROKER", "QUEUE", "OFFSET", "ID", "TAG", "KEYS", "BODY"),
        (
            (
                time_text(message.store_timestamp),
                message.broker_name,
                message.queue_id,
                message.queue_offset,
                message.message_id,
                message.tag,
                " ".join(message.keys),
                _body_text(message.body, _BODY_SHOWN),
            )
            for message in found
        ),
    )


def _json(message: StoredMessage) -> dict[str, object]:
    return {
        **message_json(message),
        "brokerName": message.broker_name,
        "physicalOffset": message.physical_offset,
        "offsetMessageId": message.offset_message_id,
        "bornTimestamp": message.born_timestamp,
        "bornHost": message.born_host,
        "storeHost": message.store_host,
        "flag": message.flag,
        "sysFlag": message.sys_flag,
        "reconsumeTimes": message.reconsume_times,
        "storeSize": message.size,
    }


def _show(message: StoredMessage) -> None:
    facts = {
        "id": message.message_id,
        "offset id": message.offset_message_id,
        "topic": message.topic,
        "queue": f"{message.queue_id} of {message.broker_name}",
        "queue offset": message.queue_offset,
        "physical offset": message.physical_offset,
        "stored": f"{time_text(message.store_timestamp)} UTC, {message.size} bytes",
        "born": f"{time_text(message.born_timestamp)} UTC at {message.born_host}",
        "tag": message.tag,
        "keys": " ".join(message.keys),
        "retries": message.reconsume_times or None,
        "flag": message.flag or None,
    }
    others = {"UNIQ_KEY", "TAGS", "KEYS"}
    facts |= {
        f"property {name}": value
        for name, value in message.properties.items()
        if name not in others
    }
    facts["body"] = f"{len(message.body)} bytes: {_body_text(message.body, 1024)}"
    for name, value in facts.items():
        if value not in (None, ""):
            click.echo(f"{name + ':':<17}{printable(str(value))}")


def _body_text(body: bytes, size: int) -> str:
    """The beginning of a body on one line: text where it is text, else hexadecimal."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = body[: size // 2].hex()
        return f"0x{text}{'...' if len(body) > size // 2 else ''}"
    return text[:size] + ("..." if len(text) > size else "")
