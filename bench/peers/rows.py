"""What is measured of each peer: each row is written once, for all of them.

A row gets the life of one peer and says its figures; what a peer cannot do it is not asked for.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from measuring import SIZES, percentile
from session import Flow, Line, Session

SHAPES: dict[str, dict[str, int]] = {
    "1:1": {},
    "4:4": {"topics": 4},
    "group of 4": {"consumers": 4},
}
"""One producer and one consumer; four such pairs; one producer, and four that share its topic."""
SHAPED = "100B"
"""The size that has the other shapes, too."""
RATES = (1_000, 10_000)
PERCENTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
FLYING = (1, 64)
LATENCY_BODY = 100
AGES_MAX = 200_000
"""Messages of one run whose latency is taken."""
MIB = 1 << 20
_PACED_S = 0.3
_PACED_MIN = 50
"""Of a run that warms a pace up: seconds, and messages at least."""
_STANDS_STILL = 0.9
"""A latency that has not come below this part of the best one yet."""
_TRIES = 12
"""Of finding out how many messages a run should have."""


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    rounds: int
    budget_s: float
    """A turn after the first round that would not end in it is left out, and any row that would
    begin after it."""
    turn_s: float
    """No row of a turn begins later, so that a slow peer leaves some for the others."""
    warm_up: float
    """Of the time that a peer wants for it."""
    sizes: tuple[str, ...]
    """Of one producer and one consumer."""
    shapes: tuple[str, ...]
    """The others."""
    has_large_batches: bool
    """Whether other sizes than SHAPED are sent in batches, too."""
    burst_s: float
    burst_bytes: int
    sustained_s: float
    """0: left out."""
    sustained_bytes: int
    latency_s: float
    groups: tuple[int, ...]
    loaded_bytes: int
    backlog_bytes: int


QUICK = Scale(
    rounds=3,
    budget_s=165.0,
    turn_s=30.0,
    warm_up=0.5,
    sizes=("100B", "64KiB"),
    shapes=("group of 4",),
    has_large_batches=False,
    burst_s=0.25,
    burst_bytes=64 * MIB,
    sustained_s=0.0,
    sustained_bytes=0,
    latency_s=0.4,
    groups=(4,),
    loaded_bytes=4 * MIB,
    backlog_bytes=8 * MIB,
)
FULL = Scale(
    rounds=5,
    budget_s=math.inf,
    turn_s=math.inf,
    warm_up=1.0,
    sizes=("100B", "16B", "1KiB", "64KiB", "1MiB"),
    shapes=("4:4", "group of 4"),
    has_large_batches=True,
    burst_s=1.0,
    burst_bytes=256 * MIB,
    sustained_s=8.0,
    sustained_bytes=1024 * MIB,
    latency_s=5.0,
    groups=(1, 4, 16),
    loaded_bytes=64 * MIB,
    backlog_bytes=64 * MIB,
)


@dataclass(frozen=True)
class Value:
    """One figure of one run."""

    label: str
    value: float
    unit: str
    is_more_better: bool
    notes: dict[str, float] = field(default_factory=dict)
    """What else is to be known of it."""


@dataclass
class Life:
    """A peer that runs, and what earlier rounds found out about it."""

    session: Session
    scale: Scale
    counts: dict[str, int]
    """Messages of a run, by label: each round has as many."""
    _shape: str = ""
    _line: Line | None = None
    _is_warm: bool = False

    def line(self, shape: str, **numbers: int) -> Line:
        """The producers and consumers of this shape; kept while the same one is asked for."""
        if self._line is None or shape != self._shape:
            self._line, self._shape = self.session.line(**numbers), shape
        return self._line

    def pair(self) -> Line:
        return self.line("1:1")

    def burst(self, line: Line, label: str, verb: str, size: int, **order: Any) -> Flow:
        """As many messages as take about so long as a burst should."""
        scale = self.scale
        most = max(16, scale.burst_bytes // size)
        return self._timed(line, label, verb, size, scale.burst_s, most, order)

    def sustained(self, line: Line, label: str, verb: str, size: int) -> Flow:
        scale = self.scale
        most = max(16, scale.sustained_bytes // size)
        return self._timed(line, label, verb, size, scale.sustained_s, most, {})

    def paced(self, line: Line, count: int, rate: float) -> Flow:
        """As many messages, so many a second."""
        interval_ns = max(1, int(1e9 / rate))
        return self.session.flow(line, "pace", LATENCY_BODY, count, interval_ns=interval_ns)

    def warm_up_paced(self, line: Line, rates: list[float], most: float) -> None:
        """For as long as the peer wants, or until no rate's latency becomes less: what is warm for
        a burst is not for a pace.

        Args:
            line: whose peer.
            rates: messages a second.
            most: what it can take, about.
        """
        seconds = self.session.peer.WARM_UP_S * self.scale.warm_up
        begin = time.perf_counter()
        best: dict[float, float] = {}
        is_better = True
        while is_better and time.perf_counter() - begin < seconds:
            is_better = False
            for rate in rates:
                count = max(_PACED_MIN, min(AGES_MAX, int(min(rate, most) * _PACED_S)))
                age_ns = percentile(self.paced(line, count, rate).ages_ns, 0.5)
                is_better |= age_ns < best.get(rate, math.inf) * _STANDS_STILL
                best[rate] = min(age_ns, best.get(rate, age_ns))

    def _warm_up(self, line: Line, count: int) -> None:
        """Once in a life: more and more messages, for as long as the peer wants."""
        begin = time.perf_counter()
        seconds = self.session.peer.WARM_UP_S * self.scale.warm_up
        while not self._is_warm and time.perf_counter() - begin < seconds:
            flow = self.session.flow(line, "put", LATENCY_BODY, count)
            count = min(count * 2, flow.count + int(flow.rate))
        self._is_warm = True

    def _timed(
        self,
        line: Line,
        label: str,
        verb: str,
        size: int,
        seconds: float,
        most: int,
        order: dict[str, Any],
    ) -> Flow:
        least = 4 * len(line.producers)
        self._warm_up(line, least)
        count = self.counts.get(label)
        if count is not None:
            self.session.flow(line, verb, size, max(least, count // 20), **order)
            return self.session.flow(line, verb, size, count, **order)
        flow = self.session.flow(line, verb, size, least, **order)
        count = least * 4
        for _ in range(_TRIES):  # the first ones are slow, and say little
            flow = self.session.flow(line, verb, size, count, **order)
            if flow.count >= most or flow.seconds > seconds / 2:
                break
            count = min(most, flow.count * 8, int(flow.rate * seconds) + flow.count)
        self.counts[label] = flow.count
        return flow


def row_start(life: Life) -> Iterator[Value]:
    """From nothing to the first message consumed: servers, a producer, a consumer."""
    session = life.session
    begin = time.perf_counter()
    session.flow(life.pair(), "send", LATENCY_BODY, 1)
    seconds = session.start_seconds + time.perf_counter() - begin
    yield Value("start to first message", seconds, "s", False)


def row_throughput(life: Life) -> Iterator[Value]:
    """One producer and one consumer, until the last message is consumed and completed."""
    for name in life.scale.sizes:
        yield from _throughput(life, "1:1", name)


def row_shapes(life: Life) -> Iterator[Value]:
    """As throughput, of one size alone, in the other shapes."""
    for shape in life.scale.shapes:
        if "consumers" not in SHAPES[shape] or life.session.peer.HAS_GROUPS:
            yield from _throughput(life, shape, SHAPED)


def _throughput(life: Life, shape: str, name: str) -> Iterator[Value]:
    scale = life.scale
    has_batches = name == SHAPED or scale.has_large_batches
    for verb in ("put", "batch") if has_batches else ("put",):
        what = "single" if verb == "put" else "batches"
        label = f"{what} {name} {shape}"
        line = life.line(shape, **SHAPES[shape])
        flow = life.burst(line, label, verb, SIZES[name])
        yield _rate(label, flow)
        yield _cpu(label, flow)
        if scale.sustained_s and shape == "1:1":
            label = f"{label} sustained"
            flow = life.sustained(line, label, verb, SIZES[name])
            yield _rate(label, flow)
            yield _cpu(label, flow)


def row_latency(life: Life) -> Iterator[Value]:
    """From when a message was due until a consumer in another process has it."""
    line = life.pair()
    own = life.burst(line, "latency: own maximum", "put", LATENCY_BODY).rate
    rates = {f"{rate:,}/s": float(rate) for rate in RATES} | {"half its maximum": own / 2}
    life.warm_up_paced(line, list(rates.values()), own)
    os.sync()  # what was sent so far, by any peer, is not written in the middle of this
    for name, rate in rates.items():
        count = max(50, min(AGES_MAX, int(rate * life.scale.latency_s)))
        flow = life.paced(line, count, rate)
        notes = _pacing(flow, rate)
        for label, part in PERCENTILES.items():
            age_us = percentile(flow.ages_ns, part) / 1e3
            yield Value(f"latency {name} {label}", age_us, "us", False, notes)
        yield _cpu(f"latency {name}", flow, notes)


def _pacing(flow: Flow, rate: float) -> dict[str, float]:
    """What came of the schedule: how much of a latency is the bench's own."""
    notes = {
        "asked_per_s": rate,
        "reached_per_s": round(flow.count / flow.send_seconds),
        "pacer_s_per_million": flow.pacer_cpu_seconds * 1e6 / flow.count,
        "pacer_waited_for": len(flow.late_ns) / flow.count,
    }
    if flow.late_ns:  # else each was due before the one before it was sent
        notes["pacer_late_p50_us"] = percentile(flow.late_ns, 0.5) / 1e3
        notes["pacer_late_p99_us"] = percentile(flow.late_ns, 0.99) / 1e3
    return notes


