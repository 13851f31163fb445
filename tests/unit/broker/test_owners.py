"""Who made what: counted over restarts, and never in the way of a start."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from shmq.broker.owners import OwnerTable

EVERYTHING = {"topic": lambda _name: True, "group": lambda _name: True}


def made(store_path: Path) -> OwnerTable:
    table = OwnerTable(store_path)
    table.load(EVERYTHING)
    return table


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    (tmp_path / "shmq").mkdir()
    return tmp_path


def test_what_was_made_counts_after_a_restart_and_what_was_deleted_does_not(
    store_path: Path,
) -> None:
    async def make() -> None:
        table = made(store_path)
        table.add("topic", ["a"], 7)
        table.add("topic", ["b"], 7)
        table.add("group", ["a"], 8)
        await table.save()
        await table.remove("topic", "b")

    asyncio.run(make())
    table = made(store_path)
    assert (table.count("topic", 7), table.count("topic", 8), table.count("group", 8)) == (1, 0, 1)
    assert table.owner("topic", "a") == 7
    assert table.owner("topic", "b") is None


def test_what_is_not_there_any_more_is_forgotten(store_path: Path) -> None:
    async def make() -> None:
        table = made(store_path)
        table.add("topic", ["a"], 7)
        table.add("topic", ["b"], 7)
        await table.save()

    asyncio.run(make())
    table = OwnerTable(store_path)
    table.load({"topic": {"a"}.__contains__, "group": set[str]().__contains__})
    assert table.count("topic", 7) == 1


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "other"])
def test_damaged_file_is_begun_anew(store_path: Path, damage: str) -> None:
    async def make() -> None:
        table = made(store_path)
        table.add("topic", ["a"], 7)
        await table.save()

    asyncio.run(make())
    file = store_path / "shmq" / "owners.json"
    data = file.read_bytes()
    file.write_bytes(
        {
            "cut": data[:-5],
            "bit": bytes([data[0] ^ 1]) + data[1:],
            "empty": b"",
            "other": b"[]\ncrc32 00000000\n",
        }[damage]
    )
    assert made(store_path).count("topic", 7) == 0
