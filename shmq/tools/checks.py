"""Judges of one thing each, for monitoring that starts a program: `shmq check`.

What lives here: `CHECKS`, functions from a `Reading` and two limits to a `Verdict`, worded as
nagios plugins word theirs. Pure: nothing is read or written here, nothing blocks or fails.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from enum import IntEnum, unique
from typing import TYPE_CHECKING

from shmq.core import core
from shmq.tools.members import masterless, problem_of
from shmq.topic import dlq_topic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from shmq.tools.reading import Broker, Reading

__all__ = ["CHECKS", "Check", "State", "Verdict"]


@unique
class State(IntEnum):
    """What a verdict says; its number is the exit code (nagios plugin guidelines)."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


@dataclass(slots=True)
class Verdict:
    """What one check says."""

    name: str
    """Which check."""
    state: State = State.OK
    """The worst of what was seen."""
    seen: list[str] = field(default_factory=list)
    """What made it so, one text each."""
    figures: dict[str, float] = field(default_factory=dict)
    """What was measured, by a name without blanks: nagios' performance data."""

    def find(self, state: State, seen: str) -> None:
        """Add something that is not well."""
        self.seen.append(seen)
        self.state = max(self.state, state)

    def judge(self, value: float, limits: tuple[float, float], seen: str) -> None:
        """Hold a value against (warning, critical): reached is too much."""
        if value >= limits[1]:
            self.find(State.CRITICAL, seen)
        elif value >= limits[0]:
            self.find(State.WARNING, seen)

    def line(self) -> str:
        """As nagios reads it: `SHMQ LAG WARNING - what | figures`."""
        text = f"SHMQ {self.name.upper()} {self.state.name}"
        if self.seen:
            text += " - " + "; ".join(self.seen).replace("|", "/")
        if self.figures:
            text += " | " + " ".join(f"{key}={value:g}" for key, value in self.figures.items())
        return text

    def to_dict(self) -> dict[str, object]:
        """As --json prints it."""
        return {
            "check": self.name,
            "state": self.state.name,
            "seen": self.seen,
            "figures": self.figures,
        }


@dataclass(frozen=True, slots=True)
class Check:
    """One check, and the limits that it has if nobody says otherwise."""

    judge: Callable[[Reading, Verdict, tuple[float, float]], None]
    limits: tuple[float, float]
    """(warning, critical)."""
    unit: str
    """What the limits are, for people."""
    judges_none: bool = False
    """Whether it has something to say where no broker is, and some are to be."""
    asks_members: bool = False
    """Whether it needs Reading.members: those that stand by have no memory."""
    asks_services: bool = False
    """Whether it needs Reading.answers: whether they answer is in no memory."""
    is_of_machine: bool = False
    """Whether it judges what is there without any broker, and may be why none can start."""

    def run(self, name: str, reading: Reading, limits: tuple[float, float]) -> Verdict:
        """Judge what was read."""
        verdict = Verdict(name)
        is_something_there = (
            reading.by_broker("shmq_broker_up")
            or self.is_of_machine
            or (self.judges_none and reading.wanted_brokers)
            or (self.asks_members and reading.members)
            or (self.asks_services and reading.by("shmq_service_up", "service"))
        )
        if not is_something_there:
            what = "NameServer or Controller" if self.asks_services else "broker's memory"
            nothing = f"no {what} is in {reading.runtime}: start one, or name its folder (-n)"
            for problem in reading.problems or [nothing]:
                verdict.find(State.UNKNOWN, problem)
            return verdict
        self.judge(reading, verdict, limits)
        for problem in reading.problems if verdict.state is State.OK else ():
            verdict.find(State.UNKNOWN, problem)
        return verdict


def _name(broker: Broker) -> str:
    return f"{broker[1]}:{broker[2]}"


def _most(values: Iterable[float]) -> float:
    return max(values, default=0.0)


