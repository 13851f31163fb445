"""The protocols as Spin models: every interleaving and every death of small cases, and mutants.

A mutant is the model with one mistake planted (-DBUG_x): a model that does not find it proves
nothing.
"""

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.require import require_program
from tests.support.scale import QUICKLY, is_full_run

HERE = Path(__file__).parent
MODELS = {
    "turn": ["-DSENDS=5", "-DCRASHES=3"],
    "retire": ["-DFILES=5"],
    "confirm": ["-DMESSAGES=3", "-DCRASHES=2"],
    "takeover": ["-DBYTES=6", "-DCRASHES=4"],
}
"""The model, and what makes it larger in a full run."""


def mutants(model: str) -> list[str]:
    head = (HERE / f"{model}.pml").read_text(encoding="utf-8").partition("*/")[0]
    return re.findall(r"^ \*   ([A-Z_]+) ", head, flags=re.MULTILINE)


def verify(model: str, folder: Path, *defines: str) -> tuple[int, int]:
    """Errors found and states seen by an exhaustive search."""
    spin = require_program("spin", "spin")
    compiler = require_program("gcc", "gcc libc6-dev")
    source = HERE / f"{model}.pml"
    subprocess.run([spin, "-a", *defines, str(source)], cwd=folder, check=True, timeout=60)
    subprocess.run(
        [compiler, QUICKLY, "-w", "-DSAFETY", "-DCOLLAPSE", "-o", "pan", "pan.c"],
        cwd=folder,
        check=True,
        timeout=60,
    )
    result = subprocess.run(
        ["./pan", "-m200000"], cwd=folder, capture_output=True, text=True, check=True, timeout=900
    )
    found = re.search(r"errors: (\d+)", result.stdout)
    states = re.search(r"(\d+) states, stored", result.stdout)
    assert found, result.stdout
    assert states, result.stdout
    assert "max search depth too small" not in result.stdout, result.stdout
    return int(found[1]), int(states[1])


@pytest.mark.timeout(900)
@pytest.mark.parametrize("model", MODELS)
def test_model_holds_in_every_interleaving(model: str, tmp_path: Path) -> None:
    defines = MODELS[model] if is_full_run() else []
    errors, states = verify(model, tmp_path, *defines)
    print(f"{model}: {states} states")
    assert errors == 0
    assert states > 1000  # it did look at something


@pytest.mark.parametrize(("model", "bug"), [(m, b) for m in MODELS for b in mutants(m)])
def test_model_finds_the_planted_bug(model: str, bug: str, tmp_path: Path) -> None:
    errors, _ = verify(model, tmp_path, f"-DBUG_{bug}")
    assert errors > 0


def test_every_planted_bug_of_a_model_is_run() -> None:
    for model in MODELS:
        text = (HERE / f"{model}.pml").read_text(encoding="utf-8")
        used = set(re.findall(r"ifn?def BUG_([A-Z_]+)", text))
        assert used == set(mutants(model))
