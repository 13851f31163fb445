"""Real, small processes under a supervisor: started, lost, hung, adopted, stopped."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson
import pytest

from shmq.clock import SYSTEM_CLOCK
from shmq.config import ClusterConfig
from shmq.errors import OwnerError
from shmq.namesrv.log_tail import LogTails
from shmq.namesrv.supervisor import LOCK_NAME, SupervisedBroker, Supervisor
from shmq.remoting.loop_thread import LoopThread
from shmq.remoting.runtime_folder import RuntimeFolder, broker_socket_name
from shmq.shm.incarnation import Incarnation, boot_id
from tests.unit.namesrv.conftest import until
from tests.unit.remoting.conftest import fd_count

TINY = (sys.executable, "-m", "tests.unit.namesrv.tiny_broker")
FAST = ClusterConfig(restart_delay_ms=1, restart_delay_max_ms=10, crash_count_max=3)


def broker(
    name: str, runtime: Path, *, command: Sequence[str] | None = None, broker_id: int = 0
) -> SupervisedBroker:
    tiny = (*TINY, "--config", "none", "--broker", name, "--runtime", str(runtime))
    return SupervisedBroker(
        name=name,
        socket_name=broker_socket_name(name.removesuffix("-slave"), broker_id),
        broker_id=broker_id,
        command=tuple(command or tiny),
    )


class Supervised:
    """A supervisor on a loop of its own, as a NameServer has it, and what it forwarded."""

    def __init__(
        self,
        runtime: Path,
        brokers: Sequence[SupervisedBroker],
        *,
        config: ClusterConfig = FAST,
        hung_timeout_ms: int = 60_000,
        probe_interval_ms: int = 20,
    ) -> None:
        self.lines: list[str] = []
        self.folder = RuntimeFolder.make(runtime)
        self._loop_thread = LoopThread("supervisor")
        self._loop_thread.start()
        self._tails = LogTails(self.lines.append)
        self._tails.start()
        self._brokers = brokers
        self._settings = (config, hung_timeout_ms, probe_interval_ms)
        try:
            self._supervisor = self._loop_thread.run(self._start(), timeout_s=60)
        except BaseException:
            self._release()
            raise

    async def _start(self) -> Supervisor:
        config, hung_timeout_ms, probe_interval_ms = self._settings
        supervisor = Supervisor(
            self.folder,
            self._brokers,
            config,
            hung_timeout_ms=hung_timeout_ms,
            probe_interval_ms=probe_interval_ms,
            clock=SYSTEM_CLOCK,
            tails=self._tails,
        )
        supervisor.start()
        return supervisor

    def status(self, name: str) -> dict[str, object]:
        async def ask() -> list[dict[str, object]]:
            return [dict(item) for item in self._supervisor.status()]

        found = self._loop_thread.run(ask(), timeout_s=60)
        return next(item for item in found if item["name"] == name)

    def pid(self, name: str) -> int:
        pid = self.status(name)["pid"]
        assert isinstance(pid, int)
        return pid

    def until_phase(self, name: str, phase: str) -> None:
        until(lambda: self.status(name)["phase"] == phase)

    def stop(self) -> None:
        """In order, as on SIGTERM."""
        self._loop_thread.run(self._supervisor.stop(), timeout_s=60)

    def vanish(self) -> None:
        """End without touching a broker, as if killed."""

        async def close() -> None:
            self._supervisor.close()
            await asyncio.sleep(0)

        self._loop_thread.run(close(), timeout_s=60)
        self._release()

    def _release(self) -> None:
        self._loop_thread.stop()
        self._tails.stop()
        self.folder.close()

    def __enter__(self) -> "Supervised":
        return self

    def __exit__(self, *_: object) -> None:
        if self._loop_thread.is_running:
            try:
                self.stop()
            finally:
                self.vanish()


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Path]:
    """A runtime folder; whatever process of it is left after the test is killed, and reaped."""
    path = tmp_path / "run"
    RuntimeFolder.make(path).close()
    before = fd_count()
    yield path
    for pid in _processes_of(path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    assert fd_count() == before


def _processes_of(runtime: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if os.fsencode(runtime) in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def how(runtime: Path, name: str, words: str) -> None:
    (runtime / f"{name}.how").write_text(words)


def has_restarted(supervised: Supervised) -> bool:
    """At least once: a loaded machine may make a broker look hung once more."""
    count = supervised.status("a")["restartCount"]
    return isinstance(count, int) and count >= 1


# ---- starting and restarting ---------------------------------------------------------------------


def test_brokers_are_started_and_what_they_print_is_forwarded(runtime: Path) -> None:
    with Supervised(runtime, [broker("a", runtime), broker("b", runtime)]) as supervised:
        for name in "ab":
            supervised.until_phase(name, "RUNNING")
            assert Incarnation.of(supervised.pid(name)) is not None
        until(lambda: {"[a] broker a is up\n", "[b] broker b is up\n"} <= {*supervised.lines})


def test_killed_broker_is_started_again_and_the_other_is_left_alone(runtime: Path) -> None:
    with Supervised(runtime, [broker("a", runtime), broker("b", runtime)]) as supervised:
        for name in "ab":
            supervised.until_phase(name, "RUNNING")
        first, other = supervised.pid("a"), supervised.pid("b")
        os.kill(first, signal.SIGKILL)
        until(lambda: supervised.status("a")["restartCount"] == 1)
        supervised.until_phase("a", "RUNNING")
        assert supervised.pid("a") != first
        assert supervised.pid("b") == other
        assert (runtime / "supervisor.d/a.log.1").read_text().endswith("broker a is up\n")


def test_crash_loop_is_given_up_loudly_and_the_others_go_on(
    runtime: Path, caplog: pytest.LogCaptureFixture
) -> None:
    how(runtime, "a", "exit")
    with Supervised(runtime, [broker("a", runtime), broker("b", runtime)]) as supervised:
        supervised.until_phase("a", "GIVEN_UP")
        assert supervised.status("a")["restartCount"] == 2
        supervised.until_phase("b", "RUNNING")
        until(lambda: supervised.lines.count("[a] not today\n") == 3)
    assert "ended broker=a" in caplog.text
    assert "exit=3" in caplog.text
    assert [r.levelname for r in caplog.records if "gave up broker=a" in r.message] == ["ERROR"]


def test_command_that_cannot_be_run_is_given_up_as_well(
    runtime: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Supervised(runtime, [broker("a", runtime, command=["/none/x"])]) as supervised:
        supervised.until_phase("a", "GIVEN_UP")
    assert "start broker=a: " in caplog.text
    assert "No such file or directory: '/none/x'" in caplog.text


def test_broker_is_a_session_of_its_own_with_nothing_of_ours(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/none")
    sleeping = broker("a", runtime, command=["sleep", "1000"])
    tiny = broker("b", runtime)
    with Supervised(runtime, [sleeping, tiny]) as supervised:
        until(lambda: "[b] environment: []\n" in supervised.lines)
        pid = supervised.pid("a")
        assert os.getsid(pid) == pid
        links = {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}
        records = runtime / "supervisor.d"
        assert links == {"/dev/null", str(records / "a.log"), str(records / "a.lock")}
        supervised.until_phase("b", "RUNNING")
        os.kill(pid, signal.SIGKILL)  # it would not end on SIGTERM: it inherited no handler


# ---- fencing -------------------------------------------------------------------------------------


def test_stopped_broker_is_fenced_and_started_again(
    runtime: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Supervised(runtime, [broker("a", runtime)], hung_timeout_ms=600) as supervised:
        supervised.until_phase("a", "RUNNING")
        pid = supervised.pid("a")
        os.kill(pid, signal.SIGSTOP)
        until(lambda: has_restarted(supervised))
        assert supervised.pid("a") != pid
        supervised.until_phase("a", "RUNNING")
    assert f"kill broker=a pid={pid} reason=it hangs" in caplog.text
    assert f"ended broker=a pid={pid} signal=SIGKILL" in caplog.text


@pytest.mark.parametrize("words", ["deaf", "unhealthy"])
def test_broker_that_gives_no_good_answer_is_fenced(
    runtime: Path, caplog: pytest.LogCaptureFixture, words: str
) -> None:
    with Supervised(runtime, [broker("a", runtime)], hung_timeout_ms=900) as supervised:
        supervised.until_phase("a", "RUNNING")
        how(runtime, "a", words)
        until(lambda: supervised.status("a")["phase"] != "RUNNING")
        how(runtime, "a", "")
        until(lambda: has_restarted(supervised))
        supervised.until_phase("a", "RUNNING")
    assert "reason=it hangs: " in caplog.text
    assert ("it says: stuck" in caplog.text) == (words == "unhealthy")


def test_answer_of_another_process_is_no_sign_of_life(runtime: Path) -> None:
    """Something else listens at the broker's socket: the broker itself stays silent."""
    tiny = [*TINY, "--config", "none", "--broker", "a", "--runtime", str(runtime)]
    with contextlib.ExitStack() as after:
        other = after.enter_context(subprocess.Popen(tiny, stdout=subprocess.PIPE, text=True))
        after.callback(other.kill)
        assert other.stdout is not None
        while "is up" not in other.stdout.readline():
            pass
        sleeping = broker("a", runtime, command=["sleep", "1000"])
        config = ClusterConfig(start_timeout_ms=800, restart_delay_ms=1)
        with Supervised(runtime, [sleeping], config=config) as supervised:
            until(lambda: "is served by pid" in str(supervised.status("a")["problem"]))
            until(lambda: has_restarted(supervised))
            assert other.poll() is None


