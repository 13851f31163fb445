"""Sessions: the shared memory of each client, made, handed out, taken back, resumed.

What lives here: `Sessions` and `SessionOffer`, the fds and sizes that a client gets. Who may have a
session and which queues it may send to is decided above (the broker); here it is carried out.

Which process: the broker's control thread. Writes: session slots and grants (through the Appender),
completion objects, memfds. May fail: QuotaError when all slots are taken, ShmFullError, ShmError
for memory that is not what a resumed session had; nothing is left behind then.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from shmq.core import core
from shmq.core.fields import field_place, read_ints, struct_size
from shmq.errors import ClosedError, LimitError, OwnerError, QuotaError, ShmError
from shmq.shm import memfd
from shmq.shm.fds import open_error
from shmq.shm.incarnation import Incarnation
from shmq.shm.names import ObjectKind
from shmq.shm.segment import open_readonly
from shmq.store.memory import completion_size, ingress_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from shmq.shm.fd_store import FdStore
    from shmq.shm.segment import Segment
    from shmq.store.log_channel import LogChannel
    from shmq.store.memory import StoreMemory

__all__ = ["ReportedClaim", "SessionOffer", "Sessions"]

_log = logging.getLogger("shmq.store")

_CLAIM_CAPACITY = 1920
"""Claims of one consumer page: with the page of sleepers 64 KiB."""
CHUNK_SIZE_DEFAULT = 32 << 20
"""Bytes of chunk memory a client gets for large bodies: seven of the largest and their headers."""


@dataclass(slots=True)
class SessionOffer:
    """What a client needs to attach. The fds are the receiver's to close."""

    session: int
    """Index of its slot."""
    generation: int
    """Generation of the slot: both name the session, and what comes later under them is stale."""
    lane_count: int
    """Lanes in the ingress object; 0 for a client that only reads."""
    lane_capacity_bytes: int
    """Ring bytes of one lane."""
    completion_capacity: int
    """Completion entries of one lane."""
    claim_capacity: int
    """Claims in the consumer page, 0 if there is none."""
    file_size_bytes: int
    """Size of a CommitLog file."""
    fds: dict[str, int]
    """control, completion, event; topics, arena and log for who maps the log; ingress, consumer and
    chunk where there is one.
    Resumed, the client keeps its own ingress, consumer and chunk."""
    sizes: dict[str, int]
    """Bytes of what the fds stand for (control, topics and arena: reserved address space)."""

    def close(self) -> None:
        """Close the fds: they were passed on."""
        while self.fds:
            os.close(self.fds.popitem()[1])


class ReportedClaim(NamedTuple):
    """What a consumer says in one slot of its page; hostile until it is held against its queue."""

    claim: int
    """Claim number, 0: none."""
    consumer_offset: int
    """Next queue_offset to consume under it."""


@dataclass(slots=True)
class _Session:
    generation: int
    consumer: core.Mapping | None
    """Its consumer page, written by the client."""


