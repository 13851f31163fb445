"""What must not be written, and what to write instead: bin/check lint names both."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.repository import ROOT

BANNED = {
    "import struct\nstruct.pack_into('<Q', bytearray(8), 0, 1)": "shmq.core verbs",
    "import multiprocessing.shared_memory": "shmq.shm.segment",
    "from multiprocessing import shared_memory": "shmq.shm.segment",
    "from multiprocessing import Process": "subprocess",
    "import pickle": "orjson",
    "from pickle import loads": "orjson",
    "import marshal": "orjson",
    "import os\nos.system('true')": "subprocess.run",
    "import os\nos.popen('true')": "subprocess.run",
    "import os\nos.fork()": "subprocess",
    "import time\ntime.time()": "shmq.clock",
    "from time import monotonic": "shmq.clock",
    "eval('1')": "ast.literal_eval",
    "exec('1')": "exec",
}


@pytest.mark.parametrize("code", BANNED, ids=lambda code: code.splitlines()[-1])
def test_banned_call_is_found_and_its_substitute_named(code: str) -> None:
    path = ROOT / "shmq/store/planted.py"  # a name only: ruff reads the code from stdin
    said = _ruff(code, path)
    assert BANNED[code] in said, said or "nothing was found"


def test_a_test_may_do_what_the_package_may_not() -> None:
    assert "TID251" not in _ruff("import os\nos.fork()", ROOT / "tests/unit/test_planted.py")


def _ruff(code: str, path: Path) -> str:
    ruff = Path(sys.executable).with_name("ruff")
    command = [ruff, "check", "--select=TID,S102,S301,S307", "--output-format=concise"]
    return subprocess.run(
        [*command, f"--stdin-filename={path}", "-"],
        input=f"{code}\n",
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    ).stdout
