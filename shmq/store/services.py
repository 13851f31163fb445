"""Services of the broker that put messages of their own: an internal session each.

What lives here: `StoreService`. Retry, delay, transactions and the like append through the same
turns as everybody, with one ring. Each record carries the service's progress, which is committed by
the turn that appends it: a step of the service and its message are one. A service may have several
progress words, neighbours of its own; a record moves one of them. The ring is not kept over a
restart: what was not appended had no effect, and the service goes on from its committed progress.

A service that reads has a consumer's half as well: a Reader over the same memory as every client's.

Which process: the broker, any thread, one at a time. Writes: its own ring. May fail: as a send.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from shmq.core import core
from shmq.core.fields import read_ints, struct_size
from shmq.errors import ClosedError, ShmError
from shmq.shm.incarnation import Incarnation
from shmq.store.sessions import CHUNK_SIZE_DEFAULT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shmq.store.memory import StoreMemory
    from shmq.store.queues import QueueHandle
    from shmq.store.sessions import SessionOffer, Sessions

__all__ = ["SERVICE_MAX", "StoreService"]

SERVICE_MAX = core.SERVICE_MAX
"""Progress words of all services of one store."""

_TOO_LARGE = core.STATUS["TOO_LARGE"][0]


class StoreService:
    """One service's way into the log."""

    def __init__(
        self,
        memory: StoreMemory,
        sessions: Sessions,
        service_id: int,
        *,
        is_reading: bool = False,
        message_size_max: int = 0,
    ) -> None:
        """Open its session.

        Args:
            memory: of the store.
            sessions: of the store.
            service_id: 0 to SERVICE_MAX - 1, its first progress word; one living object for each.
            is_reading: it reads messages, too; its bell 0 may be subscribed to.
            message_size_max: largest body that it puts; bodies beyond a ring's share get memory of
                their own when the first one comes.

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
            consumer=is_reading,
            map_log=is_reading,
            property_grants=core.GRANT_SERVICE,
            service_id=service_id,
            lane_count=1,
        )
        self._memory = memory
        self._sessions = sessions
        self._session = offer.session
        self._generation = offer.generation
        self._chunk_bytes = max(CHUNK_SIZE_DEFAULT, 2 * message_size_max)
        self._has_chunk = False
        self._granted: set[int] = set()
        self._owners: list[core.Lane | core.Reader | core.LogMap] = []
        self._reader: core.Reader | None = None
        config = read_ints(memory.control, "control_config", struct_size("segment_header"))
        self._progress_place = config["service_slots_place"] + service_id * struct_size(
            "service_slot"
        )
        try:
            self._map(offer)
        except BaseException:
            self._close_memory()
            sessions.close(offer.session, offer.generation)
            raise
        finally:
            offer.close()

    def _map(self, offer: SessionOffer) -> None:
        completion = core.Mapping(offer.fds["completion"], offer.sizes["completion"])
        self._lane = core.Lane(
            self._memory.control,
            core.Mapping(offer.fds["ingress"], offer.sizes["ingress"], writable=True),
            completion,
            session=offer.session,
            lane=0,
            event_fd=offer.fds["event"],
            policy=core.WAIT_BLOCKING,
        )
        self._owners.append(self._lane)
        if "log" in offer.fds:
            log_map = core.LogMap(file_size=offer.file_size_bytes)
            self._owners.append(log_map)
            log_map.start(offer.fds["log"])
            self._reader = core.Reader(
                self._memory.control,
                self._memory.arena,
                log_map,
                consumer=core.Mapping(
                    offer.fds["consumer"], offer.sizes["consumer"], writable=True
                ),
                completion=completion,
                session=offer.session,
                policy=core.WAIT_BLOCKING,
            )
            self._owners.insert(0, self._reader)

    @property
    def progress(self) -> int:
        """The service's progress as of the last committed turn; of several words the first."""
        return self.progress_of(0)

    def progress_of(self, index: int) -> int:
        """One of its progress words, as of the last committed turn."""
        return self._memory.control.load64(
            self._progress_place + index * struct_size("service_slot")
        )

    @property
    def reader(self) -> core.Reader:
        """Of a service that reads; one thread's."""
        assert self._reader is not None
        return self._reader

    def subscribe(self, handle: QueueHandle) -> None:
        """Ring the reader's bell when a queue has something new."""
        self._sessions.subscribe(self._session, 0, handle.row)

    # ---- putting -----------------------------------------------------------------------------

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
            body: the body.
            progress: of the service once this message is in the log.
            tag: TAGS.
            keys: KEYS.
            properties: others; reserved names are allowed. DELAY delays it.
            flag: the user's flag.
            sys_flag: RocketMQ's sysFlag bits.
            reconsume_times: deliveries that failed before.
            born_timestamp: ms since 1970; 0: now.
            timeout_s: seconds.

        Returns:
            (status, queue_offset, physical_offset, size), status as in core.STATUS.
        """
        given = dict(properties or {})
        if tag is not None:
            given["TAGS"] = tag
        if keys:
            given["KEYS"] = " ".join(keys)
        sequence = self.begin(
            handle,
            body,
            progress=progress,
            properties=given,
            flag=flag,
            sys_flag=sys_flag,
            reconsume_times=reconsume_times,
            born_timestamp=born_timestamp,
            timeout_s=timeout_s,
        )
        if sequence < 0:
            return sequence, -1, -1, 0
        return self.finish(sequence, timeout_s)

    def begin(
        self,
        handle: QueueHandle,
        body: bytes | memoryview,
        *,
        progress: int,
        progress_index: int = 0,
        properties: Mapping[str, str],
        flag: int = 0,
        sys_flag: int = 0,
        reconsume_times: int = 0,
        born_timestamp: int = 0,
        timeout_s: float = 3.0,
    ) -> int:
        """Put one message into the ring, as `put`; `finish` waits for it, so that many go at once.

        Args:
            handle: and the others as for `put`.
            body: as for `put`.
            progress: as for `put`.
            progress_index: which of the service's progress words it moves.
            properties: all of them, TAGS and KEYS included.
            flag: as for `put`.
            sys_flag: as for `put`.
            reconsume_times: as for `put`.
            born_timestamp: as for `put`.
            timeout_s: seconds for room in the ring.

        Returns:
            What `finish` takes, or a negative status of core.STATUS: nothing was put.
        """
        if handle.row not in self._granted:
            self._sessions.grant(self._session, [handle.row])
            self._granted.add(handle.row)
        self._lane.set_service(
            progress=progress,
            sys_flag=sys_flag,
            reconsume_times=reconsume_times,
            born_timestamp=born_timestamp,
            service_index=progress_index,
        )
        for _ in range(2):
            sequence = self._lane.put(
                handle.row,
                handle.generation,
                body,
                None,
                None,
                properties,
                flag,
                keep=True,
                timeout=timeout_s,
            )
            if sequence != _TOO_LARGE or self._has_chunk:
                break
            self._attach_chunk()
        return sequence

    def finish(self, sequence: int, timeout_s: float = 3.0) -> tuple[int, int, int, int]:
        """What became of it, as `put`; TIMED_OUT: not known yet, ask again."""
        return self._lane.wait(sequence, timeout_s)

    def _attach_chunk(self) -> None:
        """Memory for bodies that the ring does not take."""
        fd = self._sessions.grant_chunk(self._session, self._chunk_bytes)
        try:
            memory = core.Mapping(fd, os.fstat(fd).st_size, writable=True)
        finally:
            os.close(fd)
        self._lane.attach_chunk(
            core.ChunkMemory(self._memory.control, memory, session=self._session)
        )
        self._has_chunk = True

    # ---- ending ------------------------------------------------------------------------------

    def close(self) -> None:
        """End the session."""
        self._close_memory()
        self._sessions.close(self._session, self._generation)

    def _close_memory(self) -> None:
        for owner in self._owners:
            with suppress(ClosedError, ShmError, BufferError):
                owner.close()
