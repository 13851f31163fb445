"""The in-use mark: held exactly as long as its process lives, by nobody else."""

import fcntl
import os
import signal
import stat
import threading
from pathlib import Path

import pytest

from shmq.errors import OwnerError, ShmError
from shmq.shm.in_use import InUseMark, marked_stores
from shmq.shm.names import StoreName
from tests.support.require import require_root
from tests.unit.shm import children
from tests.unit.shm.segments import new_store

_HOLD = """
import sys
from pathlib import Path
from shmq.shm.in_use import InUseMark
from shmq.shm.names import parse_store
mark = InUseMark.take(Path(sys.argv[1]), parse_store(sys.argv[2]), timeout_ms=0)
print("held", flush=True)
"""


def _file(folder: Path, store: StoreName) -> Path:
    return folder / f"{store}.lock"


def test_mark_keeps_everybody_else_out_until_released(
    runtime_folder: Path, store: StoreName
) -> None:
    with InUseMark.take(runtime_folder, store, timeout_ms=0) as mark:
        assert mark.is_held
        assert mark.store == store
        assert InUseMark.try_take(runtime_folder, store) is None
        with pytest.raises(OwnerError, match="held by another process for 0 ms; is this broker"):
            InUseMark.take(runtime_folder, store, timeout_ms=0)
    assert not mark.is_held
    mark.release()
    assert marked_stores(runtime_folder) == {store}
    InUseMark.take(runtime_folder, store, timeout_ms=0).release()


def test_marks_of_two_stores_are_two(runtime_folder: Path, cluster_name: str) -> None:
    one, other = new_store(cluster_name), new_store(cluster_name)
    with (
        InUseMark.take(runtime_folder, one, timeout_ms=0),
        InUseMark.take(runtime_folder, other, timeout_ms=0),
    ):
        assert marked_stores(runtime_folder) == {one, other}


def test_mark_file_is_private_whatever_the_umask_and_closed_on_exec(
    runtime_folder: Path, store: StoreName
) -> None:
    before = os.umask(0)
    try:
        with InUseMark.take(runtime_folder, store, timeout_ms=0):
            mode = stat.S_IMODE(_file(runtime_folder, store).stat().st_mode)
            inode = _file(runtime_folder, store).stat().st_ino
            (fd,) = [
                int(entry)
                for entry in os.listdir("/proc/self/fd")
                if os.path.exists(f"/proc/self/fd/{entry}")
                and os.stat(f"/proc/self/fd/{entry}").st_ino == inode
            ]
            assert not os.get_inheritable(fd)
    finally:
        os.umask(before)
    assert mode == 0o600


def test_killed_holder_frees_it_even_before_it_is_reaped(
    runtime_folder: Path, store: StoreName
) -> None:
    child = children.start(_HOLD + "input()", runtime_folder, store)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    assert InUseMark.try_take(runtime_folder, store) is None
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    InUseMark.take(runtime_folder, store, timeout_ms=0).release()
    child.communicate()


