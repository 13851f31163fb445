"""A broker's role: master of its broker_name, or a member that waits to become it.

What lives here: `Member`, the shmq.service.Service of a broker's process. It has mastership and
runs a `Broker`; or it has not, and runs a `Standby`, or a `Broker` that is a slave; and it goes
from one to the other within the process when it is told to (NOTIFY_BROKER_ROLE_CHANGED):

    standby        --a master serves-------> slave      copies its log
    slave          --log is to be cut------> standby    has what the master has not (cuts.py)
    standby, slave --told, mastership free-> master     with the memory that the last one left
    master         --told, memory kept-----> standby    mastership is free for the next

Told it is by a supervisor (a master's process ended), by a Controller, or by a person (`shmq ha
switch`). Who tells cannot be wrong: mastership is the kernel's to give, and a promotion while the
last master lives is refused.

The main thread starts and stops; changes happen in a thread of their own, one at a time. May fail:
what a broker may; a promotion that fails leaves a standby, and says why.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from typing import TYPE_CHECKING, NamedTuple

from shmq.broker.broker import Broker
from shmq.broker.controller_link import ControllerLink, LogState
from shmq.broker.identity import BrokerIdentity
from shmq.broker.newest import require_newest, require_own_memory
from shmq.broker.standby import Standby
from shmq.clock import SYSTEM_CLOCK, Clock
from shmq.errors import FencedError, ShmqError
from shmq.remoting.runtime_folder import RuntimeFolder, broker_socket_name
from shmq.shm.fd_store import FdStore
from shmq.shm.mastership import Mastership
from shmq.status import BrokerRole, Elected
from shmq.store.cuts import begin_cut
from shmq.threads import NamedThread

if TYPE_CHECKING:
    from pathlib import Path

    from shmq.config import BrokerConfig
    from shmq.remoting.controller_requests import ReplicaInfo
    from shmq.store.cuts import CutPlan
    from shmq.store.replica import LogBegin
    from shmq.store.stopped_log import StoppedLog

__all__ = ["Member"]

_log = logging.getLogger("shmq.broker")

_SLAVE_RETRY_S = 1.0
"""Between two attempts to be a slave, where the store cannot be opened."""
_FAILURES = (ShmqError, OSError)
"""What a change of role may fail by; OSError: the kernel, and an event loop that did not answer."""
_RELEASE_S = 1.0
"""After a promotion: clients that come back have the processors before the slave's memory has."""
_STATE = ("masterEpoch", "logEpoch", "committedPosition")
"""The fields of a broker's status that make a LogState."""
_STATE_TIMEOUT_S = 1.0
"""For whoever serves, to say how far it is; longer, and a beat is left out."""
_MASTERSHIP_TIMEOUT_MS = 10_000
"""How long a promotion waits for a master that was told to hand over: for its last flush."""


class _Change(NamedTuple):
    """What this member was told."""

    is_master: bool
    """Become master; else hand over."""
    master_epoch: int | None
    """Of the mastership, where a Controller counts; None: counted here."""
    is_unclean: bool = False
    """Whatever is given up by that (MessageStore)."""
    begin: LogBegin | None = None
    """A master serves, whose slave's log begins there."""
    cut: CutPlan | None = None
    """The slave's log is to be cut."""
    must_adopt: bool = False
    """With the memory of the last master, or not at all (MessageStore)."""


