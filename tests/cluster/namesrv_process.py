"""NameServers as processes, for the tests of clusters; with small brokers, if run as a program.

python -m tests.cluster.namesrv_process [arguments of shmq.namesrv]

is a NameServer whose cluster file starts tests.unit.namesrv.tiny_broker in place of shmq.broker.
"""

import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from shmq.namesrv import __main__ as namesrv
from shmq.namesrv.namesrv import load_cluster
from shmq.remoting.client import Client
from shmq.remoting.runtime_folder import RuntimeFolder, namesrv_socket_name
from tests.support.repository import ROOT

REAL = "shmq.namesrv"
WITH_TINY_BROKERS = "tests.cluster.namesrv_process"


class NamesrvProcess:
    """One NameServer; a context manager that stops it if it still runs."""

    def __init__(
        self,
        runtime: Path,
        *arguments: str,
        name: str = "ns0",
        module: str = REAL,
        environ: dict[str, str] | None = None,
        wait: bool = True,
    ) -> None:
        """Start it, and wait until it serves; without `wait` it is for `wait_ready` to do so."""
        self.runtime = runtime
        self.name = name
        self.lines: list[str] = []
        self._reader: threading.Thread | None = None
        command = [sys.executable, "-m", module, "--runtime", str(runtime), "--name", name]
        self.process = subprocess.Popen(
            [*command, *arguments], stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environ
        )
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        self.wait_for(" ready name=")

    def wait_for(self, text: str) -> str:
        """Read its log until a line has `text`; that line."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if text in line:
                return line
        raise AssertionError(f"ended without {text!r}:\n{''.join(self.lines)}")

    def read_on(self) -> None:
        """From now on its log is read in a thread: a full pipe would stop one that runs long."""

        def read() -> None:
            assert self.process.stderr is not None
            self.lines.extend(self.process.stderr)

        self._reader = threading.Thread(target=read, daemon=True)
        self._reader.start()

    def connect(self) -> Client:
        with RuntimeFolder.open(self.runtime) as folder:
            return Client(folder, namesrv_socket_name(self.name), role="test", timeout_s=60)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, wait for the end; its exit code."""
        self.process.send_signal(number)
        if self._reader is None:
            self.read_on()
        self._close()
        return self.process.returncode

    def _close(self) -> None:
        """After its end, or when that is on its way."""
        self.process.wait()
        if self._reader is not None:
            self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def __enter__(self) -> "NamesrvProcess":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.end()
        elif self.process.stderr is not None and not self.process.stderr.closed:
            self._close()


def _load_tiny(file: Path, runtime_path: Path, *, command: Sequence[str] | None = None) -> object:
    return load_cluster(
        file,
        runtime_path,
        command=command or (sys.executable, "-m", "tests.unit.namesrv.tiny_broker"),
    )


if __name__ == "__main__":
    with mock.patch.object(namesrv, "load_cluster", _load_tiny):
        sys.exit(namesrv.main())
