"""Many client processes: forked from one that has imported shmq and has no client of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

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
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def _expect(line: str, wanted: str) -> None:
    if line.strip() != wanted:
        raise SystemExit(f"the crowd said {line!r}, wanted {wanted}; what it said: above")


def _main(folder: str) -> None:
    import shmq

    print("ready", flush=True)
    places = [line.rstrip("\n").split(" ") for line in iter(sys.stdin.readline, "\n")]
    reading, writing = os.pipe()
    children = []
    for topic, group in places:
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            with shmq.connect(folder) as client:
                if group:
                    _consumer = client.consumer(topic, group)
                else:
                    client.producer().send(topic, b"here", timeout=60)
                os.write(writing, b"x")
                while True:  # until it is killed
                    signal.pause()
        children.append(pid)
    print(*children, flush=True)
    os.close(writing)
    missing = len(children)
    while missing:
        missing -= len(os.read(reading, missing)) or sys.exit("a client did not come")
    print("attached", flush=True)
    sys.stdin.read()
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    for pid in children:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    _main(sys.argv[1])
