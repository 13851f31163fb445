"""One broker: its parts put together, and its life.

What lives here: `Broker`, a shmq.service.Service. The main thread opens and closes the store and
waits for signals; everything else happens on the event loop beside it (remoting.loop_thread), which
is up before the store is opened, so that whoever watches the broker gets an answer during recovery.

    STARTING --store open, tables loaded--> RUNNING --SIGTERM--> DRAINING --drained--> stopped

An orderly stop takes no new client, lets the rings run dry, flushes, and keeps the shared memory
where clients are attached: its successor adopts it, and they go on. May fail: what the store, the
runtime folder and the files of config/ raise.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING

from shmq.acl import AclFile
from shmq.broker.claims import ClaimedQueue, ClaimTable
from shmq.broker.client_registry import Client, ClientRegistry
from shmq.broker.consumer_offsets import OffsetTable, load_reports
from shmq.broker.enforcement import Enforcement
from shmq.broker.expired_unread import ExpiredUnread
from shmq.broker.ha_client import HAClient
from shmq.broker.ha_service import HAService
from shmq.broker.interests import Interests
from shmq.broker.locks import LockTable
from shmq.broker.notices import Notices
from shmq.broker.orphans import take_orphans
from shmq.broker.owners import OwnerTable
from shmq.broker.processors.table import processor_table
from shmq.broker.putting import Putter
from shmq.broker.quotas import Quotas
from shmq.broker.registration import Registration
from shmq.broker.resend import CutSettler, ResendService
from shmq.broker.retries import RetryService
from shmq.broker.rights import Rights
from shmq.broker.schedule import ScheduleService
from shmq.broker.sessions import ClientSession, SessionTable
from shmq.broker.slave_reads import SlaveReads
from shmq.broker.stats import StatsService
from shmq.broker.subscription_groups import GroupTable
from shmq.broker.topics import TopicTable
from shmq.clock import SYSTEM_CLOCK, Clock
from shmq.config import KeepMemory, change_live
from shmq.errors import (
    ClosedError,
    FencedError,
    FlushFailedError,
    RequestTimeoutError,
    ServiceNotAvailableError,
    ShmqError,
    StoreError,
)
from shmq.remoting.codes import RequestCode
from shmq.remoting.loop_thread import LoopThread, in_background
from shmq.remoting.namesrv_requests import BrokerAddress
from shmq.remoting.runtime_folder import Listener, RuntimeFolder, broker_socket_name
from shmq.remoting.server import Connection, Server
from shmq.service import Phase
from shmq.shm.incarnation import Incarnation, boot_id
from shmq.status import BrokerRole
from shmq.store import checked_json
from shmq.store.config_files import ConfigFiles
from shmq.store.delay_marks import DELAY_MARKS_FILE, marked_ns
from shmq.store.message_store import MessageStore
from shmq.store.predecessor import take_newer
from shmq.topic import retry_topic
from shmq.version import version_text

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping
    from concurrent.futures import Future

    from shmq.broker.controller_link import ControllerLink
    from shmq.broker.processors.role import OnTold
    from shmq.config import BrokerConfig
    from shmq.remoting.command import Scalar
    from shmq.shm.fd_store import FdStore
    from shmq.shm.mastership import Mastership
    from shmq.store.config_files import DelayOffsets
    from shmq.store.cuts import CutPlan
    from shmq.store.expire import ExpiredFile
    from shmq.store.queues import QueueHandle
    from shmq.store.replica import LogBegin
    from shmq.store.stopped_log import StoppedLog

__all__ = ["Broker"]

_log = logging.getLogger("shmq.broker")

_LOOP_TIMEOUT_S = 10.0
"""For steps on the loop that only start or stop things; longer, and something hangs."""
_STOP_TIMEOUT_S = 5.0
"""For requests under way when the broker stops."""
_LOOK_S = 0.005
"""Between two looks whether the rings have run dry."""
_STORE_LOOK_S = 1.0
"""Between two looks whether the store failed for good."""
_HOLD_S = 1.0
"""Between two looks whether the lock of mastership is still the one that others would take."""
_SERVICE_SESSIONS = 2
"""Session slots for what is put again and for the schedule, beside those of the clients."""
_DEATH_LOOK_S = 0.001
_DEATH_LOOK_MAX_S = 0.1
"""Between two looks whether a process whose connection has ended is dead; doubled up to the latter:
a killed one is within milliseconds, and one that lives on is waited for as long as its locks hold.
"""


class Broker:
    """One broker of one (broker_name, broker_id).

    Args:
        config: its settings.
        clock: monotonic and wall time.
        mastership: of its broker_name, held as long as this runs; None: it is a slave.
        master_epoch: of this mastership, from a Controller; None: counted on from the last.
        is_unclean: serve what our own log has where the last master's memory is not for our files.
        must_adopt: be master with the last master's memory, or not at all.
        link: to the Controller that says who is master; None: there is none.
        on_told: called in the loop's thread when it is told to change its role.
        begin: where the log of a slave begins that has none.
        is_adopted: nothing says that a slave's log was ever a copy of its master's.
        stopped: what the slave's store was that this process had until now.
        fd_store: what systemd keeps for this process.
        on_cut: called in the loop's thread where a slave's log must be cut: once it is closed.
    """

    def __init__(
        self,
        config: BrokerConfig,
        *,
        mastership: Mastership | None,
        on_told: OnTold,
        master_epoch: int | None = None,
        is_unclean: bool = False,
        must_adopt: bool = False,
        link: ControllerLink | None = None,
        begin: LogBegin | None = None,
        is_adopted: bool = False,
        on_cut: Callable[[CutPlan], None] = lambda _plan: None,
        stopped: StoppedLog | None = None,
        fd_store: FdStore | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.config = config
        self.clock = clock
        self.mastership = mastership
        self._master_epoch = master_epoch
        self._is_unclean = is_unclean
        self._must_adopt = must_adopt
        self._link = link
        self._begin = begin
        self.is_adopted = is_adopted
        self._stopped = stopped
        self._fd_store = fd_store
        self.on_told = on_told
        self.on_cut = on_cut
        self.hands_over = False
        """It stops for another member to go on: its memory stays."""
        self.succeeds = False
        """A slave that stops to become master itself."""
        self.stopped_log: StoppedLog | None = None
        """What it hands on then; whoever takes it releases it."""
        self.phase = Phase.STARTING
        self.problem: str | None = None
        """What a person should know of, in one line."""
        self.store: MessageStore
        self.topics: TopicTable
        self.groups: GroupTable
        self.offsets: OffsetTable
        self.claims: ClaimTable
        self.expired_unread: ExpiredUnread
        self.sessions: SessionTable
        self.rights = Rights(None, config.broker_name)
        self.slave_reads: SlaveReads
        self.owners: OwnerTable
        self.quotas: Quotas
        self._enforcement: Enforcement | None = None
        self.schedule: ScheduleService | None = None
        self.retries: RetryService | None = None
        self.resends: ResendService | None = None
        self._putter: Putter | None = None
        self.cuts: CutSettler
        self.is_slave = mastership is None
        """It copies a master's log, and takes no message."""
        self.ha: HAService | None = None
        """A master's slaves; None of a slave, and before it serves."""
        self.ha_client: HAClient | None = None
        """A slave's way to its master."""
        self._delay_offsets: Mapping[int, int] = {}
        self.delay_marks_ns = 0
        """Of a slave: when its master wrote the delay marks that it has, CLOCK_BOOTTIME."""
        self.interests = Interests()
        self.registry = ClientRegistry(clock, self._group_changed)
        self.notices = Notices(self.registry.consumers)
        self.locks = LockTable(clock)
        self._own = Incarnation.current()
        self.begin_ms = clock.wall_ms()
        """When it began, ms since 1970."""
        self._running_ns = clock.monotonic_ns()
        self._loop = LoopThread("shmq-control")
        self._folder: RuntimeFolder | None = None
        self._server: Server | None = None
        self._registration: Registration | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._settings_changed = asyncio.Event()
        self._is_store_open = False
        self._is_loaded = False
        self._is_leaving = False

    # ---- life --------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen, open the store, serve. Blocks for as long as recovery takes.

        Raises:
            ShmqError and its kin: what could not be had; `stop` releases what was.
        """
        config = self.config
        if config.acl_file is not None:
            self.rights = Rights(AclFile(config.acl_file), config.broker_name)
        self._folder = RuntimeFolder.make(config.runtime_folder())
        name = broker_socket_name(config.broker_name, config.broker_id)
        listener = self._folder.listen(name)
        self._loop.start()
        self._loop.run(self._listen(listener), timeout_s=_LOOP_TIMEOUT_S)
        private = self._folder.private(broker_socket_name(config.broker_name, 0))
        if self.is_slave:
            self.ha_client = HAClient(self, self._folder)
        self.store = MessageStore(
            replace(config, runtime_path=private, session_count=_session_count(config)),
            clock=self.clock,
            on_session_ended=self._session_ended,
            on_expired=self._expired,
            mastership=self.mastership,
            master_epoch=self._master_epoch,
            is_unclean=self._is_unclean,
            must_adopt=self._must_adopt,
            is_slave=self.is_slave,
            begin=self._begin,
            stopped=self._stopped,
            fd_store=self._fd_store,
        )
        self.store.open()
        self.cuts = CutSettler(config.store_path)
        self._is_store_open = True
        self._load()
        is_led = self._link is not None and not self.is_slave
        self.store.start(on_flushed=self._begin_mastership if is_led else None)
        if not self.is_slave:
            self._start_services()
        self._loop.run(self._serve(name), timeout_s=_LOOP_TIMEOUT_S)

    def _begin_mastership(self) -> None:
        """The Controller knows from here on that we are master."""
        assert self._link is not None
        self._link.begin(self.store.master_epoch)

    def _start_services(self) -> None:
        """What only a master does."""
        self.schedule = ScheduleService(
            self.store,
            ConfigFiles(self.store.config.store_path),
            self.config,
            self.clock,
            self.topics.configs,
        )
        self.schedule.start()
        self._putter = Putter(self.store)
        level_count = len(self.config.delay_levels_ms)
        self.retries = RetryService(self.store, self.topics, self._putter, level_count)
        self.resends = ResendService(self.store, self.topics, self._putter, self.schedule)

    def _load(self) -> None:
        """Read config/ and bring memory in line with it. No message comes yet."""
        files = ConfigFiles(self.store.config.store_path)
        reports = load_reports(files)
        if self.store.predecessor_path is not None:
            take_newer(self.store.predecessor_path, self.store.config.store_path)
        is_copy = self.is_slave
        self.offsets = OffsetTable(self.store, files, self.clock, is_copy=is_copy)
        self.groups = GroupTable(files, self.config, self.clock, is_copy=is_copy)
        self.topics = TopicTable(self.store, files, self.config, self.clock, is_copy=is_copy)
        unknown_ends = self.offsets.load(reports)
        self.groups.load()
        self.slave_reads = SlaveReads(self.store, self.groups, self.config, is_slave=self.is_slave)
        self.topics.load(unknown_ends)
        self.owners = OwnerTable(self.store.config.store_path)
        groups = self.groups.configs
        self.owners.load({"topic": self.topics.__contains__, "group": groups.__contains__})
        self.claims = ClaimTable(self.store, self.offsets)
        self.claims.on_revoked = self.notices.claims_revoked
        self.expired_unread = ExpiredUnread(self.offsets, self.claims, self.registry)
        self._is_loaded = True

    async def _listen(self, listener: Listener) -> None:
        self._server = Server(
            listener, processor_table(self), role="broker", on_ready=self._connected
        )

    async def _serve(self, socket_name: str) -> None:
        """The store is open: clients may come."""
        assert self._folder is not None
        config = self.config
        self.sessions = SessionTable(self.store, self._session_ending, self.clock)
        self.quotas = Quotas(
            config,
            self.rights,
            self.owners,
            self.sessions,
            session_count=self.store.sessions.slot_count - _SERVICE_SESSIONS,
        )
        if self.rights.file is not None:
            self._enforcement = Enforcement(self, self.rights.file)
            self._run(self._enforcement.watch())
        self.topics.on_changed = self._topics_changed
        self.groups.on_changed = self._group_config_changed
        self._running_ns = self.clock.monotonic_ns()
        self.phase = Phase.RUNNING
        if self.ha_client is not None:
            self._run(self.ha_client.run())
        else:
            self.ha = HAService(self.store, config, self.clock)
            self.topics.on_slaves_wanted = self.ha.begin_confirming
            if self.topics.wants_slaves:
                self.ha.begin_confirming()
            if self._link is not None:
                self.ha.on_changed = self._link.changed
                self._link.keep(self._count_in_sync)
            self._run(self.ha.watch())
            assert self.resends is not None
            self._run(self.cuts.settle(self.resends.resend))
            # A master is registered as such, whatever its id among the members.
            self._register(socket_name, 0)
        self._run(self._scan_clients())
        self._run(self._save_offsets())
        self._run(self._watch_store())
        self._run(StatsService(self).run())
        if self.mastership is not None:
            self._run(self._hold_mastership(self.mastership))
        self._run(self.sessions.forget_lost_after(config.session_grace_ms / 1000))
        self._run(take_orphans(self))

    async def _count_in_sync(self, broker_ids: frozenset[int]) -> None:
        """In the link's thread; returns once the append thread waits for these slaves."""
        await asyncio.wrap_future(self._loop.submit(self._count_on_loop(broker_ids)))

    async def _count_on_loop(self, broker_ids: frozenset[int]) -> None:
        if self.ha is not None:
            self.ha.count(broker_ids)

    def _register(self, socket_name: str, broker_id: int) -> None:
        assert self._folder is not None
        config = self.config
        address = BrokerAddress(
            cluster_name=config.cluster_name,
            broker_name=config.broker_name,
            broker_id=broker_id,
            socket_name=socket_name,
            master_epoch=self.store.master_epoch,
        )
        self._registration = Registration(
            self._folder,
            address,
            self.topics,
            interval_s=config.register_broker_interval_ms / 1000,
        )
        self._registration.start()

    def follows(self, socket_name: str, master_id: int) -> None:
        """A slave follows a master of this id: it is registered, once, as a slave. The master has
        the id 0 in the routes; a slave whose own that is has the master's.
        """
        if self._registration is None:
            self._register(socket_name, self.config.broker_id or master_id)

    def reload(self) -> None:
        """Read the ACL file again; returns when its rules are in force, or the log says why not."""
        if self._enforcement is not None:
            self._loop.run(self._enforcement.reload(), timeout_s=_LOOP_TIMEOUT_S)

    def is_healthy(self) -> bool:
        """Whether the event loop and the append thread have answered since last asked, and every
        task that works in the background still does.
        """
        return self._loop.beat(self._await_append_thread) and self._failure is None

    @property
    def _failure(self) -> str | None:
        """Which task is gone, here or on the line to the Controller."""
        return self._loop.problem or (None if self._link is None else self._link.failure)

    def _await_append_thread(self) -> None:
        """In the loop: return once the append thread stands between two turns."""
        if self.phase is not Phase.STARTING:
            self.store.appender_state()

    def describe(self) -> str:
        """What it does, in one line for systemctl."""
        if self.phase is Phase.STARTING:
            return "recovering"
        now = self.store.positions
        role = "slave" if self.is_slave else "master"
        behind = now.committed_position - now.flushed_position
        said = (
            f"{role}, epoch {self.store.master_epoch}, {len(self.sessions)} clients,"
            f" {behind} bytes not yet on disk"
        )
        problem = self._own_problem() or self._replica_problem()
        return said if problem is None else f"{said}; {problem}"

    def drain(self, timeout_s: float) -> None:
        """Take no new client and no new request for a send; let the rings run dry."""
        self._loop.run(self._drain(timeout_s / 2), timeout_s=timeout_s + _LOOP_TIMEOUT_S)

    async def _drain(self, timeout_s: float) -> None:
        assert self._server is not None
        self.phase = Phase.DRAINING
        self._server.stop_accepting()
        if self._registration is not None:
            await self._registration.stop()
        try:
            async with asyncio.timeout(timeout_s):
                await self.sessions.drained()
                # What a disk that refused has left in the rings is its successor's.
                while self.store.failure is None and not all(
                    self.store.sessions.is_drained(s.session) for s in self.sessions.sessions
                ):
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            _log.warning("stopping while clients still send: what is in their rings stays there")

    def stop(self) -> None:
        """Flush, release everything; also after a `start` that failed half-way."""
        try:
            if self._server is not None:
                self._loop.run(
                    self._leave(self._server), timeout_s=_STOP_TIMEOUT_S + _LOOP_TIMEOUT_S
                )
        except TimeoutError:
            _log.error("the event loop hangs; the store is stopped all the same")
        finally:
            self._loop.stop()
            try:
                if self.schedule is not None:
                    self.schedule.stop()
                if self._putter is not None:
                    self._putter.close()
                if self._is_store_open:
                    self._is_store_open = False
                    self._stop_store()
            finally:
                if self._folder is not None:
                    self._folder.close()

    async def _leave(self, server: Server) -> None:
        """End everything on the loop."""
        was_running, self.phase = self.phase is not Phase.STARTING, Phase.DRAINING
        self._is_leaving = True  # sessions of connections that end now are left to a successor
        if self._registration is not None:
            await self._registration.stop()
        await server.stop(timeout_s=_STOP_TIMEOUT_S)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if was_running:
            self.expired_unread.close()
            self.claims.harvest()

    def _stop_store(self) -> None:
        """Flush and close; clients that are attached, or not back yet, need the memory."""
        keep_memory = self.hands_over or self.config.keep_memory is KeepMemory.ALWAYS
        if self.is_slave:
            keep_memory = False  # what it has, its files and its master have
        elif not keep_memory and self.config.keep_memory is KeepMemory.ATTACHED:
            keep_memory = self.store.sessions.is_needed
        try:
            self.stopped_log = self.store.stop(keep_memory=keep_memory, succeeds=self.succeeds)
        except FlushFailedError as error:
            _log.error("stopped with what the disk refused still in memory: %s", error)
            return
        if self._is_loaded:
            self.offsets.save_flushed(is_synced=not self.succeeds)
        if self.schedule is not None:
            self.schedule.save_flushed()

    # ---- what goes on meanwhile --------------------------------------------------------------

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = in_background(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pause(self, setting: str) -> None:
        """Wait as long as a live setting says, by what it says in the end."""
        loop = asyncio.get_running_loop()
        begin_s = loop.time()
        while (left_s := begin_s + getattr(self.config, setting) / 1000 - loop.time()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._settings_changed.wait()

    async def _scan_clients(self) -> None:
        """End clients that are alive and say nothing. Slaves are watched by the HAService, and by
        where they are: they have nothing to say.
        """
        while True:  # until the broker stops
            await self._pause("client_scan_interval_ms")
            expiry_ms = self.config.client_expiry_ms
            for client in self.registry.silent(expiry_ms):
                if self.ha is not None and self.ha.has(client.connection):
                    continue
                client.connection.close(
                    RequestTimeoutError(
                        f"client {client.client_id}: no heartbeat for {expiry_ms} ms"
                    )
                )
            for queue, client_id in self.locks.forget_expired():
                _log.warning(
                    "lock expired, its consumer hangs group=%s topic=%s queue_id=%d client=%s",
                    *queue,
                    client_id,
                )

    async def _save_offsets(self) -> None:
        """Take what consumers report and write it down."""
        while True:  # until the broker stops
            await self._pause("flush_consumer_offset_interval_ms")
            self.claims.harvest()
            try:
                await self.offsets.save()
            except ShmqError as error:
                _log.error("consumer offsets not written, trying again: %s", error)

    async def _watch_store(self) -> None:
        """Once the disk has refused a write, take part as a reader only."""
        while self.store.failure is None:
            await asyncio.sleep(_STORE_LOOK_S)
        self.problem = str(self.store.failure)
        _log.error("the store takes no more messages, only reads go on: %s", self.problem)
        self.topics.set_read_only()

    async def _hold_mastership(self, mastership: Mastership) -> None:
        """See that nobody else can be master; if somebody is, end at this instruction: what is in
        memory is the other's, and nothing more may be written to it.
        """
        while True:  # until the broker stops
            await asyncio.sleep(_HOLD_S)
            try:
                mastership.hold()
            except FencedError as error:
                _log.critical("not master any more, this process ends: %s", error)
                os.kill(os.getpid(), signal.SIGKILL)
            except ShmqError as error:
                _log.error("mastership cannot be looked at: %s", error)

    # ---- connections -------------------------------------------------------------------------

    def _connected(self, connection: Connection) -> None:
        connection.on_close(self._disconnected)

    def _disconnected(self, connection: Connection, error: ShmqError) -> None:
        """A client left or died: what it did counts, and the others hear of it, at once."""
        if self._is_leaving or self.phase is Phase.STARTING:
            return
        self.interests.remove(connection)
        is_slave = self.ha is not None and self.ha.remove(connection)
        session = self.sessions.find(connection)
        if session is not None:
            if not is_slave:  # it never closes its own, and has metrics that tell of it
                self.sessions.reaped.left(connection.identity.incarnation)
            _log.info(
                "client left client=%s session=%d reason=%s",
                session.client_id,
                session.session,
                error,
            )
        self.sessions.end(connection)
        client = self.registry.of(connection)
        if client is not None and self.locks.held_by(client.client_id):
            self._run(self._free_locks(client))
        self.registry.remove(connection)

    async def _free_locks(self, client: Client) -> None:
        """Free the locks of a client whose connection has ended once its process has: what it is
        doing with a message is over then, and not before.
        """
        life = client.connection.identity.incarnation
        look_s = _DEATH_LOOK_S
        while self.locks.held_by(client.client_id):  # they expire, if the process lives on
            if life is None or not life.is_alive():
                self.locks.unlock_all(client.client_id)
            elif self.registry.named(client.client_id) is not None:
                return  # it has connected anew, and has them
            else:
                await asyncio.sleep(look_s)
                look_s = min(2 * look_s, _DEATH_LOOK_MAX_S)

    def _session_ending(self, session: ClientSession) -> None:
        self.claims.end_session(session)

    def _session_ended(self, slot: int, reason: str) -> None:
        """Called by a thread of the store."""
        self._loop.loop.call_soon_threadsafe(self._session_ended_on_loop, slot, reason)

    def _session_ended_on_loop(self, slot: int, reason: str) -> None:
        if not self._is_leaving:
            self.sessions.ended_by_store(slot, reason)

    def _expired(self, expired: ExpiredFile) -> None:
        """Called by a thread of the store."""
        self._loop.loop.call_soon_threadsafe(self._expired_on_loop, expired)

    def _expired_on_loop(self, expired: ExpiredFile) -> None:
        if not self._is_leaving:
            self.expired_unread.expired(expired.spans)

    def hold_members(self, connection: Connection, groups: Iterable[str]) -> None:
        """Have a client leave those of these groups that the rules in force do not allow it."""
        client = self.registry.of(connection)
        if self._enforcement is not None and client is not None:
            self._enforcement.hold_members(client, groups)

    def bind(self, connection: Connection, client_id: str) -> None:
        """Give a connection its client_id; the same process's older connection ends.

        Raises:
            OwnerError: the id is another process's, or the connection has another one.
        """
        older = self.registry.bind(connection, client_id)
        if older is not None:
            older.close(ClosedError(f"client {client_id} connected anew"))

    # ---- for processors ----------------------------------------------------------------------

    def require_running(self) -> None:
        """Return if requests are served.

        Raises:
            ServiceNotAvailableError: the broker is starting, or draining.
        """
        if self.phase is not Phase.RUNNING:
            raise ServiceNotAvailableError(
                f"broker {self.config.broker_name} is {self.phase.lower()}; try again in a moment"
            )

    def require_master(self) -> None:
        """Return if this broker takes messages.

        Raises:
            ServiceNotAvailableError: it is a slave.
        """
        if self.is_slave:
            raise ServiceNotAvailableError(
                f"broker {self.config.broker_name}:{self.config.broker_id} is a slave: it takes no "
                "message and changes nothing; ask the master of that name"
            )

    def require_readable(self) -> None:
        """Return if consumers are served here.

        Raises:
            ServiceNotAvailableError: it is a slave, and they are not to read from it.
        """
        if self.is_slave and not self.config.slave_read_enable:
            raise ServiceNotAvailableError(
                f"broker {self.config.broker_name}:{self.config.broker_id} is a slave, and "
                "slaveReadEnable is false: consumers read from the master of that name"
            )

    async def copy_delays(self, marks: object, wanted: DelayOffsets) -> None:
        """Write down how far the master's delay levels are, and since when their messages wait,
        where that is news: a slave that becomes master goes on.
        """
        if isinstance(marks, dict):
            path = self.store.config.store_path / "shmq" / DELAY_MARKS_FILE
            await asyncio.to_thread(checked_json.save, path, marks)
            self.delay_marks_ns = marked_ns(marks, boot_id().hex())
        if self._delay_offsets != wanted.offsets:
            files = ConfigFiles(self.store.config.store_path)
            await asyncio.to_thread(files.store, wanted)
            self._delay_offsets = wanted.offsets

    def left_of_start_s(self, seconds: float) -> float:
        """What is left of so many seconds since the broker began to serve."""
        since_s = (self.clock.monotonic_ns() - self._running_ns) / 1e9
        return max(0.0, seconds - since_s)

    def topic_of(self, handle: QueueHandle) -> str | None:
        """The topic of a queue, None if the handle is stale."""
        try:
            topic, queue_id = self.store.queues.name(handle.row)
        except StoreError:
            return None
        is_same = self.store.queues.find(topic, queue_id) == handle
        return topic if is_same and topic in self.topics else None

    def lag(self, topic: str, queue_id: int) -> list[tuple[str, int]]:
        """(group, messages) for each group that has some left in a queue."""
        handle = self.store.queues.find(topic, queue_id)
        now = self.store.queues.offsets(handle)
        groups = self.offsets.groups_of(topic) | self.registry.groups_subscribed_to(topic)
        found = []
        for group in sorted(groups):
            claim = self.claims.find(ClaimedQueue(group, topic, queue_id))
            if claim is not None:
                self.claims.harvest([claim])
            begin = self.offsets.query(group, topic, queue_id) or 0
            left = now.visible_max - max(begin, now.min_queue_offset)
            if left > 0:
                found.append((group, left))
        return found

    def topics_of_group(self, group: str) -> set[str]:
        """Topics that a group consumes or ever consumed, and that of its retries if some wait that
        it never looked for.
        """
        subscribed = {
            topic
            for client in self.registry.consumers(group)
            for topic in client.consumers[group].subscriptions
        }
        retries = {retry_topic(group)} if self.unread_retries(group) else set()
        return self.offsets.topics_of(group) | subscribed | retries

    def unread_retries(self, group: str) -> list[tuple[int, QueueHandle]]:
        """Queues of retries of a group that it never read, and that have some: they may wait for a
        member that looks for them for ever.
        """
        topic = retry_topic(group)
        if topic not in self.topics:
            return []
        known = self.offsets.queues_of(group, topic)
        return [
            (queue_id, handle)
            for queue_id, handle in self.topics.read_queues(topic)
            if queue_id not in known
            and (now := self.store.queues.offsets(handle)).min_queue_offset < now.visible_max
        ]

    def revoke(self, chosen: Callable[[ClaimedQueue], bool], *, is_harvested: bool = True) -> None:
        """End claims by hand, and tell whose they were."""
        for session, claims in self.claims.revoke(chosen, is_harvested=is_harvested).items():
            self.notices.claims_revoked(session, claims)

    async def delete_topic(self, topic: str) -> None:
        """Delete a topic with its claims and offsets; one that is not there is deleted already.

        Raises:
            IllegalTopicError, DiskFullError, StoreError: it stays.
        """
        handles = await self.topics.delete(topic)
        self.revoke(lambda queue: queue.topic == topic, is_harvested=False)
        self.locks.remove(lambda queue: queue.topic == topic)
        self.offsets.remove_topic(topic)
        self.sessions.forget_rows(handle.row for handle in handles)
        self.interests.remove_topic(topic)
        await self.owners.remove("topic", topic)

    async def tell_namesrv(self, timeout_s: float) -> None:
        """Return when the NameServers that are there know of every change so far."""
        if self._registration is not None:
            await self._registration.told(timeout_s=timeout_s)

    # ---- what it is and how it does ----------------------------------------------------------

    def ask_status(self) -> Future[dict[str, Scalar]]:
        """`status`, from another thread; never done where the event loop does not answer."""
        return self._loop.submit(self._status_soon())

    async def _status_soon(self) -> dict[str, Scalar]:
        return self.status()

    @property
    def has_problem(self) -> bool:
        """Whether there is something that a person should see to."""
        cut_problem = self.cuts.problem if self._is_store_open else None
        return (self._own_problem() or cut_problem) is not None

    def status(self) -> dict[str, Scalar]:
        """Whether it lives and how far it is; answered in every phase."""
        fields: dict[str, Scalar] = {
            "phase": self.phase,
            "pid": self._own.pid,
            "startTime": self._own.start_time,
            # The loop answers; an append thread that hangs would hold it here.
            "isHealthy": self._failure is None,
            "problem": self._own_problem(),
            "controllerProblem": None if self._link is None else self._link.problem,
            "replicaProblem": self._replica_problem(),
            **(self.cuts.status() if self._is_store_open else {}),
            "brokerVersionDesc": version_text(),
            "storePath": str(self.config.store_path),
            "brokerName": self.config.broker_name,
            "brokerId": self.config.broker_id,
            "asyncLearner": self.config.async_learner,
            "role": BrokerRole.SLAVE if self.is_slave else self.config.master_role,
        }
        if self.phase is not Phase.STARTING:
            now = self.store.positions
            fields |= {
                "masterEpoch": self.store.master_epoch or self.store.epochs.last_epoch,
                "logEpoch": self.store.epochs.epoch_at(now.committed_position),
                "logEnd": self.store.appender_state()["log_end"],
                "committedPosition": now.committed_position,
                "flushedPosition": now.flushed_position,
                "sessionCount": len(self.sessions),
                "lostSessionCount": len(self.store.sessions.lost),
            }
        file = self.rights.file
        if file is not None:
            fields |= {"aclFile": str(file.path), "aclProblem": file.problem}
        return fields

    def runtime_info(self) -> dict[str, str]:
        """What GET_BROKER_RUNTIME_INFO shows."""
        now, counters = self.store.positions, self.store.counters()
        config = self.config
        facts: dict[str, object] = {
            "brokerName": config.broker_name,
            "brokerId": config.broker_id,
            "brokerClusterName": config.cluster_name,
            "brokerVersionDesc": version_text(),
            "storePath": config.store_path,
            "bootTimestamp": self.begin_ms,
            "pid": os.getpid(),
            "isAdopted": self.store.is_adopted,
            "putMessageTimesTotal": counters["messages_in"],
            "putMessageSizeTotal": counters["bytes_in"],
            "turnsTotal": counters["turns"],
            "recordsRefusedTotal": counters["records_refused"],
            "sessionsEndedTotal": counters["sessions_ended"],
            "wakeupsTotal": counters["wakeups_sent"],
            "commitLogMinOffset": now.min_position,
            "commitLogHotMinOffset": now.hot_min_position,
            "commitLogMaxOffset": now.committed_position,
            "indexBehindFiles": self.store.index_waiting_count,
            "coldReadsTotal": self.slave_reads.read_count,
            "flushBehindBytes": now.committed_position - now.flushed_position,
            "sessionCount": len(self.sessions),
            "clientCount": len(self.registry),
            "claimCount": len(self.claims),
            "topicCount": len(self.topics),
            "queueCount": len(self.store.queues),
            "groupCount": len(self.groups.configs),
            "scheduleMessageDelivered": self.schedule.delivered_count if self.schedule else 0,
            "sendBackToRetry": self.retries.retry_count if self.retries else 0,
            "sendBackToDlq": self.retries.dead_letter_count if self.retries else 0,
            "scheduleMessageDropped": self.schedule.dropped_count if self.schedule else 0,
            "scheduleMessageExpired": self.schedule.expired_count if self.schedule else 0,
            "namesrvs": ",".join(self._registration.registered_names if self._registration else ()),
            "expiredFilesTotal": self.store.retention.expired_file_count,
            "expiredBytesTotal": self.store.retention.expired_bytes,
            "expiredUnreadTotal": self.expired_unread.counts.total(),
            "expiredUnreadGroups": ",".join(
                f"{group}={count}" for group, count in sorted(self.expired_unread.counts.items())
            ),
            "problem": self._own_problem() or self.cuts.problem or "",
            **self.cuts.counts(),
            "aclFile": "" if self.rights.file is None else self.rights.file.path,
            "aclReloadsTotal": 0 if self.rights.file is None else self.rights.file.reload_count,
            "aclProblem": (self.rights.file and self.rights.file.problem) or "",
        }
        return {key: str(value) for key, value in facts.items()}

    def change_config(self, changes: Mapping[str, object]) -> dict[str, object]:
        """Give settings other values until the broker ends; what they are now.

        Raises:
            ConfigError: one cannot be used, or counts from a start only: none is changed.
        """
        values = change_live((self.config, self.store.config), changes)
        for name, value in values.items():
            _log.info("setting changed %s=%s", name, value)
        self._settings_changed.set()
        self._settings_changed = asyncio.Event()  # the next change
        self.store.retention.wake()
        if self.ha is not None:
            self.ha.refresh()
        return values

    def _replica_problem(self) -> str | None:
        if self.ha_client is None:
            return None
        return self.ha_client.problem or (self.store.replica.problem if self._is_loaded else None)

    def _own_problem(self) -> str | None:
        problem = self._failure or self.problem
        if problem is None and self._is_loaded:
            both = (self.store.append_problem, self.store.retention.problem)
            problem = "; ".join(filter(None, both)) or None
        return problem

    # ---- notices -----------------------------------------------------------------------------

    def _group_changed(self, group: str, members: Iterable[Client]) -> None:
        del members  # they are asked for when they are told
        config = self.groups.configs.get(group)
        if config is None or config.notify_consumer_ids_changed_enable:
            self.notices.group_changed(group)

    def _topics_changed(self, topics: Iterable[str]) -> None:
        names = list(topics)
        if self._registration is not None:
            self._registration.changed(names)
        for topic in names:
            self.notices.topic_changed(topic, self.interests.of(topic))
        if self.ha is not None and names:
            self.ha.notify(RequestCode.NOTIFY_TOPIC_CHANGED, {"topic": names[0]})

    def _group_config_changed(self, group: str) -> None:
        if self.ha is not None:
            self.ha.notify(RequestCode.NOTIFY_CONSUMER_IDS_CHANGED, {"consumerGroup": group})


def _session_count(config: BrokerConfig) -> int | None:
    """Session slots of the store: the clients' and ours."""
    return None if config.session_count is None else config.session_count + _SERVICE_SESSIONS
