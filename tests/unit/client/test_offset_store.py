"""LocalOffsetStore: what a broadcasting member keeps, and what it makes of a file that is torn."""

from pathlib import Path

import pytest

from shmq.client.offset_store import LocalOffsetStore
from shmq.errors import ConfigError
from shmq.result import MessageQueue

ONE, TWO = MessageQueue("t", "broker-a", 0), MessageQueue("t", "broker-a", 1)


def test_offsets_are_found_again_beside_those_of_other_queues(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "offsets.json"
    store = LocalOffsetStore(path)
    assert store.offset(ONE) is None
    store.save({ONE: 5})
    store.save({TWO: 7})
    again = LocalOffsetStore(path)
    assert (again.offset(ONE), again.offset(TWO)) == (5, 7)
    before = path.stat().st_mtime_ns
    again.save({ONE: 5})
    assert path.stat().st_mtime_ns == before  # nothing new, nothing written


@pytest.mark.parametrize("torn", [b"", b"{", b"[]", b'{"offsetTable": [{"topic": "t"}]}', None])
def test_torn_file_is_made_up_for_by_the_one_before(tmp_path: Path, torn: bytes | None) -> None:
    path = tmp_path / "offsets.json"
    store = LocalOffsetStore(path)
    store.save({ONE: 5})
    store.save({ONE: 6})
    if torn is None:
        path.unlink()  # killed between the two renames
    else:
        path.write_bytes(torn)
    assert LocalOffsetStore(path).offset(ONE) == 5


def test_two_torn_files_are_told(tmp_path: Path) -> None:
    path = tmp_path / "offsets.json"
    path.write_bytes(b"{")
    with pytest.raises(ConfigError, match="remove the file to begin anew"):
        LocalOffsetStore(path)


def test_save_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "offsets.json"
    store = LocalOffsetStore(path)
    store.save({ONE: 5})
    path.with_name("offsets.json.bak").mkdir()  # in the way of the backup
    with pytest.raises(OSError, match=r"offsets\.json"):
        store.save({ONE: 6})
    assert LocalOffsetStore(path).offset(ONE) == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["offsets.json", "offsets.json.bak"]