def _brokers(reading: Reading, verdict: Verdict, limits: tuple[float, float]) -> None:
    up = reading.by_broker("shmq_broker_up")
    if len(up) < reading.wanted_brokers:  # who was stopped, or cannot start, has left no memory
        there = ", ".join(map(_name, up)) or "none"
        verdict.find(
            State.CRITICAL, f"{len(up)} of {reading.wanted_brokers} brokers are there: {there}"
        )
    for broker, is_up in up.items():
        if not is_up:
            verdict.find(State.CRITICAL, f"{_name(broker)} has died; its memory waits for it")
    ages = reading.by_broker("shmq_heartbeat_age_seconds")
    for broker, age_s in ages.items():
        verdict.judge(age_s, limits, f"{_name(broker)} has not gone round for {age_s:.1f} s")
    for broker, has_problem in reading.by_broker("shmq_problem").items():
        if has_problem:
            verdict.find(State.WARNING, f"{_name(broker)} has a problem: shmq broker list")
    for labels, _ in reading.of("shmq_store_waits"):
        broker = labels["cluster"], labels["broker"], labels["broker_id"]
        if broker in _masters(reading):
            _, why = core.STATUS.get(labels["status"], (0, labels["status"]))
            verdict.find(State.CRITICAL, f"{_name(broker)} takes no more messages: {why}")
    verdict.figures |= {"brokers": sum(up.values()), "heartbeat_age": _most(ages.values())}


def _masters(reading: Reading) -> set[Broker]:
    """Those that are alive and master."""
    found: set[Broker] = set()
    for labels, value in reading.of("shmq_ha_role"):
        if value and labels["role"] == "master":
            found.add((labels["cluster"], labels["broker"], labels["broker_id"]))
    return found


def _lag(reading: Reading, verdict: Verdict, limits: tuple[float, float]) -> None:
    messages = reading.by("shmq_consumer_lag_messages", "group", "topic")
    oldest: dict[tuple[str, str], float] = {}
    for labels, seconds in reading.of("shmq_consumer_lag_seconds"):
        key = labels["group"], labels["topic"]
        oldest[key] = max(oldest.get(key, 0.0), seconds)
    for (group, topic), seconds in sorted(oldest.items(), key=lambda item: -item[1]):
        count = messages.get((group, topic), 0)
        verdict.judge(
            seconds, limits, f"{group} is {seconds:.0f} s behind in {topic} ({count:.0f} messages)"
        )
    verdict.figures |= {"lag": _most(oldest.values()), "messages": sum(messages.values())}


def _disk(reading: Reading, verdict: Verdict, limits: tuple[float, float]) -> None:
    size = reading.by_broker("shmq_store_disk_size_bytes")
    free = reading.by_broker("shmq_store_disk_free_bytes")
    used = _used_percent(size, free)
    for broker, percent in used.items():
        verdict.judge(percent, limits, f"the disk of {_name(broker)} is {percent:.0f} % full")
    files = _used_percent(
        reading.by_broker("shmq_store_disk_size_files"),
        reading.by_broker("shmq_store_disk_free_files"),
    )
    for broker, percent in files.items():
        seen = f"the disk of {_name(broker)} has {percent:.0f} % of its inodes in use"
        verdict.judge(percent, limits, seen)
    for broker, is_read_only in reading.by_broker("shmq_store_read_only").items():
        if is_read_only:
            verdict.find(State.CRITICAL, f"the disk of {_name(broker)} is read-only")
    verdict.figures |= {
        "used_percent": _most(used.values()),
        "used_inodes_percent": _most(files.values()),
    }


def _used_percent(
    size: Mapping[Broker, float], free: Mapping[Broker, float]
) -> dict[Broker, float]:
    return {broker: 100 * (1 - free[broker] / size[broker]) for broker in size if size[broker]}


def _memory(reading: Reading, verdict: Verdict, limits: tuple[float, float]) -> None:
    used = _used_percent(
        reading.by_broker("shmq_memory_size_bytes"), reading.by_broker("shmq_memory_free_bytes")
    )
    for broker, percent in used.items():
        verdict.judge(percent, limits, f"the memory of {_name(broker)} is {percent:.0f} % in use")
    verdict.figures |= {"used_percent": _most(used.values())}


def _files(reading: Reading, verdict: Verdict, limits: tuple[float, float]) -> None:
    counts = reading.by_broker("shmq_open_files")
    used = {}
    for broker, limit in reading.by_broker("shmq_open_files_limit").items():
        used[broker] = percent = 100 * counts[broker] / limit
        seen = f"{_name(broker)} has {counts[broker]:.0f} of {limit:.0f} files open"
        verdict.judge(percent, limits, seen)
    verdict.figures |= {"used_percent": _most(used.values()), "open": _most(counts.values())}


