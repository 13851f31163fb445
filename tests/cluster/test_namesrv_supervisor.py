"""A supervising NameServer as a real process: its death changes nothing, its successor adopts."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from shmq.remoting import namesrv_requests as requests
from tests.cluster.namesrv_process import WITH_TINY_BROKERS, NamesrvProcess
from tests.unit.namesrv.conftest import until
from tests.unit.namesrv.test_supervisor import _processes_of, how

pytestmark = pytest.mark.cluster

CLUSTER = """
[namesrv]
broker_hung_timeout_ms = 5000
probe_interval_ms = 50
[cluster]
restart_delay_ms = 10
[broker.a]
[broker.b]
"""


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "run"
    path.mkdir(mode=0o750)
    for name in "ab":
        how(path, name, "registers")
    (tmp_path / "cluster.toml").write_text(CLUSTER)
    yield path
    for pid in _processes_of(path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def supervise(runtime: Path, name: str = "ns0") -> NamesrvProcess:
    file = str(runtime.parent / "cluster.toml")
    return NamesrvProcess(runtime, "--cluster", file, name=name, module=WITH_TINY_BROKERS)


def brokers(namesrv: NamesrvProcess) -> dict[str, Mapping[str, object]]:
    with namesrv.connect() as client:
        body = client.call(requests.supervisor_status(), timeout_s=60).json()
    found = body["brokers"]
    assert isinstance(found, list)
    return {item["name"]: item for item in found}


def until_running(namesrv: NamesrvProcess) -> dict[str, int]:
    """Wait until all brokers run; their pids."""
    until(lambda: {item["phase"] for item in brokers(namesrv).values()} == {"RUNNING"})
    return {name: int(str(item["pid"])) for name, item in brokers(namesrv).items()}


def test_cluster_is_started_watched_and_stopped_from_one_command(runtime: Path) -> None:
    with supervise(runtime) as namesrv:
        pids = until_running(namesrv)
        with namesrv.connect() as client:
            until(lambda: client.invoke(requests.route_info("t"), timeout_s=60).code == 0)
        os.kill(pids["a"], signal.SIGKILL)
        until(lambda: brokers(namesrv)["a"]["restartCount"] == 1)
        again = until_running(namesrv)
        assert again["a"] != pids["a"]
        assert again["b"] == pids["b"]
        os.kill(again["b"], signal.SIGSTOP)
        until(lambda: brokers(namesrv)["b"]["restartCount"] != 0)
        until_running(namesrv)
        assert namesrv.end() == 0
        log = "".join(namesrv.lines)
    assert not _processes_of(runtime)
    assert "[a] broker a is up\n" in log
    assert "[b] asked to end\n" in log
    assert log.index("draining name=namesrv") < log.index("[b] asked to end")
    assert "ended broker=a" in log[log.index("draining name=namesrv") :]


def test_killed_supervisor_leaves_its_brokers_and_the_next_adopts_them(runtime: Path) -> None:
    with supervise(runtime) as first:
        pids = until_running(first)
        assert first.end(signal.SIGKILL) == -signal.SIGKILL
    assert all(psutil.pid_exists(pid) for pid in pids.values())
    for _ in range(2):
        with supervise(runtime) as successor:
            assert until_running(successor) == pids
            assert all(item["isAdopted"] for item in brokers(successor).values())
            assert sorted(_processes_of(runtime)) == sorted([*pids.values(), successor.process.pid])
            successor.end(signal.SIGKILL)
    with supervise(runtime) as last:
        os.kill(pids["a"], signal.SIGKILL)
        until(lambda: brokers(last)["a"]["restartCount"] == 1)
        assert last.end() == 0
    assert not _processes_of(runtime)


def test_second_nameserver_supervises_nothing_and_says_so(runtime: Path) -> None:
    with supervise(runtime) as first:
        pids = until_running(first)
        with supervise(runtime, name="ns1") as second:
            assert "supervises nothing: another NameServer of" in "".join(second.lines)
            assert brokers(second) == {}
            assert second.end() == 0
        assert until_running(first) == pids


def test_supervisor_killed_at_random_moments_never_doubles_a_broker(runtime: Path) -> None:
    """Killed while it starts its brokers, again and again: one process each in the end."""
    file = str(runtime.parent / "cluster.toml")
    command = [sys.executable, "-m", WITH_TINY_BROKERS, "--runtime", str(runtime)]
    for line_count in range(1, 7):
        with subprocess.Popen(
            [*command, "--cluster", file], stderr=subprocess.PIPE, text=True
        ) as starting:
            assert starting.stderr is not None
            for _ in range(line_count):
                starting.stderr.readline()
            starting.kill()
    with supervise(runtime) as last:
        pids = until_running(last)
        assert sorted(_processes_of(runtime)) == sorted([*pids.values(), last.process.pid])
        assert last.end() == 0
    assert not _processes_of(runtime)
