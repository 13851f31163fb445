"""Lite pull: which queues, from where, what is paused, and what is committed when."""

import threading

import pytest

import shmq
from shmq import MessageQueue
from shmq.errors import ClosedError, ConfigError, OffsetIllegalError, TopicNotExistError
from tests.support.cluster import Program, wait_for

pytestmark = pytest.mark.cluster

PATIENCE_S = 30.0

both = pytest.mark.parametrize("client", ["threads", "asyncio"], indirect=True)
"""The client of shmq, and that of shmq.aio."""
both_own = pytest.mark.parametrize("own_client", ["threads", "asyncio"], indirect=True)


def send(client: shmq.Client, topic: str, count: int, *, first: int = 0) -> None:
    producer = client.producer()
    for number in range(first, first + count):
        producer.send_oneway(topic, b"%d" % number)
    producer.drain()


def poll(consumer: shmq.LitePullConsumer, count: int) -> list[int]:
    """Numbers of the messages of some polls."""
    got: list[int] = []
    while len(got) < count:
        messages = consumer.poll(PATIENCE_S)
        assert messages, got
        got += [int(bytes(message)) for message in messages]
    return got


@both
def test_poll_gives_batches_of_one_queue_in_order(client, topic, group):
    client.create_topic(topic, queues=3)
    send(client, topic, 100)
    with client.lite_pull_consumer(group, batch_size=7) as consumer:
        consumer.subscribe(topic)
        seen: dict[int, list[int]] = {}
        count = 0
        while count < 100:
            messages = consumer.poll(PATIENCE_S)
            assert 1 <= len(messages) <= 7
            assert len({message.queue_id for message in messages}) == 1
            seen.setdefault(messages[0].queue_id, []).extend(m.queue_offset for m in messages)
            count += len(messages)
        assert all(offsets == list(range(len(offsets))) for offsets in seen.values())
        assert len(consumer.assignment) == 3
        assert consumer.poll(0.05) == []
        waiting = threading.Timer(0.1, lambda: send(client, topic, 1))
        waiting.start()
        assert poll(consumer, 1) == [0]
        waiting.join()


@both
def test_subscribe_and_assign_exclude_each_other(client, other_group, topic, group):
    client.create_topic(topic, queues=2)
    with client.lite_pull_consumer(group) as one, client.lite_pull_consumer(other_group) as other:
        one.subscribe(topic)
        with pytest.raises(
            ConfigError, match=f"subscribed to {topic}; subscribe and assign exclude"
        ):
            one.assign(one.fetch_queues(topic))
        other.assign(other.fetch_queues(topic))
        with pytest.raises(ConfigError, match="subscribe and assign exclude each other"):
            other.subscribe(topic)
        with pytest.raises(ConfigError, match="none were given"):
            other.assign([])
        with pytest.raises(TopicNotExistError, match="no such read queue"):
            other.assign([MessageQueue(topic, "broker-a", 7)])


@both
def test_filter_passes_wanted_tags_by_subscription_and_by_assignment(
    client, other_group, topic, group
):
    producer = client.producer()
    for number in range(30):
        producer.send(topic, b"%d" % number, tag="abc"[number % 3])
    wanted = [number for number in range(30) if number % 3]
    with client.lite_pull_consumer(group) as consumer:
        consumer.subscribe(topic, "b || c")
        assert sorted(poll(consumer, 20)) == wanted
    with client.lite_pull_consumer(other_group) as consumer:
        consumer.set_filter(topic, "b || c")
        consumer.assign(consumer.fetch_queues(topic))
        assert sorted(poll(consumer, 20)) == wanted


