"""Groups of a real broker: who is a member, who has which queue, what their progress is worth."""

import queue
import signal

import orjson
import pytest

from shmq.clock import SYSTEM_CLOCK
from shmq.errors import (
    ClosedError,
    ConfigError,
    FencedError,
    IllegalGroupError,
    OffsetIllegalError,
    OwnerError,
    PermissionDeniedError,
    ShmqError,
    SubscriptionGroupNotExistError,
)
from shmq.remoting.codes import RequestCode, ResponseCode
from shmq.remoting.command import Command
from tests.support.broker_process import BrokerClient, BrokerProcess, ClientProcess
from tests.support.store_process import wait_until

GROUP = "readers"
TOPIC = "orders"


@pytest.fixture
def a(broker):
    with BrokerClient(broker, "client-a") as client:
        yield client


@pytest.fixture
def b(broker):
    with BrokerClient(broker, "client-b") as client:
        yield client


def fill(client: BrokerClient, count: int) -> None:
    for where in client.send_queues(TOPIC):
        for number in range(count):
            client.send(where, b"%d" % number)


# ---- members -------------------------------------------------------------------------------------


def test_members_are_told_at_once_when_one_comes_and_goes(a, b):
    a.heartbeat(consumers={GROUP: [TOPIC]})
    assert a.notice(RequestCode.NOTIFY_CONSUMER_IDS_CHANGED).ext_fields == {"consumerGroup": GROUP}
    b.heartbeat(consumers={GROUP: [TOPIC]})
    a.notice(RequestCode.NOTIFY_CONSUMER_IDS_CHANGED)
    assert a.members(GROUP) == b.members(GROUP) == ["client-a", "client-b"]
    b.heartbeat(consumers={})
    a.notice(RequestCode.NOTIFY_CONSUMER_IDS_CHANGED)
    assert a.members(GROUP) == ["client-a"]
    a.call(RequestCode.UNREGISTER_CLIENT, {"clientID": "client-a", "consumerGroup": GROUP})
    assert a.members(GROUP) == []


def test_member_that_says_the_same_again_disturbs_nobody(a, b):
    a.heartbeat(consumers={GROUP: [TOPIC]})
    a.notice(RequestCode.NOTIFY_CONSUMER_IDS_CHANGED)
    b.heartbeat(consumers={GROUP: [TOPIC]})
    a.notice(RequestCode.NOTIFY_CONSUMER_IDS_CHANGED)
    b.heartbeat(consumers={GROUP: [TOPIC]})
    b.heartbeat(consumers={GROUP: [TOPIC], "mine": [TOPIC]})
    a.members(GROUP)  # answered behind whatever b's heartbeats set off
    with pytest.raises(queue.Empty):
        a.notices.get(timeout=0.05)


def test_killed_member_is_gone_at_once(broker, a):
    a.heartbeat(consumers={GROUP: [TOPIC]})
    a.notice(RequestCode.NOTIFY_CONSUMER_IDS_CHANGED)
    with ClientProcess(broker, "victim") as victim:
        victim.run("heartbeat", {GROUP: [TOPIC]})
        a.notice(RequestCode.NOTIFY_CONSUMER_IDS_CHANGED)
        assert a.members(GROUP) == ["client-a", "victim"]
        victim.kill()
        a.notice(RequestCode.NOTIFY_CONSUMER_IDS_CHANGED)
        assert a.members(GROUP) == ["client-a"]
        wait_until(lambda: broker.status()["sessionCount"] == 1)


def test_silent_client_is_ended_when_its_time_is_over(tmp_path, cluster_name):
    with (
        BrokerProcess(
            tmp_path, cluster_name, client_expiry_ms="4000", client_scan_interval_ms="100"
        ) as broker,
        ClientProcess(broker, "stopped") as stopped,
        BrokerClient(broker, "speaker") as speaker,
    ):
        speaker.heartbeat(consumers={GROUP: [TOPIC]})
        stopped.run("heartbeat", {GROUP: [TOPIC]})
        stopped.process.send_signal(signal.SIGSTOP)

        def only_speaker() -> bool:
            speaker.heartbeat(consumers={GROUP: [TOPIC]})
            return speaker.members(GROUP) == ["speaker"]

        wait_until(only_speaker)
        assert "no heartbeat for 4000 ms" in broker.log


