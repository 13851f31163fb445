"""The NameServer as a service: wiring, timers, and the order in which things start and stop.

The control plane runs on an event loop in a thread of its own; the main thread belongs to signals
(shmq.service). With a cluster file, and if no other NameServer of the runtime folder does it
already, this one supervises the brokers of that file.

In the process shmq-namesrv. Writes: its socket and lock; see supervisor.py and kv_config.py. What
may fail: the folder or the name is taken (OwnerError), the key-value file cannot be read.
"""

import asyncio
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shmq.acl import AclFile
from shmq.clock import SYSTEM_CLOCK, Clock
from shmq.config import (
    LISTEN_PORTS,
    ClusterConfig,
    NamesrvConfig,
    load,
    load_broker_setting,
    load_broker_tables,
)
from shmq.errors import ConfigError
from shmq.namesrv.fencing import Fencing
from shmq.namesrv.kv_config import KvConfig
from shmq.namesrv.log_tail import LogTails
from shmq.namesrv.processor import NamesrvProcessor
from shmq.namesrv.route_info import RouteInfo
from shmq.namesrv.supervisor import LOCK_NAME, SupervisedBroker, Supervisor
from shmq.remoting.loop_thread import LoopThread, in_background
from shmq.remoting.namesrv_requests import BrokerAddress
from shmq.remoting.runtime_folder import (
    RuntimeFolder,
    broker_socket_name,
    namesrv_socket_name,
)
from shmq.remoting.server import Connection, Server, ServerLimits
from shmq.service import Service

__all__ = ["Cluster", "NameServer", "load_cluster"]

_log = logging.getLogger("shmq.namesrv")

_LOOP_TIMEOUT_S = 30.0
"""For what takes the loop milliseconds: longer, and something is very wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A cluster file as the supervisor needs it."""

    config: ClusterConfig
    """Delays, counts and timeouts."""
    brokers: tuple[SupervisedBroker, ...]
    """Its [broker.NAME] tables."""
    spare_command: tuple[str, ...] = ()
    """Starts a process that becomes any of them; empty: there is none."""

    @property
    def stop_timeout_s(self) -> float:
        """How long stopping all may take: slaves, then masters."""
        return 2 * self.config.stop_timeout_ms / 1e3


def load_cluster(
    file: Path, runtime_path: Path, *, command: Sequence[str] | None = None
) -> Cluster:
    """Read a cluster file.

    Args:
        file: the TOML file.
        runtime_path: the folder of all sockets, handed on to the brokers.
        command: what starts a broker, before its arguments; None: this Python, -m shmq.broker.

    Raises:
        ConfigError: it cannot be used; two tables name the same broker or listen_port, or only
            some members of a broker_name have a Controller.
    """
    start = tuple(command or (sys.executable, "-P", "-m", "shmq.broker"))
    brokers: dict[str, SupervisedBroker] = {}
    tables = load_broker_tables(file)
    ports: dict[object, str] = {}
    arbiters: dict[str, bool] = {}
    for name, table in tables.items():
        port = _listen_port(table)
        if port is not None and ports.setdefault(port, name) != name:
            raise ConfigError(  # ids of messages have the port in them: they would be the same
                f"{file}: [broker.{name}]: listen_port: {port} is that of [broker.{ports[port]}]"
                " already; give each broker its own"
            )
    members = Counter(_broker_name(name, table) for name, table in tables.items())
    free_ports = (port for port in LISTEN_PORTS if port not in ports)
    for name, table in tables.items():
        broker_name = _broker_name(name, table)
        broker_id = table.get("broker_id", table.get("brokerId", 0))
        if not isinstance(broker_name, str) or not isinstance(broker_id, int):
            raise ConfigError(
                f"{file}: [broker.{name}]: broker_name, broker_id: wanted text, number"
            )
        socket_name = broker_socket_name(broker_name, broker_id)
        if socket_name in brokers:
            raise ConfigError(
                f"{file}: [broker.{name}]: broker {broker_name}:{broker_id} is"
                f" [broker.{brokers[socket_name].name}] already; give it another broker_id"
            )
        arguments = ["--config", str(file), "--broker", name, "--runtime", str(runtime_path)]
        if _listen_port(table) is None:
            arguments += ["--set", f"listen_port={next(free_ports)}"]
        is_led = bool(load_broker_setting("enable_controller_mode", file=file, broker=name))
        if arbiters.setdefault(broker_name, is_led) != is_led:
            raise ConfigError(
                f"{file}: [broker.{name}]: enable_controller_mode: other members of {broker_name}"
                " say otherwise; one arbiter elects all of them: give each the same"
            )
        is_member = members[broker_name] > 1 and not is_led  # of a Controller's, it waits anyway
        if is_member:
            arguments += ["--wait"]
        brokers[socket_name] = SupervisedBroker(
            name=name,
            broker_name=broker_name if is_member else "",
            socket_name=socket_name,
            broker_id=broker_id,
            is_async_learner=bool(load_broker_setting("async_learner", file=file, broker=name)),
            command=(*start, *arguments),
            arguments=tuple(arguments),
        )
    # The folder is for people who look at the list of processes.
    spare = (sys.executable, "-P", "-m", "shmq.broker.spare", str(runtime_path))
    return Cluster(
        config=load(ClusterConfig, file=file, table="cluster"),
        brokers=tuple(brokers.values()),
        spare_command=spare if command is None else (),
    )


