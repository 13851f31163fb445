"""What the tests stand on finds leaks, races, hangs and missing things when they are planted."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.c.conftest import STRICT, VARIANTS, CProgramFailed, run
from tests.support.dev_shm import DEV_SHM, RUN_TOKEN, left_behind, ours_in_dev_shm
from tests.support.footprint import Footprint, differences
from tests.support.require import require_or_skip, require_program
from tests.support.scale import scaled

HANG = 'int main(void) { for (;;) { __asm__ volatile(""); } }'
RACE = """
#include <pthread.h>
static int word;
static void *add(void *unused) { word++; return unused; }
int main(void)
{
    pthread_t thread;
    pthread_create(&thread, 0, add, 0);
    word++;
    return pthread_join(thread, 0);
}
"""
OVERRUN = (
    "int main(int count, char **words) { int row[2] = {0}; (void)words; return row[count + 1]; }"
)
OVERFLOW = "int main(int count, char **words) { (void)words; return (count + 0x7fffffff) == 3; }"


@pytest.fixture
def planted() -> Iterator[list[Path]]:
    """Objects in /dev/shm that the test puts there; gone when it ends."""
    paths: list[Path] = []
    yield paths
    for path in paths:
        path.unlink(missing_ok=True)


def _plant(planted: list[Path], name: str) -> str:
    path = DEV_SHM / name
    path.touch()
    planted.append(path)
    return name


def test_leak_of_this_run_is_found(planted: list[Path], cluster_name: str) -> None:
    before = ours_in_dev_shm()
    name = _plant(planted, f"shmq.{cluster_name}.b.0")
    assert left_behind(before, strict=False) == [name]
    assert left_behind(before, strict=True) == [name]


def test_object_that_was_there_before_is_no_leak(planted: list[Path], cluster_name: str) -> None:
    _plant(planted, f"shmq.{cluster_name}.b.0")
    assert left_behind(ours_in_dev_shm(), strict=True) == []


def test_neighbours_object_is_no_leak(planted: list[Path]) -> None:
    before = ours_in_dev_shm()
    _plant(planted, f"shmq.t{1:x}x0.b.0")
    assert left_behind(before, strict=False) == []
    assert left_behind(before, strict=True) == []


def test_object_without_a_token_is_a_leak_unless_somebody_else_holds_it(
    planted: list[Path], cluster_name: str
) -> None:
    before = ours_in_dev_shm()
    name = _plant(planted, "shmq.plain-" + cluster_name.replace(RUN_TOKEN, ""))
    assert left_behind(before, strict=False) == [name]


def test_missing_thing_skips_here_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "")
    with pytest.raises(pytest.skip.Exception, match="no-such-program not found: apt install none"):
        require_program("no-such-program", "none")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="required in CI: a thing"):
        require_or_skip("a thing")


def test_what_a_process_holds_is_counted_by_kind(tmp_path: Path) -> None:
    before = Footprint.of(os.getpid())
    with (tmp_path / "log.1").open("wb"), (tmp_path / "log.2").open("wb"):
        now = Footprint.of(os.getpid())
    assert list(differences(before.counts, now.counts)) == ["fds: log.#: 0 before, 2 now"]
    assert list(differences(before.counts, now.counts, {"log.#": 2})) == []
    (told,) = differences(before.counts, now.counts, {"log.#": 1})
    assert told == "fds: log.#: 0 before, 2 now, 1 at most"


def test_full_runs_do_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHMQ_FULL", raising=False)
    assert scaled(1, 100) == 1
    monkeypatch.setenv("SHMQ_FULL", "1")
    assert scaled(1, 100) == 100


@pytest.mark.parametrize(
    ("variant", "code", "said"),
    [
        ("tsan", RACE, "data race"),
        ("asan_ubsan", OVERRUN, "out of bounds"),
        ("asan_ubsan", OVERFLOW, "signed integer overflow"),
        ("asan_ubsan", HANG, "still running after 1 s"),
        ("tsan", HANG, "in main"),
        ("asan_ubsan", "int main(void) { return 3; }", "exit 3"),
    ],
)
def test_c_program_that_fails_is_told(tmp_path: Path, variant: str, code: str, said: str) -> None:
    compiler = require_program("gcc", "gcc")
    source = tmp_path / "planted.c"
    source.write_text(code, encoding="utf-8")
    program = tmp_path / "planted"
    command = [compiler, *STRICT, *VARIANTS[variant], str(source), "-o", str(program), "-lpthread"]
    subprocess.run(command, check=True)
    with pytest.raises(CProgramFailed, match=said):
        run(program, variant=variant, limit_s=1.0)


def test_hang_that_no_signal_reaches_is_ended_with_every_stack(tmp_path: Path) -> None:
    """The hard limit of tests/conftest.py, in a run of its own."""
    test = tmp_path / "test_planted.py"
    test.write_text(
        "import ctypes, signal, pytest\n"
        "import sys\n"
        "conftest = next(m for m in sys.modules.values() if hasattr(m, 'HARD_LIMIT_EXTRA_S'))\n"
        "conftest.HARD_LIMIT_EXTRA_S = 0.5\n"
        "@pytest.mark.timeout(1)\n"
        "def test_hangs():\n"
        "    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})\n"
        "    ctypes.PyDLL(None).pause()  # holds the GIL for ever\n",
        encoding="utf-8",
    )
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "pytest", "-q", f"-ocache_dir={tmp_path / 'cache'}"]
    result = subprocess.run(
        [*command, "--confcutdir=/", f"--rootdir={root}", f"-c{root}/pyproject.toml",
         "-p", "tests.conftest", str(test)],
        capture_output=True, text=True, check=False, cwd=root,
    )  # fmt: skip
    assert result.returncode == 1
    assert "Timeout (0:00:0" in result.stderr  # in CI a test may run twice
    assert "in test_hangs" in result.stderr
