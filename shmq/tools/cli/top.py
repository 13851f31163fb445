"""`shmq top`: topics, groups and brokers as they go, on one screen; or once, for a script."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import click

from shmq.config import default_namesrv_folder
from shmq.monitor.monitor import Monitor
from shmq.tools.cli.output import (
    Seconds,
    bytes_text,
    cluster_option,
    echo_json,
    echo_table,
    json_option,
    printable,
)
from shmq.tools.reading import Reading
from shmq.tools.top import TABLES, rows_of

if TYPE_CHECKING:
    import curses

    from shmq.tools.top import Column, Value

__all__ = ["top"]

_FORMAT_VERSION = 1
_REDRAW = ord("L") & 0x1F
"""Ctrl-L, as everywhere on terminals."""
_HELP = "q quit  Tab next table  s sort by the next column  / only what has this text"


@click.command()
@click.argument("table", type=click.Choice([*TABLES, "all"]), default="all")
@click.option("--once", is_flag=True, help="Look for one interval, print, and end.")
@click.option("-s", "--sort", "sorted_by", metavar="KEY", help="Column to sort by, as in --json.")
@click.option("-F", "--filter", "wanted", default="", help="Only rows with this text in a name.")
@click.option(
    "-i",
    "--interval",
    type=Seconds(0.1, 3600.0),
    default=1.0,
    show_default=True,
    help="Seconds between two looks; rates are those in between.",
)
@json_option
@cluster_option
def top(
    namesrv: str | None,
    is_json: bool,
    interval: float,
    wanted: str,
    sorted_by: str | None,
    once: bool,
    table: str,
) -> None:
    """Show brokers, topics and groups as they go: rates, lag, rings, flush, replicas.

    Reads shared memory and asks no broker. It must run as the brokers' user, or as root. Rates of
    messages are per second, sizes of rates in bytes per second.
    """
    names = list(TABLES) if table == "all" else [table]
    known = {column.key for name in names for column in TABLES[name].columns}
    if sorted_by is not None and sorted_by not in known:
        raise click.UsageError(f"--sort {sorted_by}: wanted one of {', '.join(sorted(known))}")
    if not once and (is_json or not sys.stdout.isatty()):
        raise click.UsageError("no terminal to show it on, or --json: say --once")
    monitor = Monitor(Path(namesrv) if namesrv else default_namesrv_folder())
    try:
        if once:
            _print(monitor, names, interval, sorted_by, wanted, is_json=is_json)
        else:
            _Screen(monitor, names, interval, sorted_by, wanted).run()
    finally:
        monitor.close()


def _print(
    monitor: Monitor,
    names: list[str],
    interval_s: float,
    sorted_by: str | None,
    wanted: str,
    *,
    is_json: bool,
) -> None:
    before = Reading.read(monitor)
    Event().wait(interval_s)
    now = Reading.read(monitor)
    tables = {
        name: rows_of(name, before, now, sorted_by=_sort_of(name, sorted_by), wanted=wanted)
        for name in names
    }
    if is_json:
        echo_json({"formatVersion": _FORMAT_VERSION, **tables, "problems": now.problems})
        return
    for number, (name, rows) in enumerate(tables.items()):
        if number:
            click.echo()
        columns = TABLES[name].columns
        echo_table(
            [column.head for column in columns],
            [[_text(row[column.key], column) for column in columns] for row in rows],
        )
    for line in _remarks(now):
        click.echo(line, err=True)


def _remarks(now: Reading) -> list[str]:
    """What the tables do not say."""
    if not now.problems and not now.by_broker("shmq_broker_up"):
        return [f"no broker's memory is in {now.runtime}: start one, or name its folder (-n)"]
    return [f"not shown in full: {problem}" for problem in now.problems]


def _sort_of(name: str, key: str | None) -> str | None:
    """The key, if the table has such a column."""
    return key if key in {column.key for column in TABLES[name].columns} else None


def _text(value: Value, column: Column) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if column.unit == "bytes":
        return bytes_text(int(value))
    if column.unit == "s":
        return _seconds_text(value)
    return f"{value:.0f}{column.unit.removeprefix('/s')}"


def _seconds_text(seconds: float) -> str:
    if seconds == float("inf"):
        return "> 1 s"  # above the last bound of the histograms
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size or unit == "us":
            return f"{seconds / size:.0f} {unit}"
    raise AssertionError("us takes what is left")


class _Screen:
    """The screen, until somebody types q."""

    def __init__(
        self,
        monitor: Monitor,
        names: list[str],
        interval_s: float,
        sorted_by: str | None,
        wanted: str,
    ) -> None:
        self._monitor = monitor
        self._names = names
        self._interval_s = interval_s
        self._sorted_by = dict.fromkeys(names, sorted_by)
        self._wanted = wanted
        self._chosen = 0

    def run(self) -> None:
        """Show it.

        Raises:
            click.ClickException: the terminal cannot show it.
        """
        import curses  # a table for a script does not need it

        try:
            curses.wrapper(self._loop)
        except curses.error as error:
            raise click.ClickException(
                f"show brokers on this terminal: {error}; set TERM, or say --once"
            ) from error
        except KeyboardInterrupt:
            return

    def _loop(self, window: curses.window) -> None:
        import curses

        with suppress(curses.error):  # a vt100 cannot hide it
            curses.curs_set(0)
        window.timeout(int(self._interval_s * 1000))
        before = now = Reading.read(self._monitor)
        while True:
            self._draw(window, before, now)
            key = window.getch()
            if key == ord("q"):
                return
            if key == ord("\t"):
                self._chosen = (self._chosen + 1) % len(self._names)
            elif key == ord("s"):
                self._sort_by_next()
            elif key == ord("/"):
                self._wanted = _ask(window, "only rows with: ")
                window.timeout(int(self._interval_s * 1000))
            elif key == _REDRAW:
                window.redrawwin()
            elif key == -1:  # the interval is over
                before, now = now, Reading.read(self._monitor)

    def _sort_by_next(self) -> None:
        name = self._names[self._chosen]
        keys = [column.key for column in TABLES[name].columns]
        now = self._sorted_by[name] or TABLES[name].sorted_by
        self._sorted_by[name] = keys[(keys.index(now) + 1) % len(keys)]

    def _draw(self, window: curses.window, before: Reading, now: Reading) -> None:
        import curses

        window.erase()
        height, width = window.getmaxyx()
        lines: list[tuple[str, int]] = []
        order = self._names[self._chosen :] + self._names[: self._chosen]
        for name in order:
            key = _sort_of(name, self._sorted_by[name]) or TABLES[name].sorted_by
            rows = rows_of(name, before, now, sorted_by=key, wanted=self._wanted)
            lines += _lines(name, rows, key, curses.A_REVERSE)
            lines.append(("", 0))
        lines += [(line, curses.A_BOLD) for line in _remarks(now)]
        for row, (text, look) in enumerate(lines[: height - 1]):
            window.addnstr(row, 0, text, width - 1, look)
        filtered = f"  [{self._wanted}]" if self._wanted else ""
        window.addnstr(height - 1, 0, _HELP + filtered, width - 1)
        window.refresh()


def _lines(
    name: str, rows: list[dict[str, Value]], sorted_by: str, head_look: int
) -> list[tuple[str, int]]:
    """A table as (text, attributes)."""
    columns = TABLES[name].columns
    heads = [column.head + ("*" if column.key == sorted_by else "") for column in columns]
    cells = [[printable(_text(row[column.key], column)) for column in columns] for row in rows]
    widths = [max(map(len, texts)) for texts in zip(heads, *cells, strict=True)]
    return [(_line(heads, widths), head_look)] + [(_line(texts, widths), 0) for texts in cells]


def _line(texts: list[str], widths: list[int]) -> str:
    first, *rest = zip(texts, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(text.rjust(width) for text, width in rest)])


def _ask(window: curses.window, question: str) -> str:
    """A line that somebody types at the foot of the screen."""
    import curses

    height, width = window.getmaxyx()
    window.move(height - 1, 0)
    window.clrtoeol()
    window.addnstr(height - 1, 0, question, width - 1)
    window.timeout(-1)
    curses.echo()
    try:
        typed = window.getstr(height - 1, min(len(question), width - 1), 64)
    finally:
        curses.noecho()
    return "".join(char for char in typed.decode("utf-8", "replace") if char.isprintable()).strip()
