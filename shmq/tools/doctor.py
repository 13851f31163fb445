"""Looks at the machine and at what runs on it for what will hurt later: `shmq doctor`.

What lives here: `examine`, one function for each thing that is looked at, and the words of what is
found. Each finding says what was seen and how to remedy it, and goes away with its cause; what is
as it should be is a finding too, so that a report shows what was looked at.

In a process of its own. Reads /proc, /sys, /etc, mounts and what brokers say of themselves; writes
nothing. Blocks as long as a broker that hangs lets it wait (seconds). What cannot be read is a
finding, never an error.
"""

from __future__ import annotations

import math
import os
import pwd
import resource
import sys
from dataclasses import asdict, dataclass
from enum import StrEnum, unique
from pathlib import Path
from typing import TYPE_CHECKING

from shmq.client.admin import Admin
from shmq.core import core
from shmq.errors import ShmError, ShmqError
from shmq.monitor.services import services_in
from shmq.shm.budget import HotLogRequest, Machine, open_files_wanted, plan_sizes
from shmq.shm.fds import open_files
from shmq.shm.memory import READ_ONLY_OPTIONS, memory_room, mount_of
from shmq.shm.reaper import Verdict, reap
from shmq.shm.segment import SHM_FOLDER
from shmq.store.retention import disk_state
from shmq.tools.answers import answer_times
from shmq.tools.members import masterless, members_in, problem_of
from shmq.version import version_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from shmq.client.admin import BrokerState
    from shmq.client.ha import HaMember
    from shmq.monitor.services import Service

__all__ = ["CHECKS", "Finding", "Severity", "examine"]

_MIB = 1 << 20
_SHM_BYTES_WANTED = 256 * _MIB
_FREE_PERCENT_WANTED = 10
_USED_PERCENT_MAX = 80
_DISK_USED_PERCENT_MAX = 85
"""From there a broker removes messages before their time (disk_space_clean_forcibly_ratio)."""
_INODES_WANTED = 1000
_FIRST_ORDINARY_UID = 1000
"""logind takes system users out of RemoveIPC; SYS_UID_MAX of login.defs is below that."""
_KNOWN_DISKS = frozenset({"ext4", "xfs", "btrfs", "ext3", "zfs", "f2fs"})
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})
_FAST_CLOCKS = frozenset({"tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter"})
_ANSWER_MAX_S = 2.0
"""A NameServer or Controller that is well answers in milliseconds."""
_UNSAFE_OPTIONS = frozenset({"nobarrier", "barrier=0"})


