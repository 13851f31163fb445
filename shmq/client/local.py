"""A private cluster for one program: shmq.local().

What lives here: `local`, and the guard process behind it (`python -m shmq.client.local`), which
starts a NameServer that supervises the brokers, and stops all when its standard input ends: when
the program closes it, exits, or is killed. Writes: the folder; a temporary one is removed at the
end. May fail: ServiceNotAvailableError if the cluster does not come up.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from shmq.client.instance import Client
from shmq.clock import SYSTEM_CLOCK
from shmq.errors import ServiceNotAvailableError, ShmqError

__all__ = ["local"]

_START_TIMEOUT_S = 60.0
_LOG = "cluster.log"
_ROCKETMQ_PORTS = range(10_911, 65_000, 10)
"""Nothing listens there: the address is in every message id, and is where a real RocketMQ broker
that takes a store over will listen. A port of its own for each, with room for those beside it."""


def local(folder: str | Path | None = None, *, brokers: int = 1) -> Client:
    """A Client with a private NameServer and broker, child processes that end with it.

    Args:
        folder: where the store is kept and found again; None: a temporary one, removed.
        brokers: how many masters.

    Raises:
        ServiceNotAvailableError: they did not come up.
    """
    is_temporary = folder is None
    root = Path(tempfile.mkdtemp(prefix="shmq-")) if folder is None else Path(folder).absolute()
    root.mkdir(parents=True, exist_ok=True)
    names = [f"broker-{chr(ord('a') + index)}" for index in range(brokers)]
    tables = [
        f'[broker."{name}"]\nstore_path = "{root / name}"\nlisten_port = {port}\n'
        for name, port in zip(names, _ROCKETMQ_PORTS, strict=False)
    ]
    (root / "cluster.toml").write_text("\n".join(tables), encoding="utf-8")
    guard = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "shmq.client.local",
            str(root),
            "remove" if is_temporary else "keep",
        ],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    assert guard.stdin is not None
    stdin = guard.stdin

    def end() -> None:
        stdin.close()
        guard.wait()

    client: Client | None = None
    deadline_ns = SYSTEM_CLOCK.monotonic_ns() + int(_START_TIMEOUT_S * 1e9)
    waiting = threading.Event()
    while SYSTEM_CLOCK.monotonic_ns() < deadline_ns and guard.poll() is None:
        try:
            client = client or Client(root / "run", on_close=end)
            if len(client.routes.brokers()) == brokers:
                for name in names:
                    client.link(name)
                return client
        except (ShmqError, OSError):
            pass
        waiting.wait(0.01)
    said = _last_words(root / _LOG)
    if client is not None:
        client.close()
    else:
        end()
    raise ServiceNotAvailableError(f"start a private cluster in {root}: it did not come up{said}")


def _last_words(log: Path) -> str:
    """What the cluster said last, for an error."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return f" in {_START_TIMEOUT_S} s; its last words: {lines[-1]}" if lines else ""


def _guard(root: Path, is_temporary: bool) -> int:
    """Start the NameServer, wait for the end of standard input, stop it."""
    (root / "run").mkdir(mode=0o750, exist_ok=True)
    with open(root / _LOG, "ab") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "shmq.namesrv",
                "--runtime",
                str(root / "run"),
                "--cluster",
                str(root / "cluster.toml"),
            ],
            stdin=subprocess.DEVNULL,
            stderr=log,
        )
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while os.read(0, 4096):
        pass
    process.terminate()
    process.wait()
    if is_temporary:
        shutil.rmtree(root, ignore_errors=True)
    return process.returncode


if __name__ == "__main__":
    sys.exit(_guard(Path(sys.argv[1]), sys.argv[2] == "remove"))
