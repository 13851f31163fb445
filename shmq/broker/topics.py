"""The topics of a broker: their configuration, the queue rows that stand for them, their file.

What lives here: `TopicTable`. A topic has max(readQueueNums, writeQueueNums) queues: rows below
writeQueueNums take messages, rows below readQueueNums are offered to consumers. A topic grows at
once; it shrinks write queues first, and its read queues once every group has drained them. Rows of
dropped queues stay (read-only, offered to nobody), so that growing again goes on where they ended.

A queue_offset is never given out twice, not even across delete and create: what the log still
holds of the deleted topic would be found again by a recovery. Where the queues of a deleted topic
ended is kept beside the topics, in topics.json under a key of ours that RocketMQ passes over:

    "shmqDeletedTopics": {topic: {"position": committed position then, "queues": {queueId: end}}}

until retention has taken everything below that position.

The loop's thread owns it (`load` runs before there is a loop). May fail: names and values that
RocketMQ would refuse, TopicNotExistError, ShmFullError, what writing the file may raise.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from shmq.errors import (
    ConfigError,
    IllegalTopicError,
    PermissionDeniedError,
    ShmqError,
    SystemBusyError,
    TopicNotExistError,
)
from shmq.json_fields import Fields
from shmq.status import BrokerRole
from shmq.store.config_files import ConfigFiles, DataVersion, Topics, numbers_by_number
from shmq.topic import (
    AUTO_CREATE_TOPIC,
    DLQ_PREFIX,
    QUEUE_NUMS_MAX,
    RETRY_PREFIX,
    SCHEDULE_TOPIC,
    TOPIC_ATTRIBUTES,
    Permission,
    TopicConfig,
    check_sendable_topic,
    check_topic,
    dlq_topic,
    is_system_topic,
    retry_topic,
)

from .saver import Saver

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from shmq.clock import Clock
    from shmq.config import BrokerConfig
    from shmq.store.message_store import MessageStore
    from shmq.store.queues import QueueHandle

__all__ = ["Lag", "TopicTable", "changed_attributes"]

_log = logging.getLogger("shmq.broker")

_DELETED_KEY = "shmqDeletedTopics"
PERM_MAX = 7


class Lag(Protocol):
    """Says who has not consumed a queue to its end."""

    def __call__(self, topic: str, queue_id: int) -> list[tuple[str, int]]:
        """(group, messages) for each group that knows the topic and has some left."""


@dataclass(slots=True)
class _Deleted:
    """Where the queues of a deleted topic ended."""

    position: int
    queues: dict[int, int] = field(default_factory=dict)


class TopicTable:
    """All topics of one broker.

    Args:
        store: open.
        files: config/ of the store.
        config: of the broker.
        clock: for dataVersion.
        is_copy: a slave's: its dataVersion is that of the master's table it was copied from.
    """

    def __init__(
        self,
        store: MessageStore,
        files: ConfigFiles,
        config: BrokerConfig,
        clock: Clock,
        *,
        is_copy: bool = False,
    ) -> None:
        self._store = store
        self._files = files
        self._config = config
        self._clock = clock
        self._is_copy = is_copy
        self._topics: dict[str, TopicConfig] = {}
        self._deleted: dict[str, _Deleted] = {}
        self._being_deleted: set[str] = set()
        self._other: Mapping[str, object] = {}
        self._reserved = {config.cluster_name, config.broker_name}
        self._saver = Saver(files, self._contents)
        self.data_version = DataVersion()
        """Of the last change."""
        self.is_read_only = False
        """The store takes no more messages: routes say so."""
        self.on_changed: Callable[[Iterable[str]], None] = lambda _topics: None
        """Told of topics that were made, changed or deleted, once it is on disk."""
        self.on_slaves_wanted: Callable[[], None] = lambda: None
        """Told of a topic whose sends wait for slaves, before they do."""

    # ---- opening -----------------------------------------------------------------------------

    def _check_loaded(self, name: str, config: TopicConfig) -> None:
        try:
            check_topic(name)
            if config.topic_name != name:
                raise ConfigError(f"topic {name}: topicName {config.topic_name!r}, wanted {name!r}")
            _check_values(config)
        except ShmqError as error:
            path = self._files.file(Topics.FILE_NAME).path
            raise ConfigError(f"{path}: {error}") from None

    def load(self, unknown_ends: Mapping[tuple[str, int], int]) -> None:
        """Read topics.json and bring the rows in line with it. Blocks; no loop runs yet.

        Args:
            unknown_ends: where queues were that the log does not know, by what was consumed.

        Raises:
            ConfigError: the file and its backup cannot be read.
            ShmFullError: no room for the rows.
        """
        found = self._files.load_topics()
        for name, config in found.topics.items():
            self._check_loaded(name, config)
        self._topics = dict(found.topics)
        self._deleted = _deleted_from(found.other.get(_DELETED_KEY))
        self._other = {key: value for key, value in found.other.items() if key != _DELETED_KEY}
        self.data_version = found.data_version
        before = dict(self._topics), set(self._deleted)
        self._forget_expired()
        self._meet_rows()
        if self._config.auto_create_topic_enable and AUTO_CREATE_TOPIC not in self._topics:
            self._topics[AUTO_CREATE_TOPIC] = self._template()
        level_count = len(self._config.delay_levels_ms)
        schedule = self._topics.get(SCHEDULE_TOPIC)
        if schedule is None or schedule.write_queue_nums < level_count:
            self._topics[SCHEDULE_TOPIC] = TopicConfig(
                topic_name=SCHEDULE_TOPIC,
                read_queue_nums=level_count,
                write_queue_nums=level_count,
            )
        for topic in self._topics.values():
            self._apply(topic, unknown_ends)
        if before != (self._topics, set(self._deleted)):
            self._advance()
            self._saver.save_now()

    def _meet_rows(self) -> None:
        """Rows that the store found in memory or in the log, against what topics.json says."""
        queues = self._store.queues
        rows: dict[str, dict[int, QueueHandle]] = defaultdict(dict)
        for topic, queue_id, handle in queues:
            rows[topic][queue_id] = handle
        for topic, handles in rows.items():
            deleted = self._deleted.get(topic)
            if deleted is not None:
                for queue_id, handle in handles.items():
                    end = deleted.queues.setdefault(queue_id, 0)
                    now = queues.offsets(handle)
                    if topic not in self._topics:
                        deleted.queues[queue_id] = max(end, now.max_queue_offset)
                        queues.delete(topic, queue_id)
                    elif now.min_queue_offset < end:
                        queues.set_min(handle.row, min(end, now.max_queue_offset))
            elif topic not in self._topics:
                nums = max(handles) + 1
                _log.warning("topic without configuration topic=%s queues=%d", topic, nums)
                self._topics[topic] = TopicConfig(
                    topic_name=topic, read_queue_nums=nums, write_queue_nums=nums
                )

    def _forget_expired(self) -> None:
        min_position = self._store.positions.min_position
        for topic, deleted in tuple(self._deleted.items()):
            if deleted.position <= min_position:
                del self._deleted[topic]

    # ---- looking up --------------------------------------------------------------------------

    def __iter__(self) -> Iterator[str]:
        """The names, sorted."""
        return iter(sorted(self._topics))

    def __contains__(self, topic: str) -> bool:
        """Whether it exists."""
        return topic in self._topics

    def __len__(self) -> int:
        return len(self._topics)

    @property
    def configs(self) -> Mapping[str, TopicConfig]:
        """All of them, by name."""
        return self._topics

    def routes(self, names: Iterable[str] | None = None) -> dict[str, TopicConfig]:
        """What NameServers are told: the topics (of these names), without W where the store takes
        no more.
        """
        wanted = self._topics if names is None else names
        found = {name: self._topics[name] for name in wanted if name in self._topics}
        if not self.is_read_only:
            return found
        return {
            name: replace(config, perm=config.perm & ~Permission.WRITE)
            for name, config in found.items()
        }

    def set_read_only(self) -> None:
        """The store takes no more messages, for good: tell NameServers and clients."""
        self.is_read_only = True
        self._advance()
        self.on_changed(list(self._topics))

    def broker_role_of(self, topic: str) -> BrokerRole | None:
        """Whether a topic's sends wait for slaves; None: it does not say, or is not known."""
        config = self._topics.get(topic)
        return None if config is None else config.broker_role

    @property
    def wants_slaves(self) -> bool:
        """Whether sends of any topic wait for slaves because the topic says so."""
        return any(config.broker_role is BrokerRole.SYNC_MASTER for config in self._topics.values())

    def find(self, topic: str) -> TopicConfig:
        """The configuration of a topic.

        Raises:
            TopicNotExistError: there is no such topic.
        """
        config = self._topics.get(topic)
        if config is None:
            raise TopicNotExistError(
                f"topic {topic}: broker {self._config.broker_name} has no such topic"
            )
        return config

    def find_readable(self, topic: str) -> TopicConfig:
        """The configuration of a topic that clients may consume.

        Raises:
            TopicNotExistError: there is no such topic.
            PermissionDeniedError: nobody may read it, or only a service of the broker.
        """
        config = self.find(topic)
        if topic == SCHEDULE_TOPIC:
            raise PermissionDeniedError(f"read {topic}: only the broker's schedule service does")
        if Permission.READ not in config.perm:
            raise PermissionDeniedError(f"read {topic}: its perm {int(config.perm)} has no R")
        return config

    def send_queues(self, topic: str) -> list[tuple[int, QueueHandle]]:
        """The write queues of a topic, in order of queue_id; TopicNotExistError if it is none."""
        return self._handles(topic, self.find(topic).write_queue_nums)

    def read_queues(self, topic: str) -> list[tuple[int, QueueHandle]]:
        """The read queues of a topic, in order of queue_id; TopicNotExistError if it is none."""
        return self._handles(topic, self.find(topic).read_queue_nums)

    def read_queue(self, topic: str, queue_id: int) -> QueueHandle:
        """One read queue.

        Raises:
            TopicNotExistError: there is no such topic or queue.
        """
        if not 0 <= queue_id < self.find(topic).read_queue_nums:
            raise TopicNotExistError(
                f"queue {queue_id} of topic {topic}: it has {self.find(topic).read_queue_nums} "
                "read queues; refresh the route"
            )
        return self._store.queues.find(topic, queue_id)

    def _handles(self, topic: str, nums: int) -> list[tuple[int, QueueHandle]]:
        if topic == AUTO_CREATE_TOPIC:
            return []  # a template, not a place for messages
        return [(queue_id, self._store.queues.find(topic, queue_id)) for queue_id in range(nums)]

    # ---- changing ----------------------------------------------------------------------------

    def is_reserved(self, topic: str) -> bool:
        """Whether no user may make, change or delete it."""
        return is_system_topic(topic) or topic in self._reserved

    async def update(self, wanted: TopicConfig, *, lag: Lag, is_force: bool = False) -> TopicConfig:
        """Make a topic, or change one; returns when it is on disk.

        Args:
            wanted: all of its configuration.
            lag: who has not drained a queue.
            is_force: drop read queues though they are not drained.

        Raises:
            IllegalTopicError, ConfigError: what is wrong with it; nothing has changed.
            ShmFullError: no room for its rows. DiskFullError, StoreError: it holds, but not beyond
                this broker's life.
        """
        await self.update_all([wanted], lag=lag, is_force=is_force)
        return wanted

    async def update_all(
        self, wanted: Collection[TopicConfig], *, lag: Lag, is_force: bool = False
    ) -> None:
        """The same for many topics, with one write of the file.

        Raises:
            IllegalTopicError, ConfigError: what is wrong with one; nothing has changed.
            ShmFullError: no room for the rows of one; those before it have changed. DiskFullError,
                StoreError: they hold, but not beyond this broker's life.
        """
        for config in wanted:
            name = config.topic_name
            check_topic(name)
            if self.is_reserved(name):
                raise IllegalTopicError(
                    f"change topic {name}: the name is reserved", hint="choose another name"
                )
            _check_values(config)
            before = self._topics.get(name)
            _check_idle(config, before or TopicConfig(topic_name=name))
            if before is not None and not is_force:
                self._check_drained(before, config, lag)
        await self._put(wanted)

    async def copy(self, wanted: Mapping[str, TopicConfig], version: DataVersion) -> None:
        """Have these topics of the master as it has them; those that are gone are deleted before.

        Raises:
            ShmFullError, DiskFullError, StoreError: call it again.
        """
        await self._put(list(wanted.values()))
        if version != self.data_version:  # only now: a part of them is not that version
            self.data_version = version
            await self._saver.save()

    async def create_for_send(self, topic: str, queue_nums: int) -> TopicConfig:
        """Make a topic that a producer wants to send to, after TBW102.

        Raises:
            TopicNotExistError: this broker does not make topics by itself, or TBW102 is closed.
            IllegalTopicError: the name is not one that clients may send to.
        """
        check_sendable_topic(topic)
        # Not there yet where the setting has changed since the start (shmq broker config set).
        template = self._topics.get(AUTO_CREATE_TOPIC, self._template())
        is_open = Permission.INHERIT in template.perm
        if self.is_reserved(topic) or not self._config.auto_create_topic_enable or not is_open:
            raise TopicNotExistError(
                f"send to {topic}: broker {self._config.broker_name} has no such topic and may not "
                "create it",
                hint="create it by hand (shmq topic create), or set auto_create_topic_enable",
            )
        nums = max(1, min(queue_nums, template.write_queue_nums))
        made = TopicConfig(
            topic_name=topic,
            read_queue_nums=nums,
            write_queue_nums=nums,
            perm=template.perm & ~Permission.INHERIT,
            topic_sys_flag=template.topic_sys_flag,
        )
        await self._put([template, made])
        return made

    def _template(self) -> TopicConfig:
        """What topics are made after, as this broker makes it."""
        nums = self._config.default_topic_queue_nums
        return TopicConfig(
            topic_name=AUTO_CREATE_TOPIC,
            read_queue_nums=nums,
            write_queue_nums=nums,
            perm=Permission.READ | Permission.WRITE | Permission.INHERIT,
        )

    async def ensure_retry_topic(
        self, group: str, queue_nums: int, *, is_wanted: bool = False
    ) -> None:
        """Make the retry topic of a group if it is not there; tools look for its route.

        Args:
            group: the group.
            queue_nums: its retryQueueNums.
            is_wanted: somebody has set them: one that is there gets as many write queues, and at
                least as many read queues, for what lies in others is still to be read.
        """
        topic = retry_topic(group)
        known = self._topics.get(topic)
        if known is not None and is_wanted:
            nums = max(queue_nums, known.read_queue_nums)
            await self._put([replace(known, read_queue_nums=nums, write_queue_nums=queue_nums)])
        elif known is None:
            made = TopicConfig(
                topic_name=topic, read_queue_nums=queue_nums, write_queue_nums=queue_nums
            )
            await self._put([made])

    async def ensure_dlq_topic(self, group: str) -> None:
        """Make the dead letter topic of a group if it is not there; people may read it, too."""
        topic = dlq_topic(group)
        if topic not in self._topics:
            await self._put([TopicConfig(topic_name=topic, read_queue_nums=1, write_queue_nums=1)])

    async def ensure(self, topic: str, queue_nums: int) -> None:
        """Make a topic for messages that were in it once, as it would be made for the first one.

        Raises:
            TopicNotExistError, IllegalTopicError: as `create_for_send`.
        """
        if topic in self._topics:
            return
        if topic.startswith(RETRY_PREFIX):
            group = topic.removeprefix(RETRY_PREFIX)
            await self.ensure_retry_topic(group, queue_nums)
        elif topic.startswith(DLQ_PREFIX):
            await self.ensure_dlq_topic(topic.removeprefix(DLQ_PREFIX))
        else:
            await self.create_for_send(topic, queue_nums)

    async def delete(self, topic: str) -> list[QueueHandle]:
        """Delete a topic; returns the handles of its queues, which are stale now.

        Its messages stay in the log until retention takes them, and nobody reaches them.

        Raises:
            IllegalTopicError: a system topic.
            DiskFullError, StoreError: nothing is deleted.
        """
        if self.is_reserved(topic):
            raise IllegalTopicError(
                f"delete topic {topic}: the name is reserved", hint="the brokers need it"
            )
        before = self._topics.get(topic)
        if before is None:
            return []
        rows = self._store.queues.of(topic)
        self._being_deleted.add(topic)
        try:
            await self._save_deletion(before, rows)
        finally:
            self._being_deleted.discard(topic)
        for queue_id, _ in rows:
            self._store.queues.delete(topic, queue_id)
        _log.info("topic deleted topic=%s queues=%d", topic, len(rows))
        self.on_changed([topic])
        return [handle for _, handle in rows]

    async def _save_deletion(
        self, before: TopicConfig, rows: list[tuple[int, QueueHandle]]
    ) -> None:
        """Close the queues, write down where they end and that the topic is gone."""
        topic = before.topic_name
        queues = self._store.queues
        for queue_id, handle in rows:
            queues.set(topic, queue_id, flags=queues.state(handle)[1], is_writable=False)
        earlier = self._deleted.get(topic)
        del self._topics[topic]
        self._deleted[topic] = _Deleted(
            self._store.positions.committed_position,
            {queue_id: queues.offsets(handle).max_queue_offset for queue_id, handle in rows},
        )
        self._advance()
        try:
            await self._saver.save()
        except BaseException:
            del self._deleted[topic]
            if earlier is not None:
                self._deleted[topic] = earlier
            self._topics[topic] = before
            self._apply(before, {})
            raise

    async def _put(self, wanted: Collection[TopicConfig]) -> None:
        for config in wanted:
            if config.topic_name in self._being_deleted:
                raise SystemBusyError(f"make topic {config.topic_name}: it is just being deleted")
        changed = [one for one in wanted if self._topics.get(one.topic_name) != one]
        if not changed:
            return
        applied = []
        try:
            for config in changed:
                self._apply(config, {})
                self._topics[config.topic_name] = config
                applied.append(config)
        finally:
            if applied:
                await self._applied(applied)

    async def _applied(self, configs: list[TopicConfig]) -> None:
        self._advance()
        await self._saver.save()
        for config in configs:
            _log.info(
                "topic set topic=%s read_queue_nums=%d write_queue_nums=%d perm=%d",
                config.topic_name,
                config.read_queue_nums,
                config.write_queue_nums,
                config.perm,
            )
        self.on_changed([config.topic_name for config in configs])

    def _check_drained(self, before: TopicConfig, wanted: TopicConfig, lag: Lag) -> None:
        for queue_id in range(wanted.read_queue_nums, before.read_queue_nums):
            if queue_id < before.write_queue_nums:
                raise ConfigError(
                    f"topic {wanted.topic_name}: readQueueNums {wanted.read_queue_nums} while "
                    f"{before.write_queue_nums} queues are written: lower writeQueueNums first"
                )
            for group, count in lag(wanted.topic_name, queue_id):
                raise ConfigError(
                    f"topic {wanted.topic_name}: group {group} has {count} messages left in queue "
                    f"{queue_id}; wait until it has consumed them"
                )

    def _apply(self, config: TopicConfig, unknown_ends: Mapping[tuple[str, int], int]) -> None:
        """Bring the rows of a topic in line with its configuration."""
        topic = config.topic_name
        if topic == AUTO_CREATE_TOPIC:
            return
        queues = self._store.queues
        flags = self._store.row_flags(topic, config.flush_disk_type, config.broker_role)
        if config.broker_role is BrokerRole.SYNC_MASTER:
            self.on_slaves_wanted()
        deleted = self._deleted.get(topic)
        is_writable = Permission.WRITE in config.perm
        nums = max(config.read_queue_nums, config.write_queue_nums)
        before = self._topics.get(topic)
        if before is not None:
            nums = max(nums, before.read_queue_nums, before.write_queue_nums)
        for queue_id in range(nums):
            end = deleted.queues.get(queue_id, 0) if deleted else 0
            first = max(end, unknown_ends.get((topic, queue_id), 0))
            handle = queues.add(topic, queue_id, flags=flags, first_queue_offset=first)
            state = is_writable and queue_id < config.write_queue_nums, flags
            if queues.state(handle) != state:
                queues.set(topic, queue_id, flags=flags, is_writable=state[0])

    # ---- the file ----------------------------------------------------------------------------

    def _advance(self) -> None:
        if not self._is_copy:
            self.data_version = self.data_version.following(wall_ms=self._clock.wall_ms())

    def _contents(self) -> Topics:
        other = dict(self._other)
        if self._deleted:
            other[_DELETED_KEY] = {
                topic: {
                    "position": deleted.position,
                    "queues": {str(key): value for key, value in deleted.queues.items()},
                }
                for topic, deleted in self._deleted.items()
            }
        return Topics(data_version=self.data_version, topics=dict(self._topics), other=other)