# ---- adopting ------------------------------------------------------------------------------------


def test_successor_adopts_what_runs_and_goes_on(runtime: Path) -> None:
    brokers = [broker("a", runtime), broker("b", runtime)]
    first = Supervised(runtime, brokers)
    for name in "ab":
        first.until_phase(name, "RUNNING")
    pids = [first.pid(name) for name in "ab"]
    first.vanish()
    assert all(Incarnation.of(pid) is not None for pid in pids)
    os.kill(pids[1], signal.SIGKILL)
    os.waitpid(pids[1], 0)
    with Supervised(runtime, brokers) as second:
        assert second.pid("a") == pids[0]
        assert second.status("a")["isAdopted"]
        for name in "ab":
            second.until_phase(name, "RUNNING")
        assert second.pid("b") != pids[1]
        assert not second.status("b")["isAdopted"]
        os.kill(pids[0], signal.SIGKILL)
        os.waitpid(pids[0], 0)  # ours here; elsewhere init's
        until(lambda: second.status("a")["restartCount"] == 1)
        second.until_phase("a", "RUNNING")


@pytest.mark.parametrize("record", ["missing", "broken", "of another boot", "of a dead life"])
def test_running_broker_is_found_by_its_lock_where_the_record_fails(
    runtime: Path, record: str
) -> None:
    """Killed between start and record, or the record is damaged: never a second broker."""
    brokers = [broker("a", runtime)]
    first = Supervised(runtime, brokers)
    first.until_phase("a", "RUNNING")
    pid = first.pid("a")
    first.vanish()
    path = runtime / "supervisor.d/a.json"
    data = orjson.loads(path.read_bytes())
    assert data == {
        "pid": pid,
        "startTime": getattr(Incarnation.of(pid), "start_time", None),
        "bootId": boot_id().hex(),
    }
    match record:
        case "missing":
            path.unlink()
        case "broken":
            path.write_bytes(path.read_bytes()[:10])
        case "of another boot":
            path.write_bytes(orjson.dumps({**data, "bootId": "0" * 32}))
        case "of a dead life":
            path.write_bytes(orjson.dumps({**data, "startTime": data["startTime"] + 1}))
    with Supervised(runtime, brokers) as second:
        assert second.pid("a") == pid
        assert orjson.loads(path.read_bytes()) == data
        assert len(_processes_of(runtime)) == 1
        second.stop()
        os.waitpid(pid, 0)


