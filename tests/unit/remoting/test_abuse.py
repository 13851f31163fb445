"""A live server under abuse: every order of messages, garbage, floods; others are not affected."""

import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from shmq.errors import QuotaError
from shmq.remoting.client import Client
from shmq.remoting.codes import RequestCode
from shmq.remoting.command import HEAD, MAGIC, Command, encode, hello
from shmq.remoting.runtime_folder import RuntimeFolder
from shmq.remoting.server import ServerLimits
from tests.support.repository import ROOT
from tests.support.scale import scaled
from tests.support.store_process import wait_until
from tests.unit.remoting.abused import CONNECTION_COUNT_MAX_PER_UID, ECHO, TAKE, WAIT
from tests.unit.remoting.conftest import NAME


class Abused:
    """The server's process, and a witness in a third one."""

    def __init__(self, folder: RuntimeFolder, errors: Path) -> None:
        self._folder = folder
        self._errors = errors
        with errors.open("w") as file:  # no pipe: nobody reads it while the server writes
            self.server = _start("serve", folder, file)
            self.witness = _start("witness", folder, file)
        self.call()  # what it imports with the first call is there
        self.fd_count_before = self.fd_count()
        self.kib_before = self.resident_kib()

    def call(self) -> None:
        with Client(self._folder, NAME, role="x", timeout_s=60) as client:
            client.call(Command(ECHO), timeout_s=60)

    def fd_count(self) -> int:
        return len(os.listdir(f"/proc/{self.server.pid}/fd"))

    def resident_kib(self) -> int:
        text = Path(f"/proc/{self.server.pid}/status").read_text(encoding="ascii")
        return int(text.partition("VmRSS:")[2].split()[0])

    def settle(self) -> None:
        """Return once the server has forgotten all abusers; the test's timeout is the bound."""
        while self.fd_count() > self.fd_count_before:
            try:
                self.call()
            except QuotaError:  # it has not looked at those yet that are gone
                pass

    def end(self) -> None:
        """The witness saw nothing but right answers; the server lives and leaves no error."""
        try:
            assert self.server.poll() is None
            figures, _ = self.witness.communicate("\n", timeout=60)
            print("witness: calls, median, p99, max in us:", figures)
            errors = self._errors.read_text()
            assert self.witness.returncode == 0, errors
            assert "Traceback" not in errors, errors
        finally:
            for child in (self.server, self.witness):
                child.kill()
                child.communicate()


def _start(role: str, folder: RuntimeFolder, errors: IO[str]) -> "subprocess.Popen[str]":
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.unit.remoting.abused", role, str(folder.path), NAME],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        cwd=ROOT,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


@pytest.fixture
def abused(folder: RuntimeFolder, tmp_path: Path) -> Iterator[Abused]:
    made = Abused(folder, tmp_path / "errors")
    try:
        yield made
    finally:
        made.end()


def _messages(rng: random.Random) -> list[tuple[bytes, int]]:
    """What a hostile or broken peer may send: bytes, and descriptors with them."""
    good = hello("x")
    return [
        (encode(good), 0),
        (encode(Command(RequestCode.HELLO, {"version": 1, "role": "x"}, is_oneway=True)), 0),
        (encode(Command(ECHO, {"a": 1}, b"body", opaque=3)), 0),
        (encode(Command(ECHO, is_oneway=True)), 0),
        (encode(Command(WAIT, {"t": "x"})), 0),
        (encode(Command(WAIT, {"t": 5})), 0),
        (encode(Command(TAKE, {"n": 1}, fds=[0])), 1),
        (encode(Command(TAKE, {"n": 1}, fds=[0, 0])), 2),
        (encode(Command(TAKE, fds=[0])), 0),
        (encode(Command(TAKE, {"n": 1}, fds=[0])), 3),
        (encode(Command(ECHO)), 1),
        (encode(Command(ECHO)), 200),
        (encode(Command(RequestCode.GO_AWAY, is_oneway=True)), 0),
        (encode(Command(0, is_response=True)), 0),
        (encode(Command(-1)), 0),
        (encode(Command(2**31 - 1)), 0),
        (HEAD.pack(MAGIC, 0, 0, 0, ECHO, 0, 2**32 - 1), 0),
        (HEAD.pack(MAGIC, 0, 0, 0, ECHO, 2**32 - 1, 0), 0),
        (HEAD.pack(MAGIC, 0, 0, 0, ECHO, 5, 0) + b"[1,2]", 0),
        (HEAD.pack(MAGIC, 0, 0, 0, ECHO, 1000, 0) + b'{"extFields":' * 77, 0),
        (encode(good)[: rng.randrange(40)], 0),
        (rng.randbytes(rng.randrange(1, 200)), rng.choice((0, 0, 1))),
        (b"", 0),
    ]


