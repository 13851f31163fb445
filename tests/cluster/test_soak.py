"""Load for as long as it is told to, with random deaths of all roles: nothing that was acknowledged
is lost, and once it is over every process holds what it held before, and so does the machine.

The run has eras of equal length, each of which spares some roles, so that of every process one
lives through the deaths of all others for a quarter of the run; after each era all that can be
counted is compared with what it was after the warm-up. SHMQ_SEED replays which deaths came.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shmq
from shmq.shm.reaper import reap
from tests.cluster.controller_process import NAME, ControllerProcess
from tests.cluster.namesrv_process import NamesrvProcess
from tests.cluster.soak_load import CONSUMERS, KEY, SENDERS, SENT, TOPIC
from tests.support.cluster import Program, wait_for
from tests.support.dev_shm import DEV_SHM
from tests.support.exporter import Exporter
from tests.support.footprint import Footprint, differences, names_of, own_memory_kib
from tests.support.invariants import Got, History, Sent
from tests.support.scale import scaled
from tests.support.spools import Spools
from tests.support.standing_still import stop_process

pytestmark = [pytest.mark.cluster, pytest.mark.crash, pytest.mark.timeout(scaled(300, 3600))]

ERA_S = scaled(8, 300)
PAUSE_MAX_S = scaled(1, 4)
"""Between two deaths at most; half of it on average."""
STOP_MAX_S = 0.5
"""How long a stopped process stands still: less than its supervisor allows."""
STOP_SHARE = 0.25
WARM_UP_FILES = 5
"""So many files of the log until memory is used again."""
FILE_BYTES = 1 << 20
SETTLE_MAX_S = 60.0
SAME_COUNT = 20
"""Looks in a row that find the same: what is given back with a delay has been by then."""
MEMORY_KIB_MAX = 16 << 10
"""By how much a process may have grown: see docs/internals/chaos.md."""
POOL_THREADS = 2 * ((os.cpu_count() or 1) + 4)
"""Of a daemon's event loops: they begin when they are wanted and stay (asyncio.to_thread)."""
CACHES = {"commitlog/#": 17, "#.cq": 64, "a#.log.#": 2, "shmq-pool": POOL_THREADS}
"""What there may be any number of, up to a bound: files of the log that are mapped, beside the one
that is just looked up; open ConsumeQueue files; what the brokers before this one printed."""
IN_FLIGHT_MAX = 4 * 1000
"""Messages of a topic's four queues that a member may have taken and not settled."""
BROKERS = ("master", "slave")
DAEMONS = ("namesrv", "controller", "exporter")
CLIENTS = (*SENDERS, *CONSUMERS)
ERAS = (BROKERS, DAEMONS, CLIENTS, ())
"""Whom each spares."""
ROUTE_CONNECTIONS_MAX = 2
"""Of a client to a NameServer: one to ask for routes, made when one is asked for, and one on which
it waits for a change, made when it first has no master to send to. It keeps both."""
SLACK = {(f"{kind} fds", "socket:[#]"): ROUTE_CONNECTIONS_MAX for kind in CLIENTS} | {
    ("namesrv fds", kind): ROUTE_CONNECTIONS_MAX * len(CLIENTS)
    for kind in ("socket:[#]", "anon_inode:[pidfd]")  # it watches who is connected
}
CLUSTER = """
[namesrv]
broker_hung_timeout_ms = 15000
probe_interval_ms = 200
[cluster]
crash_count_max = 100
crash_window_ms = 100
restart_delay_reset_ms = 0
spare_broker = false
"""
MEMBER = """
[broker.a{number}]
cluster_name = "{cluster_name}"
broker_name = "{name}"
broker_id = {number}
store_path = "{folder}/a{number}"
commit_log_file_size_bytes = {file_bytes}
max_message_size_bytes = "256KiB"
hot_segment_count = 3
session_count = 64
ring_bytes = "256KiB"
arena_bytes = "4MiB"
enable_controller_mode = true
"""
LOAD = "from tests.cluster.soak_load import main; main()"