class Sessions:
    """All sessions of one store. Threads may share it."""

    def __init__(
        self,
        appender: core.Appender,
        memory: StoreMemory,
        channel: LogChannel,
        *,
        slot_count: int,
        lane_count: int,
        lane_capacity_bytes: int,
        completion_capacity: int,
        fd_store: FdStore,
    ) -> None:
        self._appender = appender
        self._memory = memory
        self._channel = channel
        self._slot_count = slot_count
        self._lane_count = lane_count
        self._lane_capacity_bytes = lane_capacity_bytes
        self._completion_capacity = completion_capacity
        self._fd_store = fd_store
        self._live: dict[int, _Session] = {}
        self._lost: set[int] = set()
        self._kept: dict[int, dict[str, int]] = {}
        """Memory of lost sessions that systemd kept: fds by kind."""
        self._lock = threading.RLock()
        self._config = read_ints(memory.control, "control_config", struct_size("segment_header"))

    # ---- opening ---------------------------------------------------------------------------------

    def open(
        self,
        *,
        uid: int,
        pid: int,
        pid_start_time: int,
        producer: bool = True,
        consumer: bool = True,
        map_log: bool = True,
        property_grants: int = 0,
        service_id: int | None = None,
        lane_count: int | None = None,
    ) -> SessionOffer:
        """Make a session for a client and attach it to the turns.

        Args:
            uid: of the client, from the socket.
            pid: of the client; with pid_start_time its incarnation.
            pid_start_time: clock ticks since boot.
            producer: it gets ingress rings.
            consumer: it gets a consumer page.
            map_log: it gets a log channel, with the right to read everything in the log, and the
                topics and arena segments; without, nothing that has a name or a place in the log.
            property_grants: core.GRANT_* bits.
            service_id: an internal session of this service, whose progress its records carry.
            lane_count: rings it gets; None: as configured.

        Raises:
            QuotaError: every session slot is taken.
            ShmFullError, LimitError, ShmError: no memory or fds for it.
        """
        with self._lock, contextlib.ExitStack() as undo:
            lanes = (lane_count or self._lane_count) if producer else 0
            capacity = self._lane_capacity_bytes if producer else 0
            completions = self._completion_capacity if producer else 0
            claims = _CLAIM_CAPACITY if consumer else 0
            size = completion_size(lanes, completions)
            session, segment, completion = self._take_slot(size)
            undo.callback(self._memory.drop_completion, session)
            undo.callback(segment.close)
            fds: dict[str, int] = {}
            offer = SessionOffer(
                session=session,
                generation=0,
                lane_count=lanes,
                lane_capacity_bytes=capacity,
                completion_capacity=completions,
                claim_capacity=claims,
                file_size_bytes=self._config["file_size_bytes"],
                fds=fds,
                sizes={"completion": size},
            )
            undo.callback(offer.close)
            fds["completion"] = open_readonly(segment)
            ingress = None
            if producer:
                ingress = self._make(fds, offer, "ingress", ingress_size(lanes, capacity))
            consumer_page = None
            if consumer:
                page_size = core.CLAIMS_PLACE + claims * struct_size("claim")
                consumer_page = self._make(fds, offer, "consumer", page_size)
            fds["event"] = _event()
            offer.generation = self._appender.attach(
                session,
                ingress=ingress,
                completion=completion,
                consumer=consumer_page,
                chunk=None,
                event_fd=fds["event"],
                fresh=True,
                lane_count=lanes,
                lane_capacity_bytes=capacity,
                completion_capacity=completions,
                claim_capacity=claims,
                uid=uid,
                pid=pid,
                pid_start_time=pid_start_time,
                ingress_inode=_inode(fds.get("ingress")),
                ingress_size_bytes=offer.sizes.get("ingress", 0),
                consumer_inode=_inode(fds.get("consumer")),
                consumer_size_bytes=offer.sizes.get("consumer", 0),
                completion_number=session,
                service_id=0 if service_id is None else service_id + 1,
                property_grants=property_grants,
            )
            undo.callback(self._appender.detach, session)
            self._live[session] = _Session(offer.generation, consumer_page)
            undo.callback(self._live.pop, session)
            self._add_shared(offer, map_log)
            undo.pop_all()
            segment.close()
            if service_id is None:  # what a service has dies with the broker
                self._keep(session, offer.generation, fds)
            return offer

    def resume(
        self,
        *,
        session: int,
        generation: int,
        uid: int,
        fds: Mapping[str, int],
        map_log: bool = True,
        send_rows: Iterable[int] = (),
    ) -> SessionOffer:
        """Attach a session that the predecessor had, with the memory that its client kept.

        Args:
            session: slot index, from the client's old offer.
            generation: of the slot, from there too.
            uid: of the client, from the socket.
            fds: ingress, consumer, chunk as the client handed them back; they stay the caller's.
            map_log: as in `open`.
            send_rows: granted before the first record is taken again.

        Raises:
            ShmError: not a session that may be resumed, or memory that is not what it had; says
                which. Nothing has changed.
        """
        with self._lock, contextlib.ExitStack() as undo:
            slot = self._slot(session)
            what = f"resume session {session}"
            if session not in self._lost or slot["generation"] != generation:
                raise ShmError(
                    f"{what}: generation {generation} of it does not wait to be resumed; "
                    "open a new session"
                )
            if slot["uid"] != uid:
                raise ShmError(f"{what}: it belongs to uid {slot['uid']}, not {uid}")
            mappings: dict[str, core.Mapping | None] = {}
            for kind in _CLIENT_MEMORY:
                size = slot[f"{kind}_size_bytes"]
                if (size != 0) != (kind in fds):
                    raise ShmError(f"{what}: {kind} memory {'wanted' if size else 'unasked for'}")
                mappings[kind] = None
                if size:
                    memfd.verify_sealed(
                        fds[kind], size_bytes=size, inode=slot[f"{kind}_inode"], uid=os.geteuid()
                    )
                    mappings[kind] = core.Mapping(fds[kind], size, writable=True)
            size = completion_size(slot["lane_count"], slot["completion_capacity"])
            segment, completion = self._memory.adopt_completion(session, size)
            undo.callback(segment.close)
            offer = SessionOffer(
                session=session,
                generation=generation,
                lane_count=slot["lane_count"],
                lane_capacity_bytes=slot["lane_capacity_bytes"],
                completion_capacity=slot["completion_capacity"],
                claim_capacity=slot["claim_capacity"],
                file_size_bytes=self._config["file_size_bytes"],
                fds={"completion": open_readonly(segment)},
                sizes={"completion": size},
            )
            undo.callback(offer.close)
            offer.fds["event"] = _event()
            for row in send_rows:
                self._appender.set_grant(session, row, True)
                undo.callback(self._appender.set_grant, session, row, False)
            self._appender.attach(
                session,
                ingress=mappings["ingress"],
                completion=completion,
                consumer=mappings["consumer"],
                chunk=mappings["chunk"],
                event_fd=offer.fds["event"],
                fresh=False,
            )
            undo.callback(self._appender.detach, session)
            self._live[session] = _Session(generation, mappings["consumer"])
            self._lost.discard(session)
            self._add_shared(offer, map_log)
            undo.pop_all()
            segment.close()
            self._keep(session, generation, fds)
            self._close_kept(session)
            return offer

    def _add_shared(self, offer: SessionOffer, map_log: bool) -> None:
        shared = [("control", ObjectKind.CONTROL, self._memory.control)]
        if map_log:
            shared.append(("topics", ObjectKind.TOPICS, self._memory.topics))
            shared.append(("arena", ObjectKind.ARENA, self._memory.arena))
        for name, kind, mapping in shared:
            offer.fds[name] = self._memory.open_readonly(kind)
            offer.sizes[name] = mapping.reserve_bytes
        if map_log:
            offer.fds["log"] = self._channel.add(offer.session)

    def _make(self, fds: dict[str, int], offer: SessionOffer, kind: str, size: int) -> core.Mapping:
        fds[kind] = memfd.create_sealed(f"shmq-{kind}", size_bytes=size)
        offer.sizes[kind] = size
        mapping = core.Mapping(fds[kind], size, writable=True)
        magic, core_kind = _CLIENT_HEADS[kind]
        mapping.init_header(
            kind=core_kind,
            magic=magic,
            store_generation=int(self._memory.manifest.generation, 16),
            boot_id=self._memory.manifest.boot_id,
            owner_pid=0,
            owner_uid=0,
            owner_start_time=0,
            master_epoch=0,
            number=offer.session,
        )
        return mapping

    def grant_chunk(self, session: int, size_bytes: int = CHUNK_SIZE_DEFAULT) -> int:
        """Make the chunk memory for a session's large bodies; the client's fd. Once per session.

        Raises:
            ShmError: it has one, or there is no such session; ShmFullError: no memory.
        """
        with self._lock:
            self._require(session)
            if self._slot(session)["chunk_inode"] != 0:
                raise ShmError(f"grant chunk memory to session {session}: it has some already")
            size = core.CHUNK_DATA_PLACE + size_bytes
            fd = memfd.create_sealed("shmq-chunk", size_bytes=size)
            try:
                mapping = core.Mapping(fd, size, writable=True)
                self._appender.set_chunk(session, mapping, os.fstat(fd).st_ino)
            except BaseException:
                os.close(fd)
                raise
            self._keep(session, self._live[session].generation, {"chunk": fd})
            return fd

    def memory_bytes(self, *, producer: bool, consumer: bool) -> int:
        """What a new session takes of memory, in bytes, before it has chunk memory."""
        lanes = self._lane_count if producer else 0
        capacity = self._lane_capacity_bytes if producer else 0
        total = completion_size(lanes, self._completion_capacity if producer else 0)
        if producer:
            total += ingress_size(lanes, capacity)
        if consumer:
            total += core.CLAIMS_PLACE + _CLAIM_CAPACITY * struct_size("claim")
        return total

    def memory_bytes_of(self, session: int) -> int:
        """What a session has of it, chunk memory included."""
        with self._lock:
            slot = self._slot(session)
            return completion_size(slot["lane_count"], slot["completion_capacity"]) + sum(
                slot[f"{kind}_size_bytes"] for kind in _CLIENT_MEMORY
            )

    @property
    def slot_count(self) -> int:
        """How many sessions there may be."""
        return self._slot_count

    def grant_socket(self, session: int) -> int:
        """Make the socket that gets a byte with each bell of a session that is rung; the client's
        end. One that was made before ends.

        Raises:
            ShmError: there is no such session; LimitError: no descriptors.
        """
        with self._lock:
            self._require(session)
            try:
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            except OSError as error:
                raise LimitError(f"grant a socket to session {session}: {error.strerror}") from None
            with ours, theirs:
                # What a client does not read stays with the broker: a few bytes tell as much.
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
                theirs.setblocking(False)
                self._appender.set_socket(session, ours.fileno())
                return theirs.detach()

    # ---- rights and bells ------------------------------------------------------------------------

    def grant(self, session: int, rows: Iterable[int]) -> None:
        """Let a session send to these queue rows."""
        with self._lock:
            self._require(session)
            for row in rows:
                self._appender.set_grant(session, row, True)

    def revoke(self, session: int, rows: Iterable[int]) -> None:
        """Let it no longer."""
        with self._lock:
            self._require(session)
            for row in rows:
                self._appender.set_grant(session, row, False)

    def subscribe(self, session: int, bell: int, row: int) -> None:
        """Ring one of a session's consumer bells when the queue row has something new."""
        with self._lock:
            self._require(session)
            self._appender.subscribe(session, bell, row)

    def unsubscribe(self, session: int, bell: int, row: int) -> None:
        """Ring it no more."""
        with self._lock:
            self._require(session)
            self._appender.unsubscribe(session, bell, row)

    # ---- claims ----------------------------------------------------------------------------------

    def load_claim(self, session: int, generation: int, slot: int) -> ReportedClaim | None:
        """What the client reports in a slot of its consumer page; None where the session is not
        live, has no page, or the client is just writing another claim there.
        """
        with self._lock:
            live = self._live.get(session)
            if live is None or live.generation != generation or live.consumer is None:
                return None
            place = core.CLAIMS_PLACE + slot * struct_size("claim")
            claim = live.consumer.load64(place)
            consumer_offset = live.consumer.load64(place + field_place("claim", "consumer_offset"))
            if live.consumer.load64(place) != claim:
                return None
            return ReportedClaim(claim, consumer_offset)

    # ---- ending ----------------------------------------------------------------------------------

    def is_drained(self, session: int, generation: int | None = None) -> bool:
        """Whether everything the session has published was taken; True once it has ended."""
        with self._lock:
            live = self._live.get(session)
            is_other = generation is not None and live is not None and live.generation != generation
            return live is None or is_other or self._appender.drained(session)

    def close(self, session: int, generation: int | None = None) -> None:
        """End a session: what it published and was not taken yet is dropped (see is_drained).

        Args:
            session: its slot.
            generation: of the slot; if that session has ended already, its successor is left alone.
        """
        with self._lock:
            live = self._live.get(session)
            if generation is not None and (live is None or live.generation != generation):
                return
            self._channel.remove(session)
            ended = self._live.pop(session, None)
            if ended is not None:
                self._fd_store.drop(self._kept_name(session, ended.generation))
                self._appender.detach(session)
                self._memory.drop_completion(session)

    def find_lost(self) -> list[int]:
        """After adoption: sessions of the predecessor that wait to be resumed."""
        with self._lock:
            self._lost = {
                session
                for session in range(self._slot_count)
                if self._slot(session)["state"] == core.SESSION_LIVE
            }
            for session in tuple(self._lost):
                slot = self._slot(session)
                if slot["service_id"] != 0 or not _has_memory(slot):
                    # A service's memory died with the broker; who has none, as a slave, comes anew.
                    self.forget_lost(session)
                else:
                    self._take_kept(session, slot)
            return sorted(self._lost)

    def forget_lost(self, session: int) -> None:
        """Give up a lost session: its client is gone, or its broker decides that it is."""
        with self._lock:
            if session in self._lost:
                self._lost.discard(session)
                self._close_kept(session)
                self._fd_store.drop(self._kept_name(session, self._slot(session)["generation"]))
                self._appender.free_session(session)
                self._memory.drop_completion(session)

    # ---- orphans: client and broker died, and systemd kept the memory ----------------------------

    def orphans(self) -> list[int]:
        """Lost sessions whose client is dead, and whose memory is there."""
        with self._lock:
            return [session for session in sorted(self._kept) if self._is_orphan(session)]

    def uid_of(self, session: int) -> int:
        """Whose a session is, or was."""
        return self._slot(session)["uid"]

    def life_of(self, session: int) -> Incarnation:
        """The process whose a session is, or was; zeros where it could not be seen."""
        slot = self._slot(session)
        return Incarnation(slot["pid"], slot["pid_start_time"])

    def adopt_orphan(self, session: int, send_rows: Iterable[int]) -> int:
        """Attach an orphan, so that what it published is taken; its generation, to close it by.

        Raises:
            ShmError: it is none, or its memory is not what it had; it is an orphan no more.
        """
        with self._lock:
            if not self._is_orphan(session):
                raise ShmError(f"adopt session {session}: its client may come back")
            slot = self._slot(session)
            try:
                self.resume(
                    session=session,
                    generation=slot["generation"],
                    uid=slot["uid"],
                    fds=self._kept[session],
                    map_log=False,
                    send_rows=send_rows,
                ).close()
            finally:
                self._close_kept(session)
            return slot["generation"]

    def _is_orphan(self, session: int) -> bool:
        life = self.life_of(session)
        is_known = life.pid > 0 and life.start_time > 0  # not of another pid namespace
        return session in self._kept and is_known and not life.is_alive()

    def _kept_name(self, session: int, generation: int) -> str:
        return f"{self._memory.manifest.generation}.{session}.{generation}"

    def _keep(self, session: int, generation: int, fds: Mapping[str, int]) -> None:
        kept = [fds[kind] for kind in _CLIENT_MEMORY if kind in fds]
        self._fd_store.keep(self._kept_name(session, generation), kept)

    def _take_kept(self, session: int, slot: dict[str, int]) -> None:
        """What systemd has of a lost session, if that is all of it."""
        by_inode: dict[int, int] = {}
        for fd in self._fd_store.take(self._kept_name(session, slot["generation"])):
            if by_inode.setdefault(os.fstat(fd).st_ino, fd) != fd:
                os.close(fd)
        wanted = [kind for kind in _CLIENT_MEMORY if slot[f"{kind}_size_bytes"]]
        if all(slot[f"{kind}_inode"] in by_inode for kind in wanted):
            found = {kind: by_inode.pop(slot[f"{kind}_inode"]) for kind in wanted}
            self._kept[session] = found
        for fd in by_inode.values():
            os.close(fd)

    def _close_kept(self, session: int) -> None:
        for fd in self._kept.pop(session, {}).values():
            os.close(fd)

    def close_kept(self) -> None:
        """Let go of what systemd keeps for us; it goes on keeping it."""
        with self._lock:
            for session in tuple(self._kept):
                self._close_kept(session)

    @property
    def is_needed(self) -> bool:
        """Whether somebody has rings or pages that a successor must go on with."""
        with self._lock:
            return bool(self._lost) or any(_has_memory(self._slot(one)) for one in self._live)

    def ended(self) -> list[tuple[int, int]]:
        """Sessions that broke a rule of the ring: (session, positive status)."""
        found = []
        with self._lock:
            for session in self._live:
                for lane in range(core.LANE_MAX):
                    status = self._ring_ended(session * core.LANE_MAX + lane)
                    if status:
                        found.append((session, status))
                        break
        return found

    @property
    def live(self) -> list[int]:
        """Sessions that are attached."""
        with self._lock:
            return sorted(self._live)

    @property
    def lost(self) -> list[int]:
        """Sessions that wait to be resumed."""
        with self._lock:
            return sorted(self._lost)

    def lost_lives(self) -> list[Incarnation]:
        """Whose the sessions are that wait to be resumed."""
        with self._lock:
            return [self.life_of(session) for session in sorted(self._lost)]

    def _require(self, session: int) -> None:
        if session not in self._live:
            raise ClosedError(f"use session {session}: it is not open")

    def _take_slot(self, completion_bytes: int) -> tuple[int, Segment, core.Mapping]:
        """A free slot, and the completion object made for it."""
        squatted = 0
        for session in range(self._slot_count):
            if session in self._live or session in self._lost:
                continue
            try:
                return session, *self._memory.create_completion(session, completion_bytes)
            except OwnerError as error:  # /dev/shm is everybody's: the next slot has another name
                squatted += 1
                _log.warning("session slot passed over: %s", error)
        raise QuotaError(
            f"open a session: all {self._slot_count} slots are taken, {squatted} by objects that "
            "another uid put in their places in /dev/shm; raise session_count"
            if squatted
            else f"open a session: all {self._slot_count} slots are taken; raise session_count"
        )

    def _slot(self, session: int) -> dict[str, int]:
        if not 0 <= session < self._slot_count:
            raise ShmError(f"use session {session}: there are {self._slot_count}")
        place = self._config["session_slots_place"] + session * struct_size("session_slot")
        return read_ints(self._memory.control, "session_slot", place)

    def _ring_ended(self, index: int) -> int:
        place = self._config["ring_slots_place"] + index * struct_size("ring_slot")
        return int(read_ints(self._memory.control, "ring_slot", place)["ended"])


_CLIENT_MEMORY = ("ingress", "consumer", "chunk")
"""Kinds of memory that a client has without a name."""
_CLIENT_HEADS = {
    "ingress": (core.MAGIC_INGRESS, core.KIND_INGRESS),
    "consumer": (core.MAGIC_CONSUMER, core.KIND_CONSUMER),
}


def _has_memory(slot: dict[str, int]) -> bool:
    return slot["lane_count"] != 0 or slot["claim_capacity"] != 0


def _event() -> int:
    """A new eventfd, which the broker waits for; LimitError without a descriptor."""
    try:
        return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    except OSError as error:
        raise open_error("make the eventfd of a session", error) from error


def _inode(fd: int | None) -> int:
    return 0 if fd is None else os.fstat(fd).st_ino
