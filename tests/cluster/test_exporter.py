"""The exporter with real brokers: what it shows is what happened, and goes when its cause goes."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shmq
from shmq.clock import SYSTEM_CLOCK
from shmq.core import core
from shmq.exporter.collector import Collector
from shmq.metrics import BROKER_LABELS, METRICS, MetricScope
from shmq.monitor.broker_pages import BrokerPages, find_stores
from shmq.monitor.monitor import Monitor
from tests.support.broker_process import ROOT, BrokerClient, BrokerProcess
from tests.support.cluster import Cluster, wait_for
from tests.support.dev_shm import DEV_SHM
from tests.support.exporter import TIMEOUT_S, Exporter, Samples, samples_of, value

GROUPS = "shmq_consumer_lag_messages"
TOPICS = ("shmq_messages_in_total", "shmq_bytes_in_total", "shmq_topic_messages")


@pytest.fixture
def exporter(cluster: Cluster) -> Iterator[Exporter]:
    with Exporter(cluster.runtime) as made:
        yield made


def shows(exporter: Exporter, name: str, wanted: float, **labels: str) -> Callable[[], bool]:
    return lambda: value(exporter.look(), name, **labels) == wanted


def test_shows_what_was_sent_and_consumed(
    exporter: Exporter, client: shmq.Client, topic: str, group: str
) -> None:
    producer = client.producer()
    for number in range(100):
        producer.send(topic, b"%d" % number)
    seen = exporter.look()
    assert value(seen, "shmq_messages_in_total", topic=topic) == 100
    assert value(seen, "shmq_topic_messages", topic=topic) == 100
    assert (value(seen, "shmq_bytes_in_total", topic=topic) or 0) > 100 * 91
    with client.consumer(topic, group=group) as consumer:
        left = 100
        while left:
            for message in consumer.receive(left, timeout=TIMEOUT_S):
                with message.process():
                    left -= 1
        labels = {"group": group, "topic": topic}
        wait_for(shows(exporter, "shmq_consumer_lag_messages", 0, **labels), "no lag")
        seen = exporter.look()
        assert value(seen, "shmq_messages_out_total", **labels) == 100
        assert value(seen, "shmq_consumer_lag_seconds", **labels) == 0
        assert value(seen, "shmq_consumer_members", group=group) == 1
    producer.send(topic, b"more")
    wait_for(shows(exporter, "shmq_consumer_lag_messages", 1, **labels), "a lag of one")
    wait_for(lambda: (value(exporter.look(), "shmq_consumer_lag_seconds", **labels) or 0) > 2)
    wait_for(shows(exporter, "shmq_consumer_members", 0, group=group), "no members")


def test_what_a_group_passed_counts_from_where_it_began(own_cluster: Cluster) -> None:
    broker = own_cluster.brokers[0]
    name = "shmq_messages_out_total"

    def pass_some(client: shmq.Client, count: int, group: str) -> None:
        with client.consumer("t", group=group) as consumer:
            for _ in range(count):
                message = consumer.try_next(TIMEOUT_S)
                assert message is not None
                with message.process():
                    pass

    with own_cluster.connect() as client, Exporter(own_cluster.runtime) as exporter:
        producer = client.producer()
        for _ in range(30):
            producer.send("t", b"x")
        pass_some(client, 10, "g")  # it comes and goes between two rounds of the broker
        wait_for(shows(exporter, name, 10, group="g"), "the first ten")
        with client.consumer("t", group="late", from_where="CONSUME_FROM_LAST_OFFSET") as consumer:
            assert consumer.try_next(0.1) is None
        wait_for(shows(exporter, name, 0, group="late"), "a group that begins at the end")
        broker.stop()
        broker.restart()
        pass_some(client, 5, "g")
        wait_for(shows(exporter, name, 5, group="g"), "those of this life")


def test_a_group_waits_since_its_next_message_was_stored(
    cluster: Cluster, client: shmq.Client, topic: str, group: str
) -> None:
    producer = client.producer()
    producer.send(topic, b"first")
    with client.consumer(topic, group=group) as consumer:
        message = consumer.try_next(TIMEOUT_S)
        assert message is not None
        with message.process():
            pass
    begin_ms = SYSTEM_CLOCK.wall_ms()
    for _ in range(10):
        producer.send(topic, b"more")
    end_ms = SYSTEM_CLOCK.wall_ms()
    (store,) = find_stores(cluster.runtime)
    pages = BrokerPages(store)
    pages.look()

    def waiting() -> list[int]:
        rows = pages.queue_rows()
        mine = (one for one in pages.stats().groups if one.group == group)
        return [one.waiting_since_ms for one in mine if rows[one.queue_row].topic == topic]

    since = wait_for(lambda: [ms for ms in waiting() if ms], "a time")
    assert all(begin_ms - 1 <= ms <= end_ms for ms in since)
    pages.close()


def test_counts_what_sends_took(exporter: Exporter, client: shmq.Client, topic: str) -> None:
    before = value(exporter.look(), "shmq_send_duration_seconds_count") or 0
    producer = client.producer()
    for _ in range(50):
        producer.send(topic, b"x")
    wait_for(shows(exporter, "shmq_send_duration_seconds_count", before + 50), "the sends")
    seen = exporter.look()
    buckets = [count for _, count in seen["shmq_send_duration_seconds_bucket"]]
    assert buckets == sorted(buckets)
    assert buckets[-1] == value(seen, "shmq_send_duration_seconds_count")
    assert seen["shmq_send_duration_seconds_bucket"][0][0]["le"] == "1e-06"
    assert (value(seen, "shmq_send_duration_seconds_sum") or 0) > 50e-6 / 10
    wait_for(lambda: value(exporter.look(), "shmq_fsync_duration_seconds_count"), "a sync")


def test_shows_nothing_that_is_not_in_the_table(
    cluster: Cluster, client: shmq.Client, topic: str, group: str
) -> None:
    client.producer().send(topic, b"x")
    with (
        client.consumer(topic, group=group) as consumer,
        Exporter(cluster.runtime, "--queues") as exporter,
    ):
        assert consumer.receive(1, timeout=TIMEOUT_S)
        name = "shmq_consumer_lag_messages"
        wait_for(lambda: value(exporter.look(), name, group=group, topic=topic) is not None)
        seen = exporter.look()
    for name, series in seen.items():
        plain = re.sub("_(bucket|sum|count)$", "", name)
        metric = METRICS[name if name in METRICS else plain]
        wanted = {*metric.labels, *(["le"] if name.endswith("_bucket") else [])}
        if metric.scope is not MetricScope.HOST:
            wanted |= {*BROKER_LABELS}
        for labels, _ in series:
            assert labels.keys() == wanted, name
    assert value(seen, "shmq_queue_messages", topic=topic, queue="0") is not None


def test_queues_are_shown_by_request_only(exporter: Exporter) -> None:
    assert not [name for name in exporter.look() if name.startswith("shmq_queue_")]


def test_counts_what_is_refused_by_its_status(exporter: Exporter, cluster: Cluster) -> None:
    name = "shmq_records_refused_total"
    before = value(exporter.look(), name, status="NOT_GRANTED") or 0
    with BrokerClient(cluster.brokers[0], "stranger") as stranger:
        for _ in range(3):
            stranger.lanes[0].put(60, 1, b"into a queue that it has no grant for")
        assert stranger.lanes[0].drain(TIMEOUT_S) == 0
        assert value(exporter.look(), name, status="NOT_GRANTED") == before + 3
        assert (value(exporter.look(), "shmq_sessions") or 0) >= 1


def test_counts_a_full_ring_and_takes_no_lie_of_a_producer(own_cluster: Cluster) -> None:
    broker = own_cluster.brokers[0]
    with (
        BrokerClient(broker, "a") as client,
        Exporter(own_cluster.runtime) as exporter,
    ):
        where = client.send_queues("t")[0]
        lane = client.lanes[0]
        broker.process.send_signal(signal.SIGSTOP)
        try:
            body = bytes(16_000)
            while lane.put(where.row, where.generation, body, timeout=0.0) >= 0:
                pass
        finally:
            broker.process.send_signal(signal.SIGCONT)
        wait_for(shows(exporter, "shmq_ring_full_total", 1), "the full ring")
        assert lane.drain(TIMEOUT_S) == 0
        assert client.ingress is not None
        with memoryview(client.ingress) as page:  # what this producer may write, and nobody trusts
            place = core.LANE_LATENCY_PLACE
            page[place : place + 168] = bytes([255]) * 168
        waiting = threading.Event()
        for _ in range(20):
            waiting.wait(0.1)
            seen = exporter.look()
            assert (value(seen, "shmq_send_duration_seconds_count") or 0) < 2**41 * 20
            assert value(seen, "shmq_broker_up") == 1
        sequence = lane.put(where.row, where.generation, b"x", keep=True)
        assert lane.wait(sequence, timeout=TIMEOUT_S)[0] == 0


def test_shows_what_is_sent_back_given_up_and_delayed(
    exporter: Exporter, client: shmq.Client, topic: str, group: str
) -> None:
    producer = client.producer()
    for body in (b"again", b"dead"):
        producer.send(topic, body)
    with client.consumer(topic, group=group) as consumer:
        for delay_level in (1, -1):
            message = consumer.try_next(TIMEOUT_S)
            assert message is not None
            consumer.send_back(message, delay_level)
        wait_for(shows(exporter, "shmq_dead_letters_total", 1), "the dead letter")
        # Nobody reads its retries: it is behind there, though it has no offset.
        retries = {"group": group, "topic": f"%RETRY%{group}"}
        wait_for(shows(exporter, "shmq_consumer_lag_messages", 1, **retries), "the retry")
        assert value(exporter.look(), "shmq_retries_total") == 1
        assert value(exporter.look(), "shmq_messages_in_total", topic=f"%DLQ%{group}") == 1
    producer.send(topic, b"later", delay_level=5)
    wait_for(lambda: (value(exporter.look(), "shmq_delayed_messages") or 0) >= 1, "the delayed one")
    wait_for(lambda: (value(exporter.look(), "shmq_delayed_delivered_total") or 0) >= 1)


def test_a_slave_shows_itself_and_not_the_log_a_second_time(
    own_cluster: Cluster, tmp_path: Path
) -> None:
    with own_cluster.connect() as client, Exporter(own_cluster.runtime) as exporter:
        client.producer().send("t", b"x")
        master = own_cluster.brokers[0]
        (tmp_path / "slave").mkdir()
        with BrokerProcess(
            tmp_path / "slave",
            master.cluster_name,
            name=master.name,
            broker_id=1,
            runtime=own_cluster.runtime,
            broker_role="SLAVE",
        ):
            wait_for(shows(exporter, "shmq_ha_replica_in_sync", 1, replica="1"), "the slave")
            wait_for(shows(exporter, "shmq_ha_replica_lag_bytes", 0, replica="1"), "all of it")
            seen = exporter.look()
            assert value(seen, "shmq_ha_role", broker_id="0", role="master") == 1
            assert value(seen, "shmq_ha_role", broker_id="1", role="slave") == 1
            assert value(seen, "shmq_ha_in_sync_replicas") == 2
            assert value(seen, "shmq_messages_in_total", topic="t") == 1  # one series
            name = "shmq_log_appended_bytes_total"
            wait_for(lambda: len({v for _, v in exporter.look()[name]}) == 1, "the same end")
        wait_for(lambda: "shmq_ha_replica_in_sync" not in exporter.look(), "no slave")


def test_a_dead_broker_is_shown_as_dead_and_its_successor_as_alive(own_cluster: Cluster) -> None:
    broker = own_cluster.brokers[0]
    with own_cluster.connect() as client, Exporter(own_cluster.runtime) as exporter:
        producer = client.producer()
        producer.send("t", b"x")
        start = value(exporter.look(), "shmq_start_time_seconds")
        broker.kill()
        seen = exporter.look()
        assert value(seen, "shmq_broker_up") == 0
        assert "shmq_messages_in_total" not in seen
        broker.restart()
        wait_for(shows(exporter, "shmq_broker_up", 1), "the successor")
        producer.send("t", b"y", timeout=TIMEOUT_S)
        wait_for(lambda: value(exporter.look(), "shmq_start_time_seconds") not in (None, start))
        assert value(exporter.look(), "shmq_messages_in_total", topic="t") == 2
        assert value(exporter.look(), "shmq_exporter_problems") == 0
    with Exporter(own_cluster.runtime) as exporter:
        broker.stop()
        assert "shmq_broker_up" not in exporter.look()


def test_memory_that_is_gone_is_let_go_of_though_its_mark_is_left(own_cluster: Cluster) -> None:
    broker = own_cluster.brokers[0]
    with contextlib.closing(Monitor(own_cluster.runtime)) as monitor:
        monitor.look(lambda *_, **__: None)
        broker.kill()
        for path in DEV_SHM.glob(f"shmq.{broker.cluster_name}.*"):
            path.unlink()
        assert find_stores(own_cluster.runtime)
        assert _mapped(broker.cluster_name)
        monitor.look(lambda *_, **__: None)
        assert not _mapped(broker.cluster_name)


def _mapped(cluster_name: str) -> list[str]:
    """Shared memory of a cluster's brokers that this process maps."""
    lines = Path("/proc/self/maps").read_text("utf-8").splitlines()
    return [line for line in lines if f"/shmq.{cluster_name}." in line]


