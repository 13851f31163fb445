"""The README's commands on a fresh clone: as a user who is not root, from another folder, twice in
a row, and on a machine that lacks what only the system can give.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dev_shm import left_behind, ours_in_dev_shm
from tests.support.repository import ROOT
from tests.support.require import require_program, require_root

pytestmark = [pytest.mark.ci, pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

USER = "nobody"
LAST_LINE = re.compile(
    r"demo: (\d+) lines sent, (\d+) received, 0 lost, 0 out of order, \d+ doubled, "
    r"p50 [\d.]+ us, \d+ msg/s"
)
SYSTEM_PYTHON = "/usr/bin/python3"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A clone that belongs to somebody else, in a folder that he may enter."""
    require_root()
    setpriv = require_program("setpriv", "util-linux")
    require_program(SYSTEM_PYTHON, "python3 python3-venv python3-dev")
    home = Path("/tmp") / f"shmq-clone-{os.getpid()}"
    home.mkdir(mode=0o755)
    try:
        subprocess.run(["git", "clone", "-q", str(ROOT), str(home / "shmq")], check=True)
        subprocess.run(["chown", "-R", USER, str(home)], check=True)
        assert setpriv
        yield home / "shmq"
    finally:
        shutil.rmtree(home)


def _as_user(clone: Path, command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """A shell command of the user, in his home, with nothing of ours in the environment."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return subprocess.run(
        ["setpriv", "--reuid", USER, "--regid", "nogroup", "--clear-groups", "sh", "-c", command],
        cwd=clone.parent,
        env={**kept, "PATH": path, "HOME": str(clone.parent), "LANG": "C.UTF-8", **environ},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )


def _left(clone: Path) -> list[str]:
    """What git calls ignored or new at the top of the clone."""
    done = _as_user(clone, f"git -C {clone} status --porcelain --ignored=matching")
    return sorted({line[3:].split("/")[0] for line in done.stdout.splitlines()})


def test_demo_runs_twice_as_another_user_from_another_folder(clone: Path) -> None:
    for attempt in ("first", "second"):
        done = _as_user(clone, "shmq/bin/demo --lines 2000 shmq/README.md")
        assert done.returncode == 0, done.stderr
        match = LAST_LINE.fullmatch(done.stdout.splitlines()[-1])
        assert match, done.stdout
        assert int(match[1]) == int(match[2]) >= 2000
        assert ("installing" in done.stderr) == (attempt == "first")
    assert set(_left(clone)) <= {".venv", "build", ".setup.lock", "shmq", "shmq.egg-info"}


def test_tests_run_as_another_user_from_another_folder(clone: Path) -> None:
    for _ in range(2):
        done = _as_user(
            clone, "shmq/bin/test tests/unit/test_clock.py tests/unit/core/test_layout.py"
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(r"^\d+ passed", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("missing", "package"),
    [
        ("gcc", "apt install gcc"),
        ("ensurepip", "apt install python3-venv"),
        ("Python.h", "apt install python3-dev"),
    ],
)
def test_what_only_the_system_can_give_is_named(missing: str, package: str, tmp_path: Path) -> None:
    require_root()
    hide = _hide(missing, tmp_path)
    bare = tmp_path / "bare"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(bare)], check=True)
    for verb in ("demo", "test"):
        done = subprocess.run(
            [
                "unshare",
                "--mount",
                "sh",
                "-c",
                f"{hide} && exec {bare}/bin/{verb}",
            ],
            env={**os.environ, "SHMQ_PYTHON": SYSTEM_PYTHON},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 1, done.stdout + done.stderr
        said = done.stderr.splitlines()[-1]
        assert said.startswith("error: ")
        assert package in said


def _hide(missing: str, folder: Path) -> str:
    """The shell command that takes it away, in a mount namespace of its own."""
    if missing == "gcc":
        return f"mount --bind /dev/null {Path(require_program('gcc', 'gcc')).resolve()}"
    if missing == "ensurepip":
        (folder / "absent.py").write_text("raise ImportError('not installed')\n")
        place = _system_python("import ensurepip; print(ensurepip.__file__)")
        return f"mount --bind {folder / 'absent.py'} {place}"
    headers = _system_python("import sysconfig; print(sysconfig.get_path('include'))")
    return f"mount -t tmpfs none {headers}"


def _system_python(code: str) -> str:
    done = subprocess.run([SYSTEM_PYTHON, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_demo_of_this_checkout_ends_with_its_line() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "shmq.tools.demo", "--lines", "5000", str(ROOT / "README.md")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert LAST_LINE.fullmatch(done.stdout.splitlines()[-1]), done.stdout


def test_demo_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    before = ours_in_dev_shm()
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "shmq.tools.demo", "--lines", "2000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        cwd=ROOT,
        text=True,
        start_new_session=True,  # as a terminal: the interrupt goes to all of the group
    ) as demo:
        assert demo.stdout is not None
        assert any("SIGKILL now" in line for line in demo.stdout)
        os.killpg(demo.pid, signal.SIGINT)
        _, said = demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert said.splitlines()[-1] == "demo: interrupted"
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []
    assert left_behind(before, strict=False) == []
