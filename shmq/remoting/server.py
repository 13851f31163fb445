"""The serving end of the control plane: connections, their state machine, and the processor table.

    HANDSHAKE --HELLO of our version--> READY --the first of: socket closed, process dead,
        |                                 |       rule broken, server stops--> closed
        +--anything else, or 2 s--> closed

A server knows who connected from the kernel (identity.py) before it reads a byte. Requests of one
connection are handled in order, one at a time; a processor that waits long says that it is
concurrent. The end of the socket and the end of the process that connected count alike, whichever
comes first, and everybody who asked (`Connection.on_close`) hears of it in that turn of the loop.

Hostile peers meet a bound everywhere: connections in all and per uid, time until HELLO and per
frame, bytes of a frame, bytes kept for a uid in and out, descriptors (none, unless a processor of
this server takes some; of the process's own, some are kept for its files). Who breaks a rule is
sent GO_AWAY with the reason and closed.

In the thread of its event loop, in every daemon that serves. Writes nothing but sockets.
"""

import asyncio
import errno
import inspect
import logging
import os
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum, unique
from typing import Final

from shmq.clock import SYSTEM_CLOCK, Clock
from shmq.errors import (
    ClosedError,
    ConfigError,
    LayoutVersionError,
    ProtocolError,
    QuotaError,
    RequestTimeoutError,
    ServiceNotAvailableError,
    ShmqError,
)
from shmq.remoting.channel import ByteBudget, Channel, send_some
from shmq.remoting.codes import RequestCode, ResponseCode
from shmq.remoting.command import (
    FRAME_BYTES_MAX,
    HEAD_BYTES,
    PROTOCOL_VERSION,
    Command,
    FrameHead,
    FrameParser,
    encode,
    error_response,
    go_away,
    response_to,
)
from shmq.remoting.identity import Identity, Peer, peer_of, refuse_descriptors
from shmq.remoting.runtime_folder import Listener
from shmq.shm.fds import descriptors_for_others, require_descriptors

__all__ = ["Connection", "Handler", "Processor", "Server", "ServerLimits", "State"]

_log = logging.getLogger("shmq.remoting")

_ACCEPT_COUNT: Final = 16  # connections accepted before those that are open get their turn
_ACCEPT_PAUSE_S: Final = 0.1  # how long nobody is accepted where not even a refusal is possible
_SWEEP_INTERVAL_S: Final = 0.25
_ROLE: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """What peers may take; the defaults serve a NameServer and a broker of 256 sessions."""

    connection_count_max: int = 4096
    """Connections in all; each takes two descriptors."""
    connection_count_max_per_uid: int = 1024
    """Connections of one uid, so that none keeps the others out."""
    handshake_timeout_ms: int = 2_000
    """From connect to HELLO."""
    frame_timeout_ms: int = 10_000
    """From a frame's first byte to its last."""
    outstanding_bytes_max: int = 4 << 20
    """What may wait for one peer to read before its next request is handled."""
    kept_bytes_max_per_uid: int = 64 << 20
    """Bytes in and out kept for one uid's connections together."""


@unique
class State(StrEnum):
    """Where a connection is; it only ever moves on."""

    HANDSHAKE = "HANDSHAKE"
    READY = "READY"
    CLOSED = "CLOSED"


