"""A member of a replica set that is neither master nor copies one: it answers, and waits.

What lives here: `Standby`, what a broker's process is while nobody is master: its socket, on which
it says how it is and is told to become master. Its store is closed: its files are what they were,
for the member itself to open as master, or as the slave of whoever becomes it.

Which process: a broker's. Writes: its socket. May fail: the name is taken (OwnerError).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from shmq.acl import AclFile
from shmq.broker.ha_client import MasterFinder
from shmq.broker.processors.attach import RESUME_ORDER
from shmq.broker.processors.role import RoleProcessor
from shmq.broker.rights import Rights
from shmq.errors import ServiceNotAvailableError
from shmq.remoting.codes import RequestCode
from shmq.remoting.command import Command, Scalar, response_to
from shmq.remoting.loop_thread import LoopThread, in_background
from shmq.remoting.runtime_folder import Listener, RuntimeFolder, broker_socket_name
from shmq.remoting.server import Connection, Processor, Server
from shmq.service import Phase
from shmq.shm.incarnation import Incarnation
from shmq.status import BrokerRole
from shmq.store import positions
from shmq.store.epochs import EpochFile
from shmq.store.log_end import log_end
from shmq.version import version_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from shmq.broker.controller_link import ControllerLink
    from shmq.broker.processors.role import OnTold
    from shmq.config import BrokerConfig
    from shmq.store.log_end import LogEnd
    from shmq.store.replica import LogBegin

__all__ = ["Standby"]

_LOOP_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 1.0
_REFUSED = (
    RequestCode.ATTACH_SESSION,
    RequestCode.RESUME_SESSION,
    RequestCode.HEART_BEAT,
    RequestCode.GET_BROKER_RUNTIME_INFO,
)


class Standby:
    """One member that waits.

    Args:
        config: its settings.
        on_told: called in the loop's thread when it is told to change its role.
        on_master: called there, once, when a master serves that can be copied.
        look_after_s: seconds before it looks for one.
        link: to the Controller that says who is master; None: there is none.
    """

    def __init__(
        self,
        config: BrokerConfig,
        *,
        on_told: OnTold,
        on_master: Callable[[LogBegin], None],
        look_after_s: float = 0.0,
        link: ControllerLink | None = None,
    ) -> None:
        self._config = config
        self._on_master = on_master
        self._look_after_s = look_after_s
        self._link = link
        self._looking: asyncio.Task[None] | None = None
        self._finder: MasterFinder | None = None
        self._on_told = on_told
        self.promotion_problem: str | None = None
        """Why it did not become master when it was told last."""
        self._log_end: LogEnd | None = None
        """As whoever asked first had it looked for: the store is closed, its log stays."""
        self._own = Incarnation.current()
        self._loop = LoopThread("shmq-control")
        self._folder: RuntimeFolder | None = None
        self._server: Server | None = None

    def start(self) -> None:
        """Listen.

        Raises:
            OwnerError, ConfigError: the name cannot be had; `stop` releases what was.
        """
        config = self._config
        file = None if config.acl_file is None else AclFile(config.acl_file)
        self._role = RoleProcessor(
            config, lambda: Rights(file, config.broker_name), on_told=self._on_told
        )
        self._folder = RuntimeFolder.make(config.runtime_folder())
        listener = self._folder.listen(broker_socket_name(config.broker_name, config.broker_id))
        self._loop.start()
        self._loop.run(self._listen(listener), timeout_s=_LOOP_TIMEOUT_S)

    def is_healthy(self) -> bool:
        """Whether the event loop has answered since last asked, and every task still works."""
        return self._loop.beat() and self._failure is None

    @property
    def _failure(self) -> str | None:
        """Which task is gone, here or on the line to the Controller."""
        return self._loop.problem or (None if self._link is None else self._link.failure)

    def describe(self) -> str:
        """What it waits for, in one line for systemctl."""
        problem = self._failure or self.promotion_problem
        return "standby" if problem is None else f"standby; {problem}"

    def stop(self) -> None:
        """Listen no more; also after a `start` that failed half-way."""
        try:
            if self._server is not None:
                self._loop.run(
                    self._leave(self._server),
                    timeout_s=_STOP_TIMEOUT_S + _LOOP_TIMEOUT_S,
                )
        finally:
            self._loop.stop()
            if self._folder is not None:
                self._folder.close()

    async def _listen(self, listener: Listener) -> None:
        table: dict[int, Processor] = {
            RequestCode.GET_BROKER_STATUS: Processor(handler=self._status),
            **self._role.table(),
            # A client may hand its memory to where the master was: it is told, and not cut off.
            **{
                code: Processor(handler=self._refuse, fd_count_max=len(RESUME_ORDER))
                for code in _REFUSED
            },
        }
        self._server = Server(listener, table, role="broker")
        self._looking = in_background(self._look())

    async def _look(self) -> None:
        assert self._folder is not None
        await asyncio.sleep(self._look_after_s)
        self._finder = MasterFinder(self._config, self._folder)
        self._on_master(await self._finder.await_begin())

    async def _leave(self, server: Server) -> None:
        if self._looking is not None:
            self._looking.cancel()
        await server.stop(timeout_s=_STOP_TIMEOUT_S)

    def ask_status(self) -> Future[dict[str, Scalar]]:
        """`status`, from another thread; never done where the event loop does not answer."""
        return self._loop.submit(self._status_soon())

    async def _status_soon(self) -> dict[str, Scalar]:
        return self.status()

    def _status(self, _connection: Connection, command: Command) -> Command:
        return response_to(command, ext_fields=self.status())

    def status(self) -> dict[str, Scalar]:
        """How it is; in the loop's thread."""
        store_path = self._config.store_path
        known = positions.load(positions.positions_path(store_path))
        if self._log_end is None:
            self._log_end = log_end(store_path)
        return {
            "phase": Phase.RUNNING,
            "brokerVersionDesc": version_text(),
            "storePath": str(store_path),
            "brokerName": self._config.broker_name,
            "brokerId": self._config.broker_id,
            "asyncLearner": self._config.async_learner,
            "role": BrokerRole.SLAVE,
            "pid": self._own.pid,
            "startTime": self._own.start_time,
            "isHealthy": self._failure is None,
            "problem": self._failure or self.promotion_problem,
            "promotionProblem": self.promotion_problem,
            "controllerProblem": None if self._link is None else self._link.problem,
            "replicaProblem": None if self._finder is None else self._finder.problem,
            "masterEpoch": EpochFile.load(store_path).last_epoch,
            "logEpoch": self._log_end.master_epoch,
            "flushedPosition": known.flushed_position if known else 0,
            "committedPosition": self._log_end.end_position,
        }

    def _refuse(self, _connection: Connection, command: Command) -> Command:
        raise ServiceNotAvailableError(
            f"{command.name} to broker {self._config.broker_name}:{self._config.broker_id}: it is"
            " no master; clients find the one that is"
        )
