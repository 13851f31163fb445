"""A NameServer and a replica set of two, as processes; and their deaths.

The NameServer supervises them, or nobody does: then the bench starts them, and says who is master
where neither says it by itself, as a person would. Who is master is decided by their lock, or by
two Controllers of one folder.
"""

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from measuring import ROOT

import shmq
from shmq.client.cleanup import forget_memory
from shmq.client.ha import HaMember
from shmq.client.namesrv_process import LOG
from shmq.remoting.client import Client as Link
from shmq.remoting.codes import RequestCode
from shmq.remoting.command import Command
from shmq.remoting.controller_requests import get_metadata_info
from shmq.remoting.runtime_folder import RuntimeFolder, controller_socket_name
from shmq.shm.reaper import reap

T = TypeVar("T")
NAME = "broker-a"
WAIT_MAX_S = 60.0
LOOK_S = 0.005
# A broker that was killed in one round is wanted in the next: its restarts are not delayed.
CLUSTER = """
[namesrv]
broker_hung_timeout_ms = {hung_ms}
probe_interval_ms = 100
[cluster]
restart_delay_reset_ms = 0
crash_count_max = 100
crash_window_ms = 100
"""
MEMBER = """
[broker.a{number}]
cluster_name = "{cluster_name}"
broker_name = "broker-a"
broker_id = {number}
broker_role = "{role}"
store_path = "broker-a{number}"
keep_memory = "never"
slave_sync_interval_ms = 200
flush_interval_ms = {flush_ms}
enable_controller_mode = {is_led}
"""
CONTROLLERS = ("c0", "c1")
FLUSH_MS = 10
"""The default of flush_interval_ms."""


class ReplicaPair:
    """Two members of one broker_name, one of them master, and a client of them."""

    def __init__(
        self,
        folder: Path,
        client: shmq.Client,
        admin: shmq.Admin,
        slave_count: int,
        started: "Started | None",
        controllers: "Controllers | None",
    ) -> None:
        self.folder = folder
        self.slave_count = slave_count
        self.client = client
        self.started = started
        """The members' processes where nobody supervises them."""
        self.controllers = controllers
        """Theirs, where they lead."""
        self._admin = admin

    @property
    def runtime(self) -> Path:
        return self.folder / "run"

    def store(self, broker_id: int) -> Path:
        return self.folder / f"broker-a{broker_id}"

    def member(self, broker_id: int) -> HaMember | None:
        """As it answers; None if it does not."""
        members = self._admin.ha_members(NAME)
        return next((one for one in members if one.broker_id == broker_id), None)

    def master(self) -> HaMember:
        return wait_for(
            lambda: next((one for one in self._admin.ha_members(NAME) if one.is_master), None),
            "a master",
        )

    def slave(self) -> HaMember:
        """The one that is in sync; see await_whole."""
        return next(one for one in self._admin.ha_members(NAME) if not one.is_master)

    def become_master(self, broker_id: int) -> None:
        """As a person says it; returns once it is master."""
        wait_for(lambda: self.member(broker_id), f"broker_id {broker_id}")
        self._admin.switch_master(NAME, broker_id)

    def await_whole(self) -> None:
        """Until both run and the slave is in sync."""

        def is_whole() -> bool:
            status: Any = self.client.link(NAME).call(RequestCode.GET_BROKER_HA_STATUS, {}).json()
            return (
                bool(status.get("master"))
                and status["inSyncSlaveNums"] == self.slave_count
                and all(ward["phase"] == "RUNNING" for ward in self._admin.supervised())
            )

        wait_for(is_whole, "a master with its slave in sync")

    def await_settled(self) -> None:
        """As await_whole, and what a member had alone is with the master, or counted as lost."""
        self.await_whole()
        status = Command(RequestCode.GET_BROKER_STATUS)

        def is_settled() -> bool:
            with RuntimeFolder.open(self.runtime) as folder:
                for member in self._admin.ha_members(NAME):
                    link = Link(folder, member.socket_name, role="bench", timeout_s=WAIT_MAX_S)
                    try:
                        fields = link.call(status, timeout_s=WAIT_MAX_S).fields()
                    finally:
                        link.close()
                    if fields.number("cutPendingBytes", 0):
                        return False
            return True

        wait_for(is_settled, "the end of what was cut off")

    def await_topic(self, topic: str) -> None:
        """Until its slave knows it, too: a master's death may forget a topic younger than that."""
        path = self.store(self.slave().broker_id) / "config" / "topics.json"
        wait_for(lambda: f'"{topic}"' in path.read_text("utf-8"), f"{topic} at the slave")

    def problems(self) -> str:
        """What its members say that is wrong, and its log last."""
        try:
            members = [
                f"{one.role} {one.broker_id} epoch {one.master_epoch}: {one.problem or 'well'}"
                for one in self._admin.ha_members(NAME)
            ]
        except (shmq.ShmqError, OSError) as error:
            members = [str(error)]
        said = (self.folder / LOG).read_text("utf-8", errors="replace").splitlines()[-8:]
        return "; ".join(members + said)


class Started:
    """Members that nobody supervises, by broker_id."""

    def __init__(self, folder: Path, file: Path) -> None:
        self._folder = folder
        self._file = file
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, broker_id: int) -> None:
        """After the last life has ended; returns at once."""
        if broker_id in self._processes:
            self._processes[broker_id].wait()
        self._processes[broker_id] = _start(
            *("shmq.broker", "--config", str(self._file), "--broker", f"a{broker_id}"),
            *("--log-level", "WARNING", "--runtime", str(self._folder / "run")),
            folder=self._folder,
        )

    def close(self) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.wait()


