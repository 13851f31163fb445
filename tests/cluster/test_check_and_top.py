"""`shmq check` and `shmq top` beside real brokers: what they say comes with its cause and goes."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shmq
from shmq import ConsumeStatus
from tests.cluster.namesrv_process import NamesrvProcess
from tests.support.broker_process import BrokerProcess
from tests.support.cluster import Cluster, wait_for
from tests.support.mounts import small_file_system
from tests.support.repository import ROOT
from tests.support.standing_still import stopped

pytestmark = pytest.mark.cluster
SHMQ = [sys.executable, "-m", "shmq.tools.cli"]
TIMEOUT_S = 60
REDRAW = b"\x0c"
LOOKS = 120


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SHMQ, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


class Checks:
    """Runs `shmq check` for one cluster."""

    def __init__(self, runtime: Path) -> None:
        self.runtime = runtime

    def says(self, *arguments: object) -> tuple[int, str]:
        """(exit code, line)."""
        done = run("check", *arguments, "-n", self.runtime)
        assert not done.stderr, done.stderr
        return done.returncode, done.stdout

    def await_state(self, code: int, *arguments: object) -> str:
        """Run until it ends with that code; what it says then."""
        return str(wait_for(lambda: (said := self.says(*arguments))[0] == code and said[1]))


@pytest.fixture
def checks(own_cluster: Cluster) -> Checks:
    return Checks(own_cluster.runtime)


def test_all_is_well_and_each_check_has_a_line_with_figures(checks: Checks) -> None:
    line = checks.await_state(0, "all", "-n", checks.runtime)
    assert [text.split()[:3] for text in line.splitlines()] == [
        ["SHMQ", name, "OK"]
        for name in ("BROKER", "SERVICES", "LAG", "DISK", "SHM", "MEMORY", "FILES", "HA", "DLQ")
    ]
    assert "| brokers=1 heartbeat_age=" in line
    found = json.loads(run("check", "ha", "--json", "-n", checks.runtime).stdout)["checks"]
    assert [(each["check"], each["state"], each["figures"]["masters"]) for each in found] == [
        ("ha", "OK", 1)
    ]


def test_nothing_that_can_be_read_is_unknown(tmp_path: Path) -> None:
    code, said = Checks(tmp_path).says("lag")
    wanted = f"no broker's memory is in {tmp_path}: start one, or name its folder (-n)"
    assert (code, said) == (3, f"SHMQ LAG UNKNOWN - {wanted}\n")
    code, said = Checks(tmp_path).says("services")
    assert (code, said[:41]) == (3, "SHMQ SERVICES UNKNOWN - no NameServer or ")
    code, said = Checks(tmp_path).says("broker", "--brokers", 2)
    assert code == 2
    assert said.startswith("SHMQ BROKER CRITICAL - 0 of 2 brokers are there: none |")
    assert Checks(tmp_path).says("lag", "--brokers", 2)[0] == 3
    # Where brokers are to be, a NameServer is to be: all of it was stopped, or cannot start.
    code, said = Checks(tmp_path).says("services", "--brokers", 2)
    assert (code, said) == (
        2,
        "SHMQ SERVICES CRITICAL - no NameServer is there | services=0 answer=0\n",
    )
    # It may be why no broker can start.
    assert Checks(tmp_path).says("shm", "-w", 0, "-c", 101)[0] == 1


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ((), "name what to check: broker, services, lag"),
        (("lag", "disk", "-w", "1"), "limits of one check"),
        (("lag", "-w", "9", "-c", "3"), "--warn not above --crit"),
        (("lag", "-w", "nan", "-c", "nan"), "--warn not above --crit"),
        (("lag", "-w", "nan"), "--warn not above --crit"),
        (("lags",), "'lags' is not one of"),
    ],
)
def test_mistakes_get_one_line(arguments: tuple[str, ...], wanted: str) -> None:
    done = run("check", *arguments)
    assert done.returncode == 64
    assert wanted in done.stderr


def test_broker_that_hangs_or_died_is_critical_until_it_is_back(
    checks: Checks, own_cluster: Cluster
) -> None:
    broker = own_cluster.brokers[0]
    limits = ("-w", "1", "-c", "2")
    checks.await_state(0, "broker", *limits)
    with stopped(broker.pid):
        assert "has not gone round" in checks.await_state(2, "broker", *limits)
    checks.await_state(0, "broker", *limits)
    assert checks.says("broker", "--brokers", 1)[0] == 0
    said = "SHMQ BROKER CRITICAL - 1 of 2 brokers are there: broker-a:0 |"
    assert checks.says("broker", "--brokers", 2)[1].startswith(said)
    broker.kill()
    assert "broker-a:0 has died" in checks.says("broker")[1]
    said = "SHMQ HA CRITICAL - broker-a has no master | masters=0 lag_bytes=0\n"
    assert checks.says("ha") == (2, said)
    broker.restart()
    checks.await_state(0, "broker")
    checks.await_state(0, "ha")


def test_namesrv_that_hangs_or_died_is_critical_until_it_is_back(
    checks: Checks, own_cluster: Cluster
) -> None:
    namesrv = own_cluster.namesrv
    assert checks.says("services")[1].startswith("SHMQ SERVICES OK | services=1 answer=")
    with stopped(namesrv.process.pid):
        assert "namesrv-ns0 has not answered" in checks.says("services", "-w", "1", "-c", "1")[1]
    checks.await_state(0, "services")
    namesrv.end(signal.SIGKILL)
    said = "SHMQ SERVICES CRITICAL - namesrv-ns0 has died | services=0 answer=0\n"
    assert checks.says("services") == (2, said)
    with NamesrvProcess(checks.runtime):
        checks.await_state(0, "services")
    assert "CRITICAL - no NameServer is there" in checks.says("services")[1]


def test_group_that_is_behind_is_told_until_it_has_consumed(
    checks: Checks, own_client: shmq.Client
) -> None:
    producer = own_client.producer()
    with own_client.consumer("orders", group="late") as consumer:
        producer.send("orders", b"first")
        with consumer.receive(1, timeout=TIMEOUT_S)[0].process():
            pass
    producer.send("orders", b"second")
    assert "late is" in checks.await_state(1, "lag", "-w", "1", "-c", "1000")
    assert "s behind in orders (1 messages)" in checks.await_state(2, "lag", "-w", "1", "-c", "2")
    with (
        own_client.consumer("orders", group="late") as consumer,
        consumer.receive(1, timeout=TIMEOUT_S)[0].process(),
    ):
        pass
    checks.await_state(0, "lag", "-w", "1", "-c", "2")


def _fail(_: shmq.Message) -> ConsumeStatus:
    return ConsumeStatus.RECONSUME_LATER


def test_dead_letters_are_told(checks: Checks, own_client: shmq.Client) -> None:
    own_client.producer().send("orders", b"bad")
    checks.await_state(0, "dlq")
    with own_client.push_consumer("failing", _fail, max_reconsume_times=0) as push:
        push.subscribe("orders")
        said = checks.await_state(1, "dlq")
    assert "1 in %DLQ%failing: shmq dlq ls" in said
    assert checks.says("dlq", "-w", "2", "-c", "3")[0] == 0

    def replay() -> int:
        done = run("dlq", "replay", "failing", "--yes", "--json", "-n", checks.runtime)
        return int(json.loads(done.stdout)["replayed"])

    assert replay() == 1
    checks.await_state(0, "dlq")  # it is kept, and there is nothing left to do about it
    with own_client.push_consumer("failing", _fail, max_reconsume_times=0) as push:
        push.subscribe("orders")  # it fails again
        said = checks.await_state(1, "dlq")
    assert "1 in %DLQ%failing" in said
    # Who replays is not behind with what nobody has replayed.
    assert "DLQ" not in checks.says("lag", "-w", "0.01", "-c", "0.02")[1]


def test_full_disk_and_full_shared_memory_are_told_until_there_is_room(
    tmp_path: Path, cluster_name: str
) -> None:
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o750)
    with (
        small_file_system(tmp_path / "disk", size=400 << 20) as disk,
        BrokerProcess(disk, cluster_name, runtime=runtime),
    ):
        checks = Checks(runtime)
        checks.await_state(0, "disk")
        filler = disk / "others"
        _fill(filler, 300 << 20)
        assert "the disk of broker-a:0 is" in checks.await_state(1, "disk", "-w", 75, "-c", 99)
        assert checks.await_state(2, "disk", "-w", 70, "-c", 75)
        filler.unlink()
        checks.await_state(0, "disk", "-w", 70, "-c", 75)
        [shm] = json.loads(run("check", "shm", "--json", "-n", runtime).stdout)["checks"]
        used = int(shm["figures"]["used_percent"])
        limits = ("-w", used + 3, "-c", 100)
        others = Path(f"/dev/shm/{cluster_name}-others")
        room = os.statvfs("/dev/shm")
        try:
            _fill(others, room.f_blocks * room.f_frsize * 5 // 100)
            assert "/dev/shm is" in checks.await_state(1, "shm", *limits)
        finally:
            others.unlink()
        checks.await_state(0, "shm", *limits)


def _fill(path: Path, size: int) -> None:
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)


def test_slave_that_is_gone_or_behind_is_told(
    checks: Checks, own_cluster: Cluster, own_client: shmq.Client, tmp_path: Path
) -> None:
    (tmp_path / "slave").mkdir()
    with BrokerProcess(
        tmp_path / "slave",
        own_cluster.brokers[0].cluster_name,
        broker_id=1,
        runtime=own_cluster.runtime,
        broker_role="SLAVE",
    ) as slave:
        producer = own_client.producer()
        producer.send("orders", b"x")
        checks.await_state(0, "ha")
        with stopped(slave.pid):
            producer.send("orders", bytes(100_000))
            assert "broker-a:1 is" in checks.await_state(1, "ha", "-w", 50_000, "-c", 1e9)
        checks.await_state(0, "ha", "-w", 50_000, "-c", 1e9)


# ---- top -----------------------------------------------------------------------------------------


def tables(runtime: Path, *arguments: object) -> dict[str, Any]:
    done = run("top", "--once", "--json", "-n", runtime, *arguments)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found.pop("formatVersion") == 1
    assert found.pop("problems") == []
    return found


@pytest.fixture
def busy(own_cluster: Cluster) -> Iterator[Cluster]:
    """With a program that sends, and a group that has not consumed all of it."""
    with own_cluster.connect() as client, client.consumer("many", group="slow") as consumer:
        client.producer().send("many", b"first")
        with consumer.receive(1, timeout=TIMEOUT_S)[0].process():
            pass
        client.producer().send("few", b"one")
        is_over = threading.Event()
        sender = threading.Thread(target=_send_until, args=(client, is_over))
        sender.start()
        try:
            yield own_cluster
        finally:
            is_over.set()
            sender.join()


def _send_until(client: shmq.Client, is_over: threading.Event) -> None:
    producer = client.producer()
    while not is_over.wait(0.005):
        producer.send("many", b"hello")


def test_top_shows_rates_lag_and_brokers(busy: Cluster) -> None:
    wait_for(lambda: tables(busy.runtime)["topics"], "topics")
    shown = wait_for(
        lambda: (found := tables(busy.runtime))["topics"][0]["messagesInPerSecond"] > 0 and found
    )
    assert [row["topic"] for row in shown["topics"] if row["topic"].islower()] == ["many", "few"]
    assert shown["topics"][0]["topic"] == "many"
    assert shown["topics"][0]["bytesInPerSecond"] > 91 * shown["topics"][0]["messagesInPerSecond"]
    [group] = shown["groups"]
    assert (group["group"], group["topic"], group["members"]) == ("slow", "many", 1)
    assert group["lagMessages"] > 0
    [broker] = shown["brokers"]
    assert (broker["broker"], broker["role"]) == ("broker-a", "master")
    assert broker["messagesInPerSecond"] > 0
    assert broker["sendP99Seconds"] > 0
    assert broker["diskUsedPercent"] > 0
    by_name = tables(busy.runtime, "--sort", "topic", "topics")["topics"]
    assert [row["topic"] for row in by_name if row["topic"].islower()] == ["few", "many"]
    [few] = tables(busy.runtime, "topics", "-F", "FEW")["topics"]
    assert few["topic"] == "few"
    plain = run("top", "--once", "-n", busy.runtime).stdout
    assert plain.startswith("BROKER")
    assert "GROUP" in plain


def test_top_without_a_terminal_says_once(tmp_path: Path) -> None:
    for arguments in ((), ("--json",), ("--once", "--sort", "colour")):
        done = run("top", "-n", tmp_path, *arguments)
        assert done.returncode == 64
        assert "--once" in done.stderr or "--sort colour: wanted one of" in done.stderr


def test_top_of_a_folder_without_brokers_says_so(tmp_path: Path) -> None:
    done = run("top", "--once", "-i", "0.1", "-n", tmp_path / "nobody")
    assert done.returncode == 0
    assert done.stderr.startswith(f"no broker's memory is in {tmp_path / 'nobody'}: start one")
    assert "is no number of seconds" in run("top", "-i", "nan").stderr


class Terminal:
    """`shmq top` on a terminal of its own. A context manager."""

    def __init__(self, runtime: Path, term: str = "xterm") -> None:
        self._fd, other = pty.openpty()
        self.process = subprocess.Popen(
            [*SHMQ, "top", "-i", "0.2", "-n", str(runtime)],
            cwd=ROOT,
            stdin=other,
            stdout=other,
            stderr=other,
            env=os.environ | {"TERM": term, "LINES": "40", "COLUMNS": "160"},
            start_new_session=True,
        )
        os.close(other)
        self._seen = b""

    def type(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def await_text(self, text: bytes) -> None:
        """Read what it draws, now and then all of it anew, until `text` is in it."""
        for look in range(LOOKS):
            if text in self._seen:
                self._seen = self._seen.partition(text)[2]
                return
            if look % 10 == 9:
                self.type(REDRAW)
            if select.select([self._fd], [], [], 0.5)[0]:
                self._seen += os.read(self._fd, 65536)
        raise AssertionError(f"{text!r} does not come: {self._seen[-2000:]!r}")

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)


def test_top_is_steered_by_keys(busy: Cluster) -> None:
    with Terminal(busy.runtime) as terminal:
        terminal.await_text(b"BROKER*")
        terminal.await_text(b"many")
        terminal.type(b"s")
        terminal.await_text(b"ID*")
        terminal.type(b"\t")
        terminal.await_text(b"TOPIC")
        terminal.type(b"/")
        terminal.await_text(b"only rows with:")
        terminal.type(b"few\n")
        terminal.await_text(b"[few]")
        terminal.type(b"q")
        assert terminal.process.wait(TIMEOUT_S) == 0
    with Terminal(busy.runtime, "vt100") as terminal:  # it cannot hide its cursor
        terminal.await_text(b"BROKER*")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.process.wait(TIMEOUT_S) == 0
