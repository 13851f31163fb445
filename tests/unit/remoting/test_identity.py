"""Who is at the other end: from the kernel, on new kernels and old."""

import os
import select
import socket
import subprocess
from pathlib import Path

import pytest

from shmq.errors import ClosedError
from shmq.remoting.identity import Peer, has_ended, peer_of, refuse_descriptors
from shmq.shm.incarnation import Incarnation
from tests.support.require import require_root
from tests.unit.shm import children

CONNECT = """
import os, socket, sys
if len(sys.argv) > 2:
    os.setgroups([int(gid) for gid in sys.argv[2:]])
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
print("connected", flush=True)
input()
"""


@pytest.fixture(params=[True, False], ids=["SO_PEERPIDFD", "pidfd_open"])
def ask_kernel(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def accepted(
    tmp_path: Path, groups: list[int] | None = None
) -> tuple[socket.socket, "subprocess.Popen[str]"]:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        child = children.start(CONNECT, path, *map(str, groups or ()))
        sock, _ = listening.accept()
        return sock, child


def end(child: "subprocess.Popen[str]") -> None:
    child.kill()
    child.communicate()


def test_peer_is_the_process_that_connected(tmp_path: Path, ask_kernel: bool) -> None:
    sock, child = accepted(tmp_path)
    with sock:
        peer = peer_of(sock, ask_kernel_for_pidfd=ask_kernel)
        identity = peer.identity
        assert (identity.pid, identity.uid, identity.gid) == (
            child.pid,
            os.geteuid(),
            os.getegid(),
        )
        assert identity.incarnation == Incarnation.of(child.pid)
        assert not os.get_inheritable(peer.pidfd)
        assert not has_ended(peer.pidfd)
        end(child)
        select.select([peer.pidfd], [], [])
        assert has_ended(peer.pidfd)
        peer.close()
        peer.close()


def test_groups_are_those_that_the_peer_had_when_it_connected(tmp_path: Path) -> None:
    require_root()
    sock, child = accepted(tmp_path, groups=[60001, 60002])
    with sock:
        peer = peer_of(sock)
        assert peer.identity.groups == {60001, 60002}
        assert peer.identity.gids == {60001, 60002, peer.identity.gid}
        peer.close()
    end(child)


def test_more_groups_than_can_be_asked_for_count_as_none(tmp_path: Path) -> None:
    require_root()
    sock, child = accepted(tmp_path, groups=list(range(60001, 60301)))
    with sock:
        peer = peer_of(sock)
        assert peer.identity.groups == frozenset()
        peer.close()
    end(child)


def test_kill_hits_the_process_that_connected_and_nothing_once_it_ended(
    tmp_path: Path, ask_kernel: bool
) -> None:
    sock, child = accepted(tmp_path)
    with sock:
        peer = peer_of(sock, ask_kernel_for_pidfd=ask_kernel)
        assert peer.kill()
        child.communicate()
        assert child.returncode == -9
        assert not peer.kill()
        peer.close()
        assert not peer.kill()


def test_peer_that_has_ended_is_closed_or_without_a_life(tmp_path: Path, ask_kernel: bool) -> None:
    """Its pid may be another's by now: no life may be claimed for it."""
    sock, child = accepted(tmp_path)
    end(child)
    with sock:
        try:
            peer: Peer | None = peer_of(sock, ask_kernel_for_pidfd=ask_kernel)
        except ClosedError:
            peer = None
        if ask_kernel and peer is not None:
            assert peer.identity.incarnation is None
            peer.close()
        else:
            assert peer is None


def test_connecting_side_sees_who_listens(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    child = children.start(
        """
        import socket, sys
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(sys.argv[1])
        sock.listen()
        print("listening", flush=True)
        input()
        """,
        path,
    )
    assert child.stdout is not None
    child.stdout.readline()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        peer = peer_of(sock)
        assert peer.identity.incarnation == Incarnation.of(child.pid)
        peer.close()
    end(child)


def test_other_uid_is_seen_as_it_is(public_path: Path) -> None:
    path = public_path / "s"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        path.chmod(0o777)
        listening.listen()
        children.run_as_nobody(CONNECT.replace("input()", ""), path)
        sock, _ = listening.accept()
        with sock:
            peer = peer_of(sock)
            assert (peer.identity.uid, peer.identity.gid) == (65534, 65534)
            peer.close()


def test_refused_descriptors_never_arrive() -> None:
    """By the kernel where it can, else by the receiver's empty buffer."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        refuse_descriptors(ours)
        try:
            socket.send_fds(theirs, [b"x"], [0])
        except PermissionError:
            return
        before = len(os.listdir("/proc/self/fd"))
        assert ours.recvmsg(10, 0)[0] == b"x"
        assert len(os.listdir("/proc/self/fd")) == before
