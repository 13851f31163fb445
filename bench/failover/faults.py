"""What happens to a replica set in a round, by its name on the command line."""

import random
import signal
import time
from collections.abc import Callable
from os import kill as signal_pid
from typing import NamedTuple

from remains import Memory
from replica_pair import CONTROLLERS, FLUSH_MS, ReplicaPair, kill, stop, wait_for

TOPIC = "failover"
LAG_MAX_S = 0.02
"""For so long a slave is held before its master's memory goes."""
RARE_FLUSH_MS = 500
"""RocketMQ's own: files are far behind memory, so that what a slave has counts."""
LEADERLESS_MAX_S = 0.3
"""Between the Controller's death and the master's, either first; and before it starts again."""


class Struck(NamedTuple):
    """One fault that has come."""

    at_ns: int
    """Just before."""
    end_ns: int
    """Once it had: until then the old memory took sends."""
    gone: frozenset[tuple[int, int]] = frozenset()
    """Stream and sequence of what was nowhere but in memory that it took away."""


class Fault(NamedTuple):
    """A kind of them."""

    what: str
    strike: Callable[[ReplicaPair, random.Random], Struck]
    """Returns once it has struck."""
    is_supervised: bool = True
    """By a NameServer; else the fault itself starts who died."""
    is_led: bool = False
    """By Controllers; else whoever has the lock of mastership is master."""
    takes_memory: bool = False
    """Shared memory goes with it."""
    flush_ms: int = FLUSH_MS
    """How far behind memory files may be."""
    keeps_confirmed: bool = True
    """With SYNC_MASTER what was told SEND_OK is owed, whatever memory is gone."""


def _kill(pair: ReplicaPair, _random: random.Random) -> Struck:
    return _killed(pair.master().pid)


def _stop(pair: ReplicaPair, _random: random.Random) -> Struck:
    pid = pair.master().pid
    at_ns = time.monotonic_ns()
    stop(pid)
    return _struck(at_ns)


def _upgrade(pair: ReplicaPair, _random: random.Random) -> Struck:
    """The other member becomes master, then the one that waits is restarted."""
    before = pair.master()
    at_ns = time.monotonic_ns()
    pair.become_master(1 - before.broker_id)
    signal_pid(before.pid, signal.SIGTERM)
    return _struck(at_ns)


def _slave(pair: ReplicaPair, _random: random.Random) -> Struck:
    return _killed(pair.slave().pid)


def _any(pair: ReplicaPair, random_: random.Random) -> Struck:
    pids = [pair.master().pid, pair.slave().pid]
    return _killed(*random_.choice((pids[:1], pids[1:], pids)))


def _both(pair: ReplicaPair, random_: random.Random) -> Struck:
    """Either is started first, and is master; the other at once, or once the first one serves."""
    assert pair.started is not None
    struck = _killed(pair.master().pid, pair.slave().pid)
    first, is_alone = random_.randrange(2), random_.random() < 0.5
    pair.started.start(first)
    if first == 1:
        pair.become_master(1)
    elif is_alone:
        wait_for(lambda: pair.member(0), "broker_id 0")
    pair.started.start(1 - first)
    return struck


def _controller(pair: ReplicaPair, random_: random.Random) -> Struck:
    """The active one alone, or all there are; the master before, after or not at all."""
    controllers = pair.controllers
    assert controllers is not None
    names = [wait_for(controllers.active, "an active Controller")]
    if random_.random() < 0.5:
        names = list(CONTROLLERS)
    pid = pair.master().pid
    deaths = [lambda: controllers.kill(names), lambda: kill(pid)]
    deaths = random_.choice((deaths, deaths[::-1], deaths[:1]))
    at_ns = time.monotonic_ns()
    for die in deaths:
        die()
        time.sleep(random_.uniform(0, LEADERLESS_MAX_S))
    struck = _struck(at_ns)
    controllers.restart_dead()
    return struck


def _lock(pair: ReplicaPair, random_: random.Random) -> Struck:
    """Nobody notices; and the next death is as any other."""
    pid = pair.master().pid
    files = [
        pair.runtime / "broker-broker-a-0.d" / name
        for name in ("mastership.lock", "mastership.json")
    ]
    at_ns = time.monotonic_ns()
    for file in files:
        file.unlink()
    wait_for(lambda: all(file.exists() for file in files), "the lock of mastership again")
    return _killed(pid) if random_.random() < 0.5 else _struck(at_ns)


def _wiped(pair: ReplicaPair, random_: random.Random) -> Struck:
    """The master's memory, behind which its slave lags a little."""
    master, slave = pair.master(), pair.slave()
    stop(slave.pid)
    time.sleep(random_.uniform(0, LAG_MAX_S))
    at_ns = time.monotonic_ns()
    stop(master.pid)
    memory = Memory(pair.store(master.broker_id))
    copied = Memory(pair.store(slave.broker_id)).committed_position
    gone = _only_in(memory, max(memory.flushed_position, copied))
    memory.wipe()
    kill(master.pid)
    signal_pid(slave.pid, signal.SIGCONT)
    return _struck(at_ns, gone)


def _all_wiped(pair: ReplicaPair, _random: random.Random) -> Struck:
    """As by the host's restart."""
    master, slave = pair.master(), pair.slave()
    at_ns = time.monotonic_ns()
    for one in (slave, master):
        stop(one.pid)
    memories = [Memory(pair.store(one.broker_id)) for one in (master, slave)]
    gone = _only_in(memories[0], max(memory.flushed_position for memory in memories))
    for memory in memories:
        memory.wipe()
    kill(master.pid, slave.pid)
    return _struck(at_ns, gone)


def _killed(*pids: int) -> Struck:
    at_ns = time.monotonic_ns()
    kill(*pids)
    return _struck(at_ns)


def _struck(at_ns: int, gone: frozenset[tuple[int, int]] = frozenset()) -> Struck:
    return Struck(at_ns, time.monotonic_ns(), gone)


def _only_in(memory: Memory, begin: int) -> frozenset[tuple[int, int]]:
    """What this memory alone has: all behind what others have."""
    frames = memory.frames(begin, memory.committed_position, TOPIC)
    return frozenset(frame.key for frame in frames)


FAULTS = {
    "kill": Fault("the master gets SIGKILL", _kill),
    "stop": Fault("the master gets SIGSTOP, and is fenced", _stop),
    "slave": Fault("the slave gets SIGKILL", _slave),
    "any": Fault("the master, the slave or both get SIGKILL", _any),
    "both": Fault("both get SIGKILL, and are started in either order", _both, is_supervised=False),
    "controller": Fault(
        "the active Controller or all of them get SIGKILL, and the master before, after or not",
        _controller,
        is_led=True,
    ),
    "lock": Fault("the lock of mastership is deleted, and half the masters die later", _lock),
    "upgrade": Fault("the other one is made master, and the one that waits restarted", _upgrade),
    "wiped": Fault(
        "the master's memory is wiped as it dies, its slave behind, its files further",
        _wiped,
        takes_memory=True,
        flush_ms=RARE_FLUSH_MS,
    ),
    "all-wiped": Fault(
        "all memory is wiped as both die",
        _all_wiped,
        takes_memory=True,
        keeps_confirmed=False,
        flush_ms=RARE_FLUSH_MS,
    ),
}
