"""Copies of messages, and a reader that has nothing of the log: what a client without the right to
map consumes with.
"""

from __future__ import annotations

import gc
import os
import random

import pytest

from shmq import errors
from shmq.core import core
from shmq.store.queues import QueueHandle
from tests.support.store_process import StoreClient
from tests.unit.core.log_in_memory import ENTRY, FILE_SIZE, LogInMemory

OK, EMPTY, TOO_SMALL, FENCED = (
    core.STATUS[name][0] for name in ("OK", "EMPTY", "OFFSET_TOO_SMALL", "FENCED")
)


def frames_of(log: LogInMemory, *bodies: bytes) -> bytes:
    """The frames of messages, one behind the other, as a broker sends them."""
    frames = b""
    for body in bodies:
        log.put(body, {"TAGS": "t", "KEYS": body.decode()[:8]})
        place, _, size = ENTRY.unpack(log.entries[-1])
        number, at = divmod(place - log.begin, FILE_SIZE)
        frames += os.pread(log.file_fds[number], size, at)
    return frames


class Keeper:
    """Told what becomes of messages."""

    def __init__(self) -> None:
        self.settled: list[bytes] = []

    def settle(self, message: core.Message) -> None:
        self.settled.append(bytes(message.body))

    def process(self, message: core.Message) -> None:
        raise NotImplementedError


def test_copies_are_messages_like_those_in_the_log(log: LogInMemory) -> None:
    frames = frames_of(log, b"one", b"two", b"three")
    keeper = Keeper()
    copies = log.log_map.messages(frames, keeper)  # type: ignore[arg-type]
    log.map()
    originals = log.read()
    for copy, original in zip(copies, originals, strict=True):
        assert bytes(copy.body) == bytes(original.body)
        for name in ("topic", "tag", "keys", "properties", "queue_offset", "physical_offset"):
            assert getattr(copy, name) == getattr(original, name)
        assert copy.offset_message_id == original.offset_message_id
        assert copy.body.readonly
    copies[1].settle()
    assert keeper.settled == [b"two"]


def test_views_of_a_copy_outlive_everything_else(log: LogInMemory) -> None:
    views = [message.body for message in log.log_map.messages(frames_of(log, b"a" * 5000, b"b"))]
    log.log_map.close()
    gc.collect()
    assert [bytes(view[:1]) for view in views] == [b"a", b"b"]
    assert len(views[0]) == 5000


def test_nothing_gives_no_messages(log: LogInMemory) -> None:
    assert log.log_map.messages(b"") == []


def test_bytes_that_are_no_frames_are_refused_in_full(log: LogInMemory) -> None:
    frames = frames_of(log, b"one", b"two")
    for damaged in (frames[:-1], frames + b"\0", frames[1:], b"\xff" * 200, frames[:91] + frames):
        with pytest.raises(errors.CorruptMessageError, match="begins no message"):
            log.log_map.messages(damaged)


def test_a_changed_bit_is_noticed_wherever_it_is(log: LogInMemory, rng: random.Random) -> None:
    frames = frames_of(log, b"one" * 20, b"two" * 20)
    for _ in range(300):
        damaged = bytearray(frames)
        at = rng.randrange(len(damaged))
        damaged[at] ^= 1 << rng.randrange(8)
        try:
            found = log.log_map.messages(bytes(damaged))
        except errors.CorruptMessageError:
            continue
        # Only the place of a frame in the log is not in its CRCs' reach alone: nobody reads by it.
        assert b"".join(bytes(m.body) for m in found) == b"one" * 20 + b"two" * 20


def test_reader_without_an_arena_says_that_what_is_there_is_elsewhere(
    client: StoreClient, queue: QueueHandle
) -> None:
    row, generation = queue
    log_map = core.LogMap(file_size=client.offer.file_size_bytes)
    reader = core.Reader(client.control, None, log_map)
    assert reader.read(row, generation, 0) == (EMPTY, [], 0)
    assert client.lanes[0].send(*queue, b"x")[0] == OK
    status, messages, at = reader.read(row, generation, 0)
    assert (status, messages, at) == (TOO_SMALL, [], 0)
    status, columns, at = reader.read_columns(row, generation, 0)
    assert (status, len(columns), at) == (TOO_SMALL, 0, 0)
    assert reader.read(row, generation, 1) == (EMPTY, [], 1)
    assert reader.read(row, generation + 1, 0)[0] == FENCED
    assert reader.visible_max(row) == 1
    assert reader.share().read(row, generation, 0)[0] == TOO_SMALL
    reader.close()