@both
def test_seek_is_checked_and_commits_nothing(client, topic, group):
    client.create_topic(topic, queues=1)
    send(client, topic, 50)
    with client.lite_pull_consumer(group, auto_commit=False) as consumer:
        consumer.subscribe(topic)
        (queue,) = consumer.assignment
        assert poll(consumer, 10) == list(range(10))
        consumer.seek(queue, 40)
        assert consumer.position(queue) == 40
        assert poll(consumer, 10) == list(range(40, 50))
        consumer.seek_to_begin(queue)
        assert poll(consumer, 10) == list(range(10))
        consumer.seek_to_end(queue)
        assert consumer.position(queue) == 50
        assert consumer.poll(0.05) == []
        for wrong in (-1, 51):
            with pytest.raises(OffsetIllegalError, match=f"to {wrong}: it has 0 to 50"):
                consumer.seek(queue, wrong)
        with pytest.raises(OffsetIllegalError, match="not assigned to this consumer"):
            consumer.seek(queue._replace(queue_id=3), 0)
        assert consumer.committed(queue) == 0
        assert consumer.offset_for_time(queue, 0.0) == 0


@both
def test_pause_keeps_the_position_and_lets_the_others_go_on(client, topic, group):
    client.create_topic(topic, queues=2)
    send(client, topic, 40)
    with client.lite_pull_consumer(group, auto_commit=False) as consumer:  # which gets polls up
        consumer.subscribe(topic)
        one, other = consumer.assignment
        consumer.seek(one, 5)
        consumer.pause([one])
        assert consumer.paused == [one]
        got = consumer.poll(PATIENCE_S) + consumer.poll(PATIENCE_S)
        assert {message.queue_id for message in got} == {other.queue_id}
        assert consumer.poll(0.05) == []
        assert consumer.position(one) == 5
        waiting = threading.Timer(0.1, lambda: consumer.resume([one]))
        waiting.start()
        # A poll that waits already goes on; at its end, which is far away, it would look as well.
        (first, *_) = consumer.poll(10 * PATIENCE_S)
        assert (first.queue_id, first.queue_offset) == (one.queue_id, 5)
        waiting.join()


@both
def test_auto_commit_counts_what_earlier_polls_gave(client, topic, group):
    client.create_topic(topic, queues=1)
    send(client, topic, 30)
    with client.lite_pull_consumer(group, auto_commit_interval=0.01) as consumer:
        consumer.subscribe(topic)
        (queue,) = consumer.assignment
        assert len(consumer.poll(PATIENCE_S)) == 10
        assert consumer.committed(queue) == 0  # these are being worked on
        threading.Event().wait(0.02)  # the interval, which is the thing tested
        assert len(consumer.poll(PATIENCE_S)) == 10
        assert consumer.committed(queue) == 10


@both
@pytest.mark.parametrize("way", ["subscribe", "assign"])
def test_close_commits_what_was_polled(way, client, topic, group):
    client.create_topic(topic, queues=1)
    send(client, topic, 30)
    for expected in (0, 10, 20):
        with client.lite_pull_consumer(group, auto_commit_interval=3600) as consumer:
            begin(consumer, way, topic)
            assert poll(consumer, 10)[0] == expected
    with client.lite_pull_consumer(group) as consumer:
        begin(consumer, way, topic)
        assert consumer.poll(0.05) == []


@both
@pytest.mark.parametrize("way", ["subscribe", "assign"])
def test_without_auto_commit_only_commit_counts(way, client, topic, group):
    client.create_topic(topic, queues=1)
    send(client, topic, 30)
    with client.lite_pull_consumer(group, auto_commit=False) as consumer:
        begin(consumer, way, topic)
        (queue,) = consumer.assignment
        assert poll(consumer, 10) == list(range(10))
        consumer.commit()
        assert consumer.committed(queue) == 10
        assert poll(consumer, 20) == list(range(10, 30))
        with pytest.raises(OffsetIllegalError, match="its messages end at 30"):
            consumer.commit({queue: 31})
        with pytest.raises(OffsetIllegalError, match="not assigned to this consumer"):
            consumer.commit({queue: 11, queue._replace(queue_id=9): 0})
        assert consumer.committed(queue) == 10  # all of them, or none
        consumer.commit({queue: 12})
    with client.lite_pull_consumer(group) as consumer:
        begin(consumer, way, topic)
        assert poll(consumer, 18) == list(range(12, 30))


