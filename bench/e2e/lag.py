"""How far a slave is behind its master while messages come, by their own words."""

import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
from measuring import percentile

from shmq.core import core
from shmq.core.fields import control_place
from shmq.shm.manifest import load, manifest_path
from shmq.shm.names import ObjectKind
from shmq.shm.segment import SHM_FOLDER

_LOOK_S = 0.0005
_COMMITTED = control_place("append_positions", "committed_position")


class Lag(NamedTuple):
    """Of one run, over the looks at which the master had moved."""

    bytes_p50: float
    bytes_p99: float
    us_p50: float
    """For how long the master's log had gone beyond what the slave has, interpolated."""
    us_p99: float
    look_count: int


class LagWatch:
    """Looks at both logs' ends as long as its block runs. One look takes a microsecond."""

    def __init__(self, master_store: Path, slave_store: Path) -> None:
        self._controls = [_control(store) for store in (slave_store, master_store)]
        self._looks: list[tuple[int, int, int]] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        slave, master = self._controls
        while not self._is_over.wait(_LOOK_S):
            # The slave first: the other way round it could be ahead.
            copied, committed = slave.load64(_COMMITTED), master.load64(_COMMITTED)
            self._looks.append((time.perf_counter_ns(), copied, committed))

    def __enter__(self) -> "LagWatch":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._thread.join()
        for control in self._controls:
            control.close()

    def lag(self) -> Lag:
        """After the block."""
        at, copied, committed = np.array(self._looks, dtype=np.int64).T
        moving = np.flatnonzero(np.diff(committed, prepend=committed[0]))
        behind = (committed - copied)[moving]
        # When the master's log ended where the slave's ends at this look.
        was_there = np.interp(copied[moving], committed, at)
        late_us = np.where(behind > 0, (at[moving] - was_there) / 1e3, 0.0)
        return Lag(
            *(
                percentile(ordered, part)
                for ordered in (np.sort(behind).tolist(), np.sort(late_us).tolist())
                for part in (0.5, 0.99)
            ),
            len(moving),
        )


def _control(store: Path) -> core.Mapping:
    manifest = load(manifest_path(store))
    if manifest is None:
        raise FileNotFoundError(f"{manifest_path(store)}: its broker lists no memory")
    name = manifest.store.object(ObjectKind.CONTROL, 0)
    fd = os.open(f"{SHM_FOLDER}{name}", os.O_RDONLY)
    try:
        return core.Mapping(fd, core.PAGE)
    finally:
        os.close(fd)