def _broker_name(name: str, table: Mapping[str, object]) -> object:
    return table.get("broker_name", table.get("brokerName", name))


def _listen_port(table: Mapping[str, object]) -> object:
    return table.get("listen_port", table.get("listenPort"))


class NameServer:
    """One NameServer; a Service for shmq.service.run.

    Args:
        config: its settings.
        cluster: what it supervises, if anything.
        controller: a Controller that lives in this process, started first and stopped last.
        clock: where time comes from.
    """

    def __init__(
        self,
        config: NamesrvConfig,
        *,
        cluster: Cluster | None = None,
        controller: Service | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._config = config
        self._cluster = cluster
        self._controller = controller
        self._clock = clock
        self._loop_thread = LoopThread("shmq-namesrv")
        self._tails = LogTails()
        self._routes = RouteInfo(
            expiry_ms=config.broker_expiry_ms, scan_interval_ms=config.scan_broker_interval_ms
        )
        self._folder: RuntimeFolder | None = None
        self._server: Server | None = None
        self._supervisor: Supervisor | None = None
        self._fencing: Fencing | None = None
        self._supervisor_lock_fd = -1
        self._scanning: asyncio.Task[None] | None = None
        self._acl_file: AclFile | None = None
        self._acl_watch: asyncio.Task[None] | None = None

    # ---- the service's steps -----------------------------------------------------------------

    def start(self) -> None:
        """Listen, then supervise; raise if the name or the folder cannot be had."""
        if self._controller is not None:
            self._controller.start()
        path = self._config.runtime_folder()
        self._folder = RuntimeFolder.make(path)
        kv_config = KvConfig(self._config.kv_config_path)
        if self._config.acl_file is not None:
            self._acl_file = AclFile(self._config.acl_file)
        self._loop_thread.start()
        self._loop_thread.run(self._start(self._folder, kv_config), timeout_s=_LOOP_TIMEOUT_S)
        _log.info(
            "listening name=%s folder=%s supervises=%s",
            self._config.namesrv_name, path, self._supervisor is not None,
        )  # fmt: skip

    def reload(self) -> None:
        """Read the ACL file again; returns when its rules are in force, or the log says why not."""
        if self._acl_file is not None:
            self._loop_thread.run(self._reload_acl(self._acl_file), timeout_s=_LOOP_TIMEOUT_S)

    def is_healthy(self) -> bool:
        """Whether the event loop has turned since last asked, and every task still works."""
        is_healthy = self._loop_thread.beat()
        if self._controller is not None:
            is_healthy = self._controller.is_healthy() and is_healthy
        return is_healthy

    def describe(self) -> str:
        """What is registered with it, in one line for systemctl."""
        return self._routes.describe()

    def drain(self, timeout_s: float) -> None:
        """Stop the brokers that are supervised, while routes are still given out; then listen no
        more.
        """
        try:
            self._loop_thread.run(self._drain(), timeout_s=timeout_s)
        except TimeoutError:
            _log.error(
                "stopping the brokers took more than %s s; what still runs goes on", timeout_s
            )

    def stop(self) -> None:
        """Close everything; brokers that still run go on. Copes with a start that failed."""
        try:
            self._close()
        finally:
            if self._controller is not None:
                self._controller.stop()

    def _close(self) -> None:
        if self._loop_thread.is_running:
            self._loop_thread.run(self._stop(), timeout_s=_LOOP_TIMEOUT_S)
        self._loop_thread.stop()
        self._tails.stop()
        if self._supervisor_lock_fd >= 0:
            os.close(self._supervisor_lock_fd)
            self._supervisor_lock_fd = -1
        if self._folder is not None:
            self._folder.close()

    # ---- on the loop -------------------------------------------------------------------------

    async def _start(self, folder: RuntimeFolder, kv_config: KvConfig) -> None:
        config = self._config
        processor = NamesrvProcessor(
            self._routes,
            kv_config,
            clock=self._clock,
            supervised=self._supervised,
            on_registered=self._registered,
            acl_file=self._acl_file,
        )
        if self._acl_file is not None:
            self._acl_watch = in_background(self._watch_acl(self._acl_file))
        listener = folder.listen(namesrv_socket_name(config.namesrv_name))
        self._server = Server(
            listener,
            processor.table(),
            role="namesrv",
            limits=ServerLimits(
                connection_count_max=config.connection_count_max,
                connection_count_max_per_uid=config.connection_count_max_per_uid,
            ),
            clock=self._clock,
        )
        self._scanning = in_background(self._scan())
        if config.fence_brokers:
            self._fencing = Fencing(
                folder,
                hung_timeout_ms=config.broker_hung_timeout_ms,
                probe_interval_ms=config.probe_interval_ms,
                clock=self._clock,
            )
        if self._cluster is not None:
            self._supervise(folder, self._cluster)

    async def _watch_acl(self, file: AclFile) -> None:
        while True:  # until the NameServer stops
            await asyncio.sleep(self._config.acl_check_interval_ms / 1e3)
            if await asyncio.to_thread(file.has_changed):
                await self._reload_acl(file)

    async def _reload_acl(self, file: AclFile) -> None:
        if await asyncio.to_thread(file.reload):
            file.reload_count += 1
            _log.info("acl file reloaded path=%s", file.path)
        else:
            _log.error("acl file not in force, the old rules stay: %s", file.problem)

    def _supervise(self, folder: RuntimeFolder, cluster: Cluster) -> None:
        lock_fd = folder.try_lock(LOCK_NAME)
        if lock_fd is None:
            _log.warning(
                "supervises nothing: another NameServer of %s does (%s.lock is held)",
                folder.path, LOCK_NAME,
            )  # fmt: skip
            return
        self._supervisor_lock_fd = lock_fd
        self._tails.start()
        self._supervisor = Supervisor(
            folder,
            cluster.brokers,
            cluster.config,
            hung_timeout_ms=self._config.broker_hung_timeout_ms,
            probe_interval_ms=self._config.probe_interval_ms,
            clock=self._clock,
            tails=self._tails,
            spare_command=cluster.spare_command,
        )
        self._supervisor.start()

    def _supervised(self) -> Iterator[Mapping[str, object]]:
        return iter(()) if self._supervisor is None else self._supervisor.status()

    def _registered(self, connection: Connection, address: BrokerAddress) -> None:
        if self._fencing is None:
            return
        pid = connection.identity.pid
        if any(item["pid"] == pid for item in self._supervised()):
            return  # the supervisor watches it
        self._fencing.watch(connection, address.socket_name)

    async def _scan(self) -> None:
        while True:  # until the NameServer stops
            for removed in self._routes.scan(now_ns=self._clock.monotonic_ns()):
                _log.warning("expired broker=%s silent_ms=%d", removed.key, removed.silence_ms)
            await asyncio.sleep(self._config.scan_broker_interval_ms / 1e3)

    async def _drain(self) -> None:
        if self._supervisor is not None:
            await self._supervisor.stop()
        if self._server is not None:
            self._server.stop_accepting()

    async def _stop(self) -> None:
        if self._scanning is not None:
            self._scanning.cancel()
        if self._acl_watch is not None:
            self._acl_watch.cancel()
        if self._supervisor is not None:
            self._supervisor.close()
        if self._fencing is not None:
            self._fencing.close()
        if self._server is not None:
            await self._server.stop(timeout_s=1.0)