@both
def test_iteration_counts_a_message_when_the_next_is_asked_for(client, topic, group):
    client.create_topic(topic, queues=1)
    send(client, topic, 30)

    def work(count: int) -> list[int]:
        got = []
        with client.lite_pull_consumer(group, batch_size=8) as consumer:
            consumer.subscribe(topic)
            (queue,) = consumer.assignment
            for message in consumer:
                got.append(int(bytes(message)))
                assert consumer.position(queue) == got[-1] + 1
                if len(got) == count:
                    break
            if count == 11:
                raise ZeroDivisionError
        return got

    assert work(12) == list(range(12))
    with pytest.raises(ZeroDivisionError):
        work(11)  # of which the last does not count
    assert work(8) == list(range(22, 30))


@both
def test_seek_and_a_batch_follow_an_iteration_that_was_left(client, topic, group):
    client.create_topic(topic, queues=1)
    send(client, topic, 30)
    with client.lite_pull_consumer(group, batch_size=8) as consumer:
        consumer.subscribe(topic)
        (queue,) = consumer.assignment
        messages = iter(consumer)
        assert [int(bytes(next(messages))) for _ in range(3)] == [0, 1, 2]
        assert poll(consumer, 5) == [3, 4, 5, 6, 7]  # the rest of what was read at once
        assert int(bytes(next(messages))) == 8
        consumer.seek(queue, 20)
        assert [int(bytes(message)) for message in consumer.poll(0.0)] == list(range(20, 28))
        assert int(bytes(next(messages))) == 28
        consumer.close()
        assert list(messages) == []
        with pytest.raises(ClosedError, match="this lite pull consumer is closed"):
            iter(consumer)


def begin(consumer: shmq.LitePullConsumer, way: str, topic: str) -> None:
    if way == "subscribe":
        consumer.subscribe(topic)
    else:
        consumer.assign(consumer.fetch_queues(topic))


@both
def test_assigned_queues_are_read_beside_a_group_and_can_be_exchanged(client, topic, group):
    client.create_topic(topic, queues=3)
    send(client, topic, 30)
    with client.lite_pull_consumer(group, auto_commit=False) as consumer:
        queues = consumer.fetch_queues(topic)
        consumer.assign(queues[:1])
        assert consumer.assignment == queues[:1]
        assert {m.queue_id for m in consumer.poll(PATIENCE_S)} == {queues[0].queue_id}
        consumer.assign(queues[1:])
        assert consumer.assignment == queues[1:]
        with client.consumer(topic, group) as member:  # nobody has to share with it
            assert len(member.assigned) == 3
        got = consumer.poll(PATIENCE_S) + consumer.poll(PATIENCE_S)
        assert {m.queue_id for m in got} == {q.queue_id for q in queues[1:]}


MEMBER = """
import sys, json, shmq
with shmq.connect(sys.argv[1]) as client, client.lite_pull_consumer(sys.argv[3]) as consumer:
    consumer.subscribe(sys.argv[2])
    print(json.dumps("ready"), flush=True)
    sys.stdin.readline()
"""


@both
def test_members_share_queues_and_the_listener_is_told(cluster, client, topic, group):
    client.create_topic(topic, queues=4)
    told: list[tuple[str, int, int]] = []

    def listener(topic: str, before: list[MessageQueue], now: list[MessageQueue]) -> None:
        told.append((topic, len(before), len(now)))

    with client.lite_pull_consumer(group) as consumer:
        consumer.subscribe(topic, listener=listener)
        consumer.poll(0.0)
        assert told == [(topic, 0, 4)]
        with Program(MEMBER, cluster.runtime, topic, group) as other:
            assert other.hear() == "ready"
            wait_for(lambda: consumer.poll(0.05) or len(told) >= 2, "the shares")
            assert told[1:] == [(topic, 4, 2)]
            other.say()
            assert other.end() == 0
        wait_for(lambda: consumer.poll(0.05) or len(consumer.assignment) == 4, "the rest")
        consumer.poll(0.0)
        assert told[2:] == [(topic, 2, 4)]


@both
def test_several_topics_are_polled_and_one_is_given_back(client, topic, other_topic, group):
    send(client, topic, 5)
    send(client, other_topic, 5, first=100)
    with client.lite_pull_consumer(group) as consumer:
        consumer.subscribe(topic)
        consumer.subscribe(other_topic)
        assert sorted(poll(consumer, 10)) == [*range(5), *range(100, 105)]
        consumer.unsubscribe(topic)
        assert {queue.topic for queue in consumer.assignment} == {other_topic}
        send(client, other_topic, 1, first=200)
        assert poll(consumer, 1) == [200]