@unique
class Severity(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    """Looked at, and as it should be."""
    WARNING = "warning"
    """It works, and will be slow, or lose something when the machine fails."""
    ERROR = "error"
    """It does not work, or does not keep what it promises."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    check: str
    """Which check: one of CHECKS."""
    severity: Severity
    """How much it matters."""
    seen: str
    """What is there, in one line."""
    remedy: str = ""
    """What to do; empty if nothing is."""

    def to_dict(self) -> dict[str, str]:
        """As --json prints it."""
        return {key: str(value) for key, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class _Patient:
    """What is examined."""

    runtime: Path
    """The runtime folder of the cluster."""
    brokers: Sequence[BrokerState]
    """Those that the NameServers know."""
    members: list[HaMember]
    """Those of replica sets that answer: also who stands by, and is in no route."""
    stores: Sequence[Path]
    """Their stores' folders, and those that were named."""
    cluster_problem: str
    """Why no broker could be asked; empty if they could."""
    cluster_remedy: str
    """What to do about that."""
    services: Sequence[Service]
    """NameServers and Controllers that were not stopped."""
    answers: Mapping[str, float]
    """Seconds in which those that live answered; infinity: not in time."""


def examine(runtime: Path, stores: Iterable[Path] = ()) -> list[Finding]:
    """Look at everything once.

    Args:
        runtime: the runtime folder of the cluster; it need not be there.
        stores: folders of stores whose brokers do not run; those of running brokers are known.

    Returns:
        for each of CHECKS one finding or more, in that order.
    """
    brokers: list[BrokerState] = []
    problem, remedy = "", ""
    try:
        with Admin(runtime) as admin:
            brokers = admin.brokers()
    except ShmqError as error:
        problem = str(error)
        remedy = error.hint or "its services' findings and their logs say more"
    folders = {Path(broker.store_path) for broker in brokers if broker.store_path}
    patient = _Patient(
        runtime,
        brokers,
        members_in(runtime),
        sorted(folders | set(stores)),
        problem,
        remedy,
        services_in(runtime),
        answer_times(runtime, timeout_s=_ANSWER_MAX_S),
    )
    found = []
    for name, check in CHECKS.items():
        try:
            found += [Finding(name, *item) for item in check(patient)]
        except (OSError, ShmError, ValueError) as error:
            found.append(
                Finding(
                    name,
                    Severity.WARNING,
                    f"it could not be looked at: {error}",
                    "run it as root, on the host itself and not in a container",
                )
            )
    return found


_Said = tuple[Severity, str, str]


def _ok(seen: str) -> _Said:
    return Severity.OK, seen, ""


# ---- the machine ---------------------------------------------------------------------------------


def _check_kernel(_patient: _Patient) -> Iterator[_Said]:
    release = os.uname().release
    try:
        os.close(os.pidfd_open(os.getpid()))
        os.close(os.memfd_create("shmq-doctor", os.MFD_ALLOW_SEALING))
    except (OSError, AttributeError) as error:
        yield (
            Severity.ERROR,
            f"Linux {release} has no pidfd_open or memfd_create: {error}",
            "shmq needs Linux 6.1 or newer, and a seccomp filter that lets them pass",
        )
        return
    yield _ok(f"Linux {release}, {os.cpu_count()} cores")


def _check_build(_patient: _Patient) -> Iterator[_Said]:
    what = f"shmq {version_text()}, Python {sys.version.split()[0]}"
    flags = core.BUILD_FLAGS.split()
    slow = [flag for flag in flags if flag.startswith("-fsanitize")]
    if [flag for flag in flags if flag.startswith("-O")][-1:] == ["-O0"]:  # the last one counts
        slow.append("-O0")
    if slow:
        yield (
            Severity.WARNING,
            f"{what}, its core built with {' '.join(slow)}",
            "install a build for use: pip install --force-reinstall shmq",
        )
        return
    yield _ok(what)


def _check_versions(patient: _Patient) -> Iterator[_Said]:
    own = version_text()
    others = [
        f"{broker.broker_name}:{broker.broker_id} runs {broker.version}"
        for broker in patient.brokers
        if broker.version not in ("", own)
    ]
    if others:
        yield (
            Severity.WARNING,
            f"{', '.join(others)}; installed is {own}",
            "end the upgrade: restart them one by one, masters after shmq ha switch",
        )
        return
    yield _ok("all that runs is what is installed")


def _check_open_files(patient: _Patient) -> Iterator[_Said]:
    wanted = open_files_wanted(segment_count=16, session_count=256)
    limits = {
        f"broker {broker.broker_name}:{broker.broker_id}": _open_files_of(broker.pid)
        for broker in patient.brokers
        if broker.pid
    }
    if not limits:
        limits["this shell"] = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for who, limit in limits.items():
        if limit != resource.RLIM_INFINITY and limit < wanted:
            yield (
                Severity.WARNING,
                f"{who} may open {limit} files; 256 clients want {wanted}",
                "LimitNOFILE=65536 in the unit, or ulimit -Hn 65536 before it starts",
            )
            return
    for broker in patient.brokers:
        if broker.pid:
            count, limit = open_files(broker.pid)
            if count * 100 >= limit * _USED_PERCENT_MAX:
                yield (
                    Severity.WARNING,
                    f"broker {broker.broker_name}:{broker.broker_id} has {count} of {limit} files"
                    " open: new clients are refused, then the log gets no further file",
                    f"prlimit --pid {broker.pid} --nofile={8 * limit}, and LimitNOFILE= in the"
                    " unit; shmq broker show says how many clients it has",
                )
                return
    yield _ok(f"{wanted} open files are allowed")


def _open_files_of(pid: int) -> int:
    """The hard limit of a process."""
    for line in Path(f"/proc/{pid}/limits").read_text("ascii").splitlines():
        if line.startswith("Max open files"):
            hard = line.split()[4]
            return resource.RLIM_INFINITY if hard == "unlimited" else int(hard)
    raise ValueError(f"/proc/{pid}/limits has no line for open files")


def _check_dev_shm(_patient: _Patient) -> Iterator[_Said]:
    kind = mount_of(SHM_FOLDER).kind
    room = os.statvfs(SHM_FOLDER)
    total = room.f_blocks * room.f_frsize
    free = room.f_bavail * room.f_frsize
    seen = f"{SHM_FOLDER}: {free // _MIB} of {total // _MIB} MiB free"
    if kind != "tmpfs":
        yield (
            Severity.ERROR,
            f"{SHM_FOLDER} is on {kind}, not a tmpfs of its own",
            f"mount -t tmpfs -o nosuid,nodev,size=50% tmpfs {SHM_FOLDER}",
        )
    elif total < _SHM_BYTES_WANTED:
        yield (
            Severity.WARNING,
            f"{seen}: small logs in memory, slow readers go to the disk soon",
            f"mount -o remount,size=1G {SHM_FOLDER}; in a container --shm-size=1g",
        )
    elif free * 100 < total * _FREE_PERCENT_WANTED:
        yield (
            Severity.WARNING,
            f"{seen}: senders are refused once nothing is left",
            "shmq shm ls shows who has it; shmq shm clean, or mount -o remount,size=..."
            f" {SHM_FOLDER}",
        )
    elif room.f_files and room.f_favail < _INODES_WANTED:
        yield (
            Severity.WARNING,
            f"{SHM_FOLDER}: {room.f_favail} inodes left",
            f"mount -o remount,nr_inodes=... {SHM_FOLDER}",
        )
    else:
        yield _ok(seen)


def _check_memory(patient: _Patient) -> Iterator[_Said]:
    for broker in patient.brokers:
        if broker.pid:
            room = memory_room(pid=broker.pid)
            if room.left_bytes * 100 < room.limit_bytes * _FREE_PERCENT_WANTED:
                yield (
                    Severity.WARNING,
                    f"broker {broker.broker_name}:{broker.broker_id} has"
                    f" {room.left_bytes // _MIB} of {room.limit_bytes // _MIB} MiB left by"
                    f" {room.source}: sends are refused once nothing is",
                    "raise MemoryMax= in the unit (systemctl set-property works at once), or"
                    " lower hot_segment_count",
                )
                return
    machine = Machine.read()
    try:
        plan = plan_sizes(HotLogRequest(), machine)
    except ShmqError as error:
        yield Severity.ERROR, str(error), "give the broker more memory: MemoryMax= in the unit"
        return
    limit = f"{machine.memory_bytes // _MIB} MiB by {machine.memory_source}"
    if plan.shrunk:
        yield (
            Severity.WARNING,
            f"a broker gets less than its defaults ({limit}): {'; '.join(plan.shrunk)}",
            "raise that limit or the size of /dev/shm; or set the sizes to what is wanted",
        )
        return
    yield _ok(f"{limit}; a broker's log in memory may have {plan.shm_bytes // _MIB} MiB")


def _check_swap(_patient: _Patient) -> Iterator[_Said]:
    swaps = Path("/proc/swaps").read_text("utf-8", "replace").splitlines()[1:]
    if swaps:
        yield (
            Severity.WARNING,
            f"swap is on ({swaps[0].split()[0]}): shared memory may go there and costs a disk"
            " access a page then",
            "swapoff -a, or MemorySwapMax=0 in the unit",
        )
        return
    yield _ok("no swap")


def _check_remove_ipc(patient: _Patient) -> Iterator[_Said]:
    uids = {os.stat(f"/proc/{broker.pid}").st_uid for broker in patient.brokers if broker.pid}
    if not uids:
        uids = {patient.runtime.stat().st_uid} if patient.runtime.exists() else {os.geteuid()}
    ordinary = sorted(uid for uid in uids if uid >= _FIRST_ORDINARY_UID)
    if not ordinary:
        yield _ok("brokers run as a system user, whose shared memory logind leaves alone")
    elif not Path("/run/systemd/system").is_dir():
        yield _ok("no systemd here that removes shared memory at a logout")
    elif not _removes_ipc(Path("/")):
        yield _ok("logind has RemoveIPC=no")
    else:
        yield (
            Severity.ERROR,
            f"logind removes the shared memory of {_user(ordinary[0])} at the last logout"
            " (RemoveIPC), under a broker that runs",
            "shmq service install runs brokers as a system user; or RemoveIPC=no in"
            " /etc/systemd/logind.conf and systemctl restart systemd-logind",
        )


def _removes_ipc(root: Path) -> bool:
    """What logind's files say; the last one counts (logind.conf(5)), and its default is yes."""
    drop_ins: dict[str, Path] = {}
    for folder in ("usr/lib", "run", "etc"):
        for path in (root / folder / "systemd/logind.conf.d").glob("*.conf"):
            drop_ins[path.name] = path
    answer = True
    for path in (root / "etc/systemd/logind.conf", *(drop_ins[name] for name in sorted(drop_ins))):
        if not path.is_file():
            continue
        for line in path.read_text("utf-8", "replace").splitlines():
            key, _, value = line.partition("=")
            if key.strip() == "RemoveIPC":
                answer = value.strip().lower() not in ("no", "false", "0", "off")
    return answer


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _check_clock_source(_patient: _Patient) -> Iterator[_Said]:
    path = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    name = path.read_text("ascii").strip()
    if name not in _FAST_CLOCKS:
        yield (
            Severity.WARNING,
            f"the clock is {name}: reading it costs a system call, and each message reads it",
            "boot with clocksource=tsc, or see the kernel's log for why it was given up",
        )
        return
    yield _ok(f"the clock is {name}")


# ---- the stores ----------------------------------------------------------------------------------


def _check_file_system(patient: _Patient) -> Iterator[_Said]:
    for store in patient.stores:
        mount = mount_of(store)
        if mount.kind in _IN_MEMORY:
            yield (
                Severity.WARNING,
                f"{store} is on {mount.kind}: nothing of it survives a restart of the host",
                "give the broker a store_path on a disk",
            )
        elif mount.kind not in _KNOWN_DISKS:
            yield (
                Severity.WARNING,
                f"{store} is on {mount.kind}: whether its fdatasync reaches a disk is not known",
                "use a local ext4, xfs or btrfs",
            )
        elif unsafe := _UNSAFE_OPTIONS & mount.options:
            yield (
                Severity.ERROR,
                f"{store} is on {mount.point}, mounted with {', '.join(sorted(unsafe))}: a power"
                " cut loses what was promised to be on disk",
                f"mount -o remount,barrier=1 {mount.point}",
            )
        elif not READ_ONLY_OPTIONS.isdisjoint(mount.options):
            yield (
                Severity.ERROR,
                f"{store} is on {mount.point}, which is read-only: sends are refused",
                f"see the kernel's log for why, then mount -o remount,rw {mount.point}; where it"
                " found errors: stop the broker, umount, fsck, mount, start it",
            )
        else:
            yield _ok(f"{store} is on {mount.kind}, {mount.point}")


def _check_disk(patient: _Patient) -> Iterator[_Said]:
    for store in patient.stores:
        room = disk_state(store)
        usage = room.usage
        seen = f"{store}: {usage.used_ratio} % used, {usage.free_bytes // _MIB} MiB free"
        if usage.used_ratio >= _DISK_USED_PERCENT_MAX:
            yield (
                Severity.WARNING,
                f"{seen}: a full disk refuses sends",
                "lower file_reserved_time, remove what is not shmq's, or give it a larger disk",
            )
        elif room.file_max and room.free_files < _INODES_WANTED:
            yield (
                Severity.WARNING,
                f"{store}: {room.free_files} inodes left",
                "remove small files from that file system",
            )
        else:
            yield _ok(seen)


def _check_replica_disks(patient: _Patient) -> Iterator[_Said]:
    disks: dict[tuple[str, int], list[str]] = {}
    for broker in patient.brokers:
        if broker.store_path and Path(broker.store_path).is_dir():
            device = os.stat(broker.store_path).st_dev
            disks.setdefault((broker.broker_name, device), []).append(broker.store_path)
    for (name, _), stores in disks.items():
        if len(stores) > 1:
            yield (
                Severity.WARNING,
                f"members of {name} share a disk: {', '.join(stores)}; both are lost with it",
                "give each member a store_path on a disk of its own",
            )
            return
    yield _ok("no members of a replica set share a disk")


# ---- what runs -----------------------------------------------------------------------------------


def _check_services(patient: _Patient) -> Iterator[_Said]:
    for name, pid in patient.services:
        if pid is None:
            yield (
                Severity.ERROR,
                f"{name} has died; what runs goes on, and nobody new finds it",
                "start it again: systemctl start shmq.target, or as it was started; its log says"
                " more",
            )
        elif patient.answers.get(name, math.inf) == math.inf:
            yield (
                Severity.ERROR,
                f"{name} (pid {pid}) does not answer in {_ANSWER_MAX_S:g} s",
                f"is it stopped (ps -o stat {pid})? systemd ends one that hangs, by its watchdog;"
                f" elsewhere: kill -KILL {pid}, and start it again",
            )
        else:
            yield _ok(f"{name} answers")
    if not patient.services:
        yield _ok(f"no NameServer or Controller of ours is in {patient.runtime}")


def _check_brokers(patient: _Patient) -> Iterator[_Said]:
    if patient.cluster_problem:
        yield (
            Severity.WARNING,
            f"no cluster at {patient.runtime}: {patient.cluster_problem}",
            patient.cluster_remedy,
        )
        return
    if not patient.brokers:
        yield (
            Severity.WARNING,
            f"the NameServer of {patient.runtime} knows no broker",
            "start one; shmq ha status lists those that answer and stand by",
        )
    for broker in patient.brokers:
        who = f"broker {broker.broker_name}:{broker.broker_id}"
        if broker.phase == "SILENT":
            yield (
                Severity.ERROR,
                f"{who} does not answer: {broker.problem}",
                "shmq cluster list, then its log; its supervisor kills and restarts one that hangs",
            )
        elif broker.problem:
            yield Severity.ERROR, f"{who}: {broker.problem}", "its log says more"
        else:
            yield _ok(f"{who} is {broker.phase}")


def _check_replica_sets(patient: _Patient) -> Iterator[_Said]:
    is_well = True
    for name, members in masterless(patient.members).items():
        is_well = False
        ids = ", ".join(str(member.broker_id) for member in members)
        yield (
            Severity.ERROR,
            f"{name} has no master that answers; broker_id {ids} stands by",
            f"shmq ha status {name} says why; start the others, or shmq ha switch {name}",
        )
    for member in patient.members:
        if not member.is_master and problem_of(member):
            is_well = False
            yield (
                Severity.WARNING,
                f"broker {member.broker_name}:{member.broker_id}: {problem_of(member)}",
                f"what it says; shmq ha status {member.broker_name}, and its log",
            )
    if is_well:
        yield _ok("no broker that answers is without a master")


def _check_left_memory(patient: _Patient) -> Iterator[_Said]:
    left = [
        finding
        for finding in reap(sorted(patient.runtime.glob("broker-*.d")), [], dry_run=True)
        if finding.verdict is Verdict.WOULD_REMOVE
    ]
    if left:
        size = sum(finding.size_bytes for finding in left)
        yield (
            Severity.WARNING,
            f"{len(left)} objects of dead brokers in {SHM_FOLDER}, {size // _MIB} MiB",
            "it may have messages that no disk has: start those brokers; where a store is gone,"
            " have another member go on with it: shmq ha switch; or give it up: shmq shm clean",
        )
        return
    yield _ok(f"no dead broker's memory in {SHM_FOLDER}")


CHECKS: dict[str, Callable[[_Patient], Iterator[_Said]]] = {
    "kernel": _check_kernel,
    "build": _check_build,
    "versions": _check_versions,
    "open-files": _check_open_files,
    "dev-shm": _check_dev_shm,
    "memory": _check_memory,
    "swap": _check_swap,
    "remove-ipc": _check_remove_ipc,
    "clock-source": _check_clock_source,
    "file-system": _check_file_system,
    "disk": _check_disk,
    "replica-disks": _check_replica_disks,
    "services": _check_services,
    "brokers": _check_brokers,
    "replica-sets": _check_replica_sets,
    "left-memory": _check_left_memory,
}
"""What is looked at, by its name in the report, in its order there."""
