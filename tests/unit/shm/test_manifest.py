"""The manifest: whole or refused, old or new, whatever happens to the file or its writer."""

import os
import re
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shmq.errors import DiskFullError, ShmError
from shmq.shm.manifest import Manifest, ObjectEntry, load, manifest_path, save
from shmq.shm.names import ObjectKind, parse_store
from tests.support.require import require_program
from tests.support.scale import is_full_run
from tests.unit.shm import children

BOOT = bytes.fromhex("0123456789abcdef0123456789abcdef")
WANTED = {
    "ENOSPC": "DiskFullError",
    "EDQUOT": "DiskFullError",
    "EROFS": "DiskReadOnlyError",
    "EMFILE": "LimitError",
}
"""What a system call's error is, where it is not just a ShmError."""


def _manifest(hot_count: int = 2) -> Manifest:
    manifest = Manifest(
        layout_version=1,
        boot_id=BOOT,
        generation="00000000deadbeef",
        cluster_name="Default.Cluster",
        broker_name="broker-a",
        broker_id=0,
        file_size_bytes=64 << 20,
        uid=1000,
    )
    manifest = manifest.with_object(manifest.store.object(ObjectKind.CONTROL, 0), size_bytes=65536)
    for n in range(hot_count):
        name = manifest.store.object(ObjectKind.HOT, n)
        manifest = manifest.with_object(name, size_bytes=64 << 20)
    return manifest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = manifest_path(tmp_path)
    path.parent.mkdir()
    return path


def _resign(body: bytes) -> bytes:
    return body + b"crc32 %08x\n" % zlib.crc32(body)


def test_saved_manifest_reads_back(path: Path) -> None:
    save(_manifest(), path)
    assert load(path) == _manifest()
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(path.parent) == ["manifest.json"]


def test_file_is_json_for_people_and_a_crc_line(path: Path) -> None:
    save(_manifest(), path)
    *body, crc_line = path.read_bytes().splitlines(keepends=True)
    assert orjson.loads(b"".join(body))["cluster_name"] == "Default.Cluster"
    assert crc_line == b"crc32 %08x\n" % zlib.crc32(b"".join(body))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    cluster_name=st.text(min_size=1),
    broker_name=st.text(min_size=1),
    broker_id=st.integers(0, 2**63 - 1),
    hot=st.dictionaries(st.integers(0, 2**32 - 1), st.integers(0, 2**63 - 1), max_size=20),
)
def test_any_manifest_reads_back(
    path: Path, cluster_name: str, broker_name: str, broker_id: int, hot: dict[int, int]
) -> None:
    manifest = Manifest(
        layout_version=1,
        boot_id=BOOT,
        generation="00000000deadbeef",
        cluster_name=cluster_name,
        broker_name=broker_name,
        broker_id=broker_id,
        file_size_bytes=4096,
        uid=0,
    )
    for n, size_bytes in hot.items():
        name = manifest.store.object(ObjectKind.HOT, n)
        manifest = manifest.with_object(name, size_bytes=size_bytes)
    save(manifest, path)
    assert load(path) == manifest


def test_absent_manifest_is_none(path: Path) -> None:
    assert load(path) is None
    assert load(path.parent / "nowhere" / "manifest.json") is None


# --- the value ------------------------------------------------------------------------------------


def test_objects_are_added_replaced_and_taken_off() -> None:
    manifest = _manifest(1)
    control, hot = (manifest.store.object(kind, 0) for kind in (ObjectKind.CONTROL, ObjectKind.HOT))
    grown = manifest.with_object(control, size_bytes=1 << 20)
    assert grown.objects == (ObjectEntry(control, 1 << 20), ObjectEntry(hot, 64 << 20))
    assert grown.without_object(hot).objects == (ObjectEntry(control, 1 << 20),)
    assert grown.without_object(hot).without_object(hot) == grown.without_object(hot)


def test_only_what_is_listed_is_wanted() -> None:
    manifest = _manifest(2)
    assert manifest.wants(manifest.store.object(ObjectKind.HOT, 1))
    assert not manifest.wants(manifest.store.object(ObjectKind.HOT, 2))
    other = parse_store(str(manifest.store).replace("deadbeef", "deadbeee"))
    assert other is not None
    assert not manifest.wants(other.object(ObjectKind.HOT, 1))


def test_completion_objects_are_wanted_as_long_as_the_control_segment_is() -> None:
    manifest = _manifest()
    completion = manifest.store.object(ObjectKind.COMPLETION, 77)
    assert manifest.wants(completion)
    without = manifest.without_object(manifest.store.object(ObjectKind.CONTROL, 0))
    assert not without.wants(completion)
    with pytest.raises(ShmError, match="does not belong there"):
        manifest.with_object(completion, size_bytes=4096)


