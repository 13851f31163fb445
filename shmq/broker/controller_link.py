"""A member's line to its Controller: who it is, that it lives, what it is told, who is in sync.

What lives here: `ControllerLink`. It finds the active Controller among the sockets of the runtime
folder, has its broker_id for good (identity.py), registers, beats each brokerHeartbeatInterval, and
hears from every answer and notice how its replica set is. So a notice that is lost costs a beat.

Three rules of decision 0024 are kept here and in roles.py:

    elected for the memory: go on with that or say with the next beat that it cannot (`refused`)
    before it serves, with everything in its files, the elected one alters the SyncStateSet to
        itself alone (`begin`, called by MessageStore.start)
    from asking for a change of the SyncStateSet until it is known how that ended, the members of
        both sets count as in sync (`_follow_in_sync`, HAService.count)

While no Controller answers, a master serves with the set as it is, and a slave copies: nothing here
is on the way of a message.

In a thread of its own with an event loop, since roles come and go, and a recovery takes its time. A
beat is sent only while whoever serves answers: who hangs falls silent. Never raises for what a
Controller does but from `begin`: it logs, and tries again.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from shmq.errors import ClosedError, FencedError, ServiceNotAvailableError, ShmqError
from shmq.remoting import controller_requests as requests
from shmq.remoting.aio_client import AsyncClient
from shmq.remoting.codes import RequestCode, ResponseCode
from shmq.remoting.command import error_of
from shmq.remoting.controller_requests import ReplicaInfo
from shmq.remoting.loop_thread import LoopThread, in_background
from shmq.remoting.runtime_folder import RuntimeFolder, broker_socket_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from shmq.broker.identity import BrokerIdentity
    from shmq.config import BrokerConfig
    from shmq.remoting.command import Command

__all__ = ["ControllerLink", "LinkedMember", "LogState"]

_log = logging.getLogger("shmq.broker")

_TIMEOUT_S: Final = 3.0
"""For a connection, and for an answer: an fsync or two."""
_BACK_OFF_S: Final = 0.02
_BACK_OFF_MAX_S: Final = 0.5
_BEGIN_RETRY_S: Final = 0.1
_LOOP_TIMEOUT_S: Final = 10.0


class LogState(NamedTuple):
    """How far a member is."""

    master_epoch: int
    """The newest that it knows."""
    log_epoch: int
    """Under which the last byte of its log was written."""
    log_end: int
    """physical_offset behind its log."""


class LinkedMember(Protocol):
    """The member whose line it is. All but `state` is called in the link's thread, and returns at
    once.
    """

    async def state(self) -> LogState | None:
        """How far it is; None: whoever serves does not answer."""

    def elected(self, info: ReplicaInfo) -> None:
        """It is to be master, by the right that `info` says."""

    def superseded(self) -> None:
        """Another one is, or nobody."""


class ControllerLink:
    """One member's line.

    Args:
        config: of the member.
        member: see LinkedMember.
    """

    def __init__(self, config: BrokerConfig, member: LinkedMember) -> None:
        self.problem: str | None = "it has not answered yet"
        """Why there is no Controller, for people."""
        self._config = config
        self._member = member
        self._loop_thread = LoopThread("shmq-link")
        self._identity: BrokerIdentity
        self._task: asyncio.Task[None]
        self._folder: RuntimeFolder | None = None
        self._client: AsyncClient | None = None
        self._info: ReplicaInfo | None = None
        self._wake = asyncio.Event()
        self._is_interrupted = False
        self._taking_epoch = 0
        """In which it was elected, until another one is; 0: it was not."""
        self._refused_epoch = 0
        self._in_sync: frozenset[int] = frozenset()
        """Slaves in sync, as the HAService sees it."""
        self._asked: frozenset[int] = frozenset()
        """Members of every set that was asked for, and may have become the set."""
        self._count: Callable[[frozenset[int]], Awaitable[None]] | None = None

    # ---- for the member ----------------------------------------------------------------------

    @property
    def failure(self) -> str | None:
        """Why nothing goes through this line any more until the process is restarted."""
        return self._loop_thread.problem

    def start(self, identity: BrokerIdentity) -> None:
        """Look for the Controller from now on, as whom the store says that we are.

        Raises:
            OwnerError: the runtime folder cannot be used.
        """
        self._identity = identity
        self._folder = RuntimeFolder.make(self._config.runtime_folder())
        self._loop_thread.start()
        self._loop_thread.run(self._start(self._folder), timeout_s=_LOOP_TIMEOUT_S)

    def interrupt(self) -> None:
        """A `begin` under way raises ClosedError; nobody is told anything any more. Beats go on."""
        self._is_interrupted = True
        if self._loop_thread.is_running:
            self._loop_thread.loop.call_soon_threadsafe(self._wake.set)

    def stop(self) -> None:
        """End; twice does nothing."""
        self.interrupt()
        if self._loop_thread.is_running:
            self._loop_thread.run(self._close(), timeout_s=_LOOP_TIMEOUT_S)
        self._loop_thread.stop()
        folder, self._folder = self._folder, None
        if folder is not None:
            folder.close()

    def begin(self, master_epoch: int) -> None:
        """Return once the Controller has it that our mastership began. Blocks until it answers.

        Raises:
            FencedError: another member was elected meanwhile.
            ClosedError: `interrupt` was called.
        """
        self._loop_thread.submit(self._begin(master_epoch)).result()

    def refused(self, master_epoch: int) -> None:
        """It was elected in this epoch and cannot be master: the Controller elects another one."""
        self._loop_thread.loop.call_soon_threadsafe(self._refuse, master_epoch)

    def keep(self, count: Callable[[frozenset[int]], Awaitable[None]]) -> None:
        """The member serves as master: keep the SyncStateSet.

        Args:
            count: has these slaves count as in sync besides those that are; done when it returns.
        """
        self._loop_thread.loop.call_soon_threadsafe(self._set_count, count)

    def changed(self, in_sync: frozenset[int]) -> None:
        """These slaves are in sync by now."""
        self._loop_thread.loop.call_soon_threadsafe(self._set_in_sync, in_sync)

    def ended(self) -> None:
        """The member is no master any more."""
        self._loop_thread.loop.call_soon_threadsafe(self._set_count, None)

    # ---- the line ----------------------------------------------------------------------------

    async def _start(self, folder: RuntimeFolder) -> None:
        self._task = in_background(self._run(folder))

    async def _run(self, folder: RuntimeFolder) -> None:
        back_off_s = _BACK_OFF_S
        while True:  # until stop(): Controllers come and go
            try:
                client = await self._connect(folder)
                try:
                    await self._register(client)
                    back_off_s = _BACK_OFF_S
                    await self._serve(client)
                finally:
                    self._client = None
                    client.close()
            except ShmqError as error:
                self._say(error)
            except OSError as error:  # no descriptor left, a folder that went away
                self._say(ShmqError(str(error)))
            await asyncio.sleep(back_off_s)
            back_off_s = min(2 * back_off_s, _BACK_OFF_MAX_S)

    async def _connect(self, folder: RuntimeFolder) -> AsyncClient:
        """To the active Controller.

        Raises:
            ShmqError: none answers as such.
        """
        reason: ShmqError = ServiceNotAvailableError(
            f"find the Controller: none listens in {folder.path}",
            hint="start shmq-controller, or have the NameServer be one (enableControllerInNamesrv)",
        )
        for name in folder.socket_names("controller"):
            try:
                client = await AsyncClient.connect(
                    folder,
                    name,
                    role="broker",
                    timeout_s=_TIMEOUT_S,
                    on_notify=self._hear,
                    on_close=lambda _error: self._wake.set(),
                )
            except ShmqError as error:
                reason = error
                continue
            try:
                answer = await client.call(requests.get_metadata_info(), timeout_s=_TIMEOUT_S)
                if answer.fields().flag("isLeader", False):
                    return client
                reason = ServiceNotAvailableError(f"find the Controller: {name} is a standby")
            except ShmqError as error:
                reason = error
            client.close()
        raise reason

    async def _register(self, client: AsyncClient) -> None:
        config = self._config
        address = broker_socket_name(config.broker_name, config.broker_id)
        applied = requests.apply_broker_id(
            cluster_name=config.cluster_name,
            broker_name=config.broker_name,
            broker_id=config.broker_id,
            address=address,
            register_check_code=self._identity.register_check_code,
            is_async_learner=config.async_learner,
        )
        await client.call(applied, timeout_s=_TIMEOUT_S)
        registered = requests.register_broker(
            cluster_name=config.cluster_name,
            broker_name=config.broker_name,
            broker_id=config.broker_id,
            address=address,
            is_async_learner=config.async_learner,
        )
        self._learn(await client.call(registered, timeout_s=_TIMEOUT_S))
        self._client = client
        self.problem = None
        _log.info("registered controller=%s", client.name)

    async def _serve(self, client: AsyncClient) -> None:
        """Beat, and have the SyncStateSet follow; raises what ended the connection."""
        while True:  # ends by the error of a connection that has ended
            self._wake.clear()
            await self._beat(client)
            await self._follow_in_sync(client)
            try:
                async with asyncio.timeout(self._config.broker_heartbeat_interval_ms / 1e3):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _beat(self, client: AsyncClient) -> None:
        state = await self._member.state()
        if state is None:
            _log.warning("no heartbeat: whoever serves does not answer")
            return
        beat = requests.broker_heartbeat(
            broker_name=self._config.broker_name,
            broker_id=self._config.broker_id,
            # A mastership that is being taken up is in no file yet, and none may have less.
            master_epoch=max(state.master_epoch, self._taking_epoch),
            log_epoch=state.log_epoch,
            log_end=state.log_end,
            election_priority=self._config.broker_election_priority,
            refused_epoch=self._refused_epoch,
        )
        self._learn(await self._invoke(client, beat))

    async def _invoke(self, client: AsyncClient, command: Command) -> Command:
        """Ask; a Controller that is none any more, or knows us no longer, ends the connection."""
        answer = await client.invoke(command, timeout_s=_TIMEOUT_S)
        if answer.code in _OVER:
            raise error_of(answer) or ClosedError(f"{client.name} is not the Controller")
        return answer

    async def _close(self) -> None:
        if self._client is not None:
            self._client.close()

    def _say(self, error: ShmqError) -> None:
        if self.problem != str(error):
            self.problem = str(error)
            _log.warning("no controller: %s; %s", error, error.hint)

    # ---- what it hears -----------------------------------------------------------------------

    def _hear(self, command: Command) -> None:
        if command.code == RequestCode.NOTIFY_BROKER_ROLE_CHANGED:
            self._learn(command)

    def _learn(self, command: Command) -> None:
        """How the replica set is; old news is no news."""
        info, known = ReplicaInfo.of(command), self._info
        if info is None or (known is not None and info.age < known.age):
            return
        self._info = info
        if known is None or info.sync_state_set_epoch > known.sync_state_set_epoch:
            self._asked = frozenset()
        if info != known:
            self._wake.set()
        if self._is_interrupted:
            return
        is_mine = info.master_broker_id == self._config.broker_id
        is_new = info.master_epoch > max(self._taking_epoch, self._refused_epoch)
        if is_mine and not info.is_begun and is_new:
            self._taking_epoch = info.master_epoch
            _log.warning("elected epoch=%d for=%s", info.master_epoch, info.elected)
            self._member.elected(info)
        elif not is_mine and self._taking_epoch:
            self._taking_epoch = 0
            _log.warning("another is master broker_id=%s", info.master_broker_id)
            self._member.superseded()

    def _refuse(self, master_epoch: int) -> None:
        self._refused_epoch = master_epoch
        if self._taking_epoch == master_epoch:  # it may have been elected again meanwhile
            self._taking_epoch = 0
        self._wake.set()

    # ---- mastership --------------------------------------------------------------------------

    async def _begin(self, master_epoch: int) -> None:
        own_id = self._config.broker_id
        while True:  # ends: a Controller answers, elects another, or `interrupt` is called
            if self._is_interrupted:
                raise ClosedError(f"begin mastership {master_epoch}: the broker stops")
            info = self._info
            assert info is not None, "it was elected by some"
            if (info.master_broker_id, info.master_epoch) != (own_id, master_epoch):
                raise FencedError(
                    f"begin mastership {master_epoch} of {self._config.broker_name}: the Controller"
                    f" has elected {info.master_broker_id} in epoch {info.master_epoch} meanwhile"
                )
            if info.is_begun:
                return
            client = self._client
            if client is not None:
                try:
                    error = await self._ask(client, info, [own_id])
                    if error is None:
                        continue
                except ShmqError as ended:
                    error = ended
                _log.warning("mastership not begun yet: %s", error)
            await asyncio.sleep(_BEGIN_RETRY_S)

    async def _ask(
        self, client: AsyncClient, info: ReplicaInfo, wanted: Iterable[int]
    ) -> ShmqError | None:
        """Have the set altered; what is answered is learnt. Why it was refused, or None.

        Raises:
            ShmqError: it is not known whether it was.
        """
        command = requests.alter_sync_state_set(
            broker_name=self._config.broker_name,
            master_broker_id=self._config.broker_id,
            master_epoch=info.master_epoch,
            sync_state_set=wanted,
            sync_state_set_epoch=info.sync_state_set_epoch,
        )
        answer = await self._invoke(client, command)
        self._learn(answer)
        return error_of(answer)

    def _set_count(self, count: Callable[[frozenset[int]], Awaitable[None]] | None) -> None:
        self._count = count
        self._in_sync = self._asked = frozenset()
        self._wake.set()

    def _set_in_sync(self, in_sync: frozenset[int]) -> None:
        self._in_sync = in_sync
        self._wake.set()

    async def _follow_in_sync(self, client: AsyncClient) -> None:
        """See that the Controller's SyncStateSet is the one that there is."""
        info, count, own_id = self._info, self._count, self._config.broker_id
        if count is None or info is None or not info.is_begun:
            return
        if info.master_broker_id != own_id or info.master_epoch != self._taking_epoch:
            return
        wanted = self._in_sync | {own_id}
        if wanted != info.sync_state_set:
            before = self._asked
            self._asked |= wanted
            await count((info.sync_state_set | self._asked) - {own_id})
            try:
                error = await self._ask(client, info, wanted)
            except ShmqError as unknown:
                _log.warning("SyncStateSet not altered wanted=%s: %s", sorted(wanted), unknown)
                if client.is_closed:
                    raise
                return  # with the next beat
            if error is not None:
                self._asked &= before  # that set was refused, and never becomes the set
                _log.warning("SyncStateSet not altered wanted=%s: %s", sorted(wanted), error)
                return  # with the next beat
            info = self._info or info
        await count((info.sync_state_set | self._asked) - {own_id})


_OVER: Final = frozenset(
    {
        ResponseCode.CONTROLLER_NOT_LEADER,
        ResponseCode.CONTROLLER_BROKER_NEED_TO_BE_REGISTERED,
    }
)
