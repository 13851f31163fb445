"""Producers in a real cluster: every way to send, where messages go, and what a restart does."""

import threading
from concurrent.futures import Future
from pathlib import Path

import pytest

import shmq
from shmq.errors import (
    BodyTypeError,
    IllegalTopicError,
    MessageTooLargeError,
    OutcomeUnknownError,
    SendTimeoutError,
    TopicNotExistError,
)
from shmq.subscription import java_hash
from tests.support.cluster import wait_for

pytestmark = pytest.mark.cluster

PATIENCE_S = 30.0


both = pytest.mark.parametrize("client", ["threads", "asyncio"], indirect=True)
"""The client of shmq, and that of shmq.aio."""


def bodies(client: shmq.Client, topic: str) -> list[bytes]:
    """All messages of a topic, by broker and queue, in order."""
    found = []
    with client.pull_consumer(topic) as pull:
        for queue in pull.queues():
            at = pull.min_offset(queue)
            while at < pull.max_offset(queue):
                result = pull.pull(queue, at, 1000)
                found += [bytes(message) for message in result.messages]
                at = result.next_begin_offset
    return found


@both
def test_send_says_where_the_message_is(client, topic, group):
    client.create_topic(topic, queues=1)
    producer = client.producer()
    results = [producer.send(topic, "größer", tag="x", keys=["k"], flag=7) for _ in range(3)]
    assert [result.queue_offset for result in results] == [0, 1, 2]
    assert len({result.message_id for result in results}) == 3
    with client.consumer(topic, group) as consumer:
        message = consumer.try_next(PATIENCE_S)
        assert message is not None
        assert message.message_id == results[0].message_id
        assert message.body_bytes.decode() == "größer"
        assert (message.tag, message.keys, message.flag) == ("x", ("k",), 7)


def test_message_brings_everything_itself(client, topic, group):
    producer = client.producer()
    message = shmq.Message(topic, b"x", tag="a", keys="k l", properties={"p": "q"}, flag=3)
    producer.send(message)
    producer.send_async(message).result(PATIENCE_S)
    with client.consumer(topic, group) as consumer:
        for _ in range(2):
            got = consumer.try_next(PATIENCE_S)
            assert got is not None
            assert (got.tag, got.keys, got.flag, got.properties["p"]) == ("a", ("k", "l"), 3, "q")


def test_bodies_and_names_that_cannot_be_sent_are_told(client, topic):
    producer = client.producer()
    with pytest.raises(TypeError, match="serialise"):
        producer.send(topic, 5)
    with pytest.raises(BodyTypeError):
        producer.send_async(topic, object())
    with pytest.raises(BodyTypeError):
        producer.send_oneway(topic, [b"x"])
    with pytest.raises(IllegalTopicError):
        producer.send("no topic", b"x")
    with pytest.raises(MessageTooLargeError):
        producer.send(topic, bytes(5 << 20))
    with pytest.raises(TypeError, match="key 5: wanted a str"):
        producer.send(topic, b"x", key=5)


def test_message_that_is_sent_on_keeps_its_id(client, topic, group):
    producer = client.producer()
    assert producer.send(topic, b"x", properties={"UNIQ_KEY": "mine-1"}).message_id == "mine-1"
    with client.consumer(topic, group) as consumer:
        (message,) = consumer.receive(1, timeout=30.0)
        assert message.message_id == "mine-1"
    own = {"UNIQ_KEY": "mine-2"}
    assert producer.send(shmq.Message(topic, b"x", properties=own)).message_id == "mine-2"
    assert producer.send_async(topic, b"x", properties=own).result().message_id == "mine-2"


def test_large_bodies_go_through_the_chunk_memory(client, topic):
    producer = client.producer()
    body = bytes(range(256)) * 8000
    producer.send(topic, body)
    producer.send_oneway(topic, body)
    assert producer.send_async(topic, body).result(PATIENCE_S).queue_offset >= 0
    producer.send_many(topic, [body, b"small"])
    producer.drain(PATIENCE_S)
    assert sorted(bodies(client, topic)) == sorted([body] * 4 + [b"small"])


