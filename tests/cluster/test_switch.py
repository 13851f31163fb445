"""A planned switch-over to a member that cannot: the old master goes on, and no send fails.

The member's store stands in its way: it fails before it has the memory, behind that, for a folder
that was removed, for a disk that is full; or the member does not answer at all.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import shmq
from shmq.errors import ServiceNotAvailableError, ShmqError
from shmq.shm.reaper import reap
from tests.cluster.sender import Sender
from tests.support.cluster import wait_for
from tests.support.mounts import small_file_system
from tests.support.scale import scaled
from tests.support.supervised import NAME, Pair

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(scaled(180, 7200))]

_DISK_BYTES = 64 << 20


@pytest.fixture
def pair(tmp_path: Path, cluster_name: str) -> Iterator[Pair]:
    """The second member has a small disk of its own."""
    with small_file_system(tmp_path / "a1", size=_DISK_BYTES):
        made = Pair(tmp_path, cluster_name)
        yield made
        made.close()
        # Of a member whose folder was removed: no list names its memory any more.
        reap(sorted(made.runtime.glob("broker-*.d")), [], dry_run=False)


@contextlib.contextmanager
def under_load(pair: Pair) -> Iterator[tuple[shmq.Admin, Sender]]:
    """The first member is master, the other has what it has; sends go on, and none may fail."""
    with shmq.connect(pair.runtime) as client, shmq.Admin(pair.runtime) as admin:
        assert pair.master(client) == "broker-broker-a-0"
        client.create_topic("t", queues=1)
        pair.await_both()
        pair.await_in_sync()
        sender = Sender(client)
        sender.start()
        sender.go_on()
        yield admin, sender
        sender.go_on()
        sender.stop()
        with client.pull_consumer("t") as pull:
            (queue,) = pull.queues()
            found: list[bytes] = []
            while len(found) < sender.count:
                found += [bytes(m.body) for m in pull.pull(queue, len(found)).messages]
        assert found == [b"%d" % at for at in range(sender.count)]


def master_id(admin: shmq.Admin) -> int | None:
    return next((one.broker_id for one in admin.ha_members(NAME) if one.is_master), None)


def switch_fails(admin: shmq.Admin, sender: Sender) -> str:
    """Why the second member did not become master; the first one is again."""
    with pytest.raises(ServiceNotAvailableError, match="the last master goes on") as raised:
        admin.switch_master(NAME, 1)
    assert master_id(admin) == 0
    sender.go_on()
    return str(raised.value)


def test_member_that_fails_behind_the_adoption_leaves_the_memory_to_the_old_master(
    pair: Pair,
) -> None:
    with under_load(pair) as (admin, sender):
        marks = pair.folder / "a1" / "shmq" / "delay_marks.json"
        marks.unlink(missing_ok=True)
        marks.mkdir()  # what only a master reads
        assert "delay_marks.json" in switch_fails(admin, sender)
        marks.rmdir()
        pair.await_in_sync()
        assert admin.switch_master(NAME, 1).broker_id == 1


def test_member_whose_folder_was_removed_leaves_it_to_the_old_master_and_copies_anew(
    pair: Pair,
) -> None:
    with under_load(pair) as (admin, sender):
        for path in (pair.folder / "a1").iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        switch_fails(admin, sender)
        pair.await_in_sync()
        assert admin.switch_master(NAME, 1).broker_id == 1


def test_member_whose_disk_is_full_leaves_it_to_the_old_master(pair: Pair) -> None:
    with under_load(pair) as (admin, sender):
        full = pair.folder / "a1" / "full"
        with full.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:  # ends: the disk is small
                file.write(b"x" * 4096)
        switch_fails(admin, sender)
        full.unlink()
        wait_for(lambda: switches(admin), "a switch-over")


def switches(admin: shmq.Admin) -> bool:
    with contextlib.suppress(ShmqError):
        return admin.switch_master(NAME, 1).broker_id == 1
    return False


def test_member_that_does_not_answer_leaves_everything_as_it_was(pair: Pair) -> None:
    with under_load(pair) as (admin, sender):
        epochs = admin.epochs(NAME, 0)
        pid = pair.pid_of("broker-broker-a-1")
        os.kill(pid, signal.SIGSTOP)
        known = len(pair.namesrv.lines)
        with pytest.raises(ShmqError):
            admin.switch_master(NAME, 1)
        sender.go_on()
        assert admin.epochs(NAME, 0) == epochs
        assert master_id(admin) == 0
        said = "".join(line for line in pair.namesrv.lines[known:] if line.startswith("[a0]"))
        assert "standby" not in said, "it had handed over"


def test_member_that_the_kernel_refuses_memory_leaves_it_to_the_old_master(pair: Pair) -> None:
    """No error of ours: what the kernel says, as it says it."""
    with under_load(pair) as (admin, sender):
        pid = pair.pid_of("broker-broker-a-1")
        pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[0])
        limit = pages * resource.getpagesize() + (1 << 20)
        before = resource.prlimit(pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        assert "Cannot allocate memory" in switch_fails(admin, sender)
        resource.prlimit(pid, resource.RLIMIT_AS, before)
        wait_for(lambda: switches(admin), "a switch-over")
