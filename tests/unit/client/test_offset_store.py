"""LocalOffsetStore: what a broadcasting member keeps, and what it makes of a file that is torn."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from shmq.client.offset_store import LocalOffsetStore
from shmq.errors import ConfigError
from shmq.result import MessageQueue

ONE, TWO = MessageQueue("t", "broker-a", 0), MessageQueue("t", "broker-a", 1)


@contextmanager
def opened(path: Path, topic: str = "t") -> Iterator[LocalOffsetStore]:
    with closing(LocalOffsetStore(path, topic)) as store:
        yield store


def test_offsets_are_found_again_beside_those_of_other_queues(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "offsets.json"
    with opened(path) as store:
        assert store.offset(ONE) is None
        store.save({ONE: 5})
        store.save({TWO: 7})
    with opened(path) as again:
        assert (again.offset(ONE), again.offset(TWO)) == (5, 7)
        before = path.stat().st_mtime_ns
        again.save({ONE: 5})
        assert path.stat().st_mtime_ns == before  # nothing new, nothing written


def test_topics_of_one_program_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "offsets.json"
    other = MessageQueue("u", "broker-a", 0)
    with opened(path) as store, opened(tmp_path / "." / "offsets.json", "u") as beside:
        store.save({ONE: 5})
        beside.save({other: 6})
        store.save({ONE: 7})
    with opened(path) as again:
        assert (again.offset(ONE), again.offset(other)) == (7, 6)


def test_file_is_one_members(tmp_path: Path) -> None:
    path = tmp_path / "offsets.json"
    source = (
        "import sys, pathlib\n"
        "from shmq.client.offset_store import LocalOffsetStore\n"
        "LocalOffsetStore(pathlib.Path(sys.argv[1]), 'another')\n"
    )
    command = [sys.executable, "-c", source, str(path)]
    with opened(path) as store:
        with pytest.raises(ConfigError, match="another consumer of this program"):
            LocalOffsetStore(path, "t")
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "another process" in told.stderr.splitlines()[-1]
        store.save({ONE: 5})
    store.save({ONE: 4})  # it is closed
    assert subprocess.run(command, check=False).returncode == 0
    with opened(path) as again:
        assert again.offset(ONE) == 5


def test_folder_that_cannot_be_written_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"keep offsets in /proc/none/offsets\.json"):
        LocalOffsetStore(Path("/proc/none/offsets.json"), "t")


PART = b'{"offsetTable": [{"topic": "t"}]}'
TEXT = b'{"offsetTable": [{"topic": "t", "brokerName": "b", "queueId": "0", "offset": 5}]}'


@pytest.mark.parametrize("torn", [b"", b"{", b"[]", PART, TEXT, None])
def test_torn_file_is_made_up_for_by_the_one_before(tmp_path: Path, torn: bytes | None) -> None:
    path = tmp_path / "offsets.json"
    with opened(path) as store:
        store.save({ONE: 5})
        store.save({ONE: 6})
    if torn is None:
        path.unlink()  # killed between the two renames
    else:
        path.write_bytes(torn)
    with opened(path) as store:
        assert store.offset(ONE) == 5


def test_two_torn_files_are_told(tmp_path: Path) -> None:
    path = tmp_path / "offsets.json"
    path.write_bytes(b"{")
    with pytest.raises(ConfigError, match="remove the file to begin anew"):
        LocalOffsetStore(path, "t")


def test_save_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "offsets.json"
    with opened(path) as store:
        store.save({ONE: 5})
        path.with_name("offsets.json.bak").mkdir()  # in the way of the backup
        with pytest.raises(OSError, match=r"offsets\.json"):
            store.save({ONE: 6})
    with opened(path) as store:
        assert store.offset(ONE) == 5
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["offsets.json", "offsets.json.bak", "offsets.json.lock"]
