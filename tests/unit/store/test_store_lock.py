import os
import subprocess
import sys
from pathlib import Path

import pytest

from shmq.errors import OwnerError, StoreError, StoreLockedError
from shmq.store.store_lock import LOCK_FILE, StoreLock, lock_holder
from tests.support.repository import ROOT
from tests.support.require import require_root

HOLD = """
import sys
from pathlib import Path
from shmq.store.store_lock import StoreLock
lock = StoreLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_lock_is_the_file_that_rocketmq_locks(tmp_path: Path) -> None:
    with StoreLock(tmp_path) as lock:
        assert (tmp_path / "lock").read_bytes() == b"lock"
        assert lock.is_held
        assert lock_holder(tmp_path) == os.getpid()
    assert not lock.is_held
    assert lock_holder(tmp_path) is None
    assert (tmp_path / "lock").exists()


def test_second_lock_of_one_process_is_refused_and_the_first_survives(tmp_path: Path) -> None:
    """A record lock would let its own process in, and closing the second fd would drop it."""
    with StoreLock(tmp_path):
        with pytest.raises(StoreLockedError, match=f"this process \\({os.getpid()}\\)"):
            StoreLock(tmp_path)
        assert _other_process_sees(tmp_path) == os.getpid()
    with StoreLock(tmp_path):
        pass


def _other_process_sees(path: Path) -> int:
    code = """
import sys
from pathlib import Path
from shmq.store.store_lock import lock_holder
print(lock_holder(Path(sys.argv[1])))
"""
    command = [sys.executable, "-c", code, path]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)


def test_lock_of_another_process_names_it_and_is_free_once_it_is_killed(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        assert lock_holder(tmp_path) == child.pid
        with pytest.raises(StoreLockedError, match=f"process {child.pid} has the store open"):
            StoreLock(tmp_path)
    finally:
        child.kill()
        child.communicate()
    with StoreLock(tmp_path) as lock:
        assert lock.is_held


def test_forked_child_does_not_hold_it(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with StoreLock(tmp_path) as lock:
        child = os.fork()
        if child == 0:
            try:
                said = f"{lock.is_held} {lock_holder(tmp_path)}"
                StoreLock(tmp_path)
            except StoreLockedError as error:
                said += f" {error}"
            finally:
                os.write(writing, said.encode())
                os._exit(0)
        os.waitpid(child, 0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            said = pipe.read()
        assert said.startswith(f"False {os.getpid()} ")
        assert f"process {os.getpid()} has the store open" in said
        assert _other_process_sees(tmp_path) == os.getpid()


def test_link_in_place_of_the_lock_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"precious")
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError):
        StoreLock(tmp_path)
    assert (tmp_path / "elsewhere").read_bytes() == b"precious"


def test_store_that_nobody_ever_locked_has_no_holder(tmp_path: Path) -> None:
    assert lock_holder(tmp_path) is None


def test_root_leaves_another_users_store_alone(tmp_path: Path) -> None:
    require_root()
    with StoreLock(tmp_path):
        pass
    os.chown(tmp_path / LOCK_FILE, 65534, 65534)
    with pytest.raises(OwnerError, match="it is uid 65534's, and this is uid 0"):
        StoreLock(tmp_path)
    os.chown(tmp_path / LOCK_FILE, 0, 0)
    with StoreLock(tmp_path):
        pass
