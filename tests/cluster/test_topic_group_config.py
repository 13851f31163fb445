"""Topics and groups in a real cluster: a setting has its effect, or is refused with the reason."""

from __future__ import annotations

import json
from typing import Any

import pytest

import shmq
from shmq import ConsumeFromWhere, MessageModel
from shmq.errors import ConfigError, PermissionDeniedError, ServiceNotAvailableError
from shmq.subscription import SubscriptionGroupConfig
from shmq.topic import Permission
from tests.support.cluster import wait_for

pytestmark = pytest.mark.cluster

PATIENCE_S = 30.0
BROKER_COUNT = 2


def brokers_sent_to(client: shmq.Client, topic: str, count: int = 40, **options: Any) -> set[str]:
    producer = client.producer()
    return {producer.send(topic, b"x", **options).message_queue.broker_name for _ in range(count)}


# ---- write permission of a broker ----------------------------------------------------------------


def test_producers_leave_a_wiped_broker_and_come_back(cluster, client, admin):
    client.create_topic("wiped", queues=2)
    running = client.producer()
    running.send("wiped", b"x")
    assert brokers_sent_to(client, "wiped") == {"broker-a", "broker-b"}
    assert admin.wipe_write_perm("broker-a") >= 1
    assert brokers_sent_to(client, "wiped") == {"broker-b"}
    for number in range(20):
        where = client.producer().send("wiped", b"x", key=f"key-{number}").message_queue
        assert where.broker_name == "broker-b"
    running.refresh()  # as the client does each 30 s
    assert {running.send("wiped", b"x").message_queue.broker_name for _ in range(9)} == {"broker-b"}
    with client.consumer("wiped", "reads-on") as consumer:  # what is there is read
        assert {queue.broker_name for queue in consumer.assigned} == {"broker-a", "broker-b"}
    assert admin.add_write_perm("broker-a") >= 1
    running.refresh()
    sent = {running.send("wiped", b"x").message_queue.broker_name for _ in range(9)}
    assert sent == {"broker-a", "broker-b"}


def test_order_topic_keeps_its_queues_on_a_wiped_broker(client, admin):
    admin.create_topic("strict", queues=2, order=True)
    places = {
        f"key-{number}": client.producer().send("strict", b"x", key=f"key-{number}").message_queue
        for number in range(20)
    }
    admin.wipe_write_perm("broker-a")
    try:
        for key, place in places.items():
            assert client.producer().send("strict", b"x", key=key).message_queue == place
    finally:
        admin.add_write_perm("broker-a")


def test_send_where_all_brokers_are_wiped_says_what_to_do(client, admin):
    client.create_topic("nowhere", queues=1)
    for name in ("broker-a", "broker-b"):
        admin.wipe_write_perm(name)
    try:
        with pytest.raises(PermissionDeniedError, match="was wiped") as caught:
            client.producer().send("nowhere", b"x")
        assert "add-write" in caught.value.hint
        with pytest.raises((PermissionDeniedError, shmq.ShmqError), match="made-now"):
            client.producer().send("made-now", b"x")
    finally:
        for name in ("broker-a", "broker-b"):
            admin.add_write_perm(name)
    client.producer().send("nowhere", b"x")


def test_unknown_broker_is_not_wiped(admin):
    with pytest.raises(ServiceNotAvailableError, match="no NameServer knows it"):
        admin.wipe_write_perm("broker-z")


# ---- key-value configuration ---------------------------------------------------------------------


def test_kv_values_are_kept_listed_and_forgotten(admin):
    assert admin.kv_put("mine", "k", "v") == ["namesrv-ns0"]
    assert admin.kv_get("mine", "k") == "v"
    assert admin.kv_list("mine") == {"k": "v"}
    admin.kv_delete("mine", "k")
    assert admin.kv_list("mine") == {}
    with pytest.raises(ConfigError, match="no NameServer has such a value"):
        admin.kv_get("mine", "k")


def test_order_configuration_decides_over_which_queues_keys_are_counted(client, admin):
    admin.create_topic("ordered", queues=4, order=True)
    assert admin.kv_get("ORDER_TOPIC_CONFIG", "ordered") == "broker-a:4;broker-b:4"
    assert client.routes.route("ordered").order_topic_conf == "broker-a:4;broker-b:4"
    with pytest.raises(ConfigError, match="wanted broker:queues"):
        admin.kv_put("ORDER_TOPIC_CONFIG", "ordered", "broker-a")
    with pytest.raises(ConfigError, match="queues up to 65535"):
        admin.kv_put("ORDER_TOPIC_CONFIG", "ordered", "broker-a:65536")


# ---- topics --------------------------------------------------------------------------------------


def test_topic_without_read_permission_is_given_up_and_comes_back(client, admin):
    client.create_topic("dark", queues=2)
    with client.consumer("dark", "g-dark") as consumer:
        assert len(consumer.assigned) == 4
        admin.create_topic("dark", perm=Permission.WRITE)
        wait_for(lambda: not consumer.assigned, "the end of its queues")
        admin.create_topic("dark", perm=Permission.READ | Permission.WRITE)
        wait_for(lambda: len(consumer.assigned) == 4, "its queues")


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"cleanup.policy": "COMPACTION"}, "does not compact"),
        ({"queue.type": "BatchCQ"}, "no batch ConsumeQueues"),
        ({"reserve.time": "3600000"}, "fileReservedTime"),
        ({"message.type": "LETTER"}, "no such type"),
        ({"shmq.flush.disk.type": "SOMETIMES"}, "wanted ASYNC_FLUSH or SYNC_FLUSH"),
        ({"shmq.broker.role": "SLAVE"}, "wanted ASYNC_MASTER or SYNC_MASTER"),
        ({"color": "red"}, "wanted cleanup.policy"),
        ({"message.type": None}, "it has no such attribute"),
    ],
)
def test_attribute_that_means_nothing_here_is_refused(admin, attributes, reason):
    admin.create_topic("attributed", queues=1)
    with pytest.raises(ConfigError, match=reason):
        admin.create_topic("attributed", attributes=attributes)