def _shm(reading: Reading, verdict: Verdict, limits: tuple[float, float]) -> None:
    percent = reading.dev_shm.used_ratio
    verdict.judge(percent, limits, f"/dev/shm is {percent} % full")
    verdict.figures |= {"used_percent": percent, "free_bytes": reading.dev_shm.free_bytes}


def _ha(reading: Reading, verdict: Verdict, limits: tuple[float, float]) -> None:
    masters = _masters(reading)
    led = {broker[:2] for broker in masters}
    for replica_set in sorted({broker[:2] for broker in reading.by_broker("shmq_broker_up")}):
        if replica_set not in led:
            verdict.find(State.CRITICAL, f"{replica_set[1]} has no master")
    seen = {name for _, name, _ in reading.by_broker("shmq_broker_up")}
    for name in masterless(reading.members).keys() - seen:
        verdict.find(State.CRITICAL, f"{name} has no master")
    for member in reading.members:
        if not member.is_master and problem_of(member):
            who = f"{member.broker_name}:{member.broker_id}"
            verdict.find(State.WARNING, f"{who}: {problem_of(member)}")
    behind: defaultdict[str, float] = defaultdict(float)
    for labels, size in reading.of("shmq_ha_replica_lag_bytes"):
        behind[f"{labels['broker']}:{labels['replica']}"] += size
    for replica, size in behind.items():
        verdict.judge(size, limits, f"{replica} is {size:.0f} bytes behind its master")
    for labels, is_in_sync in reading.of("shmq_ha_replica_in_sync"):
        if not is_in_sync:
            verdict.find(State.WARNING, f"{labels['broker']}:{labels['replica']} is not in sync")
    verdict.figures |= {"masters": len(masters), "lag_bytes": _most(behind.values())}


def _services(reading: Reading, verdict: Verdict, limits: tuple[float, float]) -> None:
    up = {name: is_up for (name,), is_up in reading.by("shmq_service_up", "service").items()}
    for name, is_up in up.items():
        if not is_up:
            verdict.find(State.CRITICAL, f"{name} has died")
    if not any(name.startswith("namesrv-") for name in up):
        verdict.find(State.CRITICAL, "no NameServer is there")
    for name, seconds in reading.answers.items():
        seen = f"{name} has not answered" if seconds == math.inf else f"{name} took {seconds:.2f} s"
        verdict.judge(seconds, limits, seen)
    times = [seconds for seconds in reading.answers.values() if seconds < math.inf]
    verdict.figures |= {"services": sum(up.values()), "answer": _most(times)}


def _dlq(reading: Reading, verdict: Verdict, limits: tuple[float, float]) -> None:
    total = 0.0
    for (group,), count in sorted(reading.by("shmq_dead_letters_waiting", "group").items()):
        total += count
        seen = f"{count:.0f} in {dlq_topic(group)}: shmq dlq ls {group}, shmq dlq replay {group}"
        verdict.judge(count, limits, seen)
    verdict.figures |= {"messages": total}


CHECKS: dict[str, Check] = {
    "broker": Check(_brokers, (15.0, 30.0), "seconds since its control thread went round", True),
    "services": Check(
        _services,
        (0.5, 2.0),
        "seconds until a NameServer or Controller answers",
        judges_none=True,
        asks_services=True,
    ),
    "lag": Check(_lag, (60.0, 300.0), "seconds that the oldest message of a group waits"),
    "disk": Check(_disk, (80.0, 90.0), "per cent used of a store's disk"),
    "shm": Check(_shm, (80.0, 90.0), "per cent used of /dev/shm", is_of_machine=True),
    "memory": Check(_memory, (85.0, 95.0), "per cent used of a broker's memory limit"),
    "files": Check(_files, (80.0, 90.0), "per cent of the files that a broker may open"),
    "ha": Check(
        _ha, (float(64 << 20), float(256 << 20)), "bytes that a slave is behind", asks_members=True
    ),
    "dlq": Check(_dlq, (1.0, 100.0), "dead letters of a group, not replayed"),
}
"""By name, in the order of `shmq check all`."""
