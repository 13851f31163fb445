"""Topics: names and their rules, permissions, configuration, and the route that leads to them.

`to_dict` and `from_dict` speak RocketMQ's JSON (config/topics.json, route answers). Keys that we
do not know are kept as they came and written again, so that a store passes through shmq unharmed.

Pure words: nothing here writes or blocks. Names that RocketMQ would refuse raise
IllegalTopicError; a dict of another shape raises ConfigError.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntFlag
from typing import Self, TypeVar

from shmq.errors import ConfigError, IllegalTopicError
from shmq.json_fields import Fields
from shmq.status import BrokerRole, FlushDiskType

__all__ = [
    "AUTO_CREATE_TOPIC",
    "BROKER_ID_MAX",
    "BROKER_ROLE_ATTRIBUTE",
    "BrokerData",
    "DLQ_PREFIX",
    "DLQ_REPLAY_GROUP",
    "FLUSH_DISK_TYPE_ATTRIBUTE",
    "NAME_CHARACTERS",
    "NOT_SENDABLE_TOPICS",
    "Permission",
    "QUEUE_NUMS_MAX",
    "QueueData",
    "RETRY_PREFIX",
    "SCHEDULE_TOPIC",
    "SYSTEM_TOPICS",
    "SYSTEM_TOPIC_PREFIX",
    "TOPIC_ATTRIBUTES",
    "TOPIC_LENGTH_MAX",
    "TOPIC_LENGTH_MAX_INTERNAL",
    "TopicConfig",
    "TopicRouteData",
    "check_sendable_topic",
    "check_topic",
    "dlq_topic",
    "is_system_topic",
    "retry_topic",
]

TOPIC_LENGTH_MAX = 127
"""Characters of a user's topic; more need a V2 record (RocketMQ TopicValidator)."""
TOPIC_LENGTH_MAX_INTERNAL = 255
"""Characters of a retry or dead letter topic: the prefix and the group."""
BROKER_ID_MAX = 1_000_000
"""Of the members of a replica set."""
QUEUE_NUMS_MAX = 65_535
"""Queues of a topic on one broker, at most."""
NAME_CHARACTERS = re.compile(r"[%|a-zA-Z0-9_-]+")
"""What topic and group names are made of."""

RETRY_PREFIX = "%RETRY%"
DLQ_PREFIX = "%DLQ%"
DLQ_REPLAY_GROUP = "shmq-dlq-replay"
"""Its offsets in a %DLQ% topic say how far `shmq dlq replay` came. It is never behind."""
SYSTEM_TOPIC_PREFIX = "rmq_sys_"
AUTO_CREATE_TOPIC = "TBW102"
"""The template of topics that a send creates."""
SCHEDULE_TOPIC = "SCHEDULE_TOPIC_XXXX"

NOT_SENDABLE_TOPICS = frozenset(
    {
        SCHEDULE_TOPIC,
        "RMQ_SYS_TRANS_HALF_TOPIC",
        "RMQ_SYS_TRANS_OP_HALF_TOPIC",
        "TRANS_CHECK_MAX_TIME_TOPIC",
        "SELF_TEST_TOPIC",
        "OFFSET_MOVED_EVENT",
    }
)
"""System topics that only the broker's own services write."""
SYSTEM_TOPICS = NOT_SENDABLE_TOPICS | {
    AUTO_CREATE_TOPIC,
    "BenchmarkTest",
    "CHECKPOINT_TOPIC",
    "RMQ_SYS_TRACE_TOPIC",
}
"""Topics that RocketMQ reserves by name; those named after cluster and broker come on top."""

FLUSH_DISK_TYPE_ATTRIBUTE = "shmq.flush.disk.type"
"""Topic attribute of ours: SYNC_FLUSH or ASYNC_FLUSH for this topic, else the broker's default."""
BROKER_ROLE_ATTRIBUTE = "shmq.broker.role"
"""Topic attribute of ours: SYNC_MASTER or ASYNC_MASTER for this topic, else the broker's role."""
TOPIC_ATTRIBUTES = frozenset(
    {
        "cleanup.policy",
        "message.type",
        "queue.type",
        "reserve.time",
        FLUSH_DISK_TYPE_ATTRIBUTE,
        BROKER_ROLE_ATTRIBUTE,
    }
)
"""Attributes that may be given: those of RocketMQ's, which travel with the store, and ours."""
_Level = TypeVar("_Level", FlushDiskType, BrokerRole)