def test_a_hung_broker_is_shown_without_asking_it(own_cluster: Cluster) -> None:
    broker = own_cluster.brokers[0]
    with Exporter(own_cluster.runtime) as exporter:
        wait_for(lambda: value(exporter.look(), "shmq_heartbeat_age_seconds") is not None)
        broker.process.send_signal(signal.SIGSTOP)
        try:
            wait_for(lambda: (value(exporter.look(), "shmq_heartbeat_age_seconds") or 0) > 2.5)
            assert value(exporter.look(), "shmq_broker_up") == 1
        finally:
            broker.process.send_signal(signal.SIGCONT)
        wait_for(lambda: (value(exporter.look(), "shmq_heartbeat_age_seconds") or 9) < 2)


def test_a_cap_takes_the_many_and_leaves_the_brokers(own_cluster: Cluster) -> None:
    with own_cluster.connect() as client:
        producer = client.producer()
        for number in range(40):
            producer.send(f"topic-{number}", b"x")
    with Exporter(own_cluster.runtime, "--series-max", "120") as exporter:
        wait_for(lambda: value(exporter.look(), "shmq_ha_role") is not None)
        seen = exporter.look()
        assert value(seen, "shmq_exporter_series") == 120
        assert value(seen, "shmq_exporter_series_dropped") == pytest.approx(86, abs=40)
        assert value(seen, "shmq_broker_up") == 1
        assert value(seen, "shmq_send_duration_seconds_count") is not None
        assert 0 < len(seen["shmq_messages_in_total"]) < 40


