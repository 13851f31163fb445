"""The Controller as a service: the machine with its journal, its clock, its members' connections.

What lives here: `ControllerManager` (RocketMQ's name), a shmq.service.Service. Of several that are
given one folder the one that has its lock is active, the others are standbys: they look for the
lock ten times a second, and whoever gets it reads the journal and goes on.

    standby --the lock is free, the journal holds--> active --the journal fails--> standby

Each outcome of the machine is made durable before anybody is told (controller.py). A journal that
fails makes the active one a standby, which knows nothing but what is in the file when it has opened
it again. A member is heard through one connection and watched by a pidfd, which says at once that
it ended, and not before the kernel has freed its locks.

In the process shmq-controller, or in a NameServer's; one thread with an event loop. Writes: its
socket, the journal. What may fail: at the start, a folder or name that is taken (OwnerError) and a
journal that does not hold (StoreCorruptError); later those are logged, and tried again.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from shmq.acl import AclFile
from shmq.clock import SYSTEM_CLOCK, AttendedTime, Clock
from shmq.config import ControllerConfig, load
from shmq.controller.controller import Controller, Outcome
from shmq.controller.host import KernelHost
from shmq.controller.journal import Journal
from shmq.controller.processor import ControllerProcessor, shown
from shmq.errors import ConfigError, ServiceNotAvailableError, ShmqError, StoreLockedError
from shmq.remoting.codes import RequestCode
from shmq.remoting.command import Command
from shmq.remoting.identity import has_ended
from shmq.remoting.loop_thread import LoopThread, in_background
from shmq.remoting.runtime_folder import RuntimeFolder, controller_socket_name
from shmq.remoting.server import Connection, Server
from shmq.shm.incarnation import Incarnation
from shmq.store.durable_file import disk_error

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from shmq.controller.replicas import ReplicasInfoTable

__all__ = ["ControllerManager"]

_log = logging.getLogger("shmq.controller")

_LOOP_TIMEOUT_S: Final = 10.0
_STOP_TIMEOUT_S: Final = 1.0
_TICK_S: Final = 0.25
"""Between two looks of the active one at masterships and at who is silent."""
_STANDBY_S: Final = 0.1
"""Between two looks of a standby whether the lock is free."""
_RETRY_S: Final = 1.0
"""Behind a journal that failed."""
_PAUSE_MS_MAX: Final = 1_000
_MS: Final = 1_000_000
_CHANGEABLE: Final = frozenset(
    {"enable_elect_unclean_master", "broker_not_active_timeout_ms", "election_grace_ms"}
)


class _Member(NamedTuple):
    """One member that has spoken."""

    connection: Connection
    life: Incarnation
    pidfd: int


class ControllerManager:
    """One Controller.

    Args:
        config: its settings.
        clock: where time comes from.
    """

    def __init__(self, config: ControllerConfig, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.config = config
        self.machine: Controller | None = None
        """None: a standby."""
        self.problem: str | None = None
        """Why it cannot become active; None: another is, or nothing is wrong."""
        self._clock = clock
        self._time = AttendedTime(pause_ms_max=_PAUSE_MS_MAX)
        self._loop_thread = LoopThread("shmq-controller")
        self._acl_file: AclFile | None = None
        self._folder: RuntimeFolder | None = None
        self._host: KernelHost
        self._server: Server | None = None
        self._journal: Journal | None = None
        self._table: ReplicasInfoTable
        self._members: dict[tuple[str, int], _Member] = {}
        self._attending: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """Of this instance."""
        return self.config.controller_name

    # ---- the service's steps -----------------------------------------------------------------

    def start(self) -> None:
        """Listen, and become active if nobody else is.

        Raises:
            OwnerError, ConfigError: the folder or the name cannot be had.
            StoreCorruptError: the journal does not hold.
            DiskFullError, StoreError: it cannot be used.
        """
        config = self.config
        if config.acl_file is not None:
            self._acl_file = AclFile(config.acl_file)
        _make_private(config.controller_store_path)
        self._folder = RuntimeFolder.make(config.runtime_folder())
        self._host = KernelHost(self._folder, self._member_of)
        self._loop_thread.start()
        self._loop_thread.run(self._start(self._folder), timeout_s=_LOOP_TIMEOUT_S)

    def is_healthy(self) -> bool:
        """Whether the event loop has turned since last asked, and every task still works."""
        return self._loop_thread.beat()

    def describe(self) -> str:
        """Whether it is the one that elects, in one line for systemctl."""
        if self.machine is not None:
            return f"active, {len(self._members)} members"
        return "standby" if self.problem is None else f"standby; {self.problem}"

    def reload(self) -> None:
        """Read the ACL file again; the log says where it is wrong."""
        if self._acl_file is not None and not self._acl_file.reload():
            _log.error("acl file not in force, the old rules stay: %s", self._acl_file.problem)

    def drain(self, timeout_s: float) -> None:
        """Let a standby take over."""
        self._loop_thread.run(self._drain(), timeout_s=timeout_s)

    def stop(self) -> None:
        """Release everything; also after a `start` that failed half-way."""
        try:
            if self._loop_thread.is_running:
                self._loop_thread.run(self._stop(), timeout_s=_LOOP_TIMEOUT_S)
        finally:
            self._loop_thread.stop()
            if self._folder is not None:
                self._folder.close()

    async def _start(self, folder: RuntimeFolder) -> None:
        self._lead()
        listener = folder.listen(controller_socket_name(self.name))
        processor = ControllerProcessor(self, self._acl_file)
        self._server = Server(listener, processor.table(), role="controller", clock=self._clock)
        _log.info(
            "listening name=%s folder=%s is_active=%s",
            self.name, folder.path, self.machine is not None,
        )  # fmt: skip
        self._attending = in_background(self._attend())

    async def _drain(self) -> None:
        self._resign()
        if self._attending is not None:
            self._attending.cancel()
        if self._server is not None:
            self._server.stop_accepting()

    async def _stop(self) -> None:
        await self._drain()
        if self._server is not None:
            await self._server.stop(timeout_s=_STOP_TIMEOUT_S)
        for key in tuple(self._members):
            self._forget(key)

    # ---- being active ------------------------------------------------------------------------

    def _lead(self) -> None:
        """Become active if the lock is free.

        Raises:
            StoreCorruptError, DiskFullError, StoreError: the journal cannot be used.
        """
        try:
            journal = Journal(self.config.controller_store_path)
        except StoreLockedError:
            return
        config, replayed = self.config, journal.replayed
        self._journal, self._table = journal, replayed.table
        self.machine = Controller(
            replayed.table,
            self._host,
            now_ns=self.now_ns(),
            is_unclean_allowed=config.enable_elect_unclean_master,
            not_active_ns=config.broker_not_active_timeout_ms * _MS,
            grace_ns=config.election_grace_ms * _MS,
        )
        self.problem = None
        _log.warning(
            "active name=%s path=%s line=%d replica_sets=%d torn_bytes=%d",
            self.name, config.controller_store_path, replayed.number,
            len(replayed.table.names()), replayed.torn_bytes,
        )  # fmt: skip

    def _resign(self) -> None:
        self.machine = None
        journal, self._journal = self._journal, None
        if journal is not None:
            journal.close()

    async def _attend(self) -> None:
        while True:  # until it drains
            wait_s = _TICK_S
            self._bury()
            if self.machine is not None:
                self.obey(self.machine.tick(now_ns=self.now_ns()))
            if self.machine is None:
                wait_s = self._try_lead()
            await asyncio.sleep(wait_s)

    def _try_lead(self) -> float:
        """Become active if that can be; seconds until it is tried again."""
        try:
            self._lead()
        except ShmqError as error:
            if self.problem != str(error):
                self.problem = str(error)
                _log.error("not active: %s; %s", error, error.hint)
            return _RETRY_S
        return _STANDBY_S

    def now_ns(self) -> int:
        """Attended time."""
        return self._time.look(self._clock.monotonic_ns())

    def obey(self, outcome: Outcome) -> bool:
        """Make an outcome durable, apply it, fence and tell; False: the journal failed, just now or
        with the outcome before.
        """
        machine, journal = self.machine, self._journal
        if machine is None or journal is None:
            return False
        try:
            journal.append(outcome.records, self._table)
            machine.apply(outcome.records)
        except ShmqError as error:
            self.problem = str(error)
            _log.error("not active any more: %s; %s", error, error.hint)
            self._resign()
            return False
        for record in outcome.records:
            _log.info("decided %s", record)
        for fence in outcome.fences:
            pid = self._host.kill_holder(fence.broker_name)
            _log.warning(
                "fenced broker=%s:%d pid=%s: it is master, lives and sends no heartbeat",
                fence.broker_name, fence.broker_id, pid,
            )  # fmt: skip
        for notice in outcome.notices:
            member = self._members.get((notice.info.broker_name, notice.broker_id))
            if member is not None:
                told = shown(notice.info)
                member.connection.notify(
                    Command(
                        RequestCode.NOTIFY_BROKER_ROLE_CHANGED, told.to_fields(), told.to_body()
                    )
                )
        return True

    # ---- members -----------------------------------------------------------------------------

    def seen(self, connection: Connection, broker_name: str, broker_id: int) -> None:
        """A member has spoken through this connection: it is told there, and watched.

        Raises:
            ServiceNotAvailableError: its process has ended since: what it said of itself was read
                late, and would have the dead elected.
        """
        self._bury()
        key = (broker_name, broker_id)
        known, life = self._members.get(key), connection.identity.incarnation
        if life is None or (known is not None and known.connection is connection):
            return
        if known is not None and known.life == life:
            self._members[key] = known._replace(connection=connection)
            return
        self._forget(key)
        try:
            pidfd = os.pidfd_open(life.pid)
        except ProcessLookupError as error:
            raise _ended_since(key) from error
        except OSError:
            return  # no descriptor is left: its heartbeats tell
        if has_ended(pidfd) or Incarnation.of(life.pid) != life:
            os.close(pidfd)
            raise _ended_since(key)
        self._members[key] = _Member(connection, life, pidfd)
        asyncio.get_running_loop().add_reader(pidfd, self._ended, key)

    def _bury(self) -> None:
        """Hear of every death so far, before anything is decided: the loop may come to that later,
        and whoever is dead would be elected for the heartbeats that it sent.
        """
        for key, member in tuple(self._members.items()):
            if has_ended(member.pidfd):
                self._ended(key)

    def _ended(self, key: tuple[str, int]) -> None:
        """The kernel says that a member's process is dead."""
        self._forget(key)
        _log.warning("ended broker=%s:%d", *key)
        if self.machine is not None:
            self.obey(self.machine.broker_ended(*key, now_ns=self.now_ns()))

    def _forget(self, key: tuple[str, int]) -> None:
        member = self._members.pop(key, None)
        if member is not None:
            asyncio.get_running_loop().remove_reader(member.pidfd)
            os.close(member.pidfd)

    def _member_of(self, broker_name: str, pid: int) -> int | None:
        for (name, broker_id), member in self._members.items():
            if name == broker_name and member.life.pid == pid:
                return broker_id
        return None

    # ---- settings ----------------------------------------------------------------------------

    def settings(self) -> Mapping[str, object]:
        """Its settings as they are."""
        return dataclasses.asdict(self.config)

    def set_settings(self, settings: Mapping[str, object]) -> None:
        """Change some until this process ends; a standby that takes over has its own.

        Raises:
            ConfigError: there is no such setting, it is out of its range, or fixed at the start.
        """
        arguments: dict[str, Any] = {"controller_store_path": "-", **settings}
        asked = load(ControllerConfig, environ={}, **arguments)
        changed = {
            spec.name
            for spec in dataclasses.fields(asked)
            if spec.name in settings or set(spec.metadata["rocketmq"]) & settings.keys()
        }
        if changed - _CHANGEABLE:
            raise ConfigError(
                f"change {', '.join(sorted(changed - _CHANGEABLE))} of a Controller that runs:"
                f" wanted {', '.join(sorted(_CHANGEABLE))}; stop it to change others"
            )
        self.config = dataclasses.replace(
            self.config, **{name: getattr(asked, name) for name in changed}
        )
        machine = self.machine
        if machine is not None:
            machine.is_unclean_allowed = self.config.enable_elect_unclean_master
            machine.not_active_ns = self.config.broker_not_active_timeout_ms * _MS
            machine.grace_ns = self.config.election_grace_ms * _MS
        _log.warning("settings changed until this process ends: %s", dict(settings))


def _make_private(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(f"make the Controller's folder {path}", error) from error


def _ended_since(key: tuple[str, int]) -> ServiceNotAvailableError:
    name, broker_id = key
    return ServiceNotAvailableError(f"hear {name}:{broker_id}: its process has ended since")
