"""shmq.local(): a private cluster that ends with its program, however that ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import shmq
from shmq.errors import ConfigError, ServiceNotAvailableError
from tests.support.cluster import Program, wait_for
from tests.support.dev_shm import left_behind, ours_in_dev_shm
from tests.support.repository import ROOT
from tests.support.scale import scaled

pytestmark = pytest.mark.cluster

PROGRAM = """
import json, os, sys, shmq
client = shmq.local(sys.argv[1])
client.producer().send("t", b"kept")
if sys.argv[2] == "fork" and os.fork() == 0:
    sys.stdin.read()
    os._exit(0)
print(json.dumps([int(name) for name in os.listdir("/proc") if name.isdigit()]), flush=True)
if sys.argv[2] == "wait" or sys.argv[2] == "fork":
    sys.stdin.read()
"""


ATTACHED = """
import sys, shmq
with shmq.connect(sys.argv[1]) as client:
    client.producer().send("t", b"x")
    print("1", flush=True)
    sys.stdin.read()
"""


def processes_of(folder: Path) -> list[int]:
    """Whose command line names the folder, but for the program itself and us."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                words = Path("/proc", name, "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if any(str(folder).encode() in word for word in words) and b"-c" not in words:
                found.append(int(name))
    return found


def test_cluster_ends_with_an_interpreter_that_does_not_close_it(tmp_path: Path):
    with Program(PROGRAM, tmp_path / "kept", "exit") as program:
        program.hear()
        assert program.end() == 0
        wait_for(lambda: not processes_of(tmp_path), "the end of the cluster")


@pytest.mark.parametrize("kind", ["wait", "fork"])
def test_cluster_ends_with_a_program_that_is_killed(tmp_path: Path, kind: str):
    with Program(PROGRAM, tmp_path / "kept", kind) as program:
        program.hear()
        assert processes_of(tmp_path)
        program.kill()  # a child that it forked lives on, with all its descriptors
        wait_for(lambda: not processes_of(tmp_path), "the end of the cluster")
    with shmq.local(tmp_path / "kept") as client, client.consumer("t", "g") as consumer:
        message = consumer.try_next(30.0)  # as a kernel that was restarted finds it
        assert message is not None
        assert bytes(message) == b"kept"


def test_temporary_folder_is_removed(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with shmq.local() as client:
        client.producer().send("t", b"x")
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [b'a "b" \\c', b"new\nline", b"no \xff text", b"d" * 200])
def test_folder_may_have_any_name(tmp_path: Path, name: bytes):
    folder = tmp_path / os.fsdecode(name)
    for queue_offset in range(2):
        with shmq.local(folder) as client:
            sent = client.producer().send("t", b"kept", key="one")
            assert sent.queue_offset == queue_offset
            assert client.namesrv == folder / "run"


def test_start_that_fails_leaves_no_temporary_folder(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(ConfigError, match="no-python"):
        shmq.local()
    assert not list(tmp_path.iterdir())


def test_broker_that_cannot_start_says_why(tmp_path: Path):
    (tmp_path / "broker-a").write_bytes(b"where its folder should be")
    with pytest.raises(
        ServiceNotAvailableError, match=r"last words: \[broker-a\].* ERROR .*broker-a"
    ):
        shmq.local(tmp_path)
    assert not processes_of(tmp_path)


@pytest.mark.parametrize("brokers", [1, 2])
def test_temporary_cluster_has_a_name_of_its_own_and_a_kept_one_the_usual(
    tmp_path: Path, monkeypatch, brokers: int
):
    monkeypatch.delenv("SHMQ_CLUSTER_NAME")  # what marks the memory of tests
    with shmq.local(brokers=brokers) as client:
        assert set(client.routes.cluster().clusters) == {client.namesrv.parent.name}
        root = client.namesrv.parent
        conf = [path.read_text() for path in root.glob("*/broker.conf")]
        ports = [line for text in conf for line in text.splitlines() if "listenPort" in line]
    assert sorted(ports) == ["listenPort=10911", "listenPort=10921"][:brokers]
    with shmq.local(tmp_path / "kept") as client:
        assert set(client.routes.cluster().clusters) == {"DefaultCluster"}


def test_cluster_of_no_broker_is_refused():
    with pytest.raises(ConfigError, match="0 brokers, wanted 1 or more"):
        shmq.local(brokers=0)


def test_memory_of_a_temporary_cluster_goes_whoever_is_attached(tmp_path: Path):
    before = ours_in_dev_shm()
    with shmq.local() as client, Program(ATTACHED, client.namesrv) as program:
        program.hear()
        client.close()
        assert left_behind(before, strict=False) == []


def test_memory_of_a_killed_broker_goes_with_its_temporary_cluster():
    before = ours_in_dev_shm()
    with shmq.local() as client:
        os.kill(client.link("broker-a").connection.identity.pid, signal.SIGKILL)
    assert left_behind(before, strict=False) == []


def test_cluster_ends_though_its_nameserver_was_killed_just_before(tmp_path: Path):
    with shmq.local(tmp_path / "kept"):
        (namesrv,) = (
            pid
            for pid in processes_of(tmp_path)
            if b"shmq.namesrv" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )
        os.kill(namesrv, signal.SIGKILL)
    assert not processes_of(tmp_path)


def pid_of(module: bytes, folder: Path) -> int:
    (pid,) = (
        pid
        for pid in processes_of(folder)
        if module in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    )
    return pid


@pytest.mark.parametrize(
    "killed",
    [(), (b"shmq.broker",), (b"shmq.client.guard",), (b"shmq.namesrv", b"shmq.broker")][
        : scaled(3, 4)
    ],
)
def test_kept_cluster_leaves_its_store_and_no_memory_whoever_is_attached_and_killed(
    tmp_path: Path, killed: tuple[bytes, ...]
):
    before = ours_in_dev_shm()
    root = tmp_path / "kept"
    with shmq.local(root) as client, Program(ATTACHED, client.namesrv) as program:
        program.hear()
        pids = [pid_of(module, tmp_path) for module in killed]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)  # nobody mends what the next one's death leaves
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        client.close()
        assert left_behind(before, strict=False) == []
        assert not [pid for pid in processes_of(tmp_path) if pid != program.process.pid]
    with shmq.local(root) as client, client.consumer("t", "g") as consumer:
        message = consumer.try_next(30.0)
        assert message is not None
        assert bytes(message) == b"x"


def test_temporary_cluster_whose_guard_is_killed_ends_with_its_client(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = ours_in_dev_shm()
    with shmq.local() as client:
        client.producer().send("t", b"x")
        os.kill(pid_of(b"shmq.client.guard", tmp_path), signal.SIGKILL)
    assert left_behind(before, strict=False) == []
    assert not processes_of(tmp_path)
    assert not list(tmp_path.iterdir())


def test_interrupt_of_the_terminal_leaves_the_cluster_to_its_program(tmp_path: Path):
    with shmq.local(tmp_path / "kept") as client:
        for pid in processes_of(tmp_path):
            if os.getpgid(pid) == os.getpgid(0):
                os.kill(pid, signal.SIGINT)
        assert client.producer().send("t", b"x", timeout=30.0)


USER_TEST = """
def test_order_is_billed(shmq_client):
    shmq_client.producer().send("orders", b"one")
    with shmq_client.consumer("orders", "billing") as consumer:
        assert bytes(consumer.try_next(30.0)) == b"one"
"""


def test_fixture_is_there_for_tests_of_other_programs(tmp_path: Path):
    (tmp_path / "test_orders.py").write_text(USER_TEST)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