def test_a_cap_takes_queues_before_topics_before_groups(tmp_path: Path, cluster_name: str) -> None:
    with Cluster(tmp_path, cluster_name, brokers=2) as cluster, cluster.connect() as client:
        client.producer().send("orders", b"x")
        with client.consumer("orders", group="g") as consumer:
            wait_for(lambda: consumer.receive(8, timeout=1), "the message")
            with Exporter(cluster.runtime, "--queues") as exporter:

                def everything() -> Samples | None:
                    seen = exporter.look()
                    there = [len(seen.get(name, ())) for name in ("shmq_ha_role", GROUPS)]
                    return seen if there == [2, 2] else None

                seen = wait_for(everything, "a group in two brokers")
        total = int(value(seen, "shmq_exporter_series") or 0)
        queue_count = sum(len(found) for name, found in seen.items() if "_queue_" in name)
        topic_count = sum(len(seen[name]) for name in TOPICS)
        assert queue_count > topic_count > 6
        with Exporter(cluster.runtime, "--queues", "--series-max", f"{total - 7}") as exporter:
            less = exporter.look()
        assert all(len(less[name]) == len(seen[name]) for name in TOPICS), "of both brokers"
        left = f"{total - queue_count - topic_count // 2}"
        with Exporter(cluster.runtime, "--queues", "--series-max", left) as exporter:
            less = exporter.look()
        assert not any("_queue_" in name for name in less)
        assert 0 < len(less["shmq_messages_in_total"]) < len(seen["shmq_messages_in_total"])
        assert len(less[GROUPS]) == 2


