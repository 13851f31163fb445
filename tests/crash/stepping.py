"""Holds a thread of another process instruction by instruction: the test's side of step.c.

What lives here: `Stepper`, and `Points`, which says at which instruction the next victim of a piece
of work is to be broken.
"""

from __future__ import annotations

import logging
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shmq.core import core
from tests.support.compiled import program
from tests.support.require import require_or_skip, require_program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

logger = logging.getLogger(__name__)
LEARN_MAX = 8
SEEK_TRIES = 10
SEEK_REST_US = 5000
"""Of each second try, every 64 instructions: what is done every 10 ms is done all the time."""
PROGRESS_VICTIMS = 1000
"""How many are broken between two lines of progress: full runs take long."""
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


def names_of(maps: str, addresses: Iterable[int]) -> list[str]:
    """What lies at some addresses of a process: functions, innermost first, and lines.

    Args:
        maps: /proc/PID/maps of the process.
        addresses: instructions.
    """
    begins: dict[str, int] = {}
    """Where each file would lie from its first byte on."""
    owners = []
    for line in maps.splitlines():
        span, _, place, _, _, *path = line.split(maxsplit=5)
        low, high = (int(end, 16) for end in span.split("-"))
        name = path[0] if path else "[anonymous]"
        begins.setdefault(name, low - int(place, 16))
        owners.append((low, high, name))
    named = []
    for address in sorted(addresses):
        name = next((name for low, high, name in owners if low <= address < high), "[nowhere]")
        place = hex(address - begins.get(name, 0))
        named.append(f"{_line_of(name, place)} ({Path(name).name}+{place})")
    return named


def _line_of(library: str, place: str) -> str:
    program = shutil.which("addr2line")
    if program is None or not Path(library).is_file():
        return "?"
    command = [program, "-f", "-i", "-p", "-s", "-e", library, place]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return " < ".join(line.replace("(inlined by)", "").strip() for line in said.splitlines())


class AstrayError(Exception):
    """A thread went another way than the one that was learnt: it stands at some later place."""


class Stepper:
    """One stepped thread after another. A context manager; what it holds at its end is killed."""

    stands_at = 0
    """Address of the instruction that the thread did not take any more."""
    repetitions_left = 0
    """How often it has yet to be done, if it is one that repeats itself."""

    def __init__(self) -> None:
        if platform.machine() != "x86_64":
            pytest.skip("the stepper knows x86-64 only")
        self.changes: list[int] = []
        """Which instructions of what was learnt, counted from 1, changed a watched object or were
        system calls."""
        self.maps = ""
        """/proc/PID/maps of the process whose work was learnt last."""
        self._tid = 0
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
        self.changes = []
        self._tid = tid
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

    def unwatch(self) -> None:
        """Look for changes no more."""
        self._ask("unwatch")
        self._answer()

    def watch(self, path: str, size: int) -> None:
        """Look for changes of this shared object in `learn`."""
        self._ask(f"watch {path} {size}")
        self._answer()

    def step(self, count: int) -> tuple[int, bool]:
        """So many instructions; (how many were taken so far, whether the work is over)."""
        return self._go_on("step", count)

    def leap(self, count: int) -> tuple[int, bool]:
        """As `step`, by breakpoints where the way is learnt: the time does not grow with the count.

        Raises:
            AstrayError: the thread went another way.
        """
        return self._go_on("leap", count)

    def meet(self, address: int, rest_us: int = 0) -> tuple[int, bool]:
        """Step by step to the next time that it stands at this instruction; as `step`.

        Args:
            address: of the instruction.
            rest_us: how long it stands still now and then, as on a busy machine.
        """
        return self._go_on(f"meet {address}", rest_us)

    def learn(self) -> list[int]:
        """To the end of the work: the addresses of its instructions, for later leaps; 0 is one of
        the vDSO, whose number depends on the time. What two ways in a row begin with is leapt over.
        """
        self.maps = Path(f"/proc/{self._tid}/maps").read_text(encoding="utf-8")
        self._ask("learn")
        _, taken, *addresses = self._answer()
        first = int(taken) - len(addresses)
        self.changes += [
            first + number for number, address in enumerate(addresses, 1) if address[-1] == "*"
        ]
        return [int(address.rstrip("*")) for address in addresses]

    def finish(self) -> None:
        """To the return of the function that was hit."""
        self._ask("finish")
        self._answer()

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
        word, taken, address, left = self._answer()
        if word == "astray":
            raise AstrayError
        self.stands_at, self.repetitions_left = int(address), int(left)
        return int(taken), word == "over"

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


