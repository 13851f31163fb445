"""Descriptors in systemd's hands: what it is told, and what comes back from it."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmq.shm.fd_store import FdStore
from shmq.shm.memfd import create_sealed
from tests.support.repository import ROOT


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[socket.socket]:
    """The socket on which systemd would listen."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        path = str(tmp_path / "notify")
        sock.bind(path)
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        yield sock


def test_what_is_kept_is_handed_over_under_its_name(systemd: socket.socket) -> None:
    fds = [create_sealed(f"shmq-test-{number}", size_bytes=4096) for number in range(2)]
    FdStore().keep("a.1", fds)
    for fd in fds:
        message, got, _, _ = socket.recv_fds(systemd, 4096, 4)
        assert message == b"FDSTORE=1\nFDNAME=a.1"
        assert [os.fstat(one).st_ino for one in got] == [os.fstat(fd).st_ino]
        for one in (fd, *got):
            os.close(one)
    with pytest.raises(BlockingIOError):
        systemd.recv(4096)


def test_what_is_dropped_is_named(systemd: socket.socket) -> None:
    FdStore().drop("a.1")
    assert systemd.recv(4096) == b"FDSTOREREMOVE=1\nFDNAME=a.1"


def test_without_systemd_nothing_is_kept(systemd: socket.socket) -> None:
    store = FdStore({})
    store.keep("a.1", [0])
    store.drop("a.1")
    assert store.take("a.1") == []
    with pytest.raises(BlockingIOError):
        systemd.recv(4096)


_HEIR = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid() + int(sys.argv[1]))
from shmq.shm.fd_store import FdStore
store = FdStore()
taken = store.take("b")
print([os.fstat(fd).st_size for fd in taken], [os.get_inheritable(fd) for fd in taken])
print(store.take("b"))
store.drop_others()
print([fd for fd in range(3, 6) if os.path.exists(f"/proc/self/fd/{fd}")])
"""


@pytest.mark.parametrize(
    ("other_pid", "said"),
    [
        (0, ["[8192, 12288] [False, False]", "[]", "[4, 5]"]),
        (1, ["[] []", "[]", "[3, 4, 5]"]),
    ],
)
def test_heir_takes_by_name_and_drops_the_others(
    systemd: socket.socket, other_pid: int, said: list[str]
) -> None:
    """systemd passes them as 3 and up; they count for the process that it means only."""
    made = [create_sealed("shmq-test", size_bytes=4096 * count) for count in (1, 2, 3)]
    shell = " ".join(
        f"{place}</proc/self/fd/{fd}" for place, fd in zip((3, 4, 5), made, strict=True)
    )
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" "$2" {shell}', sys.executable, _HEIR, str(other_pid)],
        pass_fds=made,
        env={**os.environ, "LISTEN_FDS": "3", "LISTEN_FDNAMES": "a:b:b"},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    for fd in made:
        os.close(fd)
    assert done.stdout.splitlines() == said, done.stderr
    dropped = [] if other_pid else [b"FDSTOREREMOVE=1\nFDNAME=a"]
    for message in dropped:
        assert systemd.recv(4096) == message
    with pytest.raises(BlockingIOError):
        systemd.recv(4096)
