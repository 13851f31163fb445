"""A private cluster for one program: shmq.local().

What lives here: `local`, and the guard process behind it (`python -m shmq.client.local`), which
starts a NameServer that supervises the brokers, and stops all when its standard input ends: when
the program closes it, exits, or is killed. Writes: the folder; a temporary one is removed at the
end. May fail: ServiceNotAvailableError if the cluster does not come up.

Nothing stays in shared memory, whoever is attached. Brokers that stop remove theirs; that of one
which was killed is forgotten with a temporary store. In a kept one it may have messages that no
file has: the cluster is started once more, and stopped, which writes them. Memory that outlives
that, because the disk refuses, stays for the next cluster of the folder. A guard that is killed
leaves all this to the program's `close`.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from shmq.client.admin import Admin
from shmq.client.instance import Client
from shmq.clock import SYSTEM_CLOCK
from shmq.errors import ConfigError, OwnerError, ServiceNotAvailableError, ShmError, ShmqError
from shmq.remoting.identity import peer_of
from shmq.remoting.runtime_folder import RuntimeFolder
from shmq.shm.manifest import load, manifest_path
from shmq.shm.mastership import Mastership
from shmq.shm.reaper import Verdict, reap

if TYPE_CHECKING:
    from shmq.remoting.identity import Peer

__all__ = ["LOG", "end_brokers", "forget_memory", "local", "start"]

_START_TIMEOUT_S = 60.0
_LOOK_NS = 500_000_000
"""Between two looks whether a broker was given up."""
_LOOK_S = 0.05
"""Between two looks whether successors are up."""
_CONNECT_TIMEOUT_S = 2.0
_STOP_TIMEOUT_MS = 30_000
"""For a broker that the guard itself has to stop."""
_STOP_ALL_TIMEOUT_MS = 90_000
"""For a NameServer, which kills brokers after 35 s: slaves, then masters."""
LOG = "cluster.log"
"""Where in its folder a private cluster logs."""


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
            _end_listeners(run, "namesrv", _STOP_ALL_TIMEOUT_MS)
            _end_all(root, run, is_temporary=is_temporary)

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
            "shmq.client.local",
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


def _guard(root: Path, run: Path, program_pid: int, *, is_temporary: bool) -> int:
    """Keep a NameServer running until the program closes standard input or ends; then stop it and
    its brokers. A child that the program forked has a copy of the pipe, and keeps nothing alive.
    """
    program = os.pidfd_open(program_pid)
    if os.getppid() != program_pid:  # it has ended: the pidfd may be somebody else's
        if is_temporary:
            shutil.rmtree(root, ignore_errors=True)
        return 0
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = _start_namesrv(root, run)
    while True:
        pidfd = os.pidfd_open(process.pid)
        poll = select.poll()
        poll.register(0, select.POLLIN | select.POLLHUP)
        poll.register(program, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll()}
        os.close(pidfd)
        if 0 in ready or program in ready:
            break
        if process.wait() >= 0:  # one that ended by itself would do so again
            break
        process = _start_namesrv(root, run)  # killed: this one adopts the brokers
    process.terminate()
    process.wait()
    _end_all(root, run, is_temporary=is_temporary)
    return process.returncode


def _end_all(root: Path, run: Path, *, is_temporary: bool) -> None:
    """Stop what still runs, and see that nothing of it stays in shared memory."""
    end_brokers(run)
    if is_temporary:
        forget_memory(root, run)
        _forget_masters(root, run)
        shutil.rmtree(root, ignore_errors=True)
        return
    with suppress(ShmqError):  # what is in doubt stays
        if _is_wanted(root, run):
            _write_left(root, run)
            _is_wanted(root, run)


def _is_wanted(root: Path, run: Path) -> bool:
    """Whether a broker was killed, and its memory waits for a successor; what does not goes."""
    manifests = [manifest_path(store) for store in root.glob("broker-*")]
    findings = reap(sorted(run.glob("broker-*.d")), manifests, dry_run=False)
    return any(finding.verdict is Verdict.WANTED for finding in findings)


def _write_left(root: Path, run: Path) -> None:
    """Have successors adopt what killed brokers left, and stop them, so that it is in files."""
    process = _start_namesrv(root, run)
    waiting = threading.Event()
    deadline_ns = SYSTEM_CLOCK.monotonic_ns() + int(_START_TIMEOUT_S * 1e9)
    while SYSTEM_CLOCK.monotonic_ns() < deadline_ns and process.poll() is None:
        with suppress(ShmqError, OSError), Admin(run) as admin:
            wards = admin.supervised()
            if wards and all(ward["phase"] in ("RUNNING", "GIVEN_UP") for ward in wards):
                break
        waiting.wait(_LOOK_S)
    process.terminate()
    process.wait()
    end_brokers(run)


def end_brokers(run: Path) -> None:
    """Stop what still runs: a NameServer that was killed, or told to stop before it had found the
    brokers of one that was, leaves them to a successor that will not come. Blocks until they end.

    Args:
        run: the runtime folder.
    """
    _end_listeners(run, "broker", _STOP_TIMEOUT_MS)


def _end_listeners(run: Path, role: str, timeout_ms: int) -> None:
    with suppress(ShmqError), RuntimeFolder.open(run) as folder:
        for name in folder.socket_names(role):
            with suppress(ShmqError, ProcessLookupError):  # it has ended
                with folder.connect(name, timeout_s=_CONNECT_TIMEOUT_S) as sock:
                    listener = peer_of(sock)
                try:
                    _end(listener, timeout_ms)
                finally:
                    listener.close()


def _end(listener: Peer, timeout_ms: int) -> None:
    if listener.pidfd < 0:
        return
    signal.pidfd_send_signal(listener.pidfd, signal.SIGTERM)
    signal.pidfd_send_signal(listener.pidfd, signal.SIGCONT)
    poll = select.poll()
    poll.register(listener.pidfd, select.POLLIN)
    if not poll.poll(timeout_ms):
        listener.kill()
        poll.poll(timeout_ms)


def forget_memory(root: Path, run: Path) -> None:
    """Remove what a killed broker left in shared memory for a successor that will not come.

    Args:
        root: folder of the stores, whose unflushed messages are lost.
        run: the runtime folder.
    """
    for store in root.glob("broker-*"):
        manifest = load(manifest_path(store))
        if manifest is not None:
            reap(sorted(run.glob("broker-*.d")), [], dry_run=False, unmarked={manifest.store})


def _forget_masters(root: Path, run: Path) -> None:
    """Remove the records of masters whose stores go now: a broker of that name that begins in this
    runtime folder later would wait for them.
    """
    for folder in run.glob("broker-*.d"):
        with suppress(ShmError):  # a record that is damaged stays, and is told of
            mastership = Mastership.try_take(folder)
            if mastership is None:
                continue  # somebody else's
            with mastership:
                record = mastership.record
                if record is not None and record.store_path.is_relative_to(root):
                    mastership.forget()


def _start_namesrv(root: Path, run: Path) -> subprocess.Popen[bytes]:
    with open(root / LOG, "ab") as log:
        return subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "shmq.namesrv",
                "--runtime",
                str(run),
                "--cluster",
                str(root / "cluster.toml"),
            ],
            stdin=subprocess.DEVNULL,
            stderr=log,
        )


if __name__ == "__main__":
    _root, _run, _kind, _pid = sys.argv[1:]
    sys.exit(_guard(Path(_root), Path(_run), int(_pid), is_temporary=_kind == "remove"))
