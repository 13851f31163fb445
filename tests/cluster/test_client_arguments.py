"""Arguments that make no sense, and objects that were closed, through the public names."""

import math

import pytest

import shmq
from shmq.errors import (
    ClosedError,
    ConfigError,
    IllegalGroupError,
    IllegalPropertyError,
    IllegalTopicError,
    ReservedPropertyError,
    ServiceNotAvailableError,
    SubscriptionError,
    TopicNotExistError,
)
from tests.support.cluster import Cluster, wait_for

pytestmark = pytest.mark.cluster


def senders(producer: shmq.Producer) -> list:
    """Every way to send, as f(**options)."""
    return [
        lambda **options: producer.send("t", b"x", **options),
        lambda **options: producer.send(shmq.Message("t", b"x"), **options),
        lambda **options: producer.send_async("t", b"x", **options).result(),
        lambda **options: producer.send_oneway("t", b"x", **options),
        lambda **options: producer.send_many("t", [b"x"], **options),
        lambda **options: producer.loan("t", 1, **options).__enter__(),
    ]


def test_sends_refuse_what_makes_no_sense(client):
    producer = client.producer()
    for send in senders(producer):
        for timeout in (-1, math.inf, math.nan):
            with pytest.raises(ValueError, match="timeout .* wanted 0 to"):
                send(timeout=timeout)
        with pytest.raises(TypeError, match="timeout None: wanted seconds"):
            send(timeout=None)
        for queue in (3, "foo", lambda queues: 0):
            with pytest.raises(TypeError, match=r"wanted one of Producer.queues\(topic\)"):
                send(queue=queue)
        with pytest.raises(TypeError, match="key and queue"):
            send(key="k", queue="least-loaded")
        for delay_level in ("1", 1.5, True):
            with pytest.raises(TypeError, match="delay_level .* want a whole number"):
                send(delay_level=delay_level)
    for bodies in ("text", b"bytes"):
        with pytest.raises(TypeError, match=r"give \[body\]"):
            producer.send_many("t", bodies)
    assert producer.send("t", b"x").queue_offset >= 0


def test_tag_that_nobody_could_subscribe_to_is_refused(client):
    producer = client.producer()
    with pytest.raises(IllegalPropertyError, match="joins tags in a filter"):
        producer.send("t", b"x", tag="a||b")
    with pytest.raises(IllegalPropertyError, match="joins tags in a filter"):
        producer.send_many("t", [b"x"], tag="a|b")


def test_properties_that_have_arguments_of_their_own_are_refused_unless_these_rule(client):
    producer = client.producer()
    with pytest.raises(ReservedPropertyError, match="'TAGS': give it as the argument tag"):
        producer.send("t", b"x", properties={"TAGS": "a"})
    with pytest.raises(ReservedPropertyError, match="'KEYS': give it as the argument keys"):
        producer.send("t", b"x", properties={"KEYS": "a"})
    producer.send("on", b"x", tag="a", keys="k", properties={"own": "y"})
    with client.consumer("on", "g") as consumer:
        received = consumer.try_next(30.0)
        sent_on = shmq.Message(
            "further",
            received.body,
            tag=received.tag,
            keys=received.keys,
            properties=received.properties,
        )
        assert producer.send(sent_on).message_id == received.message_id