Handler = Callable[["Connection", Command], Command | Awaitable[Command | None] | None]
"""Serves one code. Gives the response (None: SUCCESS and no more), or raises a ShmqError, which
becomes it. A plain function answers at once; a coroutine function may wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Processor:
    """One row of the processor table."""

    handler: Handler
    """What serves it."""
    fd_count_max: int = 0
    """Descriptors that its requests may bring."""
    is_concurrent: bool = False
    """Later requests of the connection do not wait for it: for long polls."""


class Connection:
    """One peer, as processors see it. Made by the server; everything in the loop's thread."""

    def __init__(self, server: "Server", sock: socket.socket, peer: Peer, number: int) -> None:
        self.identity: Identity = peer.identity
        """Who it is, from the kernel."""
        self.role = ""
        """What its HELLO said it is: for logs, it earns nothing."""
        self.number = number
        """Serial number within this server, for logs."""
        self.state = State.HANDSHAKE
        self._server = server
        self._peer = peer
        self._callbacks: list[Callable[[Connection, ShmqError], None]] = []
        self._ended_with: ShmqError | None = None
        self._channel = Channel(
            sock,
            FrameParser(frame_bytes_max=FRAME_BYTES_MAX, fd_limit=self._fd_limit),
            self,
            buffered_bytes_max=FRAME_BYTES_MAX + HEAD_BYTES,
            outstanding_bytes_max=server.limits.outstanding_bytes_max,
            budget=server.budget_of(peer.identity.uid),
            fd_count_max=server.fd_count_max,
        )
        if peer.pidfd >= 0:
            server.loop.add_reader(peer.pidfd, self._peer_ended)

    def __str__(self) -> str:
        return f"connection {self.number} ({self.role or 'no role yet'}, {self.identity})"

    @property
    def is_closed(self) -> bool:
        """Nothing comes or goes any more."""
        return self.state is State.CLOSED

    def notify(self, command: Command) -> bool:
        """Send a one-way command; False if the connection has ended, be it for not reading."""
        command.is_oneway = True
        return self._channel.send(command)

    def on_close(self, callback: Callable[["Connection", ShmqError], None]) -> None:
        """Call back once the connection has ended, with the reason; at once if it has already."""
        if self._ended_with is None:
            self._callbacks.append(callback)
        else:
            callback(self, self._ended_with)

    def close(self, error: ShmqError) -> None:
        """Send GO_AWAY with the reason and end the connection."""
        self._channel.close(error)

    def refuse_fds(self) -> None:
        """From now on no request of this connection may bring descriptors."""
        self._channel.fd_count_max = 0

    def kill_peer(self) -> bool:
        """Send SIGKILL to the process that connected, and to no other that has its pid by now.

        Returns:
            False if it has ended already or cannot be held.
        """
        return self._peer.kill()

    # ---- the channel's owner -----------------------------------------------------------------

    def received(self, command: Command) -> None:
        """A command of the peer; in order."""
        if command.is_response:
            command.close()
            raise ProtocolError("receive: a response, and nothing was asked")
        self._server.in_time(self)
        if self.state is State.HANDSHAKE:
            self._shake_hands(command)
        elif command.code == RequestCode.HELLO:
            command.close()
            raise ProtocolError("receive HELLO: a second one on the same connection")
        else:
            self._handle(command)

    def delivered(self) -> None:
        """Nothing complete is left: what is there must become a frame in time."""
        if self.state is State.READY:
            if self._channel.buffered_bytes:
                self._server.due(self, self._server.limits.frame_timeout_ms)
            else:
                self._server.in_time(self)

    def ended(self, error: ShmqError) -> None:
        """The channel has ended."""
        was = self.state
        self.state = State.CLOSED
        self._ended_with = error
        if self._peer.pidfd >= 0:
            self._server.loop.remove_reader(self._peer.pidfd)
        self._peer.close()
        self._server.forget(self)
        is_usual = isinstance(error, ClosedError | ServiceNotAvailableError)
        level = logging.DEBUG if is_usual else logging.WARNING
        _log.log(level, "closed %s state=%s reason=%s", self, was, error)
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self, error)

    # ---- requests ----------------------------------------------------------------------------

    def _fd_limit(self, head: FrameHead) -> int:
        processor = self._server.processors.get(head.code)
        if processor is None or self.state is not State.READY or head.is_response:
            return 0
        return min(processor.fd_count_max, self._channel.fd_count_max)

    def _peer_ended(self) -> None:
        self._channel.end_after_last_words(ClosedError(f"the process of {self.identity} has ended"))

    def _shake_hands(self, command: Command) -> None:
        if command.code != RequestCode.HELLO or command.is_oneway:
            raise ProtocolError(f"receive {command.name}: wanted HELLO first")
        try:
            fields = command.fields()
            version = fields.number("version")
            role = fields.text("role")
            if version != PROTOCOL_VERSION:
                raise LayoutVersionError(
                    f"HELLO of {self.identity}: protocol {version}, wanted {PROTOCOL_VERSION}"
                )
            if not _ROLE.fullmatch(role):
                raise ConfigError(f"HELLO of {self.identity}: role {role[:64]!r}, wanted a word")
        except ShmqError as error:
            self._channel.send(error_response(command, error))
            self._channel.end(error)
            return
        self.role = role
        self.state = State.READY
        self._channel.send(
            response_to(
                command,
                ext_fields={
                    "version": PROTOCOL_VERSION,
                    "role": self._server.role,
                    "name": self._server.name,
                },
            )
        )
        self._server.ready(self)

    def _handle(self, command: Command) -> None:
        processor = self._server.processors.get(command.code)
        try:
            if processor is None:
                command.close()
                self._answer(command, _not_supported(command))
                return
            result = processor.handler(self, command)
        except ShmqError as error:
            self._answer(command, error_response(command, error))
        except Exception as error:  # noqa: BLE001 # one bad request must not end the daemon
            self._answer(command, _unforeseen(command, error))
        else:
            if inspect.isawaitable(result):
                if not processor.is_concurrent:
                    self._channel.pause()
                self._server.run(self._finish(command, result, processor.is_concurrent))
            else:
                self._answer(command, result)

    async def _finish(
        self, command: Command, work: Awaitable[Command | None], is_concurrent: bool
    ) -> None:
        try:
            response = await work
        except ShmqError as error:
            response = error_response(command, error)
        except asyncio.CancelledError:
            command.close()
            raise
        except Exception as error:  # noqa: BLE001 # as in _handle
            response = _unforeseen(command, error)
        self._answer(command, response)
        if not is_concurrent and not self.is_closed:
            self._channel.resume()

    def _answer(self, command: Command, response: Command | None) -> None:
        command.close()  # descriptors that the handler did not take
        if response is None:
            response = response_to(command)
        if command.is_oneway:
            if response.code != ResponseCode.SUCCESS:
                _log.info("one-way %s of %s failed: %s", command.name, self, response.remark)
            response.close()
            return
        try:
            self._channel.send(response)
        except ProtocolError as error:
            _log.error("answer to %s of %s: %s", command.name, self, error)
            self._channel.send(error_response(command, error))


