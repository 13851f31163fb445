"""A listener that is stuck does not hold up its queue: its message goes back and comes again."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from pathlib import Path

import pytest

import shmq
from shmq.client.push_consumer import PushConsumer
from shmq.subscription import SubscriptionGroupConfig
from tests.support.clock import SteppedClock
from tests.support.cluster import Cluster, wait_for

pytestmark = pytest.mark.cluster

TIMEOUT_S = 30.0
BODIES = [b"%d" % number for number in range(40)]


class _Listener:
    """Is stuck over the first message until it is let go, and refuses it then."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.calls: Counter[tuple[bytes, int]] = Counter()
        self.let_go = threading.Event()
        self.has_ended = threading.Event()

    def __call__(self, message: shmq.Message) -> shmq.ConsumeStatus | None:
        with self._lock:
            self.calls[message.body_bytes, message.reconsume_times] += 1
        if message.body_bytes != BODIES[0] or message.reconsume_times:
            return None
        assert self.let_go.wait(TIMEOUT_S)
        self.has_ended.set()
        return shmq.ConsumeStatus.RECONSUME_LATER


def test_message_of_a_stuck_listener_goes_back_after_the_time_of_its_group(
    tmp_path: Path, cluster_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    listener, clock = _Listener(), SteppedClock()
    with (
        Cluster(tmp_path, cluster_name, message_delay_level="1s 1s 1s") as cluster,
        cluster.connect() as client,
        shmq.Admin(cluster.runtime) as admin,
        client.producer() as producer,
    ):
        client.create_topic("t", queues=1)
        admin.create_group(SubscriptionGroupConfig(group_name="g", consume_timeout_minute=2))
        for body in BODIES:
            producer.send("t", body)
        with PushConsumer(
            client,
            "g",
            listener,
            threads=2,
            max_reconsume_times=-1,
            orderly=False,
            suspend=1.0,
            allocation="average",
            clock=clock,
        ) as consumer:
            consumer.subscribe("t")
            try:
                _be_overdue(consumer, listener, clock, admin, caplog)
            finally:
                listener.let_go.set()
            assert listener.has_ended.wait(TIMEOUT_S)
        # What it said in the end, that it could not process the message, is not asked any more.
        assert admin.runtime_info("broker-a")["sendBackToRetry"] == "1"


def _be_overdue(
    consumer: PushConsumer,
    listener: _Listener,
    clock: SteppedClock,
    admin: shmq.Admin,
    caplog: pytest.LogCaptureFixture,
) -> None:
    look = consumer._overdue.look  # its thread looks each minute
    wait_for(lambda: listener.calls[BODIES[0], 0], "the first call")
    clock.advance(ms=119_999)
    look()
    assert consumer.overdue_count == 0
    assert listener.calls[BODIES[0], 1] == 0
    clock.advance(ms=1)
    with caplog.at_level(logging.WARNING, logger="shmq.client"):
        look()
    assert consumer.overdue_count == 1
    assert any("listener overdue group=g" in record.message for record in caplog.records)
    wait_for(lambda: listener.calls[BODIES[0], 1], "the message again")
    # Those that its thread had taken with it were passed on; nothing waits for it any more.
    wait_for(lambda: all(listener.calls[body, 0] for body in BODIES), "what was behind it")
    wait_for(lambda: sum(queue.lag for queue in admin.lag("g")) == 0, "the progress")
    look()
    assert consumer.overdue_count == 1
    assert set(listener.calls.values()) == {1}
