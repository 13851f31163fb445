import os
import subprocess
import sys
from pathlib import Path

import pytest

from shmq.errors import DiskFullError, StoreCorruptError, StoreError
from shmq.store.log_files import LogFiles, find_file_size
from tests.support.mounts import make_readonly, make_writable, small_file_system
from tests.support.repository import ROOT
from tests.unit.store.stores import FILE_SIZE, Writer, commit_log_bytes


@pytest.fixture
def files(tmp_path: Path) -> LogFiles:
    files = LogFiles(tmp_path, FILE_SIZE)
    files.make_folders()
    return files


def _add(files: LogFiles, *positions: int) -> None:
    for position in positions:
        os.close(files.make_ready(position, zero_written=False))


def test_files_are_in_order(files: LogFiles) -> None:
    _add(files, FILE_SIZE, 2 * FILE_SIZE, 3 * FILE_SIZE)
    assert [file.file_position for file in files.files()] == [
        FILE_SIZE,
        2 * FILE_SIZE,
        3 * FILE_SIZE,
    ]
    assert find_file_size(files.store_path) == FILE_SIZE


def test_store_without_files_has_none(tmp_path: Path) -> None:
    assert LogFiles(tmp_path, FILE_SIZE).files() == []
    assert find_file_size(tmp_path) is None


def test_last_file_without_bytes_does_not_count_and_folders_are_passed_over(
    files: LogFiles,
) -> None:
    _add(files, 0)
    files.path(FILE_SIZE).touch()
    (files.folder / "lost+found").mkdir()
    assert [file.file_position for file in files.files()] == [0]
    os.close(files.make_ready(FILE_SIZE, zero_written=False))
    assert [file.file_position for file in files.files()] == [0, FILE_SIZE]


def test_file_that_cannot_be_one_is_refused_by_name(files: LogFiles) -> None:
    _add(files, 0, FILE_SIZE)
    cases = {
        "00000000000000131073": "65536 is missing|131072 is missing|no multiple",
        "123": "20 decimal digits",
        "0000000000000013107x": "20 decimal digits",
        "99999999999999999999": "20 decimal digits",
        f"{3 * FILE_SIZE:020d}": f"{2 * FILE_SIZE:020d} is missing",
    }
    for name, reason in cases.items():
        path = files.folder / name
        path.write_bytes(bytes(FILE_SIZE))
        with pytest.raises(StoreCorruptError, match=reason) as caught:
            files.files()
        assert name in str(caught.value)
        path.unlink()
    assert len(files.files()) == 2


def test_file_of_another_size_is_refused_with_both_sizes(files: LogFiles) -> None:
    _add(files, 0, FILE_SIZE)
    os.truncate(files.path(0), FILE_SIZE - 1)
    with pytest.raises(StoreCorruptError, match=f"{FILE_SIZE - 1} bytes, wanted {FILE_SIZE}"):
        files.files()
    with pytest.raises(StoreCorruptError, match=f"{FILE_SIZE - 1} bytes, wanted {FILE_SIZE}"):
        files.open(0)


def test_link_in_place_of_a_file_is_refused(files: LogFiles, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(bytes(FILE_SIZE))
    files.path(0).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreCorruptError, match="not a plain file"):
        files.files()
    with pytest.raises(StoreError):
        files.open(0)


@pytest.mark.parametrize("zero_written", [True, False])
def test_prepared_file_is_no_part_of_the_log_until_installed(
    files: LogFiles, zero_written: bool
) -> None:
    files.prepare(0, zero_written=zero_written)
    assert files.files() == []
    fd = files.install(0)
    try:
        status = os.fstat(fd)
        assert status.st_size == FILE_SIZE
        assert status.st_blocks * 512 >= FILE_SIZE
        assert os.pwrite(fd, b"x", 10) == 1
    finally:
        os.close(fd)
    assert [file.file_position for file in files.files()] == [0]
    assert os.listdir(files.prepare_folder) == []


