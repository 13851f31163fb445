"""The sessions of a broker: which connection has which shared memory, and how that ends.

What lives here: `ClientSession` and `SessionTable`. The store makes and drops the memory; here it
is decided for whom, which rows a session was granted and subscribed to (so that a deleted queue
leaves no right behind), and in which order a session ends: claims harvested, then its rings
drained, then closed. Sessions that a predecessor left wait for their clients for a time of grace.

The loop's thread owns it; that the store's threads ended one is told here by `ended_by_store`, in
the loop. Draining waits in a task. May fail: what the store raises for want of memory.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shmq.broker.reaped import ReapedSessions
from shmq.errors import ClosedError, QuotaError
from shmq.remoting.loop_thread import in_background

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from shmq.clock import Clock
    from shmq.remoting.server import Connection
    from shmq.store.message_store import MessageStore
    from shmq.store.sessions import SessionOffer

__all__ = ["ClientSession", "SessionTable"]

_log = logging.getLogger("shmq.broker")

DRAIN_TIMEOUT_S = 30.0
"""How long what a dead client published may wait for room in the log before it is dropped: it was
never acknowledged, and somebody else may need the slot."""
_LOOK_S = 0.001
_LOOK_MAX_S = 0.05
"""Between two looks whether a ring is drained; doubled up to the latter."""


@dataclass(slots=True, eq=False)
class ClientSession:
    """One session of one client."""

    connection: Connection
    """Whose it is."""
    client_id: str
    """What that calls itself."""
    session: int
    """Slot of the session in the store."""
    generation: int
    """Of the slot."""
    claim_capacity: int
    """Slots in its consumer page; 0 if it has none."""
    memory_bytes: int
    """Rings, pages and chunk memory that it was given."""
    is_mapped: bool
    """It has the log: it can read everything."""
    send_rows: set[int] = field(default_factory=set)
    """Rows it may send to."""
    bells: set[tuple[int, int]] = field(default_factory=set)
    """(bell, row) that it is subscribed to."""
    is_over: bool = False
    """Nothing more is granted: it is draining or closed."""


class SessionTable:
    """All sessions of one broker.

    Args:
        store: open.
        on_ending: called with a session before its rings are drained, while its pages can be read.
        clock: monotonic time.

    Attributes:
        reaped: those whose client died and had not closed them.
    """

    def __init__(
        self, store: MessageStore, on_ending: Callable[[ClientSession], None], clock: Clock
    ) -> None:
        self.reaped = ReapedSessions(clock)
        self._store = store
        self._on_ending = on_ending
        self._by_connection: dict[Connection, ClientSession] = {}
        self._by_slot: dict[int, ClientSession] = {}
        self._draining: dict[ClientSession, asyncio.Task[None]] = {}
        self._all_back = asyncio.Event()
        if not store.sessions.lost:
            self._all_back.set()

    def __len__(self) -> int:
        return len(self._by_connection)

    @property
    def sessions(self) -> list[ClientSession]:
        """Those that are open."""
        return list(self._by_connection.values())

    def of_uid(self, uid: int) -> Iterator[ClientSession]:
        """Those of one uid that take memory: open, or draining."""
        for session in (*self._by_connection.values(), *self._draining):
            if session.connection.identity.uid == uid:
                yield session

    def find(self, connection: Connection) -> ClientSession | None:
        """The session of a connection."""
        return self._by_connection.get(connection)

    def require(self, connection: Connection) -> ClientSession:
        """The session of a connection.

        Raises:
            ClosedError: it has none.
        """
        found = self._by_connection.get(connection)
        if found is None:
            raise ClosedError(f"{connection}: it has no session; attach one first")
        return found

    # ---- beginning ---------------------------------------------------------------------------

    def attach(
        self,
        connection: Connection,
        client_id: str,
        *,
        producer: bool,
        consumer: bool,
        map_log: bool,
    ) -> SessionOffer:
        """Make a session for a connection.

        Raises:
            QuotaError: it has one, or there is no slot left.
            ShmFullError, LimitError: no memory or descriptors for it.
        """
        self._require_none(connection)
        identity = connection.identity
        offer = self._store.sessions.open(
            uid=identity.uid,
            pid=identity.pid,
            pid_start_time=identity.incarnation.start_time if identity.incarnation else 0,
            producer=producer,
            consumer=consumer,
            map_log=map_log,
        )
        self._add(connection, client_id, offer)
        return offer

    def resume(
        self,
        connection: Connection,
        client_id: str,
        *,
        session: int,
        generation: int,
        fds: Mapping[str, int],
        map_log: bool,
        send_rows: Iterable[int],
    ) -> SessionOffer:
        """Take back a session of the predecessor.

        Raises:
            QuotaError: the connection has one.
            ShmError: it does not wait to be resumed, or the memory is not what it had.
        """
        self._require_none(connection)
        rows = set(send_rows)
        offer = self._store.sessions.resume(
            session=session,
            generation=generation,
            uid=connection.identity.uid,
            fds=fds,
            map_log=map_log,
            send_rows=rows,
        )
        self._add(connection, client_id, offer).send_rows |= rows
        if not self._store.sessions.lost:
            self._all_back.set()
        return offer

    def _require_none(self, connection: Connection) -> None:
        if connection in self._by_connection:
            raise QuotaError(f"{connection}: it has a session; a connection has one at most")

    def _add(self, connection: Connection, client_id: str, offer: SessionOffer) -> ClientSession:
        made = ClientSession(
            connection,
            client_id,
            offer.session,
            offer.generation,
            offer.claim_capacity,
            self._store.sessions.memory_bytes_of(offer.session),
            is_mapped="log" in offer.fds,
        )
        before = self._by_slot.get(offer.session)
        self._by_connection[connection] = made
        self._by_slot[offer.session] = made
        if before is not None:
            _close_ended(before, "the store ended it")
        return made

    # ---- rights ------------------------------------------------------------------------------

    def grant(self, session: ClientSession, rows: Iterable[int]) -> None:
        """Let a session send to these rows."""
        new = set(rows) - session.send_rows
        self._store.sessions.grant(session.session, new)
        session.send_rows |= new

    def revoke(self, session: ClientSession, rows: Iterable[int]) -> None:
        """Let it no longer."""
        gone = session.send_rows & set(rows)
        if gone:
            self._store.sessions.revoke(session.session, gone)
            session.send_rows -= gone

    def grant_chunk(self, session: ClientSession, size_bytes: int) -> int:
        """Make memory for its large bodies; the client's fd."""
        fd = self._store.sessions.grant_chunk(session.session, size_bytes)
        session.memory_bytes = self._store.sessions.memory_bytes_of(session.session)
        return fd

    def subscribe(self, session: ClientSession, bell: int, row: int) -> None:
        """Ring a bell of a session for a row."""
        if (bell, row) not in session.bells:
            self._store.sessions.subscribe(session.session, bell, row)
            session.bells.add((bell, row))

    def unsubscribe(self, session: ClientSession, bell: int, row: int) -> None:
        """Ring it no more."""
        if (bell, row) in session.bells:
            self._store.sessions.unsubscribe(session.session, bell, row)
            session.bells.discard((bell, row))

    def forget_rows(self, rows: Iterable[int]) -> None:
        """Queues were deleted: their rows will be other queues'."""
        gone = set(rows)
        for session in self._by_connection.values():
            self.revoke(session, gone)
            for bell, row in [pair for pair in session.bells if pair[1] in gone]:
                self.unsubscribe(session, bell, row)

    # ---- ending ------------------------------------------------------------------------------

    def end(self, connection: Connection) -> asyncio.Task[None] | None:
        """End the session of a connection: harvest now, drain in a task, then close it."""
        session = self._by_connection.pop(connection, None)
        if session is None:
            return None
        if self._by_slot.get(session.session) is session:
            del self._by_slot[session.session]
        self._on_ending(session)
        session.is_over = True
        task = in_background(self._drain(session))
        self._draining[session] = task
        task.add_done_callback(lambda _task: self._draining.pop(session, None))
        return task

    async def drain_orphan(self, slot: int, send_rows: Iterable[int]) -> None:
        """Take what a dead client of the predecessor had published, then end its session.

        Args:
            slot: of Sessions.orphans.
            send_rows: it may send to.

        Raises:
            ShmError: it is no orphan any more.
        """
        life = self._store.sessions.life_of(slot)
        generation = self._store.sessions.adopt_orphan(slot, send_rows)
        self.reaped.left(life)
        if not self._store.sessions.lost:
            self._all_back.set()
        await self._drain_slot(slot, generation, "dead")

    async def _drain(self, session: ClientSession) -> None:
        await self._drain_slot(session.session, session.generation, session.client_id)

    async def _drain_slot(self, slot: int, generation: int, client_id: str) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + DRAIN_TIMEOUT_S
        look_s = _LOOK_S
        while not self._store.sessions.is_drained(slot, generation):
            if loop.time() >= deadline:
                _log.warning(
                    "session closed undrained session=%d client=%s: the log took nothing for %d s",
                    slot,
                    client_id,
                    DRAIN_TIMEOUT_S,
                )
                break
            await asyncio.sleep(look_s)
            look_s = min(2 * look_s, _LOOK_MAX_S)
        self._store.sessions.close(slot, generation)

    def ended_by_store(self, slot: int, reason: str) -> None:
        """The store ended a session: its client broke a rule or does not answer."""
        session = self._by_slot.get(slot)
        if session is not None and slot not in self._store.sessions.live:
            _close_ended(session, reason)

    async def drained(self) -> None:
        """Return when no session of a client that left is draining."""
        if self._draining:
            await asyncio.wait(self._draining.values())

    # ---- sessions of a predecessor -----------------------------------------------------------

    async def wait_all_back(self, timeout_s: float) -> bool:
        """Whether no adopted session waits for its client (any more); waits for it."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._all_back.wait()
        except TimeoutError:
            return False
        return True

    def awaits_living(self) -> bool:
        """Whether an adopted session waits for a client that lives: it may come back."""
        return not self._all_back.is_set() and any(
            life.is_alive() for life in self._store.sessions.lost_lives()
        )

    async def forget_lost_after(self, grace_s: float) -> None:
        """Wait for the clients of adopted sessions, then free those that did not come."""
        if await self.wait_all_back(grace_s):
            return
        for slot in self._store.sessions.lost:
            _log.warning("session not resumed in time, freed session=%d", slot)
            self.reaped.left(self._store.sessions.life_of(slot))
            self._store.sessions.forget_lost(slot)
        self._all_back.set()


def _close_ended(session: ClientSession, reason: str) -> None:
    session.connection.close(ClosedError(f"session {session.session} was ended: {reason}"))