def test_client_id_belongs_to_one_process(broker, a):
    a.heartbeat()
    with ClientProcess(broker, "other") as other:
        other.run("heartbeat", {})
        with BrokerClient(broker, "other", attach=False) as thief:
            with pytest.raises(OwnerError, match="unique"):
                thief.attach()
            with pytest.raises(OwnerError):
                thief.heartbeat()
        assert other.run("put", "t", ["alive"]) == 1


def test_client_that_connects_anew_replaces_its_older_connection(broker, a):
    a.heartbeat(consumers={GROUP: [TOPIC]})
    with BrokerClient(broker, "client-a") as again:
        assert again.members(GROUP) == ["client-a"]
        with pytest.raises(ClosedError, match="connected anew"):
            a.members(GROUP)


def test_group_makes_its_retry_topic(a):
    a.heartbeat(consumers={GROUP: [TOPIC]})
    config = a.json(RequestCode.GET_TOPIC_CONFIG, {"topic": f"%RETRY%{GROUP}"})
    assert (config["readQueueNums"], config["perm"]) == (1, 6)
    group = a.json(RequestCode.GET_SUBSCRIPTIONGROUP_CONFIG, {"group": GROUP})
    assert group["retryMaxTimes"] == 16


def test_group_that_may_not_consume_is_refused(broker, a):
    a.call(
        RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP,
        body={"groupName": GROUP, "consumeEnable": False},
    )
    with pytest.raises(PermissionDeniedError, match="consumeEnable"):
        a.heartbeat(consumers={GROUP: [TOPIC]})
    with pytest.raises(IllegalGroupError):
        a.heartbeat(consumers={"no spaces": [TOPIC]})
    a.call(
        RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP,
        body={"groupName": GROUP, "consumeBroadcastEnable": False},
    )
    with pytest.raises(PermissionDeniedError, match="consumeBroadcastEnable"):
        a.heartbeat(consumerDataSet=[{"groupName": GROUP, "messageModel": "BROADCASTING"}])


def test_unknown_group_is_refused_where_groups_are_made_by_hand(tmp_path, cluster_name):
    with (
        BrokerProcess(tmp_path, cluster_name, auto_create_subscription_group="false") as broker,
        BrokerClient(broker, "a") as client,
    ):
        with pytest.raises(SubscriptionGroupNotExistError):
            client.heartbeat(consumers={GROUP: [TOPIC]})
        client.call(RequestCode.UPDATE_AND_CREATE_TOPIC, {"topic": TOPIC})
        offset = {"consumerGroup": GROUP, "topic": TOPIC, "queueId": 0, "commitOffset": 0}
        with pytest.raises(SubscriptionGroupNotExistError):
            client.call(RequestCode.UPDATE_CONSUMER_OFFSET, offset)
        client.call(RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, body={"groupName": GROUP})
        client.heartbeat(consumers={GROUP: [TOPIC]})


def test_connections_of_a_group_are_listed(a):
    nobody = a.client.invoke(
        Command(RequestCode.GET_CONSUMER_CONNECTION_LIST, {"consumerGroup": GROUP}), timeout_s=60.0
    )
    assert nobody.code == ResponseCode.CONSUMER_NOT_ONLINE
    a.heartbeat(consumers={GROUP: [TOPIC]}, producerDataSet=[{"groupName": "writers"}])
    shown = a.json(RequestCode.GET_CONSUMER_CONNECTION_LIST, {"consumerGroup": GROUP})
    assert [c["clientId"] for c in shown["connectionSet"]] == ["client-a"]
    assert shown["subscriptionTable"][TOPIC]["subString"] == "*"
    writers = a.json(RequestCode.GET_PRODUCER_CONNECTION_LIST, {"producerGroup": "writers"})
    assert [c["clientId"] for c in writers["connectionSet"]] == ["client-a"]


def test_groups_of_a_client_are_counted_whether_told_at_once_or_by_and_by(a):
    def say(*groups: str, **more: bool) -> None:
        a.heartbeat(producerDataSet=[{"groupName": group} for group in groups], **more)

    say(*(f"p{number}" for number in range(1023)))
    say("last", isPart=True)
    say("p0", "last", isPart=True)
    with pytest.raises(ConfigError, match="1025 groups of one client, wanted at most 1024"):
        say("p0", "more", isPart=True)
    with pytest.raises(ConfigError, match="2000 groups"):
        say(*(f"q{number}" for number in range(2000)))
    a.heartbeat(consumers={GROUP: [TOPIC]})  # all of it again: one group
    a.heartbeat(consumers={"other": [TOPIC]}, isPart=True)
    assert a.members(GROUP) == a.members("other") == ["client-a"]