class Ledger:
    """What the clients have noted; each note is read once."""

    def __init__(self, folder: Path) -> None:
        self._sent = Spools(folder, "sent-*", SENT.size)
        self._got = {kind: Spools(folder, f"{kind}-*", KEY.size) for kind in CONSUMERS}
        self.histories = {kind: History() for kind in CONSUMERS}
        sent: dict[bytes, Sent] = {}
        for history in self.histories.values():
            history.sent = sent
        self.sent = sent
        self._owed: dict[str, set[bytes]] = {kind: set() for kind in CONSUMERS}
        self.acked_count = 0

    def read(self) -> None:
        for kind, spools in self._got.items():
            got = self.histories[kind].got
            for data in spools.read():
                for at in range(0, len(data), KEY.size):
                    key = data[at : at + KEY.size]
                    got[key].append(Got(0, 0))  # nobody notes when
                    self._owed[kind].discard(key)
        for data in self._sent.read():
            for number, sequence, is_acked in SENT.iter_unpack(data):
                key = KEY.pack(number, sequence)
                self.sent[key] = Sent(0, 0, bool(is_acked))
                if is_acked:
                    self.acked_count += 1
                    for kind, owed in self._owed.items():
                        if key not in self.histories[kind].got:
                            owed.add(key)

    def owed(self) -> dict[str, int]:
        """How many acknowledged messages each group has not had yet."""
        self.read()
        return {kind: len(owed) for kind, owed in self._owed.items() if owed}


