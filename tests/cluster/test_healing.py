"""What a machine runs out of: seen before it hurts, told to senders, and over with its cause.

A real broker, a program that sends, an exporter and `shmq check` stand beside each fault: a disk
that is full or read-only, no memory, no descriptors. The broker is never restarted; a ledger of
what was acknowledged is compared with what can be consumed at the end.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

import shmq
from shmq.errors import (
    DiskFullError,
    DiskReadOnlyError,
    FlushFailedError,
    LimitError,
    OutcomeUnknownError,
    SendTimeoutError,
    ShmFullError,
    ShmqError,
)
from shmq.monitor.monitor import Monitor
from shmq.remoting.codes import RequestCode
from shmq.shm.fds import open_files
from shmq.tools.checks import CHECKS
from shmq.tools.reading import Reading
from tests.cluster.namesrv_process import NamesrvProcess
from tests.support.broker_process import SMALL, BrokerClient, RunningBroker
from tests.support.cluster import Cluster, Program, wait_for
from tests.support.dev_shm import SHARED
from tests.support.exporter import Exporter, value
from tests.support.limits import set_open_files
from tests.support.memory_group import memory_group
from tests.support.mounts import Ext4OnLoop, in_dev_shm_of, inside, others_file, room_until
from tests.support.repository import ROOT

pytestmark = pytest.mark.cluster

MIB = 1 << 20
FILE_SIZE = 2 * MIB
BODY_SIZE = 30_000
FILE_SENDS = FILE_SIZE // BODY_SIZE
READY_FILES = 3
"""The one appended to, and two ahead."""
SEND_TIMEOUT_S = 30.0
REFUSED_TIMEOUT_S = 0.1
TIMEOUT_S = 60.0
SETTINGS = {
    "max_message_size_bytes": "1MiB",
    "commit_log_file_size_bytes": "2MiB",
    "hot_segment_count": "auto",  # made as the log grows: 16 in the /dev/shm that there is
    "ring_bytes": "1MiB",  # bodies go through the ring, which is soon full
    "disk_ample_free_bytes": "0",
    "clean_file_forcibly_enable": "false",  # the ledger is read at the end
}
WATCHER = """
import json, sys
from pathlib import Path
from shmq.monitor.monitor import Monitor
from shmq.tools.checks import CHECKS
from shmq.tools.reading import Reading
monitor = Monitor(Path(sys.argv[1]))
for line in sys.stdin:
    name = line.strip()
    verdict = CHECKS[name].run(name, Reading.read(monitor), CHECKS[name].limits)
    print(json.dumps(verdict.to_dict()), flush=True)
