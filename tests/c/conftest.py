"""Collects tests/c/test_*.c and fuzz_*.c: plain C programs, 0 is passed, run under the sanitizers.

Each is built and run with ASan and UBSan; a file that contains the line
`/* shmq-test: threads */` again with TSan. One with `/* shmq-test: plain */` is built as the core
is shipped and without sanitizers: it steps through those very instructions.
`/* shmq-test: timeout 300 */` gives it more than LIMIT_S, `full-timeout` the same in full runs.
Programs are kept in build/c and rebuilt when a source, a header or a flag changes. A
program that hangs is ended with SIGABRT, on which the sanitizer prints its stack.
"""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

from tests.support.require import require_program
from tests.support.scale import QUICKLY, is_full_run

ROOT = Path(__file__).resolve().parents[2]
INCLUDE = ROOT / "shmq/core/include"
LIMIT_S = 100.0
KEPT_S = 3600.0  # younger programs may be another run's, of another state of the tree
STRICT = ["-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", "-g1"]
VARIANTS = {
    "asan_ubsan": [QUICKLY, "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    # gcc 12 warns of variables it takes for uninitialized between its own instrumentation
    "tsan": [QUICKLY, "-fsanitize=thread", "-Wno-maybe-uninitialized"],
    "plain": ["-O2"],
}
SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "handle_abort=1:detect_stack_use_after_return=1:strict_string_checks=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:handle_abort=1:second_deadlock_stack=1",
}


def pytest_collect_file(parent: pytest.Collector, file_path: Path) -> pytest.File | None:
    if file_path.suffix == ".c" and file_path.name.startswith(("test_", "fuzz_")):
        return CFile.from_parent(parent, path=file_path)
    return None


class CFile(pytest.File):
    """One C program; its items are the ways it is built."""

    def collect(self) -> Iterable[pytest.Item]:
        text = self.path.read_text(encoding="utf-8")
        limits = dict(re.findall(r"/\* shmq-test: (timeout|full-timeout) (\d+) \*/", text))
        limit = limits.get("timeout", LIMIT_S)
        if is_full_run():
            limit = limits.get("full-timeout", limit)
        if "/* shmq-test: plain */" in text:
            variants = ["plain"]
        elif "/* shmq-test: threads */" in text:
            variants = ["asan_ubsan", "tsan"]
        else:
            variants = ["asan_ubsan"]
        for variant in variants:
            item = CProgram.from_parent(self, name=variant)
            item.limit_s = float(limit)
            item.add_marker(pytest.mark.timeout(item.limit_s + 120))  # building included
            yield item


class CProgramFailed(Exception):
    """What the compiler or the program said; shown without a Python traceback."""


class CProgram(pytest.Item):
    """One C program in one variant."""

    limit_s: float

    def runtest(self) -> None:
        program = self.build()
        run(program, variant=self.name, limit_s=self.limit_s)

    def build(self) -> Path:
        compiler = require_program(os.environ.get("CC", "gcc"), "gcc libc6-dev")
        includes = [f"-I{INCLUDE}", f"-I{self.path.parent}"]
        command = [compiler, *STRICT, *VARIANTS[self.name], *includes, str(self.path)]
        program = ROOT / "build/c" / f"{self.path.stem}.{self.name}.{key(command, self.path)}"
        if program.exists():
            return program
        program.parent.mkdir(parents=True, exist_ok=True)
        for old in program.parent.glob(f"{self.path.stem}.{self.name}.*"):
            try:
                if time.time() - old.stat().st_mtime > KEPT_S:
                    old.unlink()
            except FileNotFoundError:  # another run was quicker
                pass
        made = program.with_suffix(f"{program.suffix}.{os.getpid()}")
        result = subprocess.run(
            [*command, "-o", str(made), "-lpthread", "-lm"],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            raise CProgramFailed(f"{' '.join(command)}\n{result.stderr}")
        made.rename(program)
        return program

    def repr_failure(
        self, excinfo: pytest.ExceptionInfo[BaseException], style: object = None
    ) -> str:
        if isinstance(excinfo.value, CProgramFailed):
            return str(excinfo.value)
        return str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, f"{self.path.stem} [{self.name}]"


def key(command: list[str], source: Path) -> str:
    """A digest of everything the program is made of."""
    digest = hashlib.sha256(repr(command).encode())
    for path in [source, *sorted(INCLUDE.rglob("*.h")), *sorted(source.parent.glob("*.h"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def fixed_layout() -> list[str]:
    """A prefix that turns address randomisation off, for TSan's shadow does not fit every layout.

    Empty where that is forbidden (some containers): TSan then mostly copes by itself.
    """
    setarch = shutil.which("setarch")
    if setarch and subprocess.run([setarch, "-R", "true"], check=False).returncode == 0:
        return [setarch, "-R"]
    return []


def run(program: Path, *, variant: str, limit_s: float) -> None:
    """Run to the end; raise what it said if it fails, and its stack if it hangs."""
    command = [str(program)]
    if variant == "tsan":
        command = [*fixed_layout(), *command]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | SANITIZER_OPTIONS,
        start_new_session=True,
    ) as child:
        try:
            output, _ = child.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGABRT)
            try:
                output, _ = child.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                output, _ = child.communicate()
            raise CProgramFailed(
                f"{program.name}: still running after {limit_s:.0f} s\n{output}"
            ) from None
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            raise
    if child.returncode:
        raise CProgramFailed(f"{program.name}: exit {child.returncode}\n{output}")
