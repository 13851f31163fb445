"""Small JSON files of our own: readable by people, and no bit of them can change unnoticed.

What lives here: the codec of `shmq/*.json`, the same as the manifest's: JSON indented by two, then
one line `crc32 0a1b2c3d` with the CRC-32 of every byte before it. Replaced as a whole, durably.

Which process: the store's owner writes, tools read. What may fail: StoreCorruptError naming file,
line and reason; StoreVersionError; DiskFullError, StoreError.
"""

import re
import zlib
from pathlib import Path

import orjson

from shmq.errors import ConfigError, StoreCorruptError, StoreVersionError
from shmq.json_fields import Fields
from shmq.store.durable_file import read_file, replace_file

__all__ = ["decode", "encode", "load", "load_fields", "plain_text", "save"]

_SIZE_MAX = 256 << 20
_CRC_LINE = re.compile(rb"crc32 ([0-9a-f]{8})\n")
_CRC_LINE_SIZE = len(b"crc32 00000000\n")


def plain_text(text: str) -> str:
    """Return `text` without what JSON cannot hold: bytes of a foreign store that were no UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def encode(data: dict[str, object]) -> bytes:
    """Return the file's bytes."""
    body = orjson.dumps(data, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    return body + b"crc32 %08x\n" % zlib.crc32(body)


def decode(data: bytes, path: Path) -> dict[str, object]:
    """Return the object in a file's bytes; `path` is for the message.

    Raises:
        StoreCorruptError: the checksum does not hold, or it is no JSON object.
    """
    body, crc_line = data[:-_CRC_LINE_SIZE], data[-_CRC_LINE_SIZE:]
    match = _CRC_LINE.fullmatch(crc_line)
    last_line = data.count(b"\n") + (not data.endswith(b"\n"))
    if match is None:
        raise StoreCorruptError(
            f"read {path}, line {last_line}: the crc32 line is missing: the file was cut or edited"
        )
    if zlib.crc32(body) != int(match[1], 16):
        raise StoreCorruptError(
            f"read {path}, line {last_line}: crc32 {match[1].decode()}, wanted "
            f"{zlib.crc32(body):08x}: the file was damaged or edited"
        )
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise StoreCorruptError(f"read {path}, line {error.lineno}: {error.msg}") from error
    if not isinstance(value, dict):
        raise StoreCorruptError(f"read {path}, line 1: wanted an object")
    return value


def load(path: Path) -> dict[str, object] | None:
    """Return the object in a file, or None if there is no file.

    Raises:
        StoreCorruptError: as `decode`.
        StoreError: it cannot be read.
    """
    data = read_file(path, size_max=_SIZE_MAX)
    return None if data is None else decode(data, path)


def load_fields(path: Path, format_version: int) -> Fields | None:
    """Return the object in a file of the format that this shmq knows, to be read field by field, or
    None if there is no file.

    Raises:
        StoreVersionError: a newer shmq wrote it.
        StoreCorruptError: as `decode`, or it does not say its format.
        StoreError: it cannot be read.
    """
    data = load(path)
    if data is None:
        return None
    take = Fields(data, what=str(path))
    try:
        version = take.number("format_version")
    except ConfigError as error:
        raise StoreCorruptError(f"read {error}") from error
    if version != format_version:
        raise StoreVersionError(f"read {path}: format {version}, this shmq knows {format_version}")
    return take


def save(path: Path, data: dict[str, object]) -> None:
    """Replace the file, durably.

    Raises:
        DiskFullError, StoreError: the old file stands.
    """
    replace_file(path, encode(data))