def test_install_never_replaces_a_file(files: LogFiles) -> None:
    _add(files, 0)
    files.path(0).write_bytes(b"m" * FILE_SIZE)
    files.prepare(0, zero_written=False)
    with pytest.raises(StoreError, match="never replaced"):
        files.install(0)
    assert files.path(0).read_bytes() == b"m" * FILE_SIZE


def test_what_was_being_prepared_is_made_anew(files: LogFiles) -> None:
    (files.prepare_folder / f"{0:020d}").write_bytes(b"stale")
    fd = files.install(files.prepare(0, zero_written=False))
    os.close(fd)
    assert files.path(0).read_bytes() == bytes(FILE_SIZE)
    (files.prepare_folder / f"{FILE_SIZE:020d}").write_bytes(b"stale")
    files.make_folders()
    assert os.listdir(files.prepare_folder) == []


def test_file_opened_for_writing_is_not_sparse(files: LogFiles) -> None:
    path = files.path(0)
    with path.open("wb") as file:
        file.truncate(FILE_SIZE)
    assert path.stat().st_blocks == 0
    fd = files.open(0, readonly=False)
    os.close(fd)
    assert path.stat().st_blocks * 512 >= FILE_SIZE


def test_only_the_first_file_or_an_unused_last_one_is_deleted(files: LogFiles) -> None:
    _add(files, 0, FILE_SIZE, 2 * FILE_SIZE)
    files.path(2 * FILE_SIZE).write_bytes(b"m" + bytes(FILE_SIZE - 1))
    for position in (FILE_SIZE, 2 * FILE_SIZE):
        with pytest.raises(StoreError, match="only the first"):
            files.delete(position)
    files.delete(0)
    files.path(2 * FILE_SIZE).write_bytes(bytes(FILE_SIZE))
    files.delete(2 * FILE_SIZE)
    files.path(FILE_SIZE).write_bytes(b"m" + bytes(FILE_SIZE - 1))
    with pytest.raises(StoreError, match="only the first"):
        files.delete(FILE_SIZE)
    assert [file.file_position for file in files.files()] == [FILE_SIZE]


# ---- the tail -----------------------------------------------------------------------------------


def test_tail_is_kept_aside_and_zeroed(tmp_path: Path) -> None:
    writer = Writer(tmp_path).fill(100)
    files = LogFiles(tmp_path, FILE_SIZE)
    end = writer.records[60].position
    before = writer.path(end).read_bytes()
    (tail,) = files.clear_tail(end)
    after = writer.path(end).read_bytes()
    assert after == before[: end % FILE_SIZE] + bytes(FILE_SIZE - end % FILE_SIZE)
    kept = (files.quarantine_folder / tail.file_name).read_bytes()
    assert tail.position == end
    assert len(kept) == tail.size
    assert kept + bytes(FILE_SIZE - end % FILE_SIZE - len(kept)) == before[end % FILE_SIZE :]


def test_tail_over_several_files_is_kept_from_each(tmp_path: Path) -> None:
    writer = Writer(tmp_path).fill(900)
    files = LogFiles(tmp_path, FILE_SIZE)
    before = commit_log_bytes(tmp_path)
    assert len(before) >= 3
    end = writer.records[100].position
    tails = files.clear_tail(end)
    assert [tail.position for tail in tails] == [
        end,
        *(file.file_position for file in files.files()[1:]),
    ]
    after = commit_log_bytes(tmp_path)
    assert after.keys() == before.keys()
    joined = b"".join(after.values())
    assert joined[:end] == b"".join(before.values())[:end]
    assert not any(joined[end:])


def test_clearing_a_clean_tail_changes_nothing(tmp_path: Path) -> None:
    writer = Writer(tmp_path).fill(100)
    files = LogFiles(tmp_path, FILE_SIZE)
    before = commit_log_bytes(tmp_path)
    assert files.clear_tail(writer.position) == []
    assert files.clear_tail(writer.records[50].position)
    middle = commit_log_bytes(tmp_path)
    assert middle != before
    assert files.clear_tail(writer.records[50].position) == []
    assert commit_log_bytes(tmp_path) == middle