# ---- claims and progress -------------------------------------------------------------------------


def test_progress_counts_as_soon_as_it_is_asked_for(a):
    fill(a, 10)
    a.heartbeat(consumers={GROUP: [TOPIC]})
    claims = a.claim(GROUP, TOPIC, {0: 0, 1: 1})
    assert [claims[q]["consumerOffset"] for q in (0, 1)] == [0, 0]
    assert claims[0]["visibleMax"] == 10
    a.reader.report(0, 7)
    assert a.consumer_offset(GROUP, TOPIC, 0) == 7
    assert a.consumer_offset(GROUP, TOPIC, 1) == 0


def test_claim_is_taken_over_where_its_owner_stood(a, b):
    fill(a, 10)
    for client in (a, b):
        client.heartbeat(consumers={GROUP: [TOPIC]})
    old = a.claim(GROUP, TOPIC, {0: 0})
    a.reader.report(0, 4)
    new = b.claim(GROUP, TOPIC, {0: 5})
    assert new[0]["consumerOffset"] == 4
    assert new[0]["claim"] > old[0]["claim"]
    notice = a.notice(RequestCode.NOTIFY_CLAIMS_REVOKED)
    assert notice.ext_fields == {"consumerGroup": GROUP, "topic": TOPIC}
    assert orjson.loads(notice.body) == {
        "claims": [{"queueId": 0, "slot": 0, "claim": old[0]["claim"]}]
    }
    a.reader.report(0, 9)  # too late: nobody looks there any more
    b.reader.report(5, 6)
    assert b.consumer_offset(GROUP, TOPIC, 0) == 6


def test_stale_release_takes_nothing_from_the_new_owner(a, b):
    fill(a, 10)
    for client in (a, b):
        client.heartbeat(consumers={GROUP: [TOPIC]})
    old = a.claim(GROUP, TOPIC, {0: 0})[0]["claim"]
    b.claim(GROUP, TOPIC, {0: 0})
    b.reader.report(0, 3)
    body = {"claims": [{"queueId": 0, "claim": old}]}
    fields = {"consumerGroup": GROUP, "topic": TOPIC}
    assert a.json(RequestCode.RELEASE_QUEUES, fields, body) == {"released": []}
    assert b.consumer_offset(GROUP, TOPIC, 0) == 3


def test_release_gives_the_last_progress(a):
    fill(a, 10)
    a.heartbeat(consumers={GROUP: [TOPIC]})
    claim = a.claim(GROUP, TOPIC, {2: 9})[2]["claim"]
    a.reader.report(9, 8)
    body = {"claims": [{"queueId": 2, "claim": claim}]}
    fields = {"consumerGroup": GROUP, "topic": TOPIC}
    released = a.json(RequestCode.RELEASE_QUEUES, fields, body)
    assert released == {"released": [{"queueId": 2, "consumerOffset": 8}]}
    a.claim(GROUP, TOPIC, {3: 9})  # the slot is free again


def test_killed_consumer_loses_no_progress_that_it_reported(broker, a):
    fill(a, 10)
    with ClientProcess(broker, "victim") as victim:
        victim.run("heartbeat", {GROUP: [TOPIC]})
        victim.run("claim", GROUP, TOPIC, {0: 0})
        victim.run("report", 0, 5)
        victim.kill()
    wait_until(lambda: a.members(GROUP) == [])
    a.heartbeat(consumers={GROUP: [TOPIC]})
    assert a.claim(GROUP, TOPIC, {0: 0})[0]["consumerOffset"] == 5


def test_report_behind_the_last_message_does_not_count(broker, a):
    fill(a, 10)
    a.heartbeat(consumers={GROUP: [TOPIC]})
    a.claim(GROUP, TOPIC, {0: 0})
    a.reader.report(0, 6)
    assert a.consumer_offset(GROUP, TOPIC, 0) == 6
    a.reader.report(0, 11)
    assert a.consumer_offset(GROUP, TOPIC, 0) == 6
    a.reader.report(0, (1 << 64) - 1)
    assert a.consumer_offset(GROUP, TOPIC, 0) == 6
    assert "progress out of range" in broker.log


