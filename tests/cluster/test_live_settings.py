"""Settings changed while a broker runs: each has its effect at once, all together or none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import shmq
from shmq.errors import ConfigError, SystemBusyError, TopicNotExistError
from tests.support.cluster import Cluster, wait_for
from tests.support.mounts import small_file_system
from tests.support.shell import Shell

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.cluster
BROKER = "broker-a"


@pytest.fixture
def cluster_admin(own_cluster: Cluster) -> Iterator[shmq.Admin]:
    with shmq.Admin(own_cluster.runtime) as made:
        yield made


def value(admin: shmq.Admin, name: str) -> str:
    [found] = [each.value for each in admin.broker_config(BROKER) if each.name == name]
    return found


def test_topics_are_made_or_not(cluster_admin: shmq.Admin, own_client: shmq.Client) -> None:
    producer = own_client.producer()
    producer.send("before", b"x")
    assert cluster_admin.change_broker_config(BROKER, {"autoCreateTopicEnable": "false"}) == {
        "auto_create_topic_enable": "false"
    }
    with pytest.raises(TopicNotExistError):
        producer.send("refused", b"x")
    cluster_admin.change_broker_config(BROKER, {"auto_create_topic_enable": "true"})
    producer.send("after", b"x")


def test_topics_are_made_where_the_broker_began_without(tmp_path: Path, cluster_name: str) -> None:
    with (
        Cluster(tmp_path, cluster_name, auto_create_topic_enable="false") as cluster,
        shmq.Admin(cluster.runtime) as admin,
        cluster.connect() as client,
    ):
        producer = client.producer()
        with pytest.raises(TopicNotExistError):
            producer.send("refused", b"x")
        admin.change_broker_config(BROKER, {"autoCreateTopicEnable": "true"})
        producer.send("after", b"x")


def test_files_go_at_a_lower_ratio(tmp_path: Path, cluster_name: str) -> None:
    with (
        small_file_system(tmp_path / "disk", size=100 << 20) as disk,
        Cluster(disk, cluster_name, clean_resource_interval_ms="600000") as cluster,
        shmq.Admin(cluster.runtime) as admin,
        cluster.connect() as client,
    ):
        log = cluster.brokers[0].store_path / "commitlog"
        first = min(log.iterdir())
        producer = client.producer()
        for _ in range(14):
            producer.send("large", bytes(3 << 20))
        wait_for(lambda: admin.brokers()[0].flush_behind_bytes == 0, "the flush")
        assert first.exists()
        changes = {"cleanResourceInterval": "50", "disk_space_clean_forcibly_ratio": "40"}
        admin.change_broker_config(BROKER, changes)
        wait_for(lambda: not first.exists(), "retention")


def test_a_shorter_interval_counts_at_once(tmp_path: Path, cluster_name: str) -> None:
    with (
        Cluster(tmp_path, cluster_name, flush_consumer_offset_interval_ms="600000") as cluster,
        shmq.Admin(cluster.runtime) as admin,
        cluster.connect() as client,
    ):
        client.producer().send("orders", b"x")
        with (
            client.consumer("orders", group="g") as consumer,
            consumer.receive(1, timeout=30)[0].process(),
        ):
            pass
        stored = cluster.brokers[0].store_path / "config" / "consumerOffset.json"
        admin.change_broker_config(BROKER, {"flushConsumerOffsetInterval": "100"})
        wait_for(lambda: stored.exists() and b"orders@g" in stored.read_bytes(), "the offsets")


def test_a_send_is_refused_for_want_of_slaves_at_once(tmp_path: Path, cluster_name: str) -> None:
    with (
        Cluster(tmp_path, cluster_name, broker_role="SYNC_MASTER") as cluster,
        shmq.Admin(cluster.runtime) as admin,
        cluster.connect() as client,
    ):
        producer = client.producer()
        assert producer.send("orders", b"x").send_status == shmq.SendStatus.SLAVE_NOT_AVAILABLE
        admin.change_broker_config(BROKER, {"minInSyncReplicas": "2"})
        with pytest.raises(SystemBusyError, match="fewer slaves in sync"):
            producer.send("orders", b"x", timeout=1)
        admin.change_broker_config(BROKER, {"minInSyncReplicas": "1"})
        assert producer.send("orders", b"x").send_status == shmq.SendStatus.SLAVE_NOT_AVAILABLE


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"flushDiskType": "SYNC_FLUSH"}, "it counts from a start only"),
        ({"fileReservedTime": "0"}, "wanted 1 to 876000"),
        ({"fileReservedTim": "1"}, "did you mean fileReservedTime"),
        ({"delete_when": "25"}, "change settings: delete_when = '25', wanted hours"),
        ({"fileReservedTime": "1", "file_reserved_hours": "2"}, "is set twice, by both of its"),
    ],
)
def test_what_cannot_be_changed_changes_nothing(
    cluster_admin: shmq.Admin, changes: dict[str, str], wanted: str
) -> None:
    with pytest.raises(ConfigError, match=wanted):
        cluster_admin.change_broker_config(BROKER, {"inSyncReplicas": "3", **changes})
    assert value(cluster_admin, "in_sync_replicas") == "1"


def test_command_line_shows_and_changes_until_the_broker_ends(own_cluster: Cluster) -> None:
    shell = Shell(own_cluster.runtime)
    assert "72" in shell.out("broker", "config", "get", BROKER, "file_reserved_hours")
    rows = shell.json("broker", "config", "get", BROKER, "fileReservedTime")["settings"]
    assert [row["name"] for row in rows] == ["file_reserved_hours"]
    sizes = shell.json("broker", "config", "get", BROKER, "retired_bytes_max")["settings"]
    assert sizes[0]["value"] == "auto"
    assert int(sizes[0]["effective"]) > 0
    assert f"auto ({sizes[0]['effective']})" in shell.out("broker", "config", "get", BROKER)
    said = shell.fails("broker", "config", "get", BROKER, "delete_when", "fileTime", code=1)
    assert "setting fileTime of broker" in said
    said = shell.out("broker", "config", "set", BROKER, "fileReservedTime=24", "delete_when=05;06")
    assert f"{BROKER}: file_reserved_hours = 24, until it ends" in said
    changed = {
        row["name"]: row
        for row in shell.json("broker", "config", "get", BROKER, "--changed")["settings"]
    }
    assert changed["file_reserved_hours"] == {
        "name": "file_reserved_hours",
        "value": "24",
        "effective": "24",
        "default": "72",
        "isLive": True,
    }
    assert changed["delete_when"]["value"] == "05;06"
    for wrong in ("x", "=1"):
        said = shell.fails("broker", "config", "set", BROKER, wrong, code=64)
        assert f"{wrong}: wanted KEY=VALUE" in said
    twice = ("delete_when=05", "delete_when=06")
    said = shell.fails("broker", "config", "set", BROKER, *twice, code=64)
    assert "delete_when=06: delete_when is set twice" in said
    [row] = shell.json("broker", "config", "get", BROKER, "acl_file")["settings"]
    assert (row["value"], row["effective"]) == ("", "")  # nobody finds one
    assert "from a start only" in shell.fails(
        "broker", "config", "set", BROKER, "listenPort=1", code=1
    )
    said = shell.fails("broker", "config", "get", "broker-z", code=1)
    assert "those there, as name-id: broker-a-0" in said
    own_cluster.brokers[0].stop()
    own_cluster.brokers[0].restart()
    wait_for(lambda: "72" in shell.out("broker", "config", "get", BROKER, "file_reserved_hours"))
