"""Reads structs of layout.h out of mapped memory by their field table, for tools and control code.

Nothing here writes, and nothing here is for protocol words that need ordering: those are loaded by
the core (Mapping.load64). Each field is read once. Any process; ValueError for a place out of
range.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TYPE_CHECKING

from shmq.core import core

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "control_place",
    "field_place",
    "read_chosen",
    "read_ints",
    "read_rows",
    "read_struct",
    "struct_size",
]

Buffer = core.Mapping | bytes | bytearray | memoryview
"""What a struct may be read out of."""

_FORMATS = {
    "shmq_word64": "Q",
    "shmq_word32": "I",
    "uint64_t": "Q",
    "uint32_t": "I",
    "uint16_t": "H",
    "uint8_t": "B",
    "int64_t": "q",
    "int32_t": "i",
}


def struct_size(name: str) -> int:
    """Bytes of a struct of layout.h."""
    return core.LAYOUT[name][0]


@lru_cache(maxsize=256)
def field_place(name: str, field: str) -> int:
    """Place of a field in its struct, in bytes; KeyError for a field that is not there."""
    for row_name, place, _type, _count, _doc in core.LAYOUT[name][1]:
        if row_name == field:
            return place
    raise KeyError(f"{name}.{field}")


@lru_cache(maxsize=64)
def _plan(name: str) -> tuple[tuple[str, int, struct.Struct, bool], ...]:
    rows = []
    for field, place, kind, count, _doc in core.LAYOUT[name][1]:
        if kind == "uint8_t" and count > 1:
            rows.append((field, place, struct.Struct(f"<{count}s"), True))
        else:
            rows.append((field, place, struct.Struct(f"<{count}{_FORMATS[kind]}"), count == 1))
    return tuple(rows)


_CONTROL_LINES = (
    "segment_header",
    "control_config",
    "append_positions",
    "flush_positions",
    "replica_positions",
    "sleep_line",
    "counters",
)
"""What a control segment begins with, one line each (struct shmq_control)."""


def control_place(name: str, field: str | None = None) -> int:
    """Byte place of the struct `name`, or of a field of it, in a control segment.

    Raises:
        ValueError: it is none of those at the beginning.
    """
    place = _CONTROL_LINES.index(name) * core.LINE
    return place if field is None else place + field_place(name, field)


@lru_cache(maxsize=64)
def _ints_plan(name: str) -> tuple[tuple[str, ...], struct.Struct]:
    """Names of the single numbers, and all of them at one go: a broker with ten thousand topics
    starts by reading a hundred thousand rows.
    """
    names: list[str] = []
    text, end = "<", 0
    for field, place, kind, count, _doc in core.LAYOUT[name][1]:
        if count == 1:
            number = _FORMATS[kind]
            text += f"{place - end}x{number}"
            end = place + struct.calcsize(f"<{number}")
            names.append(field)
    return tuple(names), struct.Struct(f"{text}{struct_size(name) - end}x")


def read_ints(buffer: Buffer, name: str, place: int = 0) -> dict[str, int]:
    """The single numbers of the struct `name` at `place` of `buffer`, without its arrays.

    Raises:
        ValueError: the struct does not lie within the buffer.
    """
    (fields,) = read_rows(buffer, name, place, 1)
    return fields


def read_rows(buffer: Buffer, name: str, place: int, count: int) -> Iterator[dict[str, int]]:
    """As read_ints, for `count` structs `name` that lie one behind the other.

    Raises:
        ValueError: they do not lie within the buffer.
    """
    names, unpacker = _ints_plan(name)
    end = place + count * unpacker.size
    with _checked(buffer, name, place, end) as view, view[place:end] as rows:
        for row in unpacker.iter_unpack(rows):
            yield dict(zip(names, row, strict=True))


@lru_cache(maxsize=64)
def _chosen_plan(name: str, chosen: tuple[str, ...]) -> struct.Struct:
    text, end = "<", 0
    for field, place, kind, count, _doc in core.LAYOUT[name][1]:
        if count == 1 and field in chosen:
            number = _FORMATS[kind]
            text += f"{place - end}x{number}"
            end = place + struct.calcsize(f"<{number}")
    return struct.Struct(f"{text}{struct_size(name) - end}x")


def read_chosen(
    buffer: Buffer, name: str, place: int, count: int, chosen: tuple[str, ...]
) -> list[tuple[int, ...]]:
    """As read_rows, only these fields, as tuples: for whoever reads very many rows very often.

    Args:
        buffer: what they lie in.
        name: of the struct.
        place: of the first one.
        count: how many.
        chosen: single numbers of the struct, in the order of their places.

    Raises:
        ValueError: they do not lie within the buffer.
    """
    unpacker = _chosen_plan(name, chosen)
    end = place + count * unpacker.size
    with _checked(buffer, name, place, end) as view, view[place:end] as rows:
        return list(unpacker.iter_unpack(rows))


def read_struct(
    buffer: Buffer, name: str, place: int = 0
) -> dict[str, int | bytes | tuple[int, ...]]:
    """The fields of the struct `name` at `place` of `buffer`: ints, bytes for byte arrays, tuples
    for other arrays.

    Raises:
        ValueError: the struct does not lie within the buffer.
    """
    fields: dict[str, int | bytes | tuple[int, ...]] = {}
    with _checked(buffer, name, place, place + struct_size(name)) as view:
        for field, field_at, unpacker, single in _plan(name):
            values = unpacker.unpack_from(view, place + field_at)
            fields[field] = values[0] if single else values
    return fields


def _checked(buffer: Buffer, name: str, place: int, end: int) -> memoryview:
    view = memoryview(buffer)
    if place < 0 or end > len(view):
        raise ValueError(f"read {name} at {place}: the memory has {len(view)} bytes")
    return view
