"""The broker's Python stays out of the way of messages: nothing of it runs for one, none of their
bytes passes a socket, and nothing runs while nothing comes."""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

import shmq
from shmq.core import core
from tests.support.broker_process import BrokerClient, BrokerProcess
from tests.support.cluster import Cluster
from tests.support.require import require_program
from tests.support.store_process import wait_until

MARK = "mark-of-a-body"
SOCKET_CALL = re.compile(r"\b(?:sendmsg|recvmsg|sendto|recvfrom|sendmmsg|recvmmsg)\(")


def pass_messages(producer: BrokerClient, consumer: BrokerClient, count: int) -> None:
    """Send that many, and consume them as they come."""
    where = producer.send_queues("t")[0]
    queue_offset = consumer.reader.visible_max(where.row)
    end = queue_offset + count
    body = MARK.encode() * 7
    for _ in range(count // 500):
        producer.lanes[0].put_many(where.row, where.generation, [body] * 500, timeout=30.0)
    assert producer.lanes[0].drain(30.0) == 0
    while queue_offset < end:
        status, _, queue_offset = consumer.reader.read(
            where.row, where.generation, queue_offset, 1000
        )
        assert status in (0, core.STATUS["EMPTY"][0])


def test_no_python_runs_for_a_message(tmp_path: Path, cluster_name, monkeypatch):
    calls_path = tmp_path / "calls"
    calls_path.write_bytes(bytes(8))
    monkeypatch.setenv("SHMQ_TEST_CALLS", str(calls_path))

    def calls() -> int:
        return int.from_bytes(calls_path.read_bytes(), "little")

    with (
        BrokerProcess(
            tmp_path,
            cluster_name,
            module="tests.support.profiled_broker",
            commit_log_file_size_bytes="32MiB",
        ) as broker,
        BrokerClient(broker, "producer") as producer,
        BrokerClient(broker, "consumer") as consumer,
    ):
        pass_messages(producer, consumer, 500)
        before = calls()
        assert before > 0
        pass_messages(producer, consumer, 500)
        for_few = calls() - before
        before = calls()
        pass_messages(producer, consumer, 50_000)
        for_many = calls() - before
    assert for_many < for_few + 5_000, (for_few, for_many)  # a tenth of a call for a message


def flow(producer: shmq.Producer, consumer: shmq.Consumer, count: int) -> None:
    """As pass_messages, as programs do it: sends of every kind, a group that settles."""
    for number in range(count):
        if number % 100:
            producer.send_oneway("t", MARK.encode(), tag="x", key=str(number))
        else:
            producer.send("t", MARK.encode() * 7)
    producer.drain(60.0)
    left = count
    while left:
        messages = consumer.receive(min(left, 500), timeout=60.0)
        assert messages
        left -= len(messages)
    consumer.receive(1, timeout=0.0)  # settles the last


def test_no_python_runs_for_a_message_of_producers_and_groups(
    tmp_path: Path, cluster_name, monkeypatch
):
    calls_path = tmp_path / "calls"
    calls_path.write_bytes(bytes(8))
    monkeypatch.setenv("SHMQ_TEST_CALLS", str(calls_path))
    with (
        Cluster(tmp_path, cluster_name, module="tests.support.profiled_broker") as cluster,
        cluster.connect() as client,
        client.producer() as producer,
        client.consumer("t", "g") as consumer,
    ):
        client.create_topic("t", queues=4)
        flow(producer, consumer, 500)
        before = int.from_bytes(calls_path.read_bytes(), "little")
        assert before > 0
        flow(producer, consumer, 30_000)
        calls = int.from_bytes(calls_path.read_bytes(), "little") - before
    assert calls < 15_000  # what runs once a second, not half a call for a message


def test_no_body_of_producers_and_groups_crosses_a_socket(tmp_path: Path, cluster_name):
    strace = require_program("strace", "strace")
    trace = tmp_path / "trace"
    with (
        Cluster(tmp_path, cluster_name) as cluster,
        cluster.connect() as client,
        client.producer() as producer,
        client.consumer("t", "g") as consumer,
    ):
        client.create_topic("t", queues=4)
        flow(producer, consumer, 500)
        pid = cluster.brokers[0].pid
        with traced(strace, trace, pid):
            flow(producer, consumer, 20_000)
            client.create_topic("seen", queues=1)  # a request, to see that the trace sees
    check_trace(trace)


def test_no_body_crosses_a_socket(tmp_path: Path, cluster_name):
    strace = require_program("strace", "strace")
    trace = tmp_path / "trace"
    with (
        BrokerProcess(tmp_path, cluster_name) as broker,
        BrokerClient(broker, "producer") as producer,
        BrokerClient(broker, "consumer") as consumer,
    ):
        producer.send_queues("t")
        with traced(strace, trace, broker.pid):
            pass_messages(producer, consumer, 20_000)
            consumer.members("seen")  # a request, to see that the trace sees
    check_trace(trace)


@contextlib.contextmanager
def traced(strace: str, trace: Path, pid: int) -> Iterator[None]:
    """Write what a process does with sockets in the block, with the bytes."""
    tracer = subprocess.Popen(
        [strace, "-f", "-s", "65536", "-e", "trace=network", "-o", trace, "-p", str(pid)],
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: _traced_by(pid) == tracer.pid)
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait()


def check_trace(trace: Path) -> None:
    """Of 20,000 messages there is none in it, and there are far fewer calls."""
    text = trace.read_text("utf-8", "backslashreplace")
    assert SOCKET_CALL.search(text)
    assert MARK not in text
    assert len(SOCKET_CALL.findall(text)) < 500


def _traced_by(pid: int) -> int:
    """The tracer of all threads of a process; 0 if some are not traced yet."""
    tracers = set()
    for task in os.listdir(f"/proc/{pid}/task"):
        status = Path(f"/proc/{pid}/task/{task}/status").read_text("ascii")
        match = re.search(r"^TracerPid:\t(\d+)$", status, re.MULTILINE)
        assert match is not None
        tracers.add(int(match[1]))
    return tracers.pop() if len(tracers) == 1 else 0


@pytest.mark.slow
def test_idle_broker_with_clients_uses_hardly_any_processor(tmp_path: Path, cluster_name):
    with (
        BrokerProcess(tmp_path, cluster_name) as broker,
        BrokerClient(broker, "producer") as producer,
        BrokerClient(broker, "consumer") as consumer,
    ):
        pass_messages(producer, consumer, 500)
        consumer.heartbeat(consumers={"g": ["t"]})
        consumer.claim("g", "t", {0: 0, 1: 1, 2: 2, 3: 3})
        begin_ns, begin_cpu_ns = time.monotonic_ns(), _cpu_ns(broker.pid)
        wait_until(lambda: time.monotonic_ns() - begin_ns > 6_000_000_000)
        share = (_cpu_ns(broker.pid) - begin_cpu_ns) / (time.monotonic_ns() - begin_ns)
    assert share < 0.01, f"{share:.2%} of a core"


def _cpu_ns(pid: int) -> int:
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        total += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text("ascii").split()[0])
    return total


class SchedAttr(ctypes.Structure):
    """struct sched_attr of sched_getattr(2)."""

    _fields_: ClassVar = [
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime_ns", ctypes.c_uint64),
        ("deadline_ns", ctypes.c_uint64),
        ("period_ns", ctypes.c_uint64),
    ]


def slice_ns(thread: int) -> int:
    """How long the scheduler lets a thread run at a time; 0 before Linux 6.12."""
    call = {"x86_64": 315, "aarch64": 275}[os.uname().machine]
    attr = SchedAttr()
    size = ctypes.sizeof(attr)
    assert ctypes.CDLL(None).syscall(call, thread, ctypes.byref(attr), size, 0) == 0
    return attr.runtime_ns


def test_append_thread_has_short_slices(tmp_path: Path, cluster_name: str) -> None:
    if slice_ns(0) == 0:
        pytest.skip("Linux 6.12 or later lets a thread choose its slice; this one does not")
    with BrokerProcess(tmp_path, cluster_name) as broker:
        slices = {
            (task / "comm").read_text().strip(): slice_ns(int(task.name))
            for task in Path(f"/proc/{broker.pid}/task").iterdir()
        }
        assert slices["shmq-append"] == 100_000
        assert slices["shmq-flush"] == slice_ns(0)
