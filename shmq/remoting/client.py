"""The calling end of the control plane for threads: blocks with a timeout, shared by any number.

Whoever waits for an answer reads for all: one thread at a time receives and hands out, the others
sleep until their answer is there or the turn to read is free. Only a client that wants to be
notified has a thread of its own that reads.

In every process that calls: clients, tools. What may fail: nobody listens, the server refuses or
ends the connection, an answer does not come in time. A client that failed to send half a frame, or
whose server broke the protocol, is closed for good; its owner connects anew.
"""

import logging
import os
import select
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final

from shmq.clock import SYSTEM_CLOCK
from shmq.errors import (
    ClosedError,
    ForkError,
    LimitError,
    ProtocolError,
    QuotaError,
    RequestTimeoutError,
    ShmqError,
)
from shmq.remoting.channel import receive, send_some
from shmq.remoting.codes import RequestCode
from shmq.remoting.command import (
    LONG_FRAME_BYTES_MAX,
    Command,
    FrameHead,
    FrameParser,
    encode,
    error_of,
    hello,
)
from shmq.remoting.identity import peer_of
from shmq.remoting.runtime_folder import RuntimeFolder
from shmq.threads import NamedThread

__all__ = ["Client", "NotifyHandler"]

_log = logging.getLogger("shmq.remoting")

NotifyHandler = Callable[[Command], None]
"""Takes a one-way command of the server, in the thread that reads; must not call the client."""

_CALL_COUNT_MAX: Final = 10_000
"""Answers that may be outstanding, those included for which nobody waits any more."""
_OPAQUE_LIMIT: Final = 1 << 32
_LAST_WORDS_S: Final = 0.1


class _Call:
    """One question under way."""

    __slots__ = ("fd_count_max", "is_abandoned", "response")

    def __init__(self, fd_count_max: int) -> None:
        self.fd_count_max = fd_count_max
        self.is_abandoned = False
        self.response: Command | None = None


