"""A broker and the NameServers that lie in its runtime folder."""

import os
import signal
from pathlib import Path

import pytest

from shmq.errors import ShmqError, TopicNotExistError
from shmq.remoting import namesrv_requests as requests
from shmq.remoting.client import Client
from shmq.remoting.codes import RequestCode
from shmq.remoting.runtime_folder import RuntimeFolder, namesrv_socket_name
from shmq.topic import TopicRouteData
from tests.cluster.namesrv_process import NamesrvProcess
from tests.support.broker_process import (
    SMALL,
    BrokerClient,
    BrokerProcess,
    Queue,
    RunningBroker,
)
from tests.support.standing_still import stop_process
from tests.support.store_process import wait_until


def route(namesrv: NamesrvProcess, topic: str) -> TopicRouteData | None:
    """What a NameServer says now; None if it does not serve or knows no route."""
    try:
        with RuntimeFolder.open(namesrv.runtime) as folder:
            name = namesrv_socket_name(namesrv.name)
            client = Client(folder, name, role="test", timeout_s=60.0)
    except ShmqError:
        return None
    try:
        return requests.route_of(client.call(requests.route_info(topic), timeout_s=60.0))
    except TopicNotExistError:
        return None
    finally:
        client.close()


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.mark.cluster
def test_every_namesrv_knows_the_broker_and_its_topics(tmp_path, runtime, cluster_name):
    with NamesrvProcess(runtime) as first, BrokerProcess(tmp_path, cluster_name) as broker:
        wait_until(lambda: route(first, "TBW102") is not None)
        with NamesrvProcess(runtime, name="ns1") as second, BrokerClient(broker, "c") as client:
            wait_until(lambda: route(second, "TBW102") is not None)
            client.create_topic("orders", 3)
            for namesrv in (first, second):
                found = route(namesrv, "orders")  # known before the topic's maker has its answer
                assert found is not None
                (queues,) = found.queue_datas
                assert (queues.read_queue_nums, queues.write_queue_nums) == (3, 3)
                (data,) = found.broker_datas
                assert data.broker_addrs == {0: broker.socket_name}
                assert data.cluster == cluster_name
            client.call(RequestCode.DELETE_TOPIC_IN_BROKER, {"topic": "orders"})
            assert route(first, "orders") is route(second, "orders") is None


@pytest.mark.cluster
@pytest.mark.crash
def test_namesrv_that_was_killed_knows_everything_again(tmp_path, runtime, cluster_name):
    with (
        NamesrvProcess(runtime) as namesrv,
        BrokerProcess(tmp_path, cluster_name) as broker,
        BrokerClient(broker, "c") as client,
    ):
        client.create_topic("before", 1)
        wait_until(lambda: route(namesrv, "before") is not None)
        namesrv.end(signal.SIGKILL)
        client.create_topic("meanwhile", 2)
        where = client.send_queues("before")[0]
        assert client.send(where, b"nobody noticed") == 0
        with NamesrvProcess(runtime) as successor:
            wait_until(lambda: route(successor, "meanwhile") is not None)
            assert route(successor, "before") is not None


@pytest.mark.cluster
@pytest.mark.crash
def test_dead_broker_is_gone_from_routes_and_its_successor_is_back(tmp_path, runtime, cluster_name):
    with NamesrvProcess(runtime) as namesrv, BrokerProcess(tmp_path, cluster_name) as broker:
        wait_until(lambda: route(namesrv, "TBW102") is not None)
        broker.kill()
        wait_until(lambda: route(namesrv, "TBW102") is None)
        broker.restart()
        wait_until(lambda: route(namesrv, "TBW102") is not None)
        broker.stop()
        assert route(namesrv, "TBW102") is None  # it has said so itself


@pytest.mark.cluster
def test_namesrv_that_hangs_holds_nobody_up(tmp_path, runtime, cluster_name):
    with (
        NamesrvProcess(runtime) as hung,
        NamesrvProcess(runtime, name="ns1") as other,
        BrokerProcess(tmp_path, cluster_name) as broker,
        BrokerClient(broker, "c") as client,
    ):
        wait_until(lambda: route(hung, "TBW102") is not None)
        wait_until(lambda: route(other, "TBW102") is not None)
        stop_process(hung.process.pid)
        client.create_topic("orders", 1)
        wait_until(lambda: route(other, "orders") is not None)
        assert client.send(client.send_queues("orders")[0], b"x") == 0
        hung.process.send_signal(signal.SIGCONT)
        wait_until(lambda: route(hung, "orders") is not None)


@pytest.mark.cluster
def test_two_brokers_share_a_topic(tmp_path, runtime, cluster_name):
    with (
        NamesrvProcess(runtime) as namesrv,
        BrokerProcess(tmp_path, cluster_name, name="a", runtime=runtime) as a,
        BrokerProcess(tmp_path, cluster_name, name="b", runtime=runtime) as b,
    ):
        for broker in (a, b):
            with BrokerClient(broker, "c") as client:
                client.create_topic("orders", 2)
        wait_until(lambda: len((route(namesrv, "orders") or TopicRouteData()).queue_datas) == 2)
        found = route(namesrv, "orders")
        assert found is not None
        assert {data.broker_name for data in found.broker_datas} == {"a", "b"}


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
    with NamesrvProcess(runtime, "--cluster", str(file)) as namesrv:
        wait_until(lambda: len((route(namesrv, "TBW102") or TopicRouteData()).queue_datas) == 2)
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
        wait_until(lambda: len((route(namesrv, "TBW102") or TopicRouteData()).queue_datas) == 2)


def _resumed(client: BrokerClient, broker: BrokerProcess, where: Queue) -> bool:
    try:
        client.resume(broker, queues=[where])
    except ShmqError:
        return False
    return True