def _speak(folder: RuntimeFolder, rng: random.Random) -> None:
    """One connection that says some of it in some order, and goes in some way."""
    with folder.connect(NAME, timeout_s=60) as sock:
        messages = _messages(rng)
        chosen = [messages[0]] * rng.randint(0, 1) + rng.choices(messages, k=rng.randint(0, 6))
        try:
            for data, fd_count in chosen:
                if data and fd_count:
                    socket.send_fds(sock, [data], [0] * fd_count)
                elif data:
                    sock.send(data)
                if rng.random() < 0.2:
                    sock.recv(rng.randrange(1, 1000), socket.MSG_DONTWAIT)
            if rng.random() < 0.3:
                sock.shutdown(rng.choice((socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR)))
        except (BlockingIOError, BrokenPipeError, ConnectionResetError, PermissionError):
            pass


def test_every_order_of_messages_is_survived(
    abused: Abused, folder: RuntimeFolder, rng: random.Random
) -> None:
    for _ in range(scaled(3_000, 300_000)):
        _speak(folder, rng)
    abused.settle()


def test_ten_thousand_connects_leave_nothing(abused: Abused, folder: RuntimeFolder) -> None:
    for _ in range(10_000):
        folder.connect(NAME, timeout_s=60).close()
    abused.settle()
    assert abused.resident_kib() < abused.kib_before + 4_096


def test_flood_of_silent_connections_is_bounded(abused: Abused, folder: RuntimeFolder) -> None:
    """They stay open and say nothing: one uid gets its number, the rest is refused at once."""
    socks = [folder.connect(NAME, timeout_s=60) for _ in range(300)]
    first = CONNECTION_COUNT_MAX_PER_UID - 1  # the witness has one
    for sock in socks[first:]:
        sock.setblocking(True)
        assert b"FLOW_CONTROL" in sock.recv(1000)
        assert sock.recv(1000) == b""
    # It closes its own end a moment after it has sent the last word.
    wait_until(lambda: abused.fd_count() <= abused.fd_count_before + 2 * first)
    for sock in socks:
        sock.close()
    abused.settle()


def test_slow_peers_cost_bounded_memory(abused: Abused, folder: RuntimeFolder) -> None:
    """Sixty peers send all but the end of the largest frame there is."""
    data = encode(Command(ECHO, body=bytes((1 << 20) - 200)))[:-1]
    socks = []
    for _ in range(60):
        sock = folder.connect(NAME, timeout_s=60)
        sock.setblocking(True)
        socks.append(sock)
        try:
            sock.sendall(encode(hello("slow")) + data)
        except (BrokenPipeError, ConnectionResetError):
            pass
    abused.call()
    grown_kib = abused.resident_kib() - abused.kib_before
    for sock in socks:
        sock.close()
    abused.settle()
    print(f"grown by {grown_kib} KiB")
    assert grown_kib < 2 * ServerLimits().kept_bytes_max_per_uid // 1024


def test_peers_that_never_read_cost_bounded_memory(abused: Abused, folder: RuntimeFolder) -> None:
    """Sixty peers ask for megabytes and take none of them."""
    asked = encode(Command(ECHO, body=bytes(1_000_000)))
    socks = []
    for _ in range(60):
        sock = folder.connect(NAME, timeout_s=60)
        socks.append(sock)
        data = memoryview(encode(hello("deaf")) + asked * 10)
        sock.setblocking(True)
        sock.settimeout(0.02)
        try:
            sock.sendall(data)
        except (TimeoutError, BrokenPipeError, ConnectionResetError):
            pass
    abused.call()
    grown_kib = abused.resident_kib() - abused.kib_before
    for sock in socks:
        sock.close()
    abused.settle()
    print(f"grown by {grown_kib} KiB")
    assert grown_kib < 2 * ServerLimits().kept_bytes_max_per_uid // 1024