class Server:
    """Serves one listening socket. Make it and use it in the thread of the running loop.

    Args:
        listener: the server's from now on; closed by `stop`.
        processors: by RequestCode; HELLO is the server's own.
        role: what it is, for clients' errors: "namesrv", "broker".
        limits: what peers may take.
        clock: where time comes from.
        on_ready: called with each connection whose HELLO was good.
    """

    def __init__(
        self,
        listener: Listener,
        processors: Mapping[int, Processor],
        *,
        role: str,
        limits: ServerLimits | None = None,
        clock: Clock = SYSTEM_CLOCK,
        on_ready: Callable[[Connection], None] | None = None,
    ) -> None:
        self.role = role
        self.name = listener.name
        self.limits = limits or ServerLimits()
        self.processors = processors
        self.loop = asyncio.get_running_loop()
        self.fd_count_max = max((row.fd_count_max for row in processors.values()), default=0)
        self._listener = listener
        self._clock = clock
        self._on_ready = on_ready
        self._connections: set[Connection] = set()
        self._counts: dict[int, int] = {}
        self._budgets: dict[int, ByteBudget] = {}
        self._deadlines: dict[Connection, int] = {}
        self._is_sweeping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepted_count = 0
        self._is_accepting = False
        # Given up for a moment to accept and refuse where the process has no descriptor left.
        self._reserve_fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        if self.fd_count_max == 0:
            refuse_descriptors(listener.sock)
        self._accept_on()

    @property
    def connections(self) -> frozenset[Connection]:
        """Those that are open, ready or not."""
        return frozenset(self._connections)

    def stop_accepting(self) -> None:
        """Take no new connection; the socket's file is removed. Twice does nothing."""
        if self._is_accepting:
            self._is_accepting = False
            self.loop.remove_reader(self._listener.sock)
        self._listener.close()

    async def stop(self, *, timeout_s: float) -> None:
        """Take no new connection, let what is being handled finish, close all connections.

        Waits up to `timeout_s`; requests that take longer are cancelled.
        """
        self.stop_accepting()
        if self._tasks:
            _, left = await asyncio.wait(self._tasks, timeout=timeout_s)
            for task in left:
                task.cancel()
        for connection in tuple(self._connections):
            connection.close(ServiceNotAvailableError(f"{self.name} stops"))
        fd, self._reserve_fd = self._reserve_fd, -1
        if fd >= 0:
            os.close(fd)

    # ---- for connections ---------------------------------------------------------------------

    def budget_of(self, uid: int) -> ByteBudget:
        """What all connections of a uid are charged to."""
        return self._budgets.setdefault(uid, ByteBudget(self.limits.kept_bytes_max_per_uid))

    def due(self, connection: Connection, timeout_ms: int) -> None:
        """End the connection unless it is `in_time` within `timeout_ms`, counted from the first."""
        if connection not in self._deadlines:
            self._deadlines[connection] = self._clock.monotonic_ns() + timeout_ms * 1_000_000
            if not self._is_sweeping:
                self._is_sweeping = True
                self.loop.call_later(_SWEEP_INTERVAL_S, self._sweep)

    def in_time(self, connection: Connection) -> None:
        """What was due has come."""
        self._deadlines.pop(connection, None)

    def ready(self, connection: Connection) -> None:
        """Its HELLO was good."""
        if self._on_ready is not None:
            self._on_ready(connection)

    def forget(self, connection: Connection) -> None:
        """It has ended."""
        self._connections.discard(connection)
        self._deadlines.pop(connection, None)
        uid = connection.identity.uid
        self._counts[uid] -= 1
        if not self._counts[uid]:
            del self._counts[uid]
            self._budgets.pop(uid, None)

    def run(self, work: Awaitable[None]) -> None:
        """Run a handler that waits."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- accepting ---------------------------------------------------------------------------

    def _accept_on(self) -> None:
        if not self._is_accepting:
            self._is_accepting = True
            self.loop.add_reader(self._listener.sock, self._accept)

    def _accept(self) -> None:
        for _ in range(_ACCEPT_COUNT):
            try:
                sock, _ = self._listener.sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                    raise
                self._accept_without_room(error)
                return
            self._open(sock)

    def _accept_without_room(self, error: OSError) -> None:
        """Refuse whoever waits; if even that is impossible, let them wait for a moment."""
        _log.error("accept server=%s: %s; raise LimitNOFILE=", self.name, error.strerror)
        if self._reserve_fd >= 0:
            os.close(self._reserve_fd)
            self._reserve_fd = -1
            try:
                self._listener.sock.accept()[0].close()
            except OSError:
                pass
        try:
            self._reserve_fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._is_accepting = False
            self.loop.remove_reader(self._listener.sock)
            self.loop.call_later(_ACCEPT_PAUSE_S, self._accept_again)

    def _accept_again(self) -> None:
        if self._listener.sock.fileno() >= 0:
            self._accept_on()

    def _open(self, sock: socket.socket) -> None:
        try:
            if sock.fileno() >= descriptors_for_others():  # those who are connected need the rest
                require_descriptors(f"connect to {self.name}", 1)
            peer = peer_of(sock)
        except ShmqError as error:
            _refuse(sock, error)
            return
        except OSError as error:
            _refuse(sock, ShmqError(f"identify the peer: {error.strerror}"))
            return
        uid = peer.identity.uid
        count = self._counts.get(uid, 0)
        refusal = self._refusal(uid, count)
        if refusal is not None:
            peer.close()
            _refuse(sock, refusal)
            return
        self._accepted_count += 1
        try:
            connection = Connection(self, sock, peer, self._accepted_count)
        except OSError as error:  # the kernel watches no more descriptors for us
            self.loop.remove_reader(sock)
            peer.close()
            _refuse(sock, QuotaError(f"watch the peer: {error.strerror}"))
            return
        self._counts[uid] = count + 1
        self._connections.add(connection)
        self.due(connection, self.limits.handshake_timeout_ms)

    def _refusal(self, uid: int, count: int) -> QuotaError | None:
        limits = self.limits
        if count >= limits.connection_count_max_per_uid:
            return QuotaError(
                f"connect to {self.name}: uid {uid} has {count} connections; wanted at most"
                f" {limits.connection_count_max_per_uid} (connection_count_max_per_uid)"
            )
        if len(self._connections) >= limits.connection_count_max:
            return QuotaError(
                f"connect to {self.name}: {len(self._connections)} connections; wanted at most"
                f" {limits.connection_count_max} (connection_count_max)"
            )
        return None

    # ---- deadlines ---------------------------------------------------------------------------

    def _sweep(self) -> None:
        now_ns = self._clock.monotonic_ns()
        for connection in [c for c, at_ns in self._deadlines.items() if at_ns <= now_ns]:
            what = "HELLO" if connection.state is State.HANDSHAKE else "the rest of a frame"
            connection.close(RequestTimeoutError(f"receive: {what} did not come in time"))
        if self._deadlines:
            self.loop.call_later(_SWEEP_INTERVAL_S, self._sweep)
        else:
            self._is_sweeping = False


def _refuse(sock: socket.socket, error: ShmqError) -> None:
    _log.warning("refused: %s", error)
    try:
        send_some(sock, encode(go_away(error)))
    except OSError:
        pass
    sock.close()


def _not_supported(command: Command) -> Command:
    return response_to(
        command,
        code=ResponseCode.REQUEST_CODE_NOT_SUPPORTED,
        remark=f"request type {command.code} not supported",
    )


def _unforeseen(command: Command, error: Exception) -> Command:
    """What nobody foresaw is ours to mend: the whole story in the log, its kind to the peer."""
    _log.error("%s failed", command.name, exc_info=error)
    return error_response(command, ShmqError(f"{command.name}: {type(error).__name__} in a server"))
