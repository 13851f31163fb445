"""A store with clients in this process, whose store process dies again and again: what they saw
before, what they must see after.

What lives here: `Scene`. Producers have sends under way when the store's process dies; each
successor adopts, the clients resume, and `judge` holds what they get to the log itself: nothing
completed is lost, nothing is there twice or torn, every record of every ring is appended once.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from shmq.core import core
from shmq.core.fields import control_place
from shmq.status import FlushDiskType
from tests.crash.ledger import BODY_MIN, Found, Sent, body_of, parse_body, read_frames
from tests.support.rocketmq_decoder import Blank, decode_frame
from tests.support.store_process import StoreClient, wait_until
from tests.support.zygote import ForkedStore, Zygote

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shmq.config import StoreConfig
    from tests.support.rocketmq_decoder import Frame

_OK = core.STATUS["OK"][0]
_EMPTY = core.STATUS["EMPTY"][0]
_TIMED_OUT = core.STATUS["TIMED_OUT"][0]
_NOT_GRANTED = core.STATUS["NOT_GRANTED"][0]
_COMMITTED_PLACE = control_place("append_positions", "committed_position")
_TURN_PLACE = control_place("append_positions", "turn_number")
_FLUSHED_PLACE = control_place("flush_positions", "flushed_position")
CHUNK_BYTES = 256 * 1024
LARGE = 6000
"""Bytes of a body that goes through chunk memory: more than a ring's largest record."""
PAD_BYTES = 4150
"""Of the log, at most, for each message that pads it."""
PAD_BURST = 8
"""Messages that pad, under way at a time: half a ring."""
REFUSED = -1
"""As a queue: one that the client may not send to."""
TOPICS = (("async", FlushDiskType.ASYNC_FLUSH), ("sync", FlushDiskType.SYNC_FLUSH), ("other", None))


class Outcome(NamedTuple):
    """What the store answered."""

    status: int
    queue_offset: int
    physical_offset: int


class UnderWay(NamedTuple):
    """A send without an answer yet."""

    client: int
    lane: int
    sequence: int
    sent: Sent