def test_consumers_refuse_what_makes_no_sense(client):
    for options, error, said in (
        ({"from_where": "latest"}, ConfigError, "from_where 'latest': wanted CONSUME_FROM_FIRST"),
        ({"model": "x"}, ConfigError, "model 'x': wanted CLUSTERING, BROADCASTING"),
        ({"from_time": math.nan}, ValueError, "since 1970"),
        ({"filter": "a ||"}, SubscriptionError, "empty tag"),
    ):
        with pytest.raises(error, match=said):
            client.consumer("t", "g", **options)
    with pytest.raises(IllegalTopicError):
        client.consumer("no topic", "g")
    with pytest.raises(IllegalGroupError, match="wanted a str"):
        client.consumer("t", 5)
    with pytest.raises(IllegalGroupError):
        client.producer("no group")
    with pytest.raises(TypeError, match="listener 5: wanted a function"):
        client.push_consumer("g", 5)
    with pytest.raises(TypeError, match="threads '4'"):
        client.push_consumer("g", print, threads="4")
    for options, error, said in (
        ({"max_reconsume_times": "3"}, TypeError, "'3': wanted a whole number, -1 to"),
        ({"max_reconsume_times": -2}, ConfigError, "-2: wanted -1 to 2147483647"),
        ({"suspend": -1}, ConfigError, "suspend -1, wanted 0.01 to 30"),
        ({"suspend": "1"}, TypeError, "suspend '1': wanted seconds"),
        ({"allocation": "mine"}, ConfigError, "allocation 'mine', wanted"),
    ):
        with pytest.raises(error, match=said):
            client.push_consumer("g", print, **options)
    client.producer().send("t", b"x")
    with client.consumer("t", "g") as consumer:
        queue = consumer.assigned[0]
        with pytest.raises(ValueError, match="timeout"):
            consumer.receive(1, timeout=-1)
        with pytest.raises(ConfigError, match="max_count 0"):
            consumer.receive(0)
        with pytest.raises(TypeError, match="wanted a MessageQueue"):
            consumer.seek(0, 0)
        with pytest.raises(TypeError, match="give one of"):
            consumer.seek(queue)
        with pytest.raises(TypeError, match="give one of"):
            consumer.seek(queue, 0, time=0.0)
        with pytest.raises(TypeError, match="give the time itself"):
            consumer.seek(queue, where=shmq.ConsumeFromWhere.CONSUME_FROM_TIMESTAMP)


def test_allocation_that_gives_what_are_no_queues_is_told(client):
    client.create_topic("dealt", queues=2)
    for answer in (None, 3, [1], [shmq.MessageQueue("dealt", "broker-a", 2)]):
        with pytest.raises(ConfigError, match="the allocation gave .* wanted a list of those 2"):
            client.consumer("dealt", "g-dealt", allocation=lambda _q, _m, _i, a=answer: a)
    push = client.push_consumer("g-dealt", print, allocation=lambda queues, _m, _i: queues[1:])
    with push, shmq.Admin(client.namesrv) as admin:
        push.subscribe("dealt")
        owners = {(r.topic, r.queue_id): bool(r.client_id) for r in admin.lag("g-dealt")}
    assert owners == {("dealt", 0): False, ("dealt", 1): True, ("%RETRY%g-dealt", 0): True}


def test_message_model_may_be_given_as_text(client):
    client.create_topic("modelled", queues=1)
    with (
        client.push_consumer("g-modelled", print) as push,
        shmq.Admin(client.namesrv) as admin,
    ):
        push.subscribe("modelled", model="CLUSTERING")
        assert {row.topic for row in admin.lag("g-modelled")} == {"modelled", "%RETRY%g-modelled"}


def test_listener_that_answers_what_nobody_knows_has_not_settled(client, caplog):
    client.create_topic("answered", queues=1)
    client.producer().send("answered", b"x")
    push = client.push_consumer("g-answered", lambda _message: False, max_reconsume_times=0)
    with push, client.consumer("%DLQ%g-answered", "g-letters") as letters:
        push.subscribe("answered")
        assert bytes(letters.try_next(30.0)) == b"x"
    assert "answered False, wanted None or a ConsumeStatus" in caplog.text


def test_broadcasting_topics_of_one_program_share_an_offset_file(client, tmp_path):
    options = {"model": "BROADCASTING", "offset_file": tmp_path / "offsets.json"}
    seen: list[str] = []
    for _ in range(2):
        for topic in ("shared-1", "shared-2"):
            client.producer().send(topic, topic)
        before = len(seen)
        with client.push_consumer("g-shared", lambda m: seen.append(str(m.topic))) as push:
            for topic in ("shared-1", "shared-2"):
                push.subscribe(topic, **options)
            with pytest.raises(ConfigError, match="keep offsets of shared-1 in .*another consumer"):
                client.consumer("shared-1", "g-other", **options)
            wait_for(lambda before=before: len(seen) == before + 2, "both messages, once")
    assert sorted(seen) == ["shared-1", "shared-1", "shared-2", "shared-2"]