def check_topic(name: str) -> None:
    """Raise IllegalTopicError unless a topic of this name may exist.

    Retry and dead letter topics may be longer than others (RocketMQ TopicValidator.validateTopic).
    """
    if not isinstance(name, str):
        raise IllegalTopicError(f"topic {name!r}: wanted a str")
    internal = name.startswith((RETRY_PREFIX, DLQ_PREFIX))
    length_max = TOPIC_LENGTH_MAX_INTERNAL if internal else TOPIC_LENGTH_MAX
    if not name or len(name) > length_max:
        raise IllegalTopicError(
            f"topic {name[:40]!r}: {len(name)} characters, wanted 1 to {length_max}"
        )
    if not NAME_CHARACTERS.fullmatch(name):
        bad = next(c for c in name if not NAME_CHARACTERS.fullmatch(c))
        raise IllegalTopicError(f"topic {name!r}: character {bad!r}, wanted A-Z a-z 0-9 % | _ -")


def check_sendable_topic(name: str) -> None:
    """Raise IllegalTopicError unless a client may send to a topic of this name."""
    check_topic(name)
    if name in NOT_SENDABLE_TOPICS:
        raise IllegalTopicError(
            f"send to {name}: only the broker's own services write this topic",
            hint="choose another name",
        )


def is_system_topic(name: str) -> bool:
    """Whether RocketMQ reserves the name (cluster and broker names excepted)."""
    return name in SYSTEM_TOPICS or name.startswith(SYSTEM_TOPIC_PREFIX)


def retry_topic(group: str) -> str:
    """The topic from which a consumer group gets its failed messages again."""
    return f"{RETRY_PREFIX}{group}"


def dlq_topic(group: str) -> str:
    """The topic that keeps what a consumer group failed to consume for good."""
    return f"{DLQ_PREFIX}{group}"


class Permission(IntFlag):
    """What a topic or queue allows (RocketMQ PermName)."""

    INHERIT = 1
    """Of AUTO_CREATE_TOPIC: topics may be created after it."""
    WRITE = 2
    READ = 4


