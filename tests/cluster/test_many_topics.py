"""Many topics at once: made whole or not at all, known to everybody, gone with their rows."""

from pathlib import Path

import orjson
import pytest

import shmq
from shmq.errors import IllegalTopicError
from tests.support.cluster import Cluster

pytestmark = pytest.mark.cluster

NAMES = [f"t{number:04}" for number in range(2500)]  # more than a request takes


def test_many_topics_are_made_by_few_requests(tmp_path: Path, cluster_name: str) -> None:
    with Cluster(tmp_path, cluster_name, brokers=2) as cluster:
        with shmq.Admin(cluster.runtime) as admin:
            admin.create_topics(NAMES, queues=3)
            assert {len(admin.topic(name)) for name in NAMES[::500]} == {2}
        for broker in cluster.brokers:
            table = orjson.loads((broker.store_path / "config/topics.json").read_bytes())
            assert set(NAMES) <= set(table["topicConfigTable"])
        with cluster.connect() as client, client.producer() as producer:
            for name in (NAMES[0], NAMES[-1]):
                assert client.routes.configured(name) == {"broker-a": 3, "broker-b": 3}
                producer.send(name, b"x", keys="k")


def test_one_bad_name_among_many_changes_nothing(tmp_path: Path, cluster_name: str) -> None:
    with Cluster(tmp_path, cluster_name) as cluster, shmq.Admin(cluster.runtime) as admin:
        before = set(admin.topics())
        with pytest.raises(IllegalTopicError, match="no good"):
            admin.create_topics([*NAMES[:10], "no good"])
        assert set(admin.topics()) == before


def test_deleted_rows_are_taken_again(tmp_path: Path, cluster_name: str) -> None:
    with Cluster(tmp_path, cluster_name) as cluster, shmq.Admin(cluster.runtime) as admin:
        admin.create_topics(["a", "b", "c"], queues=4)
        with cluster.connect() as client:

            def rows(topic: str) -> set[int]:
                queues = client.link("broker-a").grant_send(topic, is_auto_create=False)
                return {row for _, (row, _) in queues}

            of_b = rows("b")
            admin.delete_topic("b")
            admin.create_topics(["d"], queues=4)
            assert rows("d") == of_b
