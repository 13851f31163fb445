"""Incarnations: one life of one process, whatever becomes of its pid."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from shmq.shm.incarnation import Incarnation, boot_id
from tests.unit.shm import children


def _incarnation_of(pid: int) -> Incarnation:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return Incarnation(pid, int(stat.rpartition(")")[2].split()[19]))


def test_boot_id_is_the_kernels() -> None:
    text = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
    assert boot_id().hex() == text


def test_own_incarnation_is_alive() -> None:
    me = Incarnation.current()
    assert me.pid == os.getpid()
    assert me.is_alive()


def test_child_is_told_its_own_incarnation() -> None:
    child = children.start(
        "from shmq.shm.incarnation import Incarnation; print(Incarnation.current().start_time,"
        " flush=True); input()"
    )
    assert child.stdout is not None
    assert int(child.stdout.readline()) == _incarnation_of(child.pid).start_time
    child.communicate("\n")


def test_same_pid_with_another_start_time_is_another_life() -> None:
    me = Incarnation.current()
    assert not Incarnation(me.pid, me.start_time + 1).is_alive()
    assert not Incarnation(0, 0).is_alive()


def test_killed_process_is_dead_even_before_it_is_reaped() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    life = _incarnation_of(child.pid)
    assert life.is_alive()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie now, not reaped
    assert Path(f"/proc/{child.pid}/stat").exists()
    assert not life.is_alive()
    child.communicate()
    assert not life.is_alive()


def test_life_is_found_by_its_pid() -> None:
    me = Incarnation.current()
    assert Incarnation.of(me.pid) == me
    assert Incarnation.of(0) is None


def test_stopped_process_is_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    life = _incarnation_of(child.pid)
    os.kill(child.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    assert life.is_alive()
    child.kill()
    child.communicate()


def test_command_with_parentheses_does_not_confuse() -> None:
    child = children.start(
        """
        import pathlib
        pathlib.Path("/proc/self/comm").write_text(") R 1 (x")
        from shmq.shm.incarnation import Incarnation
        me = Incarnation.current()
        print(me.start_time, me.is_alive(), flush=True)
        input()
        """
    )
    assert child.stdout is not None
    start_time, is_alive = child.stdout.readline().split()
    assert is_alive == "True"
    assert int(start_time) == _incarnation_of(child.pid).start_time
    child.communicate("\n")
