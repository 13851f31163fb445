"""A copy of a store that is in use, by the command of docs/operate/backup.md, and back from it."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import shmq
from tests.support.cluster import Cluster, wait_for
from tests.support.mounts import small_file_system
from tests.support.old_store import FILE_SIZE, SETTINGS
from tests.support.repository import ROOT

pytestmark = pytest.mark.cluster
PAGE = ROOT / "docs" / "operate" / "backup.md"
SHMQ = [sys.executable, "-m", "shmq.tools.cli"]
TIMEOUT_S = 60


def commands(**names: Path) -> list[str]:
    """The page's lines of shell, with what they are about filled in."""
    found = re.findall(r"^    \$ (.*)$", PAGE.read_text(), re.M)
    for name, value in names.items():
        found = [re.sub(rf"\b{name}\b", str(value), line) for line in found]
    return found


def shell(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


@pytest.mark.slow
def test_copy_of_a_store_in_use_has_all_that_was_on_disk_when_it_began(
    tmp_path: Path, cluster_name: str
) -> None:
    backup, new = tmp_path / "backup", tmp_path / "new" / "store-broker-a"
    with Cluster(tmp_path, cluster_name) as cluster:
        broker = cluster.brokers[0]
        copy, make, unpack, fsck, start = commands(STORE=broker.store_path, BACKUP=backup, NEW=new)
        assert start == f"shmq-broker --store {new} --name NAME"
        with (
            cluster.connect() as client,
            subprocess.Popen(
                [*SHMQ, "pub", "orders", "x" * 30_000, "-c", "9" * 9, "-n", str(cluster.runtime)],
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
            ) as sender,
        ):
            with client.consumer("orders", group="g") as consumer:
                for message in consumer.receive(10, timeout=TIMEOUT_S):
                    with message.process():
                        pass
            stored = broker.store_path / "config" / "consumerOffset.json"
            wait_for(lambda: stored.exists() and b"orders@g" in stored.read_bytes(), "the offsets")
            wait_for(lambda: broker.status()["flushedPosition"] > 20 << 20, "some files")
            flushed = broker.status()["flushedPosition"]
            done = shell(copy)
            assert done.returncode in (0, 1), done.stderr
            assert broker.status()["flushedPosition"] > flushed, "it went on meanwhile"
            consumed = offsets(cluster)
            sender.kill()
        whole = log_of(broker.store_path)
    for line in (make, unpack):
        assert shell(line).returncode == 0
    assert not (new / "shmq" / "manifest.json").exists()
    found = shell(fsck.replace("shmq", " ".join(SHMQ), 1))
    assert found.returncode in (0, 1), found.stdout + found.stderr
    for wrong in ("RECORD_DAMAGED", "POSITIONS_AHEAD", "CONSUMER_OFFSET_AHEAD", "error"):
        assert wrong not in found.stdout, found.stdout
    with Cluster(tmp_path / "new", f"{cluster_name}b") as again:
        end = again.brokers[0].status()["committedPosition"]
        assert end >= flushed
        assert log_of(new)[:end] == whole[:end]
        assert offsets(again) == consumed
        with again.connect() as client, client.producer() as producer:
            producer.send("orders", b"after")


def test_copy_while_old_files_go_lacks_only_those(tmp_path: Path, cluster_name: str) -> None:
    backup, new = tmp_path / "backup", tmp_path / "new" / "store-broker-a"
    with (
        small_file_system(tmp_path / "disk", size=40 * FILE_SIZE) as disk,
        Cluster(disk, cluster_name, **SETTINGS) as cluster,
        shmq.Admin(cluster.runtime) as admin,
        cluster.connect() as client,
    ):
        store = cluster.brokers[0].store_path
        client.create_topic("orders", queues=1)
        producer = client.producer()
        log = store / "commitlog"
        while len(list(log.iterdir())) < 16:
            last = producer.send("orders", bytes(60_000)).queue_offset
        wait_for(lambda: admin.brokers()[0].flush_behind_bytes == 0, "the flush")
        first = min(log.iterdir())
        copy, make, unpack, fsck, _ = commands(STORE=store, BACKUP=backup, NEW=new)
        assert copy.endswith(" ./config ./shmq ./commitlog")
        assert shell(copy.removesuffix(" ./commitlog")).returncode in (0, 1)
        admin.change_broker_config("broker-a", {"disk_space_clean_forcibly_ratio": "30"})
        wait_for(lambda: not first.exists(), "retention")
        rest = copy.replace("-cf", "-rf").replace(" ./config ./shmq", "")
        assert shell(rest).returncode in (0, 1)
    for line in (make, unpack):
        assert shell(line).returncode == 0
    found = shell(fsck.replace("shmq", " ".join(SHMQ), 1))
    assert "DERIVED_STALE" in found.stdout
    for wrong in ("RECORD_DAMAGED", "POSITIONS_AHEAD", "error"):
        assert wrong not in found.stdout, found.stdout
    with (
        Cluster(tmp_path / "new", f"{cluster_name}b", **SETTINGS) as again,
        again.connect() as client,
        client.consumer("orders", group="g") as consumer,
    ):
        message = consumer.try_next(TIMEOUT_S)
        assert message is not None
        offset = message.queue_offset
        assert offset > 0
        while offset < last:
            message = consumer.try_next(TIMEOUT_S)
            assert message is not None
            assert message.queue_offset == offset + 1
            offset += 1


def test_sizes_are_those_of_the_page(tmp_path: Path, cluster_name: str) -> None:
    page = PAGE.read_text()
    sizes = {"commit_log_file_size_bytes": "64MiB", "ring_bytes": "1MiB"}
    sizes["completion_count"] = "1024"
    with Cluster(tmp_path, cluster_name, **sizes) as cluster:
        broker = cluster.brokers[0]
        log = broker.store_path / "commitlog"
        assert "up to three log files more" in page
        wait_for(lambda: len(list(log.iterdir())) == 3, "two files ahead")
        before = memory_of(cluster_name)
        with cluster.connect() as client:
            client.create_topic("orders", queues=1)
            producer = client.producer()
            begin = broker.status()["committedPosition"]
            producer.send("orders", bytes(1024))
            size = broker.status()["committedPosition"] - begin
            assert f"{size:,} bytes for 1 KiB to `orders`" in page
            rings, rest = client_memory(os.getpid())
            rest += memory_of(cluster_name) - before
        assert "| 1 MiB of rings, 200 KiB of consumer page and completions;" in page
        assert abs(rings - (1 << 20)) < 16 << 10
        assert 180 << 10 < rest < 220 << 10


def memory_of(cluster_name: str) -> int:
    """Bytes of the completion objects of sessions in /dev/shm."""
    return sum(
        path.stat().st_size for path in Path("/dev/shm").glob(f"*{cluster_name}.*.completion.*")
    )


def client_memory(pid: int) -> tuple[int, int]:
    """Bytes of rings, and of consumer pages, of a process with one client of one broker."""
    sizes = {"shmq-ingress": 0, "shmq-consumer": 0}
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            for name in sizes:
                if f"memfd:{name}" in os.readlink(fd):
                    sizes[name] += fd.stat().st_size
    return sizes["shmq-ingress"], sizes["shmq-consumer"]


def offsets(cluster: Cluster) -> dict[int, int]:
    with shmq.Admin(cluster.runtime) as admin:
        return {row.queue_id: row.consumer_offset for row in admin.lag("g")}


def log_of(store: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted((store / "commitlog").iterdir()))
