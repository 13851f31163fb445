"""NameServers as real processes: killed and restarted, several, under systemd's protocol."""

import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from shmq.errors import ClosedError, ServiceNotAvailableError
from shmq.remoting import namesrv_requests as requests
from shmq.remoting.client import Client
from shmq.remoting.namesrv_requests import BrokerAddress
from shmq.remoting.runtime_folder import (
    RuntimeFolder,
    broker_socket_name,
    namesrv_socket_name,
)
from shmq.topic import TopicConfig
from tests.cluster.namesrv_process import NamesrvProcess
from tests.support.repository import ROOT

pytestmark = pytest.mark.cluster

ADDRESS = BrokerAddress(
    cluster_name="c", broker_name="a", broker_id=0, socket_name=broker_socket_name("a", 0)
)
VERSION = {"counter": 1, "stateVersion": 0, "timestamp": 0}


def register(client: Client, *topics: str) -> None:
    configs = {topic: TopicConfig(topic_name=topic) for topic in topics}
    for command in requests.register_broker(ADDRESS, configs, VERSION):
        client.call(command, timeout_s=60)


def has_route(client: Client, topic: str) -> bool:
    return client.invoke(requests.route_info(topic), timeout_s=60).code == 0


def test_killed_nameserver_comes_back_under_its_name_and_learns_anew(tmp_path: Path) -> None:
    runtime = tmp_path / "run"
    for _ in range(3):
        with NamesrvProcess(runtime) as namesrv, namesrv.connect() as client:
            assert not has_route(client, "t")
            register(client, "t")
            assert has_route(client, "t")
            assert namesrv.end(signal.SIGKILL) == -signal.SIGKILL
            with pytest.raises(ClosedError):
                has_route(client, "t")
            with pytest.raises(ServiceNotAvailableError):
                namesrv.connect()


def test_any_two_of_three_may_die(tmp_path: Path, rng: random.Random) -> None:
    """They share a folder and nothing else; a new client connects to the one that is left."""
    runtime = tmp_path / "run"
    names = ["ns0", "ns1", "ns2"]
    with (
        NamesrvProcess(runtime, name="ns0") as first,
        NamesrvProcess(runtime, name="ns1") as second,
        NamesrvProcess(runtime, name="ns2") as third,
        RuntimeFolder.open(runtime) as folder,
    ):
        assert folder.socket_names("namesrv") == [namesrv_socket_name(name) for name in names]
        all_three = [first, second, third]
        clients = [namesrv.connect() for namesrv in all_three]
        for number, client in enumerate(clients):
            register(client, "shared", f"only_{number}")
        left = rng.randrange(3)
        for number, namesrv in enumerate(all_three):
            if number != left:
                namesrv.end(signal.SIGKILL)
        reached = []
        for name in folder.socket_names("namesrv"):
            try:
                client = Client(folder, name, role="new", timeout_s=60)
            except ServiceNotAvailableError:
                continue
            reached.append(name)
            with client:
                assert has_route(client, "shared")
                assert [has_route(client, f"only_{n}") for n in range(3)] == [
                    number == left for number in range(3)
                ]
        assert reached == [namesrv_socket_name(names[left])]
        for client in clients:
            client.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_in_order(tmp_path: Path, number: signal.Signals) -> None:
    with NamesrvProcess(tmp_path / "run") as namesrv, namesrv.connect() as client:
        assert namesrv.end(number) == 0
        with pytest.raises(ServiceNotAvailableError, match="namesrv-ns0 stops"):
            has_route(client, "t")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["namesrv-ns0.lock"]


def test_systemd_hears_when_it_is_ready(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        environ = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        with NamesrvProcess(tmp_path / "run", environ=environ) as namesrv:
            namesrv.end()
        heard = []
        systemd.setblocking(False)
        try:
            while True:
                heard.append(systemd.recv(1000).decode())
        except BlockingIOError:
            pass
    assert heard == [
        "STATUS=namesrv ns0: starting",
        "READY=1\nSTATUS=namesrv ns0: 0 broker names, 0 topics",
        "STOPPING=1\nSTATUS=namesrv ns0: draining",
        "STATUS=namesrv ns0: stopped",
    ]


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "shmq.namesrv", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )


def test_what_cannot_start_says_why_in_one_line(tmp_path: Path) -> None:
    runtime = str(tmp_path / "run")
    with NamesrvProcess(tmp_path / "run"):
        taken = run("--runtime", runtime)
    (tmp_path / "run").chmod(0o777)
    open_to_all = run("--runtime", runtime)
    no_file = run("--runtime", runtime, "--cluster", str(tmp_path / "none.toml"))
    assert [taken.returncode, open_to_all.returncode, no_file.returncode] == [1, 1, 2]
    assert "listen on namesrv-ns0 in" in taken.stderr.splitlines()[-1]
    assert "mode 0777; wanted 0750" in open_to_all.stderr
    assert "none.toml: No such file or directory" in no_file.stderr
    assert "Traceback" not in taken.stderr + open_to_all.stderr + no_file.stderr
    assert run("--nonsense").returncode == 2
    assert "--cluster FILE.toml" in run("--help").stdout


def test_small_and_idle(tmp_path: Path) -> None:
    """No numpy, no grpc; an idle NameServer sleeps."""
    with NamesrvProcess(tmp_path / "run") as namesrv:
        maps = Path(f"/proc/{namesrv.process.pid}/maps").read_text()
        for library in ("numpy", "grpc", "_posix_ipc", "psutil"):
            assert library not in maps
        with namesrv.connect() as client:
            has_route(client, "t")
