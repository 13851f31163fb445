"""`shmq pub`: sends what stands on the command line, in files or comes through a pipe."""

from __future__ import annotations

import base64
import contextlib
import os
import sys
from collections import Counter
from typing import IO, TYPE_CHECKING, Any

import click
import orjson

from shmq.client.instance import connect
from shmq.clock import SYSTEM_CLOCK
from shmq.errors import ShmqError
from shmq.status import SendStatus
from shmq.tools.cli.output import SECONDS, cluster_option, echo_json, json_option

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["pub"]

_BAR_BYTES_MIN = 1 << 20
_BAR_STEP = 1000


@click.command()
@click.argument("topic")
@click.argument("bodies", nargs=-1, metavar="[BODY]...")
@click.option(
    "-f",
    "--file",
    "files",
    multiple=True,
    type=click.File("rb"),
    metavar="FILE",
    help="Send its lines; - is standard input. Repeatable.",
)
@click.option("--whole", is_flag=True, help="A file or pipe is one message, not one for each line.")
@click.option(
    "--jsonl",
    is_flag=True,
    help="Lines are JSON objects as `shmq sub --json` prints them: body, tag, keys, properties.",
)
@click.option("-t", "--tag", help="Consumers filter by it.")
@click.option("-k", "--keys", help="Words to find the messages by, separated by spaces.")
@click.option("-p", "--property", "properties", multiple=True, metavar="NAME=VALUE")
@click.option("-K", "--order-key", "key", help="Messages of one key go to one queue, in order.")
@click.option(
    "-d",
    "--delay-level",
    type=click.IntRange(0),
    default=0,
    metavar="LEVEL",
    help="Deliver later: 1 after 1 s, 2 after 5 s, 3 after 10 s, 5 after 1 m, 18 after 2 h, unless "
    "the brokers' message_delay_level says otherwise; 0 at once.",
)
@click.option("-c", "--count", type=click.IntRange(1), default=1, help="Send each so many times.")
@click.option(
    "--timeout",
    type=SECONDS,
    default=10.0,  # longer than brokers wait for a slave (slaveTimeout) or a disk
    show_default=True,
    help="Seconds for each.",
)
@json_option
@cluster_option
def pub(
    namesrv: str | None,
    topic: str,
    bodies: tuple[str, ...],
    files: tuple[IO[bytes], ...],
    whole: bool,
    jsonl: bool,
    tag: str | None,
    keys: str | None,
    properties: tuple[str, ...],
    key: str | None,
    delay_level: int,
    count: int,
    timeout: float,
    is_json: bool,
) -> None:
    """Send messages to TOPIC: each BODY, else each line of the files, else of standard input.

    Each is stored when it is counted; the first that cannot be sent ends it. What is stored and
    less safe than its broker promises (SLAVE_NOT_AVAILABLE, say) is counted by its status.
    """
    if bodies and (files or whole or jsonl):
        raise click.UsageError("bodies on the command line, or files: not both")
    if not bodies and not files and sys.stdin.isatty():
        raise click.UsageError(f"nothing to send: shmq pub {topic} BODY, --file FILE, or a pipe")
    options: dict[str, Any] = {
        "tag": tag,
        "keys": keys.split() if keys else None,
        "properties": _pairs(properties),
        "key": key,
        "delay_level": delay_level,
        "timeout": timeout,
    }
    sent = 0
    less_safe: Counter[str] = Counter()
    with connect(namesrv) as client, client.producer("shmq-pub") as producer:

        def send(body: bytes, more: dict[str, Any]) -> None:
            nonlocal sent
            for _ in range(count):
                result = producer.send(topic, body, **{**options, **more})
                sent += 1
                if result.send_status is not SendStatus.SEND_OK:
                    less_safe[result.send_status] += 1
                if is_json:
                    echo_json(
                        {
                            "messageId": result.message_id,
                            "sendStatus": result.send_status,
                            "brokerName": result.message_queue.broker_name,
                            "queueId": result.message_queue.queue_id,
                            "queueOffset": result.queue_offset,
                        }
                    )

        begin_ns = SYSTEM_CLOCK.monotonic_ns()
        try:
            for body in bodies:
                send(os.fsencode(body), {})  # the bytes as they were typed
            if not bodies:
                for file in files or (sys.stdin.buffer,):
                    _send_file(file, send, whole=whole, jsonl=jsonl)
        except (ShmqError, click.ClickException, KeyboardInterrupt):
            click.echo(f"{topic}: {sent} messages were sent before this", err=True)
            raise
    if not is_json:
        seconds = max(1e-9, (SYSTEM_CLOCK.monotonic_ns() - begin_ns) / 1e9)
        rate = f", {sent / seconds:.0f}/s" if sent > 1 else ""
        but = "".join(f", {number} of them {status}" for status, number in less_safe.items())
        click.echo(f"{topic}: {sent} sent{rate}{but}", err=True)


def _send_file(
    file: IO[bytes], send: Callable[[bytes, dict[str, Any]], None], *, whole: bool, jsonl: bool
) -> None:
    if whole:
        send(file.read(), {})
        return
    for number, line in enumerate(_lines(file), 1):
        if jsonl:
            send(*_message(line, f"{file.name} line {number}"))
        else:
            send(line, {})


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines without their ends; with a progress bar where that is worth seeing."""
    size = 0
    with contextlib.suppress(OSError):
        if file.seekable():
            size = file.seek(0, 2)
            file.seek(0)
    if size < _BAR_BYTES_MIN or not sys.stderr.isatty():
        for line in file:
            yield line.rstrip(b"\r\n")
        return
    with click.progressbar(length=size, label=file.name, file=sys.stderr) as bar:
        done = 0
        for number, line in enumerate(file, 1):
            yield line.rstrip(b"\r\n")
            done += len(line)
            if number % _BAR_STEP == 0:
                bar.update(done)
                done = 0
        bar.update(done)


def _message(line: bytes, where: str) -> tuple[bytes, dict[str, Any]]:
    """Body and options of one line as `shmq sub --json` prints it; unknown keys are passed over."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise click.UsageError(f"{where}: no JSON: {error}") from None
    body = value.get("body") if isinstance(value, dict) else None
    if isinstance(body, str):
        raw = body.encode()
    else:
        try:
            raw = base64.b64decode(value["bodyBase64"], validate=True)
        except (TypeError, KeyError, ValueError):
            raise click.UsageError(
                f'{where}: wanted an object with "body" as a text, or "bodyBase64"'
            ) from None
    more = {name: value[name] for name in ("tag", "keys", "properties") if value.get(name)}
    return raw, more


def _pairs(texts: tuple[str, ...]) -> dict[str, str] | None:
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.UsageError(f"--property {text}: wanted NAME=VALUE")
        pairs[name] = value
    return pairs or None
