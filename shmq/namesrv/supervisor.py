"""Starts the brokers of a cluster file, restarts the dead, fences the hung, stops all in order.

The supervisor is nobody's parent in the sense that matters: a broker is a session of its own, takes
no signal from our terminal, prints into a file, and goes on when we die. Who runs is known from the
kernel, for each broker in `supervisor.d/`:

    <broker>.lock   held (flock) by the broker itself: it inherits the descriptor, which nobody else
                    has. As long as it is held no second one is started, whatever else is known
    <broker>.json   pid, start time and boot id of the process, to find it again; believed only if
                    the kernel confirms it
    <broker>.log    what it prints

A supervisor that comes to running brokers adopts them: by their record, and where that is missing
(we died between start and record) by who holds the lock. It watches each by a pidfd, which says at
once that the process ended, and by asking it (probe.py), which says that it hangs; only through the
pidfd does it ever kill, so that never another process is hit. `supervisor.lock` in the runtime
folder lets one NameServer at a time supervise.

In the NameServer, on its event loop. What may fail: a broker cannot be started, which counts as its
end and is tried again; `supervisor.d` is not ours (OwnerError).
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from shmq.clock import AttendedTime, Clock
from shmq.config import ClusterConfig
from shmq.errors import ShmqError
from shmq.namesrv.broker_watch import Action, BrokerWatch, Phase
from shmq.namesrv.election import Candidate, Election
from shmq.namesrv.log_tail import LogTail, LogTails
from shmq.namesrv.probe import Probe
from shmq.namesrv.spare import Spare
from shmq.remoting.aio_client import AsyncClient
from shmq.remoting.codes import RequestCode
from shmq.remoting.command import Command
from shmq.remoting.identity import has_ended
from shmq.remoting.loop_thread import in_background
from shmq.remoting.runtime_folder import RuntimeFolder, broker_socket_name
from shmq.shm.fds import is_open_in
from shmq.shm.incarnation import Incarnation, boot_id
from shmq.shm.mastership import load_record
from shmq.status import BrokerRole
from shmq.store.left_memory import has_memory

__all__ = ["LOCK_NAME", "SupervisedBroker", "Supervisor"]

_log = logging.getLogger("shmq.namesrv")

LOCK_NAME: Final = "supervisor"
TICK_INTERVAL_S: Final = 0.25
_PAUSE_MS_MAX: Final = 1_000  # of attended time between two ticks
_RECORD_BYTES_MAX: Final = 4_096
_TELL_TIMEOUT_S: Final = 1.0
_SPARE_DELAY_NS: Final = 2_000_000_000  # after a start, whose broker and clients have work to do
_SPARE_RETRY_NS: Final = 60_000_000_000
# What systemd told us and not them.
_OURS_ALONE: Final = frozenset(
    {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM", "LISTEN_FDS", "LISTEN_PID"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedBroker:
    """One broker of the cluster file."""

    name: str
    """Of its table, [broker.NAME]."""
    socket_name: str
    """Where it answers."""
    broker_id: int
    """0 is the master; masters are stopped last."""
    command: tuple[str, ...]
    """What starts it; not a shell's."""
    broker_name: str = ""
    """What the members of its replica set share; empty: it has none."""
    is_async_learner: bool = False
    """It copies, and is never elected."""
    arguments: tuple[str, ...] = ()
    """Those of them that a spare process is given (spare.py)."""


@dataclass(slots=True)
class _Process:
    """A life that is watched."""

    incarnation: Incarnation
    pidfd: int
    child: "subprocess.Popen[bytes] | None"
    """None where it is not our child: adopted."""


class _Ward:
    """One broker with everything that is known of it."""

    def __init__(self, broker: SupervisedBroker, watch: BrokerWatch) -> None:
        self.broker = broker
        self.watch = watch
        self.process: _Process | None = None
        self.probe: Probe | None = None
        self.is_hidden = False
        self.answered_ns = 0
        """When it answered last, attended time."""
        self.was_killed = False
        """Not ended by itself or by a person: a spare may go on in its place. Who stops a broker
        may want another release of it started."""