def test_object_of_another_store_cannot_be_listed() -> None:
    other = parse_store("shmq.c.b.0.01234567.00000000deadbeef")
    assert other is not None
    with pytest.raises(ShmError, match="does not belong there"):
        _manifest().with_object(other.object(ObjectKind.HOT, 0), size_bytes=4096)


# --- damage ---------------------------------------------------------------------------------------


def test_every_flipped_bit_is_found(path: Path) -> None:
    save(_manifest(1), path)
    whole = path.read_bytes()
    for place in range(len(whole) * 8):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(ShmError, match=rf"read {path}, line \d+: "):
            load(path)


def test_every_cut_and_every_zeroed_tail_is_found(path: Path) -> None:
    save(_manifest(1), path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        for damaged in (whole[:size], whole[:size] + bytes(len(whole) - size)):
            path.write_bytes(damaged)
            with pytest.raises(ShmError, match=rf"read {path}, line \d+: "):
                load(path)


def _line_of(path: Path, text: str) -> int:
    lines = path.read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"uid": 1000', '"uid": "root"', "uid is 'root', wanted int"),
        ('"uid": 1000', '"uid": true', "uid is True, wanted int"),
        ('"uid": 1000', '"uid": -1', "uid is -1, wanted int"),
        ('"uid": 1000', '"gid": 1000', "the key 'uid' is missing"),
        ('"uid": 1000', '"uid": 1000, "path": "/etc"', "the key 'path' is unknown"),
        ('"uid": 1000', '"uid": 1000,,', "unexpected character|trailing comma|unexpected"),
        ('"generation": "00000000deadbeef"', '"generation": "../../x"', "no store name"),
        (f'"boot_id": "{BOOT.hex()}"', '"boot_id": "xyz"', "non-hexadecimal"),
        ('"kind": "control"', '"kind": "hot"', "is no name of such an object"),
        ('"n": 0', '"n": 1', "is no name of such an object"),
        (".control.0", ".control.0/../../x", "is no name of such an object"),
        ('"name": "/shmq.', '"name": "/psm_', "is no name of such an object"),
        ("00000000deadbeef.control", "00000000deadbeee.control", "is no object of shmq"),
        ('"size_bytes": 65536', '"size_bytes": null', "size_bytes is None, wanted int"),
    ],
)
def test_wrong_contents_under_a_right_crc_are_refused_with_line_and_reason(
    path: Path, old: str, new: str, reason: str
) -> None:
    save(_manifest(1), path)
    body = path.read_bytes().rpartition(b"crc32")[0].decode()
    assert old in body
    path.write_bytes(_resign(body.replace(old, new, 1).encode()))
    with pytest.raises(ShmError, match=rf"read {path}, line \d+: .*({reason})") as refusal:
        load(path)
    assert str(refusal.value).endswith("move it away to start from the files alone")


def test_line_named_is_the_one_with_the_fault(path: Path) -> None:
    save(_manifest(1), path)
    body = path.read_bytes().rpartition(b"crc32")[0].replace(b"1000", b'"root"')
    path.write_bytes(_resign(body))
    with pytest.raises(ShmError, match=f"line {_line_of(path, 'uid')}: "):
        load(path)
    body = path.read_bytes().rpartition(b"crc32")[0].replace(b'"root"', b"root")
    path.write_bytes(_resign(body))
    with pytest.raises(ShmError, match=f"line {_line_of(path, 'uid')}: "):
        load(path)


@pytest.mark.parametrize("body", [b"[]\n", b"7\n", b"null\n", b'{"objects": 7}\n', b"\xff\n", b""])
def test_json_of_another_shape_is_refused(path: Path, body: bytes) -> None:
    path.write_bytes(_resign(body))
    with pytest.raises(ShmError, match=rf"read {path}, line \d+: "):
        load(path)