class Client:
    """One connection to one server. Threads may share it; a forked child may not use it.

    Blocks up to `timeout_s` while it connects and says HELLO.

    Args:
        folder: where the server's socket lies; needed for this call only.
        name: of the socket: "namesrv-ns0".
        role: what this process is, for the server's log.
        timeout_s: for the connection and the answer to HELLO.
        on_notify: takes the server's one-way commands, in a thread that is then started.
        on_end: called once in that thread when the connection has ended, whoever ended it.

    Raises:
        ServiceNotAvailableError: nobody listens there.
        PermissionDeniedError: this uid may not connect.
        RequestTimeoutError, SystemBusyError: the server did not answer.
        ShmqError: the server refused, in its own words (QuotaError, LayoutVersionError).
    """

    def __init__(
        self,
        folder: RuntimeFolder,
        name: str,
        *,
        role: str,
        timeout_s: float,
        on_notify: NotifyHandler | None = None,
        on_end: Callable[[], None] | None = None,
    ) -> None:
        self.name = name
        self._pid = os.getpid()
        deadline_ns = _deadline(timeout_s)
        self._sock = folder.connect(name, timeout_s=timeout_s)
        self._parser = FrameParser(frame_bytes_max=LONG_FRAME_BYTES_MAX, fd_limit=self._fd_limit)
        self._on_notify = on_notify
        self._on_end = on_end
        self._lock = threading.Lock()
        self._turn = threading.Condition(self._lock)
        self._send_lock = threading.Lock()
        self._calls: dict[int, _Call] = {}
        self._last_opaque = 0
        self._error: ShmqError | None = None
        self._is_reading = False
        self._is_close_asked = False
        self._reader: threading.Thread | None = None
        try:
            with_pidfd = peer_of(self._sock)
            self.identity = with_pidfd.identity
            with_pidfd.close()
            self.call(hello(role), timeout_s=_left_s(deadline_ns))
        except BaseException:
            self.close()
            raise
        if on_notify is not None:
            self._is_reading = True
            self._reader = NamedThread(target=self._read_for_ever, name=f"shmq-{name}", daemon=True)
            self._reader.start()

    # ---- asking ------------------------------------------------------------------------------

    def call(self, command: Command, *, timeout_s: float, fd_count_max: int = 0) -> Command:
        """Ask and give the answer, which is SUCCESS. Blocks up to `timeout_s`.

        Args:
            command: the request; its descriptors are closed once sent.
            timeout_s: seconds, from here to the answer.
            fd_count_max: descriptors that the answer may bring; they are the caller's to take.

        Raises:
            RequestTimeoutError: no answer in time; the request may have been carried out.
            ClosedError: the connection has ended, now or before.
            ForkError: the connection is the parent process's.
            ShmqError: what the server answered, as its class (TopicNotExistError).
        """
        response = self.invoke(command, timeout_s=timeout_s, fd_count_max=fd_count_max)
        error = error_of(response)
        if error is not None:
            response.close()
            raise error
        return response

    def invoke(self, command: Command, *, timeout_s: float, fd_count_max: int = 0) -> Command:
        """As `call`, but any answer is given back, whatever its code."""
        deadline_ns = _deadline(timeout_s)
        call = _Call(fd_count_max)
        try:
            with self._lock:
                self._check_open()
                command.opaque = self._register(call)
            self._send(command, deadline_ns)
        finally:
            command.close()
        response = self._wait(call, deadline_ns)
        if response is None:
            raise RequestTimeoutError(
                f"{command.name} to {self.name}: no answer within {timeout_s:.3g} s"
            )
        return response

    def send_oneway(self, command: Command, *, timeout_s: float) -> None:
        """Send a command that nobody answers. Blocks while the server does not read.

        Raises:
            RequestTimeoutError: it could not be sent in time.
            ClosedError, ForkError: as `call`.
        """
        command.is_oneway = True
        try:
            with self._lock:
                self._check_open()
            self._send(command, _deadline(timeout_s))
        finally:
            command.close()

    @property
    def is_closed(self) -> bool:
        """Nothing can be asked any more. A dead server shows once somebody reads."""
        return self._error is not None

    def is_ended(self) -> bool:
        """As is_closed, and looks whether the server has gone meanwhile. Not while others call."""
        if self._error is None and not self._is_reading and _poll(self._sock, 0, 0):
            self._hear_last_words()
        return self._error is not None

    def close(self) -> None:
        """End the connection; whoever waits for an answer gets ClosedError. Twice does nothing."""
        if os.getpid() != self._pid:
            self._sock.close()  # this copy only: the parent's connection lives on
            return
        self._end(ClosedError(f"the connection to {self.name} was closed here"))
        if threading.current_thread() is self._reader:
            self._is_close_asked = True  # while it takes a notice: it closes what is left
            return
        if self._reader is not None:
            self._reader.join()
        with self._turn:
            while self._is_reading:  # ends: the shutdown has woken whoever reads
                self._turn.wait()
        with self._send_lock:
            self._release()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # ---- sending -----------------------------------------------------------------------------

    def _check_open(self) -> None:
        if os.getpid() != self._pid:
            raise ForkError(f"call {self.name}: connected by process {self._pid}; connect anew")
        if self._error is not None:
            raise self._reason()

    def _register(self, call: _Call) -> int:
        if len(self._calls) >= _CALL_COUNT_MAX:
            raise QuotaError(
                f"call {self.name}: {len(self._calls)} requests are without an answer already"
            )
        while True:  # ends: fewer calls than numbers
            self._last_opaque = (self._last_opaque + 1) % _OPAQUE_LIMIT
            if self._last_opaque not in self._calls:
                self._calls[self._last_opaque] = call
                return self._last_opaque

    def _send(self, command: Command, deadline_ns: int) -> None:
        try:
            data = memoryview(encode(command))
            if not self._send_lock.acquire(timeout=_left_s(deadline_ns)):
                raise RequestTimeoutError(f"send {command.name} to {self.name}: others still send")
            try:
                self._send_all(data, command, deadline_ns)
            finally:
                self._send_lock.release()
        except BaseException:
            with self._lock:
                self._calls.pop(command.opaque, None)
            raise

    def _send_all(self, data: memoryview, command: Command, deadline_ns: int) -> None:
        with self._lock:
            if self._error is not None:  # closed since it was looked at: the socket may be gone
                raise self._reason()
        sent = 0
        try:
            while True:
                sent += send_some(self._sock, data[sent:], () if sent else command.fds)
                if sent == len(data):
                    return
                if not _poll(self._sock, select.POLLOUT, deadline_ns):
                    raise RequestTimeoutError(
                        f"send {command.name} to {self.name}: the server does not read"
                    )
        except RequestTimeoutError:
            if sent:
                self._end(ClosedError(f"send to {self.name}: half a frame, then no room in time"))
            raise
        except OSError as error:
            self._hear_last_words()
            self._end(ClosedError(f"send to {self.name}: {error.strerror}"))
            raise self._reason() from error
        except BaseException:  # an interrupt
            self._end(ClosedError(f"send to {self.name}: interrupted"))
            raise

    def _hear_last_words(self) -> None:
        """The server has ended the connection: what it sent before tells more than EPIPE."""
        with self._turn:
            if self._is_reading:
                self._turn.wait_for(lambda: self._error is not None, _LAST_WORDS_S)
                return
            self._is_reading = True
        try:
            self._read_once(SYSTEM_CLOCK.monotonic_ns())
        finally:
            with self._turn:
                self._is_reading = False
                self._turn.notify_all()

    # ---- receiving ---------------------------------------------------------------------------

    def _wait(self, call: _Call, deadline_ns: int) -> Command | None:
        """The answer, or None once the time is up; the answer may still come then, for nobody."""
        with self._turn:
            try:
                while call.response is None:
                    if self._error is not None:
                        raise self._reason()
                    left_s = _left_s(deadline_ns)
                    if left_s <= 0:
                        return None
                    if self._is_reading:
                        self._turn.wait(left_s)
                    else:
                        self._read_in_turn(deadline_ns)
                response, call.response = call.response, None
                return response
            finally:
                call.is_abandoned = True
                if call.response is not None:  # interrupted
                    call.response.close()

    def _read_in_turn(self, deadline_ns: int) -> None:
        """Receive once, without the lock, which is held before and after."""
        self._is_reading = True
        self._lock.release()
        try:
            self._read_once(deadline_ns)
        finally:
            self._lock.acquire()
            self._is_reading = False
            self._turn.notify_all()

    def _read_for_ever(self) -> None:
        while self._error is None:  # endless: it reads as long as the connection lives
            self._read_once(None)
        with self._turn:
            self._is_reading = False
            self._turn.notify_all()
        if self._is_close_asked:
            with self._send_lock:
                self._release()
        if self._on_end is not None:
            self._on_end()

    def _read_once(self, deadline_ns: int | None) -> None:
        """Receive once and hand out what came; only in the thread whose turn it is."""
        if not _poll(self._sock, select.POLLIN, deadline_ns):
            return
        try:
            with self._lock:
                fd_count_max = max((c.fd_count_max for c in self._calls.values()), default=0)
            data, fds = receive(self._sock, fd_count_max=fd_count_max)
            if not data:
                raise ClosedError(f"receive from {self.name}: the server closed the connection")
            self._parser.feed(data, fds)
            while (command := self._parser.next()) is not None:
                self._hand_out(command)
        except BlockingIOError:
            pass
        except (ClosedError, LimitError, ProtocolError) as error:
            self._end(error)
        except OSError as error:
            self._end(ClosedError(f"receive from {self.name}: {error}"))
        except BaseException:  # an interrupt: the place in the stream may be lost
            self._end(ClosedError(f"receive from {self.name}: interrupted"))
            raise

    def _hand_out(self, command: Command) -> None:
        if command.is_response:
            with self._lock:
                call = self._calls.pop(command.opaque, None)
                if call is not None and not call.is_abandoned:
                    call.response = command
                    self._turn.notify_all()
                    return
            command.close()
        elif command.code == RequestCode.GO_AWAY:
            self._end(error_of(command) or ClosedError(f"{self.name} ended the connection"))
        else:
            self._notify(command)

    def _notify(self, command: Command) -> None:
        try:
            if self._on_notify is not None:
                self._on_notify(command)
        except Exception:  # noqa: BLE001 # one bad notice must not end the thread that takes all
            _log.exception("notice %s of %s", command.name, self.name)
        finally:
            command.close()

    def _fd_limit(self, head: FrameHead) -> int:
        with self._lock:
            call = self._calls.get(head.opaque) if head.is_response else None
        return 0 if call is None else call.fd_count_max

    def _end(self, error: ShmqError) -> None:
        """Close for good, with the first reason; whoever waits is woken."""
        with self._turn:
            if self._error is not None:
                return
            self._error = error
            self._calls.clear()
            self._turn.notify_all()
        try:
            # Wakes who polls, and ends it for the server too where a forked child has a copy.
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def _release(self) -> None:
        self._parser.close()
        self._sock.close()

    def _reason(self) -> ShmqError:
        """Why the connection has ended, as an exception of its own for each who asks."""
        error = self._error or ClosedError(f"the connection to {self.name} has ended")
        return type(error)(str(error), hint=error.hint)


def _deadline(timeout_s: float) -> int:
    return SYSTEM_CLOCK.monotonic_ns() + int(timeout_s * 1e9)


def _left_s(deadline_ns: int) -> float:
    return max(0.0, (deadline_ns - SYSTEM_CLOCK.monotonic_ns()) / 1e9)


def _poll(sock: socket.socket, events: int, deadline_ns: int | None) -> bool:
    """Whether the socket is ready for `events` before the deadline (None: wait for ever)."""
    poll = select.poll()
    poll.register(sock, events)
    wait_ms = None if deadline_ns is None else _left_s(deadline_ns) * 1e3
    return bool(poll.poll(wait_ms))
