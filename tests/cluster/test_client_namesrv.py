"""NameServers that go: clients at work notice nothing, new ones still connect."""

import random
import signal
from pathlib import Path

import pytest

import shmq
from shmq.errors import ServiceNotAvailableError
from shmq.remoting.namesrv_requests import cluster_info, cluster_of, route_info
from tests.cluster.namesrv_process import NamesrvProcess
from tests.support.cluster import Cluster, Program, wait_for
from tests.support.scale import scaled

pytestmark = [pytest.mark.cluster, pytest.mark.crash]

KILLS = scaled(3, 20)

PRODUCER = """
import json, sys, threading, shmq
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
with shmq.connect(sys.argv[1]) as client, client.producer() as producer:
    sent, failed = 0, []
    while not stop.is_set():
        try:
            producer.send("t", str(sent), key=None if sent % 2 else f"k-{sent % 7}", timeout=60.0)
        except shmq.ShmqError as error:
            failed.append(repr(error))
        sent += 1
        if sent % 500 == 0:
            print(json.dumps(sent), flush=True)
    print(json.dumps(["end", sent, failed]), flush=True)
"""


def test_no_send_fails_while_the_nameserver_is_killed_and_restarted(tmp_path: Path, cluster_name):
    with Cluster(tmp_path, cluster_name, brokers=2) as cluster:
        with cluster.connect() as client:
            client.create_topic("t", queues=4)
        with Program(PRODUCER, cluster.runtime) as producer:
            for _ in range(KILLS):
                assert isinstance(producer.hear(), int)
                if cluster.namesrv.process.poll() is None:
                    cluster.namesrv.end(signal.SIGKILL)
                assert isinstance(producer.hear(), int), "sent while there is no NameServer"
                with NamesrvProcess(cluster.runtime) as successor, cluster.connect() as late:
                    wait_for(lambda c=late: len(c.routes.brokers()) == 2, "both brokers")
                    late.producer().send("t", "late", timeout=60.0)
                    assert isinstance(producer.hear(), int)
                    assert successor.end(signal.SIGKILL) == -signal.SIGKILL
            assert producer.process.stdin is not None
            producer.process.stdin.close()
            said = producer.hear()
            while isinstance(said, int):
                said = producer.hear()
            _, sent, failed = said
            assert failed == []
            with NamesrvProcess(cluster.runtime), cluster.connect() as client:
                wait_for(lambda: len(client.routes.brokers()) == 2, "both brokers")
                with client.consumer("t", "g") as consumer:
                    bodies: list[bytes] = []
                    while len(bodies) < sent + KILLS:
                        received = consumer.receive(256, timeout=60.0)
                        assert received, (len(bodies), sent)
                        bodies += map(bytes, received)
                assert sorted(body for body in bodies if body != b"late") == sorted(
                    str(number).encode() for number in range(sent)
                )


def test_new_clients_connect_while_one_of_three_nameservers_lives(
    tmp_path: Path, cluster_name, rng: random.Random
):
    with (
        Cluster(tmp_path, cluster_name) as cluster,
        NamesrvProcess(cluster.runtime, name="ns1") as second,
        NamesrvProcess(cluster.runtime, name="ns2") as third,
    ):
        for namesrv in (second, third):
            with namesrv.connect() as connection:
                wait_for(
                    lambda c=connection: cluster_of(c.call(cluster_info(), timeout_s=60)).brokers,
                    f"the broker at {namesrv.name}",
                )
        with cluster.connect() as client:
            client.create_topic("t", queues=2)
        for namesrv in (second, third):
            with namesrv.connect() as connection:
                wait_for(
                    lambda c=connection: c.invoke(route_info("t"), timeout_s=60).code == 0,
                    f"the topic at {namesrv.name}",
                )
        all_three = [cluster.namesrv, second, third]
        left = all_three.pop(rng.randrange(3))
        for namesrv in all_three:
            namesrv.end(signal.SIGKILL)
        for number in range(20):  # each picks one at random first
            with cluster.connect() as client:
                result = client.producer().send("t", str(number))
                assert result.message_queue.topic == "t"
        left.end(signal.SIGKILL)
        with pytest.raises(ServiceNotAvailableError, match="ask a NameServer"):
            cluster.connect()


def test_topic_is_not_created_on_no_broker_at_all(tmp_path: Path):
    (tmp_path / "run").mkdir(mode=0o750)
    with NamesrvProcess(tmp_path / "run"), shmq.connect(tmp_path / "run") as client:
        with pytest.raises(ServiceNotAvailableError, match="knows no broker"):
            client.create_topic("t")
        with pytest.raises(ServiceNotAvailableError, match="send to t: .* knows no broker"):
            client.producer().send("t", b"to whom", timeout=0.1)
        with pytest.raises(TypeError, match=r"wanted \['broker-a'\]"):
            client.create_topic("t", brokers="broker-a")
    with (
        NamesrvProcess(tmp_path / "run"),
        shmq.Admin(tmp_path / "run") as admin,
        pytest.raises(ServiceNotAvailableError, match="knows no broker"),
    ):
        admin.create_topic("t")
