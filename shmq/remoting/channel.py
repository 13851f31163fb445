"""One connected socket: bytes with descriptors beside them, and frames on an event loop.

What lives here: `receive` and `send_some`, the only two system calls that move frames, for blocking
and asyncio callers alike; `Channel`, which turns a socket on an asyncio loop into commands in and
commands out, both bounded. The rules of who may say what when are its owner's (server, client).

In the thread of its loop. Nothing blocks: what the other side does not take waits here up to a
bound, and whoever does not read is cut off. What may fail: the peer is gone or breaks the protocol;
both end the channel, which tells its owner once.
"""

import array
import asyncio
import os
import socket
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

from shmq.errors import ClosedError, LimitError, ProtocolError, QuotaError, ShmqError
from shmq.remoting.command import (
    LONG_FRAME_BYTES_MAX,
    Command,
    FrameParser,
    encode,
    go_away,
)

__all__ = ["ByteBudget", "Channel", "ChannelOwner", "RECEIVE_BYTES", "receive", "send_some"]

RECEIVE_BYTES: Final = 64 << 10
"""What one receive takes, so that connections that send much take turns."""
_FD = array.array("i").itemsize
_LAST_RECEIVE_COUNT: Final = 64
"""Receives from a peer that is dead before the rest is dropped."""


