"""A master's slaves: who they are, which of them are in sync, what a send gets that waits for them.

What lives here: `HAService` (RocketMQ's name). A slave is in the SyncStateSet once it has all that
is confirmed, while confirmed_position waits for it; it leaves when it has not caught up for
haMaxTimeSlaveNotCatchup, is haMaxGapNotInSync behind, or is gone. The append thread does the
waiting (replica.h); here it is told for whom.

The loop's thread owns it. May fail: QuotaError for too many slaves, ShmError for memory that is no
slave's.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from shmq.core import core
from shmq.errors import OwnerError
from shmq.remoting.command import Command
from shmq.status import BrokerRole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shmq.clock import Clock
    from shmq.config import BrokerConfig
    from shmq.remoting.codes import RequestCode
    from shmq.remoting.command import Scalar
    from shmq.remoting.server import Connection
    from shmq.store.message_store import MessageStore

__all__ = ["HAService", "Replica", "ReplicaStanding"]

_log = logging.getLogger("shmq.broker")

_LOOK_S = 0.05
_JOIN_BYTES = 16 << 20
"""A slave that is less behind is waited for until it has all that is confirmed."""
_JOIN_NS = 1_000_000_000
"""For so long; a message waits no longer for a slave that only joins."""


class ReplicaStanding(StrEnum):
    """What a slave is to the SyncStateSet."""

    OUT = "OUT"
    """Not in it."""
    JOINING = "JOINING"
    """Waited for, and not yet in it."""
    IN_SYNC = "IN_SYNC"
    """In it."""


@dataclass(slots=True, eq=False)
class Replica:
    """One slave."""

    connection: Connection
    """Of its control plane."""
    broker_id: int
    """As it calls itself."""
    index: int
    """In the store's ReplicaSet."""
    standing: ReplicaStanding
    """What it is to the SyncStateSet."""
    wanted_position: int
    """Our committed position at the last look: who has that has caught up."""
    caught_up_ns: int
    """When it last had."""
    since_ns: int
    """When its standing became what it is."""
    is_async_learner: bool = False
    """It copies, and is never in sync."""


