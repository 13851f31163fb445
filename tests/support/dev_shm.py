"""Finds shared memory that a test left behind in /dev/shm.

Several test runs may share the machine, so a name tells whose it is: tests take their cluster
name from the fixture `cluster_name`, which starts with RUN_TOKEN, the mark of this run. An object
with our token, or any object at all in CI, must be gone when its test ends. Elsewhere an object
without a token may be a neighbour's: it counts as left behind only if no process outside this run
holds it and it stays.
"""

import os
import re
import time
from pathlib import Path

import psutil

DEV_SHM = Path("/dev/shm")
RUN_TOKEN = f"t{os.getpid():x}x"
SHARED = f"{RUN_TOKEN}shared"
"""How the names of clusters begin that several tests share: who makes one sees to its end."""
NEIGHBOUR_GRACE_S = 1.0
ADOPTION_MAX_S = 5.0
"""For so long a neighbour's dead broker may leave its memory to nobody: its successor takes it."""
NEIGHBOURS_BENCH = "shmq.bench-"
"""How names begin of a replica set whose members a bench beside us kills: what a dead one leaves is
its successor's. A bench that a test runs has the run's token in its names (SHMQ_CLUSTER_NAME).
"""
_TOKEN = re.compile(r"(?<![0-9a-z])t([0-9a-f]+)x")


def ours_in_dev_shm() -> frozenset[str]:
    """Names in /dev/shm that shmq made, this run or any other."""
    return frozenset(name for name in os.listdir(DEV_SHM) if name.startswith("shmq"))


def left_behind(before: frozenset[str], *, strict: bool) -> list[str]:
    """Names that appeared since `before` and are this run's fault.

    A store that had memory before, such as a module's cluster, may take more; what is SHARED may
    be made anew.

    Args:
        before: what `ours_in_dev_shm` gave before the test.
        strict: nobody else uses the machine (CI): every new name counts but what another run's
            token claims.

    May wait up to NEIGHBOUR_GRACE_S for an object of unknown origin to go away, and up to
    ADOPTION_MAX_S for somebody outside this run to have it.
    """
    stores = {_store(name) for name in before}
    new = {
        name
        for name in ours_in_dev_shm() - before
        if _store(name) not in stores and SHARED not in name
    }
    if strict:
        foreign = {name for name in new if _TOKEN.search(name) and RUN_TOKEN not in name}
        return sorted(new - foreign)
    left = [name for name in new if RUN_TOKEN in name]
    unknown = {
        name for name in new if not _TOKEN.search(name) and not name.startswith(NEIGHBOURS_BENCH)
    }
    deadline = time.monotonic() + NEIGHBOUR_GRACE_S
    while unknown and time.monotonic() < deadline:
        time.sleep(0.02)  # polling for a neighbour, not for something under test
        unknown &= ours_in_dev_shm()
    deadline = time.monotonic() + ADOPTION_MAX_S
    while unknown:
        held = _stores_held_outside_this_run()  # a lost session's object is in nobody's hands
        unknown = {name for name in unknown & ours_in_dev_shm() if _store(name) not in held}
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)  # polling for a neighbour, not for something under test
    return sorted({*left, *unknown})


def _store(name: str) -> str:
    """All of a name but the kind of object and its number."""
    return name.rsplit(".", 2)[0]


def _stores_held_outside_this_run() -> set[str]:
    """Whose names in /dev/shm a process outside this run has open or mapped."""
    mine = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
    held = set()
    for pid in psutil.pids():
        if pid in mine:
            continue
        try:
            maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
            with os.scandir(f"/proc/{pid}/fd") as entries:
                links = [os.readlink(entry.path) for entry in entries]
        except OSError:  # gone meanwhile, or not ours to look at
            continue
        for text in (maps, "\n".join(links)):
            held.update(_store(name) for name in re.findall(r"/dev/shm/(\S+)", text))
    return held
