"""`shmq sub`: receives messages and prints them."""

from __future__ import annotations

import base64
import contextlib
import sys
import uuid
from typing import TYPE_CHECKING

import click
import orjson

from shmq.client.admin import Admin
from shmq.client.instance import connect
from shmq.clock import SYSTEM_CLOCK
from shmq.errors import PermissionDeniedError, ShmqError, TopicNotExistError
from shmq.subscription import ConsumeFromWhere, SubscriptionGroupConfig
from shmq.tools.cli.output import SECONDS, TIME_WANTED, cluster_option, json_option, parse_time_ms
from shmq.topic import Permission

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shmq.client.instance import Client
    from shmq.client.stored_message import StoredMessage
    from shmq.core._core import Message

__all__ = ["Format", "message_json", "sub"]

_STEP_S = 0.5
_WHERE = {
    "first": ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET,
    "last": ConsumeFromWhere.CONSUME_FROM_LAST_OFFSET,
}
_ESCAPES = {"n": b"\n", "t": b"\t", "r": b"\r", "0": b"\0", "\\": b"\\"}
_FIELDS: dict[str, Callable[[Message | StoredMessage], bytes]] = {
    "v": lambda message: message.body_bytes,
    "s": lambda message: b"%d" % len(message.body),
    "t": lambda message: message.topic.encode(),
    "g": lambda message: (message.tag or "").encode(),
    "k": lambda message: " ".join(message.keys).encode(),
    "p": lambda message: orjson.dumps(message.properties),
    "q": lambda message: b"%d" % message.queue_id,
    "o": lambda message: b"%d" % message.queue_offset,
    "i": lambda message: message.message_id.encode(),
    "d": lambda message: b"%d" % message.store_timestamp,
    "%": lambda message: b"%",
}


class Format:
    r"""A format string: %v body, %s its size, %t topic, %g tag, %k keys, %p properties as JSON,
    %q queue, %o queue offset, %i message id, %d store time in ms since 1970, %% a per cent sign;
    \n \t \r \0 \\.
    """

    def __init__(self, text: str) -> None:
        """Take it apart.

        Raises:
            click.UsageError: it has a letter that means nothing.
        """
        self._parts: list[bytes | Callable[[Message | StoredMessage], bytes]] = []
        marks = iter(text)
        for mark in marks:
            if mark not in "%\\":
                self._parts.append(mark.encode())
                continue
            letter = next(marks, "")
            known = _FIELDS if mark == "%" else _ESCAPES
            if letter not in known:
                wanted = " ".join(mark + each for each in known)
                raise click.UsageError(f"--format {text!r}: {mark}{letter} is none of {wanted}")
            self._parts.append(_FIELDS[letter] if mark == "%" else _ESCAPES[letter])

    def __call__(self, message: Message | StoredMessage) -> bytes:
        """The message, as the format says."""
        return b"".join(part if isinstance(part, bytes) else part(message) for part in self._parts)


def message_json(message: Message | StoredMessage) -> dict[str, object]:
    """A message as `--json` prints it; what is no text is base64."""
    value: dict[str, object] = {
        "topic": message.topic,
        "queueId": message.queue_id,
        "queueOffset": message.queue_offset,
        "messageId": message.message_id,
        "storeTimestamp": message.store_timestamp,
        "tag": message.tag,
        "keys": list(message.keys),
        "properties": message.properties,
    }
    try:
        value["body"] = message.body_bytes.decode()
    except UnicodeDecodeError:
        value["bodyBase64"] = base64.b64encode(message.body).decode()
    return value


def _json_line(message: Message) -> bytes:
    return orjson.dumps(message_json(message)) + b"\n"


