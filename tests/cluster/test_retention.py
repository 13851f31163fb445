"""Retention in a real cluster: old files go under load, under consumers, under kill -9; and a disk
that fills up.
"""

from __future__ import annotations

import os
import re
import threading
import time
from pathlib import Path

import pytest

import shmq
from shmq.errors import DiskFullError, OutcomeUnknownError
from shmq.status import PullStatus
from shmq.store.retention import disk_usage
from shmq.topic import SCHEDULE_TOPIC
from tests.support.cluster import Cluster, wait_for
from tests.support.mounts import small_file_system
from tests.support.old_store import FILE_SIZE, HOUR_MS, OLD_COUNT, SETTINGS, old_store
from tests.unit.store.stores import Writer

pytestmark = pytest.mark.cluster

PATIENCE_S = 30.0


def log_files(cluster: Cluster) -> list[int]:
    folder = cluster.brokers[0].store_path / "commitlog"
    return sorted(int(name) // FILE_SIZE for name in os.listdir(folder))


def info(cluster: Cluster) -> dict[str, str]:
    with shmq.Admin(cluster.runtime) as admin:
        return admin.runtime_info("broker-a")


def number_of(message: shmq.Message) -> int:
    found = re.match(rb"\d+", bytes(message))
    assert found is not None
    return int(found[0])


def test_consumer_that_is_behind_goes_on_at_what_is_kept_and_its_loss_is_told(
    tmp_path: Path, cluster_name
):
    first_kept = old_store(tmp_path / "store-broker-a")
    settings = SETTINGS | {"delete_when": "04", "delete_commit_log_files_interval_ms": "0"}
    if time.localtime().tm_hour == 4:
        settings["delete_when"] = "16"
    with Cluster(tmp_path, cluster_name, **settings) as cluster, cluster.connect() as client:
        consumer = client.consumer("orders", "slow", auto_settle=False)  # the client closes it
        for expected in range(3):
            message = consumer.try_next(PATIENCE_S)
            assert message is not None
            assert number_of(message) == expected
            message.settle()
        assert log_files(cluster)[0] == 0
        with shmq.Admin(cluster.runtime) as admin:
            admin.delete_expired_commit_log("broker-a")
            wait_for(lambda: log_files(cluster)[0] == first_kept, "the end of the old files")
            told = wait_for(
                lambda: (said := info(cluster))["expiredUnreadTotal"] == "397" and said,
                "the count",
            )
        assert told["expiredUnreadGroups"] == "slow=397"
        assert int(told["expiredFilesTotal"]) == first_kept

        def said() -> int:
            log = cluster.brokers[0].log_path.read_text()
            said = re.findall(r"expired unread group=slow topic=orders messages=(\d+)", log)
            return sum(map(int, said))

        wait_for(lambda: said() == 397, "the line in the log")
        # Some were read into this consumer's hands before; the next that it has to read is kept.
        seen = []
        while not seen or seen[-1] < OLD_COUNT:
            message = consumer.try_next(PATIENCE_S)
            assert message is not None
            seen.append(number_of(message))
            message.settle()
        assert seen[:-1] == list(range(3, 3 + len(seen) - 1))
        assert seen[-1] == OLD_COUNT
        assert consumer.expired_count == OLD_COUNT - 3 - (len(seen) - 1)
        with shmq.Admin(cluster.runtime) as admin:
            wait_for(lambda: sum(row.lag for row in admin.lag("slow")) == 0, "no lag")
        pull = client.pull_consumer("orders")
        (queue,) = pull.queues()
        assert pull.min_offset(queue) == OLD_COUNT
        result = pull.pull(queue, 0)
        assert result.pull_status is PullStatus.OFFSET_ILLEGAL
        assert result.next_begin_offset == OLD_COUNT


def test_delayed_messages_whose_file_goes_before_they_are_due_are_told(
    tmp_path: Path, cluster_name
):
    now_ms = time.time_ns() // 1_000_000
    writer = Writer(tmp_path / "store-broker-a", file_size=FILE_SIZE)
    writer.put("orders", 0, b"old", store_timestamp=now_ms - 96 * HOUR_MS)
    properties = b"REAL_TOPIC\x01orders\x02REAL_QID\x010\x02DELAY\x01%d\x02"
    for _ in range(OLD_COUNT):
        store_timestamp = now_ms - 96 * HOUR_MS
        writer.put(
            SCHEDULE_TOPIC, 1, bytes(8 << 10), properties=properties % 2,
            store_timestamp=store_timestamp,
        )  # fmt: skip
    writer.roll()
    for level in (1, 2):
        writer.put(
            SCHEDULE_TOPIC, level - 1, b"kept", properties=properties % level,
            store_timestamp=now_ms,
        )  # fmt: skip
    settings = SETTINGS | {"delete_when": "04", "delete_commit_log_files_interval_ms": "0"}
    if time.localtime().tm_hour == 4:
        settings["delete_when"] = "16"
    settings["message_delay_level"] = "1s 10d"
    with Cluster(tmp_path, cluster_name, **settings) as cluster, cluster.connect() as client:
        with shmq.Admin(cluster.runtime) as admin:
            admin.delete_expired_commit_log("broker-a")
        wait_for(
            lambda: info(cluster)["scheduleMessageExpired"] == str(OLD_COUNT),
            "the count of what will never be delivered",
        )
        log = cluster.brokers[0].log_path
        told = re.findall(r"expired delayed level=(\d+) messages=(\d+)", log.read_text())
        assert {level for level, _ in told} == {"2"}
        assert sum(int(count) for _, count in told) == OLD_COUNT
        with client.consumer("orders", "late") as consumer:  # the other level goes on
            message = consumer.try_next(PATIENCE_S)
            assert message is not None
            assert bytes(message) == b"kept"


def test_files_go_under_load_and_kill_9_and_nothing_new_is_lost(tmp_path: Path, cluster_name):
    first_kept = old_store(tmp_path / "store-broker-a")
    settings = SETTINGS | {
        "delete_commit_log_files_interval_ms": "50",
        "delete_file_batch_max": "1",
        "clean_resource_interval_ms": "50",
    }
    with Cluster(tmp_path, cluster_name, **settings) as cluster, cluster.connect() as client:
        client.create_topic("live", queues=2)
        stopping = threading.Event()
        sent: list[str] = []

        def produce() -> None:
            producer = client.producer()
            while not stopping.is_set():
                sent.append(producer.send("live", bytes(2000), timeout=PATIENCE_S).message_id)

        thread = threading.Thread(target=produce)
        thread.start()
        try:
            for _ in range(3):
                before = log_files(cluster)[0]
                wait_for(
                    lambda seen=before: log_files(cluster)[0] > min(seen, first_kept - 1),
                    "the next file's end",
                )
                cluster.brokers[0].kill()
                cluster.brokers[0].restart()
            wait_for(lambda: log_files(cluster)[0] >= first_kept, "the end of the old files")
        finally:
            stopping.set()
            thread.join()
        got: list[str] = []
        with client.consumer("live", "all") as consumer:
            while len(got) < len(sent):
                messages = consumer.receive(1000, timeout=PATIENCE_S)
                assert messages, (len(got), len(sent))
                got += [message.message_id for message in messages]
        assert sorted(got) == sorted(sent)
        derived = cluster.brokers[0].store_path / "shmq" / "consumequeue"
        assert min(int(path.stem) for path in derived.glob("*.cq")) >= first_kept * FILE_SIZE


def test_small_disk_keeps_taking_messages_by_letting_the_oldest_go(tmp_path: Path, cluster_name):
    with (
        small_file_system(tmp_path / "store-broker-a", size=40 * FILE_SIZE),
        Cluster(tmp_path, cluster_name, **SETTINGS) as cluster,
        cluster.connect() as client,
    ):
        client.create_topic("live", queues=1)
        producer = client.producer()
        for _ in range(100 * FILE_SIZE // 65_000):  # more than twice the disk
            producer.send("live", bytes(64_000), timeout=PATIENCE_S)
        assert int(info(cluster)["expiredFilesTotal"]) > 50
        with client.consumer("live", "late") as consumer:
            first = consumer.try_next(PATIENCE_S)
            assert first is not None
            assert first.queue_offset > 200


def removed_but_mapped(cluster: Cluster) -> list[str]:
    """Log files that are gone, and whose room somebody keeps."""
    pids = [cluster.brokers[0].pid, os.getpid()]
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    folder = str(cluster.brokers[0].store_path)
    return [line for line in lines if folder in line and line.endswith("(deleted)")]


def test_no_more_goes_than_makes_room_though_all_of_it_was_mapped(tmp_path: Path, cluster_name):
    """By the broker itself, whose index service reads each file, and by a consumer."""
    with (
        small_file_system(tmp_path / "store-broker-a", size=40 * FILE_SIZE) as disk,
        Cluster(tmp_path, cluster_name, **SETTINGS) as cluster,
        cluster.connect() as client,
        shmq.Admin(cluster.runtime) as admin,
    ):
        client.create_topic("live", queues=1)
        producer = client.producer()
        with client.consumer("live", "reads") as consumer:
            while len(log_files(cluster)) < 16:
                producer.send("live", bytes(64_000), timeout=PATIENCE_S)
                message = consumer.try_next(PATIENCE_S)
                assert message is not None
                with message.process():
                    view = message.body
            wait_for(lambda: admin.brokers()[0].flush_behind_bytes == 0, "the flush")
            before = log_files(cluster)
            now = disk_usage(disk)
            percent = now.used_ratio - 2 * 100 // 40  # two files would do
            changes = {
                "disk_space_clean_forcibly_ratio": f"{percent}",
                "clean_resource_interval_ms": "2000",  # whoever has them mapped needs a moment
            }
            admin.change_broker_config("broker-a", changes)
            wait_for(lambda: disk_usage(disk).used_ratio <= percent, "room on the disk")
            wait_for(lambda: not removed_but_mapped(cluster), "those who had them mapped")
            assert info(cluster)["problem"] == ""
            assert len(set(before) - set(log_files(cluster))) <= 4
            assert len(view) == 64_000


def test_full_disk_that_nothing_helps_is_told_to_senders_and_heals(tmp_path: Path, cluster_name):
    with small_file_system(tmp_path / "store-broker-a", size=40 * FILE_SIZE) as folder:
        other = folder / "somebody-elses"
        with Cluster(tmp_path, cluster_name, **SETTINGS) as cluster, cluster.connect() as client:
            client.create_topic("live", queues=1)
            producer = client.producer()
            producer.send("live", b"first", timeout=PATIENCE_S)
            with other.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, 34 * FILE_SIZE)
            said = ""
            while "the disk is full" not in said:
                try:
                    producer.send("live", bytes(60_000), timeout=0.5)
                except (DiskFullError, OutcomeUnknownError) as error:
                    said = str(error)
            assert "not by this store" in wait_for(lambda: info(cluster)["problem"], "the problem")
            with client.consumer("live", "reads") as consumer:
                message = consumer.try_next(PATIENCE_S)
                assert message is not None
                assert bytes(message) == b"first"  # nothing was removed in vain
            other.unlink()
            producer.send("live", b"last", timeout=PATIENCE_S)
            wait_for(lambda: info(cluster)["problem"] == "", "the end of the problem")
