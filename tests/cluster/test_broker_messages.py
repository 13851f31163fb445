"""A broker process and clients of it: messages from end to end, and requests of all kinds."""

import pytest

from shmq.core import core
from shmq.errors import (
    ConfigError,
    IllegalTopicError,
    OffsetIllegalError,
    OwnerError,
    PermissionDeniedError,
    QuotaError,
    TopicNotExistError,
)
from shmq.remoting.codes import RequestCode, ResponseCode
from shmq.remoting.command import Command
from tests.support.broker_process import BrokerClient, BrokerProcess
from tests.support.store_process import wait_until


def test_message_passes_from_one_client_to_another(shared_broker):
    with (
        BrokerClient(shared_broker, "producer") as producer,
        BrokerClient(shared_broker, "consumer") as consumer,
    ):
        producer.create_topic("orders", 2)
        first, second = producer.send_queues("orders")
        assert producer.send(first, b"one") == 0
        assert producer.send(first, b"two") == 1
        assert producer.send(second, b"three") == 0
        queues = consumer.read_queues("orders")
        assert [q.queue_id for q in queues] == [0, 1]
        assert consumer.bodies(queues[0]) == [b"one", b"two"]
        assert consumer.bodies(queues[1]) == [b"three"]
        assert queues[0].facts["maxOffset"] == queues[0].facts["visibleMax"] == 2


def test_send_creates_topic_after_template(shared_broker):
    with BrokerClient(shared_broker, "producer") as producer:
        assert len(producer.send_queues("made")) == 4
        assert len(producer.send_queues("made-large", defaultTopicQueueNums=100)) == 8
        config = producer.json(RequestCode.GET_TOPIC_CONFIG, {"topic": "made"})
        assert (config["readQueueNums"], config["writeQueueNums"], config["perm"]) == (4, 4, 6)


@pytest.mark.parametrize("topic", ["TBW102", "SCHEDULE_TOPIC_XXXX", "no spaces", "", "x" * 128])
def test_topic_that_nobody_may_send_to_is_refused(shared_broker, topic):
    with BrokerClient(shared_broker, "producer") as producer, pytest.raises(IllegalTopicError):
        producer.send_queues(topic)


def test_unknown_topic_is_refused_where_topics_are_made_by_hand(tmp_path, cluster_name):
    with (
        BrokerProcess(tmp_path, cluster_name, auto_create_topic_enable="false") as broker,
        BrokerClient(broker, "producer") as producer,
    ):
        with pytest.raises(TopicNotExistError, match="may not create it") as caught:
            producer.send_queues("unknown")
        assert "auto_create_topic_enable" in caught.value.hint
        with pytest.raises(TopicNotExistError):
            producer.read_queues("unknown")


def test_topic_without_right_to_write_is_refused(shared_broker):
    with BrokerClient(shared_broker, "producer") as producer:
        producer.create_topic("closed", 1, perm=4)
        with pytest.raises(PermissionDeniedError, match="perm 4"):
            producer.send_queues("closed")
        producer.create_topic("write-only", 1, perm=2)
        with pytest.raises(PermissionDeniedError, match="perm 2"):
            producer.read_queues("write-only")


def test_session_sends_only_where_it_was_granted(shared_broker, topic):
    with (
        BrokerClient(shared_broker, "granted") as granted,
        BrokerClient(shared_broker, "other") as other,
    ):
        where = granted.send_queues(topic)[0]
        status, *_ = other.lanes[0].send(where.row, where.generation, b"stolen")
        assert status == core.STATUS["NOT_GRANTED"][0]
        assert granted.send(where, b"mine") == 0
        assert granted.bodies(where) == [b"mine"]


def test_connection_has_one_session(broker):
    with BrokerClient(broker, "a") as client:
        with pytest.raises(QuotaError):
            client.call(RequestCode.ATTACH_SESSION, {"clientId": "a"})
        client.call(RequestCode.DETACH_SESSION)
        assert broker.status()["sessionCount"] == 0
        client.call(RequestCode.ATTACH_SESSION, {"clientId": "a"}).close()
        with pytest.raises(OwnerError):
            client.call(RequestCode.ATTACH_SESSION, {"clientId": "b"})


def test_reader_without_right_to_send_has_no_ring(shared_broker):
    with BrokerClient(shared_broker, "reader", attach=False) as reader:
        reader.attach(isProducer=False)
        assert reader.fields["laneCount"] == 0
        assert set(reader.fds) == {
            "control", "topics", "arena", "completion", "event", "consumer", "log",
        }  # fmt: skip


def test_large_body_travels_through_granted_memory(shared_broker):
    body = bytes(range(256)) * 8192
    with BrokerClient(shared_broker, "large") as client:
        where = client.send_queues("large")[0]
        answer = client.call(RequestCode.GRANT_CHUNK, {"sizeBytes": 4 << 20})
        (client.fds["chunk"],) = answer.take_fds()
        memory = core.Mapping(client.fds["chunk"], answer.ext_fields["chunkBytes"], writable=True)
        chunk = core.ChunkMemory(client.control, memory, session=client.fields["session"])
        client.lanes[0].attach_chunk(chunk)
        client.send(where, body)
        assert client.bodies(where) == [body]


