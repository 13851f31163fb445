"""Every reader of the store's files against damaged files: an answer or an error of ours, in time,
and no byte read out of bounds (the core runs under AddressSanitizer and UBSan).
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.stress.file_fuzzer import READERS
from tests.support.dev_shm import RUN_TOKEN
from tests.support.sanitized import sanitized_environ, sanitized_tree
from tests.support.scale import is_full_run, scaled

COUNT = scaled(1500, 200_000)


@pytest.mark.stress
@pytest.mark.slow
@pytest.mark.timeout(36_000 if is_full_run() else 240)
def test_damaged_files_give_an_answer_or_an_error_of_ours(
    tmp_path: Path, rng: random.Random
) -> None:
    seed = rng.getrandbits(32)
    tree = sanitized_tree(tmp_path / "sanitized")
    # In memory: a recovery syncs a dozen times.
    with tempfile.TemporaryDirectory(prefix=f"{RUN_TOKEN}fuzz", dir="/dev/shm") as folder:
        result = subprocess.run(
            [sys.executable, "-m", "tests.stress.file_fuzzer", str(seed), str(COUNT), folder],
            cwd=tree,
            env={**os.environ, **sanitized_environ()},
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.returncode == 0, f"seed {seed}: {result.stderr[-20_000:]}"
    outcomes = json.loads(result.stdout)
    assert sum(outcomes.values()) == COUNT
    readers = {reader.__name__ for found in READERS.values() for reader in found}
    assert {name.split(":")[0] for name in outcomes} == readers
