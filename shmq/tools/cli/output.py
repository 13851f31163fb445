"""What all verbs share: which cluster, how results are printed, how times are written."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click
import orjson

from shmq.client.arguments import TIMEOUT_S_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = [
    "SECONDS",
    "Seconds",
    "TIME_WANTED",
    "bytes_text",
    "cluster_option",
    "confirm",
    "echo_json",
    "echo_table",
    "json_option",
    "named",
    "parse_time_ms",
    "printable",
    "time_text",
]

_F = TypeVar("_F", bound="Callable[..., object]")

TIME_WANTED = "@2026-11-20T12:00:00 (UTC unless it says otherwise), @1767225600 (seconds), @-10m"
_AGO = re.compile(r"-(\d+)([smhd])")
_TIME_MS_MAX = 253_402_300_799_999
"""The end of the year 9999: no message is later, and more does not fit everywhere."""
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Seconds(click.FloatRange):
    """The type of an option that is a time, within bounds."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number, if it is one."""
        seconds: float = super().convert(value, param, ctx)
        if seconds != seconds:  # which is below and above nothing
            self.fail(f"{value} is no number of seconds", param, ctx)
        return seconds


SECONDS = Seconds(0.0, TIMEOUT_S_MAX)
"""An option that is a time to wait."""


def cluster_option(function: _F) -> _F:
    """Gives a verb `namesrv`: the runtime folder, or None for the default."""
    return click.option(
        "-n",
        "--namesrv",
        metavar="FOLDER",
        help="Runtime folder of the cluster; else $SHMQ_NAMESRV, else the default one.",
    )(function)


def json_option(function: _F) -> _F:
    """Gives a verb `is_json`."""
    return click.option("--json", "is_json", is_flag=True, help="Print JSON.")(function)


def echo_json(value: Any) -> None:
    """Print one line of JSON."""
    click.echo(orjson.dumps(value, default=str))


def echo_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under their heads; numbers to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = [
        all(re.fullmatch(r"[-\d.]*", row[index]) for row in cells) for index in range(len(columns))
    ]
    widths = [
        max(len(column), *(len(row[index]) for row in cells)) if cells else len(column)
        for index, column in enumerate(columns)
    ]
    for line in ([*columns], *cells):
        texts = [
            text.rjust(width) if is_number else text.ljust(width)
            for text, width, is_number in zip(line, widths, numeric, strict=True)
        ]
        click.echo("  ".join(texts).rstrip())


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    return printable(str(value))


def printable(text: str) -> str:
    """A text without what would steer the terminal: it comes from others."""
    return "".join(char if char.isprintable() else "?" for char in text)


def confirm(what: str, is_sure: bool) -> None:
    """Ask before something that cannot be undone; `--yes` answers beforehand.

    Raises:
        click.UsageError: there is nobody to ask.
        click.Abort: no.
    """
    if is_sure:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{what}: nobody is there to confirm it; say --yes")
    click.confirm(f"{what}?", abort=True, err=True)


def time_text(ms: int) -> str:
    """A time in ms since 1970 for people; "-" for none."""
    if ms <= 0:
        return "-"
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def parse_time_ms(text: str, *, now_ms: int) -> int:
    """Milliseconds since 1970 of "@..." as TIME_WANTED shows.

    Raises:
        click.BadParameter: it is none of these.
    """
    value = text.removeprefix("@")
    ago = _AGO.fullmatch(value)
    try:
        if ago is not None:
            ms = now_ms - int(ago[1]) * _UNIT_S[ago[2]] * 1000
        elif re.fullmatch(r"\d+(\.\d+)?", value):
            ms = int(float(value) * 1000)
        else:
            when = datetime.fromisoformat(value)
            ms = int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        ms = -1
    if not 0 <= ms <= _TIME_MS_MAX:
        raise click.BadParameter(f"time {text!r}: wanted {TIME_WANTED}")
    return ms


def bytes_text(size: int) -> str:
    """A size for people: 1.5 MiB."""
    value, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def named(row: Any) -> Mapping[str, object]:
    """A NamedTuple as a JSON object in RocketMQ's spelling (brokerName)."""
    return {_camel(key): value for key, value in row._asdict().items()}


def _camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(part.capitalize() for part in tail)
