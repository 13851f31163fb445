"""Server programs: found, started on loopback or a Unix socket, ended."""

import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from peer import NotHad, PeerError

_START_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 60.0
_LOOK_S = 0.01
_PORT_TRIES = 100
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def end_with_parent() -> None:
    """This process is killed when the program that started it ends, however that comes about."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def start_server(
    command: Sequence[str | Path],
    folder: Path,
    is_ready: Callable[[], bool],
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """One that answers; it is killed when this program ends, however that comes about.

    Args:
        command: the program and its arguments.
        folder: where it works, and where server.out gets what it says.
        is_ready: whether it answers; may raise OSError while it does not.
        environment: added to ours.

    Raises:
        PeerError: it does not answer; with what it said last.
    """
    with (folder / "server.out").open("ab") as out:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, **(environment or {})},
            preexec_fn=end_with_parent,
        )
    deadline = time.monotonic() + _START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if is_ready():
                return process
        except OSError:
            pass
        time.sleep(_LOOK_S)
    process.kill()
    process.wait()
    said = (folder / "server.out").read_text("utf-8", "replace")[-2000:]
    raise PeerError(f"{command[0]} does not answer; what it said: {said}")


def stop_server(process: subprocess.Popen[bytes], *, is_killed: bool = False) -> None:
    """In order, unless it is to be killed; and wait until it is gone."""
    if not is_killed:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
            return
        except subprocess.TimeoutExpired:
            pass
    process.kill()
    process.wait()


def can_connect(address: str | int) -> bool:
    """To a Unix socket by its path, or to a port on loopback; raises OSError."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.connect(address if isinstance(address, str) else ("127.0.0.1", address))
    return True


def free_port(beside: Sequence[int] = ()) -> int:
    """A port of loopback that nobody has just now, nor those at these distances from it. It is
    below those that the kernel gives out by itself.
    """
    for _ in range(_PORT_TRIES):
        port = random.randrange(20_000, 32_000)
        try:
            for number in (port, *(port + distance for distance in beside)):
                with socket.socket() as probe:
                    probe.bind(("0.0.0.0", number))
        except OSError:
            continue
        return port
    raise PeerError(f"no free port in {_PORT_TRIES} tries")


def need_program(name: str, package: str) -> str:
    """The path of an installed program.

    Raises:
        NotHad: it is not installed.
    """
    path = shutil.which(name)
    if path is None:
        raise NotHad(f"{name} not found: apt install {package}")
    return path