def test_slot_has_one_claim(a):
    fill(a, 1)
    a.heartbeat(consumers={GROUP: [TOPIC]})
    a.claim(GROUP, TOPIC, {0: 0})
    a.claim(GROUP, TOPIC, {0: 0})  # the same queue: anew
    with pytest.raises(ConfigError, match="release that first"):
        a.claim(GROUP, TOPIC, {1: 0})
    with pytest.raises(ConfigError, match="slot"):
        a.claim(GROUP, TOPIC, {1: 1, 2: 1})
    with pytest.raises(ConfigError, match="slot"):
        a.claim(GROUP, TOPIC, {1: a.fields["claimCapacity"]})
    with pytest.raises(ShmqError, match="queue 4"):
        a.claim(GROUP, TOPIC, {4: 4})


def test_new_group_begins_where_it_says_and_stays_there(a, b):
    fill(a, 10)
    a.heartbeat(consumers={"first": [TOPIC], "last": [TOPIC], "time": [TOPIC]})
    assert a.claim("first", TOPIC, {0: 0})[0]["consumerOffset"] == 0
    where = "CONSUME_FROM_LAST_OFFSET"
    assert a.claim("last", TOPIC, {0: 1}, consumeFromWhere=where)[0]["consumerOffset"] == 10
    fill(a, 5)
    b.heartbeat(consumers={"last": [TOPIC]})
    taken = b.claim("last", TOPIC, {0: 0}, consumeFromWhere=where)
    assert taken[0]["consumerOffset"] == 10  # not 15: the first member had it


def test_group_begins_at_a_time(a):
    fill(a, 3)
    where = a.read_queues(TOPIC)[0]
    wait_until(lambda: _store_time(a, where, 2) < SYSTEM_CLOCK.wall_ms())
    fill(a, 3)
    messages = a.reader.read(where.row, where.generation, 0, 10)[1]
    times = [m.store_timestamp for m in messages]
    assert times[2] < times[3]
    a.heartbeat(consumers={GROUP: [TOPIC]})
    claim = a.claim(
        GROUP,
        TOPIC,
        {0: 0},
        consumeFromWhere="CONSUME_FROM_TIMESTAMP",
        consumeTimestamp=times[3],
    )
    assert claim[0]["consumerOffset"] == 3
    for timestamp, wanted in ((0, 0), (times[2] + 1, 3), (times[-1] + 1, 6)):
        fields = {"topic": TOPIC, "queueId": 0, "timestamp": timestamp}
        found = a.call(RequestCode.SEARCH_OFFSET_BY_TIMESTAMP, fields).ext_fields["offset"]
        assert found == wanted


def _store_time(client: BrokerClient, where, queue_offset: int) -> int:
    _, messages, _ = client.reader.read(where.row, where.generation, queue_offset, 1)
    return messages[0].store_timestamp


# ---- offsets by request --------------------------------------------------------------------------


def test_offset_is_set_and_asked_for(a, b):
    fill(a, 10)
    fields = {"consumerGroup": GROUP, "topic": TOPIC, "queueId": 1}
    unknown = a.client.invoke(Command(RequestCode.QUERY_CONSUMER_OFFSET, fields), timeout_s=60.0)
    assert unknown.code == ResponseCode.QUERY_NOT_FOUND
    a.call(RequestCode.UPDATE_CONSUMER_OFFSET, {**fields, "commitOffset": 10})  # makes the group
    assert a.consumer_offset(GROUP, TOPIC, 1) == 10
    with pytest.raises(OffsetIllegalError, match="ends at 10"):
        a.call(RequestCode.UPDATE_CONSUMER_OFFSET, {**fields, "commitOffset": 11})
    a.claim(GROUP, TOPIC, {1: 0})
    with pytest.raises(FencedError, match="client-a"):
        b.call(RequestCode.UPDATE_CONSUMER_OFFSET, {**fields, "commitOffset": 2})
    a.call(RequestCode.UPDATE_CONSUMER_OFFSET, {**fields, "commitOffset": 4})