def test_sleeping_consumer_is_woken_by_its_bell(shared_broker, topic):
    with (
        BrokerClient(shared_broker, "producer") as producer,
        BrokerClient(shared_broker, "sleeper") as sleeper,
    ):
        where = producer.send_queues(topic)[0]
        stale = sleeper.json(
            RequestCode.SUBSCRIBE_BELL,
            {"bell": 0},
            {
                "queues": [
                    [where.row, where.generation, 1],
                    [where.row, where.generation + 1, 1],
                    [999, 1, 1],
                ]
            },
        )["staleQueues"]
        assert stale == [[where.row, where.generation + 1], [999, 1]]
        sleeper.reader.watch(where.row, where.generation, 0)
        assert sleeper.reader.wait(0.0) == -1
        producer.lanes[0].put(where.row, where.generation, b"wake")
        assert sleeper.reader.wait(30.0) == where.row
        sleeper.json(
            RequestCode.UNSUBSCRIBE_BELL,
            {"bell": 0},
            {"queues": [[where.row, where.generation, 1]]},
        )


NONSENSE = [
    (RequestCode.SUBSCRIBE_BELL, {"bell": 4}, {"queues": []}),
    (RequestCode.SUBSCRIBE_BELL, {"bell": -1}, {"queues": []}),
    (RequestCode.SUBSCRIBE_BELL, {"bell": 0}, {"queues": [[1]]}),
    (RequestCode.SUBSCRIBE_BELL, {"bell": 0}, {"queues": [[True, 1, 1]]}),
    (RequestCode.SUBSCRIBE_BELL, {"bell": 0}, []),
    (RequestCode.GET_TOPIC_QUEUES, {"topic": 5}, None),
    (RequestCode.GET_MAX_OFFSET, {"topic": "t"}, None),
    (RequestCode.GET_MAX_OFFSET, {"topic": "t", "queueId": -1}, None),
    (RequestCode.READ_ENTRIES, {"topic": "t", "queueId": 0, "queueOffset": -1}, None),
    (RequestCode.GRANT_CHUNK, {"sizeBytes": 1}, None),
    (RequestCode.ATTACH_SESSION, {"clientId": "no spaces"}, None),
    (RequestCode.ATTACH_SESSION, {}, None),
    (RequestCode.RESUME_SESSION, {"clientId": "a", "session": 0, "generation": 1,
                                  "fds": "ingress"}, {}),
    (RequestCode.CLAIM_QUEUES, {"consumerGroup": "g", "topic": "t"}, {"claims": [5]}),
    (RequestCode.HEART_BEAT, {}, {"clientID": 5}),
    (RequestCode.HEART_BEAT, {}, {"clientID": "a", "consumerDataSet": [{"groupName": "g",
                                  "messageModel": "NEITHER"}]}),
    (RequestCode.GET_ALL_TOPIC_CONFIG, {"count": 0}, None),
    (RequestCode.INVOKE_BROKER_TO_RESET_OFFSET, {"group": "g", "topic": "t",
                                                 "whence": "nowhere"}, None),
]  # fmt: skip


def test_request_that_makes_no_sense_is_answered_and_harms_nobody(shared_broker):
    with BrokerClient(shared_broker, "clumsy") as clumsy:
        where = clumsy.send_queues("t")[0]
        clumsy.heartbeat(consumers={"g": ["t"]})
        for code, fields, body in NONSENSE:
            with pytest.raises(ConfigError):
                clumsy.call(code, fields, body)
        assert clumsy.send(where, b"still here") == 0


def test_entries_that_left_memory_are_read_from_files(broker):
    with BrokerClient(broker, "c") as client:
        where = client.send_queues("cold")[0]
        with pytest.raises(OffsetIllegalError, match="0 to 0"):
            client.call(RequestCode.READ_ENTRIES, {"topic": "cold", "queueId": 0, "queueOffset": 0})
        body = bytes(15_000)
        for _ in range(1800):  # 27 MB: more than memory holds
            client.send(where, body)
        wait_until(lambda: client.reader.hot_min_queue_offset(where.row) > 0)
        answer = client.call(
            RequestCode.READ_ENTRIES,
            {"topic": "cold", "queueId": 0, "queueOffset": 0, "count": 10},
        )
        assert (answer.ext_fields["queueOffset"], answer.ext_fields["count"]) == (0, 10)
        status, messages, next_offset = client.reader.read_entries(answer.body, 0, 10)
        assert (status, next_offset) == (0, 10)
        assert [m.queue_offset for m in messages] == list(range(10))
        in_memory = client.client.invoke(
            Command(RequestCode.READ_ENTRIES, {"topic": "cold", "queueId": 0, "queueOffset": 1799}),
            timeout_s=60.0,
        )
        assert in_memory.code == ResponseCode.PULL_RETRY_IMMEDIATELY