def test_what_is_no_plain_file_is_refused_without_waiting(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(ShmError, match="not a plain file"):
        load(path)
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(ShmError, match=f"read {path}"):
        load(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ShmError, match="not a plain file"):
        load(path)


# --- the writer dies or is refused ----------------------------------------------------------------

_SAVE = """
import sys
from pathlib import Path
from shmq.errors import ShmqError
from shmq.shm.manifest import load, save
path = Path(sys.argv[1])
old = load(path)
assert old is not None
new = old.without_object(old.objects[-1].name)
try:
    print("saving", flush=True)
    save(new, path)
    print("saved")
except ShmqError as error:
    print(type(error).__name__, error)
"""
_CALLS = "openat,fchmod,write,fsync,rename,close,unlink"


def _save_under_strace(path: Path, fault: str, call: str, when: int) -> tuple[str, bool]:
    """Save with a fault at the n-th such call; return what was printed and whether it was met."""
    strace = require_program("strace", "strace")
    trace = path.parent / "trace"
    done = subprocess.run(
        [
            *[strace, "-qq", "-o", trace, "-P", path, "-P", path.with_suffix(".json.tmp")],
            *["-P", path.parent, "-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={when}"],
            *[sys.executable, "-c", _SAVE, path],
        ],
        capture_output=True,
        text=True,
        cwd=children.ROOT,
        check=False,
    )
    met = "INJECTED" in trace.read_text() or done.returncode == -signal.SIGKILL
    trace.unlink()
    return done.stdout, met


@pytest.mark.crash
@pytest.mark.parametrize("call", _CALLS.split(","))
def test_writer_killed_at_any_system_call_leaves_the_old_or_the_new(path: Path, call: str) -> None:
    old = _manifest()
    new = old.without_object(old.objects[-1].name)
    seen = set()
    for when in range(1, 100):
        save(old, path)
        out, met = _save_under_strace(path, "signal=SIGKILL", call, when)
        after = load(path)
        assert after in (old, new)
        seen.add(after == new)
        if not met:
            assert "saved" in out
            break
    save(old, path)
    assert load(path) == old
    assert os.listdir(path.parent) == ["manifest.json"]
    if call == "fsync":
        assert seen == {True, False}


@pytest.mark.crash
@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("write", "ENOSPC"),
        ("write", "EIO"),
        ("fsync", "EIO"),
        ("fsync", "ENOSPC"),
        ("rename", "EROFS"),
        ("fchmod", "EPERM"),
        ("openat", "EDQUOT"),
    ],
)
def test_failed_save_raises_and_leaves_the_old_or_the_new(
    path: Path, call: str, error: str
) -> None:
    old = _manifest()
    new = old.without_object(old.objects[-1].name)
    count = 0
    for when in range(1, 100 if is_full_run() else 4):
        save(old, path)
        out, met = _save_under_strace(path, f"error={error}", call, when)
        assert load(path) in (old, new)
        assert os.listdir(path.parent) == ["manifest.json"]
        if not met:
            break
        if "saving" in out and "saved" not in out:
            wanted = WANTED.get(error, "ShmError")
            assert re.search(rf"{wanted} (write|read) {path}", out), out
            count += 1
    assert count


def test_full_file_system_is_a_disk_full_error_and_keeps_the_old_manifest() -> None:
    out = children.run_in_private_shm(
        "size=64k",
        """
        import os
        from pathlib import Path
        from shmq.errors import DiskFullError
        from shmq.shm.manifest import load, manifest_path, save
        from shmq.shm.names import ObjectKind
        from tests.unit.shm.test_manifest import _manifest
        path = manifest_path(Path("/dev/shm"))
        path.parent.mkdir()
        old = _manifest()
        save(old, path)
        new = old
        for n in range(2, 500):
            new = new.with_object(old.store.object(ObjectKind.HOT, n), size_bytes=1)
        try:
            save(new, path)
        except DiskFullError as error:
            print(error)
        assert load(path) == old
        assert os.listdir(path.parent) == ["manifest.json"]
        """,
    )
    assert out.endswith("No space left on device; free space there")


def test_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ShmError, match="No such file or directory"):
        save(_manifest(), manifest_path(tmp_path))
    assert not issubclass(ShmError, DiskFullError)


def test_save_syncs_the_file_before_the_rename_and_the_folder_after(path: Path) -> None:
    strace = require_program("strace", "strace")
    save(_manifest(), path)
    trace = path.parent.parent / "trace"
    subprocess.run(
        [
            *[strace, "-qq", "-y", "-o", trace, "-e", "trace=write,fsync,fdatasync,rename"],
            *["-P", path, "-P", path.with_suffix(".json.tmp"), "-P", path.parent],
            *[sys.executable, "-c", _SAVE, path],
        ],
        cwd=children.ROOT,
        check=True,
        capture_output=True,
    )
    calls = re.findall(r"^(\w+)\((?:\d+<([^>]*)>)?", trace.read_text(), re.M)
    assert calls == [
        ("write", f"{path}.tmp"),
        ("fsync", f"{path}.tmp"),
        ("rename", ""),
        ("fsync", f"{path.parent}"),
    ]