class Supervisor:
    """All brokers of a cluster file. Make it and use it in the loop's thread.

    Args:
        folder: the runtime folder, open as long as the supervisor lives; its lock LOCK_NAME is the
            caller's to hold.
        brokers: of the cluster file.
        config: delays, counts and timeouts.
        hung_timeout_ms: silence after which a running broker is killed.
        probe_interval_ms: between two questions to a broker.
        clock: where time comes from.
        tails: forwards what brokers print.
        spare_command: starts a process that becomes a broker when it is told; empty: none does.
    """

    def __init__(
        self,
        folder: RuntimeFolder,
        brokers: Sequence[SupervisedBroker],
        config: ClusterConfig,
        *,
        hung_timeout_ms: int,
        probe_interval_ms: int,
        clock: Clock,
        tails: LogTails,
        spare_command: Sequence[str] = (),
    ) -> None:
        self._folder = folder
        self._records = folder.private(LOCK_NAME)
        self._probe_interval_ms = probe_interval_ms
        self._clock = clock
        self._time = AttendedTime(pause_ms_max=_PAUSE_MS_MAX)
        self._tails = tails
        self._spare_command = spare_command if config.spare_broker else ()
        self._spare: Spare | None = None
        self._spare_due_ns = 0
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._is_all_stopped = asyncio.Event()
        self._waves: list[list[_Ward]] | None = None
        self._wards = [
            _Ward(broker, BrokerWatch(config, hung_timeout_ms=hung_timeout_ms))
            for broker in brokers
        ]
        names = {broker.broker_name for broker in brokers if broker.broker_name}
        self._elections = {name: Election() for name in sorted(names)}
        self._telling: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Adopt the brokers that run, start the others, and watch them all."""
        self._tell_strangers()
        for ward in self._wards:
            self._adopt(ward)
        self._tick()

    async def stop(self) -> None:
        """Stop slaves, then masters: ask each to end, and kill it after its time.

        Waits until all have ended.
        """
        slaves = [ward for ward in self._wards if ward.broker.broker_id]
        masters = [ward for ward in self._wards if not ward.broker.broker_id]
        for ward in self._wards:
            if ward.process is None:
                self._tell_left(ward)
                ward.watch.stop(self._now_ns())
        self._waves = [wave for wave in (slaves, masters) if wave]
        self._drop_spare()
        self._stop_next()
        await self._is_all_stopped.wait()

    def close(self) -> None:
        """Watch no more; brokers that run go on. Twice does nothing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._drop_spare()
        for ward in self._wards:
            if ward.probe is not None:
                ward.probe.stop()
            if ward.process is not None:
                self._loop.remove_reader(ward.process.pidfd)
                os.close(ward.process.pidfd)
                if ward.process.child is not None:
                    ward.process.child.returncode = 0  # left running on purpose
                ward.process = None

    def status(self) -> Iterator[Mapping[str, object]]:
        """How each broker is, as JSON objects."""
        for ward in self._wards:
            process = ward.process
            yield {
                "name": ward.broker.name,
                "socketName": ward.broker.socket_name,
                "phase": ward.watch.phase,
                "restartCount": ward.watch.restart_count,
                "pid": process.incarnation.pid if process else None,
                "startTime": process.incarnation.start_time if process else None,
                "isAdopted": process is not None and process.child is None,
                "problem": ward.probe.problem if ward.probe else None,
            }

    # ---- deciding ----------------------------------------------------------------------------

    def _now_ns(self) -> int:
        return self._time.look(self._clock.monotonic_ns())

    def _tick(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(TICK_INTERVAL_S, self._tick)
        for ward in self._wards:
            self._act(ward)
        self._elect()
        self._keep_spare()

    def _act(self, ward: _Ward) -> None:
        action = ward.watch.tick(self._now_ns())
        match action:
            case Action.START:
                if not self._is_succession(ward.broker.broker_name):
                    self._start(ward)
            case Action.FENCE:
                problem = (ward.probe and ward.probe.problem) or "no sign of life"
                self._kill(ward, f"it hangs: {problem}")
            case Action.KILL:
                self._kill(ward, "it did not end in time")

    def _elect(self) -> None:
        """See that each replica set has a master, or is about to."""
        if self._waves is not None:
            return
        for name, election in self._elections.items():
            wards = self._members(name)
            members = [_candidate(ward) for ward in wards]
            has_master = any(member.is_alive and member.is_master for member in members)
            chosen = election.decide(
                members,
                now_ns=self._now_ns(),
                has_memory=has_master or self._has_memory(name),  # only looked at if it matters
            )
            if chosen is not None:
                ward = next(ward for ward in wards if ward.broker.broker_id == chosen.broker_id)
                task = in_background(self._tell_master(ward))
                self._telling.add(task)
                task.add_done_callback(self._telling.discard)

    def _members(self, broker_name: str) -> list[_Ward]:
        return [ward for ward in self._wards if ward.broker.broker_name == broker_name]

    def _was_master(self, ward: _Ward, incarnation: Incarnation) -> bool:
        """Whether a life that ended was its set's master, as it said last or as the record says:
        one that became it since the last question has not said so yet.
        """
        if _candidate(ward).is_master:
            return True
        try:
            record = load_record(
                self._folder.private(broker_socket_name(ward.broker.broker_name, 0))
            )
        except ShmqError:
            return False  # told of where memory is looked for
        return record is not None and record.is_of_this_boot and record.owner == incarnation

    def _is_succession(self, broker_name: str) -> bool:
        """Whether a member of a replica set is just taking a dead one's place."""
        election = self._elections.get(broker_name)
        candidates = [_candidate(ward) for ward in self._members(broker_name)]
        return election is not None and election.is_succession(candidates, now_ns=self._now_ns())

    def _has_memory(self, broker_name: str) -> bool:
        """Whether the last master of a broker_name left its memory, and it is still there."""
        try:
            folder = self._folder.private(broker_socket_name(broker_name, 0))
            record = load_record(folder)
            return record is not None and has_memory(folder, record)
        except ShmqError as error:
            _log.error("broker=%s: %s", broker_name, error)
            return False

    async def _tell_master(self, ward: _Ward) -> None:
        """Tell a member to become master."""
        broker = ward.broker
        _log.warning("elected broker=%s broker_id=%d", broker.name, broker.broker_id)
        command = Command(
            RequestCode.NOTIFY_BROKER_ROLE_CHANGED, {"masterBrokerId": broker.broker_id}
        )
        try:
            client = await AsyncClient.connect(
                self._folder, broker.socket_name, role="supervisor", timeout_s=_TELL_TIMEOUT_S
            )
            try:
                await client.call(command, timeout_s=_TELL_TIMEOUT_S)
            finally:
                client.close()
        except (ShmqError, OSError) as error:
            _log.warning("not told to become master broker=%s: %s", broker.name, error)
            self._elections[broker.broker_name].master_ended()  # another may be told at once

    def _kill(self, ward: _Ward, reason: str) -> None:
        process = ward.process
        if process is None:
            return
        _log.warning(
            "kill broker=%s pid=%d reason=%s", ward.broker.name, process.incarnation.pid, reason
        )
        self._signal(process, signal.SIGKILL)

    def _signal(self, process: _Process, number: signal.Signals) -> None:
        try:
            signal.pidfd_send_signal(process.pidfd, number)
        except ProcessLookupError:
            pass  # it has ended; the pidfd is readable
        except PermissionError as error:
            _log.error("signal pid=%d: %s", process.incarnation.pid, error)

    def _stop_next(self) -> None:
        """Stop the next wave, once nobody of the last one runs any more."""
        waves = self._waves
        while waves:
            wave = waves[0]
            for ward in wave:
                if ward.watch.stop(self._now_ns()) and ward.process is not None:
                    _log.info(
                        "stop broker=%s pid=%d", ward.broker.name, ward.process.incarnation.pid
                    )
                    self._signal(ward.process, signal.SIGTERM)
                    self._signal(ward.process, signal.SIGCONT)  # a stopped one hears nothing else
            if any(ward.process is not None for ward in wave):
                return
            waves.pop(0)
        if waves is not None:
            self._is_all_stopped.set()

    # ---- starting ----------------------------------------------------------------------------

    def _start(self, ward: _Ward) -> None:
        try:
            lock_fd = self._try_lock(ward)
            if lock_fd is None:
                self._adopt_holder(ward)
                return
            with _closing(lock_fd):
                process = self._spawn(ward, lock_fd)
        except OSError as error:
            _log.error("start broker=%s: %s", ward.broker.name, error)
            ward.watch.ended(self._now_ns())
            self._tell_next(ward)
            return
        self._spare_due_ns = self._now_ns() + _SPARE_DELAY_NS
        ward.watch.started(self._now_ns())
        _log.info("started broker=%s pid=%d", ward.broker.name, process.incarnation.pid)
        self._watch(ward, process)
        self._write_record(ward, process.incarnation)

    def _spawn(self, ward: _Ward, lock_fd: int) -> _Process:
        with _closing(self._open_log(ward)) as log_fd:
            child = self._take_spare(ward, lock_fd, log_fd) or subprocess.Popen(
                ward.broker.command,
                stdin=subprocess.DEVNULL,
                stdout=log_fd,
                stderr=log_fd,
                pass_fds=(lock_fd,),
                start_new_session=True,
                env=_environment(),
            )
        try:
            # Ours until it is waited for: the pid cannot be another's.
            incarnation = Incarnation.of(child.pid)
            assert incarnation is not None, "an unreaped child has a /proc entry"
            return _Process(incarnation, os.pidfd_open(child.pid), child)
        except OSError:
            child.kill()
            child.wait()
            raise

    def _take_spare(
        self, ward: _Ward, lock_fd: int, log_fd: int
    ) -> "subprocess.Popen[bytes] | None":
        """The spare as this broker, if there is one and it may be."""
        spare = self._spare
        if spare is None or not ward.was_killed or not ward.broker.arguments:
            return None
        self._spare = None
        return spare.become(ward.broker.arguments, lock_fd=lock_fd, log_fd=log_fd)

    def _keep_spare(self) -> None:
        """Have a spare ready, made while nothing else is going on."""
        if self._spare is not None or not self._spare_command or self._waves is not None:
            return
        if self._now_ns() < self._spare_due_ns or not all(
            ward.watch.phase in (Phase.RUNNING, Phase.GIVEN_UP) for ward in self._wards
        ):
            return
        try:
            self._spare = Spare(self._spare_command, _environment())
        except OSError as error:
            _log.warning("no spare broker: %s", error)
            self._spare_due_ns = self._now_ns() + _SPARE_RETRY_NS

    def _drop_spare(self) -> None:
        if self._spare is not None:
            self._spare.stop()
            self._spare = None

    def _try_lock(self, ward: _Ward) -> int | None:
        path = self._path(ward.broker.name, "lock")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd

    def _open_log(self, ward: _Ward) -> int:
        """The file for a new process's lines; what the last one printed is kept as `.log.1`."""
        path = self._path(ward.broker.name, "log")
        with contextlib.suppress(FileNotFoundError):
            path.replace(path.with_suffix(".log.1"))
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(path, flags, 0o600)
        self._tails.add(ward.broker.name, LogTail(path, ward.broker.name, from_end=False))
        return fd

    def _watch(self, ward: _Ward, process: _Process) -> None:
        ward.process = process
        self._loop.add_reader(process.pidfd, self._ended, ward)
        ward.probe = Probe(
            self._folder,
            ward.broker.socket_name,
            process.incarnation,
            interval_ms=self._probe_interval_ms,
            on_sign=lambda: self._heard(ward),
        )
        ward.probe.start()

    def _heard(self, ward: _Ward) -> None:
        ward.answered_ns = self._now_ns()
        ward.watch.heard(ward.answered_ns)

    def _ended(self, ward: _Ward) -> None:
        process, ward.process = ward.process, None
        if process is None:
            return
        self._loop.remove_reader(process.pidfd)
        status = None if process.child is None else process.child.wait()  # it has ended: at once
        os.close(process.pidfd)
        election = self._elections.get(ward.broker.broker_name)
        if election is not None and self._was_master(ward, process.incarnation):
            election.master_ended()
        if ward.probe is not None:
            ward.probe.stop()
            ward.probe = None
        ward.was_killed = status is None or status < 0
        was_stopping = ward.watch.phase is Phase.STOPPING
        ward.watch.ended(self._now_ns())
        level = logging.INFO if was_stopping else logging.WARNING
        _log.log(
            level,
            "ended broker=%s pid=%d %s",
            ward.broker.name, process.incarnation.pid, _status_text(status),
        )  # fmt: skip
        self._elect()
        self._tell_next(ward)
        self._path(ward.broker.name, "json").unlink(missing_ok=True)
        self._stop_next()

    def _tell_next(self, ward: _Ward) -> None:
        """After an end: when it is started again, or that it is not."""
        if ward.watch.phase is Phase.GIVEN_UP:
            _log.error(
                "gave up broker=%s: it ended too often (crash_count_max within crash_window_ms);"
                " see its log %s, then restart this NameServer, which leaves the others running",
                ward.broker.name, self._path(ward.broker.name, "log"),
            )  # fmt: skip
        delay_ms = ward.watch.start_in_ms
        if delay_ms is not None:
            _log.info("restart broker=%s in_ms=%d", ward.broker.name, delay_ms)
            self._loop.call_later((delay_ms + 1) / 1e3, self._tick)

    def _tell_left(self, ward: _Ward) -> None:
        """The cluster stops while this broker is dead: nobody flushes what it had in memory."""
        if ward.was_killed:
            _log.warning(
                "broker=%s is not running: its shared memory stays for its next start, which finds"
                " what was not on disk yet; to give that up: shmq shm clean --store FOLDER",
                ward.broker.name,
            )

    # ---- adopting ----------------------------------------------------------------------------

    def _adopt(self, ward: _Ward) -> bool:
        """Watch the process that the record names, if it is still that process."""
        incarnation = self._read_record(ward)
        return incarnation is not None and self._adopt_life(ward, incarnation)

    def _adopt_holder(self, ward: _Ward) -> None:
        """The broker's lock is held: watch the process that holds it, if it can be seen."""
        for pid in _holders(os.stat(self._path(ward.broker.name, "lock"))):
            incarnation = Incarnation.of(pid)
            if incarnation is not None and self._adopt_life(ward, incarnation):
                self._write_record(ward, incarnation)
                ward.is_hidden = False
                return
        if not ward.is_hidden:
            ward.is_hidden = True
            _log.error(
                "broker=%s runs in a process that we cannot see (another pid namespace?): it is"
                " neither watched nor started a second time",
                ward.broker.name,
            )
        ward.watch.postpone(self._now_ns())

    def _adopt_life(self, ward: _Ward, incarnation: Incarnation) -> bool:
        try:
            pidfd = os.pidfd_open(incarnation.pid)
        except ProcessLookupError:
            return False
        # Held by the pidfd, the pid is nobody else's from here on.
        if has_ended(pidfd) or Incarnation.of(incarnation.pid) != incarnation:
            os.close(pidfd)
            return False
        ward.watch.started(self._now_ns(), is_adopted=True)
        _log.info("adopted broker=%s pid=%d", ward.broker.name, incarnation.pid)
        name = ward.broker.name
        with contextlib.suppress(FileNotFoundError):
            self._tails.add(name, LogTail(self._path(name, "log"), name, from_end=True))
        self._watch(ward, _Process(incarnation, pidfd, None))
        return True

    def _tell_strangers(self) -> None:
        """Say which brokers were started after a cluster file that had them, and run on."""
        known = {ward.broker.name for ward in self._wards}
        for path in self._records.glob("*.json"):
            if path.stem not in known:
                _log.warning(
                    "broker=%s is not in the cluster file any more; if it runs (%s), it is not"
                    " supervised", path.stem, path,
                )  # fmt: skip

    def _write_record(self, ward: _Ward, incarnation: Incarnation) -> None:
        record = {
            "pid": incarnation.pid,
            "startTime": incarnation.start_time,
            "bootId": boot_id().hex(),
        }
        path = self._path(ward.broker.name, "json")
        temporary = path.with_suffix(".json.tmp")
        try:
            temporary.write_bytes(orjson.dumps(record))
            temporary.replace(path)
        except OSError as error:  # a successor finds it by its lock
            _log.warning("write %s: %s", path, error)

    def _read_record(self, ward: _Ward) -> Incarnation | None:
        try:
            with self._path(ward.broker.name, "json").open("rb") as file:
                record = orjson.loads(file.read(_RECORD_BYTES_MAX))
            pid, start_time = record["pid"], record["startTime"]
            is_ours = record["bootId"] == boot_id().hex()
        except (FileNotFoundError, orjson.JSONDecodeError, KeyError, TypeError):
            return None  # the lock tells the same, if more slowly
        if not (is_ours and isinstance(pid, int) and isinstance(start_time, int) and pid > 0):
            return None
        return Incarnation(pid, start_time)

    def _path(self, name: str, suffix: str) -> Path:
        return self._records / f"{name}.{suffix}"


def _candidate(ward: _Ward) -> Candidate:
    """A member as its last answer shows it."""
    said = ward.probe.said if ward.probe is not None else {}
    role = said.get("role")
    return Candidate(
        broker_id=ward.broker.broker_id,
        is_alive=ward.process is not None,
        is_master=None if role is None else role != BrokerRole.SLAVE,
        log_epoch=_number(said.get("logEpoch")),
        log_end=_number(said.get("committedPosition")),
        answered_ns=ward.answered_ns,
        has_failed=bool(said.get("promotionProblem")),
        is_async_learner=ward.broker.is_async_learner,
    )


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _environment() -> dict[str, str]:
    """Of a process that we start."""
    return {key: value for key, value in os.environ.items() if key not in _OURS_ALONE}


def _holders(wanted: os.stat_result) -> Iterator[int]:
    """The processes that have a file open, as far as we may see."""
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        if is_open_in(int(name), wanted):
            yield int(name)


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[int]:
    """Close a descriptor at the end of the block."""
    try:
        yield fd
    finally:
        os.close(fd)


def _status_text(status: int | None) -> str:
    if status is None:
        return "status unknown: it was adopted"
    if status < 0:
        return f"signal={signal.Signals(-status).name}"
    return f"exit={status}"