def _check_values(config: TopicConfig) -> None:
    what = f"topic {config.topic_name}"
    for key, value in (
        ("readQueueNums", config.read_queue_nums),
        ("writeQueueNums", config.write_queue_nums),
    ):
        if not 1 <= value <= QUEUE_NUMS_MAX:
            raise ConfigError(f"{what}: {key} = {value}, wanted 1 to {QUEUE_NUMS_MAX}")
    if not 0 <= config.perm <= PERM_MAX:
        raise ConfigError(f"{what}: perm = {int(config.perm)}, wanted 0 to {PERM_MAX}")
    if config.read_queue_nums < config.write_queue_nums:
        raise ConfigError(
            f"{what}: readQueueNums {config.read_queue_nums} below writeQueueNums "
            f"{config.write_queue_nums}: nobody would read the queues between"
        )
    _ = config.flush_disk_type, config.broker_role  # raise where the attribute has no meaning


def _check_idle(config: TopicConfig, before: TopicConfig) -> None:
    """ConfigError for a setting that would have no effect; one that a foreign store came with
    stays.
    """
    for key, value, known, wanted, why in (
        (
            "topicFilterType",
            config.topic_filter_type,
            before.topic_filter_type,
            "SINGLE_TAG",
            "a message has one tag",
        ),
        (
            "topicSysFlag",
            config.topic_sys_flag,
            before.topic_sys_flag,
            0,
            "there are no units here",
        ),
        (
            "perm",
            int(config.perm & Permission.INHERIT),
            int(before.perm & Permission.INHERIT),
            0,
            f"topics are made after {AUTO_CREATE_TOPIC} only",
        ),
    ):
        if value not in (known, wanted):
            raise ConfigError(f"topic {config.topic_name}: {key} {value}: {why}; wanted {wanted}")


