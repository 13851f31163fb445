"""Figures of all peers side by side: medians, spread, how much better shmq is; JSON and table."""

import datetime
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from measuring import Figure, figure
from rows import Value

_OURS = "shmq"
_RATIO = "shmq_is_better_by"
_RATIOS = (_RATIO, f"{_RATIO}_min", f"{_RATIO}_max")
"""In the JSON of a figure."""
_BEGIN = "<!-- bin/bench peers writes from here -->"
_END = "<!-- to here -->"


class Outcome:
    """All that was found out; what an earlier run wrote is kept unless it is taken again."""

    def __init__(self, machine: dict[str, Any], earlier: dict[str, Any]) -> None:
        self._result: dict[str, Any] = {
            "bench": "peers",
            "machine": machine,
            "peers": {},
            "missing": {},
            "failed": [],
            "figures": {},
        }
        self._result |= {name: earlier[name] for name in ("peers", "figures") if name in earlier}
        self._failed: list[dict[str, str]] = []
        self._failed_before: list[dict[str, str]] = earlier.get("failed", [])
        self._introduced: set[str] = set()
        self.round = 1
        """Counted from 1; what is added belongs to it."""
        self._taken = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._values: dict[str, dict[str, dict[str, float]]] = {}

    def miss(self, peer: str, reason: str) -> None:
        """A peer cannot be had here."""
        self._result["missing"][peer] = reason
        print(f"{peer}: left out: {reason}", flush=True)

    def introduce(self, peer: str, version: str, settings: dict[str, str]) -> None:
        """Say once what is measured."""
        known = {"version": version, "settings": dict(settings)}
        if peer not in self._introduced:
            self._introduced.add(peer)
            self._result["peers"][peer] = known
            print(f"{peer}: {version}")
            for name, text in settings.items():
                print(f"    {name:9} {text}", flush=True)

    def begin(self, peer: str, row: str) -> None:
        """A row is taken: that an earlier run's failed says nothing any more."""
        self._failed_before = [
            known for known in self._failed_before if (known["peer"], known["row"]) != (peer, row)
        ]

    def fail(self, peer: str, row: str, reason: str) -> None:
        """A row went wrong: the rest of this life of the peer is left out."""
        self._failed.append({"peer": peer, "row": row, "reason": reason})
        print(f"{peer}: row {row} failed: {reason}", file=sys.stderr)

    def add(self, peer: str, value: Value, foreign_share: float) -> None:
        """One run of one figure."""
        label = f"{value.label}, {peer}"
        by_round = self._values.setdefault(peer, {}).setdefault(value.label, {})
        known: Figure = self._result["figures"].get(label, {}) if by_round else {}
        by_round[str(self.round)] = value.value
        share = max(known.get("foreign_cpu_max", 0.0), round(foreign_share, 2))
        self._result["figures"][label] = figure(list(by_round.values()), value.unit, "") | {
            "peer": peer,
            "row": value.label,
            "taken": self._taken,
            "by_round": dict(by_round),
            "is_more_better": value.is_more_better,
            "foreign_cpu_max": share,
            **value.notes,
        }

    @property
    def has_failed(self) -> bool:
        """Whether a row of this run has."""
        return bool(self._failed)

    @property
    def is_empty(self) -> bool:
        """Whether this run took nothing."""
        return not self._values

    def result(self) -> dict[str, Any]:
        """As JSON, with the ratios."""
        self._result["failed"] = self._failed_before + self._failed
        figures = self._result["figures"]
        for known in figures.values():
            for name in _RATIOS:  # an earlier run's, which shmq was in, too
                known.pop(name, None)
            ours = figures.get(f"{known['row']}, {_OURS}")
            # Ratios are those of one run: the machine is another one tomorrow.
            if ours is not None and ours["taken"] == known["taken"]:
                rounds = sorted(ours["by_round"].keys() & known["by_round"].keys())
                ratios = _ratios(ours, known, rounds)
                if ratios:
                    said = (statistics.median(ratios), min(ratios), max(ratios))
                    known |= dict(zip(_RATIOS, said, strict=True))
        return self._result

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self.result(), indent=2) + "\n", encoding="utf-8")

    def show(self) -> None:
        """One line for each figure, row by row."""
        figures = self.result()["figures"]
        for row in dict.fromkeys(known["row"] for known in figures.values()):
            print(row)
            for known in figures.values():
                if known["row"] == row:
                    print(f"    {_line(known)}", flush=True)

    def write_table(self, path: Path) -> None:
        """Into a Markdown file, at its table_place()."""
        before, after = table_place(path)
        table = "\n".join(_table(self.result()))
        path.write_text(f"{before}{_BEGIN}\n{table}\n{_END}{after}", encoding="utf-8")


