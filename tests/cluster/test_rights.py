"""Rights, tried for real: programs of several uids against one broker with an ACL file."""

from __future__ import annotations

import contextlib
import grp
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster import Cluster, wait_for
from tests.support.other_uid import Person
from tests.support.require import require_root

pytestmark = pytest.mark.cluster

MAPPER, READER, WRITER, BOSS, STRANGER, CLERK = 60001, 60002, 60003, 60004, 60005, 60006
GROUP = grp.getgrnam("games").gr_gid
DESK = 60101

RULES = f"""
[[accounts]]
user = {MAPPER}
map = true
topic_perms = ["orders=SUB", "secret=DENY", "scratch-*=PUB|SUB"]
group_perms = ["g-*=SUB"]

[[accounts]]
user = {READER}
topic_perms = ["orders=SUB"]
group_perms = ["g-reader=SUB"]

[[accounts]]
user = {WRITER}
topic_perms = ["orders=PUB"]

[[accounts]]
user = {BOSS}
admin = true

[[accounts]]
group = {DESK}
topic_perms = ["orders=PUB|SUB"]
default_group_perm = "SUB"
quota = {{ session_count_max = 1 }}
"""


class Office:
    """A cluster with an ACL file, and people."""

    def __init__(self, folder: Path, cluster_name: str, stack: contextlib.ExitStack) -> None:
        self.acl = folder / "acl.toml"
        self.write(RULES)
        self._stack = stack
        self.cluster = stack.enter_context(
            Cluster(
                folder,
                cluster_name,
                group=GROUP,
                acl_file=str(self.acl),
                acl_check_interval_ms="600000",
            )
        )
        self.broker = self.cluster.brokers[0]
        with self.cluster.connect() as client:
            client.create_topic("orders", queues=2)
            client.create_topic("secret", queues=1)
            producer = client.producer()
            for number in range(10):
                producer.send("orders", f"order {number}".encode(), tag="ab"[number % 2])
            producer.send("secret", b"the secret")

    def write(self, text: str) -> None:
        """Replace the file as a whole, as an editor does."""
        new = self.acl.with_suffix(".new")
        new.write_text(text)
        new.chmod(0o644)
        new.rename(self.acl)

    def change(self, text: str) -> None:
        """Other rules, in force when this returns."""
        before = self.info()["aclReloadsTotal"]
        self.write(text)
        self.broker.process.send_signal(signal.SIGHUP)
        wait_for(lambda: self.info()["aclReloadsTotal"] != before, "the reload")

    def info(self) -> dict[str, Any]:
        from shmq.client.admin import Admin

        with Admin(self.cluster.runtime) as admin:
            return dict(admin.runtime_info("broker-a"))

    def person(self, uid: int, *groups: int) -> Person:
        return self._stack.enter_context(Person(self.cluster.runtime, uid, GROUP, *groups))


@pytest.fixture
def office(tmp_path: Path, cluster_name: str) -> Iterator[Office]:
    require_root()
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == "root" and folder != Path("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o011)  # as /run would be
    with contextlib.ExitStack() as stack:
        yield Office(tmp_path, cluster_name, stack)
