"""Programs of roles.py as processes of their own, and what the kernel says of processes."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from measuring import LULL_S, Foreign

_ROLES = Path(__file__).with_name("roles.py")


class Program:
    """One process with a role."""

    def __init__(self, role: str, *arguments: object, file: Path = _ROLES) -> None:
        self._role = role
        self._process = subprocess.Popen(
            [sys.executable, str(file), role, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,  # Ctrl-C at the terminal is not for it
        )
        self.pid = self._process.pid

    def tell(self, count: int | str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a program that was to {self._role} ended early; what it said: above")
        return line

    def ask(self, count: int | str) -> str:
        self.tell(count)
        return self.answer()

    def kill(self) -> None:
        """SIGKILL; returns at once."""
        self._process.kill()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


class Programs:
    """Starts programs."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._programs: list[Program] = []

    def start(self, role: str, *arguments: object, file: Path = _ROLES) -> Program:
        """One that is ready; its role is one of those in the file."""
        program = Program(role, *arguments, file=file)
        self._stack.callback(program.close)
        self._programs.append(program)
        program.answer()
        return program

    def kill(self) -> None:
        """All of them."""
        for program in self._programs:
            program.kill()


@contextmanager
def programs() -> Iterator[Programs]:
    """Programs that end with the block: what they hold is closed first, all of it."""
    with ExitStack() as stack:
        started = Programs(stack)
        try:
            yield started
        except KeyboardInterrupt:  # what they are at may take long
            started.kill()
            raise


def lull() -> float:
    """Wait half a second; the share of a core that others took. For runs in which processes die:
    what the dead had used cannot be told from what others use.
    """
    foreign = Foreign()
    time.sleep(LULL_S)
    return foreign.share()


def descendants() -> set[int]:
    """All processes under this one."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, wave = set[int](), {os.getpid()}
    while wave:
        wave = {pid for pid, parent in parents.items() if parent in wave}
        found |= wave
    return found


def cpu_ns(pids: set[int]) -> int:
    """Processor time that the living threads of these processes have used."""
    total = 0
    for pid in pids:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/schedstat", encoding="ascii") as file:
                total += int(file.read().split()[0])
    return total
