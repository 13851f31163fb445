"""What all of bin/bench's verbs have in common: options, the table that is printed, the JSON."""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from measuring import Figure, machine

Row = Callable[[argparse.Namespace], dict[str, Figure]]


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
    result: dict[str, Any] = {"machine": machine(), "figures": kept.get("figures", {})}
    for name in names:
        for label, figure in rows[name](options).items():
            result["figures"][label] = figure
            _show(label, figure)
        result |= derive(result["figures"])
        if options.out:
            options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if options.json:
        print(json.dumps(result))
    return 0


def earlier(parser: argparse.ArgumentParser, out: Path | None) -> dict[str, Any]:
    """What --out has of earlier runs. Its folder is made; the program ends where one cannot write
    there: not once all is measured.
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
        kept: dict[str, Any] = {**json.loads(text)}
        kept["figures"] = {**kept["figures"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        said = f"--out {out}: want a file to write, or that of an earlier run: {error!r}"
        parser.exit(2, f"{parser.prog}: {said}\n")
    return kept


def _show(label: str, figure: Figure) -> None:
    digits = ",.1f" if figure["median"] >= 10 else ",.3f"
    median, least, most = (format(figure[name], digits) for name in ("median", "min", "max"))
    print(
        f"{label:40} {median:>12} {figure['unit']:11} ({least} to {most}, {figure['runs']} runs)",
        flush=True,
    )
