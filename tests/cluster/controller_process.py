"""Controllers as processes, and the members of one replica set that they lead."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import shmq
from shmq.client.ha import HaMember
from shmq.remoting.controller_requests import SyncStateData
from shmq.shm.mastership import load_record
from tests.cluster.namesrv_process import NamesrvProcess
from tests.support.broker_process import BrokerProcess
from tests.support.cluster import wait_for
from tests.support.repository import ROOT

NAME = "broker-a"
QUICK = {"broker_not_active_timeout_ms": "2000", "election_grace_ms": "1500"}
"""Of the Controllers: a test waits for these times."""


class ControllerProcess:
    """One Controller."""

    def __init__(self, folder: Path, runtime: Path, *, name: str = "c0", **settings: str) -> None:
        """Start it; its journal lies in `folder`."""
        self.log_path = folder.parent / f"controller-{name}.log"
        command = [
            sys.executable, "-m", "shmq.controller",
            "--store", str(folder), "--runtime", str(runtime), "--name", name,
        ]  # fmt: skip
        for key, value in {**QUICK, **settings}.items():
            command += ["--set", f"{key}={value}"]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text("utf-8")

    def wait_for(self, text: str) -> ControllerProcess:
        wait_for(lambda: text in self.log or self.process.poll() is not None, text)
        assert text in self.log, self.log
        return self

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        return self.process.wait()


class LedSet:
    """A NameServer, Controllers, and members of one broker_name that they lead. A context manager.

    Args:
        folder: of the test.
        cluster_name: from the fixture of that name.
        members: how many.
        controllers: how many; the first is the active one.
        learners: their broker_ids.
        controller: settings of the Controllers.
        settings: of the members.
    """

    def __init__(
        self,
        folder: Path,
        cluster_name: str,
        *,
        members: int = 2,
        controllers: int = 1,
        learners: Iterable[int] = (),
        controller: dict[str, str] | None = None,
        **settings: str,
    ) -> None:
        self.folder = folder
        self.cluster_name = cluster_name
        self.runtime = folder / "run"
        self.runtime.mkdir(mode=0o750)
        self.journal = folder / "controller"
        self.controller_settings = controller or {}
        self.controllers: list[ControllerProcess] = []
        self.members: dict[int, BrokerProcess] = {}
        self._learners = frozenset(learners)
        self._settings = settings
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self.namesrv = self._stack.enter_context(NamesrvProcess(self.runtime))
            for number in range(controllers):
                self.start_controller(f"c{number}").wait_for(" ready name=")
            for broker_id in range(members):
                self.start_member(broker_id)
                if broker_id == 0:  # so that it is master first
                    self.await_master(0)
            undo.pop_all()

    def start_controller(self, name: str = "c0") -> ControllerProcess:
        started = ControllerProcess(
            self.journal, self.runtime, name=name, **self.controller_settings
        )
        self.controllers.append(started)
        return started

    def start_member(self, broker_id: int) -> BrokerProcess:
        folder = self.folder / f"member-{broker_id}"
        folder.mkdir(exist_ok=True)
        member = BrokerProcess(
            folder,
            self.cluster_name,
            name=NAME,
            broker_id=broker_id,
            runtime=self.runtime,
            enableControllerMode="true",
            brokerHeartbeatInterval="100",
            asyncLearner=str(broker_id in self._learners).lower(),
            **self._settings,
        )
        self.members[broker_id] = member
        return member

    def connect(self, **options: Any) -> shmq.Client:
        return shmq.connect(self.runtime, **options)

    def statuses(self) -> list[HaMember]:
        with shmq.Admin(self.runtime) as admin:
            return admin.ha_members(NAME)

    def data(self) -> SyncStateData:
        """What the Controller says."""
        with shmq.Admin(self.runtime) as admin:
            (found,) = admin.sync_states(NAME)
        return found

    def await_master(self, *broker_ids: int) -> int:
        """Wait until one of these members serves as master; its broker_id."""

        def look() -> list[int]:
            masters = [each.broker_id for each in self.statuses() if each.is_master]
            return masters if masters and masters[0] in broker_ids else []

        (found,) = wait_for(look, f"master of {broker_ids}; {self.logs()}")
        return found

    def await_in_sync(self, *broker_ids: int) -> None:
        """Wait until these are the SyncStateSet."""
        wanted = frozenset(broker_ids)
        wait_for(lambda: self.data().info.sync_state_set == wanted, f"in sync: {broker_ids}")

    def wipe_memory(self) -> None:
        """All shared memory is gone, as after somebody cleaned /dev/shm."""
        for path in Path("/dev/shm").glob(f"shmq.{self.cluster_name}.*"):
            path.unlink()

    def epoch(self) -> int:
        """Of the last mastership, as its own record says."""
        record = load_record(self.runtime / f"broker-{NAME}-0.d")
        assert record is not None
        return record.master_epoch

    def logs(self) -> str:
        members = [member.log for member in self.members.values()]
        return "\n".join([*(each.log for each in self.controllers), *members])

    def close(self) -> None:
        for member in self.members.values():
            if member.process.poll() is None:
                os.kill(member.pid, signal.SIGCONT)
                member.process.terminate()
        for member in self.members.values():
            member.process.wait()
        for controller in self.controllers:
            controller.end()
        self._stack.close()
        self.wipe_memory()

    def __enter__(self) -> LedSet:
        return self

    def __exit__(self, *_: object) -> None:
        print(self.logs())  # pytest shows it where a test failed
        self.close()
