"""A runtime folder, and servers on an event loop of their own, gone with the test."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from shmq.clock import SYSTEM_CLOCK, Clock
from shmq.remoting.loop_thread import LoopThread
from shmq.remoting.runtime_folder import RuntimeFolder
from shmq.remoting.server import Handler, Processor, Server, ServerLimits

NAME = "namesrv-t"
Serve = Callable[..., Server]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RuntimeFolder]:
    with RuntimeFolder.make(tmp_path / "run") as made:
        yield made


@pytest.fixture
def public_path() -> Iterator[Path]:
    """A folder that every uid can reach, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="shmq-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def loop_thread() -> Iterator[LoopThread]:
    thread = LoopThread("test-loop")
    thread.start()
    yield thread
    thread.stop()


@pytest.fixture
def serve(folder: RuntimeFolder, loop_thread: LoopThread) -> Iterator[Serve]:
    """Serve a table of handlers or processors under NAME; stopped at the test's end."""
    servers: list[Server] = []

    def start(
        table: Mapping[int, Handler | Processor] | None = None,
        *,
        limits: ServerLimits | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> Server:
        rows = {
            code: row if isinstance(row, Processor) else Processor(handler=row)
            for code, row in (table or {}).items()
        }

        async def make() -> Server:
            return Server(folder.listen(NAME), rows, role="test", limits=limits, clock=clock)

        servers.append(loop_thread.run(make(), timeout_s=10))
        return servers[-1]

    yield start
    for server in servers:
        loop_thread.run(server.stop(timeout_s=5), timeout_s=10)


@pytest.fixture(autouse=True)
def descriptors_as_before() -> Iterator[None]:
    """After each test as many descriptors are open as before it."""
    before = fd_count()
    yield
    assert fd_count() == before, sorted(_open_fds())


def fd_count() -> int:
    return len(os.listdir("/proc/self/fd"))


def _open_fds() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(f"{name}: {os.readlink(f'/proc/self/fd/{name}')}")
        except OSError:
            pass
    return found
