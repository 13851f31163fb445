"""A process that waits to become a broker: what it is given, and how it ends."""

import os
import subprocess
import sys
from pathlib import Path

from shmq.namesrv.spare import Spare

PROGRAM = """
import os, socket, sys
message, fds, _, _ = socket.recv_fds(socket.socket(fileno=0), 4096, 2)
lock_fd, log_fd = fds or sys.exit(3)
os.write(log_fd, message + b" " + os.fstat(lock_fd).st_ino.to_bytes(8, "big").hex().encode())
"""
WAITING = (sys.executable, "-c", PROGRAM)


def files(folder: Path) -> tuple[int, int]:
    flags = os.O_RDWR | os.O_CREAT
    return os.open(folder / "lock", flags, 0o600), os.open(folder / "log", flags, 0o600)


def test_spare_is_given_arguments_lock_and_log(tmp_path: Path) -> None:
    lock_fd, log_fd = files(tmp_path)
    spare = Spare(WAITING, dict(os.environ))
    child = spare.become(["--broker", "a"], lock_fd=lock_fd, log_fd=log_fd)
    inode = os.fstat(lock_fd).st_ino.to_bytes(8, "big").hex()
    os.close(lock_fd)
    os.close(log_fd)
    assert child is not None
    assert child.pid == spare.pid
    assert child.wait() == 0
    assert (tmp_path / "log").read_text() == f'["--broker","a"] {inode}'


def test_spare_that_has_ended_is_none(tmp_path: Path) -> None:
    lock_fd, log_fd = files(tmp_path)
    spare = Spare((sys.executable, "-c", ""), dict(os.environ))
    os.waitid(os.P_PID, spare.pid, os.WEXITED | os.WNOWAIT)
    assert spare.become(["--broker", "a"], lock_fd=lock_fd, log_fd=log_fd) is None
    os.close(lock_fd)
    os.close(log_fd)


def test_spare_is_gone_when_it_is_stopped() -> None:
    spare = Spare(WAITING, dict(os.environ))
    spare.stop()
    spare.stop()
    assert not Path(f"/proc/{spare.pid}").exists()


def test_broker_that_nobody_needs_ends_without_a_word() -> None:
    told = subprocess.run(
        [sys.executable, "-P", "-c", _HOLDER], capture_output=True, text=True, check=True
    )
    assert (told.stdout, told.stderr) == ("0\n", "")


_HOLDER = """
import socket, subprocess, sys
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
child = subprocess.Popen([sys.executable, "-P", "-m", "shmq.broker.spare", "x"], stdin=theirs)
theirs.close()
ours.close()
print(child.wait())
"""
