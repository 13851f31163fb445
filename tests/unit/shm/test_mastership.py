"""Mastership: one life at a time has it, and nobody takes it from a life that may go on."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from shmq.errors import FencedError, OwnerError, ShmError
from shmq.shm.incarnation import Incarnation
from shmq.shm.mastership import MasterRecord, Mastership, load_record
from tests.unit.shm import children

_HOLD = """
import sys
from pathlib import Path
from shmq.shm.mastership import Mastership
mastership = Mastership.take(Path(sys.argv[1]), timeout_ms=0)
mastership.declare(
    broker_name="broker-a", broker_id=1, master_epoch=4, manifest_path=Path("/store/manifest.json")
)
print("master", flush=True)
input()
"""


def _declare(
    mastership: Mastership, master_epoch: int, manifest: str = "/a/m.json"
) -> MasterRecord:
    return mastership.declare(
        broker_name="broker-a",
        broker_id=0,
        master_epoch=master_epoch,
        manifest_path=Path(manifest),
    )


def test_record_says_who_is_master_and_where_its_memory_is_listed(runtime_folder: Path) -> None:
    assert load_record(runtime_folder) is None
    with Mastership.take(runtime_folder, timeout_ms=0) as mastership:
        assert mastership.record is None
        written = _declare(mastership, 1)
        assert load_record(runtime_folder) == mastership.record == written
        assert written.owner == Incarnation.current()
        assert written.lives
        assert Mastership.try_take(runtime_folder) is None
    given_up = load_record(runtime_folder)
    assert given_up == replace(written, owner=None)
    assert not given_up.lives


@pytest.mark.parametrize("name", [b"no \xff text", "größe".encode(), b"100%", b'"\n'])
def test_manifest_may_lie_in_a_folder_of_any_name(runtime_folder: Path, name: bytes) -> None:
    with Mastership.take(runtime_folder, timeout_ms=0) as mastership:
        written = _declare(mastership, 1, f"/{os.fsdecode(name)}/m.json")
        assert load_record(runtime_folder) == written


def test_successor_gets_it_with_the_record_once_its_holder_was_killed(runtime_folder: Path) -> None:
    child = children.start(_HOLD, runtime_folder)
    assert child.stdout is not None
    assert child.stdout.readline() == "master\n"
    with pytest.raises(OwnerError, match=rf"broker-a:1, process {child.pid}, .* epoch 4; a promo"):
        Mastership.take(runtime_folder, timeout_ms=0)
    os.kill(child.pid, signal.SIGKILL)
    with Mastership.take(runtime_folder, timeout_ms=10_000) as mastership:
        record = mastership.record
        assert record is not None
        assert (record.broker_id, record.master_epoch) == (1, 4)
        assert record.manifest_path == Path("/store/manifest.json")
        assert not record.lives


def test_stopped_master_keeps_it(runtime_folder: Path) -> None:
    child = children.start(_HOLD, runtime_folder)
    assert child.stdout is not None
    assert child.stdout.readline() == "master\n"
    os.kill(child.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    assert Mastership.try_take(runtime_folder) is None


def test_deleted_lock_file_gives_nobody_the_mastership_of_a_living_master(
    runtime_folder: Path,
) -> None:
    child = children.start(_HOLD, runtime_folder)
    assert child.stdout is not None
    assert child.stdout.readline() == "master\n"
    (runtime_folder / "mastership.lock").unlink()
    assert Mastership.try_take(runtime_folder) is None
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    Mastership.take(runtime_folder, timeout_ms=0).release()


def test_master_whose_files_were_deleted_makes_them_again(runtime_folder: Path) -> None:
    with Mastership.take(runtime_folder, timeout_ms=0) as mastership:
        written = _declare(mastership, 1)
        mastership.hold()
        for path in runtime_folder.iterdir():
            path.unlink()
        mastership.hold()
        assert load_record(runtime_folder) == written
        assert Mastership.try_take(runtime_folder) is None


def test_master_learns_that_another_has_the_lock_that_was_made_anew(runtime_folder: Path) -> None:
    mastership = Mastership.take(runtime_folder, timeout_ms=0)
    _declare(mastership, 1)
    for path in runtime_folder.iterdir():
        path.unlink()
    child = children.start(_HOLD, runtime_folder)
    assert child.stdout is not None
    assert child.stdout.readline() == "master\n"
    with pytest.raises(FencedError, match="another process holds the one that is there now"):
        mastership.hold()
    mastership.release()
    record = load_record(runtime_folder)
    assert record is not None
    assert record.owner == Incarnation.of(child.pid)


def test_forked_child_does_not_keep_it(runtime_folder: Path) -> None:
    code = """
    import os, sys, time
    from pathlib import Path
    from shmq.shm.mastership import Mastership
    mastership = Mastership.take(Path(sys.argv[1]), timeout_ms=0)
    if os.fork() == 0:
        assert not mastership.is_held
        print("forked", flush=True)
        sys.stdin.read()
        os._exit(0)
    os._exit(0)
    """
    child = children.start(code, runtime_folder)
    assert child.stdout is not None
    assert child.stdout.readline() == "forked\n"
    child.wait()
    Mastership.take(runtime_folder, timeout_ms=10_000).release()


def test_record_of_another_boot_names_no_life(runtime_folder: Path) -> None:
    with Mastership.take(runtime_folder, timeout_ms=0) as mastership:
        record = replace(_declare(mastership, 3), boot_id=bytes(16))
        assert not record.lives
        assert not record.is_of_this_boot


def test_older_epoch_is_not_declared(runtime_folder: Path) -> None:
    with Mastership.take(runtime_folder, timeout_ms=0) as mastership:
        _declare(mastership, 5)
        with pytest.raises(FencedError, match="master epoch 4, the last one was 5"):
            _declare(mastership, 4)
        _declare(mastership, 5)


@pytest.mark.parametrize("damage", [b"", b"{}\ncrc32 00000000\n", b'{"pid": 1}\ncrc32 6e7a0ee4\n'])
def test_damaged_record_stops_with_its_name(runtime_folder: Path, damage: bytes) -> None:
    (runtime_folder / "mastership.json").write_bytes(damage)
    with pytest.raises(ShmError, match=r"mastership.json: .*; move it away once no member"):
        Mastership.try_take(runtime_folder)
    (runtime_folder / "mastership.json").unlink()
    Mastership.take(runtime_folder, timeout_ms=0).release()


def test_giving_up_cannot_be_declared_behind(runtime_folder: Path) -> None:
    mastership = Mastership.take(runtime_folder, timeout_ms=0)
    mastership.release()
    mastership.release()
    with pytest.raises(ShmError, match="it was given up"):
        _declare(mastership, 1)
    with pytest.raises(FencedError, match="was given up"):
        mastership.hold()
