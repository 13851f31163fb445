"""The life of a daemon: start -> run -> drain -> stop, its signals, and what systemd is told.

A Service is any object with the four steps; `run` drives one in the main thread of its process.
What systemd hears goes to NOTIFY_SOCKET (sd_notify(3)) and nowhere if there is none.

In the process of the daemon; writes the notify socket only. Steps may fail: what was started is
stopped in any case, and the error goes on to the caller.
"""

import logging
import os
import queue
import signal
import socket
from array import array
from collections.abc import Callable, Sequence
from enum import StrEnum, unique
from typing import Protocol

from shmq.clock import SYSTEM_CLOCK, Clock
from shmq.errors import ConfigError, ShmqError
from shmq.threads import NamedThread

__all__ = [
    "DRAIN_TIMEOUT_S",
    "Phase",
    "Service",
    "exit_code",
    "notify",
    "run",
    "watchdog_interval_s",
]

_log = logging.getLogger("shmq.service")

STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})
DRAIN_TIMEOUT_S = 30.0
"""How long a daemon may take to finish what it has, before it stops all the same."""
_BEAT_S = 5.0  # between two looks at a service's health where no watchdog asks for more


@unique
class Phase(StrEnum):
    """Where in its life a service is; it only ever moves on."""

    STARTING = "STARTING"
    RUNNING = "RUNNING"
    DRAINING = "DRAINING"
    STOPPED = "STOPPED"


class Service(Protocol):
    """What `run` drives. Every step is called once, in this order, in the main thread."""

    def start(self) -> None:
        """Acquire everything and begin to serve; raise if that cannot be done."""

    def is_healthy(self) -> bool:
        """Whether it made progress since last asked; False withholds systemd's watchdog."""

    def drain(self, timeout_s: float) -> None:
        """Accept nothing new and finish what was accepted, within `timeout_s` seconds."""

    def stop(self) -> None:
        """Release everything; also called when `start` raised, and must cope with that."""


def exit_code(work: Callable[[], None], log: logging.Logger) -> int:
    """Do a daemon's work; what its process ends with.

    Returns:
        0: it ended in order; 1: it could not start or failed; 2: its options make no sense. One
        line in the log says why.
    """
    try:
        work()
    except ShmqError as error:
        log.log(logging.ERROR, "%s; %s", error, error.hint)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


def run(
    service: Service,
    *,
    name: str,
    drain_timeout_s: float = DRAIN_TIMEOUT_S,
    clock: Clock = SYSTEM_CLOCK,
    on_reload: Callable[[], None] | None = None,
    describe: Callable[[], str] | None = None,
) -> None:
    """Start the service, wait for SIGTERM or SIGINT, drain it, stop it.

    With `on_reload`, SIGHUP calls that in the main thread while the service runs; without, it is
    what it is for every program. With `describe`, systemd is told in each beat what that says (one
    line, what `systemctl status` shows); it is called in the main thread and must not block.

    Blocks until then. Call it in the main thread before any other thread exists: the signals are
    blocked, so that threads and the core's loops are never interrupted, and taken here one by one.
    Children started meanwhile inherit that mask: those that are services of ours take the signals
    the same way, others need it restored. A second signal while draining changes nothing; whoever
    cannot wait has SIGKILL.
    """
    signals = STOP_SIGNALS if on_reload is None else STOP_SIGNALS | {signal.SIGHUP}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        _live(service, name, drain_timeout_s, clock, on_reload, describe)
    finally:
        # Taken away unseen: a signal that came while draining asked for what is done by now.
        while signal.sigtimedwait(signals, 0):
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _live(
    service: Service,
    name: str,
    drain_timeout_s: float,
    clock: Clock,
    on_reload: Callable[[], None] | None,
    describe: Callable[[], str] | None,
) -> None:
    begin_ns = clock.monotonic_ns()
    problem = ""
    try:
        _enter(Phase.STARTING, name)
        service.start()
        _enter(Phase.RUNNING, name, "READY=1", describe=describe)
        _log.info("ready name=%s start_ms=%d", name, (clock.monotonic_ns() - begin_ns) // 1_000_000)
        number = _wait_for_signal(service, name, on_reload, describe)
        _log.info("draining name=%s signal=%s", name, signal.Signals(number).name)
        _enter(Phase.DRAINING, name, "STOPPING=1")
        service.drain(drain_timeout_s)
    except ShmqError as error:
        problem = f": {error}"
        raise
    finally:
        service.stop()
        notify(f"STATUS={name}: {Phase.STOPPED.lower()}{problem}")


def _wait_for_signal(
    service: Service,
    name: str,
    on_reload: Callable[[], None] | None,
    describe: Callable[[], str] | None,
) -> int:
    """The first stop signal; beats the watchdog meanwhile. Endless: a daemon has no other end.

    A thread takes it: sigtimedwait in Python gives back whatever lay on its stack where the
    process was stopped (SIGSTOP) and continued behind the time that it was to wait for.
    """
    interval_s = watchdog_interval_s() or _BEAT_S
    taken: queue.SimpleQueue[int] = queue.SimpleQueue()
    signals = STOP_SIGNALS if on_reload is None else STOP_SIGNALS | {signal.SIGHUP}

    def take() -> None:
        number: int = signal.SIGHUP
        while number not in STOP_SIGNALS:  # endless but for the one that ends the daemon
            number = signal.sigwait(signals)
            taken.put(number)

    NamedThread(target=take, name="shmq-signals", daemon=True).start()
    was_healthy = True
    while True:
        try:
            number = taken.get(timeout=interval_s)
        except queue.Empty:
            pass
        else:
            if on_reload is None or number != signal.SIGHUP:
                return number
            _log.info("reloading name=%s signal=SIGHUP", name)
            on_reload()
            continue
        is_healthy = service.is_healthy()
        if is_healthy:
            said = () if describe is None else (f"STATUS={name}: {describe()}",)
            notify("WATCHDOG=1", *said)
        if is_healthy != was_healthy:
            level = logging.INFO if is_healthy else logging.ERROR
            _log.log(level, "health name=%s is_healthy=%s", name, is_healthy)
        was_healthy = is_healthy


def _enter(
    phase: Phase, name: str, *states: str, describe: Callable[[], str] | None = None
) -> None:
    said = phase.lower() if describe is None else describe()
    notify(*states, f"STATUS={name}: {said}")


def notify(*states: str, fds: Sequence[int] = ()) -> bool:
    """Tell systemd, e.g. "READY=1"; whether there was a systemd that took it.

    Never blocks and never raises: a daemon does not die of a supervisor that does not listen.

    Args:
        states: assignments, of one message.
        fds: descriptors that go with it (FDSTORE=1); they stay the caller's.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]  # abstract namespace
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
            sock.sendmsg(["\n".join(states).encode()], rights, 0, address)
    except OSError as error:
        _log.warning("systemd not told states=%s error=%s", states, error)
        return False
    return True


def watchdog_interval_s() -> float | None:
    """Seconds between two beats that keep systemd's watchdog content; None if it has none.

    Half of WATCHDOG_USEC, as sd_watchdog_enabled(3) advises.
    """
    usec = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 2_000_000
