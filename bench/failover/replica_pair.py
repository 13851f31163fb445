"""A NameServer that supervises a replica set of two, as processes; and their deaths."""

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from measuring import ROOT

import shmq
from shmq.client.ha import HaMember
from shmq.client.local import LOG, forget_memory
from shmq.remoting.codes import RequestCode

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
"""


class ReplicaPair:
    """Two members of one broker_name, one of them master, and a client of them."""

    def __init__(
        self, folder: Path, client: shmq.Client, admin: shmq.Admin, slave_count: int
    ) -> None:
        self.folder = folder
        self.slave_count = slave_count
        self.client = client
        self._admin = admin

    def master(self) -> HaMember:
        return wait_for(
            lambda: next((one for one in self._admin.ha_members(NAME) if one.is_master), None),
            "a master",
        )

    def await_whole(self) -> None:
        """Until both run and the slave is in sync."""

        def is_whole() -> bool:
            status: Any = self.client.link(NAME).call(RequestCode.GET_BROKER_HA_STATUS, {}).json()
            wards = self._admin.supervised()
            return (
                bool(status.get("master"))
                and status["inSyncSlaveNums"] == self.slave_count
                and all(ward["phase"] == "RUNNING" for ward in wards)
            )

        wait_for(is_whole, "a master with its slave in sync")

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


@contextmanager
def replica_pair(role: str, hung_ms: int = 10_000, member_count: int = 2) -> Iterator[ReplicaPair]:
    """Stores on the checkout's file system; a member_count of 1: a master without a slave."""
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=ROOT) as name:
        folder, run = Path(name), Path(name, "run")
        run.mkdir(mode=0o750)
        members = [
            MEMBER.format(number=number, role=role, cluster_name=folder.name.strip(".").lower())
            for number in range(member_count)
        ]
        file = folder / "cluster.toml"
        file.write_text(CLUSTER.format(hung_ms=hung_ms) + "".join(members), encoding="utf-8")
        with (folder / LOG).open("ab") as log:
            command = [sys.executable, "-P", "-m", "shmq.namesrv", "--runtime", str(run)]
            namesrv = subprocess.Popen([*command, "--cluster", str(file)], stderr=log, cwd=ROOT)
        try:
            client = wait_for(lambda: shmq.connect(run), "the NameServer")
            with client, shmq.Admin(run) as admin:
                pair = ReplicaPair(folder, client, admin, member_count - 1)
                wait_for(lambda: client.routes.brokers().get(NAME), "a master")
                pair.await_whole()
                yield pair
        finally:
            namesrv.terminate()
            namesrv.wait()
            forget_memory(folder, run)


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


def end(pid: int, how: str) -> None:
    """Kill it, or stop it; returns once none of its threads runs any more."""
    pidfd = os.pidfd_open(pid)
    try:
        if how == "kill":
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [])
        else:
            signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
            while not _stands_still(pid) and not select.select([pidfd], [], [], 0)[0]:
                time.sleep(0)
    finally:
        os.close(pidfd)


def _stands_still(pid: int) -> bool:
    try:
        return all(
            task.joinpath("stat").read_text("utf-8").rpartition(")")[2].split()[0] == "T"
            for task in Path(f"/proc/{pid}/task").iterdir()
        )
    except OSError:  # a thread has ended meanwhile
        return False