"""


class Ledger:
    """Sends numbered messages, and knows what it was told of each."""

    def __init__(self, client: shmq.Client) -> None:
        self._client = client
        self._producer = client.producer()
        self._count = 0
        self.acked: set[int] = set()
        self.unknown: set[int] = set()

    def send(self, timeout: float = SEND_TIMEOUT_S) -> None:
        """One more."""
        number, self._count = self._count, self._count + 1
        try:
            self._producer.send("orders", b"%08d" % number * (BODY_SIZE // 8), timeout=timeout)
        except (OutcomeUnknownError, FlushFailedError):  # it may be in the ring, for a successor
            self.unknown.add(number)
            raise
        self.acked.add(number)

    def send_until_refused(self, wanted: type[ShmqError]) -> tuple[str, str]:
        """Send until a ring is full whose records nobody takes.

        Returns:
            what the last was told that waits in the ring, and what the first that has no room was.
        """
        waits = ""
        for _ in range((READY_FILES + 1) * FILE_SENDS):
            try:
                self.send(REFUSED_TIMEOUT_S)
            except OutcomeUnknownError as error:
                waits = str(error)
            except wanted as error:
                return waits, f"{error}; {error.hint}"
            except SendTimeoutError:  # the broker has not noticed yet
                pass
        raise AssertionError(f"nothing was refused; what waits was told: {waits}")

    def go_on(self) -> None:
        """Send into more files than are ready while nothing can be made."""
        for _ in range(READY_FILES * FILE_SENDS):
            self.send()

    def check(self) -> None:
        """All that was acknowledged is there once; what is unknown at most once; no more. What was
        looked at is forgotten.
        """
        seen: Counter[int] = Counter()
        with self._client.consumer("orders", group="ledger") as consumer:
            while not self.acked <= seen.keys():
                messages = consumer.receive(64, timeout=TIMEOUT_S)
                assert messages, f"lost: {sorted(self.acked - seen.keys())}"
                for message in messages:
                    with message.process():
                        body = bytes(message)
                        assert body == body[:8] * (BODY_SIZE // 8)
                        seen[int(body[:8])] += 1
            for message in consumer.receive(64, timeout=0.2):
                with message.process():
                    seen[int(bytes(message)[:8])] += 1
        assert seen.keys() <= self.acked | self.unknown
        assert set(seen.values()) == {1}
        self.acked.clear()
        self.unknown -= seen.keys()


class Scene:
    """A cluster, a client, and who watches."""

    def __init__(
        self,
        cluster: Cluster,
        client: shmq.Client,
        asking: BrokerClient,
        exporter: Exporter,
        watcher: Program,
    ) -> None:
        self.cluster = cluster
        self.broker = cluster.brokers[0]
        self.client = client
        self._asking = asking
        self._watcher = watcher
        self.ledger = Ledger(client)
        self._exporter = exporter
        self._log_begin = 0

    def begin(self) -> None:
        """All is well, and what is told from now on is of this test."""
        assert self.cluster.is_running
        self._log_begin = len(self.broker.log)
        self.ledger.send()
        self.await_check("broker", "OK")

    @property
    def log(self) -> str:
        """What the broker has said since."""
        return self.broker.log[self._log_begin :]

    def inside(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a program with the broker's view of the machine."""
        return subprocess.run(
            [*inside(self.broker.pid), *command],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    def check(self, name: str) -> tuple[str, str]:
        """(state, what was seen) of one of the judges of `shmq check`."""
        self._watcher.say(name)
        said = self._watcher.hear()
        return said["state"], "; ".join(said["seen"])

    def run_check(self, name: str) -> str:
        """What the command itself prints."""
        shmq_check = (sys.executable, "-m", "shmq.tools.cli", "check")
        return self.inside(*shmq_check, name, "-n", str(self.cluster.runtime)).stdout

    def run_doctor(self) -> str:
        """What `shmq doctor` prints."""
        doctor = (sys.executable, "-m", "shmq.tools.cli", "doctor")
        return self.inside(*doctor, "-n", str(self.cluster.runtime)).stdout

    def await_check(self, name: str, state: str, seen: str = "") -> None:
        said = ("", "")

        def is_said() -> bool:
            nonlocal said
            said = self.check(name)
            return said[0] == state and seen in said[1]

        try:
            wait_for(is_said)
        except AssertionError:
            raise AssertionError(f"{name}: {said}, wanted {state} {seen}") from None

    def metric(self, name: str, **labels: str) -> float | None:
        return value(self._exporter.look(), name, **labels)

    def problem(self) -> object:
        """What the broker says of itself, on a connection that it has had for long."""
        return self._asking.call(RequestCode.GET_BROKER_STATUS).ext_fields["problem"]

    def send_as_another(self, timeout: float = SEND_TIMEOUT_S) -> None:
        """Connect as one more program, and send."""
        with self.cluster.connect() as other:
            other.producer().send("others", b"x", timeout=timeout)

    @property
    def root(self) -> Path:
        """What the broker sees as /."""
        return Path(f"/proc/{self.broker.pid}/root")

    def check_refusal(self, error: type[ShmqError], status: str, words: str, line: str) -> None:
        """Nothing more can be made: everybody is told, in their way; what is there is read."""
        waits, refused = self.ledger.send_until_refused(error)
        assert "its store waits" in waits
        assert words in waits
        assert words in refused
        self.await_check("broker", "CRITICAL", "broker-a:0 takes no more messages")
        assert words in self.run_check("broker")
        assert self.metric("shmq_store_waits", status=status) == 1
        assert self.metric("shmq_store_writable") == 0
        wait_for(lambda: self.metric("shmq_problem") == 1, "the problem in the metrics")
        assert re.search(f"ERROR .*appends wait: .*({line})", self.log), self.log
        assert re.search(line, str(self.problem()))

    def check_well(self) -> None:
        """Everything goes on by itself."""
        self.ledger.go_on()
        self.await_check("broker", "OK")
        assert self.metric("shmq_store_writable") == 1
        wait_for(lambda: self.metric("shmq_problem") == 0, "its end in the metrics")
        assert self.problem() is None
        assert "Traceback" not in self.log, self.log
        self.ledger.check()

    def check_healed(self) -> None:
        """The cause is gone, and it is said."""
        self.check_well()
        assert "appends go on" in self.log


@pytest.fixture(scope="module")
def shared_scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A broker with a small /dev/shm and a small disk, in a mount namespace of its own."""
    folder = tmp_path_factory.mktemp("healing")
    with (
        Ext4OnLoop(folder / "image", folder / "disk", size=160 * MIB, inodes=600) as disk,
        Cluster(
            disk.folder, f"{SHARED}healing", wrapper=in_dev_shm_of("256m"), **SETTINGS
        ) as cluster,
        cluster.connect() as client,
        BrokerClient(cluster.brokers[0], "asking", attach=False) as asking,
        Exporter(cluster.runtime, wrapper=inside(cluster.brokers[0].pid)) as exporter,
        Program(WATCHER, cluster.runtime, wrapper=inside(cluster.brokers[0].pid)) as watcher,
    ):
        yield Scene(cluster, client, asking, exporter, watcher)


@pytest.fixture
def scene(shared_scene: Scene) -> Scene:
    """The module's, and all is well in it."""
    shared_scene.begin()
    return shared_scene


def test_full_dev_shm_is_seen_told_and_over_when_there_is_room(scene: Scene) -> None:
    shm = scene.root / "dev/shm"
    with others_file(shm / "others", room_until(shm, used_percent=85)):
        scene.await_check("shm", "WARNING", "/dev/shm is 8")
        scene.ledger.send()
        with _full(shm / "more"):
            words = "the log gets no more memory: /dev/shm"
            scene.check_refusal(ShmFullError, "SHM_FULL", words, "free in /dev/shm/?; mount -o rem")
            scene.await_check("shm", "CRITICAL", "/dev/shm is 100 % full")
            with pytest.raises(ShmFullError, match="mount -o remount,size="):
                scene.send_as_another()
    scene.check_healed()
    scene.await_check("shm", "OK")


def test_memory_limit_is_seen_told_and_over_when_it_is_raised(scene: Scene) -> None:
    hog = "import sys; x = b'x' * (100 << 20); print('true', flush=True); sys.stdin.read()"
    limit = "memory.(limit_in_bytes|max); raise MemoryMax="
    with (
        memory_group() as group,
        group.of(scene.broker.pid),
        Program(f"import sys; sys.stdin.readline(); {hog}") as program,
        group.of(program.process.pid),
    ):
        program.say()
        program.hear()
        scene.await_check("memory", "OK")
        group.limit(group.usage + 14 * MIB)
        scene.await_check("memory", "WARNING", "the memory of broker-a:0 is ")
        scene.ledger.send()
        group.limit(group.usage + 4 * MIB)
        words = "the log gets no more memory: /dev/shm, a memory limit"
        scene.check_refusal(ShmFullError, "SHM_FULL", words, limit)
        scene.await_check("memory", "CRITICAL")
        assert re.search(r"broker-a:0 has \d+ of \d+ MiB left by .*/memory\.", scene.run_doctor())
        group.limit(None)
        scene.check_healed()
        scene.await_check("memory", "OK")
        program.kill()


def test_full_disk_is_seen_told_and_over_when_there_is_room(scene: Scene) -> None:
    disk = scene.broker.folder
    with others_file(disk / "others", room_until(disk, used_percent=85)):
        scene.await_check("disk", "WARNING", "the disk of broker-a:0 is 8")
        scene.ledger.send()
        with _full(disk / "more"):
            words = "the disk is full or refuses"
            line = "the disk is [0-9]+ % full, wanted at most 90|the file system is full"
            scene.check_refusal(DiskFullError, "DISK_FULL", words, line)
            scene.await_check("disk", "CRITICAL", "the disk of broker-a:0 is ")
    scene.check_healed()
    scene.await_check("disk", "OK")


def test_disk_without_inodes_is_seen_told_and_over_when_there_are_some(scene: Scene) -> None:
    disk = scene.broker.folder
    small = disk / "small"
    small.mkdir()
    try:
        for number in range(os.statvfs(disk).f_files * 85 // 100 - _inodes_used(disk)):
            (small / str(number)).touch()
        scene.await_check("disk", "WARNING", "% of its inodes in use")
        scene.ledger.send()
        with contextlib.suppress(OSError):
            for number in range(os.statvfs(disk).f_files):
                (small / f"more-{number}").touch()
        words = "the disk is full or refuses"
        scene.check_refusal(DiskFullError, "DISK_FULL", words, "the file system is full .*df -i")
        scene.await_check("disk", "CRITICAL", "has 100 % of its inodes in use")
    finally:
        for path in small.iterdir():
            path.unlink()
        small.rmdir()
    scene.check_healed()
    scene.await_check("disk", "OK")


def test_read_only_disk_is_seen_told_and_over_when_it_is_not(scene: Scene) -> None:
    """Where the broker looks up files: what it has open, the kernel lets nobody make read-only."""
    store = str(scene.broker.store_path)
    script = f"mount --bind {store} {store} && mount -o remount,ro,bind {store}"
    done = scene.inside("sh", "-ec", script)
    assert done.returncode == 0, done.stderr
    try:
        scene.await_check("disk", "CRITICAL", "the disk of broker-a:0 is read-only")
        assert scene.metric("shmq_store_read_only") == 1
        scene.ledger.send()
        words = "the file system is read-only"
        scene.check_refusal(DiskReadOnlyError, "DISK_READ_ONLY", words, words)
    finally:
        scene.inside("umount", "-l", store)
    scene.check_healed()
    scene.await_check("disk", "OK")


def test_few_descriptors_are_seen_told_and_over_when_there_are_more(scene: Scene) -> None:
    pid = scene.broker.pid
    before = open_files(pid)
    set_open_files(pid, before.open_count + 80)
    try:
        with contextlib.ExitStack() as others:
            refused = "no descriptors left for clients.* raise LimitNOFILE="
            with pytest.raises(ShmqError, match=refused):
                _connect_for_ever(scene, others)
            scene.await_check("files", "WARNING", "files open")
            with pytest.raises(ShmqError, match=refused):
                scene.send_as_another(timeout=1.0)
            scene.check_well()  # who was there goes on as if nothing were
        scene.await_check("files", "OK")
        scene.send_as_another()
        set_open_files(pid, 8)
        words = "at a limit, most likely of open files"
        scene.check_refusal(LimitError, "LIMIT", words, "no file descriptor left; raise LimitNOFIL")
        scene.await_check("files", "CRITICAL", "of 8 files open")
        with pytest.raises(ShmqError):
            scene.send_as_another(timeout=1.0)
    finally:
        set_open_files(pid, before.limit)
    scene.check_healed()
    scene.await_check("files", "OK")
    scene.send_as_another()


def test_disk_that_the_kernel_finds_damaged_loses_nothing_that_was_acknowledged(
    tmp_path: Path, cluster_name: str
) -> None:
    """What was not written before is in memory: the next broker has it, once the disk is mended."""
    store = tmp_path / "store-broker-a"
    with (
        Ext4OnLoop(tmp_path / "image", store, size=100 * MIB) as disk,
        Cluster(tmp_path, cluster_name, **SETTINGS) as cluster,
    ):
        broker = cluster.brokers[0]
        with cluster.connect() as client:
            ledger = Ledger(client)
            ledger.send()
            disk.find_error()
            with pytest.raises(FlushFailedError, match="the disk refused a write for good"):
                ledger.go_on()
            assert len(ledger.acked) > 1
            wait_for(lambda: "flush failed: " in broker.log, "the log line")
            assert "Read-only file system (EROFS)" in broker.log
            checks = Monitor(cluster.runtime)
            wait_for(lambda: _disk_says(checks) == "the disk of broker-a:0 is read-only", "check")
            checks.close()
            broker.stop()
            disk.boot()
            broker.restart()
            ledger.go_on()
            ledger.check()


def _disk_says(monitor: Monitor) -> str:
    check = CHECKS["disk"]
    return "; ".join(check.run("disk", Reading.read(monitor), check.limits).seen)


HOG = """
import sys, time
sys.stdin.readline()
taken = []
while True:
    taken.append(b"x" * (1 << 20))
    time.sleep(0.005)
"""
"""Takes memory until somebody else is killed for it."""


@pytest.mark.crash
def test_broker_that_the_kernel_kills_for_memory_is_back_with_all_that_was_acknowledged(
    tmp_path: Path, cluster_name: str
) -> None:
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o750)
    file = tmp_path / "cluster.toml"
    settings = "\n".join(f'{key} = "{text}"' for key, text in (SMALL | SETTINGS).items())
    file.write_text(
        f'[broker.a]\nstore_path = "store-a"\ncluster_name = "{cluster_name}"\n'
        f'keep_memory = "never"\n{settings}\n'
    )
    broker = RunningBroker(runtime, "a")
    with (
        NamesrvProcess(runtime, "--cluster", str(file)),
        memory_group() as group,
        Program(HOG) as hog,
        shmq.connect(runtime) as client,
    ):
        wait_for(lambda: broker.said().get("phase") == "RUNNING", "the broker")
        wait_for(client.routes.brokers, "its route")
        ledger = Ledger(client)
        for _ in range(2 * FILE_SENDS):
            ledger.send()
        pid = broker.status()["pid"]
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000")
        with group.of(pid), group.of(hog.process.pid):
            group.limit(group.usage + 32 * MIB)
            hog.say()
            while not group.kill_count:
                ledger.send(TIMEOUT_S)
            group.limit(None)
            hog.kill()
        ledger.go_on()
        assert broker.status()["pid"] != pid
        ledger.check()


def _connect_for_ever(scene: Scene, others: contextlib.ExitStack) -> None:
    for number in range(1000):  # until there is no descriptor for one more
        others.enter_context(BrokerClient(scene.broker, f"idle-{number}", attach=False))


def _inodes_used(disk: Path) -> int:
    room = os.statvfs(disk)
    return room.f_files - room.f_ffree


@contextlib.contextmanager
def _full(path: Path) -> Iterator[None]:
    """All that is left is taken, by root too."""
    with (
        path.open("wb", buffering=0) as file,
        pytest.raises(OSError, match=os.strerror(errno.ENOSPC)),
    ):
        _write_for_ever(file)
    try:
        yield
    finally:
        path.unlink()


def _write_for_ever(file: IO[bytes]) -> None:
    while True:  # until there is no room
        file.write(bytes(65536))