class HAService:
    """The slaves of one master.

    Args:
        store: open.
        config: of the broker.
        clock: monotonic time.
    """

    def __init__(self, store: MessageStore, config: BrokerConfig, clock: Clock) -> None:
        self._store = store
        self._config = config
        self._clock = clock
        self._replicas: dict[Connection, Replica] = {}
        self._arrived = asyncio.Event()
        self.on_changed: Callable[[frozenset[int]], None] = lambda _ids: None
        """Told of the SyncStateSet's broker_ids, the slaves' alone, when they change."""
        self._counted: frozenset[int] = frozenset()
        self._is_confirming = config.master_role is BrokerRole.SYNC_MASTER
        self.refresh()

    @property
    def replicas(self) -> list[Replica]:
        """All slaves, by broker_id."""
        return sorted(self._replicas.values(), key=lambda replica: replica.broker_id)

    @property
    def sync_state_set(self) -> frozenset[int]:
        """broker_ids of the slaves in sync; the master belongs to it besides."""
        return frozenset(
            replica.broker_id
            for replica in self._replicas.values()
            if replica.standing is ReplicaStanding.IN_SYNC
        )

    def begin_confirming(self) -> None:
        """A topic's sends wait for slaves, though the broker's do not. From here on until the
        broker ends: those that wait when the last such topic goes are still to be confirmed.
        """
        if not self._is_confirming:
            self._is_confirming = True
            self.refresh()

    # ---- coming and going --------------------------------------------------------------------

    def add(
        self,
        connection: Connection,
        broker_id: int,
        control_fd: int,
        socket_fd: int,
        *,
        is_async_learner: bool = False,
    ) -> None:
        """A slave has come. The fds stay the caller's.

        Raises:
            OwnerError: another living process is that slave.
            QuotaError, ShmError: it is not taken in.
        """
        for other in self._replicas.values():
            if other.broker_id == broker_id:
                raise OwnerError(
                    f"attach slave {self._config.broker_name}:{broker_id}: {other.connection} is "
                    "that slave; give each a broker_id of its own"
                )
        index = self._store.replica_set.add(control_fd, socket_fd)
        now_ns = self._clock.monotonic_ns()
        committed = self._store.positions.committed_position
        self._replicas[connection] = Replica(
            connection,
            broker_id,
            index,
            ReplicaStanding.OUT,
            committed,
            now_ns,
            now_ns,
            is_async_learner,
        )
        self._store.replica_set.set_in_sync(index, broker_id in self._counted)
        self.refresh()
        _log.info("slave attached broker_id=%d", broker_id)
        self._arrived.set()

    def remove(self, connection: Connection) -> bool:
        """A connection has ended: if it was a slave's, nobody waits for that slave any more.

        Returns:
            whether it was.
        """
        replica = self._replicas.pop(connection, None)
        if replica is None:
            return False
        _log.warning("slave left broker_id=%d standing=%s", replica.broker_id, replica.standing)
        # Before it is released: what is sent meanwhile was not waited for, or waits on, where the
        # Controller counts it.
        self.refresh()
        self._store.replica_set.remove(replica.index)
        if replica.standing is ReplicaStanding.IN_SYNC:
            self.on_changed(self.sync_state_set)
        return True

    def has(self, connection: Connection) -> bool:
        """Whether a slave's control plane is this connection."""
        return connection in self._replicas

    def notify(self, code: RequestCode, fields: Mapping[str, Scalar]) -> None:
        """Tell all slaves that topics or groups changed: they copy at once what they copy."""
        for connection in self._replicas:
            connection.notify(Command(code, fields))

    def count(self, broker_ids: frozenset[int]) -> None:
        """Nothing is confirmed without these slaves, whether they are in sync, here or gone: a
        Controller counts them so, or may (decision 0024).
        """
        if broker_ids == self._counted:
            return
        self._counted = broker_ids
        for replica in self._replicas.values():
            self._wait_for(replica)
        self.refresh()

    # ---- looking -----------------------------------------------------------------------------

    async def watch(self) -> None:
        """Look after the slaves; until the broker stops."""
        while True:
            if not self._replicas:
                self._arrived.clear()
                await self._arrived.wait()
            self.look()
            await asyncio.sleep(_LOOK_S)

    def look(self) -> None:
        """One look: who joins, who leaves."""
        before = self.sync_state_set
        for replica in self._replicas.values():
            self._look_at(replica)
        if self.sync_state_set != before:
            self.refresh()
            self.on_changed(self.sync_state_set)

    def _look_at(self, replica: Replica) -> None:
        now_ns = self._clock.monotonic_ns()
        committed = self._store.positions.committed_position
        position = self._store.replica_set.positions(replica.index).committed_position
        if replica.wanted_position <= position <= committed:
            replica.caught_up_ns = now_ns
        replica.wanted_position = committed
        gap_bytes = committed - position
        late_ns = now_ns - replica.caught_up_ns
        if replica.is_async_learner:
            return
        is_late = late_ns > self._config.ha_max_time_slave_not_catchup_ms * 1_000_000
        if replica.standing is ReplicaStanding.OUT:
            # One that hangs is close too for a while: it would come and go at each look.
            is_close = gap_bytes <= min(_JOIN_BYTES, self._config.ha_max_gap_not_in_sync_bytes)
            if gap_bytes >= 0 and is_close and not is_late:
                self._set(replica, ReplicaStanding.JOINING, "it is close")
        elif replica.standing is ReplicaStanding.JOINING:
            if self._store.replica_set.set_in_sync(replica.index, True):
                self._set(replica, ReplicaStanding.IN_SYNC, "it has all that is confirmed")
            elif now_ns - replica.since_ns > _JOIN_NS:
                self._set(replica, ReplicaStanding.OUT, "it does not catch up")
        elif is_late:
            self._set(replica, ReplicaStanding.OUT, f"not caught up for {late_ns // 1_000_000} ms")
        elif gap_bytes > self._config.ha_max_gap_not_in_sync_bytes:
            self._set(replica, ReplicaStanding.OUT, f"{gap_bytes} bytes behind")

    def _set(self, replica: Replica, standing: ReplicaStanding, why: str) -> None:
        before, replica.standing = replica.standing, standing
        replica.since_ns = self._clock.monotonic_ns()
        if ReplicaStanding.IN_SYNC in (before, standing):
            _log.info("slave broker_id=%d standing=%s: %s", replica.broker_id, standing, why)
        if before is ReplicaStanding.IN_SYNC:
            self.refresh()  # before it is released: what is sent meanwhile was not waited for
        self._wait_for(replica)

    def _wait_for(self, replica: Replica) -> None:
        is_waited_for = (
            replica.standing is not ReplicaStanding.OUT or replica.broker_id in self._counted
        )
        self._store.replica_set.set_in_sync(replica.index, is_waited_for)

    def refresh(self) -> None:
        """Tell the append thread for whom it waits, and what a send gets where it cannot."""
        config = self._config
        if not self._is_confirming:
            return
        in_sync = self.sync_state_set
        needed = 0 if config.all_ack_in_sync_state_set else config.in_sync_replicas - 1
        status = "OK"
        if 1 + len(in_sync) < max(config.min_in_sync_replicas, needed + 1):
            status = "IN_SYNC_REPLICAS_NOT_ENOUGH"
        elif not in_sync | self._counted:
            status = "SLAVE_NOT_AVAILABLE"
        if not self._counted <= {replica.broker_id for replica in self._replicas.values()}:
            needed = core.REPLICA_MAX + 1  # more than there can be: nothing is confirmed
        self._store.replica_set.confirm(
            True, needed=needed, by_flushed=config.confirm_flushed_enable, status=status
        )

    # ---- what it is --------------------------------------------------------------------------

    def status(self) -> dict[str, object]:
        """What GET_BROKER_HA_STATUS shows; lag in bytes."""
        now = self._store.positions
        shown = []
        for replica in self.replicas:
            position = self._store.replica_set.positions(replica.index)
            shown.append(
                {
                    "brokerId": replica.broker_id,
                    "slaveAckOffset": position.committed_position,
                    "slaveFlushOffset": position.flushed_position,
                    "diff": now.committed_position - position.committed_position,
                    "inSync": replica.standing is ReplicaStanding.IN_SYNC,
                    "standing": replica.standing,
                }
            )
        return {
            "master": True,
            "masterCommitLogMaxOffset": now.committed_position,
            "confirmOffset": now.confirmed_position,
            "inSyncSlaveNums": len(self.sync_state_set),
            "haConnectionInfo": shown,
        }