@pytest.mark.timeout(20)
def test_what_was_never_written_is_not_read_to_find_a_tail(tmp_path: Path) -> None:
    size = 1 << 40
    files = LogFiles(tmp_path, size)
    files.make_folders()
    with files.path(0).open("wb") as file:
        file.truncate(size)
        assert files.clear_tail(0) == []
        file.write(b"left of an earlier life")
    (tail,) = files.clear_tail(5)
    assert (tail.position, tail.size) == (5, len(b"of an earlier life"))
    assert files.clear_tail(0)
    assert files.clear_tail(0) == []
    with files.path(0).open("rb") as file:
        assert not any(file.read(1 << 20))


def test_tail_in_large_chunks_is_zeroed_to_the_last_byte(tmp_path: Path) -> None:
    size = (2 << 20) + 4096 * 3
    writer = Writer(tmp_path, file_size=size)
    files = LogFiles(tmp_path, size)
    for place in (0, 1, (1 << 20) - 1, 1 << 20, (2 << 20) - 1, 2 << 20, size - 1):
        writer.path(0).write_bytes(bytes(size))
        writer.write(place, b"x")
        (tail,) = files.clear_tail(0)
        assert tail.size == place + 1
        assert writer.path(0).read_bytes() == bytes(size)


def test_tail_stays_where_it_is_if_it_cannot_be_kept_aside(tmp_path: Path) -> None:
    with small_file_system(tmp_path / "disk", size=48 * 4096) as disk:
        writer = Writer(disk)
        writer.write(0, b"m" * FILE_SIZE)
        files = LogFiles(disk, FILE_SIZE)
        files.make_folders()
        (disk / "filler").write_bytes(bytes(disk_free(disk) - 4096))
        with pytest.raises(DiskFullError, match="free space"):
            files.clear_tail(100)
        assert writer.path(0).read_bytes() == b"m" * FILE_SIZE
        assert os.listdir(files.quarantine_folder) == []


def disk_free(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


# ---- disks that refuse ---------------------------------------------------------------------------


def test_full_disk_leaves_no_half_prepared_file(tmp_path: Path) -> None:
    with small_file_system(tmp_path / "disk", size=2 * FILE_SIZE - 4096) as disk:
        files = LogFiles(disk, FILE_SIZE)
        files.make_folders()
        _add(files, 0)
        with pytest.raises(DiskFullError, match="the file system is full") as caught:
            files.prepare(FILE_SIZE, zero_written=True)
        assert str(files.prepare_folder) in str(caught.value)
        assert os.listdir(files.prepare_folder) == []
        with pytest.raises(DiskFullError):
            files.make_ready(FILE_SIZE, zero_written=False)
        assert [file.file_position for file in files.files()] == [0]


def test_read_only_disk_is_named_as_such(tmp_path: Path) -> None:
    with small_file_system(tmp_path / "disk", size=8 * FILE_SIZE) as disk:
        files = LogFiles(disk, FILE_SIZE)
        files.make_folders()
        _add(files, 0)
        make_readonly(disk)
        try:
            with pytest.raises(StoreError, match="read-only"):
                files.prepare(FILE_SIZE, zero_written=False)
            with pytest.raises(StoreError, match="read-only"):
                files.clear_tail(0)
            os.close(files.open(0))
        finally:
            make_writable(disk)


def test_limit_of_file_size_is_a_full_disk_with_its_own_remedy(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from shmq.errors import DiskFullError
from shmq.store.log_files import LogFiles
resource.setrlimit(resource.RLIMIT_FSIZE, (32768, 32768))
files = LogFiles(Path(sys.argv[1]), 65536)
files.make_folders()
try:
    files.prepare(0, zero_written=True)
except DiskFullError as error:
    print(error)
print(list(files.prepare_folder.iterdir()))
"""
    child = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "ulimit -f" in child.stdout
    assert child.stdout.endswith("[]\n")
