"""From which member of its replica set a group reads next: what answers to reads of files suggest.

What lives here: `SlaveReads`. A master that may send consumers to its slaves (slaveReadEnable) does
so with those that are further behind than memory holds: what they read comes from a disk, and the
slave's is another one. To which slave, the group says (whichBrokerWhenConsumeSlowly, 1), and from
whom it reads otherwise, too (brokerId, the master). A slave answers by the same rule, so that who
has caught up goes back.

Which process: a broker's, in its loop's thread. Writes nothing. Nothing fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmq.shm.memory import memory_total
from shmq.subscription import SubscriptionGroupConfig

if TYPE_CHECKING:
    from shmq.broker.subscription_groups import GroupTable
    from shmq.config import BrokerConfig
    from shmq.store.message_store import MessageStore

__all__ = ["SlaveReads"]

_MASTER = 0
_NO_GROUP = SubscriptionGroupConfig(group_name="")
"""Who reads for none is treated as a group that nobody has configured."""


class SlaveReads:
    """What one broker suggests.

    Args:
        store: open.
        groups: loaded.
        config: of the broker.
        is_slave: whether it is one.
    """

    def __init__(
        self, store: MessageStore, groups: GroupTable, config: BrokerConfig, *, is_slave: bool
    ) -> None:
        self._store = store
        self._groups = groups
        self._config = config
        self._is_slave = is_slave
        self.read_count = 0
        """Reads of files, and of copies, that were answered."""
        self._memory_bytes = memory_total()

    def suggest(self, group: str, physical_offset: int) -> int:
        """The broker_id to read from next, for a group that has read up to a physical_offset; -1:
        it has read all there is.
        """
        self.read_count += 1
        if not self._config.slave_read_enable:
            return _MASTER
        known = self._groups.configs.get(group)
        config = known or _NO_GROUP
        behind_bytes = self._store.positions.committed_position - physical_offset
        ratio = self._config.access_message_in_memory_max_ratio
        if physical_offset >= 0 and behind_bytes > self._memory_bytes * ratio // 100:
            if known is None and group and self._is_slave:
                # The master sent it here, by what it knows of the group and we have not copied yet.
                return self._config.broker_id
            return config.which_broker_when_consume_slowly
        return config.broker_id
