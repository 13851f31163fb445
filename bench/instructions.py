"""bin/bench instructions: per message of 100 B in the core, counted by callgrind.

    bin/bench instructions [--check] [--json] [--out FILE]

No clock and no neighbour is in a count: it compares states of the code on any machine, not
machines, for an instruction that waits for memory counts as one that does not. The program counted
is bench/micro/instructions.c, built as the core is shipped. The counts are written down in
bench/results/instructions.json; with --check they are compared with those instead, and the program
ends with 1 if one of them has grown.
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
from typing import Any

sys.path.insert(0, str(Path(__file__).with_name("micro")))

from reporting import NUMBER, Shape, Unfit, checked, earlier

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "bench/micro/instructions.c"
RESULTS = ROOT / "bench/results/instructions.json"
FLAGS = ["-std=c11", "-O2"]
"""Without -g: with it what a function inlined is listed as another file's."""
FIGURES = {
    "send": ("instructions_send", "claim, fill, commit, publish; one message a publish"),
    "send_batch": ("instructions_send_unpublished", "claim, fill, commit; published once for 64"),
    "append": ("instructions_append_one", "a whole turn for one message"),
    "append_batch": ("instructions_append_batch", "a turn of 64 messages, per message"),
    "complete": ("instructions_complete", "look at the completion, let go of it"),
    "receive": ("instructions_receive_one", "entry, frame, head; one message a call"),
    "receive_batch": ("instructions_receive_batch", "the same, 64 a call, per message"),
}
COUNT: Shape = {"instructions": NUMBER}
GROWTH_MAX = 0.02
"""Of a count, with the compiler it was written down with: what a change may cost unnoticed."""
GROWTH_MAX_ELSEWHERE = 0.15
"""With another compiler: a guess at what its choices make."""


class NotCounted(Exception):
    """A program that counting needs is not there, or failed; says what."""


def report() -> dict[str, Any]:
    """The counts as they are written down, with what they were taken with.

    Raises:
        NotCounted: no valgrind, no compiler, or one of them failed.
    """
    compiler = os.environ.get("CC", "gcc")
    with tempfile.TemporaryDirectory() as name:
        program = Path(name, "instructions")
        includes = [f"-I{ROOT / 'shmq/core/include'}", f"-I{ROOT / 'tests/c'}"]
        _run([compiler, *FLAGS, *includes, str(SOURCE), "-o", str(program)])
        counts = _count(program, Path(name, "callgrind.out"))
    return {
        "bench": "instructions",
        "machine": {
            "cpu": platform.machine(),
            "compiler": _run([compiler, "--version"]).splitlines()[0],
            "flags": FLAGS,
            "valgrind": _run(["valgrind", "--version"]).strip(),
        },
        "unit": "instructions per message of 100 B, UNIQ_KEY and TAGS as properties",
        "figures": {
            figure: {"instructions": round(counts[function], 1), "what": what}
            for figure, (function, what) in FIGURES.items()
        },
    }


def grown(now: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """What costs more than it did, a line each."""
    is_same = all(now["machine"][name] == before["machine"][name] for name in ("cpu", "compiler"))
    most = GROWTH_MAX if is_same else GROWTH_MAX_ELSEWHERE
    found = []
    for figure, known in now["figures"].items():
        counted, wanted = known["instructions"], before["figures"][figure]["instructions"]
        if counted > wanted * (1 + most):
            found.append(
                f"{figure}: {counted} instructions a message, {wanted} before "
                f"(+{counted / wanted - 1:.1%}, allowed {most:.0%}): {known['what']}"
            )
    return found


def written_down(path: Path) -> dict[str, Any]:
    """What counts can be compared with.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON.
        Unfit: it is no result of this program, or has not all the figures.
    """
    text = path.read_text(encoding="utf-8")
    result = checked(text, "instructions", COUNT, more=("machine",))
    missing = sorted(FIGURES.keys() - result["figures"].keys())
    if missing:
        raise Unfit(f"no figures {', '.join(missing)} in it")
    if not {"cpu", "compiler"} <= result.get("machine", {}).keys():
        raise Unfit("it does not say with which cpu and compiler")
    return result


def _count(program: Path, out: Path) -> dict[str, float]:
    """By function of the program: instructions per message, its callees included."""
    callgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", str(program)]
    messages = int(_run(callgrind))
    annotate = ["callgrind_annotate", "--inclusive=yes", "--threshold=100", "--auto=no", str(out)]
    counts = {}
    for line in _run(annotate).splitlines():
        match = re.match(r"\s*([\d,]+) .*:(instructions_\w+)", line)
        if match:
            counts[match[2]] = int(match[1].replace(",", "")) / messages
    missing = sorted({function for function, _ in FIGURES.values()} - counts.keys())
    if missing:
        raise NotCounted(f"callgrind_annotate {out.name}: no line for {', '.join(missing)}")
    return counts


def _run(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        package = "valgrind" if "grind" in command[0] else "gcc"
        raise NotCounted(f"{command[0]} not found: apt install {package}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise NotCounted(f"{command[0]} ended with {done.returncode}: {said[-1]}")
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bin/bench instructions", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--out", type=Path, default=RESULTS, help="written there, or compared with")
    options = parser.parse_args()
    before = None
    if options.check:
        try:
            before = written_down(options.out)
        except (OSError, ValueError, Unfit) as problem:
            parser.exit(2, f"{parser.prog}: --check: {options.out}: {problem}\n")
    else:
        earlier(parser, options.out, COUNT)
    try:
        now = report()
    except NotCounted as problem:
        print(f"bin/bench instructions: {problem}", file=sys.stderr)
        return 2
    for figure, known in now["figures"].items():
        print(f"{figure:14} {known['instructions']:8.1f}  {known['what']}")
    worse = []
    if before is None:
        options.out.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")
    else:
        worse = grown(now, before)
        for line in worse:
            print(line, file=sys.stderr)
    if options.json:
        print(json.dumps(now))
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
