"""The log channel: how clients that map the log get its memory, and are asked to leave it.

What lives here: `LogChannel`, the broker's end of one SOCK_SEQPACKET pair per client. Packets have
32 bytes (`PACKET`): kind, zero, file_position, size in bytes, zero; one fd at most goes with them.

    broker -> client   HOT      map this segment (fd) for the file at file_position
                       RETIRED  map this complete file (fd) over the same addresses, then answer
                       FILE     map this file (fd): the answer to a client's FILE
                       FORGET   the file was removed: map it no longer than views of it live
                       GONE     the file is not kept any more: the other answer to FILE
    client -> broker   RETIRED  done: nothing of the segment is mapped any more
                       FILE     wanted: a file behind the hot log, also one whose segment it maps
                                still: a new channel begins with HOT of all that is in memory, in
                                order, so it knows what retired while it had none

Which process: the broker, one thread of its own for what clients say. Nothing here waits for a
client but `retire`, which the keeper calls with a bound: packets go with MSG_DONTWAIT, and what a
slow client does not take waits in a list of file positions, not of fds. A client that does not
answer keeps memory alive that the broker has unlinked; over the budget it is dropped.
"""

from __future__ import annotations

import array
import contextlib
import logging
import os
import selectors
import socket
import struct
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shmq.errors import ShmqError, StoreCorruptError
from shmq.shm import segment as segments
from shmq.shm.fds import open_error
from shmq.threads import NamedThread

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmq.shm.segment import Segment
    from shmq.store.log_files import LogFiles

__all__ = ["FILE", "FORGET", "GONE", "HOT", "LogChannel", "PACKET", "RETIRED"]

_log = logging.getLogger("shmq.store")

PACKET = struct.Struct("<IIQQQ")
HOT = 1
RETIRED = 2
FILE = 3
FORGET = 4
GONE = 5

_PENDING_MAX = 4096
"""Packets that wait for a slow client; more, and it is dropped: it has not read for thousands of
files."""
_REQUESTS_PER_ROUND = 16
"""Packets taken from one client before the others are looked at."""


@dataclass(eq=False, slots=True)
class _Client:
    session: int
    sock: socket.socket
    pending: deque[tuple[int, int]] = field(default_factory=deque)
    """(kind, file_position) not sent yet."""
    unanswered: set[int] = field(default_factory=set)
    """File positions it was asked to leave."""