_READ_WRITE = Permission.READ | Permission.WRITE


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicConfig:
    """One topic as a broker keeps it (config/topics.json)."""

    topic_name: str
    """The topic."""
    read_queue_nums: int = 8
    """Queues that consumers read, 1 to 65,535; 8 as RocketMQ's brokers create them."""
    write_queue_nums: int = 8
    """Queues that producers write; fewer than are read while a topic shrinks."""
    perm: Permission = _READ_WRITE
    """What the topic allows; read and write."""
    topic_filter_type: str = "SINGLE_TAG"
    """RocketMQ's TopicFilterType; it knows no other that is used."""
    topic_sys_flag: int = 0
    """RocketMQ's bit field of unit flags; kept, not used."""
    order: bool = False
    """Whether the topic is an order topic: routes stay fixed while a broker is down."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """RocketMQ's attributes (message.type, cleanup.policy) and ours."""
    other: Mapping[str, object] = field(default_factory=dict)
    """Keys of the JSON that we do not know, kept for whoever does."""

    @property
    def flush_disk_type(self) -> FlushDiskType | None:
        """When a message of this topic counts as stored; None: as the broker says.

        Raises:
            ConfigError: the attribute means nothing; as `broker_role`.
        """
        return self._level(FLUSH_DISK_TYPE_ATTRIBUTE, tuple(FlushDiskType))

    @property
    def broker_role(self) -> BrokerRole | None:
        """SYNC_MASTER: a message of this topic counts as stored once slaves have it; ASYNC_MASTER:
        without them; None: as the broker says.
        """
        return self._level(BROKER_ROLE_ATTRIBUTE, (BrokerRole.ASYNC_MASTER, BrokerRole.SYNC_MASTER))

    def _level(self, attribute: str, wanted: tuple[_Level, ...]) -> _Level | None:
        value = self.attributes.get(attribute)
        if value is None:
            return None
        for level in wanted:
            if level == value:
                return level
        raise ConfigError(
            f"topic {self.topic_name}: attribute {attribute} = {value!r}, "
            f"wanted {' or '.join(wanted)}"
        )

    def to_dict(self) -> dict[str, object]:
        """As RocketMQ's topics.json has it."""
        return {
            **self.other,
            "topicName": self.topic_name,
            "readQueueNums": self.read_queue_nums,
            "writeQueueNums": self.write_queue_nums,
            "perm": int(self.perm),
            "topicFilterType": self.topic_filter_type,
            "topicSysFlag": self.topic_sys_flag,
            "order": self.order,
            "attributes": dict(self.attributes),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Self:
        """From RocketMQ's JSON; ConfigError names the key that is not as wanted."""
        take = Fields(data, what="topic")
        take.what = f"topic {take.text('topicName')}"
        return cls(
            topic_name=take.text("topicName"),
            read_queue_nums=take.number("readQueueNums", 8),
            write_queue_nums=take.number("writeQueueNums", 8),
            perm=Permission(take.number("perm", int(_READ_WRITE))),
            topic_filter_type=take.text("topicFilterType", "SINGLE_TAG"),
            topic_sys_flag=take.number("topicSysFlag", 0),
            order=take.flag("order", False),
            attributes=take.texts("attributes"),
            other=take.rest(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueData:
    """How many queues of a topic one broker has, in a route."""

    broker_name: str
    """The broker."""
    read_queue_nums: int
    """Queues that consumers read."""
    write_queue_nums: int
    """Queues that producers write."""
    perm: Permission = _READ_WRITE
    """What the topic allows on this broker."""
    topic_sys_flag: int = 0
    """RocketMQ's unit flags."""

    def to_dict(self) -> dict[str, object]:
        """As RocketMQ's route answer has it."""
        return {
            "brokerName": self.broker_name,
            "readQueueNums": self.read_queue_nums,
            "writeQueueNums": self.write_queue_nums,
            "perm": int(self.perm),
            "topicSysFlag": self.topic_sys_flag,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Self:
        """From RocketMQ's JSON; ConfigError names the key that is not as wanted."""
        take = Fields(data, what="queueData")
        return cls(
            broker_name=take.text("brokerName"),
            read_queue_nums=take.number("readQueueNums"),
            write_queue_nums=take.number("writeQueueNums"),
            perm=Permission(take.number("perm", int(_READ_WRITE))),
            topic_sys_flag=take.number("topicSysFlag", 0),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerData:
    """Where the brokers of one broker_name are, in a route."""

    cluster: str
    """The cluster they belong to."""
    broker_name: str
    """The name that master and slaves share."""
    broker_addrs: Mapping[int, str]
    """broker_id (0 is the master) to the name of its socket in the runtime folder."""

    def to_dict(self) -> dict[str, object]:
        """As RocketMQ's route answer has it, with quoted ids."""
        return {
            "cluster": self.cluster,
            "brokerName": self.broker_name,
            "brokerAddrs": {str(key): value for key, value in self.broker_addrs.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Self:
        """From RocketMQ's JSON; ConfigError names the key that is not as wanted."""
        take = Fields(data, what="brokerData")
        addresses = take.texts("brokerAddrs")
        try:
            by_id = {int(key): value for key, value in addresses.items()}
        except ValueError as error:
            raise ConfigError(f"brokerData: brokerAddrs: {error}; wanted numbers as keys") from None
        return cls(
            cluster=take.text("cluster", ""),
            broker_name=take.text("brokerName"),
            broker_addrs=by_id,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicRouteData:
    """The route to a topic: its queues, and the brokers that have them."""

    queue_datas: tuple[QueueData, ...] = ()
    """One per broker_name that has the topic."""
    broker_datas: tuple[BrokerData, ...] = ()
    """One per broker_name in queue_datas that is alive."""
    order_topic_conf: str | None = None
    """Of an order topic "broker:queues;broker:queues", which holds while a broker is down."""

    def to_dict(self) -> dict[str, object]:
        """As RocketMQ's route answer has it."""
        return {
            "orderTopicConf": self.order_topic_conf,
            "queueDatas": [data.to_dict() for data in self.queue_datas],
            "brokerDatas": [data.to_dict() for data in self.broker_datas],
            "filterServerTable": {},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Self:
        """From RocketMQ's JSON; ConfigError names the key that is not as wanted."""
        take = Fields(data, what="route")
        return cls(
            queue_datas=tuple(map(QueueData.from_dict, take.items("queueDatas"))),
            broker_datas=tuple(map(BrokerData.from_dict, take.items("brokerDatas"))),
            order_topic_conf=take.optional_text("orderTopicConf"),
        )