def test_says_in_its_log_what_it_may_not_look_into(tmp_path: Path, caplog: Any) -> None:
    runtime = tmp_path / "no-folder"
    collector = Collector(runtime)
    try:
        with caplog.at_level("WARNING", "shmq.exporter"):
            collector.collect()
            assert not caplog.records
            runtime.write_bytes(b"")  # what is no folder lets nobody in
            for _ in range(2):
                problems = [one for one in collector.collect() if one.name.endswith("_problems")]
        assert [sample.value for one in problems for sample in one.samples] == [1]
    finally:
        collector.close()
    [said] = [record.getMessage() for record in caplog.records]
    assert said == f"brokers not shown: {runtime} is no folder"


def test_listens_on_the_socket_that_systemd_passes(own_cluster: Cluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as passed:
        port = passed.getsockname()[1]
        program = (
            "import os, sys; fd = int(sys.argv[1]); os.dup2(fd, 3); os.environ['LISTEN_FDS'] = '1';"
            "os.environ['LISTEN_PID'] = str(os.getpid());"
            "os.execv(sys.executable, [sys.executable, '-m', 'shmq.exporter', *sys.argv[2:]])"
        )
        process = subprocess.Popen(
            [
                sys.executable, "-c", program, str(passed.fileno()),
                "--runtime", str(own_cluster.runtime),
            ],
            cwd=ROOT,
            pass_fds=(passed.fileno(),),
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=TIMEOUT_S) as page:
            assert "shmq_broker_up" in samples_of(page.read().decode())
        with pytest.raises(urllib.error.HTTPError, match="404") as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=TIMEOUT_S)
        refused.value.close()
    finally:
        process.terminate()
        assert process.wait(TIMEOUT_S) == 0


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("--listen", "here", "--listen here: wanted HOST:PORT"),
        ("--listen", ":5557", "--listen :5557: wanted HOST:PORT"),
        ("--series-max", "-1", "-1: wanted a whole number from 1 on"),
        ("--series-max", "0", "0: wanted a whole number from 1 on"),
    ],
)
def test_refuses_options_that_make_no_sense(
    tmp_path: Path, option: str, value: str, wanted: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shmq.exporter", option, value, "--runtime", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 2
    assert wanted in done.stderr
