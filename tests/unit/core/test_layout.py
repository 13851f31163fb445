"""The layouts are said once: struct, exported table, page and Python's own constants agree."""

from pathlib import Path

import pytest

from shmq.core import core
from shmq.core.fields import read_ints, read_rows, read_struct
from shmq.shm import header
from shmq.tools.layout_page import layout_page

ROOT = Path(__file__).parents[3]
SIZES = {
    "uint64_t": 8,
    "int64_t": 8,
    "shmq_word64": 8,
    "uint32_t": 4,
    "int32_t": 4,
    "shmq_word32": 4,
    "uint16_t": 2,
    "uint8_t": 1,
}


def test_fields_fill_their_struct_without_gap_or_overlap() -> None:
    for name, (size, fields) in core.LAYOUT.items():
        end = 0
        for field, place, kind, count, doc in fields:
            assert place == end, f"{name}.{field}"
            assert doc, f"{name}.{field} says nothing"
            end = place + SIZES[kind] * count
        assert end == size, name


def test_fields_are_aligned_to_their_size() -> None:
    for name, (_, fields) in core.LAYOUT.items():
        for field, place, kind, _count, _doc in fields:
            assert place % SIZES[kind] == 0, f"{name}.{field}"


def test_page_is_what_the_tables_say() -> None:
    page = ROOT / "docs" / "formats" / "layout.md"
    assert page.read_text(encoding="utf-8") == layout_page(), (
        "run: python -m shmq.tools.layout_page > docs/formats/layout.md"
    )


def test_header_reader_knows_the_same_layout() -> None:
    assert core.LAYOUT["segment_header"][0] == header.HEADER_SIZE


def test_numbers_of_a_struct_are_the_same_one_by_one_and_row_by_row() -> None:
    for name, (size, _) in core.LAYOUT.items():
        memory = bytes(number * 7 % 251 for number in range(3 * size + 5))
        rows = list(read_rows(memory, name, 5, 3))
        for index, row in enumerate(rows):
            place = 5 + index * size
            fields = read_struct(memory, name, place)
            assert row == {key: value for key, value in fields.items() if isinstance(value, int)}
            assert row == read_ints(memory, name, place)
        with pytest.raises(ValueError, match=f"read {name} at 6"):
            list(read_rows(memory, name, 6, 3))
    assert list(read_rows(b"", "queue_row", 0, 0)) == []
