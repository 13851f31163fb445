"""Consumer.fileno(): a program with a loop of its own is told of messages, and of nothing else."""

import select
import threading

import pytest

import shmq
from shmq.errors import ClosedError
from tests.support.cluster import wait_for

pytestmark = pytest.mark.cluster

PATIENCE_S = 30.0


def is_readable(consumer: shmq.Consumer, timeout: float = 0.0) -> bool:
    return bool(select.select([consumer], [], [], timeout)[0])


def drain(consumer: shmq.Consumer) -> list[bytes]:
    """All there is; then the descriptor says when to come again."""
    got: list[bytes] = []
    while messages := consumer.receive(timeout=0):
        got += [bytes(message) for message in messages]
    return got


def settle_down(consumer: shmq.Consumer) -> None:
    """Until the rounds that follow a beginning have told all they have to tell."""
    wait_for(lambda: drain(consumer) == [] and not is_readable(consumer, 0.05), "some quiet")


def test_descriptor_is_readable_from_a_message_until_there_is_nothing_more(client, topic, group):
    producer = client.producer()
    producer.send(topic, b"first")
    with client.consumer(topic, group) as consumer:
        assert is_readable(consumer)  # ask before you wait
        assert consumer.fileno() == consumer.fileno()
        while not (first := drain(consumer)):  # its queues may come a round later
            assert is_readable(consumer, PATIENCE_S)
        assert first == [b"first"]
        settle_down(consumer)
        for number in range(200):
            assert not is_readable(consumer)
            producer.send(topic, b"%d" % number)
            assert is_readable(consumer, PATIENCE_S)
            assert drain(consumer) == [b"%d" % number]
            assert consumer.try_next(0.0) is None


def test_consumers_of_one_session_do_not_take_each_others_wakeups(client, group, topic):
    producer = client.producer()
    names = [f"{group}-{number}" for number in range(9)]  # more than a session has bells
    consumers = [client.consumer(topic, name) for name in names]
    for consumer in consumers:
        consumer.fileno()
        settle_down(consumer)
    for number in range(50):
        producer.send(topic, b"%d" % number)
        waiting = set(consumers)
        while waiting:
            ready, _, _ = select.select(list(waiting), [], [], PATIENCE_S)
            assert ready, f"{len(waiting)} were not told of {number}"
            for consumer in ready:
                if drain(consumer):
                    waiting.discard(consumer)


def test_message_that_failed_makes_it_readable_when_it_is_due_again(client, topic, group):
    client.producer().send(topic, b"x")
    with client.consumer(topic, group, auto_settle=False) as consumer:
        message = consumer.try_next(PATIENCE_S)
        assert message is not None
        consumer.fileno()
        settle_down(consumer)
        with pytest.raises(ValueError, match="no"), message.process():
            raise ValueError("no")
        again = None
        while again is None:
            assert is_readable(consumer, PATIENCE_S)
            again = consumer.try_next(0.0)
        assert bytes(again) == b"x"


def test_topic_that_comes_later_and_a_broker_that_comes_back_are_told(own_cluster, own_client):
    with own_client.consumer("later", "g") as consumer:
        consumer.fileno()
        drain(consumer)
        own_client.create_topic("later", queues=2)
        producer = own_client.producer()
        producer.send("later", b"0")
        assert wait_for_message(consumer) == b"0"
        own_cluster.brokers[0].kill()
        drain(consumer)
        own_cluster.brokers[0].restart()
        producer.send("later", b"1", timeout=PATIENCE_S)
        assert wait_for_message(consumer) == b"1"


def wait_for_message(consumer: shmq.Consumer) -> bytes:
    """As programs do: asked only when the descriptor says so."""
    while True:
        assert is_readable(consumer, PATIENCE_S)
        if got := drain(consumer):
            return got[0]


def test_closed_consumer_has_none_and_threads_that_signal_do_no_harm(client, topic, group):
    consumer = client.consumer(topic, group)
    consumer.fileno()
    waker = threading.Thread(target=lambda: [consumer.wake() for _ in range(1000)])
    waker.start()
    consumer.close()
    waker.join()
    with pytest.raises(ClosedError, match="this consumer is closed"):
        consumer.fileno()
