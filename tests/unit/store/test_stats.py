"""The stats object, from the side that writes it and the side that reads it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shmq.clock import SYSTEM_CLOCK
from shmq.config import StoreConfig
from shmq.core import core
from shmq.monitor.broker_pages import BrokerPages
from shmq.monitor.monitor import Monitor
from shmq.shm.in_use import marked_stores
from shmq.store.message_store import MessageStore
from shmq.store.queues import QueueHandle
from shmq.store.stats import Progress
from tests.support.store_process import ClientSide

SHM = Path("/dev/shm")


def small(folder: Path, cluster_name: str) -> StoreConfig:
    return StoreConfig(
        store_path=folder / "store",
        runtime_path=folder / "run",
        cluster_name=cluster_name,
        commit_log_file_size_bytes=1 << 20,
        hot_segment_count=3,
        max_message_size_bytes=256 << 10,
    )


def send(store: MessageStore, handle: QueueHandle, count: int) -> None:
    """Messages of a client in this process."""
    offer = store.sessions.open(uid=os.getuid(), pid=os.getpid(), pid_start_time=1)
    fds, offer.fds = offer.fds, {}
    client = ClientSide(offer, fds)  # type: ignore[arg-type] # an Offer is what came over a socket
    try:
        store.sessions.grant(offer.session, [handle.row])
        for _ in range(count):
            assert client.lanes[0].send(*handle, b"x")[0] == 0
    finally:
        client.close()
        store.sessions.close(offer.session, offer.generation)


@pytest.fixture
def store(tmp_path: Path, cluster_name: str) -> Iterator[MessageStore]:
    with MessageStore(small(tmp_path, cluster_name)) as opened:
        yield opened


@pytest.fixture
def pages(store: MessageStore) -> Iterator[BrokerPages]:
    (name,) = marked_stores(store.config.runtime_folder())
    made = BrokerPages(name)
    made.look()
    yield made
    made.close()


def test_numbers_are_read_as_they_were_said(store: MessageStore, pages: BrokerPages) -> None:
    handle = store.queues.add("t", 3)
    store.stats.value("shmq_clients", 2**64 - 1)
    store.stats.value("shmq_consumer_members", 5, "größte")
    store.stats.progress("g", handle, Progress(7, 8, 9))
    store.stats.end_round()
    look = pages.stats()
    assert look.values == {
        "shmq_clients": {"": 2**64 - 1},
        "shmq_consumer_members": {"größte": 5},
    }
    (group,) = look.groups
    assert group.group == "g"
    assert (group.queue_row, group.row_generation) == handle
    assert (group.consumer_offset, group.passed_count, group.waiting_since_ms) == (7, 8, 9)
    assert pages.queue_rows()[handle.row].topic == "t"


def test_a_monitor_makes_lag_and_age_and_passes_over_a_queue_that_is_gone(
    tmp_path: Path, cluster_name: str
) -> None:
    config = replace(small(tmp_path, cluster_name), runtime_path=tmp_path / "broker-a-0.d")
    with MessageStore(config) as store:
        handle = store.queues.add("t", 0, first_queue_offset=100)
        gone = QueueHandle(handle.row, handle.generation - 1)
        store.stats.value("shmq_ha_role", 1, "master")
        store.stats.progress("ends", handle, Progress(100, 3, 0))
        store.stats.progress("gone", gone, Progress(0, 0, 0))
        store.stats.end_round()
        seen: dict[tuple[str, str], float] = {}

        def take(name: str, labels: dict[str, str], value: float, *, suffix: str = "") -> None:
            if "group" in labels:
                seen[name + suffix, labels["group"]] = value

        monitor = Monitor(tmp_path)
        monitor.look(take)
        assert monitor.problems == {}
        assert seen == {
            ("shmq_consumer_lag_messages", "ends"): 0,
            ("shmq_consumer_lag_seconds", "ends"): 0,
            ("shmq_messages_out_total", "ends"): 3,
        }
        send(store, handle, 5)
        hour_ago_ms = SYSTEM_CLOCK.wall_ms() - 3_600_000
        store.stats.value("shmq_ha_role", 1, "master")
        store.stats.progress("ends", handle, Progress(102, 5, hour_ago_ms))
        store.stats.end_round()
        monitor.look(take)
        assert monitor.problems == {}
        assert seen["shmq_consumer_lag_messages", "ends"] == 3
        assert 3600 <= seen["shmq_consumer_lag_seconds", "ends"] < 3600 + 120
        monitor.close()


def test_what_is_not_said_again_is_gone_and_its_row_another_s(
    store: MessageStore, pages: BrokerPages
) -> None:
    def say(*labels: str) -> dict[str, int]:
        for label in labels:
            store.stats.value("shmq_consumer_members", len(label), label)
        store.stats.end_round()
        return pages.stats().values.get("shmq_consumer_members", {})

    assert say("a", "bb", "ccc") == {"a": 1, "bb": 2, "ccc": 3}
    assert say("a", "ccc") == {"a": 1, "ccc": 3}
    assert say("a", "dddd", "ccc") == {"a": 1, "dddd": 4, "ccc": 3}
    assert pages.stats().head["row_count"] == 3
    assert say() == {}


def test_more_rows_than_there_were_are_made(store: MessageStore, pages: BrokerPages) -> None:
    wanted = {f"group-{number}": number for number in range(3000)}
    assert pages.stats().values == {}
    for group, number in wanted.items():
        store.stats.value("shmq_consumer_members", number, group)
    store.stats.end_round()
    assert pages.stats().values == {"shmq_consumer_members": wanted}


def test_a_label_that_is_too_long_is_cut(store: MessageStore, pages: BrokerPages) -> None:
    store.stats.value("shmq_consumer_members", 1, "x" * 300)
    store.stats.end_round()
    (label,) = pages.stats().values["shmq_consumer_members"]
    assert label == "x" * (256 - len("shmq_consumer_members\n"))


def test_refusals_syncs_and_sends_are_there_from_the_beginning(
    store: MessageStore, pages: BrokerPages
) -> None:
    store.stats.end_round()
    look = pages.stats()
    assert look.refusals == {}
    assert len(look.send.counts) == len(core.LATENCY_BOUNDS_NS) + 1
    assert look.looked_ns > 0


def test_the_object_goes_with_its_broker_and_the_next_has_its_own(
    tmp_path: Path, cluster_name: str
) -> None:
    config = small(tmp_path, cluster_name)

    def objects() -> list[Path]:
        return list(SHM.glob(f"shmq.{cluster_name}.*.stats.0"))

    first = MessageStore(config)
    first.open()
    first.start()
    first.stats.value("shmq_clients", 1)
    (before,) = (path.stat().st_ino for path in objects())
    first.stop(keep_memory=True)
    assert objects() == []
    with MessageStore(config) as second:
        assert second.is_adopted
        (after,) = (path.stat().st_ino for path in objects())
        assert after != before
        (name,) = marked_stores(config.runtime_folder())
        pages = BrokerPages(name)
        pages.look()
        assert pages.stats().values == {}
        pages.close()
    assert objects() == []
