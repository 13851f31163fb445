"""A client in many groups: what its brokers are told of them, and when."""

import gc
import threading
import weakref
from pathlib import Path

import orjson
import pytest

import shmq
from shmq.client.broker_link import BrokerLink
from shmq.errors import ServiceNotAvailableError
from shmq.remoting.codes import RequestCode
from tests.support.cluster import Cluster, wait_for
from tests.support.scale import scaled

pytestmark = pytest.mark.cluster

GROUPS = scaled(60, 1000)
TOLD = (RequestCode.HEART_BEAT, RequestCode.UNREGISTER_CLIENT)


@pytest.fixture
def cluster(tmp_path: Path, cluster_name):
    with Cluster(tmp_path, cluster_name) as made:
        yield made


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RequestCode, int]]:
    """(code, bytes) of what brokers were told about groups, as it goes out."""
    sizes: list[tuple[RequestCode, int]] = []
    call = BrokerLink.call

    def noted(link, code, fields=None, body=None, **options):
        if code in TOLD:
            sizes.append((code, len(orjson.dumps(fields)) + len(orjson.dumps(body))))
        return call(link, code, fields, body, **options)

    monkeypatch.setattr(BrokerLink, "call", noted)
    return sizes


def members(client: shmq.Client, group: str) -> list[str]:
    link = client.link("broker-a")
    answer = link.call(RequestCode.GET_CONSUMER_LIST_BY_GROUP, {"consumerGroup": group})
    ids = answer.json()["consumerIdList"]
    assert isinstance(ids, list)
    return ids


def taken(told: list[tuple[RequestCode, int]]) -> list[tuple[RequestCode, int]]:
    said = told[:]
    del told[: len(said)]
    return said


def test_last_group_of_a_client_costs_its_brokers_what_the_first_did(cluster, told):
    with cluster.connect() as client:
        client.create_topic("t", queues=1)
        client.producer().send("t", b"here")
        taken(told)
        costs = []
        consumers = []
        for number in range(GROUPS):
            consumers.append(client.consumer("t", f"g{number:04}"))
            costs.append(taken(told))
        assert costs == [costs[0]] * GROUPS
        assert [code for code, _ in costs[0]] == [RequestCode.HEART_BEAT]
        everybody = [members(client, f"g{number:04}") for number in range(GROUPS)]
        assert everybody == [[client.client_id]] * GROUPS
        for number, consumer in enumerate(consumers[: GROUPS // 2]):
            consumer.close()
            assert [code for code, _ in taken(told)] == [RequestCode.UNREGISTER_CLIENT]
            assert members(client, f"g{number:04}") == []
        assert members(client, f"g{GROUPS - 1:04}") == [client.client_id]


def test_broker_that_is_back_is_told_all_groups_at_once(cluster, told):
    with cluster.connect() as client:
        client.create_topic("t", queues=1)
        consumers = [client.consumer("t", group) for group in ("one", "two", "three")]
        consumers[1].close()
        taken(told)
        cluster.brokers[0].kill()
        cluster.brokers[0].restart()

        def is_told() -> bool:
            try:
                return bool(told) and members(client, "three") == [client.client_id]
            except ServiceNotAvailableError:
                return False  # not back yet

        wait_for(is_told, "the last group")
        assert members(client, "one") == [client.client_id]
        assert members(client, "two") == []


def test_group_with_one_topic_less_keeps_the_others(cluster):
    with cluster.connect() as client:
        for topic in ("t", "u"):
            client.create_topic(topic, queues=1)
        client.producer(group="g").send("t", b"here")
        left, stays = client.consumer("t", "g"), client.consumer("u", "g")
        left.close()
        link = client.link("broker-a")
        answer = link.call(RequestCode.GET_CONSUMER_CONNECTION_LIST, {"consumerGroup": "g"})
        table = answer.json()["subscriptionTable"]
        assert isinstance(table, dict)
        assert set(table) == {"u"}
        stays.close()
        assert members(client, "g") == []
        producers = link.call(RequestCode.GET_PRODUCER_CONNECTION_LIST, {"producerGroup": "g"})
        assert len(producers.json()["connectionSet"]) == 1, "it still produces"  # type: ignore[arg-type]


def test_group_that_is_refused_keeps_no_other_from_a_broker_that_is_back(cluster):
    with cluster.connect() as client, shmq.Admin(cluster.runtime) as admin:
        client.create_topic("t", queues=1)
        good, closed = client.consumer("t", "good"), client.consumer("t", "closed")
        admin.update_group("closed", consume_enable=False)
        cluster.brokers[0].kill()
        cluster.brokers[0].restart()

        def is_sent() -> bool:
            try:
                client.producer().send("t", b"one", timeout=30)
            except ServiceNotAvailableError:
                return False  # not back yet
            return True

        wait_for(is_sent, "the broker")
        assert [bytes(message) for message in good.receive(1, timeout=30)] == [b"one"]
        more = client.consumer("t", "more")
        assert [bytes(message) for message in more.receive(1, timeout=30)] == [b"one"]
        assert members(client, "good") == members(client, "more") == [client.client_id]
        admin.update_group("closed", consume_enable=True)
        wait_for(lambda: members(client, "closed") == [client.client_id], "the group")
        closed.close()


def test_producer_that_is_closed_is_forgotten(cluster):
    with cluster.connect() as client:
        client.create_topic("t", queues=1)
        with client.producer(group="kept") as kept:
            kept.send("t", b"first")
            alive = []
            for number in range(3):
                with client.producer(group="kept") as producer:
                    producer.send("t", b"%d" % number)
                    alive.append(weakref.ref(producer))
                    producer.close()
                del producer
            gc.collect()
            assert [reference() for reference in alive] == [None] * 3
            kept.send("t", b"last")
            answer = client.link("broker-a").call(
                RequestCode.GET_PRODUCER_CONNECTION_LIST, {"producerGroup": "kept"}
            )
            assert len(answer.json()["connectionSet"]) == 1  # type: ignore[arg-type]


def test_nobody_asks_over_a_connection_that_has_no_session_yet(cluster):
    with cluster.connect() as client:
        client.create_topic("t", queues=1)
        link = client.link("broker-a")
        generation = link.generation
        said: list[str] = []
        is_over = threading.Event()

        def ask() -> None:
            while not is_over.is_set():
                try:
                    link.grant_send("t", is_auto_create=False)
                except ServiceNotAvailableError as error:
                    said.append(str(error))

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            cluster.brokers[0].kill()
            cluster.brokers[0].restart()
            wait_for(lambda: said and link.is_up, "the session")
        finally:
            is_over.set()
            asking.join()
        assert link.generation == generation
        assert not [text for text in said if "session" in text]