class Controllers:
    """Two processes of one folder: whoever has its lock is active."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        for name in CONTROLLERS:
            self._start(name)
            wait_for(self.active, "an active Controller")

    def _start(self, name: str) -> None:
        self._processes[name] = _start(
            *("shmq.controller", "--store", str(self._folder / "controller"), "--name", name),
            *("--runtime", str(self._folder / "run")),
            folder=self._folder,
        )

    def active(self) -> str | None:
        """Name of the one that leads; None: none does now."""
        return next((name for name in CONTROLLERS if self._leads(name)), None)

    def _leads(self, name: str) -> bool:
        try:
            with RuntimeFolder.open(self._folder / "run") as folder:
                link = Link(folder, controller_socket_name(name), role="bench", timeout_s=1.0)
                try:
                    answer = link.call(get_metadata_info(), timeout_s=1.0)
                finally:
                    link.close()
            return answer.fields().flag("isLeader", False)
        except (shmq.ShmqError, OSError):  # it is dead, or not there yet
            return False

    def kill(self, names: Iterable[str]) -> None:
        """SIGKILL; returns once none of them runs any more."""
        processes = [self._processes[name] for name in names]
        kill(*(process.pid for process in processes))
        for process in processes:
            process.wait()

    def restart_dead(self) -> None:
        for name, process in list(self._processes.items()):
            if process.poll() is not None:
                self._start(name)

    def close(self) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.wait()


@contextmanager
def replica_pair(
    role: str,
    hung_ms: int = 10_000,
    member_count: int = 2,
    *,
    is_supervised: bool = True,
    is_led: bool = False,
    flush_ms: int = FLUSH_MS,
) -> Iterator[ReplicaPair]:
    """Stores on the checkout's file system; a member_count of 1: a master without a slave."""
    with (
        tempfile.TemporaryDirectory(prefix=".bench-", dir=ROOT) as name,
        ExitStack() as stack,
    ):
        folder, run = Path(name), Path(name, "run")
        run.mkdir(mode=0o750)
        members = [
            MEMBER.format(
                number=number,
                role=role,
                cluster_name=folder.name.strip(".").lower(),
                is_led=str(is_led).lower(),
                flush_ms=flush_ms,
            )
            for number in range(member_count)
        ]
        file = folder / "cluster.toml"
        file.write_text(CLUSTER.format(hung_ms=hung_ms) + "".join(members), encoding="utf-8")
        cluster = ["--cluster", str(file)] if is_supervised else []
        stack.callback(_forget, folder, run)
        controllers = None
        if is_led:
            controllers = Controllers(folder)
            stack.callback(controllers.close)
        namesrv = _start("shmq.namesrv", "--runtime", str(run), *cluster, folder=folder)
        stack.callback(namesrv.wait)
        stack.callback(namesrv.terminate)
        started = None
        if not is_supervised:
            started = Started(folder, file)
            stack.callback(started.close)
            for broker_id in range(member_count):
                started.start(broker_id)
        client = stack.enter_context(wait_for(lambda: shmq.connect(run), "the NameServer"))
        admin = stack.enter_context(shmq.Admin(run))
        pair = ReplicaPair(folder, client, admin, member_count - 1, started, controllers)
        wait_for(lambda: client.routes.brokers().get(NAME), "a master")
        pair.await_whole()
        yield pair


def _forget(folder: Path, run: Path) -> None:
    """What is left in memory, also by who died in the middle of giving it back."""
    forget_memory(folder, run)
    reap(sorted(run.glob("broker-*.d")), [], dry_run=False)


def _start(*arguments: str, folder: Path) -> subprocess.Popen[bytes]:
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", *arguments],
            stderr=log,
            cwd=ROOT,
            process_group=0,  # Ctrl-C at the terminal is not for it
        )


def wait_for(look: Callable[[], T | None], what: str) -> T:
    """Look until it is there, and no error."""
    deadline = time.monotonic() + WAIT_MAX_S
    error: Exception | None = None
    while time.monotonic() < deadline:
        try:
            found = look()
        except (shmq.ShmqError, OSError) as raised:
            found, error = None, raised
        if found:
            return found
        time.sleep(LOOK_S)
    raise TimeoutError(f"{what}: not there in {WAIT_MAX_S:.0f} s; last error: {error}")


def kill(*pids: int) -> None:
    """All of them, and then wait until none runs any more."""
    with ExitStack() as stack:
        pidfds = []
        for pid in pids:
            pidfds.append(os.pidfd_open(pid))
            stack.callback(os.close, pidfds[-1])
        for pidfd in pidfds:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        for pidfd in pidfds:
            select.select([pidfd], [], [])


def stop(pid: int) -> None:
    """Until SIGCONT; returns once none of its threads runs any more."""
    os.kill(pid, signal.SIGSTOP)
    while not _stands_still(pid):
        time.sleep(0)


def _stands_still(pid: int) -> bool:
    try:
        return all(
            task.joinpath("stat").read_text("utf-8").rpartition(")")[2].split()[0] == "T"
            for task in Path(f"/proc/{pid}/task").iterdir()
        )
    except OSError:  # a thread has ended meanwhile
        return False
