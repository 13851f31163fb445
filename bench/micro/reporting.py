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
    names = options.rows.split(",")
    unknown = sorted(set(names) - set(rows))
    if unknown:
        said = f"no such rows: {', '.join(unknown)}; there are {', '.join(rows)}"
        parser.exit(2, f"{parser.prog}: {said}\n")
    result: dict[str, Any] = {"machine": machine(), "figures": {}}
    if options.out and options.out.exists():
        result["figures"] = json.loads(options.out.read_text(encoding="utf-8"))["figures"]
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


def _show(label: str, figure: Figure) -> None:
    digits = ",.1f" if figure["median"] >= 10 else ",.3f"
    median, least, most = (format(figure[name], digits) for name in ("median", "min", "max"))
    print(
        f"{label:40} {median:>12} {figure['unit']:11} ({least} to {most}, {figure['runs']} runs)",
        flush=True,
    )
