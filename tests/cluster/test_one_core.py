"""Everybody on one core, whatever the broker does while nothing comes; and beside them a program
that holds a place of its ring and gets no time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import shmq
from shmq.config import WaitingPolicy
from tests.support.cluster import Cluster, Program

pytestmark = pytest.mark.cluster
TIMEOUT_S = 60
TURNS = 200
STARVED = """
import json, os, sys
import shmq
with shmq.connect(sys.argv[1]) as client:
    with client.producer().loan("orders", 64) as slot:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        print(json.dumps("holds"), flush=True)
        sys.stdin.readline()
        slot.view[:7] = b"starved"
    print(json.dumps("sent"), flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def one_core() -> Iterator[None]:
    """For this thread, and all threads and processes that come of it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def exchange(producer: shmq.Producer, consumer: shmq.Consumer) -> None:
    for turn in range(TURNS):
        producer.send("orders", b"%d" % turn, timeout=TIMEOUT_S)
        [message] = consumer.receive(1, timeout=TIMEOUT_S)
        with message.process():
            assert bytes(message) == b"%d" % turn


@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize("policy", WaitingPolicy)
def test_messages_pass_where_all_share_a_core(
    policy: WaitingPolicy, tmp_path: Path, cluster_name: str
) -> None:
    with (
        Cluster(tmp_path, cluster_name, waiting_policy=policy.value) as cluster,
        cluster.connect() as client,
        client.consumer("orders", group="g") as consumer,
    ):
        assert os.sched_getaffinity(cluster.brokers[0].pid) == os.sched_getaffinity(0)
        client.create_topic("orders", queues=1)
        exchange(client.producer(), consumer)


@pytest.mark.usefixtures("one_core")
def test_one_that_gets_no_time_and_holds_a_place_holds_up_nobody(
    tmp_path: Path, cluster_name: str
) -> None:
    with (
        Cluster(tmp_path, cluster_name) as cluster,
        cluster.connect() as client,
        client.consumer("orders", group="g") as consumer,
    ):
        client.create_topic("orders", queues=1)
        with Program(STARVED, cluster.runtime) as starved:
            assert starved.hear() == "holds"
            exchange(client.producer(), consumer)
            starved.say()
            assert starved.hear() == "sent"
            [message] = consumer.receive(1, timeout=TIMEOUT_S)
            assert bytes(message)[:7] == b"starved"