class Everything:
    """All roles, each with one process, and whoever starts the next one when it is dead."""

    def __init__(self, folder: Path, cluster_name: str, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self.cluster_name = cluster_name
        self._stack = stack
        self.runtime = folder / "run"
        self.runtime.mkdir(mode=0o750)
        self._file = folder / "cluster.toml"
        members = [
            MEMBER.format(
                number=number,
                name=NAME,
                cluster_name=cluster_name,
                folder=folder,
                file_bytes=FILE_BYTES,
            )
            for number in range(2)
        ]
        self._file.write_text(CLUSTER + "".join(members), encoding="utf-8")
        self._spool_count = 0
        self.programs: dict[str, Program] = {}
        stack.callback(self._forget)
        self.controller = self._start_controller()
        stack.callback(lambda: self.controller.end())
        self.namesrv = self._start_namesrv()
        stack.callback(lambda: self.namesrv.__exit__())
        self.exporter = Exporter(self.runtime)
        stack.callback(lambda: self.exporter.__exit__())
        self.admin = stack.enter_context(shmq.Admin(self.runtime))
        wait_for(self.is_whole, "a master and its slave in sync")
        with shmq.connect(self.runtime) as client:
            client.create_topic(TOPIC, queues=4)
        stack.callback(self._end_programs)
        self._start_programs(*CLIENTS)

    # ---- who is there ------------------------------------------------------------------------

    def _start_controller(self) -> ControllerProcess:
        started = ControllerProcess(self.folder / "controller", self.runtime)
        return started.wait_for(" ready name=")

    def _start_namesrv(self) -> NamesrvProcess:
        started = NamesrvProcess(self.runtime, "--cluster", str(self._file))
        started.read_on()
        return started

    def _start_programs(self, *kinds: str) -> None:
        for kind in kinds:
            number = self._spool_count
            self._spool_count += 1
            spool = self.folder / f"{'sent' if kind in SENDERS else kind}-{number}"
            self.programs[kind] = Program(LOAD, kind, self.runtime, spool, number)
        for kind in kinds:
            assert self.programs[kind].hear() is True

    def pids(self) -> dict[str, int]:
        """Of all roles; a member that does not answer just now is not there."""
        found = {
            "namesrv": self.namesrv.process.pid,
            "controller": self.controller.process.pid,
            "exporter": self.exporter.process.pid,
        }
        found |= {kind: program.process.pid for kind, program in self.programs.items()}
        members = self.admin.ha_members(NAME)
        found |= {"master" if each.is_master else "slave": each.pid for each in members}
        return found

    def is_whole(self) -> bool:
        """Both members run and have the same."""
        with contextlib.suppress(shmq.ShmqError):
            members = self.admin.ha_members(NAME)
            states = self.admin.sync_states(NAME)
            return (
                [each.is_master for each in members].count(True) == 1
                and len(members) == 2
                and all(each.lag_bytes == 0 for each in members)
                and all(each.flushed_position == each.committed_position for each in members)
                and [each.info.sync_state_set for each in states] == [{0, 1}]
                and all(ward["phase"] == "RUNNING" for ward in self.admin.supervised())
            )
        return False

    def has_rolled(self) -> bool:
        """Whether the log is so long that memory is used again."""
        ends = [each.committed_position for each in self.admin.ha_members(NAME)]
        return max(ends, default=0) > WARM_UP_FILES * FILE_BYTES

    # ---- deaths ------------------------------------------------------------------------------

    def kill(self, role: str, pid: int) -> None:
        """SIGKILL; whoever nobody supervises is started again."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if role == "namesrv":
            self.namesrv.end(signal.SIGKILL)
            self.namesrv = self._start_namesrv()
        elif role == "controller":
            self.controller.kill()
            self.controller = self._start_controller()
        elif role == "exporter":
            self.exporter.kill()
            self.exporter = Exporter(self.runtime)
        elif role in self.programs:
            self.programs[role].__exit__()
            self._start_programs(role)

    def strike(self, spared: tuple[str, ...], rng: random.Random) -> list[str]:
        """One death or halt of somebody; what it was, nothing if that one was dead already."""
        roles = [role for role in (*BROKERS, *DAEMONS, *CLIENTS) if role not in spared]
        role = rng.choice(roles)
        stop_s = rng.uniform(0.05, STOP_MAX_S) if rng.random() < STOP_SHARE else 0.0
        pid = self.pids().get(role)
        if pid is None:  # it died a moment ago
            return []
        if not stop_s:
            self.kill(role, pid)
            return [f"{role} killed"]
        try:
            stop_process(pid)
            time.sleep(stop_s)
        except OSError:
            return []
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        return [f"{role} stopped"]

    def kill_everybody(self) -> None:
        """Each role once: who is left is a successor, as after the run."""
        for role in (*BROKERS, *DAEMONS):
            wait_for(lambda role=role: role in self.pids(), role)
            self.kill(role, self.pids()[role])
            wait_for(self.is_whole, "a master and its slave in sync")
        for program in self.programs.values():
            program.__exit__()
        self._start_programs(*CLIENTS)

    # ---- load --------------------------------------------------------------------------------

    def pause(self) -> None:
        """All that is under way is settled."""
        for kind in SENDERS:
            self.programs[kind].say("pause")
        for kind in SENDERS:
            assert self.programs[kind].hear() is True

    def go_on(self) -> None:
        for kind in SENDERS:
            self.programs[kind].say("go")

    # ---- what is held ------------------------------------------------------------------------

    def memory_kib(self) -> Counter[str]:
        """Of each process its own."""
        return Counter({role: own_memory_kib(pid) for role, pid in sorted(self.pids().items())})

    def places(self) -> dict[str, Counter[str]]:
        """What lies in /dev/shm and in the runtime folder."""
        return {
            "/dev/shm": names_of(DEV_SHM, f"shmq.{self.cluster_name}."),
            "runtime folder": names_of(self.runtime),
        }

    # ---- the end -----------------------------------------------------------------------------

    def _end_programs(self) -> None:
        for program in self.programs.values():
            program.__exit__()

    def _forget(self) -> None:
        reap(sorted(self.runtime.glob("broker-*.d")), [], dry_run=False)


class Held:
    """What all processes hold at one time."""

    def __init__(self, everything: Everything) -> None:
        # Between two scrapes it has what the brokers were at the first.
        everything.exporter.page()
        pids = everything.pids()
        self._roles = sorted(pids)
        self._footprints = {role: Footprint.of(pids[role]) for role in self._roles}
        self.places = everything.places()

    @property
    def counts(self) -> dict[str, Counter[str]]:
        found = dict(self.places)
        for role, footprint in self._footprints.items():
            found |= {f"{role} {what}": counts for what, counts in footprint.counts.items()}
        return found


def _settle(everything: Everything, ledger: Ledger) -> None:
    """Nothing is under way any more, and everybody has what he is to have."""
    everything.pause()
    wait_for(everything.is_whole, "a master and its slave in sync")
    _wait_while(ledger.owed, "messages that did not come")


def _wait_while(look: Callable[[], Any], what: str) -> None:
    """Until nothing is found any more; says what was left."""
    end_s = time.monotonic() + SETTLE_MAX_S
    while left := look():
        assert time.monotonic() < end_s, f"{what}: {left}"
        time.sleep(0.05)


def _steady(everything: Everything) -> Held:
    """What is held once it stays the same for a while."""
    last = Held(everything)
    same_count = 0

    def changes() -> list[str]:
        nonlocal last, same_count
        now = Held(everything)
        changed = list(differences(last.counts, now.counts, CACHES, SLACK))
        same_count = 0 if changed else same_count + 1
        last = now
        return changed or [f"the same {same_count} times"] * (same_count < SAME_COUNT)

    _wait_while(changes, "what is held does not stay the same")
    return last


@pytest.mark.slow
def test_all_is_as_before_after_load_and_deaths_of_all_roles(
    tmp_path: Path, cluster_name: str, rng: random.Random, record_property: Any
) -> None:
    with contextlib.ExitStack() as stack:
        everything = Everything(tmp_path, cluster_name, stack)
        ledger = Ledger(tmp_path)
        deaths: Counter[str] = Counter()

        wait_for(everything.has_rolled, "a log longer than memory")
        everything.kill_everybody()
        _settle(everything, ledger)
        before = _steady(everything)
        memory_kib = everything.memory_kib()
        begin_ns = time.monotonic_ns()
        most: Counter[str] = Counter()

        for spared in ERAS:
            everything.go_on()
            end_s = time.monotonic() + ERA_S
            while time.monotonic() < end_s:
                deaths.update(everything.strike(spared, rng))
                with contextlib.suppress(OSError):
                    everything.exporter.page()
                ledger.read()
                time.sleep(rng.uniform(0, PAUSE_MAX_S))
            _settle(everything, ledger)
            _wait_while(
                lambda: list(differences(before.counts, Held(everything).counts, CACHES, SLACK)),
                f"more or less than before, sparing {spared}, after {deaths}",
            )
            grown = everything.memory_kib() - memory_kib
            print(f"sparing {spared}: {deaths}, KiB grown {grown}", flush=True)
            most |= grown

        figures = _figures(ledger, deaths, most, (time.monotonic_ns() - begin_ns) / 1e9)
        record_property("figures", figures)
        print(figures)
        for history in ledger.histories.values():
            history.check_acked_is_delivered()
            history.check_nothing_is_invented()
            history.check_doubled(sum(deaths.values()) * IN_FLIGHT_MAX)
        too_much = {role: kib for role, kib in most.items() if kib > MEMORY_KIB_MAX}
        assert not too_much, f"KiB more than before: {too_much}"


def _figures(ledger: Ledger, deaths: Counter[str], most: Counter[str], took_s: float) -> str:
    doubled = {kind: each.doubled_count() for kind, each in ledger.histories.items()}
    return (
        f"soak: {ledger.acked_count} acknowledged in {took_s:.0f} s, deaths and halts "
        f"{dict(sorted(deaths.items()))}, came twice {doubled}, KiB grown {dict(most)}"
    )