class Member:
    """One member of a replica set, most often its only one.

    Args:
        config: its settings.
        is_waiting: whether it starts as a standby, though nobody is master and its broker_id is 0:
            somebody will tell. Others always do.
        clock: monotonic and wall time.
    """

    def __init__(
        self, config: BrokerConfig, *, is_waiting: bool = False, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self.config = config
        self._is_waiting = is_waiting
        self._clock = clock
        self._fd_store = FdStore()
        self._current: Broker | Standby | None = None
        self._mastership: Mastership | None = None
        self._folder: Path
        self._is_adopted = False
        """Nothing says that the store's log was this replica set's (BrokerIdentity)."""
        self._changes: queue.SimpleQueue[_Change | None] = queue.SimpleQueue()
        self._stopped: StoppedLog | None = None
        """Of the slave that this was, until it is released."""
        self._changing = threading.Lock()
        """Held while a role begins or ends."""
        self._thread = NamedThread(target=self._run, name="shmq-roles", daemon=True)
        self._link: ControllerLink | None = None
        self._state = LogState(0, 0, 0)
        if config.enable_controller_mode:
            self._link = ControllerLink(config, self)

    # ---- the service's steps -----------------------------------------------------------------

    def start(self) -> None:
        """Serve, as master if nobody else is and nobody is to say; errors as Broker.start."""
        config = self.config
        identity = BrokerIdentity.of(config)
        self._is_adopted = identity.is_adopted
        with RuntimeFolder.make(config.runtime_folder()) as folder:
            self._folder = folder.private(broker_socket_name(config.broker_name, 0))
        with self._changing:
            may_begin = config.broker_id == 0 and config.broker_role is not BrokerRole.SLAVE
            may_begin = may_begin and self._link is None
            if not self._is_waiting and may_begin:
                self._mastership = Mastership.try_take(self._folder)
            if self._mastership is None:
                self._begin_standby()
            else:
                self._begin_first(self._mastership)
        self._thread.start()
        if self._link is not None:
            self._link.start(identity)

    def is_healthy(self) -> bool:
        """Whether the event loop has answered since last asked; while a role changes, it will."""
        if not self._changing.acquire(blocking=False):
            return True
        try:
            return self._current is not None and self._current.is_healthy()
        finally:
            self._changing.release()

    def describe(self) -> str:
        """Its role and what that does, in one line for systemctl."""
        if not self._changing.acquire(blocking=False):
            return "changes its role"
        try:
            return "starting" if self._current is None else self._current.describe()
        finally:
            self._changing.release()

    def reload(self) -> None:
        """Read the ACL file again, where there is one."""
        with self._changing:
            if isinstance(self._current, Broker):
                self._current.reload()

    def drain(self, timeout_s: float) -> None:
        """As Broker.drain; a change of role under way ends first, and none begins after it."""
        if self._link is not None:
            self._link.interrupt()
        self._changes.put(None)
        if self._thread.is_alive():
            self._thread.join()
        if isinstance(self._current, Broker):
            self._current.drain(timeout_s)

    def stop(self) -> None:
        """Release everything; also after a `start` that failed half-way."""
        if self._link is not None:
            self._link.interrupt()
        self._changes.put(None)
        if self._thread.is_alive():
            self._thread.join()
        with self._changing:
            self._end_current()
        if self._link is not None:
            self._link.stop()

    # ---- roles -------------------------------------------------------------------------------

    def tell(self, *, is_master: bool, master_epoch: int | None, is_unclean: bool) -> None:
        """Have the role changed; returns at once. What it is already is nothing to change."""
        self._changes.put(_Change(is_master, master_epoch, is_unclean))

    def elected(self, info: ReplicaInfo) -> None:
        """The Controller has it that we are to be master (LinkedMember)."""
        must_adopt = info.elected is Elected.MEMORY
        self._changes.put(
            _Change(True, info.master_epoch, is_unclean=not must_adopt, must_adopt=must_adopt)
        )

    def superseded(self) -> None:
        """The Controller has it that we are not master (LinkedMember)."""
        self._changes.put(_Change(False, None))

    async def state(self) -> LogState | None:
        """How far our log is, for the Controller (LinkedMember); in the link's thread. While a role
        changes, what was known before it.
        """
        current = self._current
        if self._changing.locked() or current is None:
            return self._state
        asked = asyncio.wrap_future(current.ask_status())
        await asyncio.wait([asked], timeout=_STATE_TIMEOUT_S)
        if not asked.done():
            asked.cancel()
            return None
        if not asked.cancelled() and asked.exception() is None:  # else that role has just ended
            said = [asked.result().get(key) for key in _STATE]
            numbers = [each for each in said if isinstance(each, int)]
            if len(numbers) == len(said):  # else it is about to begin
                self._state = LogState(*numbers)
        return self._state

    def _run(self) -> None:
        while True:  # until the service stops
            try:
                change = self._changes.get(timeout=_RELEASE_S if self._stopped else None)
            except queue.Empty:
                self._release_stopped()
                continue
            if change is None:
                break
            try:
                with self._changing:
                    self._change(change)
            except _FAILURES as error:
                hint = error.hint if isinstance(error, ShmqError) else "it is tried when told again"
                _log.error("role not changed wanted=%s: %s; %s", change, error, hint)
                if isinstance(self._current, Standby):
                    self._current.promotion_problem = str(error)

    def _change(self, change: _Change) -> None:
        if change.is_master and (self._mastership is None or self._link is not None):
            try:
                self._become_master(change)
            except _FAILURES:
                if self._link is not None and change.master_epoch is not None:
                    self._link.refused(change.master_epoch)
                raise
        elif change.cut is not None:
            if isinstance(self._current, Broker) and self._current.is_slave:
                self._cut(change.cut)
        elif change.begin is not None:
            if isinstance(self._current, Standby):
                self._begin_slave(change.begin)
        elif isinstance(self._current, Broker) and self._mastership is not None:
            self._hand_over()
            self._begin_standby()

    def _become_master(self, change: _Change) -> None:
        if self._mastership is not None:  # elected anew, in another epoch: with its own memory
            self._hand_over()
            self._begin_standby()
        # First, and while we still answer: it is refused as long as the last master lives.
        mastership = Mastership.take(self._folder, timeout_ms=_MASTERSHIP_TIMEOUT_MS)
        if isinstance(self._current, Broker):
            self._current.succeeds = True
        try:
            if self._link is None and not change.is_unclean:
                require_own_memory(self.config, self._folder, mastership.record)
            self._end_current()
            self._begin_broker(mastership, change)
        except _FAILURES:
            self._hand_over()
            mastership.release()
            self._begin_standby()
            raise

    def _hand_over(self) -> None:
        """Be master no more; what is in memory stays there for the next one."""
        if isinstance(self._current, Broker):
            self._current.hands_over = True
        self._end_current()

    def _begin_first(self, mastership: Mastership) -> None:
        """At the start of the process: nobody was master."""
        try:
            require_newest(self.config, self._folder, mastership.record)
            self._begin_broker(mastership, _Change(is_master=True, master_epoch=None))
        except FencedError as error:
            problem = f"{error}; {error.hint}"
            _log.error("not master: %s", problem)
            self._end_current()
            self._begin_standby()
            assert isinstance(self._current, Standby)
            self._current.promotion_problem = problem

    def _begin_broker(self, mastership: Mastership, change: _Change) -> None:
        self._mastership = mastership
        self._current = broker = Broker(
            self.config,
            clock=self._clock,
            mastership=mastership,
            master_epoch=change.master_epoch,
            is_unclean=change.is_unclean,
            must_adopt=change.must_adopt,
            link=self._link,
            on_told=self.tell,
            stopped=self._stopped,
            fd_store=self._fd_store,
        )
        broker.start()
        _log.info("master epoch=%d", broker.store.master_epoch)

    def _begin_slave(self, begin: LogBegin) -> None:
        self._end_current()
        self._current = slave = Broker(
            self.config,
            clock=self._clock,
            mastership=None,
            link=self._link,
            on_told=self.tell,
            begin=begin,
            is_adopted=self._is_adopted,
            fd_store=self._fd_store,
            on_cut=lambda plan: self._changes.put(_Change(False, None, cut=plan)),
        )
        try:
            slave.start()
        except _FAILURES:
            self._end_current()
            self._begin_standby(look_after_s=_SLAVE_RETRY_S)
            raise
        _log.info("slave")

    def _cut(self, plan: CutPlan) -> None:
        """Cut the closed store's log; it is a slave again as soon as a master answers."""
        self._end_current()
        try:
            begin_cut(self.config.store_path, plan, cut_at=self._clock.wall_ms())
        finally:
            self._begin_standby()

    def _begin_standby(self, *, look_after_s: float = 0.0) -> None:
        self._current = standby = Standby(
            self.config,
            on_told=self.tell,
            on_master=lambda begin: self._changes.put(_Change(False, None, begin=begin)),
            look_after_s=look_after_s,
            link=self._link,
        )
        standby.start()
        _log.info("standby: waits to be told to become master")

    def _release_stopped(self) -> None:
        """Remove the memory of the slave that this was, where that is still to be done."""
        stopped, self._stopped = self._stopped, None
        if stopped is not None:
            try:
                stopped.release()
            except ShmqError as error:
                _log.warning("memory of the slave that this was stays for now: %s", error)

    def _end_current(self) -> None:
        current, self._current = self._current, None
        mastership, self._mastership = self._mastership, None
        self._release_stopped()
        if self._link is not None and mastership is not None:
            self._link.ended()
        try:
            if current is not None:
                current.stop()
                if isinstance(current, Broker):
                    self._stopped = current.stopped_log
        finally:
            if mastership is not None:
                mastership.release()
