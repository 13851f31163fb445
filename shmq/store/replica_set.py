"""A master's side of replication: its slaves' positions, and which of them are waited for.

What lives here: `ReplicaSet`. A slave hands its control segment over, read-only; the append thread
reads its positions there and lets confirmed_position follow those that are in sync (replica.h). Who
is in sync is decided above (the broker).

Which process: a master's broker, its control thread. Writes: nothing that is shared. May fail:
QuotaError beyond core.REPLICA_MAX slaves; ShmError for a segment that is none.
"""

from __future__ import annotations

import os
import threading
from typing import NamedTuple

from shmq.core import core
from shmq.core.fields import control_place
from shmq.errors import QuotaError, ShmError

__all__ = ["ReplicaPositions", "ReplicaSet"]

_COMMITTED_PLACE = control_place("append_positions", "committed_position")
_FLUSHED_PLACE = control_place("flush_positions", "flushed_position")


class ReplicaPositions(NamedTuple):
    """How far a slave is, in physical_offsets; its own words, which may be any number."""

    committed_position: int
    """Behind the last frame it has copied."""
    flushed_position: int
    """Bytes below it are on its disk."""


class ReplicaSet:
    """The slaves of one master. Threads may share it."""

    def __init__(self, appender: core.Appender) -> None:
        self._appender = appender
        self._controls: dict[int, core.Mapping] = {}
        self._in_sync: set[int] = set()
        self._lock = threading.Lock()

    def add(self, control_fd: int, socket_fd: int) -> int:
        """Take in a slave that is not in sync yet; its index. The fds stay the caller's.

        Raises:
            QuotaError: there are core.REPLICA_MAX.
            ShmError: that is no control segment of this layout.
        """
        if os.fstat(control_fd).st_size < core.PAGE:
            raise ShmError("take in a slave: its control segment is shorter than a page")
        control = core.Mapping(control_fd, core.PAGE)
        try:
            with self._lock:
                index = self._appender.add_replica(control, socket_fd)
                self._controls[index] = control
        except core.CoreError:
            control.close()
            raise QuotaError(
                f"take in a slave: there are {core.REPLICA_MAX} already, which is the most"
            ) from None
        except ValueError as error:
            control.close()
            raise ShmError(f"take in a slave: {error}") from None
        return index

    def remove(self, index: int) -> None:
        """A slave is gone: nobody waits for it."""
        with self._lock:
            control = self._controls.pop(index)
            self._in_sync.discard(index)
            self._appender.remove_replica(index)
        control.close()

    def set_in_sync(self, index: int, is_in_sync: bool) -> bool:
        """Wait for a slave from now on, or no longer. Whether it has all that is confirmed: only
        then does a slave that is waited for belong to the SyncStateSet.
        """
        with self._lock:
            if is_in_sync:
                self._in_sync.add(index)
            else:
                self._in_sync.discard(index)
            return self._appender.set_replica(index, is_in_sync)

    def confirm(
        self,
        is_confirming: bool,
        *,
        needed: int = 0,
        by_flushed: bool = False,
        status: str = "OK",
    ) -> None:
        """Say what confirmed_position follows.

        Args:
            is_confirming: False: nothing; it stays where it is, and nobody reads it.
            needed: slaves in sync that must have a message; 0: all of them.
            by_flushed: it must be on their disks.
            status: of the core, that sends get which wait for slaves: SLAVE_NOT_AVAILABLE: stored,
                and not waited for; IN_SYNC_REPLICAS_NOT_ENOUGH: refused.
        """
        self._appender.confirm(
            is_confirming,
            needed=needed,
            by_flushed=by_flushed,
            status=-core.STATUS[status][0],
        )

    def positions(self, index: int) -> ReplicaPositions:
        """How far a slave is, as of now."""
        with self._lock:
            load = self._controls[index].load64
            return ReplicaPositions(load(_COMMITTED_PLACE), load(_FLUSHED_PLACE))

    @property
    def is_empty(self) -> bool:
        """Whether there is no slave."""
        return not self._controls

    def has_all(self, end: int) -> bool:
        """Whether every slave that is waited for has copied what is below a physical_offset."""
        with self._lock:
            return all(
                self._controls[index].load64(_COMMITTED_PLACE) >= end for index in self._in_sync
            )

    def close(self) -> None:
        """Let go of all."""
        for index in tuple(self._controls):
            self.remove(index)