def test_stopped_holder_keeps_it(runtime_folder: Path, store: StoreName) -> None:
    child = children.start(_HOLD + "input()", runtime_folder, store)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    os.kill(child.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    assert InUseMark.try_take(runtime_folder, store) is None
    child.kill()
    child.communicate()


@pytest.mark.parametrize("how", ["fork", "exec"])
def test_child_of_a_dead_holder_does_not_keep_it(
    runtime_folder: Path, store: StoreName, how: str
) -> None:
    make_child = {
        "fork": """
import os, signal
if not os.fork():
    assert not mark.is_held
    mark.release()
    print("child", flush=True)
    input()
    os._exit(0)
""",
        "exec": """
import os, subprocess
subprocess.Popen([sys.executable, "-c", "print('child', flush=True); input()"], close_fds=False)
""",
    }[how]
    holder = children.start(
        _HOLD + make_child + "signal = __import__('signal'); signal.pause()", runtime_folder, store
    )
    assert holder.stdout is not None
    assert {holder.stdout.readline(), holder.stdout.readline()} == {"held\n", "child\n"}
    assert InUseMark.try_take(runtime_folder, store) is None
    holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    InUseMark.take(runtime_folder, store, timeout_ms=0).release()
    holder.communicate("\n")  # ends the child, which waits on the same stdin


def test_waiting_taker_gets_it_when_it_is_released(runtime_folder: Path, store: StoreName) -> None:
    held = InUseMark.take(runtime_folder, store, timeout_ms=0)
    taken = []
    taker = threading.Thread(
        target=lambda: taken.append(InUseMark.take(runtime_folder, store, timeout_ms=60_000))
    )
    taker.start()
    held.release()
    taker.join()
    assert taken[0].is_held
    taken[0].release()


def test_absent_mark_is_not_made_where_nobody_asked(runtime_folder: Path, store: StoreName) -> None:
    assert InUseMark.try_take(runtime_folder, store, make=False) is None
    assert os.listdir(runtime_folder) == []


def test_removed_mark_leaves_no_file(runtime_folder: Path, store: StoreName) -> None:
    mark = InUseMark.take(runtime_folder, store, timeout_ms=0)
    mark.remove()
    assert os.listdir(runtime_folder) == []
    assert not mark.is_held
    with pytest.raises(ShmError, match="not held"):
        mark.remove()


def test_mark_file_removed_between_open_and_lock_is_taken_anew(
    runtime_folder: Path, store: StoreName, monkeypatch: pytest.MonkeyPatch
) -> None:
    removals = iter([True, True, False])
    lock = fcntl.flock

    def lock_after_removal(fd: int, operation: int) -> None:
        if next(removals):
            _file(runtime_folder, store).unlink()  # as a reaper does, holding the lock
        lock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", lock_after_removal)
    with InUseMark.take(runtime_folder, store, timeout_ms=0):
        monkeypatch.undo()
        assert InUseMark.try_take(runtime_folder, store) is None
        assert marked_stores(runtime_folder) == {store}


def test_folder_that_keeps_losing_the_file_is_an_error(
    runtime_folder: Path, store: StoreName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: _file(runtime_folder, store).unlink())
    with pytest.raises(ShmError, match="vanished 100 times"):
        InUseMark.take(runtime_folder, store, timeout_ms=0)


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o777])
def test_folder_that_others_may_enter_is_refused(
    runtime_folder: Path, store: StoreName, mode: int
) -> None:
    runtime_folder.chmod(mode)
    with pytest.raises(OwnerError, match=rf"mode {mode:04o}, owner uid \d+; wanted 0700"):
        InUseMark.take(runtime_folder, store, timeout_ms=0)
    with pytest.raises(OwnerError, match="wanted 0700"):
        marked_stores(runtime_folder)


def test_folder_of_another_uid_is_refused(runtime_folder: Path, store: StoreName) -> None:
    require_root()
    os.chown(runtime_folder, children.NOBODY, -1)
    with pytest.raises(OwnerError, match="owner uid 65534"):
        InUseMark.take(runtime_folder, store, timeout_ms=0)


def test_link_to_a_folder_and_absent_folder_are_refused(
    runtime_folder: Path, store: StoreName
) -> None:
    link = runtime_folder.with_name("link")
    link.symlink_to(runtime_folder)
    with pytest.raises(ShmError, match="open the runtime folder"):
        InUseMark.take(link, store, timeout_ms=0)
    with pytest.raises(ShmError, match="No such file"):
        InUseMark.take(runtime_folder / "nowhere", store, timeout_ms=0)


def test_planted_mark_file_is_refused(
    runtime_folder: Path, store: StoreName, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.touch()
    path = _file(runtime_folder, store)
    for there in (target, tmp_path / "not yet"):
        path.symlink_to(there)
        with pytest.raises(ShmError, match="Too many levels of symbolic links"):
            InUseMark.take(runtime_folder, store, timeout_ms=0)
        path.unlink()
    assert not (tmp_path / "not yet").exists()
    path.hardlink_to(target)
    with pytest.raises(OwnerError, match="not a plain file of ours"):
        InUseMark.take(runtime_folder, store, timeout_ms=0)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OwnerError, match="not a plain file of ours"):
        InUseMark.take(runtime_folder, store, timeout_ms=0)


def test_other_files_in_the_folder_are_no_marks(runtime_folder: Path, store: StoreName) -> None:
    for name in ("broker.sock", "x.lock", f"{store}", f"{store}.lock.tmp", f"{store}.hot.1.lock"):
        (runtime_folder / name).touch()
    assert marked_stores(runtime_folder) == set()
