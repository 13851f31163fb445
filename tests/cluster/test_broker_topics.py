"""Topics of a real broker: made, grown, shrunk, deleted, and found again by a successor."""

import orjson
import pytest

from shmq.core import core
from shmq.errors import ConfigError, IllegalTopicError, TopicNotExistError
from shmq.remoting.codes import RequestCode
from tests.support.broker_process import BrokerClient, BrokerProcess
from tests.support.store_process import wait_until

GROUP = "readers"
TOPIC = "orders"
NOT_WRITABLE = core.STATUS["NOT_WRITABLE"][0]


@pytest.fixture
def client(broker):
    with BrokerClient(broker, "client") as made:
        yield made


def update(client: BrokerClient, **fields) -> dict:
    return client.json(RequestCode.UPDATE_AND_CREATE_TOPIC, {"topic": TOPIC, **fields})


def topics_on_disk(broker: BrokerProcess) -> dict:
    return orjson.loads((broker.store_path / "config" / "topics.json").read_bytes())


def test_topic_is_made_with_what_it_was_given(broker, client):
    made = update(
        client,
        readQueueNums=6,
        writeQueueNums=3,
        perm=6,
        order=True,
        attributes="+message.type=FIFO,+shmq.flush.disk.type=SYNC_FLUSH",
    )
    assert made == client.json(RequestCode.GET_TOPIC_CONFIG, {"topic": TOPIC})
    assert made == topics_on_disk(broker)["topicConfigTable"][TOPIC]
    assert made["attributes"] == {"message.type": "FIFO", "shmq.flush.disk.type": "SYNC_FLUSH"}
    assert (made["readQueueNums"], made["writeQueueNums"], made["order"]) == (6, 3, True)
    changed = update(client, attributes="-message.type")
    assert changed["attributes"] == {"shmq.flush.disk.type": "SYNC_FLUSH"}
    assert changed["readQueueNums"] == 6


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"topic": "TBW102"}, IllegalTopicError),
        ({"topic": "broker-a"}, IllegalTopicError),
        ({"topic": "rmq_sys_x"}, IllegalTopicError),
        ({"topic": "no spaces"}, IllegalTopicError),
        ({"readQueueNums": 0}, ConfigError),
        ({"readQueueNums": 2, "writeQueueNums": 3}, ConfigError),
        ({"perm": 8}, ConfigError),
        ({"attributes": "message.type=FIFO"}, ConfigError),
        ({"attributes": "+shmq.flush.disk.type=SOMETIMES"}, ConfigError),
    ],
)
def test_topic_that_makes_no_sense_is_refused(shared_broker, fields, error):
    with BrokerClient(shared_broker, "client") as client, pytest.raises(error):
        update(client, **fields)
    assert TOPIC not in topics_on_disk(shared_broker)["topicConfigTable"]


def test_topic_grows_live(client):
    update(client, readQueueNums=1, writeQueueNums=1)
    (first,) = client.send_queues(TOPIC)
    client.send(first, b"one")
    update(client, readQueueNums=3, writeQueueNums=3)
    notice = client.notice(RequestCode.NOTIFY_TOPIC_CHANGED)
    assert notice.ext_fields == {"topic": TOPIC}
    queues = client.send_queues(TOPIC)
    assert queues[0] == first
    for where in queues:
        client.send(where, b"two")
    assert [q.facts["maxOffset"] for q in client.read_queues(TOPIC)] == [2, 1, 1]