@both_own
def test_broker_that_is_killed_is_waited_for_by_a_poll(own_cluster, own_client):
    own_client.create_topic("t", queues=1)
    send(own_client, "t", 9)
    producer = own_client.producer()
    producer.send("t", b"9")
    broker = own_cluster.brokers[0]
    with own_client.lite_pull_consumer("g", auto_commit=False) as consumer:
        consumer.assign(consumer.fetch_queues("t"))
        assert poll(consumer, 10) == list(range(10))
        consumer.commit()
        broker.kill()
        assert consumer.poll(0.05) == []
        broker.restart()
        producer.send("t", b"10", timeout=PATIENCE_S)
        assert poll(consumer, 1) == [10]


@both
def test_closed_one_says_so_and_a_waiting_poll_gets_up(client, topic, group):
    send(client, topic, 1)
    consumer = client.lite_pull_consumer(group)
    consumer.subscribe(topic)
    assert poll(consumer, 1) == [0]
    found: list[list[shmq.Message]] = []
    thread = threading.Thread(target=lambda: found.append(consumer.poll(PATIENCE_S)))
    thread.start()
    consumer.close()
    thread.join(PATIENCE_S)
    assert found in ([[]], [])
    with pytest.raises(ClosedError, match="this lite pull consumer is closed"):
        consumer.poll(0.0)
    with pytest.raises(ConfigError, match="batch_size 0"):
        client.lite_pull_consumer(group, batch_size=0)


@both
def test_what_a_failing_program_polled_last_is_not_committed(client, topic, group):
    client.create_topic(topic, queues=1)
    send(client, topic, 10)

    def work(*wanted: list[int], commits: bool) -> None:
        with client.lite_pull_consumer(group, batch_size=4) as consumer:
            consumer.subscribe(topic)
            for numbers in wanted:
                assert poll(consumer, 4) == numbers
            if commits:
                consumer.commit()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work([0, 1, 2, 3], [4, 5, 6, 7], commits=False)
    with pytest.raises(ZeroDivisionError):
        work([4, 5, 6, 7], commits=True)
    with client.lite_pull_consumer(group) as consumer:
        consumer.subscribe(topic)
        assert poll(consumer, 2) == [8, 9]


@both
def test_queue_that_is_not_there_is_told_and_read_once_it_is(client, topic, group):
    client.create_topic(topic, queues=1)
    send(client, topic, 1)
    with client.lite_pull_consumer(group) as consumer:
        there, later = (MessageQueue(topic, "broker-a", queue_id) for queue_id in (0, 1))
        for _ in range(2):
            with pytest.raises(TopicNotExistError, match="queue 1 .*there is no such read queue"):
                consumer.assign([there, later])
        client.create_topic(topic, queues=2)
        producer = client.producer()
        wait_for(lambda: later in producer.queues(topic), "the queue")
        producer.send(topic, b"1", queue=later)
        assert sorted(poll(consumer, 2)) == [0, 1]


@both
def test_what_is_no_queue_is_refused(client, topic, group):
    client.create_topic(topic, queues=2)
    with client.lite_pull_consumer(group) as consumer:
        consumer.subscribe(topic)
        queue = consumer.assignment[0]
        for call in (consumer.pause, consumer.resume):
            with pytest.raises(TypeError, match=r"one queue, wanted several: \[MessageQueue"):
                call(queue)
            with pytest.raises(TypeError, match="'x': wanted a MessageQueue"):
                call(["x"])
        for call in (consumer.committed, consumer.position, consumer.seek_to_end):
            with pytest.raises(TypeError, match="'x': wanted a MessageQueue"):
                call("x")
        with pytest.raises(TypeError, match="'x': wanted a MessageQueue"):
            consumer.commit({"x": 1})
        with pytest.raises(TypeError, match="queue_offset '1'"):
            consumer.commit({queue: "1"})
        assert consumer.paused == []