def test_futures_and_callbacks_have_the_results_in_order(client, topic):
    client.create_topic(topic, queues=1)
    producer = client.producer()
    called: list[int] = []

    def callback(future: Future) -> None:
        called.append(future.result().queue_offset)

    futures = [
        producer.send_async(topic, b"%d" % number, callback=callback) for number in range(5000)
    ]
    assert [f.result(PATIENCE_S).queue_offset for f in futures] == list(range(5000))
    assert len({f.result().message_id for f in futures}) == 5000
    assert called == list(range(5000))
    names = [thread.name for thread in threading.enumerate()]
    assert len([name for name in names if name.startswith("shmq-broker")]) <= 2  # not one a send


def test_callback_may_send(client, topic):
    producer = client.producer()
    done = threading.Event()

    def callback(future: Future) -> None:
        producer.send(topic, b"second")
        done.set()

    producer.send_async(topic, b"first", callback=callback)
    assert done.wait(PATIENCE_S)
    assert sorted(bodies(client, topic)) == [b"first", b"second"]


@both
def test_send_many_stores_in_one_queue_in_order_with_a_result_each(client, topic):
    producer = client.producer()
    results = producer.send_many(topic, (b"%d" % n for n in range(3000)), tag="x", key="k")
    assert [r.queue_offset for r in results] == list(range(3000))
    assert len({r.message_queue for r in results}) == 1
    assert len({r.message_id for r in results}) == 3000
    assert results == list(results)
    assert results[::1000] == [results[0], results[1000], results[-1000]]
    assert results != results[1:]
    with pytest.raises(IndexError):
        _ = results[3000]
    assert bodies(client, topic) == [b"%d" % n for n in range(3000)]


@both
def test_oneway_carries_all_that_it_is_given(client, topic, group):
    producer = client.producer()
    nothing = {"key": None, "queue": None, "delay_level": 0}
    ways = ({"timeout": 5}, {"timeout": 5.0}, {}, nothing, {"key": "k"}, {"queue": "least-loaded"})
    producer.send(topic, b"first")  # the topic is known from here on
    for way in ways:
        producer.send_oneway(
            topic, b"x", tag="a", keys=["k1", "k2"], properties={"p": "1"}, flag=7, **way
        )
    for wrong in ({"timeout": -1.0}, {"timeout": -1}, {"timeout": 2**70}, {"timeout": "5"}):
        with pytest.raises((TypeError, ValueError), match="timeout"):
            producer.send_oneway(topic, b"x", **wrong)
    for tags in ("a", None, 0):
        with pytest.raises(TypeError, match="tags"):
            producer.send_oneway(topic, b"x", tags=tags)
    producer.drain()
    with client.consumer(topic, group, filter="a") as consumer:
        for _ in ways:
            message = consumer.try_next(PATIENCE_S)
            assert (message.tag, message.keys, message.flag) == ("a", ("k1", "k2"), 7)
            assert message.properties["p"] == "1"
        assert consumer.try_next(0.0) is None


@pytest.mark.parametrize("verb", ["send", "send_oneway"])
@pytest.mark.parametrize("key", [None, "k"])
def test_keys_out_of_a_generator_are_there_at_the_second_attempt(
    cluster, client, topic, group, verb, key
):
    with cluster.connect() as own, own.producer() as producer:
        producer.send(topic, b"first")
        # It has no chunk memory yet, so that the first attempt at a large body fails.
        getattr(producer, verb)(topic, bytes(100_000), keys=(one for one in ("a", "b")), key=key)
        producer.drain(PATIENCE_S)
    with client.consumer(topic, group) as consumer:
        messages = [consumer.try_next(PATIENCE_S) for _ in range(2)]
        assert sorted((len(message.body), message.keys) for message in messages) == [
            (5, ()),
            (100_000, ("a", "b")),
        ]


def test_loan_is_filled_in_place(client, topic, group):
    producer = client.producer()
    with producer.loan(topic, dtype="f4", shape=(10, 20), tag="x") as slot:
        slot.array()[:] = 1.5
    assert slot.result.send_status == shmq.SendStatus.SEND_OK
    with producer.loan(topic, 5) as slot:
        slot.view[:] = b"hello"
    with pytest.raises(ValueError, match="no"), producer.loan(topic, 5) as slot:
        raise ValueError("no")
    with pytest.raises(ValueError, match="not sent"):
        _ = slot.result
    with client.consumer(topic, group, filter="x") as consumer:
        message = consumer.try_next(PATIENCE_S)
        assert message is not None
        assert message.array().shape == (10, 20)
        assert float(message.array().sum()) == 300.0
    assert b"hello" in bodies(client, topic)
    assert len(bodies(client, topic)) == 2


