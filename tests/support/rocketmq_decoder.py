"""A decoder of RocketMQ's CommitLog that shares no code with shmq: struct and zlib only.

It is the judge of what shmq stores, so it is written from the description of the format
(docs/formats/message.md), believes nothing, and is strict: whatever a RocketMQ broker would
trip over is a FrameError that names the place. It reads files; it never writes.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address
from pathlib import Path

MAGIC_V1 = 0xDAA320A7
MAGIC_V2 = 0xDAA320AB
MAGIC_BLANK = 0xCBD43194
BORN_HOST_V6 = 0x10
STORE_HOST_V6 = 0x20
CRC_NAME = b"__CRC32#"
CRC_PROPERTY_SIZE = 20


class FrameError(Exception):
    """Bytes that are no frame; the message says which rule they break, and where."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One record. Hosts are (address, port), times ms since 1970, sizes and offsets bytes."""

    total_size: int
    version: int
    body_crc: int
    queue_id: int
    flag: int
    queue_offset: int
    physical_offset: int
    sys_flag: int
    born_timestamp: int
    born_host: tuple[str, int]
    store_timestamp: int
    store_host: tuple[str, int]
    reconsume_times: int
    prepared_transaction_offset: int
    body: bytes
    topic: str
    raw_properties: bytes
    properties: dict[str, str]
    record_crc: int | None

    @property
    def tags_code(self) -> int:
        """What the ConsumeQueue entry of this record holds for its tag."""
        return java_hash(self.properties.get("TAGS", ""))


@dataclass(frozen=True, slots=True)
class Blank:
    """The frame that ends a file; total_size is the room it fills."""

    total_size: int


def java_hash(text: str) -> int:
    """String.hashCode(): h = 31 h + unit over UTF-16 units, as a signed 32-bit integer."""
    units = text.encode("utf-16-be", "surrogatepass")
    value = 0
    for (unit,) in struct.iter_unpack(">H", units):
        value = (31 * value + unit) % 2**32
    return value - 2**32 if value >= 2**31 else value


def decode_frame(
    data: bytes, *, physical_offset: int | None = None, needs_record_crc: bool = True
) -> Frame | Blank | None:
    """Decodes the frame at the start of `data`; None where nothing was written (eight zeros).

    `physical_offset`: where the frame lies, if it is to be compared. `needs_record_crc`: whether
    a record without the `__CRC32#` property is an error, as it is in every store of shmq.
    """
    if len(data) < 8:
        raise FrameError(f"{len(data)} bytes are no frame")
    total_size, magic = struct.unpack_from(">II", data)
    if total_size == 0 and magic == 0:
        return None
    if magic == MAGIC_BLANK:
        if not 8 <= total_size <= len(data):
            raise FrameError(f"BLANK of {total_size} bytes where {len(data)} are left")
        return Blank(total_size)
    if magic not in (MAGIC_V1, MAGIC_V2):
        raise FrameError(f"magic {magic:#010x}")
    if total_size > len(data):
        raise FrameError(f"totalSize {total_size} where {len(data)} bytes are left")
    frame = _decode_record(data[:total_size], version=1 if magic == MAGIC_V1 else 2)
    _verify(frame, data, physical_offset, needs_record_crc)
    return frame


def decode_commit_log(
    directory: Path, *, end: int | None = None, needs_record_crc: bool = True
) -> Iterator[Frame]:
    """Every record of a commitlog directory in order, up to `end` or the first unwritten byte.

    Holds the files to RocketMQ's rules, too: names are 20-digit start offsets, all files have
    one size, none is missing, and each but the last ends with a BLANK frame that fills it.
    """
    files = sorted(path for path in directory.iterdir() if path.is_file())
    if not files:
        return
    size = files[0].stat().st_size
    start = int(files[0].name)
    for number, path in enumerate(files):
        file_start = start + number * size
        if path.name != f"{file_start:020d}" or path.stat().st_size != size:
            raise FrameError(f"{path.name}: not {file_start:020d} of {size} bytes")
        data = path.read_bytes()
        at = 0
        while end is None or file_start + at < end:
            try:
                # decode_frame copies what it is given: bound it by what the frame claims.
                claim = max(8, int.from_bytes(data[at : at + 4], "big"))
                frame = decode_frame(
                    data[at : at + claim],
                    physical_offset=file_start + at,
                    needs_record_crc=needs_record_crc,
                )
            except FrameError as error:
                raise FrameError(f"{path.name} at byte {at}: {error}") from None
            if frame is None:
                _verify_unwritten(files[number:], data[at:], at)
                return
            if isinstance(frame, Blank):
                if at + frame.total_size != size:
                    raise FrameError(f"{path.name} at byte {at}: BLANK does not fill the file")
                break
            if at + frame.total_size > size - 8:
                raise FrameError(f"{path.name} at byte {at}: no room is left for a BLANK")
            yield frame
            at += frame.total_size