def test_topic_shrinks_write_queues_first_then_read_queues_once_drained(client):
    update(client, readQueueNums=3, writeQueueNums=3)
    queues = client.send_queues(TOPIC)
    for where in queues:
        client.send(where, b"x")
    client.heartbeat(consumers={GROUP: [TOPIC]})
    client.claim(GROUP, TOPIC, {0: 0, 1: 1, 2: 2})
    with pytest.raises(ConfigError, match="writeQueueNums"):
        update(client, readQueueNums=1)
    update(client, writeQueueNums=1)
    assert [q.queue_id for q in client.send_queues(TOPIC)] == [0]
    for where, wanted in zip(queues, (0, NOT_WRITABLE, NOT_WRITABLE), strict=True):
        status, *_ = client.lanes[0].send(where.row, where.generation, b"y")
        assert status == wanted
    assert len(client.read_queues(TOPIC)) == 3
    with pytest.raises(ConfigError, match=f"group {GROUP} has 1 messages left in queue 1"):
        update(client, readQueueNums=1)
    for slot in (1, 2):
        client.reader.report(slot, 1)
    update(client, readQueueNums=1)
    assert [q.queue_id for q in client.read_queues(TOPIC)] == [0]
    with pytest.raises(TopicNotExistError, match="queue 1"):
        client.claim(GROUP, TOPIC, {1: 1})
    # Grown again, a queue goes on where it was.
    update(client, readQueueNums=2, writeQueueNums=2)
    again = client.send_queues(TOPIC)[1]
    assert client.send(again, b"z") == 1


def test_undrained_queue_is_dropped_only_by_force(client):
    update(client, readQueueNums=2, writeQueueNums=2)
    for where in client.send_queues(TOPIC):
        client.send(where, b"x")
    client.heartbeat(consumers={GROUP: [TOPIC]})
    update(client, writeQueueNums=1)
    with pytest.raises(ConfigError, match="left in queue 1"):
        update(client, readQueueNums=1)
    update(client, readQueueNums=1, isForce=True)
    assert len(client.read_queues(TOPIC)) == 1


def test_permission_is_taken_and_given_back_live(client):
    where = client.send_queues(TOPIC)[0]
    client.send(where, b"one")
    update(client, perm=4)
    status, *_ = client.lanes[0].send(where.row, where.generation, b"refused")
    assert status == NOT_WRITABLE
    update(client, perm=6)
    assert client.send(where, b"two") == 1


def test_deleted_topic_leaves_no_handle_no_claim_no_offset(broker, client):
    where = client.send_queues(TOPIC)[0]
    client.send(where, b"old")
    client.heartbeat(consumers={GROUP: [TOPIC]})
    client.claim(GROUP, TOPIC, {0: 0})
    client.reader.report(0, 1)
    client.call(RequestCode.DELETE_TOPIC_IN_BROKER, {"topic": TOPIC})
    client.notice(RequestCode.NOTIFY_TOPIC_CHANGED)
    client.notice(RequestCode.NOTIFY_CLAIMS_REVOKED)
    for code in (RequestCode.GET_TOPIC_QUEUES, RequestCode.GET_TOPIC_CONFIG):
        with pytest.raises(TopicNotExistError):
            client.call(code, {"topic": TOPIC})
    status, *_ = client.lanes[0].send(where.row, where.generation, b"lost")
    assert status in (core.STATUS["NO_TOPIC"][0], core.STATUS["NOT_GRANTED"][0])
    # The row is another topic's now, and the old grant is worth nothing there, whatever handle
    # it guesses.
    with BrokerClient(broker, "other") as other:
        taken = {q.row: q for q in other.send_queues("other")}[where.row]
        status, *_ = client.lanes[0].send(taken.row, taken.generation, b"stolen")
        assert status == core.STATUS["NOT_GRANTED"][0]


