"""A private cluster for one program: shmq.local().

What lives here: `local`, which starts a guard process (shmq.client.guard) that runs the cluster
for as long as the program lives. Writes: the folder; a temporary one is removed at the end. May
fail: ServiceNotAvailableError if the cluster does not come up. A guard that is killed leaves what
it would have done at the end to the program's `close`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from shmq.client.admin import Admin
from shmq.client.cleanup import end_all, end_namesrv
from shmq.client.instance import Client
from shmq.client.namesrv_process import LOG
from shmq.clock import SYSTEM_CLOCK
from shmq.errors import ConfigError, OwnerError, ServiceNotAvailableError, ShmqError
from shmq.remoting.runtime_folder import RuntimeFolder

__all__ = ["local", "start"]

_START_TIMEOUT_S = 60.0
_LOOK_NS = 500_000_000
"""Between two looks whether a broker was given up."""


def local(folder: str | Path | None = None, *, brokers: int = 1) -> Client:
    """A Client with a private NameServer and broker, child processes that end with it.

    Args:
        folder: where the store is kept and found again; None: a temporary one, removed.
        brokers: how many masters.

    Raises:
        ConfigError: no broker.
        ServiceNotAvailableError: they did not come up.
    """
    if brokers < 1:
        raise ConfigError(f"start a private cluster: {brokers} brokers, wanted 1 or more")
    root = Path(tempfile.mkdtemp(prefix="shmq-")) if folder is None else Path(folder).absolute()
    return start(root, root / "run", brokers=brokers, is_temporary=folder is None)


def start(root: Path, run: Path, *, brokers: int, is_temporary: bool, slaves: int = 0) -> Client:
    """As `local`.

    Args:
        root: absolute folder of stores and log.
        run: absolute runtime folder.
        brokers: how many masters.
        is_temporary: remove `root`, and what is in shared memory, at the end.
        slaves: how many for each master: members that take its place.

    Raises:
        OwnerError: another cluster is served in `run`.
        ConfigError: a folder cannot be made.
        ServiceNotAvailableError: they did not come up.
    """
    try:
        _check_free(run)
    except ShmqError:
        if is_temporary:
            shutil.rmtree(root, ignore_errors=True)
        raise
    names = [f"broker-{chr(ord('a') + index)}" for index in range(brokers)]
    try:
        guard = _start_guard(root, run, names, slaves=slaves, is_temporary=is_temporary)
    except OSError as error:
        if is_temporary:
            shutil.rmtree(root, ignore_errors=True)
        raise ConfigError(
            f"start a cluster in {root}, runtime folder {run}: {error}",
            hint="name folders that this user can make",
        ) from None
    assert guard.stdin is not None
    stdin = guard.stdin

    def end() -> None:
        with suppress(BrokenPipeError):
            stdin.close()
        if guard.wait() < 0:  # killed: what it ran goes on
            end_namesrv(run)
            end_all(root, run, is_temporary=is_temporary)

    client: Client | None = None
    look_ns = 0
    deadline_ns = SYSTEM_CLOCK.monotonic_ns() + int(_START_TIMEOUT_S * 1e9)
    waiting = threading.Event()
    while SYSTEM_CLOCK.monotonic_ns() < deadline_ns and guard.poll() is None:
        try:
            client = client or Client(run, on_close=end)
            if len(client.routes.brokers()) == brokers:
                for name in names:
                    client.link(name)
                return client
            if SYSTEM_CLOCK.monotonic_ns() >= look_ns:
                look_ns = SYSTEM_CLOCK.monotonic_ns() + _LOOK_NS
                if _is_given_up(run):
                    break
        except (ShmqError, OSError):
            pass
        waiting.wait(0.01)
    said = _last_words(root / LOG)
    if client is not None:
        client.close()
    else:
        end()
    raise ServiceNotAvailableError(f"start a private cluster in {root}: it did not come up{said}")


def _start_guard(
    root: Path, run: Path, names: list[str], *, slaves: int, is_temporary: bool
) -> subprocess.Popen[bytes]:
    """Make the folders and the cluster file, and start the process that runs the cluster."""
    root.mkdir(parents=True, exist_ok=True)
    run.parent.mkdir(parents=True, exist_ok=True)
    run.mkdir(mode=0o750, exist_ok=True)
    # A cluster that ends with its program has no successor to keep memory for, whoever is still
    # attached; who finds some of a removed store sees by the folder's name whose it was.
    own = 'keep_memory = "never"\n'
    if is_temporary:
        own += f'cluster_name = "{root.name}"\n'
    # Stores are relative to the file, for a folder may have a name that no TOML can hold.
    tables = [
        f'[broker."{member}"]\nbroker_name = "{name}"\nbroker_id = {broker_id}\n'
        f'store_path = "{member}"\n{own}'
        for name in names
        for broker_id in range(slaves + 1)
        for member in (f"{name}-slave-{broker_id}" if broker_id else name,)
    ]
    (root / "cluster.toml").write_text("\n".join(tables), encoding="utf-8")
    return subprocess.Popen(
        [
            sys.executable,
            "-P",
            "-m",
            "shmq.client.guard",
            str(root),
            str(run),
            "remove" if is_temporary else "keep",
            str(os.getpid()),
        ],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def _check_free(run: Path) -> None:
    """Refuse a runtime folder that a living NameServer has."""
    if not run.exists():
        return
    with RuntimeFolder.open(run) as folder:
        for name in folder.socket_names("namesrv"):
            try:
                sock = folder.try_connect(name)
            except ServiceNotAvailableError:
                continue  # left of one that was killed
            if sock is not None:  # None: it is there, and busy
                sock.close()
            raise OwnerError(
                f"start a cluster in the runtime folder {run}: {name} serves one there already",
                hint="use that one, stop it, or name another runtime folder",
            )


def _is_given_up(run: Path) -> bool:
    """Whether a broker ended so often that its supervisor does not start it any more."""
    with Admin(run) as admin:
        return any(ward["phase"] == "GIVEN_UP" for ward in admin.supervised())


def _last_words(log: Path) -> str:
    """Why a broker ended, or what the cluster said last, for an error."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    said = [line for line in lines if line.startswith("[") and " ERROR " in line] or lines
    return f"; its last words: {said[-1]}" if said else ""