class NoTablePlace(Exception):
    """The table cannot be written into a file; says why."""


def check_table(path: Path, kept: dict[str, Any]) -> None:
    """See whether the table of a file can be written, and has nothing that would be lost.

    Args:
        path: of the file.
        kept: what is known of earlier runs, which the next table has, too.

    Raises:
        NoTablePlace: it cannot, or would lose something.
    """
    before, after = table_place(path)
    text = path.read_text(encoding="utf-8")
    head, *lines = _cells(text[len(before) : len(text) - len(after)]) or [[]]
    lost = [
        f"{row}, {peer}"
        for row, _, *cells in lines
        for peer, cell in zip(head[2:], cells, strict=False)
        if cell and f"{row}, {peer}" not in kept.get("figures", {})
    ]
    if lost:
        raise NoTablePlace(
            f"--table {path}: {len(lost)} of its figures would be lost, as {lost[0]!r}: give the "
            "--out that has them, or empty the table"
        )


def _cells(text: str) -> list[list[str]]:
    """Of the lines of a table, without the one under the head."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def table_place(path: Path) -> tuple[str, str]:
    """What comes before and behind the two lines that mark where the table of a file is.

    Raises:
        NoTablePlace: they are not there.
    """
    try:
        before, begin, rest = path.read_text(encoding="utf-8").partition(_BEGIN)
    except (OSError, UnicodeDecodeError) as error:
        raise NoTablePlace(f"--table {path}: {error}") from None
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise NoTablePlace(f"--table {path}: no lines {_BEGIN} and {_END} in it")
    return before, after


def _ratios(ours: Figure, theirs: Figure, rounds: list[str]) -> list[float]:
    """How many times better shmq is, round by round; without those in which either took less
    processor time than the kernel's clock shows.
    """
    pairs = [(ours["by_round"][number], theirs["by_round"][number]) for number in rounds]
    pairs = [(mine, other) for mine, other in pairs if mine > 0 and other > 0]
    if ours["is_more_better"]:
        return [mine / other for mine, other in pairs]
    return [other / mine for mine, other in pairs]


def _number(value: float) -> str:
    """Three digits that count."""
    if value >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"


def _line(known: Figure) -> str:
    median, least, most = (_number(known[name]) for name in ("median", "min", "max"))
    text = f"{known['peer']:16} {median:>12} {known['unit']:10} ({least} to {most})"
    if _RATIO in known and known["peer"] != _OURS:
        text += f", shmq {_number(known[_RATIO])} times as good"
    if _is_behind(known):
        text += f"; it reached only {known['reached_per_s']:,}/s"
    return text


def _is_behind(known: Figure) -> bool:
    """Whether a peer could not be sent to at the rate that was asked for."""
    return known.get("reached_per_s", 1) < 0.95 * known.get("asked_per_s", 0)


def _table(result: dict[str, Any]) -> list[str]:
    """A line a row, a column a peer: its median, and how many times better shmq is; of several
    runs, the least and the greatest of the ratios, or where there are none of the figures.
    """
    figures = result["figures"]
    peers = [name for name in result["peers"] if any(f["peer"] == name for f in figures.values())]
    rows = {known["row"]: known["unit"] for known in figures.values()}
    lines = [
        f"| | unit | {' | '.join(peers)} |",
        "|---" * (len(peers) + 2) + "|",
    ]
    for row, unit in rows.items():
        cells = []
        for peer in peers:
            known = figures.get(f"{row}, {peer}")
            cell = "" if known is None else _cell(known)
            cells.append(cell)
        lines.append(f"| {row} | {unit} | {' | '.join(cells)} |")
    return lines


def _cell(known: Figure) -> str:
    cell = _number(known["median"])
    more = []
    spread = ("min", "max")
    if known["peer"] != _OURS and _RATIO in known:
        more.append(f"{_number(known[_RATIO])}×")
        spread = _RATIOS[1:]
    if known["runs"] > 1:
        more.append("–".join(_number(known[name]) for name in spread))
    if more:
        cell += f" ({', '.join(more)})"
    return f"{cell} †" if _is_behind(known) else cell
