"""The consumer groups that a broker knows: their configuration and their file.

What lives here: `GroupTable`, config/subscriptionGroup.json. A heartbeat of an unknown group makes
it where the broker allows that; RocketMQ's own groups are always there and are not written down.

The loop's thread owns it (`load` runs before there is a loop). May fail: IllegalGroupError,
SubscriptionGroupNotExistError, what writing the file may raise.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from shmq.errors import ConfigError, SubscriptionGroupNotExistError
from shmq.store.config_files import ConfigFiles, DataVersion, SubscriptionGroups
from shmq.subscription import SubscriptionGroupConfig, check_group, is_system_group
from shmq.topic import BROKER_ID_MAX, QUEUE_NUMS_MAX

from .saver import Saver

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shmq.clock import Clock
    from shmq.config import BrokerConfig

__all__ = ["GroupTable"]

_log = logging.getLogger("shmq.broker")


class GroupTable:
    """All consumer groups of one broker.

    Args:
        files: config/ of the store.
        config: of the broker.
        clock: for dataVersion.
        is_copy: a slave's: its dataVersion is that of the master's table it was copied from, and
            groups are made by the master alone.
    """

    def __init__(
        self, files: ConfigFiles, config: BrokerConfig, clock: Clock, *, is_copy: bool = False
    ) -> None:
        self._files = files
        self._config = config
        self._clock = clock
        self._is_copy = is_copy
        self._groups: dict[str, SubscriptionGroupConfig] = {}
        self._other: Mapping[str, object] = {}
        self._saver = Saver(files, self._contents)
        self.data_version = DataVersion()
        """Of the last change."""
        self.on_changed: Callable[[str], None] = lambda _group: None
        """Told of a group that was made, changed or deleted, once it is on disk."""

    def load(self) -> None:
        """Read the file. Blocks.

        Raises:
            ConfigError: it and its backup cannot be read.
        """
        found = self._files.load_subscription_groups()
        self._groups = dict(found.groups)
        self._other = found.other
        self.data_version = found.data_version

    @property
    def configs(self) -> Mapping[str, SubscriptionGroupConfig]:
        """All of them, by name."""
        return self._groups

    def find(self, group: str) -> SubscriptionGroupConfig:
        """The configuration of a group.

        Raises:
            SubscriptionGroupNotExistError: there is no such group.
        """
        config = self._groups.get(group)
        if config is not None:
            return config
        if is_system_group(group):
            return SubscriptionGroupConfig(group_name=group)
        raise SubscriptionGroupNotExistError(
            f"group {group}: broker {self._config.broker_name} has no such group"
        )

    async def ensure(self, group: str) -> SubscriptionGroupConfig:
        """The configuration of a group, made if it is not there and the broker may make it.

        Raises:
            IllegalGroupError: RocketMQ would refuse the name.
            SubscriptionGroupNotExistError: it is not there, and groups are made by hand here.
        """
        check_group(group)
        is_known = group in self._groups or is_system_group(group)
        makes = self._config.auto_create_subscription_group and not self._is_copy
        if not is_known and makes:
            await self.update(SubscriptionGroupConfig(group_name=group))
        return self.of_member(group)

    def of_member(self, group: str) -> SubscriptionGroupConfig:
        """What holds for a member of a group. A slave takes a group that it does not know for one
        that its master will make.

        Raises:
            SubscriptionGroupNotExistError: there is no such group.
        """
        is_copied = group in self._groups or not self._config.auto_create_subscription_group
        if self._is_copy and not is_copied:
            return SubscriptionGroupConfig(group_name=group)
        return self.find(group)

    async def update(self, wanted: SubscriptionGroupConfig) -> None:
        """Make or change a group; returns when it is on disk.

        Raises:
            IllegalGroupError, ConfigError: nothing has changed.
            DiskFullError, StoreError: it holds, but not beyond this broker's life.
        """
        check_group(wanted.group_name)
        _check(wanted)
        before = self._groups.get(wanted.group_name)
        _check_idle(wanted, before or SubscriptionGroupConfig(group_name=wanted.group_name))
        if self._groups.get(wanted.group_name) == wanted:
            return
        self._groups[wanted.group_name] = wanted
        await self._save()
        self.on_changed(wanted.group_name)
        _log.info("group set group=%s", wanted.group_name)

    async def copy(
        self, wanted: Mapping[str, SubscriptionGroupConfig], version: DataVersion
    ) -> None:
        """Have the groups of the master, and no other.

        Raises:
            DiskFullError, StoreError: they hold, but not beyond this broker's life.
        """
        if (self._groups, self.data_version) != (wanted, version):
            self._groups, self.data_version = dict(wanted), version
            await self._save()

    async def delete(self, group: str) -> None:
        """Forget a group; one that is not there is forgotten already."""
        if self._groups.pop(group, None) is not None:
            await self._save()
            self.on_changed(group)
            _log.info("group deleted group=%s", group)

    async def _save(self) -> None:
        if not self._is_copy:
            self.data_version = self.data_version.following(wall_ms=self._clock.wall_ms())
        await self._saver.save()

    def _contents(self) -> SubscriptionGroups:
        return SubscriptionGroups(
            data_version=self.data_version, groups=dict(self._groups), other=self._other
        )


_IDLE: tuple[tuple[str, str, str, frozenset[object]], ...] = (
    ("group_sys_flag", "groupSysFlag", "nothing heeds it", frozenset({0})),
)
"""What RocketMQ's groups have besides and nothing here heeds: field, RocketMQ's name, why, and the
values that change nothing."""


def _check_idle(config: SubscriptionGroupConfig, before: SubscriptionGroupConfig) -> None:
    """ConfigError for a setting that would have no effect; one that a foreign store came with
    stays.
    """
    for field, key, why, harmless in _IDLE:
        value = getattr(config, field)
        if value not in harmless and value != getattr(before, field):
            wanted = " or ".join(str(item) for item in sorted(harmless, key=str))
            raise ConfigError(f"group {config.group_name}: {key} = {value}: {why}; wanted {wanted}")
    for key in config.attributes.keys() - before.attributes.keys():
        raise ConfigError(
            f"group {config.group_name}: attribute {key!r}: nothing here heeds a group's attributes"
        )


def _check(config: SubscriptionGroupConfig) -> None:
    """ConfigError for numbers that no broker can act on."""
    for key, value, least, most in (
        ("retryQueueNums", config.retry_queue_nums, 1, QUEUE_NUMS_MAX),
        ("retryMaxTimes", config.retry_max_times, 0, 2**31 - 1),
        ("consumeTimeoutMinute", config.consume_timeout_minute, 1, 2**31 - 1),
        ("brokerId", config.broker_id, 0, BROKER_ID_MAX),
        (
            "whichBrokerWhenConsumeSlowly",
            config.which_broker_when_consume_slowly,
            0,
            BROKER_ID_MAX,
        ),
    ):
        if not least <= value <= most:
            raise ConfigError(
                f"group {config.group_name}: {key} = {value}, wanted {least} to {most}"
            )