_ATTRIBUTE_VALUES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "cleanup.policy": (("DELETE",), "this release does not compact"),
    "message.type": (
        ("NORMAL", "FIFO", "DELAY", "TRANSACTION", "MIXED", "UNSPECIFIED"),
        "no such type",
    ),
    "queue.type": (("SimpleCQ",), "this release has no batch ConsumeQueues"),
    "reserve.time": (("-1",), "a file of the log holds all topics and goes by fileReservedTime"),
}
"""What an attribute of RocketMQ's may be here, and why nothing else."""


def _check_attribute(topic: str, key: str, value: str) -> None:
    if key not in TOPIC_ATTRIBUTES:
        known = ", ".join(sorted(TOPIC_ATTRIBUTES))
        raise ConfigError(f"topic {topic}: attribute {key!r}, wanted {known}")
    values, why = _ATTRIBUTE_VALUES.get(key, ((), ""))
    if values and value not in values:
        wanted = " or ".join(values)
        raise ConfigError(f"topic {topic}: attribute {key}={value}: {why}; wanted {wanted}")


def changed_attributes(config: TopicConfig, changes: str) -> TopicConfig:
    """The configuration with its attributes changed as RocketMQ writes it: "+key=value,-key".

    Raises:
        ConfigError: a part is neither, names a key twice, one that is nobody's, a value that has
            no meaning or no effect here, or takes away what is not there.
    """
    attributes = dict(config.attributes)
    seen: set[str] = set()
    for part in filter(None, (piece.strip() for piece in changes.split(","))):
        key, equals, value = part[1:].partition("=")
        if key in seen:
            raise ConfigError(f"topic {config.topic_name}: attribute {key!r} twice, wanted it once")
        seen.add(key)
        if part[0] == "+" and key and equals and value:
            _check_attribute(config.topic_name, key, value)
            attributes[key] = value
        elif part[0] == "-" and key and not equals:
            if key not in attributes:
                raise ConfigError(
                    f"topic {config.topic_name}: attribute -{key}: it has no such attribute"
                )
            del attributes[key]
        else:
            raise ConfigError(
                f"topic {config.topic_name}: attributes {part!r}, wanted +key=value or -key"
            )
    return replace(config, attributes=attributes)


def _deleted_from(data: object) -> dict[str, _Deleted]:
    """The deleted topics in topics.json; ConfigError for another shape."""
    result = {}
    for topic, item in _object(_DELETED_KEY, {} if data is None else data).items():
        what = f"{_DELETED_KEY}: {topic}"
        fields = _object(what, item)
        result[topic] = _Deleted(
            Fields(fields, what=what).number("position"),
            numbers_by_number(what, fields.get("queues")),
        )
    return result


def _object(what: str, data: object) -> Mapping[str, object]:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{what}: {data!r}, wanted an object")
    return data
