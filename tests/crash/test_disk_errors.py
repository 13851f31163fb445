"""The disk refuses: a write or a sync fails, or no further file can be made.

A real store process meets errors that strace puts into its system calls, a file system that is
really full, a limit of file sizes. A failed write or sync of the log stops the writer for good, and
every sender is told; where only the next file cannot be made, senders are told and all heals as
soon as it can. Readers go on in either case.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shmq.core import core
from shmq.errors import DiskFullError, FlushFailedError, ServiceNotAvailableError, StoreError
from shmq.status import FlushDiskType
from tests.crash.conftest import FILE_SIZE
from tests.crash.crowd import read_log
from tests.crash.ledger import BODY_MIN, Sent, body_of, check_once_and_in_order, parse_body
from tests.crash.scene import wipe
from tests.support.mounts import make_readonly, small_file_system
from tests.support.require import require_program
from tests.support.store_process import StoreClient, StoreProcess, wait_until

if TYPE_CHECKING:
    from shmq.config import StoreConfig

pytestmark = [pytest.mark.crash, pytest.mark.timeout(120)]

OK = core.STATUS["OK"][0]
EMPTY = core.STATUS["EMPTY"][0]
FLUSH_FAILED = core.STATUS["FLUSH_FAILED"][0]
DISK_FULL = core.STATUS["DISK_FULL"][0]
DISK_READ_ONLY = core.STATUS["DISK_READ_ONLY"][0]
LIMIT = core.STATUS["LIMIT"][0]
TIMED_OUT = core.STATUS["TIMED_OUT"][0]


class Sender(contextlib.ExitStack):
    """A store process and a client that sends to one queue and reads it."""

    def __init__(self, config: StoreConfig, *, level: FlushDiskType | None = None) -> None:
        super().__init__()
        self.store = StoreProcess(config)
        self.callback(wipe, config)
        self.callback(lambda: self.store.abandon())
        self.queue = self.store.add_queue("orders", level=level)
        self.client = self.enter_context(StoreClient(self.store))
        self.client.grant(self.queue)
        self.sent = 0

    def send(self, size: int = BODY_MIN, *, timeout: float = 30.0) -> int:
        """Send one more; its status. One that was not sent does not count."""
        body = body_of(Sent(0, 0, self.sent), size)
        status, sequence = self.client.lanes[0].send(*self.queue, body, timeout=timeout)[:2]
        self.sent += sequence >= 0
        return int(status)

    def read(self) -> int:
        """How many messages can be read, each of them checked."""
        count = 0
        while True:  # to the end of the queue
            status, messages, following = self.client.reader.read(
                *self.queue, count, 64, verify=True
            )
            assert status in (OK, EMPTY), status
            for number, message in enumerate(messages):
                assert parse_body(message.body).sequence == count + number
            if not messages:
                return count
            count = following

    def go_on(self) -> None:
        """With a successor that adopts."""
        self.store = self.store.restart()
        assert self.store.is_adopted
        self.client.resume(self.store)

    @contextlib.contextmanager
    def injected(self, thread: str, *faults: str) -> Iterator[None]:
        """System calls of one thread of the store fail as strace's `inject` says."""
        tid = self.store.call("threads")[0][thread]
        strace = require_program("strace", "strace")
        calls = ",".join(fault.partition(":")[0] for fault in faults)
        injections = [word for fault in faults for word in ("-e", f"inject={fault}")]
        tracer = subprocess.Popen(
            [strace, "-o", "/dev/null", "-e", f"trace={calls}", *injections, "-p", str(tid)],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert tracer.stderr is not None
        try:
            said = tracer.stderr.readline()
            assert "attached" in said, said
            yield
        finally:
            tracer.terminate()
            tracer.communicate()


# ---- the log cannot be written -------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        "fdatasync:error=EIO:when=1",
        "fdatasync:error=ENOSPC:when=1",
        "fdatasync:error=EIO",
        "pwrite64:error=EIO:when=1",
        "pwrite64:error=EDQUOT:when=1",
        "pwrite64:error=EROFS:when=1",
    ],
)
@pytest.mark.parametrize("level", list(FlushDiskType))
def test_failed_write_or_sync_stops_the_writer_for_good(
    config: StoreConfig, fault: str, level: FlushDiskType
) -> None:
    """Though the next one would succeed: what the kernel has thrown away it does not tell again."""
    with Sender(config, level=level) as sender:
        for _ in range(10):
            assert sender.send() == OK
        wait_until(lambda: _is_flushed(sender.store))
        flushed = sender.store.facts()["positions"]["flushed_position"]
        with sender.injected("shmq-flush", fault):
            wanted = FLUSH_FAILED if level is FlushDiskType.SYNC_FLUSH else OK
            assert sender.send() == wanted
            wait_until(lambda: sender.store.facts()["failure"] is not None)
        failure = sender.store.facts()["failure"]
        assert f"{fault.partition(':')[0].removesuffix('64')} the CommitLog file at 0" in failure
        assert "see to the disk, then restart the broker" in failure
        for _ in range(3):
            assert sender.send() == FLUSH_FAILED
        lane = sender.client.lanes[0]
        waiting = lane.put(*sender.queue, b"x", keep=True)
        assert lane.wait(waiting, 30.0)[0] == FLUSH_FAILED
        assert lane.drain(30.0) == FLUSH_FAILED
        with pytest.raises(FlushFailedError):
            sender.store.call("check")
        assert sender.store.facts()["positions"]["flushed_position"] == flushed
        assert sender.read() == 10 + (level is FlushDiskType.ASYNC_FLUSH)


