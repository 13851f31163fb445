"""The calling end of the control plane on an event loop: for daemons that call other daemons.

The same frames and answers as client.py, waited for with await. Everything in the loop's thread;
nothing blocks it, the connecting included. What may fail: as in client.py.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from shmq.clock import SYSTEM_CLOCK
from shmq.errors import ClosedError, QuotaError, RequestTimeoutError, ShmqError, SystemBusyError
from shmq.remoting.channel import Channel
from shmq.remoting.codes import RequestCode
from shmq.remoting.command import (
    HEAD_BYTES,
    LONG_FRAME_BYTES_MAX,
    Command,
    FrameHead,
    FrameParser,
    error_of,
    hello,
)
from shmq.remoting.identity import Identity, peer_of
from shmq.remoting.runtime_folder import RuntimeFolder

__all__ = ["AsyncClient"]

_CALL_COUNT_MAX: Final = 10_000
_OPAQUE_LIMIT: Final = 1 << 32
_FD_COUNT_MAX: Final = 64
_OUTSTANDING_BYTES_MAX: Final = 16 << 20
_CONNECT_INTERVAL_S: Final = 0.005  # between two tries where the server's backlog is full


class AsyncClient:
    """One connection to one server; made by `connect`.

    Args:
        on_notify: takes the server's one-way commands, in order; descriptors it does not take are
            closed.
        on_close: called once, with the reason, when the connection ends.
    """

    def __init__(
        self,
        name: str,
        *,
        on_notify: Callable[[Command], None] | None = None,
        on_close: Callable[[ShmqError], None] | None = None,
    ) -> None:
        """Not for callers: see `connect`."""
        self.name = name
        self._on_notify = on_notify
        self._on_close = on_close
        self._calls: dict[int, tuple[asyncio.Future[Command], int]] = {}
        self._last_opaque = 0
        self._last_words: ShmqError | None = None
        self._ended_with: ShmqError | None = None
        self._channel: Channel
        self.identity: Identity
        """Who serves, from the kernel."""

    @classmethod
    async def connect(
        cls,
        folder: RuntimeFolder,
        name: str,
        *,
        role: str,
        timeout_s: float,
        on_notify: Callable[[Command], None] | None = None,
        on_close: Callable[[ShmqError], None] | None = None,
    ) -> "AsyncClient":
        """Connect to the socket `name` in `folder` and say HELLO.

        Raises:
            ServiceNotAvailableError, PermissionDeniedError, SystemBusyError, RequestTimeoutError,
            and what the server refuses with: as Client.
        """
        client = cls(name, on_notify=on_notify, on_close=on_close)
        deadline_ns = SYSTEM_CLOCK.monotonic_ns() + int(timeout_s * 1e9)
        while (sock := folder.try_connect(name)) is None:
            if SYSTEM_CLOCK.monotonic_ns() >= deadline_ns:
                raise SystemBusyError(f"connect to {name}: it does not accept connections")
            await asyncio.sleep(_CONNECT_INTERVAL_S)
        try:
            peer = peer_of(sock)
        except BaseException:
            sock.close()
            raise
        client.identity = peer.identity
        peer.close()
        client._channel = Channel(
            sock,
            FrameParser(frame_bytes_max=LONG_FRAME_BYTES_MAX, fd_limit=client._fd_limit),
            client,
            buffered_bytes_max=LONG_FRAME_BYTES_MAX + HEAD_BYTES,
            outstanding_bytes_max=_OUTSTANDING_BYTES_MAX,
            fd_count_max=_FD_COUNT_MAX,
        )
        try:
            left_s = (deadline_ns - SYSTEM_CLOCK.monotonic_ns()) / 1e9
            await client.call(hello(role), timeout_s=left_s)
        except BaseException:
            client.close()
            raise
        return client

    async def call(self, command: Command, *, timeout_s: float, fd_count_max: int = 0) -> Command:
        """Ask and give the answer, which is SUCCESS.

        Args:
            command: the request; its descriptors are closed once sent.
            timeout_s: seconds, from here to the answer.
            fd_count_max: descriptors that the answer may bring; they are the caller's to take.

        Raises:
            RequestTimeoutError: no answer in time; the request may have been carried out.
            ClosedError: the connection has ended, now or before.
            ShmqError: what the server answered, as its class (TopicNotExistError).
        """
        response = await self.invoke(command, timeout_s=timeout_s, fd_count_max=fd_count_max)
        error = error_of(response)
        if error is not None:
            response.close()
            raise error
        return response

    async def invoke(self, command: Command, *, timeout_s: float, fd_count_max: int = 0) -> Command:
        """As `call`, but any answer is given back, whatever its code."""
        if self._ended_with is not None:
            command.close()
            raise _again(self._ended_with)
        if len(self._calls) >= _CALL_COUNT_MAX:
            command.close()
            raise QuotaError(f"call {self.name}: {len(self._calls)} requests are without an answer")
        future: asyncio.Future[Command] = asyncio.get_running_loop().create_future()
        command.opaque = opaque = self._next_opaque()
        self._calls[opaque] = (future, fd_count_max)
        try:
            self._channel.send(command)
        except BaseException:
            del self._calls[opaque]
            raise
        # An answer that nobody waits for any more still has its place, for its descriptors' sake.
        try:
            # Not wait_for: that of Python 3.11 keeps a cancellation to itself if the answer, or
            # the end of the connection, came in the same moment, and the caller's loop goes on.
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError as error:
            if isinstance(error, ShmqError):
                raise
            raise RequestTimeoutError(
                f"{command.name} to {self.name}: no answer within {timeout_s:.3g} s"
            ) from None

    def send_oneway(self, command: Command) -> bool:
        """Send a command that nobody answers; False if the connection has ended."""
        command.is_oneway = True
        if self._ended_with is not None:
            command.close()
            return False
        return self._channel.send(command)

    @property
    def is_closed(self) -> bool:
        """Nothing can be asked any more."""
        return self._ended_with is not None

    def when_closed(self, told: Callable[[], None]) -> None:
        """Call this once the connection has ended; at once if it has."""
        if self._ended_with is not None:
            told()
        else:
            self._on_close = lambda _error: told()

    def when_notified(self, told: Callable[[], None]) -> None:
        """Call this with each one-way command of the server from now on."""
        self._on_notify = lambda _command: told()

    def close(self) -> None:
        """End the connection; whoever waits for an answer gets ClosedError. Twice does nothing."""
        self._channel.end(ClosedError(f"the connection to {self.name} was closed here"))

    # ---- the channel's owner -----------------------------------------------------------------

    def received(self, command: Command) -> None:
        """A command of the server; in order."""
        if command.is_response:
            future, _ = self._calls.pop(command.opaque, (None, 0))
            if future is None or future.done():
                command.close()
            else:
                future.set_result(command)
        elif command.code == RequestCode.GO_AWAY:
            self._last_words = error_of(command)
        else:
            if self._on_notify is not None:
                self._on_notify(command)
            command.close()

    def delivered(self) -> None:
        """A server may take its time over a frame."""

    def ended(self, error: ShmqError) -> None:
        """The channel has ended."""
        reason = self._last_words or error
        self._ended_with = reason
        for future, _ in self._calls.values():
            if not future.done():
                future.set_exception(_again(reason))
        self._calls.clear()
        if self._on_close is not None:
            self._on_close(reason)

    def _fd_limit(self, head: FrameHead) -> int:
        if not head.is_response or head.opaque not in self._calls:
            return 0
        return self._calls[head.opaque][1]

    def _next_opaque(self) -> int:
        while True:  # ends: fewer calls than numbers
            self._last_opaque = (self._last_opaque + 1) % _OPAQUE_LIMIT
            if self._last_opaque not in self._calls:
                return self._last_opaque


def _again(error: ShmqError) -> ShmqError:
    """The same reason as an exception of its own for each who asks."""
    return type(error)(str(error), hint=error.hint)