class Scene(contextlib.ExitStack):
    """Three producers, two of them with two rings, and a reader, all in this process."""

    def __init__(self, zygote: Zygote, config: StoreConfig) -> None:
        super().__init__()
        self._zygote = zygote
        self.config = config
        self.store = ForkedStore(zygote, config)
        self.callback(self._abandon)
        self.queues = [self.store.add_queue(name, 0, level=level) for name, level in TOPICS]
        self.forbidden = self.store.add_queue("forbidden")
        self.clients = [self.enter_context(StoreClient(self.store)) for _ in range(3)]
        for client in self.clients:
            client.grant(*self.queues)
        self.clients[2].grant_chunk(CHUNK_BYTES)
        self.deaths = 0
        self._sent: Counter[tuple[int, int]] = Counter()
        self.under_way: list[UnderWay] = []
        self._answered: dict[Sent, Outcome] = {}
        self._read_position = 0
        self._next_offset = [0] * len(self.queues)
        self._next_read = [0] * len(self.queues)
        self._appended: Counter[tuple[int, int]] = Counter()

    def _abandon(self) -> None:
        self.store.abandon()
        wipe(self.config)

    # ---- sending -----------------------------------------------------------------------------

    def put(self, client: int, queue: int, size: int = BODY_MIN, *, lane: int = 0) -> None:
        """One more message under way."""
        producer = client * core.LANE_MAX + lane
        sent = Sent(producer, queue & 0xFFFF, self._sent[producer, queue & 0xFFFF])
        handle = self.forbidden if queue == REFUSED else self.queues[queue]
        body = body_of(sent, size)
        sequence = self.clients[client].lanes[lane].put(*handle, body, tag="a", keep=True)
        assert sequence >= 0, sequence
        self._sent[sent.producer, sent.queue] += 1
        self.under_way.append(UnderWay(client, lane, sequence, sent))

    def pad(self, room: int) -> None:
        """Send until less than `room` bytes are left in the file the log is in."""
        while (left := self.room()) >= room:  # bounded by the file
            for _ in range(max(1, min(PAD_BURST, (left - room) // PAD_BYTES))):
                self.put(2, 0, max(BODY_MIN, min(PAD_BYTES - 150, left - room - 150)))
            self.settle()

    def room(self) -> int:
        """Bytes left in the file the log is in."""
        size = self.config.commit_log_file_size_bytes
        assert size is not None
        return size - self.log_end() % size

    def queue_ends(self) -> list[int]:
        """The next queue_offset of each queue when it was last judged."""
        return list(self._next_offset)

    def log_end(self) -> int:
        """Behind the last committed frame; nobody is asked for it."""
        return self.clients[0].control.load64(_COMMITTED_PLACE)

    def turn_number(self) -> int:
        """Of the last committed turn."""
        return self.clients[0].control.load64(_TURN_PLACE)

    def flushed(self) -> int:
        """Behind the last byte on disk."""
        return self.clients[0].control.load64(_FLUSHED_PLACE)

    def settle(self) -> None:
        """Wait until everything under way is answered."""
        for under_way in self.under_way:
            lane = self.clients[under_way.client].lanes[under_way.lane]
            self._answer(under_way, Outcome(*lane.wait(under_way.sequence, 30.0)[:3]))
        self.under_way.clear()

    def look(self) -> None:
        """Take what is answered by now, and read what is visible by now."""
        waiting = []
        for under_way in self.under_way:
            lane = self.clients[under_way.client].lanes[under_way.lane]
            outcome = lane.take(under_way.sequence)
            if outcome is None:
                waiting.append(under_way)
            else:
                self._answer(under_way, Outcome(*outcome[:3]))
        self.under_way = waiting
        self._read()

    def _answer(self, under_way: UnderWay, outcome: Outcome) -> None:
        wanted = _NOT_GRANTED if under_way.sent.queue == REFUSED & 0xFFFF else _OK
        assert outcome.status == wanted, (under_way, outcome)
        self._answered[under_way.sent] = outcome

    def _read(self) -> None:
        """Read on in every queue; each message must be the next of its queue."""
        reader = self.clients[0].reader
        for queue, handle in enumerate(self.queues):
            while True:  # to the end of what is visible
                begin = self._next_read[queue]
                status, messages, following = reader.read(*handle, begin, 64, verify=True)
                assert status in (_OK, _EMPTY), status
                for number, message in enumerate(messages):
                    assert message.queue_offset == begin + number
                    assert parse_body(message.body).queue == queue
                assert following == begin + len(messages), "entries were passed over"
                self._next_read[queue] = following
                if not messages:
                    break

    # ---- dying -------------------------------------------------------------------------------

    def succeed(self, *, has_adopted: bool = True) -> None:
        """The store's process is dead: a successor adopts, and all clients resume."""
        self.store.process.wait()
        self.look()  # mapped memory can be read though nobody serves it
        self.store = self.store.restart()
        self.deaths += 1
        assert self.store.is_adopted == has_adopted
        self.resume()

    def resume(self) -> None:
        assert self.store.lost == sorted(client.offer.session for client in self.clients)
        for client in self.clients:
            client.resume(self.store)

    def finish(self) -> None:
        """All is in order: stop it, so that nothing is left."""
        for client in self.clients:
            client.close()
        self.store.stop()
        assert not generations(self.config)

    def judge(self) -> None:
        """Everything under way is answered, and the log, the queues and the answers agree."""
        self.settle()
        end = self._await_flushed()
        for found in self._read_log(end):
            self._judge(found)
        self._read_position = end
        assert not self._answered, f"answered, but not in the log: {self._answered}"
        for key, count in self._sent.items():
            if key[1] != REFUSED & 0xFFFF:
                assert self._appended[key] == count, (key, self._appended[key], count)
        self._read()
        assert self._next_read == self._next_offset

    def _judge(self, found: Found) -> None:
        key = found.sent.producer, found.sent.queue
        assert found.sent.sequence == self._appended[key], f"lost, doubled or out of order: {found}"
        self._appended[key] += 1
        queue = found.sent.queue
        assert found.topic == TOPICS[queue][0]
        assert found.queue_offset == self._next_offset[queue], found
        self._next_offset[queue] += 1
        outcome = self._answered.pop(found.sent)
        assert outcome[1:] == (found.queue_offset, found.physical_offset), (outcome, found)

    def _await_flushed(self) -> int:
        end = self.log_end()
        wait_until(lambda: self.flushed() >= end)
        # What was refused left no frame.
        for sent in [sent for sent in self._answered if sent.queue == REFUSED & 0xFFFF]:
            del self._answered[sent]
        return end

    def _read_log(self, end: int) -> list[Found]:
        return read_frames(frames_between(self.config, self._read_position, end))


def wipe(config: StoreConfig) -> None:
    """What a reboot does to a store: its shared memory is gone."""
    for path in Path("/dev/shm").glob(f"shmq.{config.cluster_name}.*"):
        path.unlink()


def generations(config: StoreConfig) -> set[str]:
    """Which generations of the store have objects in /dev/shm."""
    return {
        path.name.rsplit(".", 3)[1]
        for path in Path("/dev/shm").glob(f"shmq.{config.cluster_name}.*")
    }


def frames_between(config: StoreConfig, begin: int, end: int) -> Iterator[Frame]:
    """Frames of the log from its files; the decoder holds each to its CRC and its place."""
    size = config.commit_log_file_size_bytes
    assert size is not None
    position = begin
    while position < end:
        place = position % size
        path = config.store_path / "commitlog" / f"{position - place:020d}"
        fd = os.open(path, os.O_RDONLY)
        try:
            data = os.pread(fd, min(size - place, end - position), place)
        finally:
            os.close(fd)
        taken = 0
        while taken < len(data):
            claim = int.from_bytes(data[taken : taken + 4], "big")
            frame = decode_frame(
                data[taken : taken + max(8, claim)], physical_offset=position + taken
            )
            assert frame is not None, f"no frame at {position + taken}, though {end} is flushed"
            if not isinstance(frame, Blank):
                yield frame
            taken += frame.total_size
        position += taken
    assert position == end