def test_limit_of_file_sizes_that_comes_too_late_stops_the_writer_for_good(
    config: StoreConfig,
) -> None:
    prlimit = require_program("prlimit", "util-linux")
    with Sender(config) as sender:
        limit = [prlimit, "--pid", str(sender.store.pid), f"--fsize={FILE_SIZE // 2}"]
        subprocess.run(limit, check=True)
        while (status := sender.send(3000)) == OK:
            assert sender.sent < 10_000, "the limit was not met"
        assert status == FLUSH_FAILED
        assert "EFBIG" in sender.store.facts()["failure"]
        assert sender.read() == sender.sent - 1


def test_store_whose_disk_failed_is_stopped_with_the_reason_and_goes_on_with_the_next(
    config: StoreConfig,
) -> None:
    """Nothing that is in memory only is thrown away, nor what waits in a ring."""
    with Sender(config) as sender:
        for _ in range(10):
            assert sender.send() == OK
        wait_until(lambda: _is_flushed(sender.store))
        with sender.injected("shmq-flush", "fdatasync:error=EIO:when=1"):
            assert sender.send() == OK
            wait_until(lambda: sender.store.facts()["failure"] is not None)
        assert sender.send() == FLUSH_FAILED
        with pytest.raises(FlushFailedError, match="fdatasync"):
            sender.store.stop(keep_memory=True)
        sender.store.process.wait()
        sender.go_on()
        assert sender.send() == OK
        sender.store.call("check")
        assert sender.read() == sender.sent == 13
        sender.client.close()
        sender.store.stop()
        counts = check_once_and_in_order(read_log(config.store_path))
        assert counts == {(0, 0): sender.sent}


def _is_flushed(store: StoreProcess) -> bool:
    positions = store.facts()["positions"]
    return bool(positions["flushed_position"] == positions["committed_position"])


# ---- the next file cannot be made ----------------------------------------------------------------

Refusal = Callable[[Sender], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def _full_disk(sender: Sender) -> Iterator[None]:
    """Another file has all the room that is left."""
    filler = sender.store.config.store_path.parent / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:  # until the disk is full
            file.write(bytes(4096))
    yield
    filler.unlink()


def _keeper_meets(*faults: str) -> Refusal:
    return lambda sender: sender.injected("shmq-keeper", *faults)


REFUSALS: dict[str, tuple[Refusal, int]] = {
    "full": (_full_disk, DISK_FULL),
    "quota": (_keeper_meets("fallocate:error=EDQUOT"), DISK_FULL),
    "read-only": (_keeper_meets("openat:error=EROFS"), DISK_READ_ONLY),
    "no descriptor": (_keeper_meets("openat:error=EMFILE"), LIMIT),
    "broken": (_keeper_meets("fsync:error=EIO"), DISK_FULL),
}


@pytest.mark.parametrize(("refusal", "wanted"), REFUSALS.values(), ids=REFUSALS)
def test_sends_are_told_that_no_file_can_be_made_and_go_on_once_one_can(
    config: StoreConfig, tmp_path: Path, refusal: Refusal, wanted: int
) -> None:
    with small_file_system(tmp_path / "disk", size=32 * FILE_SIZE) as disk:
        config = replace(config, store_path=disk / "store", hot_segment_count=6)
        with Sender(config) as sender:
            with refusal(sender):
                for _ in range(10 * FILE_SIZE // 3000):  # more than is ready
                    status = sender.send(3000, timeout=0.5)
                    if status != OK:
                        break
                else:
                    raise AssertionError("nothing was refused")
                # What was in the ring when the log was full waits there, until it has room.
                for _ in range(100):
                    if status != TIMED_OUT:
                        break
                    status = sender.send(3000, timeout=0.1)
                assert status == wanted
                readable = sender.read()
                assert readable > 0
                with pytest.raises(ServiceNotAvailableError, match="appends wait"):
                    sender.store.call("check")
            for _ in range(200):
                assert sender.send(3000) == OK
            wait_until(lambda: _is_checked(sender.store))
            assert sender.store.facts()["failure"] is None
            sender.client.close()
            sender.store.stop()
            counts = check_once_and_in_order(read_log(config.store_path))
            assert counts == {(0, 0): sender.sent}
            assert os.listdir(config.store_path / "shmq" / "prepare") == []


def _is_checked(store: StoreProcess) -> bool:
    try:
        store.call("check")
    except ServiceNotAvailableError:
        return False
    return True


def test_store_on_a_full_or_read_only_disk_is_not_opened_and_says_why(
    config: StoreConfig, tmp_path: Path
) -> None:
    with (
        small_file_system(tmp_path / "full", size=FILE_SIZE) as disk,
        pytest.raises(DiskFullError, match="the file system is full"),
    ):
        StoreProcess(replace(config, store_path=disk / "store"))
    with small_file_system(tmp_path / "disk", size=32 * FILE_SIZE) as disk:
        config = replace(config, store_path=disk / "store")
        with StoreProcess(config):
            pass
        make_readonly(disk)
        with pytest.raises(StoreError, match="read-only"):
            StoreProcess(config)
    large = replace(config, store_path=tmp_path / "large", commit_log_file_size_bytes=4 << 20)
    with pytest.raises(DiskFullError, match="ulimit -f"):
        StoreProcess(large, wrapper=("prlimit", f"--fsize={3 << 20}"))
