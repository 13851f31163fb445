"""bin/bench micro: what one message costs, on this machine, through a real broker.

    bin/bench micro [--quick] [--json] [--rows put,send,...] [--out FILE]

Each figure is the median of several runs, with the least and the greatest beside it, what bounds
it, and how much of a core other programs took meanwhile (a disturbed run is done again). A private
cluster (shmq.local) is started for each group of rows; its store lies in this checkout, on the file
system that is measured. Compare ratios, not absolute times: machines and neighbours differ.
How each figure is taken: bench/README.md; the rows are in bench/micro/.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).with_suffix("")))

from base import row_base
from core import row_core
from flushing import row_flush
from latency import row_latency
from measuring import Figure, machine
from receiving import row_receive
from recovering import row_recovery, row_standing
from sending import (
    row_producers,
    row_put,
    row_put_many,
    row_send,
    row_sustained,
)

ROWS = {
    "base": row_base,
    "core": row_core,
    "put": row_put,
    "put_many": row_put_many,
    "send": row_send,
    "producers": row_producers,
    "sustained": row_sustained,
    "receive": row_receive,
    "latency": row_latency,
    "flush": row_flush,
    "recovery": row_recovery,
    "standing": row_standing,
}


def show(label: str, figure: Figure) -> None:
    digits = ",.1f" if figure["median"] >= 10 else ",.3f"
    median, least, most = (format(figure[name], digits) for name in ("median", "min", "max"))
    print(
        f"{label:36} {median:>12} {figure['unit']:11} ({least} to {most}, {figure['runs']} runs)",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="bin/bench micro", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the messages")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {', '.join(ROWS)}")
    parser.add_argument("--runs", type=int, default=5, help="runs of each figure")
    parser.add_argument(
        "--out", type=Path, help="write the JSON there, too; rows not run are kept as they were"
    )
    options = parser.parse_args()
    names = options.rows.split(",")
    unknown = sorted(set(names) - set(ROWS))
    if unknown:
        parser.error(f"no such rows: {', '.join(unknown)}; there are {', '.join(ROWS)}")
    result: dict[str, Any] = {"machine": machine(), "figures": {}}
    if options.out and options.out.exists():
        result["figures"] = json.loads(options.out.read_text(encoding="utf-8"))["figures"]
    for name in names:
        for label, figure in ROWS[name](options).items():
            result["figures"][label] = figure
            show(label, figure)
        if options.out:
            options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if options.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
