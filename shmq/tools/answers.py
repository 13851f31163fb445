"""Whether NameServers and Controllers answer, for tools that judge them.

What lives here: `answer_times`. In a tool's process; writes nothing. Blocks up to the timeout for
each one that hangs. Never fails.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from shmq.clock import SYSTEM_CLOCK
from shmq.errors import ShmqError
from shmq.monitor.services import services_in
from shmq.remoting.client import Client
from shmq.remoting.runtime_folder import RuntimeFolder

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["answer_times"]


def answer_times(runtime: Path, *, timeout_s: float) -> dict[str, float]:
    """Seconds in which each NameServer and Controller of the folder that lives says hello, by the
    name of its socket; infinity for one that does not.
    """
    names = [service.name for service in services_in(runtime) if service.pid is not None]
    return {name: _answer_time(runtime, name, timeout_s) for name in names}


def _answer_time(runtime: Path, name: str, timeout_s: float) -> float:
    begin_ns = SYSTEM_CLOCK.monotonic_ns()
    try:
        with RuntimeFolder.open(runtime) as folder:
            Client(folder, name, role="tool", timeout_s=timeout_s).close()
    except ShmqError:
        return math.inf
    return (SYSTEM_CLOCK.monotonic_ns() - begin_ns) / 1e9
