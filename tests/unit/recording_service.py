"""A service that notes its steps, may fail in one and sends itself signals; prints how it lived.

A process of its own: python -m tests.unit.recording_service OPTIONS. One JSON object on standard
output: steps, error, is_mask_restored, pending (signal numbers that nobody took).
"""

import argparse
import os
import signal
import sys

import orjson

from shmq import service
from shmq.errors import ShmqError


class RecordingService:
    """Notes each step before anything else."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.steps: list[str] = []
        self._options = options

    def _step(self, name: str) -> None:
        self.steps.append(name)
        if name == self._options.fails_in:
            raise ShmqError(name)

    def start(self) -> None:
        self._step("start")
        _send(self._options.signal_after_start)

    def is_healthy(self) -> bool:
        self._step("health")
        looks = self.steps.count("health")
        if looks == self._options.signal_at_look:
            _send(signal.SIGTERM)
        return bool(looks <= self._options.healthy_looks)

    def reload(self) -> None:
        self._step("reload")
        _send(signal.SIGHUP if self.steps.count("reload") < 3 else signal.SIGTERM)

    def describe(self) -> str:
        return f"look {self.steps.count('health')}"

    def drain(self, timeout_s: float) -> None:
        self._step(f"drain {timeout_s}")
        _send(self._options.signal_while_draining)

    def stop(self) -> None:
        self._step("stop")


def _send(number: int) -> None:
    if number:
        os.kill(os.getpid(), number)


def main() -> None:
    """Live once and tell."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fails-in", default="")
    parser.add_argument("--drain-timeout", type=float, default=service.DRAIN_TIMEOUT_S)
    parser.add_argument("--healthy-looks", type=int, default=sys.maxsize)
    parser.add_argument("--reloads", action="store_true")
    parser.add_argument("--describes", action="store_true")
    for name in ("--signal-after-start", "--signal-while-draining", "--signal-at-look"):
        parser.add_argument(name, type=int, default=0)
    options = parser.parse_args()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a run of tests under nohup has it ignored
    recorder = RecordingService(options)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    error = ""
    try:
        service.run(
            recorder,
            name="x",
            drain_timeout_s=options.drain_timeout,
            on_reload=recorder.reload if options.reloads else None,
            describe=recorder.describe if options.describes else None,
        )
    except ShmqError as failure:
        error = str(failure)
    lived = {
        "steps": recorder.steps,
        "error": error,
        "is_mask_restored": signal.pthread_sigmask(signal.SIG_BLOCK, []) == before,
        "pending": sorted(signal.sigpending()),
    }
    sys.stdout.buffer.write(orjson.dumps(lived))


if __name__ == "__main__":
    main()
