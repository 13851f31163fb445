"""Holds a thread of another process instruction by instruction: the test's side of step.c."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from pathlib import Path

import pytest

from shmq.core import core
from tests.support.compiled import program
from tests.support.require import require_or_skip, require_program

_SOURCE = Path(__file__).with_name("step.c")


@cache
def _symbols(library: str) -> dict[str, int]:
    nm = require_program("nm", "binutils")
    listed = subprocess.run([nm, library], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return {row[2]: int(row[0], 16) for row in rows if len(row) == 3 and row[1] in "tT"}


def address_of(pid: int, function: str) -> int:
    """Where a function of the extension begins in a process."""
    symbols = _symbols(core.__file__)
    if function not in symbols:
        require_or_skip(f"{core.__file__} has no symbol {function}: it was stripped")
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
    places = [line.split() for line in maps.splitlines() if line.endswith(core.__file__)]
    assert places, f"process {pid} has not loaded {core.__file__} (compiled anew meanwhile?)"
    base = int(places[0][0].split("-")[0], 16) - int(places[0][2], 16)
    return base + symbols[function]


class Stepper:
    """One stepped thread after another. A context manager; what it holds at its end is killed."""

    def __init__(self) -> None:
        if platform.machine() != "x86_64":
            pytest.skip("the stepper knows x86-64 only")
        self._driver = subprocess.Popen(
            [program(_SOURCE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def _ask(self, line: str) -> None:
        assert self._driver.stdin is not None
        self._driver.stdin.write(line + "\n")
        self._driver.stdin.flush()

    def _answer(self) -> list[str]:
        assert self._driver.stdout is not None
        line = self._driver.stdout.readline().strip()
        if line.startswith("error") and "not permitted" in line:
            require_or_skip(f"ptrace is forbidden here: {line}")
        assert line, "the stepper has ended"
        assert not line.startswith("error"), line
        return line.split()

    def seize(self, tid: int) -> None:
        """Trace this thread, which runs on."""
        self._ask(f"seize {tid}")
        self._answer()

    def plant(self, address: int) -> None:
        """Let it run to this function; `hit` waits until it is there."""
        self._ask(f"until {address}")
        self._answer()

    def hit(self) -> None:
        """Wait until the thread stands at the planted function's first instruction."""
        assert self._answer() == ["hit"]

    def begin(self) -> None:
        """Count instructions from here."""
        self._ask("begin")
        self._answer()

    def interrupt(self) -> None:
        """Stop it where it is; its work ends where it sleeps for events."""
        self._ask("interrupt")
        self._answer()

    def watch(self, path: str, size: int) -> None:
        """Look for changes of this shared object in `survey`."""
        self._ask(f"watch {path} {size}")
        self._answer()

    def step(self, count: int) -> tuple[int, bool]:
        """So many instructions; (how many were taken so far, whether the work is over)."""
        return self._go_on("step", count)

    def walk(self, count: int) -> tuple[int, bool]:
        """As `step`, but never standing in the vDSO, whose clock begins anew while time goes on."""
        return self._go_on("walk", count)

    def calls(self, count: int) -> tuple[int, bool]:
        """So many entries into and exits from system calls; the work is over when the thread waits
        for a packet.
        """
        return self._go_on("calls", count)

    def _go_on(self, verb: str, count: int) -> tuple[int, bool]:
        self._ask(f"{verb} {count}")
        word, taken = self._answer()
        return int(taken), word == "over"

    def survey(self) -> tuple[int, list[int]]:
        """To the end of the work: how many instructions it has, and which of them changed a
        watched object or were system calls.
        """
        self._ask("survey")
        _, taken, *changes = self._answer()
        return int(taken), [int(number) for number in changes]

    def kill(self) -> None:
        """SIGKILL to its process, which stands at an instruction."""
        self._ask("kill")
        self._answer()

    def stop(self) -> None:
        """Let go of it, stopped as by SIGSTOP at this instruction."""
        self._ask("stop")
        self._answer()

    def go(self) -> None:
        """Let go of it."""
        self._ask("go")
        self._answer()

    def __enter__(self) -> Stepper:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._driver.stdin is not None
        assert self._driver.stdout is not None
        self._driver.stdin.close()
        self._driver.stdout.close()
        self._driver.wait()
