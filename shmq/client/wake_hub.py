"""How an event loop learns that a broker has something for it: one socket for each session.

What lives here: `WakeHub`, its `Sleeper`s (whoever waits for messages) and the sends under way. Who
waits arms a bell or a lane, looks once more, and goes to sleep in the loop; the broker's append
thread then makes the session's socket readable, once (docs/decisions/0012). Nothing here waits for
a broker, and no thread belongs to a waiter.

Which process: the program's, the loop's thread; `call_soon` and `session_changed` in any. Writes:
the sleep words of its lanes and readers, through the core. May fail: a broker that is away has no
socket; whoever waits for it is got up when it is back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from shmq.client.pending_sends import PendingSend, PendingSends
from shmq.clock import SYSTEM_CLOCK
from shmq.core import core
from shmq.errors import ClosedError, ShmqError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine, Iterable
    from concurrent.futures import Executor
    from typing import Any

    from shmq.client.broker_link import BrokerLink
    from shmq.remoting.client import Client as Connection

__all__ = ["AwaitedSend", "Sleeper", "WakeHub"]

_log = logging.getLogger("shmq.client")

T = TypeVar("T")

_TIMED_OUT = core.STATUS["TIMED_OUT"][0]
_CLOSED = core.STATUS["CLOSED"][0]
_BYTES = 4096
"""More than the broker's end of the socket holds."""
_LOOK_NS = 1_000_000_000
"""While sends are under way somebody looks so often whether the disk of their broker refuses."""
_ENDED_S = 0.01
"""Between two looks at a session that has ended and whose successor nobody has told of yet."""


@dataclass(eq=False, slots=True, kw_only=True)
class AwaitedSend(PendingSend):
    """A send under way that a task waits for."""

    future: asyncio.Future[tuple[int, int]]
    """Gets status and queue_offset; nobody reads it if the task was cancelled."""


class Sleeper:
    """Whoever waits for messages; one task at a time."""

    def __init__(self, hub: WakeHub) -> None:
        self._hub = hub
        self._future: asyncio.Future[None] | None = None
        self._readers: tuple[core.Reader, ...] = ()
        self._is_called = False

    def call(self) -> None:
        """There may be something: get up, or do not lie down. In the loop's thread."""
        self._is_called = True
        _give(self._future)

    def call_from_thread(self) -> None:
        """As `call`, in any thread."""
        self._hub.call_soon(self.call)

    @property
    def has_something(self) -> bool:
        """Whether one of its readers has something to read, or was told to look."""
        try:
            return bool(self._readers) and core.Reader.wait_any(self._readers, 0.0) >= 0
        except ClosedError:
            return True

    async def sleep(
        self,
        readers: tuple[core.Reader, ...],
        bells: Iterable[tuple[BrokerLink, int]],
        timeout: float,
    ) -> None:
        """Until a reader has something to read, a call, or the end of the time.

        Args:
            readers: what to look at, each watching its queues.
            bells: the sessions they read in, each with the bell that is rung for them.
            timeout: seconds.
        """
        rung = dict.fromkeys(bells)
        links = {link: None for link, _ in rung}
        if not all(map(self._hub.is_ready, links)):
            await self._hub.ready(links)
        loop = asyncio.get_running_loop()
        self._readers = readers
        self._future = future = loop.create_future()
        timer = loop.call_later(timeout, _give, future)
        beds = [self._hub.lie_down(self, link, bell) for link, bell in rung]
        try:
            if any(reader.closed for reader in readers):
                await asyncio.sleep(min(timeout, _ENDED_S))
            elif not self._is_called and not self.has_something:
                await future
        finally:
            timer.cancel()
            for one in beds:
                if one is not None:
                    one.sleepers.pop(self, None)
            self._future = None
            self._is_called = False


class _Bell:
    """One bell of one session, and who sleeps on it."""

    __slots__ = ("_is_armed", "_reader", "_rings", "sleepers")

    def __init__(self, reader: core.Reader) -> None:
        self._reader = reader
        self._rings = reader.rings()
        self._is_armed = False
        self.sleepers: dict[Sleeper, None] = {}

    def arm(self) -> None:
        """Be told of the next ring. Whoever looks afterwards misses nothing."""
        if not self._is_armed:
            with suppress(ClosedError):
                self._rings = self._reader.rings()
                self._reader.arm()
                self._is_armed = True

    def look(self) -> None:
        """If it was rung, get those up that it was rung for."""
        with suppress(ClosedError):
            if self._reader.rings() == self._rings:
                return
        self._is_armed = False
        if self.sleepers:
            self.arm()
        for sleeper in tuple(self.sleepers):
            if sleeper.has_something:
                sleeper.call()

    def close(self) -> None:
        self._reader.close()


class _Session:
    """One session as the loop sees it."""

    __slots__ = ("bells", "connection", "granting", "sock")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.sock: socket.socket | None = None
        self.bells: list[_Bell] = []
        self.granting: asyncio.Task[None] | None = None