def decode_properties(raw: bytes) -> dict[str, str]:
    """Name to value as RocketMQ's own reader takes them: what is no pair is passed over.

    Bytes that are no UTF-8 become U+FFFD, as in Java: the store takes a producer's bytes as is.
    """
    properties = {}
    for pair in raw.split(b"\x02"):
        name, separator, value = pair.partition(b"\x01")
        if name and separator and value:
            properties[name.decode(errors="replace")] = value.decode(errors="replace")
    return properties


# What lies before the body, by the sizes of the two hosts' addresses, the body's length included.
_HEADS = {
    (born_size, store_size): struct.Struct(f">iIIiiqqiq{born_size}siq{store_size}siiqi")
    for born_size in (4, 16)
    for store_size in (4, 16)
}
_SYS_FLAG = struct.Struct(">i")
_SYS_FLAG_PLACE = 36


def _take(data: bytes, at: int, size: int, what: str) -> bytes:
    """A field of a record; running out of bytes is an error of the record."""
    if size < 0 or at + size > len(data):
        raise FrameError(f"{what} of {size} bytes at {at} of {len(data)}")
    return data[at : at + size]


@cache
def _address(raw: bytes) -> str:
    return str(ip_address(raw))


def _decode_record(data: bytes, version: int) -> Frame:
    (sys_flag,) = _SYS_FLAG.unpack(_take(data, _SYS_FLAG_PLACE, 4, "sysFlag"))
    head = _HEADS[
        16 if sys_flag & BORN_HOST_V6 else 4,
        16 if sys_flag & STORE_HOST_V6 else 4,
    ]
    (
        total_size,
        _magic,
        body_crc,
        queue_id,
        flag,
        queue_offset,
        physical_offset,
        _sys_flag,
        born_timestamp,
        born_address,
        born_port,
        store_timestamp,
        store_address,
        store_port,
        reconsume_times,
        prepared_transaction_offset,
        body_size,
    ) = head.unpack(_take(data, 0, head.size, "head"))
    at = head.size
    body = _take(data, at, body_size, "body")
    at += body_size
    width = 1 if version == 1 else 2
    topic_size = int.from_bytes(_take(data, at, width, "topic length"), "big", signed=True)
    at += width
    topic = _take(data, at, topic_size, "topic")
    at += topic_size
    properties_size = int.from_bytes(_take(data, at, 2, "properties length"), "big", signed=True)
    at += 2
    raw_properties = _take(data, at, properties_size, "properties")
    at += properties_size
    if at != total_size:
        raise FrameError(f"totalSize {total_size}, but the parts are {at} bytes")
    if version == 2 and len(topic) <= 127:
        raise FrameError(f"version 2 for a topic of {len(topic)} bytes")
    return Frame(
        total_size=total_size,
        version=version,
        body_crc=body_crc,
        queue_id=queue_id,
        flag=flag,
        queue_offset=queue_offset,
        physical_offset=physical_offset,
        sys_flag=sys_flag,
        born_timestamp=born_timestamp,
        born_host=(_address(born_address), born_port),
        store_timestamp=store_timestamp,
        store_host=(_address(store_address), store_port),
        reconsume_times=reconsume_times,
        prepared_transaction_offset=prepared_transaction_offset,
        body=body,
        topic=_text(topic),
        raw_properties=raw_properties,
        properties=decode_properties(raw_properties),
        record_crc=_record_crc(raw_properties),
    )


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise FrameError(f"topic {raw!r}: {error}") from None


def _record_crc(raw_properties: bytes) -> int | None:
    """The value of a CRC property at the end of the properties, None if there is none."""
    last = raw_properties[-CRC_PROPERTY_SIZE:]
    if not last.startswith(CRC_NAME + b"\x01"):
        return None
    digits = last[len(CRC_NAME) + 1 : -1]
    if len(digits) != 10 or not digits.isdigit() or last[-1:] != b"\x02":
        raise FrameError(f"CRC property {last!r}")
    return int(digits[::-1])


def _verify(frame: Frame, data: bytes, physical_offset: int | None, needs_record_crc: bool) -> None:
    if physical_offset is not None and frame.physical_offset != physical_offset:
        raise FrameError(f"physicalOffset {frame.physical_offset} at {physical_offset}")
    body_crc = zlib.crc32(frame.body) & 0x7FFFFFFF
    if frame.body_crc != body_crc:
        raise FrameError(f"bodyCRC {frame.body_crc:#010x}, the body's is {body_crc:#010x}")
    if frame.record_crc is None:
        if needs_record_crc:
            raise FrameError("no CRC property")
        return
    covered = data[: frame.total_size - CRC_PROPERTY_SIZE]
    record_crc = zlib.crc32(covered) & 0x7FFFFFFF
    if frame.record_crc != record_crc:
        raise FrameError(f"CRC property {frame.record_crc}, the record's CRC is {record_crc}")


def _verify_unwritten(files: list[Path], rest: bytes, at: int) -> None:
    """Behind the first unwritten byte all is zero: a stale frame would poison a broker's boot."""
    if rest.strip(b"\0"):
        raise FrameError(f"{files[0].name}: bytes behind the end of the log at {at}")
    for path in files[1:]:
        if path.read_bytes().strip(b"\0"):
            raise FrameError(f"{path.name}: bytes behind the end of the log")
