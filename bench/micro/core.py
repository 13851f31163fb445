"""The stages of one message in C, without Python: producer, append role, reader."""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

from measuring import ROOT, SIZES, Figure, count_for, figure, undisturbed

SOURCE = Path(__file__).with_suffix(".c")
STAGES = {
    "put": ("c send", "the copy into the ring; the body comes from the cache"),
    "append": ("c append", "memory: frame and entry are written, the body is read twice"),
    "read": ("c receive", "memory: one frame head a message"),
    "pipe": ("c send to append, two threads", "append thread"),
}


def row_core(options: argparse.Namespace) -> dict[str, Figure]:
    """Each stage alone, and producer and append thread side by side."""
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "core")
        subprocess.run(
            [
                *(os.environ.get("CC", "gcc"), "-std=c11", "-O2", "-g", "-pthread"),
                *(f"-I{ROOT / 'shmq/core/include'}", f"-I{ROOT / 'tests/c'}"),
                *(str(SOURCE), "-o", str(program)),
            ],
            check=True,
        )

        def run(mode: str, size: int, count: int) -> dict[str, float]:
            done = subprocess.run(
                [str(program), mode, str(size), str(count)],
                check=True,
                capture_output=True,
                text=True,
            )
            return dict(json.loads(done.stdout))

        for name, size in SIZES.items():
            count = count_for(size, options.quick)
            for mode in ("stages", "pipe"):
                measured, share = undisturbed(
                    lambda _, mode=mode, size=size, count=count: run(mode, size, count),
                    options.runs,
                )
                for stage in set(STAGES) & set(measured[0]):
                    label, bound = STAGES[stage]
                    figures[f"{label} {name}"] = figure(
                        [values[stage] for values in measured],
                        "ns/message",
                        bound,
                        foreign_cpu_max=share,
                    )
        hops, hop_share = undisturbed(
            lambda _: run("hop", SIZES["100B"], 100_000)["hop"], options.runs
        )
        waken, share = undisturbed(lambda _: run("wake", 0, 1000)["wake"], options.runs)
    ordered = {
        f"{label} {name}": figures[f"{label} {name}"]
        for label, _ in STAGES.values()
        for name in SIZES
    }
    hop_bound = "two lines of cache that change cores, and the append"
    bound = "an idle core, and the hypervisor below it"
    return {
        **ordered,
        "c send to committed and back 100B, p50": figure(
            hops, "ns", hop_bound, foreign_cpu_max=hop_share
        ),
        "c wake-up, p50": figure(waken, "ns", bound, foreign_cpu_max=share),
    }
