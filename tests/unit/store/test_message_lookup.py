"""Lookups in a store: what was sent is found by key, id, place and time, and nothing else is."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from shmq.config import StoreConfig
from shmq.core import core
from shmq.errors import ServiceNotAvailableError, SystemBusyError
from shmq.store.index_files import index_path, index_positions
from shmq.store.message_store import MessageStore
from shmq.store.queues import QueueHandle
from tests.support.clock import SteppedClock
from tests.support.store_process import ClientSide, wait_until
from tests.unit.store.stores import encode

OK = core.STATUS["OK"][0]
FILE_SIZE = 1 << 20
FOREVER_MS = 1 << 60
_BODY_PLACE = 88
"""Of the body in a frame with IPv4 hosts."""


class Sent(NamedTuple):
    key: str
    unique_key: str
    queue_offset: int


@pytest.fixture
def config(tmp_path: Path, cluster_name: str) -> StoreConfig:
    return StoreConfig(
        store_path=tmp_path / "store",
        runtime_path=tmp_path / "run",
        cluster_name=cluster_name,
        commit_log_file_size_bytes=FILE_SIZE,
        hot_segment_count=3,
        max_message_size_bytes=256 << 10,
    )


@contextlib.contextmanager
def _client(store: MessageStore) -> Iterator[ClientSide]:
    offer = store.sessions.open(uid=os.getuid(), pid=os.getpid(), pid_start_time=1, consumer=False)
    fds, offer.fds = offer.fds, {}
    client = ClientSide(offer, fds)  # type: ignore[arg-type] # an Offer is what came over a socket
    try:
        yield client
    finally:
        client.close()
        store.sessions.close(offer.session, offer.generation)


def _send(
    store: MessageStore, handle: QueueHandle, keys: list[str], body: bytes = b"body"
) -> list[Sent]:
    sent = []
    with _client(store) as client:
        store.sessions.grant(client.offer.session, [handle.row])
        for key in keys:
            status, _, queue_offset, _, _, unique_key = client.lanes[0].send(
                *handle, body, "tag", key or None
            )
            assert status == OK
            assert unique_key is not None
            sent.append(Sent(key, unique_key, queue_offset))
    return sent


def _by_key(store: MessageStore, topic: str, key: str, **options: object) -> list[int]:
    wanted = {"begin_ms": 0, "end_ms": FOREVER_MS, "message_count": 64, **options}
    found = store.message_lookup.by_key(topic, key, **wanted)  # type: ignore[arg-type]
    return [message.queue_offset for message in found]


def _by_id(store: MessageStore, unique_key: str) -> list[int]:
    found = store.message_lookup.by_key(
        None,
        unique_key,
        begin_ms=0,
        end_ms=FOREVER_MS,
        message_count=64,
        is_unique_key=True,
    )
    return [message.queue_offset for message in found]


def _fill(store: MessageStore, handle: QueueHandle, file_count: int) -> list[Sent]:
    """Messages of 16 KiB with a key each, over so many files."""
    return _send(store, handle, [f"order-{n}" for n in range(64 * file_count)], bytes(16 << 10))


def test_message_is_found_as_soon_as_it_is_sent(config: StoreConfig) -> None:
    with MessageStore(config) as store:
        handle = store.queues.add("orders", 2)
        assert _by_key(store, "orders", "a") == []
        for round_number in range(3):
            (sent,) = _send(store, handle, ["a"])
            assert _by_id(store, sent.unique_key) == [round_number]
            assert _by_key(store, "orders", "a") == list(range(round_number, -1, -1))
        assert _by_key(store, "paid", "a") == []
        assert _by_key(store, "orders", "tag") == []


def test_each_of_several_keys_leads_to_a_message_and_it_is_given_once(config: StoreConfig) -> None:
    with MessageStore(config) as store:
        handle = store.queues.add("orders", 0)
        _send(store, handle, ["a b a", "b c"])
        assert _by_key(store, "orders", "a") == [0]
        assert _by_key(store, "orders", "b") == [1, 0]
        assert _by_key(store, "orders", "a b") == []
        assert _by_key(store, "orders", "b", message_count=1) == [1]


def test_complete_files_are_indexed_on_disk_and_found_after_a_restart(config: StoreConfig) -> None:
    with MessageStore(config) as store:
        sent = _fill(store, store.queues.add("orders", 0), 5)
        # The last complete file may wait for a newer one to make it leave memory.
        wait_until(lambda: len(index_positions(config.store_path)) >= 4)
        for message in sent[::17]:
            assert _by_key(store, "orders", message.key) == [message.queue_offset]
            assert _by_id(store, message.unique_key) == [message.queue_offset]
    with MessageStore(config) as store:
        wait_until(lambda: store.index_waiting_count == 0)
        assert len(index_positions(config.store_path)) == store.positions.committed_position >> 20
        for message in sent:
            assert _by_key(store, "orders", message.key) == [message.queue_offset]
            assert _by_id(store, message.unique_key) == [message.queue_offset]


def test_lookup_builds_what_is_missing_or_does_not_hold(config: StoreConfig) -> None:
    with MessageStore(config) as store:
        sent = _fill(store, store.queues.add("orders", 0), 4)
    with MessageStore(config) as store:
        wait_until(lambda: store.index_waiting_count == 0)
    index_path(config.store_path, 0).unlink()
    damaged = index_path(config.store_path, FILE_SIZE)
    data = bytearray(damaged.read_bytes())
    data[140] ^= 1
    damaged.write_bytes(data)
    index_path(config.store_path, 2 * FILE_SIZE).write_bytes(b"")
    index_path(config.store_path, 77 * FILE_SIZE).write_bytes(b"stale")
    with MessageStore(config) as store:
        assert not index_path(config.store_path, 77 * FILE_SIZE).exists()
        for message in sent:
            assert _by_key(store, "orders", message.key) == [message.queue_offset]
        assert damaged.read_bytes() != bytes(data)


def test_index_files_that_a_power_cut_tore_are_gone_once_the_store_is_open(
    config: StoreConfig,
) -> None:
    with MessageStore(config) as store:
        _fill(store, store.queues.add("orders", 0), 4)
    with MessageStore(config) as store:
        wait_until(lambda: store.index_waiting_count == 0)
    whole, *torn = (index_path(config.store_path, number * FILE_SIZE) for number in range(3))
    torn[0].write_bytes(b"")
    torn[1].write_bytes(torn[1].read_bytes()[:-1])
    before = whole.read_bytes()
    store = MessageStore(config)
    store.open()  # nothing is built before start()
    try:
        assert whole.read_bytes() == before
        assert not any(path.exists() for path in torn)
        assert store.index_waiting_count == len(torn)
    finally:
        store.start()
        store.stop()


def test_successor_that_adopts_the_memory_finds_what_is_on_disk_and_what_is_not(
    config: StoreConfig,
) -> None:
    store = MessageStore(config)
    store.open()
    store.start()
    sent = _fill(store, store.queues.add("orders", 0), 3)
    store.stop(keep_memory=True)
    with MessageStore(config) as successor:
        assert successor.is_adopted
        for message in sent:
            assert _by_id(successor, message.unique_key) == [message.queue_offset]


def test_store_without_an_index_says_so_and_later_indexes_what_it_has(
    config: StoreConfig,
) -> None:
    without = replace(config, message_index_enable=False)
    with MessageStore(without) as store:
        sent = _fill(store, store.queues.add("orders", 0), 3)
        with pytest.raises(ServiceNotAvailableError, match="message_index_enable"):
            _by_key(store, "orders", "order-1")
    assert index_positions(config.store_path) == []
    with MessageStore(config) as store:
        for message in sent[::20]:
            assert _by_key(store, "orders", message.key) == [message.queue_offset]


def test_messages_of_a_deleted_topic_are_not_found_even_if_it_is_made_anew(
    config: StoreConfig,
) -> None:
    with MessageStore(config) as store:
        (old,) = _send(store, store.queues.add("orders", 0), ["a"])
        store.queues.delete("orders", 0)
        assert _by_key(store, "orders", "a") == []
        assert _by_id(store, old.unique_key) == []
        _send(store, store.queues.add("orders", 0), ["b"])
        assert _by_key(store, "orders", "a") == []
        assert _by_key(store, "orders", "b") != []


def test_expired_messages_are_not_found_and_their_index_goes(config: StoreConfig) -> None:
    with MessageStore(config) as store:
        handle = store.queues.add("orders", 0)
        sent = _fill(store, handle, 4)
        wait_until(lambda: index_path(config.store_path, 0).exists())
        store._appender.set_min_position(FILE_SIZE)  # what retention does first
        assert _by_key(store, "orders", sent[0].key) == []
        _fill(store, handle, 2)
        wait_until(lambda: not index_path(config.store_path, 0).exists())
        assert _by_key(store, "orders", sent[100].key) != []


def test_span_of_time_bounds_a_lookup_by_key_to_the_millisecond(config: StoreConfig) -> None:
    with MessageStore(config) as store:
        handle = store.queues.add("orders", 0)
        _send(store, handle, ["a"])
        (found,) = store.message_lookup.by_key(
            "orders", "a", begin_ms=0, end_ms=FOREVER_MS, message_count=1
        )
        at = found.store_timestamp
        assert _by_key(store, "orders", "a", begin_ms=at, end_ms=at) == [0]
        assert _by_key(store, "orders", "a", begin_ms=at + 1) == []
        assert _by_key(store, "orders", "a", end_ms=at - 1) == []


def test_messages_of_a_span_of_time_come_newest_first_from_all_queues(config: StoreConfig) -> None:
    with MessageStore(config) as store:
        handles = [store.queues.add("orders", queue_id) for queue_id in range(3)]
        for number in range(12):
            _send(store, handles[number % 3], [""], b"%d" % number)
        lookup = store.message_lookup
        found = lookup.between("orders", range(3), begin_ms=0, end_ms=FOREVER_MS, message_count=5)
        assert len(found) == 5
        offsets = [message.physical_offset for message in found]
        assert offsets == sorted(offsets, reverse=True)
        assert found[0].queue_id == 2
        last = found[0].store_timestamp
        args = {"begin_ms": last + 1, "end_ms": FOREVER_MS, "message_count": 5}
        assert lookup.between("orders", range(3), **args) == []


def test_message_is_read_by_its_place_and_in_pieces(config: StoreConfig) -> None:
    with MessageStore(config) as store:
        handle = store.queues.add("orders", 0)
        _send(store, handle, ["a", "b", "c"], bytes(range(256)) * 100)
        lookup = store.message_lookup
        found = lookup.in_queue("orders", 0, 1, 10)
        assert [message.queue_offset for message in found] == [1, 2]
        message = found[0]
        assert lookup.at(message.physical_offset) == message
        pieces = [lookup.read(message, begin, 1000) for begin in range(0, message.size, 1000)]
        frame = b"".join(piece or b"" for piece in pieces)
        status, _, fields = core.parse_frame(frame, physical_offset=message.physical_offset)
        assert status == OK
        assert fields is not None
        assert fields["body"] == bytes(range(256)) * 100
        assert lookup.read(message, message.size, 10) == b""
        for wrong in (message.physical_offset + 1, 3, FILE_SIZE * 50, 1 << 62):
            assert lookup.at(wrong) is None


def test_body_that_holds_a_frame_is_no_message(config: StoreConfig) -> None:
    """A frame that a producer hides in a body could claim the bytes of others behind it."""
    with MessageStore(config) as store:
        handle = store.queues.add("orders", 0)
        _send(store, handle, ["a"])
        (first,) = store.message_lookup.in_queue("orders", 0, 0, 1)
        begin = first.physical_offset + first.size
        hidden = begin + _BODY_PLACE
        frame = encode(
            topic="orders",
            queue_id=0,
            queue_offset=0,
            position=hidden,
            body=b"hidden",
            properties=b"KEYS\x01hidden\x02",
        )
        _send(store, handle, ["b"], frame)
        there = store.lookup.read_log(hidden, len(frame))
        assert there is not None
        assert core.frame_head(there, physical_offset=hidden, room=len(frame)) is not None
        inside = [store.message_lookup.at(at) for at in range(begin + 1, begin + 400)]
        assert inside == [None] * len(inside)
        assert _by_key(store, "orders", "hidden") == []


def test_search_that_takes_too_long_is_ended(config: StoreConfig) -> None:
    class Clock(SteppedClock):
        def monotonic_ns(self) -> int:
            self.advance(ms=2_000)
            return super().monotonic_ns()

    with MessageStore(config) as store:
        _fill(store, store.queues.add("orders", 0), 4)
    slow = MessageStore(config, clock=Clock())
    slow.open()
    slow.start()
    try:
        with pytest.raises(SystemBusyError, match="shorter span"):
            _by_key(slow, "orders", "order-0")
    finally:
        slow.stop()
