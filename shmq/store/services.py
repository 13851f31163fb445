"""Services of the broker that put messages of their own: an internal session each.

What lives here: `StoreService`. Retry, delay, transactions and the like append through the same
turns as everybody, with one ring. Each record carries the service's progress, which is committed by
the turn that appends it: a step of the service and its message are one. The ring is not kept over a
restart: what was not appended had no effect, and the service goes on from its committed progress.

Which process: the broker, any thread, one at a time. Writes: its own ring. May fail: as a send.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from shmq.core import core
from shmq.core.fields import read_ints, struct_size
from shmq.shm.incarnation import Incarnation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shmq.store.memory import StoreMemory
    from shmq.store.queues import QueueHandle
    from shmq.store.sessions import Sessions

__all__ = ["SERVICE_MAX", "StoreService"]

SERVICE_MAX = core.SERVICE_MAX
"""Services of one store."""


class StoreService:
    """One service's way into the log."""

    def __init__(self, memory: StoreMemory, sessions: Sessions, service_id: int) -> None:
        """Open its session.

        Args:
            memory: of the store.
            sessions: of the store.
            service_id: 0 to SERVICE_MAX - 1; one living object for each.

        Raises:
            QuotaError, ShmFullError, ShmError: no slot or memory.
        """
        if not 0 <= service_id < SERVICE_MAX:
            raise ValueError(f"open service {service_id}: want 0 to {SERVICE_MAX - 1}")
        own = Incarnation.current()
        offer = sessions.open(
            uid=os.geteuid(),
            pid=own.pid,
            pid_start_time=own.start_time,
            consumer=False,
            map_log=False,
            property_grants=core.GRANT_SERVICE,
            service_id=service_id,
            lane_count=1,
        )
        self._memory = memory
        self._sessions = sessions
        self._session = offer.session
        self._granted: set[int] = set()
        config = read_ints(memory.control, "control_config", struct_size("segment_header"))
        self._progress_place = config["service_slots_place"] + service_id * struct_size(
            "service_slot"
        )
        try:
            self._lane = core.Lane(
                memory.control,
                core.Mapping(offer.fds["ingress"], offer.sizes["ingress"], writable=True),
                core.Mapping(offer.fds["completion"], offer.sizes["completion"]),
                session=offer.session,
                lane=0,
                event_fd=offer.fds["event"],
            )
        finally:
            offer.close()

    @property
    def progress(self) -> int:
        """The service's progress as of the last committed turn."""
        return self._memory.control.load64(self._progress_place)

    def put(
        self,
        handle: QueueHandle,
        body: bytes | memoryview,
        *,
        progress: int,
        tag: str | None = None,
        keys: tuple[str, ...] = (),
        properties: Mapping[str, str] | None = None,
        flag: int = 0,
        sys_flag: int = 0,
        reconsume_times: int = 0,
        born_timestamp: int = 0,
        timeout_s: float = 3.0,
    ) -> tuple[int, int, int, int]:
        """Append one message and the service's progress together; waits until it is committed.

        Args:
            handle: the queue.
            body: at most a quarter of the ring.
            progress: of the service once this message is in the log.
            tag: TAGS.
            keys: KEYS.
            properties: others; reserved names are allowed.
            flag: the user's flag.
            sys_flag: RocketMQ's sysFlag bits.
            reconsume_times: deliveries that failed before.
            born_timestamp: ms since 1970; 0: now.
            timeout_s: seconds.

        Returns:
            (status, queue_offset, physical_offset, size), status as in core.STATUS.
        """
        if handle.row not in self._granted:
            self._sessions.grant(self._session, [handle.row])
            self._granted.add(handle.row)
        self._lane.set_service(
            progress=progress,
            sys_flag=sys_flag,
            reconsume_times=reconsume_times,
            born_timestamp=born_timestamp,
        )
        sequence = self._lane.put(
            handle.row,
            handle.generation,
            body,
            tag,
            keys or None,
            properties,
            flag,
            keep=True,
            timeout=timeout_s,
        )
        return self._lane.wait(sequence, timeout_s)

    def close(self) -> None:
        """End the session."""
        self._lane.close()
        self._sessions.close(self._session)