def test_queue_offsets_are_never_given_out_twice(broker, client):
    """Made again after its deletion, a topic goes on behind what the log still holds of it: also
    when the log is read anew."""
    where = client.send_queues(TOPIC)[0]
    for _ in range(5):
        client.send(where, b"old")
    client.call(RequestCode.DELETE_TOPIC_IN_BROKER, {"topic": TOPIC})
    where = client.send_queues(TOPIC)[0]
    assert client.send(where, b"new") == 5
    (queue, *_) = client.read_queues(TOPIC)
    assert (queue.facts["minOffset"], queue.facts["maxOffset"]) == (5, 6)
    client.call(RequestCode.DELETE_TOPIC_IN_BROKER, {"topic": TOPIC})
    client.close()
    wait_until(lambda: broker.status()["sessionCount"] == 0)
    broker.stop()
    broker.restart()
    with BrokerClient(broker, "later") as later:
        with pytest.raises(TopicNotExistError):
            later.read_queues(TOPIC)
        where = later.send_queues(TOPIC)[0]
        assert later.send(where, b"newest") == 6
    wait_until(lambda: broker.status()["sessionCount"] == 0)
    broker.stop()
    broker.restart()
    with BrokerClient(broker, "last") as last:
        (queue, *_) = last.read_queues(TOPIC)
        assert (queue.facts["minOffset"], queue.facts["maxOffset"]) == (6, 7)
        assert last.bodies(queue, 6) == [b"newest"]


@pytest.mark.crash
def test_deleted_topic_stays_deleted_after_a_death(broker, client):
    where = client.send_queues(TOPIC)[0]
    client.send(where, b"old")
    client.call(RequestCode.DELETE_TOPIC_IN_BROKER, {"topic": TOPIC})
    broker.kill()
    broker.restart()
    client.resume(broker, queues=[])
    with pytest.raises(TopicNotExistError):
        client.read_queues(TOPIC)
    assert client.send(client.send_queues(TOPIC)[0], b"new") == 1


@pytest.mark.crash
def test_topics_and_groups_outlive_a_death(broker, client):
    for number in range(20):
        client.create_topic(f"t{number}", number + 1)
    client.heartbeat(consumers={GROUP: [TOPIC]})
    broker.kill()
    broker.restart()
    with BrokerClient(broker, "later") as later:
        for number in range(20):
            assert len(later.send_queues(f"t{number}")) == number + 1
        table = later.json(RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG)
        assert GROUP in table["subscriptionGroupTable"]


def test_lists_come_in_pages(client):
    for number in range(5):
        client.create_topic(f"t{number}", 1)
    names: list[str] = []
    is_last = False
    while not is_last:
        answer = client.call(
            RequestCode.GET_ALL_TOPIC_CONFIG, {"after": names[-1] if names else "", "count": 2}
        )
        is_last = answer.ext_fields["isLast"]
        names += orjson.loads(answer.body)["topicConfigTable"]
    assert names == ["SCHEDULE_TOPIC_XXXX", "TBW102", "t0", "t1", "t2", "t3", "t4"]


@pytest.mark.crash
def test_topic_that_only_the_log_knows_can_be_read(broker, client):
    where = client.send_queues(TOPIC)[1]
    client.send(where, b"kept")
    client.close()
    wait_until(lambda: broker.status()["sessionCount"] == 0)
    broker.stop()
    for path in (broker.store_path / "config").glob("topics.json*"):
        path.unlink()
    broker.restart()
    with BrokerClient(broker, "later") as later:
        queues = later.read_queues(TOPIC)
        assert [q.facts["maxOffset"] for q in queues] == [0, 1]
        assert later.bodies(queues[1]) == [b"kept"]
        assert "topic without configuration" in broker.log


def test_level_of_a_topic_is_its_own(client):
    update(client, attributes="+shmq.flush.disk.type=SYNC_FLUSH")
    where = client.send_queues(TOPIC)[0]
    before = client.broker.status()["flushedPosition"]
    client.send(where, b"safe")
    assert client.broker.status()["flushedPosition"] > before


def test_runtime_info_tells_what_goes_on(client):
    client.send(client.send_queues(TOPIC)[0], b"x")
    table = client.json(RequestCode.GET_BROKER_RUNTIME_INFO)["table"]
    assert table["putMessageTimesTotal"] == "1"
    assert table["sessionCount"] == "1"
    assert int(table["commitLogMaxOffset"]) > 0
    status = client.broker.status()
    assert (status["phase"], status["isHealthy"], status["problem"]) == ("RUNNING", True, None)
    assert status["pid"] == client.broker.pid
