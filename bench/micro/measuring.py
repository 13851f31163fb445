"""What every row needs: a cluster of its own, repeated runs, and whether others disturbed them."""

import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import shmq
from shmq.client.broker_link import BrokerLink
from shmq.errors import ShmqError
from shmq.remoting.codes import RequestCode

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"16B": 16, "100B": 100, "1KiB": 1 << 10, "64KiB": 64 << 10, "1MiB": 1 << 20}
FRAME_BYTES = 150
"""About what a frame has beside its body."""
HOT_SEGMENTS = 12
FILE_BYTES = 64 << 20
BURST_BYTES = 256 << 20
"""Frames of one burst: a third of the hot log, whose memory is prepared ahead."""
CHUNK_SIZE = 32 << 10
"""Larger bodies travel through the chunk memory."""
FOREIGN_MAX = 0.1
"""A run in which other programs took more of one core than this is done again."""
ATTEMPTS = 4
WARM_UP_S = 1.5
LULL_S = 0.5
DIVIDED_MAX_S = 300.0

Figure = dict[str, Any]
T = TypeVar("T")


def machine() -> dict[str, Any]:
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory = next(
        int(line.split()[1])
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemTotal")
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory / (1 << 20), 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_1m": os.getloadavg()[0],
    }


# ---- a cluster -----------------------------------------------------------------------------------


@contextmanager
def settings(**values: object) -> Iterator[None]:
    """Settings of the broker, through the environment."""
    names = {f"SHMQ_{name.upper()}": str(value) for name, value in values.items()}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def cluster(**values: object) -> Iterator[shmq.Client]:
    """A broker whose store is on the checkout's file system, its hot log prepared ahead."""
    values.setdefault("hot_segment_count", HOT_SEGMENTS)
    with (
        settings(**values),
        tempfile.TemporaryDirectory(prefix=".bench-", dir=ROOT) as folder,
        shmq.local(folder) as client,
    ):
        time.sleep(WARM_UP_S)
        yield client


@contextmanager
def program(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A Python program, told by lines and answering by lines. It ends with the block: once it is
    told no more, or killed, if the block was interrupted. Ctrl-C at the terminal is not for it.
    """
    with subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as process:
        try:
            yield process
        except KeyboardInterrupt:
            process.kill()
            raise
        finally:
            assert process.stdin is not None
            process.stdin.close()


def queue_of(client: shmq.Client, topic: str, **attributes: str) -> tuple[BrokerLink, int, int]:
    """A fresh topic of one queue: its link and handle."""
    link = client.link("broker-a")
    fields: dict[str, Any] = {"topic": topic, "readQueueNums": 1, "writeQueueNums": 1}
    if attributes:
        fields["attributes"] = ",".join(
            f"+{name.replace('_', '.')}={value}" for name, value in attributes.items()
        )
    link.call(RequestCode.UPDATE_AND_CREATE_TOPIC, fields)
    ((_, (row, generation)),) = link.grant_send(topic, is_auto_create=False)
    return link, row, generation


def until_divided(
    admin: shmq.Admin, topic: str, group: str, *, queue_count: int, member_count: int
) -> None:
    """Return once a group has all its members and each queue of the topic one of them.

    Raises:
        SystemExit: that took too long.
    """
    deadline = time.perf_counter() + DIVIDED_MAX_S
    owners: list[str] = []
    while True:
        # On a machine that is busy with others one may have to ask twice.
        with suppress(ShmqError):
            owners = [queue.client_id for queue in admin.lag(group, topic=topic)]
        if len(owners) == queue_count and all(owners) and len(set(owners)) == member_count:
            return
        if time.perf_counter() > deadline:
            raise SystemExit(
                f"group {group} of {topic}: {len(set(owners))} of {member_count} members have "
                f"queues after {DIVIDED_MAX_S:.0f} s"
            )
        time.sleep(0.01)


def count_for(size: int, quick: bool, most: int = 1_000_000) -> int:
    """Messages of one burst."""
    count = min(most, BURST_BYTES // (size + FRAME_BYTES))
    return max(16, count // 10 if quick else count)


# ---- runs ----------------------------------------------------------------------------------------


def _jiffies_busy() -> int:
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(fields) - fields[3] - fields[4]


def _jiffies_ours() -> int:
    """Of this process, those under it, and the kernel's threads, which write our files."""
    parents: dict[int, int] = {}
    used: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(path.parent.name)
        parents[pid] = int(fields[1])
        used[pid] = sum(int(field) for field in fields[11:15])
    mine = 0
    for pid, jiffies in used.items():
        above = pid
        while above not in (0, 1, 2, os.getpid()):
            above = parents.get(above, 0)
        mine += jiffies if above in (2, os.getpid()) else 0
    return mine


class Foreign:
    """How much of one core other programs took since it was made."""

    def __init__(self) -> None:
        self._busy, self._ours = _jiffies_busy(), _jiffies_ours()
        self._begin = time.perf_counter()

    def share(self) -> float:
        others = (_jiffies_busy() - self._busy) - (_jiffies_ours() - self._ours)
        seconds = max(time.perf_counter() - self._begin, 0.2)
        return max(0.0, others / os.sysconf("SC_CLK_TCK") / seconds)


def figure(values: list[float], unit: str, bound: str, **more: object) -> Figure:
    """Median, least and greatest."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "runs": len(values),
        "unit": unit,
        "bound": bound,
        **more,
    }


def percentile(values: Sequence[float], part: float) -> float:
    """The least of sorted values that so large a part of them does not exceed; 0.5: the median, of
    two middle ones the lesser.
    """
    return values[max(0, math.ceil(len(values) * part) - 1)]


def memory_mib(pid: int, *kinds: str) -> float:
    """What a process holds: the sum of lines of /proc/PID/smaps_rollup and /proc/PID/status.

    Args:
        pid: of the process.
        kinds: "Private_Dirty": its own, without what others share; "Pss": with its part of that;
            "RssAnon", "RssFile": resident pages, without shared memory; "VmRSS": with it.
    """
    total = 0
    for name in ("smaps_rollup", "status"):
        for line in Path(f"/proc/{pid}/{name}").read_text().splitlines():
            kind, _, value = line.partition(":")
            if kind in kinds:
                total += int(value.split()[0])
    return total / 1024


def undisturbed(measure: Callable[[int], T], runs: int) -> tuple[list[T], float]:
    """What as many runs gave, each after a lull; one that others disturbed is done again. And the
    worst share of a core that others had in one that stayed.
    """
    values, shares = [], []
    for run in range(runs):
        best: tuple[float, T] | None = None
        for _ in range(ATTEMPTS):
            time.sleep(LULL_S)
            foreign = Foreign()
            value = measure(run)
            share = foreign.share()
            if best is None or share < best[0]:
                best = (share, value)
            if share <= FOREIGN_MAX:
                break
        assert best is not None
        shares.append(best[0])
        values.append(best[1])
    return values, round(max(shares), 2)


def runs_of(measure: Callable[[int], float], runs: int, unit: str, bound: str) -> Figure:
    """A figure of undisturbed runs."""
    values, share = undisturbed(measure, runs)
    return figure(values, unit, bound, foreign_cpu_max=share)