def test_loan_with_a_living_array_says_what_to_do(client, topic):
    producer = client.producer()
    with pytest.raises(BufferError, match="del it"), producer.loan(topic, 8) as slot:
        array = slot.array("u1")
    del array
    producer.send(topic, b"after")  # the ring is free again
    assert bodies(client, topic) == [b"after"]


# ---- where to ------------------------------------------------------------------------------------


@both
def test_key_goes_to_the_queue_that_rocketmq_would_choose(client, topic):
    client.create_topic(topic, queues=5)
    producer = client.producer()
    queues = producer.queues(topic)
    for key in ("a", "user-7", "polygenelubricants", "ω"):  # the third has the hash -2**31
        wanted = queues[abs(java_hash(key)) % 5]
        for _ in range(2):
            assert producer.send(topic, b"x", key=key).message_queue == wanted


@both
def test_queue_is_chosen_by_hand_by_function_or_by_load(client, topic):
    producer = client.producer()
    client.create_topic(topic, queues=4)
    queues = producer.queues(topic)
    assert producer.send(topic, b"x", queue=queues[2]).message_queue == queues[2]
    assert producer.send(topic, b"x", queue=max).message_queue == queues[-1]
    assert producer.send(topic, b"x", queue="least-loaded").message_queue in queues
    with pytest.raises(TopicNotExistError, match="no such queue"):
        producer.send(topic, b"x", queue=queues[0]._replace(queue_id=9))
    turns = {producer.send(topic, b"x").message_queue for _ in range(4)}
    assert turns == set(queues)


def test_threads_that_share_a_producer_keep_the_order_of_a_key(client, topic):
    producer = client.producer()
    lock = threading.Lock()
    sent: list[bytes] = []

    def work(name: int) -> None:
        for number in range(300):
            body = b"%d-%d" % (name, number)
            with lock:
                producer.send_oneway(topic, body, key="one")
                sent.append(body)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    producer.drain()
    assert bodies(client, topic) == sent


# ---- brokers that go -----------------------------------------------------------------------------


def test_unkeyed_sends_avoid_a_broker_that_is_down_and_keyed_ones_wait_for_it(pair):
    with pair.connect() as client:
        client.create_topic("t", queues=2)
        producer = client.producer()
        keys = {}
        for number in range(50):
            where = producer.send("t", b"0", key=f"k{number}").message_queue
            keys[where.broker_name] = f"k{number}"
        pair.brokers[0].kill()
        wait_for(lambda: not client.link("broker-a").is_up, "that it is noticed")
        for _ in range(20):
            assert producer.send("t", b"1").message_queue.broker_name == "broker-b"
        assert producer.send("t", b"2", key=keys["broker-b"])
        with pytest.raises(OutcomeUnknownError, match="has not said"):
            producer.send("t", b"3", key=keys["broker-a"], timeout=0.2)
        future = producer.send_async("t", b"4", key=keys["broker-a"], timeout=PATIENCE_S)
        late = producer.send_async("t", b"5", key=keys["broker-a"], timeout=0.1)
        with pytest.raises(OutcomeUnknownError):
            late.result(PATIENCE_S)
        pair.brokers[0].restart()
        assert future.result(PATIENCE_S).message_queue.broker_name == "broker-a"
        assert producer.send("t", b"6", key=keys["broker-a"], timeout=PATIENCE_S)
        assert producer.resent_count == 0
        stored = bodies(client, "t")
        assert [stored.count(b"%d" % n) for n in (3, 4, 5, 6)] == [1, 1, 1, 1]


