"""What a private cluster leaves, and its end.

What lives here: `end_all`, for the guard, and for the program where that was killed. Nothing stays
in shared memory, whoever is attached. Brokers that stop remove theirs; that of one which was killed
is forgotten with a temporary store. In a kept one it may have messages that no file has: the
cluster is started once more, and stopped, which writes them. Memory that outlives that, because the
disk refuses, stays for the next cluster of the folder. Blocks until all have ended.
"""

from __future__ import annotations

import select
import shutil
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from shmq.client.admin import Admin
from shmq.client.namesrv_process import start_namesrv
from shmq.clock import SYSTEM_CLOCK
from shmq.errors import ShmError, ShmqError
from shmq.remoting.identity import peer_of
from shmq.remoting.runtime_folder import RuntimeFolder
from shmq.shm.manifest import load, manifest_path
from shmq.shm.mastership import Mastership
from shmq.shm.reaper import Verdict, reap

if TYPE_CHECKING:
    from shmq.remoting.identity import Peer

__all__ = ["end_all", "end_namesrv", "forget_memory"]

_START_TIMEOUT_S = 60.0
_LOOK_S = 0.05
"""Between two looks whether successors are up."""
_CONNECT_TIMEOUT_S = 2.0
_STOP_TIMEOUT_MS = 30_000
"""For a broker that the guard itself has to stop."""
_STOP_ALL_TIMEOUT_MS = 90_000
"""For a NameServer, which kills brokers after 35 s: slaves, then masters."""


def end_all(root: Path, run: Path, *, is_temporary: bool) -> None:
    """Stop what still runs, and see that nothing of it stays in shared memory.

    Args:
        root: folder of the stores and the log.
        run: the runtime folder.
        is_temporary: remove `root`, and what is in shared memory.
    """
    _end_brokers(run)
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
    process = start_namesrv(root, run)
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
    _end_brokers(run)


def _end_brokers(run: Path) -> None:
    """Stop what still runs: a NameServer that was killed, or told to stop before it had found the
    brokers of one that was, leaves them to a successor that will not come. Blocks until they end.

    Args:
        run: the runtime folder.
    """
    _end_listeners(run, "broker", _STOP_TIMEOUT_MS)


def end_namesrv(run: Path) -> None:
    """Stop a NameServer that nobody waits for; its brokers end with it. Blocks until it has ended.

    Args:
        run: the runtime folder.
    """
    _end_listeners(run, "namesrv", _STOP_ALL_TIMEOUT_MS)


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
