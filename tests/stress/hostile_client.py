"""A client that writes into all the memory it was given, while the broker reads it.

Each mode attacks one thing; the random words come from the seed. It goes on until its session has
ended or its rounds are over, and tells the test which. What it sends by hand it builds itself: the
product's own lane would not.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import random
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

from shmq.core import core
from shmq.core.fields import field_place, struct_size
from tests.support.client_process import Talk, client_main
from tests.support.store_process import ClientSide

_RECORD = struct.Struct("<IHHIIiiqIIiIQQ")
_U64 = (1 << 64) - 1
_LANE_SIZE = struct_size("lane")
_TAIL = field_place("lane", "tail")
_COMPLETION_READ = field_place("lane", "completion_read")
EDGES = (0, 1, 7, 8, 63, 64, 65, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF8, 0xFFFFFFFF)
PROPERTIES = (b"UNIQ_KEY\x01k\x02", b"TAGS\x01a\x02", b"\x01\x02", b"n\x01", b"__CRC32#\x01")
assert _RECORD.size == struct_size("record")


class Attack:
    """One session's attacker."""

    def __init__(self, client: ClientSide, options: dict[str, Any]) -> None:
        assert client.ingress is not None
        assert client.consumer is not None
        self.client = client
        self.rng = random.Random(options["seed"])
        self.handle: list[int] = options["handle"]
        self.ingress = memoryview(client.ingress)
        self.consumer = memoryview(client.consumer)
        chunk = client.fds["chunk"]
        self.chunk = memoryview(core.Mapping(chunk, os.fstat(chunk).st_size, writable=True))
        self.lane = client.lanes[0]
        self.capacity = client.offer.lane_capacity_bytes
        self.sent = 0

    @property
    def ended(self) -> bool:
        return any(lane.ended for lane in self.client.lanes)

    # ---- honest traffic, so that there is something to attack ------------------------------------

    def send_some(self) -> None:
        """Small and large messages of the product's own lane; any status will do."""
        for _ in range(20):
            self.lane.put(*self.handle, self.rng.randbytes(self.rng.randrange(300)), timeout=0)
        if self.rng.random() < 0.2:
            self.lane.put(*self.handle, bytes(self.rng.randrange(100_000, 300_000)), timeout=0)

    # ---- writing by hand -------------------------------------------------------------------------

    def word(self, near: int = 0) -> int:
        """A value that somebody may have forgotten to check."""
        kind = self.rng.randrange(4)
        if kind == 0:
            return self.rng.getrandbits(64)
        if kind == 1:
            return self.rng.choice(EDGES)
        if kind == 2:
            return (near + self.rng.choice((-8, -1, 1, 4, 8, 64, self.capacity))) & _U64
        return _U64 - self.rng.choice(EDGES)

    def store(self, memory: memoryview, place: int, value: int) -> None:
        memory[place : place + 8] = value.to_bytes(8, "little")

    def load(self, memory: memoryview, place: int) -> int:
        return int.from_bytes(memory[place : place + 8], "little")

    def scribble(self, memory: memoryview, begin: int, count: int) -> None:
        """Random words at random places."""
        for _ in range(count):
            place = begin + self.rng.randrange((len(memory) - begin) // 8) * 8
            self.store(memory, place, self.word(self.load(memory, place)))

    def lane_place(self, lane: int, field: int) -> int:
        return core.LANES_PLACE + lane * _LANE_SIZE + field

    def wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self.client.fds["event"], 1)

    # ---- modes -----------------------------------------------------------------------------------

    def ring_words(self) -> None:
        """Random words all over a live ring."""
        self.send_some()
        self.scribble(self.ingress, core.RING_DATA_PLACE, 400)

    def lane_words(self) -> None:
        """The lanes' own words: tails that jump, completions never seen, sleepers by the dozen."""
        self.send_some()
        lane = self.rng.randrange(self.client.offer.lane_count)
        field = self.rng.randrange(4) * 8
        place = self.lane_place(lane, field)
        self.store(self.ingress, place, self.word(self.load(self.ingress, place)))
        self.wake()

    def tail_jump(self) -> None:
        """A tail further than the ring is long, or no multiple of eight, or gone back."""
        self.send_some()
        place = self.lane_place(self.rng.randrange(self.client.offer.lane_count), _TAIL)
        tail = self.load(self.ingress, place)
        jump = self.rng.choice((-8, 1, 4, self.capacity + 8, 1 << 32, 1 << 63))
        self.store(self.ingress, place, (tail + jump) & _U64)
        self.wake()

    def flipping_sizes(self) -> None:
        """Sizes change between any two looks of the broker: a thread does nothing else."""
        stop = threading.Event()

        def flip() -> None:
            rng = random.Random(self.rng.random())
            while not stop.is_set():
                place = self.lane_place(0, _TAIL)
                tail = self.load(self.ingress, place) & (self.capacity - 1)
                for _ in range(200):
                    at = core.RING_DATA_PLACE + (tail + rng.randrange(2048) * 8) % self.capacity
                    value = rng.choice(EDGES)
                    self.ingress[at : at + 4] = value.to_bytes(4, "little")

        thread = threading.Thread(target=flip)
        thread.start()
        try:
            for _ in range(20):
                if self.ended:
                    break
                self.send_some()
        finally:
            stop.set()
            thread.join()

    def crafted_records(self) -> None:
        """Records by hand in a lane of their own, nearly right: every field a little wrong."""
        lane = 1
        tail_place = self.lane_place(lane, _TAIL)
        tail = self.load(self.ingress, tail_place)
        for _ in range(self.rng.randrange(1, 30)):
            record = self._record()
            index = tail & (self.capacity - 1)
            if index + len(record) > self.capacity:
                to_end = self.capacity - index
                size = to_end if self.rng.random() < 0.9 else self.word() & 0xFFFFFFFF
                pad = struct.pack("<IHH", size, core.RECORD_PAD, 0)
                self._write(lane, index, pad)
                tail += to_end
                index = 0
            self._write(lane, index, record)
            tail += len(record)
        read = self.load(self.ingress, self.lane_place(lane, _COMPLETION_READ))
        self.store(
            self.ingress,
            self.lane_place(lane, _COMPLETION_READ),
            (read + self.rng.randrange(32)) & _U64,
        )
        self.store(self.ingress, tail_place, tail & _U64)
        self.wake()
        if self.rng.random() < 0.3:
            self.scribble(self.chunk, core.CHUNK_DATA_PLACE, 50)

    def _record(self) -> bytes:
        rng = self.rng
        properties = b"".join(
            rng.choice(
                (b"UNIQ_KEY\x01k\x02", b"TAGS\x01a\x02", b"\x01\x02", b"n\x01", b"__CRC32#\x01")
            )
            for _ in range(rng.randrange(4))
        )
        body = rng.randbytes(rng.randrange(64))
        kind = rng.choice((1, 1, 1, 3, 3, 2, 0, 4, 0xFFFF))
        body_size = len(body)
        chunk_place = 0
        if kind == core.RECORD_LARGE:
            body_size = rng.choice((1, 100_000, len(self.chunk), *EDGES)) & 0xFFFFFFFF
            chunk_place = rng.choice((0, len(self.chunk), self.word()))
        elif rng.random() < 0.2:
            body_size = self.word(len(body)) & 0xFFFFFFFF
        properties_size = len(properties)
        if rng.random() < 0.2:
            properties_size = self.word(properties_size) & 0xFFFFFFFF
        payload = body + properties
        whole = _RECORD.size + len(payload)
        size = -(-whole // 8) * 8
        said = size if rng.random() < 0.9 else self.word(size) & 0xFFFFFFFF
        row, generation = self.handle
        if rng.random() < 0.2:
            row = self.word(row) & 0xFFFFFFFF
        if rng.random() < 0.2:
            generation = self.word(generation) & 0xFFFFFFFF
        head = _RECORD.pack(
            said,
            kind,
            rng.getrandbits(16),
            row,
            generation,
            rng.getrandbits(32) - (1 << 31),
            rng.getrandbits(32) - (1 << 31),
            rng.getrandbits(64) - (1 << 63),
            body_size,
            properties_size,
            rng.getrandbits(32) - (1 << 31),
            rng.getrandbits(32),
            chunk_place,
            rng.getrandbits(64),
        )
        return head + payload + bytes(size - whole)

    def _write(self, lane: int, index: int, data: bytes) -> None:
        place = core.RING_DATA_PLACE + lane * self.capacity + index
        end = min(place + len(data), len(self.ingress))
        self.ingress[place:end] = data[: end - place]

    def consumer_page(self) -> None:
        """Claims and sleepers that nobody gave."""
        self.send_some()
        self.scribble(self.consumer, 0, 500)

    def chunk_memory(self) -> None:
        """Bodies that change while they are copied and summed."""
        self.send_some()
        self.lane.put(*self.handle, bytes(200_000), timeout=0)
        self.scribble(self.chunk, 0, 2000)

    def file_tricks(self) -> None:
        """What a memfd's holder can try: cut it, grow it, punch holes, make the eventfd block."""
        self.send_some()
        for name in ("ingress", "consumer", "chunk"):
            fd = self.client.fds[name]
            for trick in (
                lambda fd=fd: os.truncate(fd, 0),
                lambda fd=fd: os.truncate(fd, 1 << 30),
                lambda fd=fd: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
            ):
                with contextlib.suppress(OSError):
                    trick()
                    raise SystemExit(f"{name} could be changed in size or sealed")
        for name in ("ingress", "consumer", "chunk"):
            _punch_holes(self.client.fds[name])
        event = self.client.fds["event"]
        self.wake()
        fcntl.fcntl(event, fcntl.F_SETFL, 0)  # blocking, for all who share it
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(event)

    def log_channel(self) -> None:
        """Packets that no client of ours sends, and far too many of those that one does."""
        self.send_some()
        with socket.socket(fileno=os.dup(self.client.fds["log"])) as channel:
            for _ in range(50):
                kind = self.rng.choice((2, 2, 3, 3, 3, 3, 3, 3, 3, 1, 4, 99))
                packet = struct.pack("<IIQQQ", kind, 0, self.word(), self.word(), self.word())
                if self.rng.random() < 0.01:
                    packet = packet[: self.rng.randrange(1, 32)] + bytes(self.rng.randrange(3))
                with contextlib.suppress(OSError):
                    channel.send(packet, socket.MSG_DONTWAIT)


def _punch_holes(fd: int) -> None:
    """fallocate(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE): gives the pages back to the kernel."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = ctypes.c_long(os.fstat(fd).st_size)
    libc.fallocate(fd, 3, ctypes.c_long(0), size)


MODES: dict[str, Callable[[Attack], None]] = {
    "ring_words": Attack.ring_words,
    "lane_words": Attack.lane_words,
    "tail_jump": Attack.tail_jump,
    "flipping_sizes": Attack.flipping_sizes,
    "crafted_records": Attack.crafted_records,
    "consumer_page": Attack.consumer_page,
    "chunk_memory": Attack.chunk_memory,
    "file_tricks": Attack.file_tricks,
    "log_channel": Attack.log_channel,
}


def _attack(client: ClientSide, talk: Talk, options: dict[str, Any]) -> None:
    attack = Attack(client, options)
    rounds = 0
    while rounds < options["rounds"] and not attack.ended:
        MODES[options["mode"]](attack)
        rounds += 1
    talk.say(rounds=rounds)
    talk.hear()
    talk.say(ended=attack.ended)
    os._exit(0)  # its memory is not in a state to be taken down in order


if __name__ == "__main__":
    client_main(_attack)
