"""Clients beside a broker that hangs, and what they learn by looking at the routes again."""

import os
import threading

import pytest

import shmq
from shmq.client import broker_link, instance
from shmq.errors import ForkError
from tests.support.cluster import Cluster, wait_for
from tests.support.standing_still import stopped

pytestmark = pytest.mark.cluster

PATIENCE_S = 30.0


def brokers_of(producer: shmq.Producer) -> set[str]:
    """Where ten sends without a key go."""
    return {producer.send("t", b"x").message_queue.broker_name for _ in range(10)}


def test_client_that_comes_while_a_broker_hangs_uses_the_others(pair: Cluster, monkeypatch):
    monkeypatch.setattr(broker_link, "CONNECT_TIMEOUT_S", 2.0)
    monkeypatch.setattr(instance, "HEARTBEAT_S", 0.1)
    with pair.connect() as client:
        client.create_topic("t", queues=2)
    with stopped(pair.brokers[0].pid):
        client = pair.connect()
        producer = client.producer()
        assert brokers_of(producer) == {"broker-b"}
        consumer = client.consumer("t", "g")
        assert {queue.broker_name for queue in consumer.assigned} == {"broker-b"}
        assert consumer.try_next(PATIENCE_S) is not None
    with client:
        wait_for(lambda: "broker-a" in brokers_of(producer), "that the other is found again")
        wait_for(lambda: len(consumer.assigned) == 4, "that its queues are consumed")


def test_producer_finds_a_broker_that_gets_its_topic_later(pair: Cluster, monkeypatch):
    monkeypatch.setattr(instance, "HEARTBEAT_S", 0.1)
    with pair.connect() as client, pair.connect() as other:
        client.create_topic("t", queues=2, brokers=["broker-a"])
        producer = client.producer()
        assert brokers_of(producer) == {"broker-a"}
        other.create_topic("t", queues=2)
        wait_for(lambda: "broker-b" in brokers_of(producer), "that the new broker is found")


def test_topic_that_is_deleted_on_one_broker_is_not_made_there_again(pair: Cluster, monkeypatch):
    monkeypatch.setattr(instance, "HEARTBEAT_S", 0.1)
    with pair.connect() as client, shmq.Admin(pair.runtime) as admin:
        client.create_topic("t", queues=2)
        producer = client.producer()
        assert brokers_of(producer) == {"broker-a", "broker-b"}
        admin.delete_topic("t", brokers=["broker-b"])
        wait_for(lambda: brokers_of(producer) == {"broker-a"}, "that sends go elsewhere")
        assert set(admin.topic("t")) == {"broker-a"}


def test_admin_sees_a_broker_that_was_restarted(pair: Cluster):
    with shmq.Admin(pair.runtime) as admin:
        before = {state.broker_name: state.pid for state in admin.brokers()}
        pair.brokers[0].kill()
        pair.brokers[0].restart()
        wait_for(lambda: len(admin.cluster().brokers) == 2, "the registration")
        after = {state.broker_name: (state.phase, state.pid) for state in admin.brokers()}
    assert after["broker-a"] == ("RUNNING", pair.brokers[0].pid)
    assert after["broker-b"] == ("RUNNING", before["broker-b"])


def test_threads_that_close_at_once_all_get_through(pair: Cluster):
    failed: list[BaseException] = []

    def close(client: shmq.Client) -> None:
        try:
            client.close()
        except BaseException as error:  # noqa: BLE001 # the test raises it
            failed.append(error)

    for _ in range(20):
        client = pair.connect()
        client.producer().send("t", b"x")
        client.consumer("t", "g")
        threads = [threading.Thread(target=close, args=(client,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed, failed


def test_forked_child_is_told_that_its_settling_is_lost(pair: Cluster):
    with pair.connect() as client:
        client.producer().send("t", b"x")
        with client.consumer("t", "g") as consumer:
            message = consumer.try_next(PATIENCE_S)
            assert message is not None
            pid = os.fork()
            if pid == 0:
                try:
                    message.settle()
                except ForkError:
                    os._exit(7)
                os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
