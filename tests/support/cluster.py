"""A NameServer and brokers as processes, and clients of them, for tests from outside.

What lives here: `Cluster`. Its brokers are small, take the test's cluster name, and are killed and
restarted by the test itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import shmq
from tests.cluster.namesrv_process import NamesrvProcess
from tests.support.broker_process import ROOT, BrokerProcess

WAIT_S = 60.0
_LOOK_S = 0.01


def wait_for(is_there: Callable[[], Any], what: str = "what is waited for") -> Any:
    """Look until it is true; what it gave."""
    waiting = threading.Event()
    for _ in range(int(WAIT_S / _LOOK_S)):
        found = is_there()
        if found:
            return found
        waiting.wait(_LOOK_S)
    raise AssertionError(f"{what} does not come in {WAIT_S} s")


class Cluster:
    """One NameServer and some brokers. A context manager."""

    def __init__(
        self,
        folder: Path,
        cluster_name: str,
        *,
        brokers: int = 1,
        group: int = -1,
        namesrv_arguments: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
        wrapper: tuple[str, ...] = (),
        **settings: str,
    ) -> None:
        """Start them.

        Args:
            folder: for the stores and the runtime folder.
            cluster_name: the test's.
            brokers: how many.
            group: gid of the runtime folder; -1: our own.
            namesrv_arguments: options of the NameServer.
            environment: of the brokers, beside our own.
            wrapper: of the brokers.
            settings: of the brokers.
        """
        self.runtime = folder / "run"
        self.runtime.mkdir(mode=0o750)
        os.chown(self.runtime, -1, group)
        with contextlib.ExitStack() as stack:
            self.namesrv = stack.enter_context(
                NamesrvProcess(self.runtime, *namesrv_arguments, wait=False)  # all start at once
            )
            self.brokers = [
                stack.enter_context(
                    BrokerProcess(
                        folder,
                        f"{cluster_name}",
                        name=f"broker-{letter}",
                        runtime=self.runtime,
                        wait=False,
                        environment=environment,
                        wrapper=wrapper,
                        **settings,
                    )
                )
                for letter in "abcd"[:brokers]
            ]
            self.namesrv.wait_ready()
            for broker in self.brokers:
                broker.wait_running()
            with self.connect() as client:
                wait_for(lambda: len(client.routes.brokers()) == brokers, "the registration")
            self._stack = stack.pop_all()

    def connect(self, **options: Any) -> shmq.Client:
        return shmq.connect(self.runtime, **options)

    @property
    def is_running(self) -> bool:
        """Whether none of its processes has ended."""
        members = [self.namesrv.process, *(broker.process for broker in self.brokers)]
        return all(member.poll() is None for member in members)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class Program:
    """A Python program of the cluster's, in a process of its own, that talks in lines of JSON. A
    context manager: it is killed if it still runs."""

    def __init__(
        self,
        source: str,
        *arguments: object,
        environment: Mapping[str, str] | None = None,
        wrapper: tuple[str, ...] = (),
    ) -> None:
        """Start it with arguments, and with `environment` beside our own; `wrapper` becomes it."""
        self.process = subprocess.Popen(
            [*wrapper, sys.executable, "-c", source, *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | dict(environment or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hear(self) -> Any:
        """Its next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"it ended with {self.process.wait()}"
        return json.loads(line)

    def say(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def end(self) -> int:
        """Close its standard input and wait."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        return self.process.wait(WAIT_S)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()