def test_attributes_are_stored_as_rocketmq_writes_them(cluster, admin):
    attributes = {"message.type": "FIFO", "cleanup.policy": "DELETE", "queue.type": "SimpleCQ"}
    admin.create_topic("typed", queues=1, attributes=attributes)
    path = cluster.brokers[0].store_path / "config" / "topics.json"
    stored = json.loads(path.read_text())["topicConfigTable"]["typed"]
    assert stored == {
        "topicName": "typed",
        "readQueueNums": 1,
        "writeQueueNums": 1,
        "perm": 6,
        "topicFilterType": "SINGLE_TAG",
        "topicSysFlag": 0,
        "order": False,
        "attributes": attributes,
    }
    admin.create_topic("typed", attributes={"message.type": None})
    assert "message.type" not in admin.topic("typed")["broker-a"].attributes


def test_inherit_bit_is_the_templates_only(admin):
    with pytest.raises(ConfigError, match="TBW102 only"):
        admin.create_topic("inheriting", queues=1, perm=Permission(7))


# ---- groups --------------------------------------------------------------------------------------


def test_group_is_stored_as_rocketmq_writes_it_and_changed_field_by_field(cluster, admin):
    admin.create_group(SubscriptionGroupConfig(group_name="stored", retry_max_times=3))
    admin.update_group("stored", retry_queue_nums=2, brokers=["broker-a"])
    assert admin.group("stored")["broker-a"].retry_max_times == 3
    assert admin.group("stored")["broker-b"].retry_queue_nums == 1
    assert admin.topic("%RETRY%stored")["broker-a"].write_queue_nums == 2
    path = cluster.brokers[0].store_path / "config" / "subscriptionGroup.json"
    table = json.loads(path.read_text())["subscriptionGroupTable"]
    assert table["stored"] == {
        "groupName": "stored",
        "consumeEnable": True,
        "consumeFromMinEnable": True,
        "consumeBroadcastEnable": True,
        "consumeMessageOrderly": False,
        "retryQueueNums": 2,
        "retryMaxTimes": 3,
        "brokerId": 0,
        "whichBrokerWhenConsumeSlowly": 1,
        "notifyConsumerIdsChangedEnable": True,
        "groupSysFlag": 0,
        "consumeTimeoutMinute": 15,
        "attributes": {},
    }
    with pytest.raises(ConfigError, match="retry_max_time,"):
        admin.update_group("stored", retry_max_time=3)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"broker_id": -1}, "wanted 0 to"),
        ({"which_broker_when_consume_slowly": -1}, "wanted 0 to"),
        ({"group_sys_flag": 1}, "nothing heeds it"),
        ({"attributes": {"priority.factor": "1"}}, "nothing here heeds"),
        ({"retry_queue_nums": 0}, "wanted 1 to"),
    ],
)
def test_group_setting_without_effect_is_refused(admin, changes, reason):
    admin.create_group(SubscriptionGroupConfig(group_name="idle"))
    with pytest.raises(ConfigError, match=reason):
        admin.update_group("idle", **changes)


def test_disabled_group_loses_its_queues_at_once_and_gets_them_back(client, admin):
    client.create_topic("switched", queues=2)
    client.create_topic("other", queues=2)
    with client.consumer("switched", "switch") as consumer:
        assert len(consumer.assigned) == 4
        admin.update_group("switch", consume_enable=False)
        wait_for(lambda: not consumer.assigned, "the end of its queues")
        with pytest.raises(PermissionDeniedError, match="consumeEnable is false"):
            client.consumer("other", "switch")
        admin.update_group("switch", consume_enable=True)
        wait_for(lambda: len(consumer.assigned) == 4, "its queues")


def test_group_that_may_not_broadcast_is_refused(client, admin):
    client.create_topic("broadcast", queues=1)
    admin.create_group(
        SubscriptionGroupConfig(group_name="no-cast", consume_broadcast_enable=False)
    )
    with pytest.raises(PermissionDeniedError, match="consumeBroadcastEnable is false"):
        client.consumer("broadcast", "no-cast", model=MessageModel.BROADCASTING)


def test_group_that_may_not_start_at_the_first_message_starts_behind_the_last(client, admin):
    client.create_topic("long", queues=1)
    client.producer().send_many("long", [b"old"] * 5)
    admin.create_group(SubscriptionGroupConfig(group_name="new", consume_from_min_enable=False))
    first = ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET
    with client.consumer("long", "new", from_where=first) as consumer:
        wait_for(lambda: len(consumer.assigned) == 2, "its queues")
        client.producer().send("long", b"now")
        message = consumer.try_next(PATIENCE_S)
        assert message is not None
        assert bytes(message) == b"now"
