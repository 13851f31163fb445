"""A real Prometheus, as the judge of what we show it: the server, promtool, and its answers.

What lives here: `tools` finds both programs: on the machine, or unpacked from Debian's package into
$XDG_CACHE_HOME/shmq (~/.cache/shmq) without installing it, so that no service starts. `Prometheus`
runs a server on loopback. Neither to be had: skipped by name, failed in CI.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import threading
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.require import require_or_skip
from tests.support.rocketmq import free_port

MONITORING = Path(__file__).parents[2] / "systemd/monitoring"
_FETCH_TIMEOUT_S = 120.0
_START_TIMEOUT_S = 60.0
_LOOK_S = 0.1


class Tools(NamedTuple):
    """Where the two programs are."""

    prometheus: str
    promtool: str


def tools() -> Tools:
    """The programs, fetched if they are nowhere."""
    found = [shutil.which(name) for name in Tools._fields]
    if found[0] and found[1]:
        return Tools(found[0], found[1])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "shmq" / "prometheus"
    if not folder.exists():
        _fetch(folder)
    return Tools(str(folder / "usr/bin/prometheus"), str(folder / "usr/bin/promtool"))


def _fetch(folder: Path) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        require_or_skip("prometheus and promtool not found: install Prometheus")
    fresh = folder.with_name(f"{folder.name}.{os.getpid()}")
    fresh.mkdir(parents=True)
    try:
        done = _run(fresh, "apt-get", "download", "prometheus")
        if done.returncode != 0 and os.geteuid() == 0:  # no lists of packages yet
            _run(fresh, "apt-get", "update")
            done = _run(fresh, "apt-get", "download", "prometheus")
        packages = list(fresh.glob("prometheus_*.deb"))
        if not packages:
            require_or_skip(f"prometheus not found, and apt-get does not have it: {done.stderr}")
        unpacked = _run(fresh, "dpkg-deb", "-x", packages[0].name, "unpacked")
        assert unpacked.returncode == 0, unpacked.stderr
        (fresh / "unpacked").rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=_FETCH_TIMEOUT_S, check=False
    )


_RANGES = {"15s": "1s", "1m": "4s", "5m": "5s", "10m": "30s", "1h": "30s"}
"""Over which an expression looks back: 10 min are enough for a few restarts."""
_FORS = {"15s": "1s", "30s": "1s", "1m": "4s", "2m": "4s", "5m": "5s", "10m": "4s"}
"""For how long it must hold."""


def hastened(rules: str) -> str:
    """Rules whose times pass as quickly as a test can wait; what they ask is left as it is."""
    lines = []
    for line in rules.splitlines():
        key = re.match(r" *(expr|for):", line)
        lines.append(_hastened_line(line, _RANGES if key[1] == "expr" else _FORS) if key else line)
    return "\n".join(lines) + "\n"


def _hastened_line(line: str, times: dict[str, str]) -> str:
    return re.sub(r"(?<=[\[: ])(\d+[smh])(?=[]:)' ]|$)", lambda found: times[found[1]], line)


class Prometheus:
    """A server that scrapes one exporter each second, with our rules. A context manager."""

    def __init__(self, folder: Path, rng: random.Random, *, target: str) -> None:
        """Start it.

        Args:
            folder: of the test; configuration and data are made in it.
            rng: chooses its port.
            target: HOST:PORT of the exporter.
        """
        program = tools().prometheus
        folder.mkdir()
        for name in ("shmq-recording.yml", "shmq-alerts.yml"):
            (folder / name).write_text(hastened((MONITORING / name).read_text("utf-8")), "utf-8")
        config = (MONITORING / "prometheus.yml").read_text("utf-8")
        config = config.replace("127.0.0.1:5557", target).replace("15s", "1s")
        (folder / "prometheus.yml").write_text(config, "utf-8")
        port = free_port(rng)
        self.url = f"http://127.0.0.1:{port}"
        self.log_path = folder / "prometheus.log"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    program,
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        waiting = threading.Event()
        for _ in range(int(_START_TIMEOUT_S / _LOOK_S)):
            assert self.process.poll() is None, self.log_path.read_text("utf-8")
            try:
                urllib.request.urlopen(f"{self.url}/-/ready", timeout=_START_TIMEOUT_S).close()
                return
            except OSError:
                waiting.wait(_LOOK_S)
        self.__exit__()
        raise AssertionError(f"Prometheus is not ready: {self.log_path.read_text('utf-8')}")

    def ask(self, path: str, **fields: str) -> Any:
        """What its API gives; an error of it is one here."""
        place = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(fields)}"
        with urllib.request.urlopen(place, timeout=_START_TIMEOUT_S) as answer:
            said = json.loads(answer.read())
        assert said["status"] == "success", (path, fields, said)
        return said["data"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series that an expression gives now."""
        found: list[dict[str, Any]] = self.ask("query", query=expr)["result"]
        return found

    def firing(self) -> set[str]:
        """Names of the alerts that fire."""
        series = self.query('ALERTS{alertstate="firing"}')
        return {one["metric"]["alertname"] for one in series}

    def __enter__(self) -> Prometheus:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(_START_TIMEOUT_S)
