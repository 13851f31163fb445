"""Consumer groups and what they subscribe to: group configuration, tag expressions, tag hashes.

`tags_code` is what a ConsumeQueue entry carries, so that the broker filters without touching the
message; the consumer compares the tag itself afterwards, since hashes collide.

Pure words: nothing here writes or blocks. A bad expression raises SubscriptionError, a bad group
name IllegalGroupError, a dict of another shape ConfigError.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum, unique
from typing import Self

from shmq.errors import IllegalGroupError, SubscriptionError
from shmq.json_fields import Fields
from shmq.topic import NAME_CHARACTERS

__all__ = [
    "ConsumeFromWhere",
    "GROUP_LENGTH_MAX",
    "MessageModel",
    "SUBSCRIBE_ALL",
    "SYSTEM_GROUP_PREFIX",
    "SubscriptionData",
    "SubscriptionGroupConfig",
    "check_group",
    "is_system_group",
    "java_hash",
    "tags_code",
]

GROUP_LENGTH_MAX = 120
"""Characters of a group name, so that its retry topic stays within 127 (RocketMQ Validators)."""
SUBSCRIBE_ALL = "*"
"""The expression that lets every message pass."""
SYSTEM_GROUP_PREFIX = "CID_RMQ_SYS_"


@unique
class MessageModel(StrEnum):
    """How a group shares a topic."""

    CLUSTERING = "CLUSTERING"
    """Each message goes to one member."""
    BROADCASTING = "BROADCASTING"
    """Each message goes to every member."""


@unique
class ConsumeFromWhere(StrEnum):
    """Where a group starts in a queue that it never consumed."""

    CONSUME_FROM_FIRST_OFFSET = "CONSUME_FROM_FIRST_OFFSET"
    """At the first message kept: shmq's default, so that a new group misses nothing."""
    CONSUME_FROM_LAST_OFFSET = "CONSUME_FROM_LAST_OFFSET"
    """Behind the last message there: only what comes from now on."""
    CONSUME_FROM_TIMESTAMP = "CONSUME_FROM_TIMESTAMP"
    """At the first message stored at or after a time."""


def check_group(name: str) -> None:
    """Raise IllegalGroupError unless a group of this name may exist."""
    if not isinstance(name, str):
        raise IllegalGroupError(f"group {name!r}: wanted a str")
    if not name or len(name) > GROUP_LENGTH_MAX:
        raise IllegalGroupError(
            f"group {name[:40]!r}: {len(name)} characters, wanted 1 to {GROUP_LENGTH_MAX}"
        )
    if not NAME_CHARACTERS.fullmatch(name):
        bad = next(c for c in name if not NAME_CHARACTERS.fullmatch(c))
        raise IllegalGroupError(f"group {name!r}: character {bad!r}, wanted A-Z a-z 0-9 % | _ -")


def is_system_group(name: str) -> bool:
    """Whether RocketMQ reserves the group for its own services."""
    return name.startswith(SYSTEM_GROUP_PREFIX)


def java_hash(text: str) -> int:
    """Java's String.hashCode: 32 bits, signed, over the UTF-16 units of `text`."""
    units = text.encode("utf-16-le", "surrogatepass")
    value = 0
    for at in range(0, len(units), 2):
        value = (31 * value + (units[at] | units[at + 1] << 8)) & 0xFFFF_FFFF
    return value - (1 << 32) if value >> 31 else value


