"""The first send to a topic keeps its timeout, whoever of those it must ask hangs.

Each question alone would wait for LONG_S here, so that a send which waits for one is seen.
"""

import time
from pathlib import Path

import pytest

import shmq
from shmq.client import broker_link, route_cache
from shmq.errors import ShmqError
from tests.support.cluster import WAIT_S, Cluster
from tests.support.standing_still import stopped

pytestmark = pytest.mark.cluster

LONG_S = 10 * WAIT_S


@pytest.fixture(autouse=True)
def _patient_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (broker_link, "CONNECT_TIMEOUT_S"),
        (broker_link, "CALL_TIMEOUT_S"),
        (route_cache, "_TIMEOUT_S"),
    ):
        monkeypatch.setattr(module, name, LONG_S)


def assert_fails_in_time(producer: shmq.Producer, topic: str) -> None:
    begin = time.perf_counter()
    with pytest.raises(ShmqError):
        producer.send(topic, b"x", timeout=0.1)
    assert time.perf_counter() - begin < WAIT_S


def test_hung_broker_takes_no_more_than_the_timeout(tmp_path: Path, cluster_name: str) -> None:
    with Cluster(tmp_path, cluster_name) as cluster, shmq.Admin(cluster.runtime) as admin:
        admin.create_topic("t", queues=1)
        with cluster.connect() as client, client.producer() as producer:
            with stopped(cluster.brokers[0].pid):
                assert_fails_in_time(producer, "t")
            producer.send("t", b"x", timeout=LONG_S)


def test_hung_broker_leaves_time_for_the_others(tmp_path: Path, cluster_name: str) -> None:
    with Cluster(tmp_path, cluster_name, brokers=2) as cluster:
        with shmq.Admin(cluster.runtime) as admin:
            admin.create_topic("t", queues=1)
        with (
            cluster.connect() as client,
            client.producer() as producer,
            stopped(cluster.brokers[0].pid),
        ):
            result = producer.send("t", b"x", timeout=10)
    assert result.message_queue.broker_name == "broker-b"


def test_hung_nameserver_takes_no_more_than_the_timeout(tmp_path: Path, cluster_name: str) -> None:
    with (
        Cluster(tmp_path, cluster_name) as cluster,
        cluster.connect() as client,
        client.producer() as producer,
    ):
        producer.send("known", b"x", timeout=LONG_S)
        with stopped(cluster.namesrv.process.pid):
            assert_fails_in_time(producer, "new")
            producer.send("known", b"x", timeout=LONG_S)  # needs no NameServer
