"""A standby whose task has died is not healthy, whoever asks."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from shmq.broker.standby import Standby
from shmq.config import BrokerConfig
from shmq.remoting.codes import RequestCode
from shmq.remoting.command import Command, response_to
from shmq.remoting.loop_thread import LoopThread
from shmq.remoting.runtime_folder import RuntimeFolder, broker_socket_name
from shmq.remoting.server import Connection, Processor, Server
from tests.support.cluster import wait_for

_PATIENCE_S = 30.0


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Path]:
    """A runtime folder in which a master of the name `a` listens."""

    def status(_connection: Connection, command: Command) -> Command:
        said = {"role": "ASYNC_MASTER", "brokerId": 0, "phase": "RUNNING"}
        return response_to(command, ext_fields=said)

    def begin(_connection: Connection, command: Command) -> Command:
        numbers = ("fileSizeBytes", "minPosition", "recordCrcPosition")
        return response_to(command, ext_fields=dict.fromkeys(numbers, 0))

    async def listen() -> Server:
        table = {
            RequestCode.GET_BROKER_STATUS: Processor(handler=status),
            RequestCode.GET_REPLICA_BEGIN: Processor(handler=begin),
        }
        return Server(folder.listen(broker_socket_name("a", 0)), table, role="broker")

    thread = LoopThread("test-loop")
    thread.start()
    with RuntimeFolder.make(tmp_path / "run") as folder:
        server = thread.run(listen(), timeout_s=_PATIENCE_S)
        yield folder.path
        thread.run(server.stop(timeout_s=_PATIENCE_S), timeout_s=2 * _PATIENCE_S)
        thread.stop()


def _fail(_begin: object) -> None:
    raise RuntimeError("no thread")


def test_standby_whose_search_for_a_master_died_says_so(tmp_path: Path, runtime: Path) -> None:
    config = BrokerConfig(
        store_path=tmp_path / "store", broker_name="a", broker_id=1, runtime_path=runtime
    )
    standby = Standby(config, on_told=lambda **_: None, on_master=_fail)
    try:
        standby.start()
        wait_for(lambda: not standby.is_healthy(), "the end of its task")
        said = standby.ask_status().result(_PATIENCE_S)
        assert said["isHealthy"] is False
        assert str(said["problem"]).startswith("Standby._look ended: RuntimeError('no thread') at ")
        assert standby.describe() == f"standby; {said['problem']}"
    finally:
        standby.stop()


def test_standby_that_looks_for_a_master_is_healthy(tmp_path: Path) -> None:
    config = BrokerConfig(
        store_path=tmp_path / "store",
        broker_name="a",
        broker_id=1,
        runtime_path=tmp_path / "run",
    )
    standby = Standby(config, on_told=lambda **_: None, on_master=lambda _begin: None)
    try:
        standby.start()
        assert standby.is_healthy()
        assert standby.ask_status().result(_PATIENCE_S)["isHealthy"] is True
        assert standby.is_healthy(), "it has answered since"
    finally:
        standby.stop()