def test_pull_consumer_of_no_topic_is_refused(client):
    with pytest.raises(TopicNotExistError):
        client.pull_consumer("nope")
    client.create_topic("there", queues=1)
    with client.pull_consumer("there") as pull:
        (queue,) = pull.queues()
        with pytest.raises(TypeError, match="wanted a MessageQueue"):
            pull.pull(0, 0)
        with pytest.raises(TypeError, match="queue_offset '0'"):
            pull.pull(queue, "0")
        with pytest.raises(ConfigError, match="max_count 0"):
            pull.pull(queue, 0, 0)


def test_topic_on_a_broker_that_nobody_knows_is_made_nowhere(client, cluster):
    with pytest.raises(ServiceNotAvailableError, match="nope: no NameServer knows it") as refused:
        client.create_topic("half", brokers=["broker-a", "nope"])
    assert "broker-a" in refused.value.hint
    with pytest.raises(TopicNotExistError):
        client.pull_consumer("half")
    for queues in (0, 65_536):
        with pytest.raises(ConfigError, match=f"queues {queues}: wanted 1 to 65535"):
            client.create_topic("half", queues=queues)
    with shmq.Admin(cluster.runtime) as admin:
        with pytest.raises(ServiceNotAvailableError, match="nope: no NameServer knows it"):
            admin.create_topic("half", brokers=["broker-a", "nope"])
        with pytest.raises(ConfigError, match="read_queues 0: wanted 1 to 65535"):
            admin.create_topic("half", read_queues=0)


def test_everybodys_folder_is_no_runtime_folder():
    with pytest.raises(shmq.ShmqError, match="open the runtime folder /tmp: ") as refused:
        shmq.connect("/tmp")
    assert "shmq dev" in refused.value.hint
    with pytest.raises(ConfigError, match="policy 'lazy': wanted blocking, adaptive, busy_spin"):
        shmq.connect("/tmp", policy="lazy")


def test_what_was_closed_says_so(client, cluster: Cluster):
    producer = client.producer()
    producer.send("t", b"x")
    producer.close()
    for send in senders(producer):
        with pytest.raises(ClosedError, match="this producer is closed"):
            send()
    for call in (producer.drain, lambda: producer.queues("t")):
        with pytest.raises(ClosedError, match="this producer is closed"):
            call()

    consumer = client.consumer("t", "g-closed")
    consumer.close()
    for call in (lambda: iter(consumer), lambda: consumer.try_next(0.0), consumer.receive):
        with pytest.raises(ClosedError, match="this consumer is closed"):
            call()

    pull = client.pull_consumer("t")
    queue = pull.queues()[0]
    pull.close()
    for call in (
        pull.queues,
        lambda: pull.pull(queue, 0),
        lambda: pull.min_offset(queue),
        lambda: pull.max_offset(queue),
        lambda: pull.search_offset(queue, 0.0),
    ):
        with pytest.raises(ClosedError, match="this consumer is closed"):
            call()

    push = client.push_consumer("g-closed", print)
    push.close()
    with pytest.raises(ClosedError, match="this push consumer is closed"):
        push.subscribe("t")

    admin = shmq.Admin(cluster.runtime)
    admin.close()
    admin.close()
    for call in (admin.topics, admin.brokers, admin.namesrvs, lambda: admin.topic("t")):
        with pytest.raises(ClosedError, match="this Admin is closed"):
            call()

    open_producer = client.producer()
    client.close()
    for call in (
        lambda: open_producer.send("t", b"x"),
        client.producer,
        lambda: client.consumer("t", "g"),
        lambda: client.push_consumer("g", print),
        lambda: client.pull_consumer("t"),
        lambda: client.create_topic("t"),
    ):
        with pytest.raises(ClosedError, match="closed"):
            call()
