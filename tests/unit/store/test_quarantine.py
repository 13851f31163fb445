from pathlib import Path

import pytest

from shmq.errors import StoreCorruptError, StoreVersionError
from shmq.store import checked_json
from shmq.store.quarantine import Hole, KeptTail, Quarantine

HOLE = Hole(4711, 265, "BODY_CRC", "orders", 3, 17, 1_788_220_800_000)
LIST = Quarantine(
    holes=(HOLE, Hole(9000, 100, "ZEROS", found_at=5)),
    saved_tails=(KeptTail(20000, 12, "tail-x.bin", 7),),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "quarantine.json"


def test_list_survives_its_file(path: Path) -> None:
    assert Quarantine.load(path) == Quarantine()
    LIST.save(path)
    assert Quarantine.load(path) == LIST
    text = path.read_text(encoding="utf-8")
    assert '"topic": "orders"' in text
    assert text.count('"topic"') == 1, "a hole without an identity says so by absence"


def test_same_hole_twice_changes_nothing() -> None:
    assert LIST.with_holes([HOLE]) is LIST
    assert LIST.with_holes([HOLE._replace(found_at=99, reason="MAGIC")]) is LIST
    assert LIST.with_tails(LIST.saved_tails) is LIST


def test_holes_that_overlap_become_one() -> None:
    grown = LIST.with_holes([Hole(4800, 400, "MAGIC")])
    assert grown.holes == (HOLE._replace(size=489), LIST.holes[1])
    assert LIST.with_holes([Hole(4711 + 265, 10, "MAGIC")]).holes[1].position == 4976


def test_repaired_holes_go() -> None:
    assert LIST.without_holes(4711, 4712).holes == LIST.holes[1:]
    assert LIST.without_holes(0, 4711) is LIST


def test_every_flipped_bit_is_found(path: Path) -> None:
    LIST.save(path)
    data = path.read_bytes()
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StoreCorruptError, match=r"line \d+"):
            checked_json.decode(bytes(flipped), path)


def test_file_cut_anywhere_is_an_error(path: Path) -> None:
    LIST.save(path)
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(StoreCorruptError):
            Quarantine.load(path)


def test_wrong_shape_under_a_right_checksum_names_the_key(path: Path) -> None:
    checked_json.save(path, {"format_version": 1, "holes": [{"position": "x", "size": 1}]})
    with pytest.raises(StoreCorruptError, match="position: 'x', wanted a whole number"):
        Quarantine.load(path)
    checked_json.save(path, {"format_version": 2, "holes": []})
    with pytest.raises(StoreVersionError, match="format 2"):
        Quarantine.load(path)


def test_unknown_keys_are_kept(path: Path) -> None:
    checked_json.save(path, {"format_version": 1, "holes": [], "saved_tails": [], "later": [1]})
    Quarantine.load(path).with_holes([HOLE]).save(path)
    assert checked_json.load(path)["later"] == [1]  # type: ignore[index]  # it is there
