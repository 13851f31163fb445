"""Two members of one replica set under a NameServer that supervises them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import shmq
from shmq.remoting import namesrv_requests as requests
from shmq.remoting.codes import RequestCode
from tests.cluster.namesrv_process import NamesrvProcess
from tests.support.cluster import wait_for

NAME = "broker-a"
CLUSTER = """
[namesrv]
broker_hung_timeout_ms = 2000
probe_interval_ms = 100
[cluster]
crash_count_max = 100
spare_broker = false
{members}
"""
MEMBER = """
[broker.{name}]
cluster_name = "{cluster_name}"
broker_name = "broker-a"
broker_id = {broker_id}
store_path = "{folder}/{name}"
commit_log_file_size_bytes = "8MiB"
"""


class Pair:
    """A NameServer that supervises two members, and clients of them."""

    def __init__(self, folder: Path, cluster_name: str) -> None:
        self.folder = folder
        members = [
            MEMBER.format(
                name=f"a{number}", broker_id=number, folder=folder, cluster_name=cluster_name
            )
            for number in range(2)
        ]
        file = folder / "cluster.toml"
        file.write_text(CLUSTER.format(members="".join(members)))
        self.runtime = folder / "run"
        self.runtime.mkdir(mode=0o750)
        self.namesrv = NamesrvProcess(self.runtime, "--cluster", str(file))
        self.namesrv.read_on()

    def close(self) -> None:
        self.namesrv.end()
        print("".join(self.namesrv.lines[-60:]))  # pytest shows it where a test failed

    def members(self) -> dict[str, Mapping[str, Any]]:
        with self.namesrv.connect() as client:
            body = client.call(requests.supervisor_status(), timeout_s=60).json()
        found: Any = body["brokers"]
        return {item["name"]: item for item in found}

    def master(self, client: shmq.Client) -> str:
        """The socket of the master, as routes have it."""
        found: str = wait_for(lambda: client.routes.brokers().get(NAME), "a master")
        return found

    def pid_of(self, socket_name: str) -> int:
        return next(
            item["pid"] for item in self.members().values() if item["socketName"] == socket_name
        )

    def await_both(self) -> None:
        """Wait until both processes run: whoever is not master can be told."""
        wait_for(
            lambda: all(item["phase"] == "RUNNING" for item in self.members().values()),
            "both members",
        )

    def await_in_sync(self) -> None:
        """Until the one that waits has what the master has."""
        with shmq.connect(self.runtime) as client:
            command = RequestCode.GET_BROKER_HA_STATUS
            wait_for(
                lambda: client.link(NAME).call(command, {}).json()["inSyncSlaveNums"] == 1,
                "a slave in sync",
            )

    def copy_config(self, source: str, target: str) -> None:
        """What a slave asks its master for."""
        shutil.copytree(
            self.folder / source / "config", self.folder / target / "config", dirs_exist_ok=True
        )
