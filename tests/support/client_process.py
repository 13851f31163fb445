"""A client of a store process in a process of its own, and what it and the test say to each other.

What lives here: both ends. A program is a module of the tests whose main part calls `client_main`
with its work; `ClientProcess` starts it, hands it a session and talks to it in JSON over a
SOCK_SEQPACKET pair. The session, its rings and its fds are the product's.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from shmq.shm.incarnation import Incarnation
from tests.support.standing_still import stop_process
from tests.support.store_process import (
    ANSWER_TIMEOUT_S,
    ROOT,
    ClientSide,
    Offer,
    StoreProcess,
    receive_packet,
    send_packet,
)

# ---- the client's end ----------------------------------------------------------------------------


class Talk:
    """The socket to the other end. Messages are JSON objects."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def say(self, **message: Any) -> None:
        """One message; waits until there is room for it."""
        send_packet(self._sock, message, {})

    def hears(self, timeout_s: float) -> bool:
        """Whether a message, or the end of the other side, comes within the time."""
        return bool(select.select([self._sock], [], [], timeout_s)[0])

    def hear(self) -> dict[str, Any]:
        """The next message; EOFError when the other end is gone."""
        message, _ = receive_packet(self._sock)
        return message


def client_main(work: Callable[[ClientSide, Talk, dict[str, Any]], None]) -> None:
    """Take the session that the parent hands over, do `work`, leave."""
    with socket.socket(fileno=int(sys.argv[1])) as sock:
        message, fds = receive_packet(sock)
        client = ClientSide(Offer(**message["offer"]), fds)
        if "chunk" in fds:
            client.attach_chunk(fds["chunk"])
        try:
            work(client, Talk(sock), message["options"])
        finally:
            client.close()


# ---- the test's end ------------------------------------------------------------------------------


class ClientProcess(Talk):
    """A running client program. A context manager: it is killed at the end if it still lives."""

    def __init__(
        self,
        store: StoreProcess,
        program: str,
        *,
        rows: tuple[int, ...] = (),
        chunk_bytes: int = 0,
        session: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Open a session, start the program and hand the session over.

        Args:
            store: whose client it is.
            program: name of its module.
            rows: queue rows that it may send to.
            chunk_bytes: chunk memory for large bodies; 0: none.
            session: options of open_session.
            options: for the program's work.
        """
        self.store = store
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(ANSWER_TIMEOUT_S)
        super().__init__(ours)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", program, str(theirs.fileno())],
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
            )
        self.offer, fds = store.open_session(
            process=Incarnation.of(self.process.pid), **(session or {})
        )
        store.call("grant", session=self.offer.session, rows=list(rows))
        if chunk_bytes:
            _, chunk = store.call("grant_chunk", session=self.offer.session, size_bytes=chunk_bytes)
            fds |= chunk
        send_packet(ours, {"offer": asdict(self.offer), "options": options}, fds)
        for fd in fds.values():
            os.close(fd)

    def stop(self) -> None:
        """SIGSTOP, and wait until it stands."""
        stop_process(self.process.pid)

    def go_on(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> int:
        """Wait until it has ended by itself; its exit status."""
        return self.process.wait(timeout=ANSWER_TIMEOUT_S)

    def close(self) -> None:
        """Kill it if it lives."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._sock.close()

    def __enter__(self) -> ClientProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
