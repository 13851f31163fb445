"""Another uid: outside the group one clear error; inside it a consumer can read, and change nothing
that is the broker's.
"""

from __future__ import annotations

import grp
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, Program
from tests.support.require import require_root

pytestmark = pytest.mark.cluster

UID = 65534
# The interpreter may lie where only we can read: everything is imported before the uid changes.
# A process that changed its uid is not dumpable, and could not even try the way through /proc.
BECOME = f"""
import ctypes, errno, json, mmap, os, sys
import shmq, shmq.client.admin, shmq.client.instance, shmq.client.consumer, shmq.client.producer
import shmq.client.batch, numpy
from shmq.core import core
os.setgroups(json.loads(sys.argv[2]))
os.setgid(json.loads(sys.argv[2])[0])
os.setuid({UID})
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
"""
CONNECT = """
try:
    with shmq.connect(sys.argv[1]) as client:
        client.producer().send("t", b"x")
except shmq.ShmqError as error:
    print(json.dumps([type(error).__name__, str(error), error.hint]), flush=True)
else:
    print(json.dumps(["connected"]), flush=True)
"""
# Every shared object of the broker that this process has, by its descriptors and by its maps.
ATTACK = """
with shmq.connect(sys.argv[1]) as client, client.consumer("t", "g") as consumer:
    client.producer().send("t", b"mine")
    message = consumer.try_next(30.0)
    fds = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if "/dev/shm/shmq" in target or "memfd:" in target or "/commitlog/" in target:
            fds[int(name)] = target
    maps = set()
    for line in open("/proc/self/maps"):
        words = line.split(maxsplit=5)
        if len(words) == 6 and "/dev/shm/shmq" in words[5]:
            maps.add((words[0], words[1], words[5].strip()))
    done = []
    def attempt(what, action):
        try:
            action()
        except (OSError, ValueError) as error:
            return
        done.append(what)
    ours = {fd for fd, target in fds.items() if "memfd:" in target}
    for fd, target in fds.items():
        size = os.fstat(fd).st_size
        attempt(f"truncate {target}", lambda: os.ftruncate(fd, 0))
        attempt(f"grow {target}", lambda: os.ftruncate(fd, size + 4096))
        if fd in ours:
            continue
        attempt(f"write {target}", lambda: os.pwrite(fd, b"x", 0))
        attempt(f"map {target}", lambda: mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_WRITE))
        attempt(f"reopen {target}", lambda: os.open(f"/proc/self/fd/{fd}", os.O_RDWR))
        attempt(f"by name {target}", lambda: os.open(target, os.O_RDWR))
        attempt(f"remove {target}", lambda: os.unlink(target))
    libc = ctypes.CDLL(None, use_errno=True)
    writable = []
    for span, mode, target in sorted(maps):
        begin, end = (int(part, 16) for part in span.split("-"))
        if "w" in mode:
            writable.append(target)
        if libc.mprotect(ctypes.c_void_p(begin), ctypes.c_size_t(4096), 3) == 0:
            done.append(f"mprotect {target}")
    print(json.dumps({"body": bytes(message).decode(), "done": done, "writable": writable,
                      "fds": len(fds) - len(ours), "maps": len(maps)}), flush=True)
"""


@pytest.fixture
def cluster(cluster_name: str) -> Iterator[Cluster]:
    """Its runtime folder's group is one that its owner is not in by accident. Not in tmp_path: a
    run beside this one closes its parents to others again.
    """
    require_root()
    with tempfile.TemporaryDirectory(prefix="shmq-uid-") as name:
        Path(name).chmod(0o755)  # as /run would be
        with Cluster(Path(name), cluster_name, group=GROUP) as made:
            yield made


GROUP = grp.getgrnam("games").gr_gid


def test_uid_outside_the_group_gets_one_clear_error(cluster: Cluster) -> None:
    with Program(BECOME + CONNECT, cluster.runtime, [UID]) as program:
        name, text, hint = program.hear()
    assert name == "PermissionDeniedError"
    assert str(cluster.runtime) in text
    assert f"uid {UID}" in text
    assert "\n" not in text
    assert "group" in hint


def test_uid_inside_the_group_is_served(cluster: Cluster) -> None:
    with Program(BECOME + CONNECT, cluster.runtime, [UID, GROUP]) as program:
        assert program.hear() == ["connected"]


def test_consumer_of_another_uid_cannot_change_what_is_the_brokers(cluster: Cluster) -> None:
    with Program(BECOME + ATTACK, cluster.runtime, [UID, GROUP]) as program:
        said = program.hear()
    assert said["body"] == "mine"
    assert said["done"] == []
    assert said["writable"] == []
    assert said["fds"] + said["maps"] >= 5, "control, topics, arena, completion, hot segments"
    with cluster.connect() as client:
        client.producer().send("t", b"still there")
        assert os.path.isdir(cluster.runtime)
