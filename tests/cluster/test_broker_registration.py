"""A broker and the NameServers that lie in its runtime folder."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shmq.errors import ShmqError, TopicNotExistError
from shmq.remoting import namesrv_requests as requests
from shmq.remoting.client import Client
from shmq.remoting.codes import RequestCode
from shmq.remoting.runtime_folder import RuntimeFolder, namesrv_socket_name
from shmq.topic import TopicRouteData
from tests.support.broker_process import (
    ROOT,
    SMALL,
    BrokerClient,
    BrokerProcess,
    Queue,
    RunningBroker,
)
from tests.support.store_process import wait_until


class NamesrvProcess:
    """One NameServer. A context manager."""

    def __init__(self, runtime: Path, name: str, *options: str) -> None:
        self.runtime = runtime
        self.name = name
        self.options = options
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "shmq.namesrv",
                "--runtime", str(self.runtime), "--name", self.name, *self.options,
            ],
            cwd=ROOT,
        )  # fmt: skip

    def route(self, topic: str) -> TopicRouteData | None:
        """What it says now; None if it does not serve or knows no route."""
        try:
            with RuntimeFolder.open(self.runtime) as folder:
                name = namesrv_socket_name(self.name)
                client = Client(folder, name, role="test", timeout_s=5.0)
        except ShmqError:
            return None
        try:
            return requests.route_of(client.call(requests.route_info(topic), timeout_s=5.0))
        except TopicNotExistError:
            return None
        finally:
            client.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> "NamesrvProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.mark.cluster
def test_every_namesrv_knows_the_broker_and_its_topics(tmp_path, runtime, cluster_name):
    with NamesrvProcess(runtime, "ns0") as first, BrokerProcess(tmp_path, cluster_name) as broker:
        wait_until(lambda: first.route("TBW102") is not None)
        with NamesrvProcess(runtime, "ns1") as second, BrokerClient(broker, "c") as client:
            wait_until(lambda: second.route("TBW102") is not None)
            client.create_topic("orders", 3)
            for namesrv in (first, second):
                route = namesrv.route("orders")  # known before the topic's maker has its answer
                assert route is not None
                (queues,) = route.queue_datas
                assert (queues.read_queue_nums, queues.write_queue_nums) == (3, 3)
                (data,) = route.broker_datas
                assert data.broker_addrs == {0: broker.socket_name}
                assert data.cluster == cluster_name
            client.call(RequestCode.DELETE_TOPIC_IN_BROKER, {"topic": "orders"})
            assert first.route("orders") is second.route("orders") is None


@pytest.mark.cluster
@pytest.mark.crash
def test_namesrv_that_was_killed_knows_everything_again(tmp_path, runtime, cluster_name):
    with (
        NamesrvProcess(runtime, "ns0") as namesrv,
        BrokerProcess(tmp_path, cluster_name) as broker,
        BrokerClient(broker, "c") as client,
    ):
        client.create_topic("before", 1)
        wait_until(lambda: namesrv.route("before") is not None)
        namesrv.kill()
        client.create_topic("meanwhile", 2)
        where = client.send_queues("before")[0]
        assert client.send(where, b"nobody noticed") == 0
        namesrv.start()
        wait_until(lambda: namesrv.route("meanwhile") is not None)
        assert namesrv.route("before") is not None


@pytest.mark.cluster
@pytest.mark.crash
def test_dead_broker_is_gone_from_routes_and_its_successor_is_back(tmp_path, runtime, cluster_name):
    with NamesrvProcess(runtime, "ns0") as namesrv, BrokerProcess(tmp_path, cluster_name) as broker:
        wait_until(lambda: namesrv.route("TBW102") is not None)
        broker.kill()
        wait_until(lambda: namesrv.route("TBW102") is None)
        broker.restart()
        wait_until(lambda: namesrv.route("TBW102") is not None)
        broker.stop()
        assert namesrv.route("TBW102") is None  # it has said so itself


@pytest.mark.cluster
def test_namesrv_that_hangs_holds_nobody_up(tmp_path, runtime, cluster_name):
    with (
        NamesrvProcess(runtime, "ns0") as hung,
        NamesrvProcess(runtime, "ns1") as other,
        BrokerProcess(tmp_path, cluster_name) as broker,
        BrokerClient(broker, "c") as client,
    ):
        wait_until(lambda: hung.route("TBW102") is not None)
        wait_until(lambda: other.route("TBW102") is not None)
        hung.process.send_signal(signal.SIGSTOP)
        client.create_topic("orders", 1)
        assert other.route("orders") is not None
        assert client.send(client.send_queues("orders")[0], b"x") == 0
        hung.process.send_signal(signal.SIGCONT)
        wait_until(lambda: hung.route("orders") is not None)


@pytest.mark.cluster
def test_two_brokers_share_a_topic(tmp_path, runtime, cluster_name):
    with (
        NamesrvProcess(runtime, "ns0") as namesrv,
        BrokerProcess(tmp_path, cluster_name, name="a", runtime=runtime) as a,
        BrokerProcess(tmp_path, cluster_name, name="b", runtime=runtime) as b,
    ):
        for broker in (a, b):
            with BrokerClient(broker, "c") as client:
                client.create_topic("orders", 2)
        wait_until(lambda: len((namesrv.route("orders") or TopicRouteData()).queue_datas) == 2)
        route = namesrv.route("orders")
        assert route is not None
        assert {data.broker_name for data in route.broker_datas} == {"a", "b"}


@pytest.mark.cluster
@pytest.mark.crash
def test_supervised_broker_that_was_killed_is_back_with_its_clients(
    tmp_path, runtime, cluster_name
):
    file = tmp_path / "cluster.toml"
    settings = "\n".join(f'{key} = "{value}"' for key, value in SMALL.items())
    file.write_text(
        "".join(
            f'[broker.{name}]\nstore_path = "store-{name}"\ncluster_name = "{cluster_name}"\n'
            f'keep_memory = "never"\n{settings}\n'
            for name in ("a", "b")
        )
    )
    with NamesrvProcess(runtime, "ns0", "--cluster", str(file)) as namesrv:
        wait_until(lambda: len((namesrv.route("TBW102") or TopicRouteData()).queue_datas) == 2)
        broker = RunningBroker(runtime, "a")
        with BrokerClient(broker, "c") as client:
            where = client.send_queues("orders")[0]
            client.send(where, b"before")
            pid = broker.status()["pid"]
            os.kill(pid, signal.SIGKILL)
            sequence = client.lanes[0].put(where.row, where.generation, b"after", keep=True)
            wait_until(lambda: _resumed(client, broker, where))
            assert client.lanes[0].wait(sequence, 30.0)[0] == 0
            assert client.bodies(where) == [b"before", b"after"]
            assert broker.status()["pid"] != pid
        wait_until(lambda: len((namesrv.route("TBW102") or TopicRouteData()).queue_datas) == 2)


def _resumed(client: BrokerClient, broker: BrokerProcess, where: Queue) -> bool:
    try:
        client.resume(broker, queues=[where])
    except ShmqError:
        return False
    return True