def test_record_of_a_life_that_ended_leads_to_nobody(runtime: Path) -> None:
    """The pid is in use again, by us."""
    records = runtime / "supervisor.d"
    records.mkdir(mode=0o700)
    record = {"pid": os.getpid(), "startTime": 1, "bootId": boot_id().hex()}
    (records / "a.json").write_bytes(orjson.dumps(record))
    with Supervised(runtime, [broker("a", runtime)]) as supervised:
        supervised.until_phase("a", "RUNNING")
        assert supervised.pid("a") != os.getpid()


def test_broker_that_is_not_in_the_file_any_more_is_told_of(
    runtime: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = Supervised(runtime, [broker("a", runtime)])
    first.until_phase("a", "RUNNING")
    pid = first.pid("a")
    first.vanish()
    with Supervised(runtime, [broker("b", runtime)]) as second:
        second.until_phase("b", "RUNNING")
        assert Incarnation.of(pid) is not None
    assert "broker=a is not in the cluster file any more" in caplog.text


def test_folder_of_records_must_be_ours_alone(runtime: Path) -> None:
    (runtime / "supervisor.d").mkdir(mode=0o755)
    with pytest.raises(OwnerError):
        Supervised(runtime, [broker("a", runtime)])


def test_one_supervisor_at_a_time_has_the_lock(runtime: Path) -> None:
    with RuntimeFolder.open(runtime) as folder:
        fd = folder.try_lock(LOCK_NAME)
        assert fd is not None
        assert folder.try_lock(LOCK_NAME) is None
        os.close(fd)


# ---- stopping ------------------------------------------------------------------------------------


def test_slaves_are_stopped_before_masters_and_all_are_asked_first(
    runtime: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="shmq.namesrv")
    brokers = [
        broker("a", runtime),
        broker("a-slave", runtime, broker_id=1),
        broker("b", runtime),
    ]
    with Supervised(runtime, brokers) as supervised:
        for item in brokers:
            supervised.until_phase(item.name, "RUNNING")
        supervised.stop()
        assert {supervised.status(item.name)["phase"] for item in brokers} == {"STOPPED"}
        for item in brokers:
            log = runtime / f"supervisor.d/{item.name}.log"
            assert log.read_text().endswith("asked to end\n")
    told = [r.message.split(" pid")[0] for r in caplog.records if " pid=" in r.message]
    assert told[-6:-2] == [
        "stop broker=a-slave",
        "ended broker=a-slave",
        "stop broker=a",
        "stop broker=b",
    ]
    assert sorted(told[-2:]) == ["ended broker=a", "ended broker=b"]
    assert not list((runtime / "supervisor.d").glob("*.json"))


def test_broker_that_does_not_end_is_killed_after_its_time(
    runtime: Path, caplog: pytest.LogCaptureFixture
) -> None:
    how(runtime, "a", "stubborn")
    config = ClusterConfig(stop_timeout_ms=300)
    with Supervised(runtime, [broker("a", runtime)], config=config) as supervised:
        supervised.until_phase("a", "RUNNING")
        supervised.stop()
        assert supervised.status("a")["phase"] == "STOPPED"
    assert "reason=it did not end in time" in caplog.text


def test_stopped_broker_ends_in_order_with_its_cluster(
    runtime: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Supervised(runtime, [broker("a", runtime)]) as supervised:
        supervised.until_phase("a", "RUNNING")
        os.kill(supervised.pid("a"), signal.SIGSTOP)
        supervised.stop()
        assert (runtime / "supervisor.d/a.log").read_text().endswith("asked to end\n")
    assert "did not end in time" not in caplog.text


def test_stop_while_a_broker_waits_to_be_restarted_starts_it_no_more(runtime: Path) -> None:
    how(runtime, "a", "exit")
    config = ClusterConfig(restart_delay_ms=60_000, restart_delay_max_ms=60_000)
    with Supervised(runtime, [broker("a", runtime)], config=config) as supervised:
        until(lambda: supervised.status("a")["phase"] == "BACKING_OFF")
        supervised.stop()
        assert supervised.status("a")["phase"] == "STOPPED"
        assert not _processes_of(runtime)


def test_stop_tells_whose_memory_nobody_flushes(
    runtime: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = ClusterConfig(restart_delay_ms=60_000, restart_delay_max_ms=60_000)
    with Supervised(runtime, [broker("a", runtime)], config=config) as supervised:
        supervised.until_phase("a", "RUNNING")
        first = supervised.pid("a")
        os.kill(first, signal.SIGKILL)
        until(lambda: supervised.status("a")["pid"] not in (None, first))  # at once
        os.kill(supervised.pid("a"), signal.SIGKILL)
        until(lambda: supervised.status("a")["restartCount"] == 1)
        supervised.until_phase("a", "BACKING_OFF")
        supervised.stop()
    assert "broker=a is not running: its shared memory stays" in caplog.text


def test_silence_is_told_once_it_lasts_and_once(
    runtime: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A member that changes its role is away for a question; one that hangs is worth a line."""
    with Supervised(runtime, [broker("a", runtime)]) as supervised:
        supervised.until_phase("a", "RUNNING")
        how(runtime, "a", "unhealthy")
        until(lambda: "no answer broker=" in caplog.text)
        until(lambda: supervised.status("a")["problem"])
        assert caplog.text.count("no answer broker=") == 1
        how(runtime, "a", "")