class WakeHub:
    """All that sleeps in one loop on behalf of one client."""

    def __init__(self, loop: asyncio.AbstractEventLoop, executor: Executor) -> None:
        self.loop = loop
        self._executor = executor
        self._sessions: dict[BrokerLink, _Session] = {}
        self._sleepers: dict[Sleeper, None] = {}
        self._pending: PendingSends[AwaitedSend] = PendingSends()
        self._lanes: set[core.Lane] = set()
        self._rooms: dict[core.Lane, deque[asyncio.Future[None]]] = {}
        self._changes: set[asyncio.Future[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    # ---- other threads ---------------------------------------------------------------------------

    def call_soon(self, callback: Callable[..., object], *arguments: object) -> None:
        """Have the loop call it; any thread. Nothing happens once the loop is closed."""
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(callback, *arguments)

    async def run(self, call: Callable[..., T], *arguments: Any) -> T:
        """Call what may wait for a broker, in one of the client's few threads."""
        return await self.loop.run_in_executor(self._executor, call, *arguments)

    def session_changed(self, link: BrokerLink) -> None:
        """A session began, ended or was resumed; any thread."""
        self.call_soon(self._session_changed, link)

    # ---- sessions --------------------------------------------------------------------------------

    def _session_changed(self, link: BrokerLink) -> None:
        if self._is_closed:
            return
        session = self._sessions.get(link)
        if session is None or session.connection is not link.connection:
            self._drop(link)
            if link.is_up:
                self._sessions[link] = session = _Session(link.connection)
                session.granting = self.start(self._grant(link, session))
        self._get_all_up()

    async def ready(self, links: Iterable[BrokerLink]) -> None:
        """Return when these sessions have their sockets, or their brokers are known to be away."""
        for link in links:
            if link not in self._sessions and link.is_up:
                self._session_changed(link)
            session = self._sessions.get(link)
            if session is not None and session.granting is not None:
                await asyncio.wait([session.granting])

    def is_ready(self, link: BrokerLink) -> bool:
        """Whether `ready` has nothing to wait for."""
        session = self._sessions.get(link)
        return session is not None and session.granting is None

    async def _grant(self, link: BrokerLink, session: _Session) -> None:
        try:
            sock, readers = await self.run(_open, link)
        except ShmqError as error:
            _log.debug("no socket for event loops broker=%s: %s", link.broker_name, error)
            return  # session_changed comes when it is back
        finally:
            session.granting = None
        if self._is_closed or self._sessions.get(link) is not session:
            sock.close()
            for reader in readers:
                reader.close()
            return
        session.bells = [_Bell(reader) for reader in readers]
        session.sock = sock
        self.loop.add_reader(sock, self._readable, session)
        self._get_all_up()

    def _drop(self, link: BrokerLink) -> None:
        session = self._sessions.pop(link, None)
        if session is not None:
            self._close(session)

    def _close(self, session: _Session) -> None:
        sock, session.sock = session.sock, None
        if sock is not None:
            if not self.loop.is_closed():
                self.loop.remove_reader(sock)
            sock.close()
        bells, session.bells = session.bells, []
        for bell in bells:
            with suppress(ShmqError):
                bell.close()

    def _readable(self, session: _Session) -> None:
        assert session.sock is not None
        try:
            said = session.sock.recv(_BYTES)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if said:
            self._look_at_sends()
            for bell in session.bells:
                bell.look()
        else:  # the broker went, or has ended the session
            self._close(session)
            self._get_all_up()

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run it; it is cancelled when the client closes."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _get_all_up(self) -> None:
        """Something may be otherwise for everybody."""
        self._look_at_sends()
        for sleeper in tuple(self._sleepers):
            sleeper.call()
        for lane in tuple(self._rooms):
            for future in self._rooms[lane]:
                _give(future)
        changes, self._changes = self._changes, set()
        for future in changes:
            _give(future)

    # ---- messages --------------------------------------------------------------------------------

    def sleeper(self) -> Sleeper:
        """For a consumer; give it back to `discard`."""
        made = Sleeper(self)
        self._sleepers[made] = None
        return made

    def discard(self, sleeper: Sleeper) -> None:
        """It sleeps no more; if it does, it gets up."""
        self._sleepers.pop(sleeper, None)
        sleeper.call()

    def lie_down(self, sleeper: Sleeper, link: BrokerLink, bell: int) -> _Bell | None:
        """Have it told when a bell of the session is rung; None while there is no session."""
        session = self._sessions.get(link)
        if session is None or not session.bells:
            return None
        found = session.bells[bell]
        found.arm()
        found.sleepers[sleeper] = None
        return found

    # ---- sends -----------------------------------------------------------------------------------

    @property
    def has_pending(self) -> bool:
        """Whether any send is under way."""
        return bool(self._pending.heads())

    async def completion(self, lane: core.Lane, sequence: int, deadline_ns: int) -> tuple[int, int]:
        """Status and queue_offset of what was put with keep=True; TIMED_OUT, CLOSED where nobody
        will ever say. If the task is cancelled, its place is freed all the same.
        """
        try:
            self.arm(lane)
            found = lane.take(sequence)
        except ClosedError:
            return _CLOSED, -1
        if found is not None:
            return found[0], found[1]
        future: asyncio.Future[tuple[int, int]] = self.loop.create_future()
        self._pending.add(
            AwaitedSend(lane=lane, sequence=sequence, deadline_ns=deadline_ns, future=future)
        )
        self._set_timer()
        return await future

    async def change(self, deadline_ns: int) -> bool:
        """Until something is otherwise with any session; False if the time was up."""
        left_s = (deadline_ns - SYSTEM_CLOCK.monotonic_ns()) / 1e9
        if left_s <= 0:
            return False
        future: asyncio.Future[None] = self.loop.create_future()
        self._changes.add(future)
        timer = self.loop.call_later(left_s, _give, future)
        try:
            await future
        finally:
            timer.cancel()
            self._changes.discard(future)
        return True

    def arm_for_room(self, lane: core.Lane) -> None:
        """Be told when the lane has room. Whoever tries afterwards misses nothing.

        Raises:
            ClosedError: its session has ended.
        """
        self._rooms.setdefault(lane, deque())
        self.arm(lane)

    async def room(self, lane: core.Lane, deadline_ns: int, *, is_first: bool) -> None:
        """Until there may be room in a lane that was armed for it, or the end of the time; one
        after the other. Who got up calls `next_room` once it has tried.
        """
        left_s = (deadline_ns - SYSTEM_CLOCK.monotonic_ns()) / 1e9
        waiting = self._rooms.setdefault(lane, deque())
        future: asyncio.Future[None] = self.loop.create_future()
        (waiting.appendleft if is_first else waiting.append)(future)
        timer = self.loop.call_later(max(left_s, 0.0), _give, future)
        try:
            await future
        except asyncio.CancelledError:
            waiting.remove(future)
            self.next_room(lane)
            raise
        finally:
            timer.cancel()
        waiting.remove(future)

    def next_room(self, lane: core.Lane) -> None:
        """Whoever waits next for room in the lane may try."""
        waiting = self._rooms.get(lane)
        if waiting:
            _give(waiting[0])
        elif waiting is not None:
            del self._rooms[lane]

    def arm(self, lane: core.Lane) -> None:
        """Be told when anything in the lane is done. Whoever looks afterwards misses nothing.

        Raises:
            ClosedError: its session has ended.
        """
        lane.arm(lane in self._rooms)
        self._lanes.add(lane)

    def _look_at_sends(self) -> None:
        busy = {pending.lane for pending in self._pending.heads()}
        for lane in tuple(self._lanes):
            with suppress(ShmqError):
                if lane in busy or lane in self._rooms:
                    self.arm(lane)
                    continue
                lane.disarm()
            self._lanes.discard(lane)
        for pending, status, queue_offset in self._pending.sweep():
            if not pending.future.done():
                pending.future.set_result((status, queue_offset))
        for lane in tuple(self._rooms):
            self.next_room(lane)
        changes, self._changes = self._changes, set()
        for future in changes:
            _give(future)

    def _set_timer(self) -> None:
        first_ns = self._pending.first_deadline_ns()
        if first_ns is None or (self._timer is not None and self._timer_ns <= first_ns):
            return
        if self._timer is not None:
            self._timer.cancel()
        now_ns = SYSTEM_CLOCK.monotonic_ns()
        self._timer_ns = min(max(first_ns, now_ns), now_ns + _LOOK_NS)
        self._timer = self.loop.call_later((self._timer_ns - now_ns) / 1e9, self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer = None
        for pending in self._pending.heads():
            try:
                status, queue_offset, _, _ = pending.lane.wait(pending.sequence, 0.0)
            except ClosedError:
                continue  # the sweep says so
            if status != _TIMED_OUT:  # the disk has refused: no completion comes any more
                self._pending.done(pending)
                if not pending.future.done():
                    pending.future.set_result((status, queue_offset))
        self._look_at_sends()
        self._set_timer()

    # ---- ending ----------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Return when no send is under way any more, or its time is up."""
        futures = [pending.future for pending in self._pending.all() if not pending.future.done()]
        if futures:
            await asyncio.wait(futures)

    def close(self) -> None:
        """Everybody gets up; who waits for a send is told CLOSED."""
        if self._is_closed:
            return
        self._is_closed = True
        for task in tuple(self._tasks):
            task.cancel()
        if self._timer is not None:
            self._timer.cancel()
        for pending in self._pending.all():
            if not pending.future.done():
                pending.future.set_result((_CLOSED, -1))
        for link in tuple(self._sessions):
            self._drop(link)
        for sleeper in tuple(self._sleepers):
            sleeper.call()
        for waiting in self._rooms.values():
            for future in waiting:
                _give(future)
        for future in self._changes:
            _give(future)


def _open(link: BrokerLink) -> tuple[socket.socket, list[core.Reader]]:
    """A session's socket, and a reader on each of its bells. Blocks."""
    sock = link.grant_socket()
    try:
        return sock, [link.share_reader(bell)[1] for bell in range(core.CONSUMER_BELL_MAX)]
    except BaseException:
        sock.close()
        raise


def _give(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)
