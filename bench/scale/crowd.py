"""Many client processes: forked from one that has imported shmq and has no client of its own, some
at a time, as a machine starts programs: were all of them attaching at once, each would wait for the
others' turns on the cores there are, and the first deadlines would be measured.
"""

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import shmq
from shmq.errors import ServiceNotAvailableError, ShmqError

AT_ONCE = 16
"""Clients that are attaching."""
ATTEMPTS = 10
COME = b"+"
"""What one says that is there."""
T = TypeVar("T")
Place = tuple[str, str]
"""(topic, group): where a client consumes; without a group it sends one message to the topic."""


class Crowd:
    """Clients that are there."""

    def __init__(self, alive: list[int], places: Sequence[Place], took_s: float) -> None:
        self.alive = alive
        """Their pids."""
        self.places = list(places)
        """Where each is."""
        self.took_s = took_s
        """Until all had attached."""


@contextmanager
def crowd(folder: Path, places: Sequence[Place]) -> Iterator[Crowd]:
    """As many clients as places; they end with the block."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,  # Ctrl-C at the terminal is not for it
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        _expect(process.stdout.readline(), "ready")
        begin = time.perf_counter()
        process.stdin.write("".join(f"{topic} {group}\n" for topic, group in places) + "\n")
        process.stdin.flush()
        pids = [int(pid) for pid in process.stdout.readline().split()]
        _expect(process.stdout.readline(), "attached")
        yield Crowd(pids, places, time.perf_counter() - begin)
    except KeyboardInterrupt:  # also while they attach
        process.send_signal(signal.SIGINT)
        raise
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def _expect(line: str, wanted: str) -> None:
    if line.strip() != wanted:
        raise SystemExit(f"the crowd said {line!r}, wanted {wanted}; what it said: above")


def _main(folder: str) -> None:
    print("ready", flush=True)
    places = [line.rstrip("\n").split(" ") for line in iter(sys.stdin.readline, "\n")]
    reading, writing = os.pipe()
    children: list[int] = []
    try:
        while len(children) < len(places):
            if len(children) >= AT_ONCE:
                _one_more(reading)
            pid = os.fork()
            if pid == 0:
                os.close(reading)
                _be_client(folder, *places[len(children)], writing)
            children.append(pid)
        print(*children, flush=True)
        for _ in range(min(AT_ONCE, len(children))):
            _one_more(reading)
        print("attached", flush=True)
        sys.stdin.read()
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        for pid in children:
            os.waitpid(pid, 0)


def _one_more(reading: int) -> None:
    """Wait until one more is there."""
    if os.read(reading, 1) != COME:
        sys.exit("a client did not come; why: above")


def _patiently(do: Callable[[], T]) -> T:
    """On a machine that is busy with others one may have to ask twice."""
    for _ in range(ATTEMPTS - 1):
        with suppress(ServiceNotAvailableError):
            return do()
    return do()


def _be_client(folder: str, topic: str, group: str, writing: int) -> None:
    """A child: attach, say so, and stay until it is killed."""
    said = b"-"
    try:
        with _patiently(partial(shmq.connect, folder)) as client:
            if group:
                _consumer = client.consumer(topic, group)
            else:
                _patiently(partial(client.producer().send, topic, b"here", timeout=60))
            os.write(writing, COME)
            said = b""
            while True:  # until it is killed
                signal.pause()
    except (ShmqError, OSError):
        traceback.print_exc()
    finally:
        os.write(writing, said)
        os._exit(1)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        _main(sys.argv[1])
