"""A real exporter process, and what it shows."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.support.broker_process import ROOT

Samples = dict[str, list[tuple[dict[str, str], float]]]
TIMEOUT_S = 30.0


class Exporter:
    """`python -m shmq.exporter` on a port of its own. A context manager."""

    def __init__(
        self, runtime: Path, *options: str, port: int = 0, wrapper: tuple[str, ...] = ()
    ) -> None:
        self.process = subprocess.Popen(
            [
                *wrapper, sys.executable, "-m", "shmq.exporter",
                "--runtime", str(runtime), "--listen", f"127.0.0.1:{port}", *options,
            ],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert self.process.stderr is not None
        self.url = ""
        for line in self.process.stderr:
            found = re.search(r"metrics at (\S+)", line)
            if found:
                self.url = found[1]
                break
        assert self.url
        self._reader = threading.Thread(target=self._read_on, daemon=True)
        self._reader.start()
        self.target = self.url.removeprefix("http://").removesuffix("/metrics")

    def _read_on(self) -> None:
        """What it says later: a full pipe would stop it."""
        assert self.process.stderr is not None
        for _ in self.process.stderr:
            pass

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self._end()

    def page(self) -> str:
        with urllib.request.urlopen(self.url, timeout=TIMEOUT_S) as answer:
            return str(answer.read().decode())

    def look(self) -> Samples:
        return samples_of(self.page())

    def __enter__(self) -> Exporter:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            assert self.process.wait(TIMEOUT_S) == 0
            self._end()

    def _end(self) -> None:
        self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()


def samples_of(page: str) -> Samples:
    """By name of the series."""
    found: Samples = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def value(samples: Samples, name: str, **labels: str) -> float | None:
    """The one series with these labels; None if there is none."""
    found = [v for has, v in samples.get(name, ()) if labels.items() <= has.items()]
    assert len(found) <= 1, (name, labels, found)
    return found[0] if found else None
