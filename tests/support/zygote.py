"""Processes by the hundred: a real Python process that has everything imported and forks.

What lives here: both ends. The zygote has one thread and no object of the core, so that its
children are like processes freshly started, 100 ms sooner. A child serves one inherited socket:
a store (tests.support.store_process) or a worker (tests.crash.worker), and ends with the zygote.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import logging
import os
import select
import signal
import socket
import sys
import traceback
from typing import TYPE_CHECKING, Any

from tests.support import store_process
from tests.support.store_process import StoreProcess, receive_packet, send_packet

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from shmq.config import StoreConfig

_PR_SET_PDEATHSIG = 1
_PR_SET_PTRACER = 0x59616D61
_ANYBODY = ctypes.c_ulong(-1)


# ---- the process ---------------------------------------------------------------------------------


def _run_zygote(sock: socket.socket) -> None:
    from tests.crash import worker

    roles: dict[str, Callable[[socket.socket], None]] = {
        "store": store_process.serve,
        "worker": worker.serve,
    }
    libc = ctypes.CDLL(None, use_errno=True)
    while True:  # until the test's end of the socket is closed
        try:
            request, fds = receive_packet(sock)
        except EOFError:
            return
        if "reap" in request:
            _, status = os.waitpid(request["reap"], 0)
            said = {"ok": os.waitstatus_to_exitcode(status), "number": request["number"]}
            send_packet(sock, said, {})
            continue
        with socket.socket(fileno=fds["sock"]) as theirs:
            pid = os.fork()
            if pid == 0:
                sock.close()
                libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                libc.prctl(_PR_SET_PTRACER, _ANYBODY, 0, 0, 0)  # where Yama guards ptrace
                _run_child(roles[request["role"]], theirs)
        send_packet(sock, {"ok": pid, "number": request["number"]}, {})


def _run_child(role: Callable[[socket.socket], None], sock: socket.socket) -> None:
    code = 1
    try:
        role(sock)
        code = 0
    except BaseException:  # noqa: BLE001 # a child never returns into the zygote's loop
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# ---- the test's side -----------------------------------------------------------------------------


class ForkedProcess:
    """A child of the zygote, as subprocess.Popen would show it."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self._zygote = zygote
        self.pid = pid
        self.returncode: int | None = None
        self._pidfd = os.pidfd_open(pid)

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._pidfd], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            select.select([self._pidfd], [], [])
            os.close(self._pidfd)
            self.returncode = self._zygote.call({"reap": self.pid})
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.send_signal(signal.SIGKILL)
        self.wait()


class Zygote:
    """Starts the zygote process. A context manager: all its children end with it."""

    def __init__(self, *, stderr: int | None = None) -> None:
        """Start it.

        Args:
            stderr: fd for what it and its children say; None: our own stderr.
        """
        import subprocess

        self._numbers = itertools.count()
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.zygote", str(theirs.fileno())],
                cwd=store_process.ROOT,
                pass_fds=[theirs.fileno()],
                stderr=stderr,
            )

    def call(self, request: dict[str, Any], fds: dict[str, int] | None = None) -> Any:
        """Ask, and return the answer. A test that was ended while it waited leaves one unread."""
        number = next(self._numbers)
        send_packet(self._sock, {**request, "number": number}, fds or {})
        while True:  # until the zygote has ended or answered this
            answer, _ = receive_packet(self._sock)
            if answer["number"] == number:
                return answer["ok"]

    def fork(self, role: str, fd: int) -> ForkedProcess:
        """A process that plays `role` over the socket `fd`, which it gets a copy of."""
        return ForkedProcess(self, self.call({"role": role}, {"sock": fd}))

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()
        self._process.wait()


class ForkedStore(StoreProcess):
    """A store process that comes from a zygote."""

    def __init__(self, zygote: Zygote, config: StoreConfig, **options: Any) -> None:
        self._zygote = zygote
        super().__init__(config, **options)

    def _spawn(self, fd: int, *_: object) -> subprocess.Popen[bytes]:
        return self._zygote.fork("store", fd)  # type: ignore[return-value] # as Popen shows it

    def restart(self, config: StoreConfig | None = None, **options: Any) -> ForkedStore:
        """Its successor, for the same folder or another member's."""
        self._sock.close()
        options.setdefault("is_member", self.is_member)
        options.setdefault("begin", self._begin)
        return ForkedStore(self._zygote, config or self.config, **options)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="store_process %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with (
        socket.socket(fileno=int(sys.argv[1])) as inherited,
        contextlib.suppress(KeyboardInterrupt),
    ):
        _run_zygote(inherited)