def tags_code(tag: str | None) -> int:
    """The tag's hash as a ConsumeQueue entry carries it; 0 for a message without a tag."""
    return java_hash(tag) if tag else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionData:
    """What one group wants of one topic."""

    topic: str
    """The topic."""
    sub_string: str = SUBSCRIBE_ALL
    """The expression as it was written, "a || b" or "*"."""
    tags_set: frozenset[str] = frozenset()
    """The tags it names; empty when every message passes."""
    code_set: frozenset[int] = frozenset()
    """Their hashes."""
    expression_type: str = "TAG"
    """RocketMQ's ExpressionType."""
    sub_version: int = 0
    """When the group last changed it, ms since 1970: the newer one counts."""

    @classmethod
    def parse(cls, topic: str, expression: str | None, *, sub_version: int = 0) -> Self:
        """The subscription for a tag expression: tags joined by ||, or "*", "" or None for all.

        SubscriptionError if a tag holds a single | or blanks inside, or if no tag is left
        ("||"): RocketMQ would take it and match nothing (FilterAPI.buildSubscriptionData).
        """
        text = (expression or SUBSCRIBE_ALL).strip()
        if text in ("", SUBSCRIBE_ALL):
            return cls(topic=topic, sub_version=sub_version)
        tags = [part.strip() for part in text.split("||") if part.strip()]
        for tag in tags:
            if "|" in tag or any(c.isspace() for c in tag):
                raise SubscriptionError(
                    f'subscribe {topic}: tag {tag!r} in {text!r}; wanted tags joined by "||"'
                )
        if not tags:
            raise SubscriptionError(f'subscribe {topic}: {text!r} names no tag; wanted "a || b"')
        return cls(
            topic=topic,
            sub_string=text,
            tags_set=frozenset(tags),
            code_set=frozenset(map(tags_code, tags)),
            sub_version=sub_version,
        )

    def passes_code(self, code: int) -> bool:
        """Whether a ConsumeQueue entry with this tags code may match (hashes may collide)."""
        return not self.code_set or code in self.code_set

    def passes_tag(self, tag: str | None) -> bool:
        """Whether a message with this tag matches."""
        return not self.tags_set or tag in self.tags_set


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionGroupConfig:
    """One consumer group as a broker keeps it (config/subscriptionGroup.json)."""

    group_name: str
    """The group."""
    consume_enable: bool = True
    """Whether its members get messages at all."""
    consume_from_min_enable: bool = True
    """Whether it may start at the first message kept; otherwise it starts behind the last."""
    consume_broadcast_enable: bool = True
    """Whether members may consume in broadcasting mode."""
    consume_message_orderly: bool = False
    """Whether POP hands out one message of a queue at a time."""
    retry_queue_nums: int = 1
    """Queues of its retry topic."""
    retry_max_times: int = 16
    """Deliveries after the first before a message goes to the dead letter topic."""
    broker_id: int = 0
    """The broker it reads from; 0 is the master."""
    which_broker_when_consume_slowly: int = 1
    """The broker it is sent to for messages that left memory; 1 is the first slave."""
    notify_consumer_ids_changed_enable: bool = True
    """Whether members are told when others come or go."""
    group_sys_flag: int = 0
    """RocketMQ's bit field; kept, not used."""
    consume_timeout_minute: int = 15
    """Minutes a listener may take for a message before it counts as failed."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """RocketMQ's attributes."""
    other: Mapping[str, object] = field(default_factory=dict)
    """Keys of the JSON that we do not know, kept for whoever does."""

    def to_dict(self) -> dict[str, object]:
        """As RocketMQ's subscriptionGroup.json has it."""
        return {
            **self.other,
            "groupName": self.group_name,
            "consumeEnable": self.consume_enable,
            "consumeFromMinEnable": self.consume_from_min_enable,
            "consumeBroadcastEnable": self.consume_broadcast_enable,
            "consumeMessageOrderly": self.consume_message_orderly,
            "retryQueueNums": self.retry_queue_nums,
            "retryMaxTimes": self.retry_max_times,
            "brokerId": self.broker_id,
            "whichBrokerWhenConsumeSlowly": self.which_broker_when_consume_slowly,
            "notifyConsumerIdsChangedEnable": self.notify_consumer_ids_changed_enable,
            "groupSysFlag": self.group_sys_flag,
            "consumeTimeoutMinute": self.consume_timeout_minute,
            "attributes": dict(self.attributes),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Self:
        """From RocketMQ's JSON; ConfigError names the key that is not as wanted."""
        take = Fields(data, what="group")
        take.what = f"group {take.text('groupName')}"
        return cls(
            group_name=take.text("groupName"),
            consume_enable=take.flag("consumeEnable", True),
            consume_from_min_enable=take.flag("consumeFromMinEnable", True),
            consume_broadcast_enable=take.flag("consumeBroadcastEnable", True),
            consume_message_orderly=take.flag("consumeMessageOrderly", False),
            retry_queue_nums=take.number("retryQueueNums", 1),
            retry_max_times=take.number("retryMaxTimes", 16),
            broker_id=take.number("brokerId", 0),
            which_broker_when_consume_slowly=take.number("whichBrokerWhenConsumeSlowly", 1),
            notify_consumer_ids_changed_enable=take.flag("notifyConsumerIdsChangedEnable", True),
            group_sys_flag=take.number("groupSysFlag", 0),
            consume_timeout_minute=take.number("consumeTimeoutMinute", 15),
            attributes=take.texts("attributes"),
            other=take.rest(),
        )
