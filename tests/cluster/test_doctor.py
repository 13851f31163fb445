"""`shmq doctor`: each finding is made to appear by its cause, and goes away with it.

What is changed of the machine is changed in a mount namespace, which ends with the process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import shmq
from shmq.shm.fds import open_files
from shmq.tools.doctor import CHECKS
from tests.cluster.namesrv_process import NamesrvProcess
from tests.support.broker_process import BrokerProcess
from tests.support.cluster import Cluster, wait_for
from tests.support.mounts import Ext4OnLoop
from tests.support.repository import ROOT
from tests.support.require import require_or_skip, require_program, require_root
from tests.support.sanitized import sanitized_environ, sanitized_tree
from tests.support.standing_still import stopped

pytestmark = pytest.mark.cluster
DOCTOR = [sys.executable, "-m", "shmq.tools.cli", "doctor", "--json"]
UID = 60001


class Seen:
    """What one run found."""

    def __init__(self, done: subprocess.CompletedProcess[bytes]) -> None:
        assert done.returncode in (0, 1, 2), done.stderr.decode()
        assert not done.stderr, done.stderr.decode()
        self.exit_code = done.returncode
        self.findings = json.loads(done.stdout)["findings"]

    def of(self, check: str) -> tuple[str, str]:
        """(severity, seen) of the worst finding of a check."""
        order = ("ok", "warning", "error")
        found = [item for item in self.findings if item["check"] == check]
        worst = max(found, key=lambda item: order.index(item["severity"]))
        assert bool(worst["remedy"]) == (worst["severity"] != "ok"), worst
        return worst["severity"], worst["seen"]


def examine(
    runtime: Path,
    *arguments: str,
    cause: str | None = None,
    path: Path | None = None,
    wrapper: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
) -> Seen:
    """Run the doctor, behind a line of shell that changes its view of the machine, or what else
    becomes it.
    """
    command = [*wrapper, *DOCTOR, "-n", str(runtime), *arguments]
    if cause is not None:
        require_root()
        unshare = require_program("unshare", "util-linux")
        command = [unshare, "-m", "sh", "-ec", f'{cause}\nexec "$@"', "sh", *command]
    places = os.pathsep.join(str(place) for place in (path, ROOT) if place is not None)
    return Seen(
        subprocess.run(
            command,
            env=os.environ | {"PYTHONPATH": places} | dict(environment or {}),
            cwd="/",
            capture_output=True,
            timeout=60,
            check=False,
        )
    )


@pytest.fixture
def nobody(tmp_path: Path) -> Path:
    """A runtime folder where nothing runs."""
    made = tmp_path / "nobody"
    made.mkdir(mode=0o750)
    return made


MACHINE = {
    "small": ("dev-shm", "mount -t tmpfs -o size=64m tmpfs /dev/shm", "warning", "of 64 MiB"),
    "full": (
        "dev-shm",
        "mount -t tmpfs -o size=300m tmpfs /dev/shm; fallocate -l 290M /dev/shm/others",
        "warning",
        "/dev/shm: 10 of 300 MiB free",
    ),
    "inodes": (
        "dev-shm",
        "mount -t tmpfs -o size=300m,nr_inodes=500 tmpfs /dev/shm",
        "warning",
        "inodes left",
    ),
    "no tmpfs": ("dev-shm", "mkdir $T/shm; mount --bind $T/shm /dev/shm", "error", "not a tmpfs"),
    "files": ("open-files", "ulimit -n 200", "warning", "this shell may open 200 files"),
    "swap": (
        "swap",
        "printf 'Filename Type Size Used Priority\\n/dev/vdb partition 1 0 -2\\n' >$T/swaps;"
        " mount --bind $T/swaps /proc/swaps",
        "warning",
        "/dev/vdb",
    ),
    "clock": (
        "clock-source",
        "echo hpet >$T/clock; mount --bind $T/clock"
        " /sys/devices/system/clocksource/clocksource0/current_clocksource",
        "warning",
        "hpet",
    ),
    "little memory": (
        "memory",
        "sed 's/^MemAvailable:.*/MemAvailable: 200000 kB/' /proc/meminfo >$T/mem;"
        " mount --bind $T/mem /proc/meminfo",
        "warning",
        "less than its defaults",
    ),
    "no memory": (
        "memory",
        "sed 's/^MemAvailable:.*/MemAvailable: 70000 kB/' /proc/meminfo >$T/mem;"
        " mount --bind $T/mem /proc/meminfo",
        "error",
        "MemAvailable",
    ),
}


@pytest.mark.parametrize("name", MACHINE)
def test_what_is_wrong_with_the_machine_is_found_and_no_longer_when_it_is_mended(
    name: str, nobody: Path, tmp_path: Path
) -> None:
    check, cause, severity, wanted = MACHINE[name]
    before = examine(nobody).of(check)
    assert before[0] == "ok", before
    said, seen = examine(nobody, cause=f"T={tmp_path}; {cause}").of(check)
    assert (said, wanted in seen) == (severity, True), seen
    assert examine(nobody).of(check)[0] == "ok"


REFUSES = """
import ctypes, os, struct, sys
load, same, give = 0x20, 0x15, 0x06  # BPF: the number of the system call; is it this one; judge
filter = b"".join([
    struct.pack("HBBI", load, 0, 0, 0),
    struct.pack("HBBI", same, 0, 1, int(sys.argv[1])),
    struct.pack("HBBI", give, 0, 0, 0x00050000 | 38),  # ENOSYS
    struct.pack("HBBI", give, 0, 0, 0x7FFF0000),
])
kept = ctypes.create_string_buffer(filter)
program = struct.pack("HxxxxxxP", len(filter) // 8, ctypes.addressof(kept))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0, "PR_SET_NO_NEW_PRIVS"
assert libc.prctl(22, 2, program, 0, 0) == 0, f"PR_SET_SECCOMP: {ctypes.get_errno()}"
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Becomes another program, for which a seccomp filter refuses one system call."""
CALLS = {
    "x86_64": {"pidfd_open": 434, "memfd_create": 319},
    "aarch64": {"pidfd_open": 434, "memfd_create": 279},
}


@pytest.mark.parametrize("call", ["pidfd_open", "memfd_create"])
def test_a_kernel_that_lacks_a_call_is_found_and_no_longer_where_it_has_it(
    nobody: Path, call: str
) -> None:
    calls = CALLS.get(os.uname().machine)
    if calls is None:
        require_or_skip(f"numbers of system calls for {os.uname().machine} are not known here")
    assert examine(nobody).of("kernel")[0] == "ok"
    wrapper = (sys.executable, "-c", REFUSES, str(calls[call]))
    said, seen = examine(nobody, wrapper=wrapper).of("kernel")
    assert (said, "no pidfd_open or memfd_create: [Errno 38]" in seen) == ("error", True), seen
    other = (sys.executable, "-c", REFUSES, "9999")
    assert examine(nobody, wrapper=other).of("kernel")[0] == "ok"


def test_a_core_with_sanitizers_is_found_and_no_longer_where_there_is_a_build_for_use(
    nobody: Path, tmp_path: Path
) -> None:
    assert examine(nobody).of("build")[0] == "ok"
    tree = sanitized_tree(tmp_path / "sanitized")
    said, seen = examine(nobody, path=tree, environment=sanitized_environ()).of("build")
    assert (said, "-fsanitize=address" in seen) == ("warning", True), seen
    assert examine(nobody).of("build")[0] == "ok"


@pytest.mark.parametrize(
    ("lines", "severity"),
    [("[Login]", "error"), ("[Login]\nRemoveIPC=yes", "error"), ("[Login]\nRemoveIPC=no", "ok")],
)
def test_logind_that_removes_memory_of_an_ordinary_user_is_found(
    nobody: Path, tmp_path: Path, lines: str, severity: str
) -> None:
    conf = tmp_path / "etc"
    (conf / "systemd").mkdir(parents=True)
    (conf / "systemd" / "logind.conf").write_text(lines + "\n")
    cause = (
        f"cp -r {conf}/systemd /run/shmq-doctor; mount -t tmpfs tmpfs /etc; mkdir /etc/systemd;"
        " cp /run/shmq-doctor/* /etc/systemd; rm -r /run/shmq-doctor;"
        f" mount --bind {tmp_path} {tmp_path}; mount -t tmpfs tmpfs /run;"
        " mkdir -p /run/systemd/system"
    )
    assert examine(nobody, cause=cause).of("remove-ipc")[0] == "ok"  # root is a system user
    os.chown(nobody, UID, -1)
    said, seen = examine(nobody, cause=cause).of("remove-ipc")
    assert said == severity, seen
    assert examine(nobody, cause="mount -t tmpfs tmpfs /run").of("remove-ipc")[0] == "ok"


def test_a_store_on_a_file_system_that_keeps_nothing_or_is_full_is_found(
    nobody: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    option = ("--store", str(store))
    tmpfs = f"mount -t tmpfs -o size=20m,nr_inodes=2000 tmpfs {store}"
    said, seen = examine(nobody, *option, cause=tmpfs).of("file-system")
    assert (said, "tmpfs" in seen) == ("warning", True), seen
    assert examine(nobody, *option, cause=tmpfs).of("disk")[0] == "ok"
    full = f"{tmpfs}; fallocate -l 18M {store}/full"
    said, seen = examine(nobody, *option, cause=full).of("disk")
    assert (said, "90 % used" in seen) == ("warning", True), seen
    inodes = f"{tmpfs}; for i in $(seq 1200); do : >{store}/$i; done"
    said, seen = examine(nobody, *option, cause=inodes).of("disk")
    assert (said, "inodes left" in seen) == ("warning", True), seen


def test_a_disk_that_breaks_its_word_or_is_read_only_is_found(nobody: Path, tmp_path: Path) -> None:
    with Ext4OnLoop(tmp_path / "image", tmp_path / "disk", size=16 << 20) as disk:
        option = ("--store", str(disk.folder))

        def look(remount: str = "true") -> tuple[str, str]:
            return examine(nobody, *option, cause=remount).of("file-system")

        assert look()[0] == "ok"
        said, seen = look(f"mount -o remount,barrier=0 {disk.folder}")
        assert (said, "nobarrier" in seen) == ("error", True), seen
        assert look(f"mount -o remount,barrier=1 {disk.folder}")[0] == "ok"
        said, seen = look(f"mount -o remount,ro {disk.folder}")
        assert (said, "read-only" in seen) == ("error", True), seen
        assert look(f"mount -o remount,rw {disk.folder}")[0] == "ok"


# ---- what runs -----------------------------------------------------------------------------------


@pytest.fixture
def running(tmp_path: Path, cluster_name: str) -> Iterator[Cluster]:
    with Cluster(tmp_path, cluster_name) as made:
        yield made


def test_no_cluster_is_said_and_a_running_one_is_well(running: Cluster, nobody: Path) -> None:
    said, seen = examine(nobody).of("brokers")
    assert (said, f"no cluster at {nobody}" in seen) == ("warning", True), seen
    assert examine(running.runtime).of("brokers") == ("ok", "broker broker-a:0 is RUNNING")


def test_namesrv_that_knows_no_broker_is_said(running: Cluster) -> None:
    running.brokers[0].stop()
    said, seen = examine(running.runtime).of("brokers")
    assert (said, "knows no broker" in seen) == ("warning", True), seen


def test_namesrv_that_hangs_or_died_is_found_until_it_is_back(running: Cluster) -> None:
    namesrv = running.namesrv
    assert examine(running.runtime).of("services") == ("ok", "namesrv-ns0 answers")
    pid = namesrv.process.pid
    with stopped(pid):
        said, text = examine(running.runtime).of("services")
        assert (said, f"(pid {pid}) does not answer" in text) == ("error", True), text
    namesrv.end(signal.SIGKILL)
    said, text = examine(running.runtime).of("services")
    assert (said, text.split(";")[0]) == ("error", "namesrv-ns0 has died")
    with NamesrvProcess(running.runtime):
        assert examine(running.runtime).of("services") == ("ok", "namesrv-ns0 answers")


def test_broker_that_hangs_is_found_until_it_goes_on(running: Cluster) -> None:
    with stopped(running.brokers[0].pid):
        seen = examine(running.runtime)
        assert seen.exit_code == 2
        said, text = seen.of("brokers")
        assert (said, "broker-a:0 does not answer" in text) == ("error", True), text
    assert examine(running.runtime).of("brokers")[0] == "ok"


def test_memory_that_a_dead_broker_left_is_found_until_it_is_adopted(running: Cluster) -> None:
    assert examine(running.runtime).of("left-memory")[0] == "ok"
    running.brokers[0].kill()
    said, seen = examine(running.runtime).of("left-memory")
    assert (said, "of dead brokers" in seen) == ("warning", True), seen
    running.brokers[0].restart()
    assert examine(running.runtime).of("left-memory")[0] == "ok"


def test_a_broker_with_few_files_is_found(tmp_path: Path, cluster_name: str) -> None:
    prlimit = require_program("prlimit", "util-linux")
    with Cluster(tmp_path, cluster_name) as made:
        pid = made.brokers[0].pid
        assert examine(made.runtime).of("open-files")[0] == "ok"
        before = open_files(pid)
        nearly = before.open_count * 100 // 82
        subprocess.run([prlimit, f"--pid={pid}", f"--nofile={nearly}:"], check=True)
        said, seen = examine(made.runtime).of("open-files")
        assert (said, f"of {nearly} files open" in seen) == ("warning", True), seen
        subprocess.run([prlimit, f"--pid={pid}", f"--nofile={before.limit}:"], check=True)
        assert examine(made.runtime).of("open-files")[0] == "ok"
        subprocess.run([prlimit, f"--pid={pid}", "--nofile=500:500"], check=True)
        said, seen = examine(made.runtime).of("open-files")
        assert (said, "broker broker-a:0 may open 500 files" in seen) == ("warning", True), seen


def test_an_upgrade_that_was_not_ended_is_found(running: Cluster, tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    info = newer / "shmq-99.0.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shmq\nVersion: 99.0.0\n")
    assert examine(running.runtime).of("versions")[0] == "ok"
    said, seen = examine(running.runtime, path=newer).of("versions")
    assert (said, "broker-a:0 runs 0." in seen) == ("warning", True), seen
    assert "installed is 99.0.0" in seen


def test_members_of_a_replica_set_on_one_disk_are_found(
    running: Cluster, cluster_name: str, tmp_path: Path
) -> None:
    def seen_beside(folder: Path) -> tuple[str, str]:
        with BrokerProcess(
            folder, cluster_name, broker_id=1, runtime=running.runtime, broker_role="SLAVE"
        ):
            with shmq.Admin(running.runtime) as admin:
                wait_for(lambda: len(admin.brokers()) == 2, "the slave's registration")
            return examine(running.runtime).of("replica-disks")

    (tmp_path / "beside").mkdir()
    said, seen = seen_beside(tmp_path / "beside")
    assert (said, "share a disk" in seen) == ("warning", True), seen
    with Ext4OnLoop(tmp_path / "image", tmp_path / "disk", size=64 << 20) as disk:
        assert seen_beside(disk.folder)[0] == "ok"


def test_members_that_stand_by_without_a_master_are_found_until_there_is_one(
    running: Cluster, cluster_name: str, tmp_path: Path
) -> None:
    (tmp_path / "slave").mkdir()
    with BrokerProcess(
        tmp_path / "slave",
        cluster_name,
        broker_id=1,
        runtime=running.runtime,
        broker_role="SLAVE",
    ):
        with shmq.Admin(running.runtime) as admin:
            wait_for(lambda: len(admin.brokers()) == 2, "the slave's registration")
        assert examine(running.runtime).of("replica-sets")[0] == "ok"
        running.brokers[0].kill()
        said, seen = examine(running.runtime).of("replica-sets")
        wanted = "broker-a has no master that answers; broker_id 1 stands by"
        assert (said, seen) == ("error", wanted)
        running.brokers[0].restart()
        wait_for(lambda: examine(running.runtime).of("replica-sets")[0] == "ok", "the master")


def test_each_check_is_in_a_test_here() -> None:
    tested = Path(__file__).read_text("utf-8")
    assert [name for name in CHECKS if f'"{name}"' not in tested] == []
