"""Stores as files, written by hand: struct and zlib only, nothing of shmq's own encoder."""

import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

HOST = bytes([127, 0, 0, 1]) + struct.pack(">I", 10911)
HOST_V6 = bytes(range(16)) + struct.pack(">I", 10911)
BASE_MS = 1_788_220_800_000
FILE_SIZE = 65536


class Record(NamedTuple):
    """One message as it was written."""

    position: int
    size: int
    topic: str
    queue_id: int
    queue_offset: int
    body: bytes
    store_timestamp: int


def crc_property(before: bytes) -> bytes:
    value = zlib.crc32(before) & 0x7FFFFFFF
    return b"__CRC32#\x01" + f"{value:010d}"[::-1].encode() + b"\x02"


def encode(
    *,
    topic: str,
    queue_id: int,
    queue_offset: int,
    position: int,
    body: bytes,
    properties: bytes = b"UNIQ_KEY\x010123456789ABCDEF\x02",
    store_timestamp: int = BASE_MS,
    sys_flag: int = 0,
    has_record_crc: bool = True,
    flag: int = 0,
) -> bytes:
    """One record of the CommitLog."""
    name = topic.encode()
    is_v2 = len(name) > 127
    born = HOST_V6 if sys_flag & 0x10 else HOST
    stored = HOST_V6 if sys_flag & 0x20 else HOST
    property_size = len(properties) + (20 if has_record_crc else 0)
    tail = struct.pack(">I", len(body)) + body
    tail += struct.pack(">H" if is_v2 else ">B", len(name)) + name
    tail += struct.pack(">H", property_size) + properties
    fields = struct.pack(
        ">IIIqqIq",
        zlib.crc32(body) & 0x7FFFFFFF,
        queue_id,
        flag,
        queue_offset,
        position,
        sys_flag,
        store_timestamp - 1,
    )
    fields += born + struct.pack(">q", store_timestamp) + stored + struct.pack(">iq", 0, 0)
    total = 8 + len(fields) + len(tail) + (20 if has_record_crc else 0)
    magic = 0xDAA320AB if is_v2 else 0xDAA320A7
    record = struct.pack(">II", total, magic) + fields + tail
    return record + crc_property(record) if has_record_crc else record


def blank(room: int) -> bytes:
    return struct.pack(">II", room, 0xCBD43194)


class Writer:
    """Appends to a store in a folder, as a broker would.

    Args:
        store_path: folder of the store.
        file_size: bytes of a CommitLog file.
        has_record_crc: as shmq writes (True) or as RocketMQ does by default.
        begin: physical_offset of the first record.
    """

    def __init__(
        self,
        store_path: Path,
        *,
        file_size: int = FILE_SIZE,
        has_record_crc: bool = True,
        begin: int = 0,
    ) -> None:
        self.store_path = store_path
        self.file_size = file_size
        self.has_record_crc = has_record_crc
        self.position = begin
        self.records: list[Record] = []
        self.ends: dict[tuple[str, int], int] = {}
        (store_path / "commitlog").mkdir(parents=True, exist_ok=True)
        self._make(begin)

    def path(self, position: int) -> Path:
        begin = position - position % self.file_size
        return self.store_path / "commitlog" / f"{begin:020d}"

    def _make(self, position: int) -> None:
        path = self.path(position)
        if not path.exists():
            path.write_bytes(bytes(self.file_size))

    def write(self, position: int, data: bytes) -> None:
        with self.path(position).open("r+b") as file:
            file.seek(position % self.file_size)
            file.write(data)

    def read(self, position: int, size: int) -> bytes:
        with self.path(position).open("rb") as file:
            file.seek(position % self.file_size)
            return file.read(size)

    def put(
        self,
        topic: str = "orders",
        queue_id: int = 0,
        body: bytes = b"body",
        *,
        queue_offset: int | None = None,
        properties: bytes = b"UNIQ_KEY\x010123456789ABCDEF\x02",
        sys_flag: int = 0,
        store_timestamp: int | None = None,
    ) -> Record:
        key = (topic, queue_id)
        in_queue = sys_flag & 0xC in (0, 8)
        if queue_offset is None:
            queue_offset = self.ends.get(key, 0) if in_queue else 0
        if in_queue:
            self.ends[key] = queue_offset + 1
        timestamp = BASE_MS + len(self.records) if store_timestamp is None else store_timestamp

        def at(position: int) -> bytes:
            return encode(
                topic=topic,
                queue_id=queue_id,
                queue_offset=queue_offset,
                position=position,
                body=body,
                properties=properties,
                store_timestamp=timestamp,
                sys_flag=sys_flag,
                has_record_crc=self.has_record_crc,
            )

        room = self.file_size - self.position % self.file_size
        data = at(self.position)
        if len(data) + 8 > room:
            self.roll()
            data = at(self.position)
        self.write(self.position, data)
        record = Record(self.position, len(data), topic, queue_id, queue_offset, body, timestamp)
        self.records.append(record)
        self.position += len(data)
        return record

    def roll(self) -> None:
        room = self.file_size - self.position % self.file_size
        self.write(self.position, blank(room))
        self.position += room
        self._make(self.position)

    def fill(
        self,
        count: int,
        *,
        seed: int = 1,
        topics: int = 3,
        queues: int = 4,
        body_size: Callable[[random.Random], int] = lambda chance: chance.randrange(1, 300),
    ) -> "Writer":
        chance = random.Random(seed)
        for _ in range(count):
            topic = f"topic-{chance.randrange(topics)}"
            queue_id = chance.randrange(queues)
            self.put(topic, queue_id, chance.randbytes(body_size(chance)))
        return self

    def damage(self, record: Record, *, at: int = 90) -> None:
        """Change one byte of a record; byte 90 lies in its body."""
        byte = self.read(record.position + at, 1)[0]
        self.write(record.position + at, bytes([byte ^ 0x41]))


def commit_log_bytes(store_path: Path) -> dict[str, bytes]:
    """Every file of the log, by name."""
    return {path.name: path.read_bytes() for path in sorted((store_path / "commitlog").iterdir())}


def all_bytes(store_path: Path) -> dict[str, bytes]:
    """Every file of the store, by its path in it."""
    return {
        str(path.relative_to(store_path)): path.read_bytes()
        for path in sorted(store_path.rglob("*"))
        if path.is_file()
    }