def test_key_keeps_its_queue_for_a_producer_that_starts_while_a_broker_is_down(pair):
    with pair.connect() as client:
        client.create_topic("t", queues=3)
        producer = client.producer()
        wanted = {f"k{n}": producer.send("t", b"x", key=f"k{n}").message_queue for n in range(30)}
    pair.brokers[1].kill()
    with pair.connect() as client:
        wait_for(lambda: len(client.routes.brokers()) == 1, "that it left the routes")
        producer = client.producer()
        for key, queue in wanted.items():
            if queue.broker_name == "broker-a":
                assert producer.send("t", b"y", key=key).message_queue == queue
            else:
                with pytest.raises(SendTimeoutError, match="nothing was sent"):
                    producer.send("t", b"y", key=key, timeout=0.05)
        lost = next(key for key, queue in wanted.items() if queue.broker_name == "broker-b")
        restarter = threading.Thread(target=pair.brokers[1].restart)
        restarter.start()
        assert producer.send("t", b"z", key=lost, timeout=PATIENCE_S).message_queue == wanted[lost]
        restarter.join()


def test_broker_that_lost_its_memory_gets_unsettled_sends_again_under_the_same_id(
    own_cluster, own_client
):
    producer = own_client.producer()
    first = producer.send("t", b"before")
    broker = own_cluster.brokers[0]
    broker.kill()
    wait_for(lambda: not own_client.link("broker-a").is_up, "that it is noticed")
    sent: list[shmq.SendResult] = []
    thread = threading.Thread(
        target=lambda: sent.append(producer.send("t", b"sync", timeout=PATIENCE_S))
    )
    thread.start()
    futures = [producer.send_async("t", b"async", timeout=PATIENCE_S) for _ in range(10)]
    message = shmq.Message("t", b"whole", tag="x")
    whole = producer.send_async(message, timeout=PATIENCE_S)
    lanes = own_client.link("broker-a").lanes

    def under_way() -> set[str | None]:
        return {
            lane.unique_key(sequence)
            for lane in lanes
            for sequence in range(lane.done_sequence, lane.next_sequence)
        }

    wait_for(lambda: len(under_way()) == 12, "that all are in the rings")
    under_their_ids = under_way()
    for path in Path("/dev/shm").glob(f"shmq.{broker.cluster_name}.*"):
        path.unlink()
    broker.restart()
    results = [future.result(PATIENCE_S) for future in futures]
    assert whole.result(PATIENCE_S).queue_offset >= 0
    thread.join()
    assert producer.resent_count == 12
    ids = {result.message_id for result in [*results, whole.result(), *sent]}
    assert ids == under_their_ids
    with own_client.consumer("t", "g") as consumer:
        got = {}
        while not ids <= got.keys():
            for received in consumer.receive(32, timeout=PATIENCE_S):
                got[received.message_id] = bytes(received)
        got.pop(first.message_id, None)  # it need not have reached the disk
        assert sorted(got.values()) == [b"async"] * 10 + [b"sync", b"whole"]


def test_oneway_meets_the_new_session_of_a_broker_that_lost_its_memory(own_cluster, own_client):
    producer = own_client.producer()
    producer.send("t", b"before")
    broker = own_cluster.brokers[0]
    broker.kill()
    wait_for(lambda: not own_client.link("broker-a").is_up, "that it is noticed")

    def fill() -> None:
        for _ in range(100_000):
            producer.send_oneway("t", bytes(1000), timeout=0.0)

    with pytest.raises(SendTimeoutError):
        fill()
    for path in Path("/dev/shm").glob(f"shmq.{broker.cluster_name}.*"):
        path.unlink()
    restarter = threading.Thread(target=broker.restart)
    restarter.start()
    after = b"after".ljust(1000)  # there is no room for it, either
    producer.send_oneway("t", after, timeout=600.0)  # of which it waits for the restart only
    restarter.join()
    producer.drain(PATIENCE_S)
    assert after in bodies(own_client, "t")


def test_slow_broker_is_avoided_for_a_while(pair):
    with pair.connect() as client:
        client.create_topic("t", queues=2)
        producer = client.producer()
        producer.send("t", b"x")
        producer._took(  # what a send of 600 ms does; no broker is that slow on demand
            next(
                q
                for q in producer._targets["t"].queues
                if q.message_queue.broker_name == "broker-a"
            ),
            600_000_000,
        )
        names = {producer.send("t", b"x").message_queue.broker_name for _ in range(8)}
        assert names == {"broker-b"}


def test_nobody_there_is_told_with_what_to_do(tmp_path):
    (tmp_path / "run").mkdir(mode=0o750)
    with pytest.raises(shmq.ShmqError, match="there is none") as caught:
        shmq.connect(tmp_path / "run")
    assert "shmq dev" in caught.value.hint
