"""Instructions per message of 100 B in the core, counted by callgrind: no clock, no neighbours.

    .venv/bin/python bench/micro/instructions.py [--out FILE]

Counts compare states of the code on any machine, not machines: an instruction that waits for memory
counts as one that does not. The program counted is instructions.c, built as the core is shipped.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ["-std=c11", "-O2", "-g"]
FIGURES = {
    "send": ("instructions_send", "claim, fill, commit, publish; one message a publish"),
    "send_batch": ("instructions_send_unpublished", "claim, fill, commit; published once for 64"),
    "append": ("instructions_append_one", "a whole turn for one message"),
    "append_batch": ("instructions_append_batch", "a turn of 64 messages, per message"),
    "complete": ("instructions_complete", "look at the completion, let go of it"),
    "receive": ("instructions_receive_one", "entry, frame, head; one message a call"),
    "receive_batch": ("instructions_receive_batch", "the same, 64 a call, per message"),
}


def build(folder: Path) -> Path:
    program = folder / "instructions"
    includes = [f"-I{ROOT / 'shmq/core/include'}", f"-I{ROOT / 'tests/c'}"]
    compiler = os.environ.get("CC", "gcc")
    subprocess.run([compiler, *FLAGS, *includes, str(SOURCE), "-o", str(program)], check=True)
    return program


def count(program: Path, function: str, folder: Path) -> float:
    """Instructions inside `function`, its callees included, per message."""
    out = folder / "callgrind.out"
    result = subprocess.run(
        [
            "valgrind",
            "--tool=callgrind",
            f"--toggle-collect={function}",
            f"--callgrind-out-file={out}",
            str(program),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    totals = re.search(r"^(?:totals|summary): (\d+)", out.read_text(), flags=re.MULTILINE)
    assert totals, "callgrind wrote no total"
    return int(totals[1]) / int(result.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/instructions.json")
    arguments = parser.parse_args()
    if shutil.which("valgrind") is None:
        print("valgrind not found: apt install valgrind", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = build(folder)
        figures = {
            figure: round(count(program, function, folder), 1)
            for figure, (function, _) in FIGURES.items()
        }
    compiler = subprocess.run(
        [os.environ.get("CC", "gcc"), "--version"], capture_output=True, text=True, check=True
    )
    valgrind = subprocess.run(["valgrind", "--version"], capture_output=True, text=True, check=True)
    report = {
        "machine": {
            "cpu": platform.machine(),
            "compiler": compiler.stdout.splitlines()[0],
            "flags": FLAGS,
            "valgrind": valgrind.stdout.strip(),
        },
        "unit": "instructions per message of 100 B, UNIQ_KEY and TAGS as properties",
        "figures": {
            figure: {"instructions": figures[figure], "what": what}
            for figure, (_, what) in FIGURES.items()
        },
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for figure, (_, what) in FIGURES.items():
        print(f"{figure:14} {figures[figure]:8.1f}  {what}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
