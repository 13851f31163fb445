"""Messages that listeners could not process: when they come again, and where they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import shmq
from shmq.errors import OffsetIllegalError
from shmq.topic import dlq_topic, retry_topic
from tests.support.broker_process import ROOT
from tests.support.cluster import Cluster, wait_for

pytestmark = pytest.mark.cluster

LEVELS = "1s 1s 1s 1s 2s"
"""The first retry comes by level 3, the second by 4, those behind by 5."""
TIMEOUT_S = 30.0


class _Seen:
    """What a listener was called with."""

    def __init__(self, fails: int) -> None:
        self._fails = fails
        self._lock = threading.Lock()
        self.calls: dict[bytes, list[tuple[float, str, int, str]]] = defaultdict(list)

    def __call__(self, message: shmq.Message) -> shmq.ConsumeStatus | None:
        with self._lock:
            calls = self.calls[message.body_bytes]
            calls.append(
                (time.monotonic(), message.topic, message.reconsume_times, message.message_id)
            )
        if len(calls) <= self._fails:
            if message.body_bytes == b"raises":
                raise RuntimeError("not today")
            return shmq.ConsumeStatus.RECONSUME_LATER
        return None


def _dead_letters(client: shmq.Client, group: str) -> list[shmq.Message]:
    with client.pull_consumer(dlq_topic(group)) as consumer:
        return [m for q in consumer.queues() for m in consumer.pull(q, 0, 1000).messages]


def _lag(cluster: Cluster, group: str) -> int:
    with shmq.Admin(cluster.runtime) as admin:
        return sum(queue.lag for queue in admin.lag(group))


def test_failed_message_comes_again_later_each_time_as_the_one_it_was(
    tmp_path: Path, cluster_name: str
) -> None:
    seen = _Seen(fails=3)
    with (
        Cluster(tmp_path, cluster_name, message_delay_level=LEVELS) as cluster,
        cluster.connect() as client,
        client.producer() as producer,
        client.push_consumer("g", seen, threads=4) as consumer,
    ):
        client.create_topic("t", queues=2)
        consumer.subscribe("t", "a || b")
        ids = {
            body: producer.send("t", body, tag="a", keys=["k"]).message_id
            for body in (b"raises", b"later")
        }
        wait_for(
            lambda: len(seen.calls) == 2 and all(len(calls) == 4 for calls in seen.calls.values())
        )
        for body, calls in seen.calls.items():
            assert [topic for _, topic, _, _ in calls] == ["t"] * 4
            assert [times for _, _, times, _ in calls] == [0, 1, 2, 3]
            assert {message_id for _, _, _, message_id in calls} == {ids[body]}
            gaps = [b[0] - a[0] for a, b in pairwise(calls)]
            assert all(gap >= least for gap, least in zip(gaps, (1, 1, 2), strict=True)), gaps
        with client.pull_consumer(retry_topic("g")) as puller:
            (queue,) = puller.queues()
            found = puller.pull(queue, 0, 100).messages
        assert {m.topic for m in found} == {"t"}
        assert {m.tag for m in found} == {"a"}
        assert all(m.properties["ORIGIN_MESSAGE_ID"] for m in found)
        assert not {"DELAY", "REAL_TOPIC", "REAL_QID"} & {n for m in found for n in m.properties}


def test_message_that_fails_too_often_is_a_dead_letter(tmp_path: Path, cluster_name: str) -> None:
    seen = _Seen(fails=100)
    with (
        Cluster(tmp_path, cluster_name, message_delay_level=LEVELS) as cluster,
        cluster.connect() as client,
        client.producer() as producer,
    ):
        client.create_topic("t", queues=1)
        sent = producer.send("t", b"poison", tag="a", properties={"colour": "red"})
        with client.push_consumer("g", seen, max_reconsume_times=1) as consumer:
            consumer.subscribe("t")
            letters = wait_for(lambda: _has_dlq(client) and _dead_letters(client, "g"))
            wait_for(lambda: _lag(cluster, "g") == 0)
        (letter,) = letters
        assert len(seen.calls[b"poison"]) == 2
        assert letter.body_bytes == b"poison"
        assert letter.topic == dlq_topic("g")
        assert letter.reconsume_times == 2
        assert letter.message_id == sent.message_id
        properties = letter.properties
        assert properties["RETRY_TOPIC"] == properties["DLQ_ORIGIN_TOPIC"] == "t"
        assert properties["DLQ_ORIGIN_MESSAGE_ID"] == properties["ORIGIN_MESSAGE_ID"]
        assert properties["colour"] == "red"


def _has_dlq(client: shmq.Client) -> bool:
    try:
        _dead_letters(client, "g")
    except shmq.ShmqError:
        return False
    return True


def test_consumer_sends_back_by_itself_and_says_when_a_message_is_dead(
    tmp_path: Path, cluster_name: str
) -> None:
    with (
        Cluster(tmp_path, cluster_name, message_delay_level=LEVELS) as cluster,
        cluster.connect() as client,
        client.producer() as producer,
    ):
        client.create_topic("t", queues=1)
        for body in (b"again", b"dead", bytes(500_000)):
            producer.send("t", body)
        with client.consumer("t", "g", auto_settle=False) as consumer:
            again, dead, large = (consumer.try_next(TIMEOUT_S) for _ in range(3))
            assert again is not None
            assert dead is not None
            assert large is not None
            assert consumer.send_back(again, delay_level=1) == retry_topic("g")
            assert consumer.send_back(dead, -1) == dlq_topic("g")
            assert consumer.send_back(large, delay_level=1) == retry_topic("g")
            with pytest.raises(TypeError, match="no consumer"):
                consumer.send_back(shmq.Message("t", b"x"))
        assert [m.body_bytes for m in _dead_letters(client, "g")] == [b"dead"]
        with client.consumer(retry_topic("g"), "g") as retries:
            first, second = (retries.try_next(TIMEOUT_S) for _ in range(2))
            assert first is not None
            assert second is not None
            assert (first.body_bytes, first.reconsume_times, first.topic) == (b"again", 1, "t")
            assert bytes(second) == bytes(500_000)
            for message in (first, second):
                message.settle()
        wait_for(lambda: _lag(cluster, "g") == 0)
        (link,) = client.links()
        queue = shmq.MessageQueue("t", "broker-a", 0)
        with pytest.raises(OffsetIllegalError):
            link.send_back("g", queue, 99, delay_level=0, max_reconsume_times=-1)


def test_dead_letters_are_listed_and_delivered_to_their_group_once_more(
    tmp_path: Path, cluster_name: str
) -> None:
    def shmq_dlq(*arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "shmq.tools.cli", "dlq", *arguments, "--json"],
            cwd=ROOT,
            env={**os.environ, "SHMQ_NAMESRV": str(cluster.runtime)},
            capture_output=True,
            check=True,
        )
        shown: dict[str, Any] = json.loads(done.stdout)
        return shown

    with (
        Cluster(tmp_path, cluster_name, message_delay_level=LEVELS) as cluster,
        cluster.connect() as client,
        client.producer() as producer,
    ):
        client.create_topic("t", queues=1)
        ids = [producer.send("t", b"%d" % n, tag="a", keys=["k"]).message_id for n in range(3)]
        with client.consumer("t", "g", auto_settle=False) as consumer:
            assert shmq_dlq("ls", "g")["messages"] == []
            assert shmq_dlq("replay", "g", "--yes")["replayed"] == 0
            for _ in ids:
                message = consumer.try_next(TIMEOUT_S)
                assert message is not None
                consumer.send_back(message, -1)
        listed = shmq_dlq("ls", "g")["messages"]
        assert [(m["messageId"], m["topic"], m["reconsumeTimes"]) for m in listed] == [
            (message_id, "t", 1) for message_id in ids
        ]
        with client.consumer("t", "others") as others:
            assert len(others.receive(10, timeout=TIMEOUT_S)) == 3
            assert shmq_dlq("replay", "g", "--yes", "--count", "2")["replayed"] == 2
            assert shmq_dlq("replay", "g", "--yes") == {"group": "g", "replayed": 1, "members": 0}
            with shmq.Admin(cluster.runtime) as admin:  # they wait for whoever reads retries
                assert [(row.topic, row.lag) for row in admin.lag("g") if row.lag] == [
                    ("%RETRY%g", 3)
                ]
            assert shmq_dlq("replay", "g", "--yes")["replayed"] == 0
            seen = _Seen(fails=0)
            with client.push_consumer("g", seen) as push:
                push.subscribe("t")
                wait_for(lambda: len(seen.calls) == 3, "the replayed ones")
            assert [calls[0][1:] for _, calls in sorted(seen.calls.items())] == [
                ("t", 2, message_id) for message_id in ids
            ]
            assert others.try_next(0.1) is None


@pytest.mark.crash
def test_broker_that_dies_amid_retries_loses_none(tmp_path: Path, cluster_name: str) -> None:
    """Sent back or not when it died: each comes until it is processed."""
    seen = _Seen(fails=2)
    with (
        Cluster(tmp_path, cluster_name, message_delay_level=LEVELS) as cluster,
        cluster.connect() as client,
        client.producer() as producer,
        client.push_consumer("g", seen, threads=4) as consumer,
    ):
        client.create_topic("t", queues=2)
        consumer.subscribe("t")
        for number in range(60):
            producer.send("t", b"%d" % number, timeout=TIMEOUT_S)
            if number in (20, 50):
                cluster.brokers[0].kill()
                cluster.brokers[0].restart()
        wait_for(lambda: len(seen.calls) == 60 and all(len(c) > 2 for c in seen.calls.values()))
        wait_for(lambda: _lag(cluster, "g") == 0)


def test_broker_for_one_client_has_its_services_too(tmp_path: Path, cluster_name: str) -> None:
    with (
        Cluster(tmp_path, cluster_name, session_count="1") as cluster,
        cluster.connect() as client,
        client.producer() as producer,
    ):
        producer.send("t", b"x", delay_level=1)