@click.command()
@click.argument("topic")
@click.option("-g", "--group", help="Consume as a member of this group; it remembers how far.")
@click.option("-F", "--filter", "tags", metavar='"A || B"', help="Only these tags.")
@click.option(
    "--from",
    "place",
    default="first",
    show_default=True,
    metavar="first|last|@TIME|OFFSET|-N",
    help="Where to begin (a group: where a new one begins, no OFFSET or -N). -N: the last N of "
    f"each queue. Times: {TIME_WANTED}.",
)
@click.option("-c", "--count", type=click.IntRange(1), help="End after so many.")
@click.option("--idle", type=SECONDS, metavar="SECONDS", help="End when nothing came for so long.")
@click.option("-f", "--format", "format_text", default=r"%v\n", help=f"{Format.__doc__}")
@json_option
@cluster_option
def sub(
    namesrv: str | None,
    topic: str,
    group: str | None,
    tags: str | None,
    place: str,
    count: int | None,
    idle: float | None,
    format_text: str,
    is_json: bool,
) -> None:
    """Print the messages of TOPIC, for ever unless told otherwise.

    Without a group everything is read and nothing is remembered. With one, a message that was
    printed is settled.
    """
    shape = _json_line if is_json else Format(format_text)
    where, time = _beginning(place, has_group=group is not None)
    with (
        _group(namesrv, topic, group, place) as name,
        connect(namesrv) as client,
        client.consumer(topic, name, filter=tags, from_where=where, from_time=time) as consumer,
        contextlib.suppress(KeyboardInterrupt, BrokenPipeError),
    ):
        if not consumer.assigned:
            _check_readable(client, topic)
        out = sys.stdout.buffer
        printed = 0
        seen_ns = SYSTEM_CLOCK.monotonic_ns()
        while count is None or printed < count:
            messages = consumer.receive(
                min(256, count - printed) if count else 256, timeout=min(_STEP_S, idle or _STEP_S)
            )
            for message in messages:
                out.write(shape(message))
            out.flush()
            printed += len(messages)
            now_ns = SYSTEM_CLOCK.monotonic_ns()
            if messages:
                seen_ns = now_ns
            elif idle is not None and now_ns - seen_ns > idle * 1e9:
                break
        consumer.receive(1, timeout=0.0)  # settles what was printed


def _check_readable(client: Client, topic: str) -> None:
    """Say so where nothing can come; a topic that is not there yet is waited for.

    Raises:
        PermissionDeniedError: no broker lets the topic be read.
    """
    with contextlib.suppress(TopicNotExistError):
        datas = client.routes.route(topic).queue_datas
        if datas and not any(Permission.READ in data.perm for data in datas):
            raise PermissionDeniedError(
                f"consume {topic}: its perm has no R on {', '.join(d.broker_name for d in datas)}",
                hint=f"give it back: shmq topic update {topic} --perm rw",
            )


def _beginning(place: str, *, has_group: bool) -> tuple[ConsumeFromWhere, float | None]:
    if place in _WHERE:
        return _WHERE[place], None
    if place.startswith("@"):
        ms = parse_time_ms(place, now_ms=SYSTEM_CLOCK.wall_ms())
        return ConsumeFromWhere.CONSUME_FROM_TIMESTAMP, ms / 1000
    if not place.removeprefix("-").isdecimal():
        raise click.UsageError(
            f"--from {place}: wanted first, last, an offset, -N, or {TIME_WANTED}"
        )
    if has_group:
        raise click.UsageError(
            f"--from {place} of a group: move it with shmq group reset, or leave --group out"
        )
    return ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET, None


@contextlib.contextmanager
def _group(namesrv: str | None, topic: str, group: str | None, place: str) -> Iterator[str]:
    """The group to consume as: the one wanted, or one of our own that is gone afterwards."""
    if group is not None:
        yield group
        return
    own = f"shmq-sub-{uuid.uuid4().hex[:12]}"
    with Admin(namesrv) as admin:
        admin.create_group(SubscriptionGroupConfig(group_name=own))
        try:
            if place.removeprefix("-").isdecimal():
                _set_offsets(admin, own, topic, int(place))
            yield own
        finally:
            with contextlib.suppress(ShmqError):
                admin.delete_group(own, forget_offsets=True)


def _set_offsets(admin: Admin, group: str, topic: str, place: int) -> None:
    """Begin at an offset of each queue, or so many before its end."""
    for queue in admin.topic_stats(topic):
        wanted = place if place >= 0 else queue.max_offset + place
        admin.reset_offset(
            group,
            topic,
            whence="offset",
            queue_offset=max(queue.min_offset, min(wanted, queue.max_offset)),
            queue_id=queue.queue_id,
            brokers=[queue.broker_name],
        )