def row_sync(life: Life) -> Iterator[Value]:
    """Each send is waited for; a consumer receives meanwhile."""
    if life.session.peer.IS_DURABLE:
        label = "send, each waited for, 100B"
        yield _rate(label, life.burst(life.pair(), label, "send", SIZES["100B"]))


def row_fsync(life: Life) -> Iterator[Value]:
    """Each send is on disk before it is accepted."""
    for flying in FLYING:
        label = f"send to disk, 1KiB, {flying} in flight"
        yield _rate(label, life.burst(life.pair(), label, "flying", SIZES["1KiB"], flying=flying))


def row_fanout(life: Life) -> Iterator[Value]:
    """Batches to several groups, each of which gets every message, until all have all."""
    for groups in life.scale.groups:
        label = f"batches 100B to {groups} groups"
        line = life.line(label, groups=groups)
        yield _rate(label, life.burst(line, label, "batch", SIZES["100B"]))


def row_memory(life: Life) -> Iterator[Value]:
    """Of the server's processes before anybody comes; of all when some has gone through."""
    scale = life.scale
    if life.session.peer.IS_DURABLE:
        yield Value("memory at rest", life.session.rest_bytes / MIB, "MiB", False)
    count = scale.loaded_bytes // SIZES["1KiB"]
    life.session.flow(life.pair(), "batch", SIZES["1KiB"], count)
    name = f"memory after {scale.loaded_bytes // MIB} MiB more of 1KiB, clients included"
    yield Value(name, life.session.memory_bytes() / MIB, "MiB", False)


def _rate(label: str, flow: Flow) -> Value:
    return Value(label, flow.rate, "messages/s", True, {"messages": flow.count})


def _cpu(label: str, flow: Flow, notes: dict[str, float] | None = None) -> Value:
    seconds = flow.cpu_seconds * 1e6 / flow.count
    return Value(f"processor time, {label}", seconds, "s/million", False, notes or {})


Row = Callable[[Life], Iterator[Value]]
ROWS: dict[str, Row] = {
    "start": row_start,
    "throughput": row_throughput,
    "latency": row_latency,
    "sync": row_sync,
    "memory": row_memory,
    "shapes": row_shapes,
    "fanout": row_fanout,
}
"""In the order in which they are taken in one life: first those of one producer and one consumer,
which are started once for all of them."""
FLUSHED_ROWS: dict[str, Row] = {"fsync": row_fsync}
"""In a life of its own, in which a send is accepted once it is on disk."""