def learn_until_sure(learn: Callable[[], list[int]]) -> list[list[int]]:
    """Learn until two ways in a row are the same but for the vDSO, or many times; the last two."""
    ways = [learn()]
    for _ in range(LEARN_MAX):
        ways.append(learn())
        if _without_vdso(ways[-1]) == _without_vdso(ways[-2]):
            break
    return ways[-2:]


def _without_vdso(way: list[int]) -> list[int]:
    return [address for address in way if address]


def go_through(
    go_on: Callable[[int], tuple[int, bool]], count: int, between: Callable[[], None]
) -> bool:
    """So many instructions of work that has two parts, with `between` between them; whether it was
    over.
    """
    taken, is_over = go_on(count)
    if is_over and taken < count:
        between()
        _, is_over = go_on(count - taken)
    return is_over


class Points:
    """At which instruction one victim after another is to be broken, until the points or the work
    are over. A victim that goes astray is broken where it stands, and the next one comes to the
    same point step by step. Where all instructions are wanted, those that nobody stood at by then
    are sought one by one: some are taken only when time passes as it does in single steps, each
    time after another number of others (what the append thread does every 10 ms, say).
    """

    def __init__(
        self,
        stepper: Stepper,
        ways: Iterable[list[int]],
        points: Iterable[int],
        *,
        first: int = 0,
        is_every: bool = False,
    ) -> None:
        """None is reached yet.

        Args:
            stepper: it has learnt the work.
            ways: what it gave then.
            points: counts of instructions; they may go on for ever.
            first: the count at which the ways begin, if it is not all of the work that matters.
            is_every: whether that is each instruction, which `report` then holds it to.
        """
        self._stepper = stepper
        self.ways = list(ways)
        self._is_every = is_every
        self._least = first + max(map(len, self.ways))
        self._points = iter(points)
        self._at = next(self._points)
        self._is_leaping = True
        self._sought = self._seek()
        self._seeks: tuple[int, int] | None = None
        """The address of the instruction that is sought, and the rest of the thread meanwhile."""
        self._stood: set[int] = set()
        self.is_over = False
        self.count = 0
        self.sought_count = 0
        self.astray_count = 0

    def reach(self, between: Callable[[], None] = lambda: None) -> None:
        """Bring the victim that is held to its point.

        Args:
            between: waits for the moment in which the work goes on behind its first end.
        """
        self.count += 1
        if self.count % PROGRESS_VICTIMS == 0:
            logger.info("%d victims so far, the next one at %d", self.count, self._at)
        if self._seeks is not None:
            self._reach_sought(*self._seeks, between)
        elif not self._reach_point(between):
            return
        self._stood.add(self._stepper.stands_at)
        if self._seeks is not None or self.is_over:
            self._seeks = next(self._sought, None)
            self.is_over = self._seeks is None

    def _reach_point(self, between: Callable[[], None]) -> bool:
        """Whether it came there."""
        try:
            is_work_over = go_through(
                self._stepper.leap if self._is_leaping else self._stepper.step, self._at, between
            )
        except AstrayError:
            self.astray_count += 1
            self._is_leaping = False
            return False
        self._is_leaping = True
        following = next(self._points, None)
        self.is_over = following is None or (is_work_over and self._at >= self._least)
        self._at = following or 0
        return True

    def _reach_sought(self, address: int, rest_us: int, between: Callable[[], None]) -> None:
        self.sought_count += 1
        _, is_over = self._stepper.meet(address, rest_us)
        if is_over:
            between()
            self._stepper.meet(address, rest_us)

    def _seek(self) -> Iterator[tuple[int, int]]:
        for number in range(SEEK_TRIES if self._is_every else 0):
            for address in sorted(self._missed()):
                yield address, number % 2 * SEEK_REST_US

    def _missed(self) -> set[int]:
        return self._known() - self._stood

    def _known(self) -> set[int]:
        return set.intersection(*map(set, self.ways)) - {0}

    def report(self, what: str) -> None:
        """Say how many were broken; if all were to be, each address of the work had one."""
        lengths = [len(way) for way in self.ways]
        missed = self._missed()
        logger.info(
            "%s: %d victims, %s instructions at %d addresses, none at %d of them, %d astray, "
            "%d sought",
            what, self.count, lengths, len(self._known()), len(missed), self.astray_count,
            self.sought_count,
        )  # fmt: skip
        if self._is_every and missed:
            named = names_of(self._stepper.maps, missed)
            raise AssertionError(f"none stood at {len(missed)}:\n" + "\n".join(named))
