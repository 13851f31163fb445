"""Bodies of all sizes through a real client and broker: memory for large ones comes by itself."""

from pathlib import Path

import numpy as np
import pytest

import shmq
from shmq.errors import BodyTypeError, ClosedError, IllegalTopicError, MessageTooLargeError
from tests.support.broker_process import BrokerProcess
from tests.support.cluster import Cluster

from .namesrv_process import NamesrvProcess

TIMEOUT_S = 30.0


@pytest.mark.cluster
@pytest.mark.parametrize("way", ["send", "send_oneway", "send_many"])
def test_a_body_that_no_ring_holds_is_sent(tmp_path: Path, cluster_name: str, way: str) -> None:
    runtime = tmp_path / "run"
    bodies = [b"small", b"x" * 1_000_000, b"small again", b"y" * (4 << 20)]
    with (
        NamesrvProcess(runtime),
        BrokerProcess(tmp_path, cluster_name, runtime=runtime),
        shmq.connect(runtime) as client,
    ):
        producer = client.producer()
        if way == "send_many":
            results = producer.send_many("bodies", bodies, key="one", timeout=TIMEOUT_S)
            assert len(results) == len(bodies)
        else:
            for body in bodies:
                getattr(producer, way)("bodies", body, key="one", timeout=TIMEOUT_S)
            producer.drain(TIMEOUT_S)
        with pytest.raises(MessageTooLargeError):
            producer.send("bodies", b"z" * ((4 << 20) + 1), timeout=TIMEOUT_S)
        with client.consumer("bodies", "readers") as consumer:
            came = [consumer.try_next(TIMEOUT_S) for _ in bodies]
            assert [bytes(m.body) for m in came if m is not None] == bodies


@pytest.mark.cluster
def test_what_is_no_message_is_refused_and_every_buffer_is_one(
    tmp_path: Path, cluster_name: str
) -> None:
    runtime = tmp_path / "run"
    with (
        NamesrvProcess(runtime),
        BrokerProcess(tmp_path, cluster_name, runtime=runtime),
        shmq.connect(runtime) as client,
    ):
        producer = client.producer()
        for body in (0, [], False):
            with pytest.raises(BodyTypeError):
                producer.send("bodies", body, timeout=TIMEOUT_S)  # type: ignore[arg-type]
        for topic in (5, None):
            with pytest.raises(IllegalTopicError):
                producer.send(topic, b"body", timeout=TIMEOUT_S)  # type: ignore[arg-type]
        for body in (b"", np.arange(3, dtype="<u2")):
            producer.send("bodies", body, key="one", timeout=TIMEOUT_S)  # type: ignore[arg-type]
        producer.close()
        for send in (producer.send, producer.send_oneway):
            with pytest.raises(ClosedError):
                send("bodies", b"after the end")
        with client.consumer("bodies", "readers") as consumer:
            came = [consumer.try_next(TIMEOUT_S) for _ in range(2)]
            assert [bytes(m.body) for m in came if m is not None] == [b"", b"\0\0\1\0\2\0"]


@pytest.mark.cluster
def test_first_large_body_finds_memory_at_whichever_broker_it_goes_to(
    tmp_path: Path, cluster_name: str
) -> None:
    body = bytes(1 << 20)
    with Cluster(tmp_path, cluster_name, brokers=3) as cluster, cluster.connect() as client:
        client.create_topic("large", queues=1)
        for _ in range(4):  # each a client without chunk memory anywhere
            with cluster.connect() as fresh, fresh.producer() as producer:
                producer.send("large", body)