def test_bounds_of_queues_are_told(a):
    fill(a, 3)
    fields = {"topic": TOPIC, "queueId": 0}
    assert a.call(RequestCode.GET_MAX_OFFSET, fields).ext_fields == {"offset": 3}
    assert a.call(RequestCode.GET_MIN_OFFSET, fields).ext_fields == {"offset": 0}
    stats = a.json(RequestCode.GET_TOPIC_STATS_INFO, {"topic": TOPIC})["queues"]
    where = a.read_queues(TOPIC)[0]
    assert stats[0] == {
        "queueId": 0,
        "minOffset": 0,
        "maxOffset": 3,
        "lastUpdateTimestamp": _store_time(a, where, 2),
    }


def test_lag_is_told_per_queue(a):
    fill(a, 10)
    a.heartbeat(consumers={GROUP: [TOPIC]})
    a.claim(GROUP, TOPIC, {0: 0, 1: 1})
    a.reader.report(0, 7)
    shown = a.json(RequestCode.GET_CONSUME_STATS, {"consumerGroup": GROUP})["queues"]
    by_queue = {q["queueId"]: q for q in shown if q["topic"] == TOPIC}
    assert [by_queue[q]["lag"] for q in range(4)] == [3, 10, 10, 10]
    assert by_queue[0]["clientId"] == "client-a"
    assert by_queue[3]["consumerOffset"] == -1
    where = a.read_queues(TOPIC)[0]
    assert by_queue[0]["lastTimestamp"] == _store_time(a, where, 6)


def test_reset_by_hand_ends_claims_and_counts(a, b):
    fill(a, 10)
    a.heartbeat(consumers={GROUP: [TOPIC]})
    a.claim(GROUP, TOPIC, {0: 0, 1: 1})
    a.reader.report(0, 9)
    fields = {"group": GROUP, "topic": TOPIC, "whence": "offset", "offset": 2, "queueId": 0}
    table = b.json(RequestCode.INVOKE_BROKER_TO_RESET_OFFSET, fields)["offsetTable"]
    assert table == [{"queueId": 0, "offset": 2}]
    notice = a.notice(RequestCode.RESET_CONSUMER_CLIENT_OFFSET)
    assert notice.ext_fields == {"group": GROUP, "topic": TOPIC}
    assert orjson.loads(notice.body)["offsetTable"] == table
    a.reader.report(0, 10)  # under the claim that the reset ended
    assert a.consumer_offset(GROUP, TOPIC, 0) == 2
    assert a.claim(GROUP, TOPIC, {0: 0})[0]["consumerOffset"] == 2
    for whence, wanted in (("last", 10), ("first", 0)):
        fields = {"group": GROUP, "topic": TOPIC, "whence": whence}
        table = b.json(RequestCode.INVOKE_BROKER_TO_RESET_OFFSET, fields)["offsetTable"]
        assert table == [{"queueId": q, "offset": wanted} for q in range(4)]


def test_deleted_group_has_no_members_claims_or_offsets(a, b):
    fill(a, 10)
    a.heartbeat(consumers={GROUP: [TOPIC]})
    a.claim(GROUP, TOPIC, {0: 0})
    a.reader.report(0, 9)
    b.call(RequestCode.DELETE_SUBSCRIPTIONGROUP, {"groupName": GROUP, "cleanOffset": True})
    a.notice(RequestCode.NOTIFY_CLAIMS_REVOKED)
    with pytest.raises(SubscriptionGroupNotExistError):
        a.claim(GROUP, TOPIC, {0: 0})
    a.heartbeat(consumers={GROUP: [TOPIC]})
    assert a.claim(GROUP, TOPIC, {0: 0})[0]["consumerOffset"] == 0


@pytest.mark.parametrize("nums", [0, -1, 65_536, 2**31 - 1])
def test_group_whose_retry_topic_nobody_could_make_is_refused(shared_broker, nums):
    body = {"groupName": "greedy", "retryQueueNums": nums}
    with BrokerClient(shared_broker, "client") as client:
        with pytest.raises(ConfigError, match=f"retryQueueNums = {nums}, wanted 1 to 65535"):
            client.call(RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, body=body)
        with pytest.raises(SubscriptionGroupNotExistError):
            client.call(RequestCode.GET_SUBSCRIPTIONGROUP_CONFIG, {"group": "greedy"})
