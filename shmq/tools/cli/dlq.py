"""`shmq dlq`: look at the dead letters of a group, and have it try them once more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shmq.client.admin import Admin
from shmq.client.instance import connect
from shmq.errors import TopicNotExistError
from shmq.subscription import check_group
from shmq.tools.cli.output import (
    cluster_option,
    confirm,
    echo_json,
    echo_table,
    json_option,
    time_text,
)
from shmq.topic import DLQ_REPLAY_GROUP, dlq_topic, retry_topic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shmq.client.instance import Client
    from shmq.core._core import Message

__all__ = ["dlq"]

REPLAY_DELAY_LEVEL = 1
"""The shortest: a second, unless the brokers say otherwise."""
_PULL_COUNT = 256
_IDLE_S = 1.0
_BODY_SHOWN = 64
_KEYS = ("storeTimestamp", "messageId", "topic", "reconsumeTimes", "tag", "keys", "body")


@click.group()
def dlq() -> None:
    """Dead letters: what a group failed to process, kept in %DLQ%GROUP."""


@dlq.command("ls")
@click.argument("group")
@click.option("-c", "--count", type=click.IntRange(1), default=100, show_default=True)
@json_option
@cluster_option
def _ls(namesrv: str | None, group: str, count: int, is_json: bool) -> None:
    """List the dead letters of GROUP, the newest last; at most --count of each queue."""
    check_group(group)
    with connect(namesrv) as client:
        rows = [_row(message) for message in _letters(client, group, count)]
    rows.sort()
    if is_json:
        echo_json({"group": group, "messages": [dict(zip(_KEYS, r, strict=True)) for r in rows]})
        return
    echo_table(
        ("STORED (UTC)", "ID", "TOPIC", "FAILED", "TAG", "KEYS", "BODY"),
        ((time_text(row[0]), *row[1:6], row[6][:_BODY_SHOWN]) for row in rows),
    )


@dlq.command("replay")
@click.argument("group")
@click.option("-c", "--count", type=click.IntRange(1), help="At most so many; else all.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@cluster_option
def _replay(namesrv: str | None, group: str, count: int | None, yes: bool, is_json: bool) -> None:
    """Deliver dead letters to GROUP once more, those first that were not replayed yet.

    They come to the group alone, as retries, under their own ids: to members that read retries, as
    push consumers do, now or once one is there. What fails again is a dead letter again. What was
    replayed stays in the list and is not replayed a second time.
    """
    check_group(group)
    done = 0
    with connect(namesrv) as client:
        if not _letters(client, group, 1):  # before anybody is asked
            _say_replayed(group, 0, 0, is_json)
            return
        confirm(f"deliver the dead letters of {group} once more", yes)
        with client.consumer(dlq_topic(group), DLQ_REPLAY_GROUP, auto_settle=False) as consumer:
            while count is None or done < count:
                message = consumer.try_next(_IDLE_S)
                if message is None:
                    break
                consumer.send_back(
                    message, REPLAY_DELAY_LEVEL, max_reconsume_times=_ALWAYS, group=group
                )
                done += 1
        with Admin(client.namesrv) as admin:
            member_count = len(admin.members(group))
    _say_replayed(group, done, member_count, is_json)


def _say_replayed(group: str, count: int, member_count: int, is_json: bool) -> None:
    if is_json:
        echo_json({"group": group, "replayed": count, "members": member_count})
        return
    click.echo(f"{group}: {count} dead letters are on their way")
    if count and not member_count:
        click.echo(f"nobody of {group} is connected: they wait in {retry_topic(group)}")


_ALWAYS = (1 << 31) - 1


def _letters(client: Client, group: str, count: int) -> list[Message]:
    """The last `count` of each queue.

    Raises:
        SubscriptionGroupNotExistError: there is no such group, and no dead letter of it.
    """
    topic = dlq_topic(group)

    def read() -> Iterator[Message]:
        with client.pull_consumer(topic) as consumer:
            for queue in consumer.queues():
                end = consumer.max_offset(queue)
                at = max(consumer.min_offset(queue), end - count)
                while at < end:
                    result = consumer.pull(queue, at, min(_PULL_COUNT, end - at))
                    if result.next_begin_offset <= at:
                        break
                    at = result.next_begin_offset
                    yield from result.messages

    try:
        return list(read())
    except TopicNotExistError:  # it is made with the first dead letter
        with Admin(client.namesrv) as admin:
            admin.group(group)
        return []


def _row(message: Message) -> tuple[int, str, str, int, str, str, str]:
    return (
        message.store_timestamp,
        message.message_id,
        message.properties.get("RETRY_TOPIC", message.topic),
        message.reconsume_times,
        message.tag or "",
        " ".join(message.keys),
        message.body_bytes.decode("utf-8", "backslashreplace"),
    )
