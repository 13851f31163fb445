"""A daemon's life: the order of its steps, its signals, and what systemd hears."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from shmq import service
from tests.support.repository import ROOT


def _live(*options: str) -> dict[str, Any]:
    """A recording service lives in a process of its own: the stop signals are the whole process's.

    A signal sent to the tests' own process might be taken by a thread that another test left.
    """
    child = subprocess.run(
        [sys.executable, "-m", "tests.unit.recording_service", *options],
        stdout=subprocess.PIPE,
        check=True,
        cwd=ROOT,
        timeout=60,
    )
    lived: dict[str, Any] = orjson.loads(child.stdout)
    return lived


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[socket.socket]:
    """The socket on which systemd would listen."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        path = str(tmp_path / "notify")
        sock.bind(path)
        sock.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        yield sock


def _heard(systemd: socket.socket) -> list[str]:
    systemd.setblocking(False)
    heard = []
    try:
        while True:
            heard.append(systemd.recv(4096).decode())
    except BlockingIOError:
        return heard


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_drains_and_stops(systemd: socket.socket, number: signal.Signals) -> None:
    lived = _live("--signal-after-start", str(int(number)), "--drain-timeout", "2.5")
    assert lived["steps"] == ["start", "drain 2.5", "stop"]
    assert lived["error"] == ""
    assert _heard(systemd) == [
        "STATUS=x: starting",
        "READY=1\nSTATUS=x: running",
        "STOPPING=1\nSTATUS=x: draining",
        "STATUS=x: stopped",
    ]


def test_failing_start_is_stopped_and_told(systemd: socket.socket) -> None:
    lived = _live("--fails-in", "start")
    assert lived["error"] == "start"
    assert lived["steps"] == ["start", "stop"]
    assert _heard(systemd)[-1] == "STATUS=x: stopped: start"


def test_failing_drain_is_stopped_and_told() -> None:
    lived = _live("--fails-in", "drain 30.0", "--signal-after-start", "15")
    assert lived["error"] == "drain 30.0"
    assert lived["steps"][-1] == "stop"


def test_signal_mask_is_as_before_and_no_signal_is_left_over() -> None:
    lived = _live("--signal-after-start", "15", "--signal-while-draining", "15")
    assert lived["steps"] == ["start", "drain 30.0", "stop"]
    assert lived["is_mask_restored"]
    assert lived["pending"] == []


def test_hangup_reloads_a_daemon_that_can_as_often_as_it_comes() -> None:
    lived = _live("--reloads", "--signal-after-start", str(int(signal.SIGHUP)))
    assert lived["steps"] == ["start", "reload", "reload", "reload", "drain 30.0", "stop"]
    assert lived["is_mask_restored"]
    assert lived["pending"] == []


def test_hangup_ends_a_daemon_that_cannot_reload() -> None:
    with pytest.raises(subprocess.CalledProcessError, match="SIGHUP"):
        _live("--signal-after-start", str(int(signal.SIGHUP)))


def test_watchdog_is_fed_while_healthy_and_starved_while_not(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    lived = _live("--healthy-looks", "3", "--signal-at-look", "6")
    assert lived["steps"].count("health") >= 6
    beats = [text for text in _heard(systemd) if text == "WATCHDOG=1"]
    assert len(beats) == 3


def test_each_beat_says_what_the_daemon_does(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    _live("--describes", "--healthy-looks", "2", "--signal-at-look", "3")
    heard = _heard(systemd)
    assert heard[1] == "READY=1\nSTATUS=x: look 0"
    beats = [text for text in heard if text.startswith("WATCHDOG=1")]
    assert beats == [f"WATCHDOG=1\nSTATUS=x: look {look}" for look in (1, 2)]


@pytest.mark.parametrize(
    ("usec", "pid", "interval_s"),
    [
        ("", "", None),
        ("0", "", None),
        ("x", "", None),
        ("3000000", "", 1.5),
        ("3000000", "1", None),
    ],
)
def test_watchdog_interval_is_half_of_what_systemd_wants(
    monkeypatch: pytest.MonkeyPatch, usec: str, pid: str, interval_s: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", pid)
    assert service.watchdog_interval_s() == interval_s


def test_own_pid_means_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert service.watchdog_interval_s() == 1.0


def test_nobody_listening_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not service.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert not service.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "vsock:2:1234")
    assert not service.notify("READY=1")


def test_abstract_socket_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"shmq-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        assert service.notify("READY=1", "STATUS=x")
        assert sock.recv(4096) == b"READY=1\nSTATUS=x"


def test_real_process_lives_and_ends_by_sigterm() -> None:
    code = """
import sys
from shmq import service
class S:
    def start(self): print("started", flush=True)
    def is_healthy(self): return True
    def drain(self, timeout_s): print("drained", flush=True)
    def stop(self): print("stopped", flush=True)
service.run(S(), name="s")
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "started\n"
        child.terminate()
        assert child.stdout.read() == "drained\nstopped\n"
    assert child.returncode == 0


def test_process_that_was_stopped_and_continued_lives_on() -> None:
    code = """
from shmq import service
class S:
    def start(self): pass
    def is_healthy(self):
        print("beat", flush=True)
        return True
    def drain(self, timeout_s): pass
    def stop(self): print("stopped", flush=True)
service.run(S(), name="s")
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "WATCHDOG_USEC": "2000"},
    ) as child:
        assert child.stdout is not None
        waiting = threading.Event()
        for _ in range(10):
            assert child.stdout.readline() == "beat\n"
            child.send_signal(signal.SIGSTOP)
            waiting.wait(0.005)  # longer than a beat: the time is over when it goes on
            child.send_signal(signal.SIGCONT)
        child.terminate()
        assert child.stdout.read().splitlines()[-1] == "stopped"
    assert child.returncode == 0