class LogChannel:
    """All clients that map the log."""

    def __init__(
        self, files: LogFiles, *, file_size_bytes: int, on_drop: Callable[[int, str], None]
    ) -> None:
        self._files = files
        self._file_size_bytes = file_size_bytes
        self._on_drop = on_drop
        self._clients: dict[int, _Client] = {}
        self._hot: dict[int, Segment] = {}
        self._announced: set[int] = set()
        self._left_behind: set[int] = set()
        self._retiring: int | None = None
        self._lock = threading.RLock()
        self._answered = threading.Condition(self._lock)
        self._selector = selectors.DefaultSelector()
        self._wake_out, self._wake_in = socket.socketpair()
        self._wake_in.setblocking(False)
        self._selector.register(self._wake_out, selectors.EVENT_READ, None)
        self._stopping = False
        self._thread = NamedThread(target=self._serve, name="shmq-log-channel", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close every client's end."""
        self._stopping = True
        self._wake()
        if self._thread.is_alive():
            self._thread.join()
        with self._lock:
            for session in tuple(self._clients):
                self.remove(session)
        self._selector.close()
        self._wake_in.close()
        self._wake_out.close()

    # ---- clients ---------------------------------------------------------------------------------

    def add(self, session: int) -> int:
        """Open a channel for a session; the client's fd, which the caller passes on and closes.

        Raises:
            LimitError: no descriptors.
        """
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise open_error(f"open the log channel of session {session}", error) from error
        ours.setblocking(False)
        client = _Client(session, ours)
        with self._lock:
            self._clients[session] = client
            for file_position in sorted(self._announced):
                self._send(client, HOT, file_position)
            self._selector.register(ours, selectors.EVENT_READ, client)
        self._wake()
        return theirs.detach()

    def remove(self, session: int) -> None:
        """Close a session's channel. What it had mapped stays mapped if it lives, and it will never
        answer: none of that memory is used again (tests/model/retire.pml, LEFT_IS_GONE).
        """
        with self._lock:
            client = self._clients.pop(session, None)
            if client is None:
                return
            self._left_behind.update(self._hot)
            if self._retiring in client.unanswered:
                self._left_behind.add(self._retiring)
            with contextlib.suppress(KeyError):
                self._selector.unregister(client.sock)
            client.sock.close()
            client.unanswered.clear()
            self._answered.notify_all()

    # ---- the log ---------------------------------------------------------------------------------

    def offer(self, file_position: int, segment: Segment) -> None:
        """Let whoever asks for the file at `file_position` get `segment`."""
        with self._lock:
            self._hot[file_position] = segment

    def announce(self, file_position: int) -> None:
        """Tell all clients that the file at `file_position` lies in the segment offered. They keep
        it over this broker's death, so a successor must find the same segment for that file.
        """
        with self._lock:
            self._announced.add(file_position)
            for client in tuple(self._clients.values()):
                self._send(client, HOT, file_position)
        self._wake()

    def leave_behind(self, file_position: int) -> None:
        """Somebody whom nobody serves may have this file mapped: a predecessor's client."""
        with self._lock:
            self._left_behind.add(file_position)

    def retire(self, file_position: int, timeout_s: float) -> bool:
        """Ask all clients to map the file instead of its segment. True if nobody can have the
        segment mapped any more, so that its memory may be used again.
        """
        with self._lock:
            self._retiring = file_position
            del self._hot[file_position]
            self._announced.discard(file_position)
            for client in tuple(self._clients.values()):
                client.unanswered.add(file_position)
                self._send(client, RETIRED, file_position)
            self._wake()
            is_answered = self._answered.wait_for(
                lambda: not any(file_position in c.unanswered for c in self._clients.values()),
                timeout_s,
            )
            self._retiring = None
            is_left_behind = file_position in self._left_behind
            self._left_behind.discard(file_position)
            return is_answered and not is_left_behind

    def forget(self, file_position: int) -> None:
        """Tell all clients that the file was removed. What of it they have mapped and do not look
        at would keep its room on the disk, and retention would remove more in vain.
        """
        with self._lock:
            for client in tuple(self._clients.values()):
                self._send(client, FORGET, file_position)
        self._wake()

    def unanswered_bytes(self) -> int:
        """Bytes of segments that some client has not left yet."""
        with self._lock:
            positions = set[int]().union(*(c.unanswered for c in self._clients.values()))
            return len(positions) * self._file_size_bytes

    def enforce_budget(self, bytes_max: int) -> None:
        """Drop the clients that owe most until at most `bytes_max` bytes are held by laggards."""
        while self.unanswered_bytes() > bytes_max:
            with self._lock:
                worst = max(self._clients.values(), key=lambda c: len(c.unanswered))
            self._drop(
                worst,
                f"it keeps {len(worst.unanswered)} retired segments mapped and does not answer; "
                f"the budget is {bytes_max} bytes (retired_bytes_max)",
            )

    # ---- the thread ------------------------------------------------------------------------------

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            self._wake_in.send(b"\0")

    def _serve(self) -> None:
        while not self._stopping:  # endless: it serves as long as the broker lives
            with self._lock:
                for client in self._clients.values():
                    wanted = selectors.EVENT_READ
                    if client.pending:
                        wanted |= selectors.EVENT_WRITE
                    key = self._selector.get_key(client.sock)
                    if key.events != wanted:
                        self._selector.modify(client.sock, wanted, client)
            for key, events in self._selector.select():
                if key.data is None:
                    self._wake_out.recv(4096)
                    continue
                client = key.data
                with self._lock:
                    if self._clients.get(client.session) is not client:
                        continue
                    if events & selectors.EVENT_WRITE:
                        self._send_pending(client)
                    if events & selectors.EVENT_READ:
                        self._receive(client)

    def _receive(self, client: _Client) -> None:
        for _ in range(_REQUESTS_PER_ROUND):
            try:
                packet = client.sock.recv(PACKET.size + 1)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self.remove(client.session)
                return
            if len(packet) != PACKET.size:
                self._drop(client, f"a packet of {len(packet)} bytes, wanted {PACKET.size}")
                return
            kind, _, file_position, _, _ = PACKET.unpack(packet)
            if kind == RETIRED:
                client.unanswered.discard(file_position)
                self._answered.notify_all()
            elif kind == FILE:
                self._send(client, FILE, file_position)
            else:
                self._drop(client, f"a packet of kind {kind}, wanted {RETIRED} or {FILE}")
                return

    def _send(self, client: _Client, kind: int, file_position: int) -> None:
        client.pending.append((kind, file_position))
        if len(client.pending) == 1:
            self._send_pending(client)
        elif len(client.pending) > _PENDING_MAX:
            self._drop(client, f"{_PENDING_MAX} packets wait for it")

    def _send_pending(self, client: _Client) -> None:
        while client.pending:
            kind, file_position = client.pending[0]
            try:
                fd, kind = self._open(kind, file_position)
            except (ShmqError, OSError) as error:
                # Not GONE, which it would believe: it asks again, or keeps what it has mapped.
                _log.warning("not sent session=%d kind=%d: %s", client.session, kind, error)
                client.pending.popleft()
                continue
            packet = PACKET.pack(kind, 0, file_position, self._file_size_bytes, 0)
            ancillary = (
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd >= 0 else []
            )
            try:
                client.sock.sendmsg([packet], ancillary, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                self.remove(client.session)
                return
            finally:
                if fd >= 0:
                    os.close(fd)
            client.pending.popleft()

    def _open(self, kind: int, file_position: int) -> tuple[int, int]:
        """The fd that goes with a packet and the kind it has become: a HOT of a segment that has
        retired meanwhile is a FILE, and a FILE that is not kept any more is GONE.
        ShmqError, OSError: it is kept, but no fd is to be had now.
        """
        if kind == FORGET:
            return -1, FORGET
        if kind == HOT or (kind == FILE and file_position in self._hot):
            segment = self._hot.get(file_position)
            if segment is not None:
                return segments.open_readonly(segment), HOT
            kind = FILE
        is_place = file_position % self._file_size_bytes == 0
        if not is_place or not self._files.path(file_position).exists():
            return -1, GONE
        try:
            return self._files.open(file_position, readonly=True), kind
        except StoreCorruptError:
            return -1, GONE

    def _drop(self, client: _Client, reason: str) -> None:
        _log.warning("drop session=%d reason=%s", client.session, reason)
        self.remove(client.session)
        self._on_drop(client.session, reason)
