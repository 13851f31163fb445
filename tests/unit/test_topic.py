"""Topics: names, JSON as RocketMQ writes it, and what we do not know kept whole."""

import orjson
import pytest

from shmq.errors import ConfigError, IllegalTopicError
from shmq.status import BrokerRole, FlushDiskType
from shmq.topic import (
    BROKER_ROLE_ATTRIBUTE,
    FLUSH_DISK_TYPE_ATTRIBUTE,
    BrokerData,
    Permission,
    QueueData,
    TopicConfig,
    TopicRouteData,
    check_sendable_topic,
    check_topic,
    dlq_topic,
    is_system_topic,
    retry_topic,
)


@pytest.mark.parametrize("name", ["a", "A-b_c|9%", "t" * 127, "%RETRY%" + "g" * 120, "%DLQ%g"])
def test_legal_topic_passes(name: str) -> None:
    check_topic(name)


@pytest.mark.parametrize(
    "name", ["", "t" * 128, "a b", "a/b", "../x", "a\0", "ä", "a\n", "%RETRY%" + "g" * 249]
)
def test_illegal_topic_is_refused(name: str) -> None:
    with pytest.raises(IllegalTopicError, match="^topic "):
        check_topic(name)


@pytest.mark.parametrize("name", ["SCHEDULE_TOPIC_XXXX", "RMQ_SYS_TRANS_HALF_TOPIC"])
def test_topic_of_a_service_is_not_sendable(name: str) -> None:
    check_topic(name)
    with pytest.raises(IllegalTopicError, match="only the broker's own services") as refused:
        check_sendable_topic(name)
    assert refused.value.hint == "choose another name"


def test_system_topics_are_known() -> None:
    assert is_system_topic("TBW102")
    assert is_system_topic("rmq_sys_REVIVE_LOG_c")
    assert not is_system_topic("orders")


def test_topics_of_a_group() -> None:
    assert (retry_topic("g"), dlq_topic("g")) == ("%RETRY%g", "%DLQ%g")


def test_topic_of_a_real_broker_round_trips_with_keys_we_do_not_know() -> None:
    written = orjson.loads(
        b'{"attributes":{"message.type":"FIFO"},"order":true,"perm":6,"readQueueNums":4,'
        b'"topicFilterType":"SINGLE_TAG","topicName":"orders","topicSysFlag":0,'
        b'"writeQueueNums":3,"newerKey":{"a":[1]}}'
    )
    config = TopicConfig.from_dict(written)
    assert config.write_queue_nums == 3
    assert config.perm == Permission.READ | Permission.WRITE
    assert config.to_dict() == written
    assert TopicConfig.from_dict(config.to_dict()) == config


def test_missing_and_null_keys_of_old_brokers_have_defaults() -> None:
    config = TopicConfig.from_dict({"topicName": "t", "attributes": None})
    assert (config.read_queue_nums, config.perm, config.attributes) == (8, 6, {})


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "topic: topicName: missing, wanted a text"),
        ({"topicName": "t", "perm": "6"}, "topic t: perm: '6', wanted a whole number"),
        ({"topicName": "t", "order": 1}, "topic t: order: 1, wanted true or false"),
        ({"topicName": "t", "perm": True}, "topic t: perm: True, wanted a whole number"),
        ({"topicName": "t", "attributes": {"a": 1}}, "wanted an object of texts"),
    ],
)
def test_topic_of_another_shape_is_refused_by_key(data: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TopicConfig.from_dict(data)


def test_topic_says_when_its_messages_count_as_stored() -> None:
    config = TopicConfig(topic_name="t")
    assert config.flush_disk_type is None
    sync = TopicConfig(topic_name="t", attributes={FLUSH_DISK_TYPE_ATTRIBUTE: "SYNC_FLUSH"})
    assert sync.flush_disk_type is FlushDiskType.SYNC_FLUSH
    wrong = TopicConfig(topic_name="t", attributes={FLUSH_DISK_TYPE_ATTRIBUTE: "NEVER"})
    with pytest.raises(ConfigError, match="'NEVER', wanted ASYNC_FLUSH or SYNC_FLUSH"):
        _ = wrong.flush_disk_type


def test_topic_says_whether_its_messages_wait_for_slaves() -> None:
    def role(value: str) -> BrokerRole | None:
        return TopicConfig(topic_name="t", attributes={BROKER_ROLE_ATTRIBUTE: value}).broker_role

    assert TopicConfig(topic_name="t").broker_role is None
    assert role("SYNC_MASTER") is BrokerRole.SYNC_MASTER
    assert role("ASYNC_MASTER") is BrokerRole.ASYNC_MASTER
    with pytest.raises(ConfigError, match="'SLAVE', wanted ASYNC_MASTER or SYNC_MASTER"):
        role("SLAVE")


def test_route_round_trips_with_quoted_broker_ids() -> None:
    route = TopicRouteData(
        queue_datas=(QueueData(broker_name="a", read_queue_nums=4, write_queue_nums=4),),
        broker_datas=(
            BrokerData(cluster="c", broker_name="a", broker_addrs={0: "/run/a", 1: "/run/b"}),
        ),
    )
    assert TopicRouteData.from_dict(orjson.loads(orjson.dumps(route.to_dict()))) == route


def test_route_with_a_broker_id_that_is_no_number_is_refused() -> None:
    data = {"brokerDatas": [{"brokerName": "a", "brokerAddrs": {"x": "/run/a"}}]}
    with pytest.raises(ConfigError, match="brokerAddrs"):
        TopicRouteData.from_dict(data)
    with pytest.raises(ConfigError, match="wanted a list of objects"):
        TopicRouteData.from_dict({"queueDatas": [1]})
