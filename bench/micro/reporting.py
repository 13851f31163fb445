"""What all of bin/bench's verbs have in common: options, the table that is printed, the JSON."""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from measuring import Figure, machine

Row = Callable[[argparse.Namespace], dict[str, Figure]]
Shape = Mapping[str, type | tuple[type, ...]]
"""Keys that an object in JSON has, and of what type each is."""
NUMBER = (int, float)
FIGURE: Shape = {"median": NUMBER, "min": NUMBER, "max": NUMBER, "runs": int, "unit": str}


class Interruption:
    """Ctrl-C, and SIGTERM like it: KeyboardInterrupt, once. Who is told again is cleaning up.

    Args:
        notes_first: the first is only noted, the second is the one.
    """

    def __init__(self, *, notes_first: bool = False) -> None:
        self._by = 0
        self._notes_next = notes_first
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._hear)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        self._by = self._by or number
        if self._notes_next:
            self._notes_next = False
            return
        # Not a handler that does nothing: the interpreter would take that away before it ends.
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    @property
    def has_come(self) -> bool:
        return self._by != 0

    @property
    def status(self) -> int:
        """What the program ends with, as shells say it; 0: there was none."""
        return 128 + self._by if self._by else 0


class RowFailed(Exception):
    """What was to be measured did not come about; says what. The figures that were taken hold."""

    def __init__(self, said: str, figures: dict[str, Figure]) -> None:
        super().__init__(said)
        self.figures = figures


class Unfit(Exception):
    """A file that is not the result of an earlier run of the same verb; says why."""


def run(
    verb: str,
    description: str,
    rows: Mapping[str, Row],
    *,
    derive: Callable[[dict[str, Figure]], dict[str, Any]] = lambda _figures: {},
) -> int:
    """Measure the rows that are asked for.

    Args:
        verb: of bin/bench.
        description: of it.
        rows: by name.
        derive: what else the JSON has, made of all its figures.
    """
    parser = argparse.ArgumentParser(prog=f"bin/bench {verb}", description=description)
    parser.add_argument("--quick", action="store_true", help="a tenth of the messages")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--rows", default=",".join(rows), help=f"of {', '.join(rows)}")
    parser.add_argument("--runs", type=int, default=5, help="runs of each figure")
    parser.add_argument(
        "--out", type=Path, help="write the JSON there, too; rows not run are kept as they were"
    )
    options = parser.parse_args()
    if options.runs < 1:
        parser.exit(2, f"{parser.prog}: --runs {options.runs}: wanted 1 or more\n")
    names = options.rows.split(",")
    unknown = sorted(set(names) - set(rows))
    if unknown:
        said = f"no such rows: {', '.join(unknown)}; there are {', '.join(rows)}"
        parser.exit(2, f"{parser.prog}: {said}\n")
    kept = earlier(parser, options.out)
    result: dict[str, Any] = {
        "bench": verb,
        "machine": machine(),
        "figures": kept.get("figures", {}),
    }
    interruption = Interruption()
    failed: list[str] = []
    try:
        for name in names:
            try:
                figures = rows[name](options)
            except RowFailed as failure:
                figures = failure.figures
                failed.append(f"{parser.prog}: row {name} failed: {failure}")
            for label, figure in figures.items():
                result["figures"][label] = figure
                _show(label, figure)
            result |= derive(result["figures"])
            if options.out:
                options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    except KeyboardInterrupt:
        print(f"interrupted in row {name}: what was measured before it", file=sys.stderr)
    for line in failed:
        print(line, file=sys.stderr)
    if options.json:
        print(json.dumps(result))
    return interruption.status or (1 if failed else 0)


def earlier(
    parser: argparse.ArgumentParser,
    out: Path | None,
    shape: Shape = FIGURE,
    *,
    more: tuple[str, ...] = (),
) -> dict[str, Any]:
    """What --out has of earlier runs of this verb. Its folder is made; the program ends where one
    cannot write there, or would write over what is another's: not once all is measured.

    Args:
        parser: of bin/bench VERB.
        out: what --out says.
        shape: of each of its figures.
        more: objects that the file may have beside its figures.
    """
    if out is None:
        return {}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a+", encoding="utf-8") as file:
            file.seek(0)
            text = file.read()
        if not text:
            out.unlink()  # it was not there; who ends early leaves nothing
            return {}
        return checked(text, verb_of(parser), shape, more=more)
    except (OSError, ValueError, Unfit) as error:
        said = f"--out {out}: want a file to write, or that of an earlier run: {error}"
        parser.exit(2, f"{parser.prog}: {said}\n")


def verb_of(parser: argparse.ArgumentParser) -> str:
    """Of bin/bench; as results name it."""
    return parser.prog.rpartition(" ")[2]


def checked(text: str, verb: str, shape: Shape, *, more: tuple[str, ...] = ()) -> dict[str, Any]:
    """A result that is of this verb, and has what its next run looks at.

    Raises:
        ValueError: it is no JSON.
        Unfit: it is of another verb, or has not.
    """
    result = json.loads(text)
    if not isinstance(result, dict) or result.get("bench") != verb:
        found = result.get("bench") if isinstance(result, dict) else None
        raise Unfit(f'"bench" in it is {json.dumps(found)}, not "{verb}"')
    for name in ("figures", *(name for name in more if name in result)):
        if not isinstance(result.get(name), dict):
            raise Unfit(f'no object "{name}" in it')
    for label, figure in result["figures"].items():
        for key, kind in shape.items():
            if not isinstance(figure, dict) or not isinstance(figure.get(key), kind):
                raise Unfit(f'"{key}" of "{label}" in it is missing or of another type')
    return result


def _show(label: str, figure: Figure) -> None:
    digits = ",.1f" if figure["median"] >= 10 else ",.3f"
    median, least, most = (format(figure[name], digits) for name in ("median", "min", "max"))
    print(
        f"{label:40} {median:>12} {figure['unit']:11} ({least} to {most}, {figure['runs']} runs)",
        flush=True,
    )