def receive(sock: socket.socket, *, fd_count_max: int) -> tuple[bytes, list[int]]:
    """What has come: bytes (none at the end of the stream) and descriptors, the caller's to close.

    Args:
        sock: a connected Unix stream socket.
        fd_count_max: descriptors that one send of the peer may carry; 0: the kernel installs none.

    Raises:
        BlockingIOError: nothing is there yet, on a socket that does not wait.
        ProtocolError: more descriptors came than may; none is left open.
        LimitError: descriptors came and this process can have no more.
        OSError: the connection is gone.
    """
    space = socket.CMSG_LEN(fd_count_max * _FD) if fd_count_max else 0
    data, ancillary, flags, _ = sock.recvmsg(RECEIVE_BYTES, space, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, raw in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(raw[: len(raw) - len(raw) % _FD])
    if flags & socket.MSG_CTRUNC:
        for fd in fds:
            os.close(fd)
        # The kernel says the same for too little room and for a full table.
        if len(fds) < fd_count_max:
            raise LimitError("receive: descriptors were lost; raise LimitNOFILE=, or ulimit -n")
        raise ProtocolError(f"receive: more than {fd_count_max} descriptors where so many may come")
    return data, list(fds)


def send_some(sock: socket.socket, data: bytes | memoryview, fds: Sequence[int] = ()) -> int:
    """Send a beginning of `data` without waiting; descriptors go with its first byte.

    Returns:
        how many bytes went; if none did, neither did a descriptor.

    Raises:
        OSError: the connection is gone.
    """
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    try:
        return sock.sendmsg([data], ancillary, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except BlockingIOError:
        return 0


class ByteBudget:
    """What the channels of one uid may keep in our memory together."""

    __slots__ = ("bytes_max", "used_bytes")

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.used_bytes = 0


class ChannelOwner(Protocol):
    """Whose channel it is: a server's connection or a client. Called in the loop's thread."""

    def received(self, command: Command) -> None:
        """A command came; its descriptors are the owner's. ProtocolError ends the channel."""

    def delivered(self) -> None:
        """All commands that are complete were given; what is left is the beginning of one."""

    def ended(self, error: ShmqError) -> None:
        """The channel has ended, for this reason; called once, after everything is closed."""


class Channel:
    """Frames over one socket on the running loop.

    While more than `outstanding_bytes_max` wait for the peer to read, no further command of it is
    given to the owner; if the owner sends on its own account even then, the peer is cut off.

    Args:
        sock: connected; the channel's from now on.
        parser: what may come in; the channel's from now on.
        owner: who is told.
        buffered_bytes_max: what is kept of what the peer sent; at least a whole frame.
        outstanding_bytes_max: what may wait for the peer to read.
        budget: what in and out are charged to, beside those two limits.
        fd_count_max: descriptors that the peer may send with one frame.
    """

    def __init__(
        self,
        sock: socket.socket,
        parser: FrameParser,
        owner: ChannelOwner,
        *,
        buffered_bytes_max: int,
        outstanding_bytes_max: int,
        budget: ByteBudget | None = None,
        fd_count_max: int = 0,
    ) -> None:
        sock.setblocking(False)
        self.fd_count_max = fd_count_max
        self._sock = sock
        self._parser = parser
        self._owner = owner
        self._buffered_bytes_max = buffered_bytes_max
        self._outstanding_bytes_max = outstanding_bytes_max
        self._budget = budget or ByteBudget(buffered_bytes_max + 2 * LONG_FRAME_BYTES_MAX)
        self._charged_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._out: deque[tuple[memoryview, list[int]]] = deque()
        self._outstanding_bytes = 0
        self._is_paused = False
        self._is_reading = False
        self._is_writing = False
        self._is_mute = False
        self._is_ended = False
        self._read_on()

    @property
    def is_ended(self) -> bool:
        """Nothing comes or goes any more."""
        return self._is_ended

    @property
    def buffered_bytes(self) -> int:
        """Bytes received that the owner has not been given yet."""
        return self._parser.buffered_bytes

    def pause(self) -> None:
        """Give the owner no further command until `resume`; the end is noticed all the same."""
        self._is_paused = True

    def resume(self) -> None:
        """Give the owner what has come meanwhile, and go on."""
        self._is_paused = False
        self._deliver()

    def send(self, command: Command) -> bool:
        """Send a command, or keep it until the peer reads; its descriptors are closed afterwards.

        Returns:
            False if the peer gets nothing any more, be it for this very command: it does not read.

        Raises:
            ProtocolError: the command is larger than any receiver takes; nothing was sent.
        """
        try:
            data = encode(command, frame_bytes_max=LONG_FRAME_BYTES_MAX)
        except BaseException:
            command.close()
            raise
        if not self._is_heard():
            command.close()
            return False
        if self._outstanding_bytes > self._outstanding_bytes_max:
            command.close()
            self.end(
                QuotaError(
                    f"send {command.name}: {self._outstanding_bytes} bytes wait already for a peer"
                    " that does not read"
                )
            )
            return False
        self._out.append((memoryview(data), list(command.take_fds())))
        self._outstanding_bytes += len(data)
        if len(self._out) == 1:
            self._send_out()
        self._charge()
        return self._is_heard()

    def close(self, error: ShmqError) -> None:
        """End the channel and let the peer know why, as far as it reads."""
        if not (self._is_ended or self._is_mute or self._out):
            try:
                send_some(self._sock, encode(go_away(error)))
            except OSError:
                pass
        self.end(error)

    def end(self, error: ShmqError) -> None:
        """End the channel without a word. Twice does nothing."""
        if self._is_ended:
            return
        self._is_ended = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._parser.close()
        self._drop_out()
        self._sock.close()
        self._charge()
        self._owner.ended(error)

    def end_after_last_words(self, error: ShmqError) -> None:
        """The peer's process has ended: take what it sent before, then end the channel."""
        for _ in range(_LAST_RECEIVE_COUNT):
            if self._is_ended or self._is_paused or not self._receive():
                break
        self.end(error)

    # ---- in ----------------------------------------------------------------------------------

    def _read_on(self) -> None:
        """Read while there is room: also while paused, so that the end is noticed."""
        wanted = not self._is_ended and self.buffered_bytes < self._buffered_bytes_max
        if wanted and not self._is_reading:
            self._loop.add_reader(self._sock, self._receive)
        elif self._is_reading and not wanted and not self._is_ended:
            self._loop.remove_reader(self._sock)
        self._is_reading = wanted

    def _receive(self) -> bool:
        """Take what has come once; False if there was nothing."""
        try:
            data, fds = receive(self._sock, fd_count_max=self.fd_count_max)
        except BlockingIOError:
            return False
        except ShmqError as error:
            self.close(error)
            return False
        except OSError as error:
            self.end(ClosedError(f"receive: {error.strerror}"))
            return False
        if not data:
            self.end(ClosedError("receive: the other side closed the connection"))
            return False
        try:
            self._parser.feed(data, fds)
        except ProtocolError as error:
            self.close(error)
            return False
        self._deliver()
        return True

    def _deliver(self) -> None:
        try:
            while not (self._is_paused or self._is_ended or self._is_choked):
                command = self._parser.next()
                if command is None:
                    self._owner.delivered()
                    break
                self._owner.received(command)
        except ProtocolError as error:
            self.close(error)
        self._charge()
        if not self._is_ended:
            self._read_on()

    # ---- out ---------------------------------------------------------------------------------

    def _is_heard(self) -> bool:
        return not (self._is_ended or self._is_mute)

    @property
    def _is_choked(self) -> bool:
        return self._outstanding_bytes > self._outstanding_bytes_max

    def _send_waiting(self) -> None:
        """The peer has read: send on, and listen to it again."""
        was_choked = self._is_choked
        self._send_out()
        self._charge()
        if was_choked and not self._is_choked:
            self._deliver()

    def _send_out(self) -> None:
        while self._out:
            data, fds = self._out[0]
            try:
                sent = send_some(self._sock, data, fds)
            except OSError:
                # It reads no more, but may have sent something before: that comes first, then the
                # end of the stream, which ends the channel.
                self._is_mute = True
                self._drop_out()
                break
            if sent == 0:
                break
            self._outstanding_bytes -= sent
            for fd in fds:
                os.close(fd)
            if sent < len(data):
                self._out[0] = (data[sent:], [])
            else:
                self._out.popleft()
        if self._is_writing != bool(self._out):
            self._is_writing = not self._is_writing
            if self._is_writing:
                self._loop.add_writer(self._sock, self._send_waiting)
            else:
                self._loop.remove_writer(self._sock)

    def _drop_out(self) -> None:
        for _, fds in self._out:
            for fd in fds:
                os.close(fd)
        self._out.clear()
        self._outstanding_bytes = 0

    def _charge(self) -> None:
        """Charge the budget with what is kept now; over it, this channel is the one that ends."""
        kept = 0 if self._is_ended else self.buffered_bytes + self._outstanding_bytes
        grown = kept - self._charged_bytes
        self._charged_bytes = kept
        self._budget.used_bytes += grown
        if grown > 0 and self._budget.used_bytes > self._budget.bytes_max:
            self.close(
                QuotaError(
                    f"keep {kept} bytes: this uid's connections have {self._budget.used_bytes};"
                    f" wanted at most {self._budget.bytes_max}"
                )
            )
