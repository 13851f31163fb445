"""The reaper: leftovers go; what lives, is wanted, is doubtful or is not ours stays."""

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from shmq.errors import OwnerError, ShmError
from shmq.shm import reaper
from shmq.shm.in_use import InUseMark, marked_stores
from shmq.shm.incarnation import Incarnation, boot_id
from shmq.shm.manifest import Manifest, load, manifest_path, save
from shmq.shm.names import ObjectKind, ObjectName, StoreName, parse
from shmq.shm.reaper import Verdict, reap, sweep
from shmq.shm.segment import SHM_FOLDER, create
from tests.support.require import require_root
from tests.support.scale import scaled
from tests.unit.shm import children
from tests.unit.shm.segments import Finisher, new_store

DEAD = Incarnation(1, 1)  # process 1 started earlier than one tick after boot, or later

# A broker as far as the reaper can see it: mark, objects, manifest, in the order of the real one.
_BROKER = """
import os, sys
from pathlib import Path
from shmq.shm.in_use import InUseMark
from shmq.shm.incarnation import boot_id
from shmq.shm.manifest import Manifest, load, manifest_path, save
from shmq.shm.names import ObjectKind, StoreName, new_generation
from shmq.shm.reaper import sweep
from shmq.shm.segment import create, unlink

runtime_folder, store_path, cluster_name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
path = manifest_path(store_path)
path.parent.mkdir(exist_ok=True)
manifest = load(path) or Manifest(
    layout_version=1, boot_id=boot_id(), generation=new_generation(), cluster_name=cluster_name,
    broker_name="broker-a", broker_id=0, file_size_bytes=4096, uid=os.geteuid())
mark = InUseMark.take(runtime_folder, manifest.store, timeout_ms=60_000)
sweep(mark, keep={entry.name for entry in manifest.objects})

def make(kind, n):
    global manifest
    name = manifest.store.object(kind, n)
    create(name, size_bytes=4096).close()
    if kind is not ObjectKind.COMPLETION:
        manifest = manifest.with_object(name, size_bytes=4096)
        save(manifest, path)

def drop(name):
    global manifest
    manifest = manifest.without_object(name)
    save(manifest, path)
    unlink(name)
"""


def _verdicts(findings: list[reaper.Finding], store: StoreName) -> dict[str, Verdict]:
    """Verdicts on the objects of one store; neighbours on the machine are not ours to assert."""
    found = {parse(finding.name): finding.verdict for finding in findings}
    return {
        f"{name.kind}.{name.n}": verdict
        for name, verdict in found.items()
        if name is not None and name.store == store
    }


def _exists(name: ObjectName) -> bool:
    return os.path.lexists(f"{SHM_FOLDER}{name}")


def _manifest(cluster_name: str, store: StoreName) -> Manifest:
    return Manifest(
        layout_version=1,
        boot_id=boot_id(),
        generation=store.generation,
        cluster_name=cluster_name,
        broker_name="broker-a",
        broker_id=0,
        file_size_bytes=4096,
        uid=os.geteuid(),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = manifest_path(tmp_path)
    path.parent.mkdir()
    return path


@pytest.fixture
def leftovers(store: StoreName, runtime_folder: Path, finisher: Finisher) -> list[ObjectName]:
    """What a dead broker left: a mark that nobody holds, a control segment, two hot ones."""
    InUseMark.take(runtime_folder, store, timeout_ms=0).release()
    names = [
        store.object(ObjectKind.CONTROL, 0),
        store.object(ObjectKind.HOT, 0),
        store.object(ObjectKind.HOT, 1),
    ]
    for name in names:
        create(name, size_bytes=4096).close()
    finisher.finish(names[0], size_bytes=4096, owner=DEAD)
    return names


def test_leftovers_of_a_dead_broker_are_removed_and_its_mark_too(
    leftovers: list[ObjectName], store: StoreName, runtime_folder: Path, path: Path
) -> None:
    findings = reap([runtime_folder], [path], dry_run=False)
    assert _verdicts(findings, store) == dict.fromkeys(
        ["control.0", "hot.0", "hot.1"], Verdict.REMOVED
    )
    assert not any(map(_exists, leftovers))
    assert marked_stores(runtime_folder) == set()
    assert _verdicts(reap([runtime_folder], [path], dry_run=False), store) == {}


def test_dry_run_says_the_same_and_removes_nothing(
    leftovers: list[ObjectName], store: StoreName, runtime_folder: Path, path: Path
) -> None:
    findings = reap([runtime_folder], [path], dry_run=True)
    assert set(_verdicts(findings, store).values()) == {Verdict.WOULD_REMOVE}
    assert all(map(_exists, leftovers))
    assert marked_stores(runtime_folder) == {store}
    (finding,) = (one for one in findings if one.name == leftovers[0].file_name)
    assert finding.size_bytes == 4096
    assert finding.reason == "no manifest wants it and no process holds it"


@pytest.mark.parametrize("is_stopped", [False, True])
def test_memory_of_a_living_broker_stays_even_if_it_is_stopped(
    leftovers: list[ObjectName],
    store: StoreName,
    runtime_folder: Path,
    path: Path,
    is_stopped: bool,
) -> None:
    broker = children.start(
        """
        import sys
        from pathlib import Path
        from shmq.shm.in_use import InUseMark
        from shmq.shm.names import parse_store
        mark = InUseMark.take(Path(sys.argv[1]), parse_store(sys.argv[2]), timeout_ms=0)
        print("held", flush=True)
        input()
        """,
        runtime_folder,
        store,
    )
    assert broker.stdout is not None
    assert broker.stdout.readline() == "held\n"
    if is_stopped:
        os.kill(broker.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, broker.pid, os.WSTOPPED | os.WNOWAIT)
    findings = reap([runtime_folder], [path], dry_run=False, unmarked=[store])
    assert set(_verdicts(findings, store).values()) == {Verdict.IN_USE}
    assert all(map(_exists, leftovers))
    broker.kill()
    os.waitid(os.P_PID, broker.pid, os.WEXITED | os.WNOWAIT)
    findings = reap([runtime_folder], [path], dry_run=False)
    assert set(_verdicts(findings, store).values()) == {Verdict.REMOVED}
    broker.communicate()


def test_memory_whose_owner_lives_stays_even_without_its_mark(
    leftovers: list[ObjectName],
    store: StoreName,
    runtime_folder: Path,
    path: Path,
    finisher: Finisher,
) -> None:
    finisher.finish(leftovers[0], size_bytes=4096, owner=Incarnation.current())
    for folders in ([runtime_folder], []):
        findings = reap(folders, [path], dry_run=False, unmarked=[store])
        assert set(_verdicts(findings, store).values()) == {Verdict.IN_USE}
        reasons = {one.reason for one in findings if one.verdict is Verdict.IN_USE}
        assert f"its owner, process {os.getpid()}, is alive" in reasons


def test_pid_that_was_given_to_another_process_holds_nothing(
    leftovers: list[ObjectName],
    store: StoreName,
    runtime_folder: Path,
    path: Path,
    finisher: Finisher,
) -> None:
    me = Incarnation.current()
    finisher.finish(leftovers[0], size_bytes=4096, owner=Incarnation(me.pid, me.start_time - 1))
    findings = reap([runtime_folder], [path], dry_run=False)
    assert set(_verdicts(findings, store).values()) == {Verdict.REMOVED}


def test_what_a_manifest_lists_stays_for_adoption_and_the_rest_goes(
    leftovers: list[ObjectName],
    store: StoreName,
    runtime_folder: Path,
    path: Path,
    cluster_name: str,
) -> None:
    manifest = _manifest(cluster_name, store)
    assert manifest.store == store
    for name in leftovers[:2]:
        manifest = manifest.with_object(name, size_bytes=4096)
    save(manifest, path)
    create(store.object(ObjectKind.COMPLETION, 5), size_bytes=4096).close()
    findings = reap([runtime_folder], [path], dry_run=False)
    assert _verdicts(findings, store) == {
        "control.0": Verdict.WANTED,
        "hot.0": Verdict.WANTED,
        "hot.1": Verdict.REMOVED,
        "completion.5": Verdict.WANTED,
    }
    assert [_exists(name) for name in leftovers] == [True, True, False]
    assert marked_stores(runtime_folder) == {store}


def test_manifest_of_another_store_saves_nothing(
    leftovers: list[ObjectName],
    store: StoreName,
    runtime_folder: Path,
    path: Path,
    cluster_name: str,
) -> None:
    other = new_store(cluster_name)
    manifest = _manifest(cluster_name, other)
    manifest = manifest.with_object(other.object(ObjectKind.CONTROL, 0), size_bytes=4096)
    save(manifest, path)
    findings = reap([runtime_folder], [path], dry_run=False)
    assert set(_verdicts(findings, store).values()) == {Verdict.REMOVED}


def test_unreadable_manifest_keeps_everything_and_says_so(
    leftovers: list[ObjectName], store: StoreName, runtime_folder: Path, path: Path
) -> None:
    path.write_text("{}")
    findings = reap([runtime_folder], [path], dry_run=False, unmarked=[store])
    assert set(_verdicts(findings, store).values()) == {Verdict.IN_DOUBT}
    assert any(f"read {path}, line 1: " in finding.reason for finding in findings)
    assert all(map(_exists, leftovers))
    assert marked_stores(runtime_folder) == {store}


def test_runtime_folder_that_cannot_be_trusted_keeps_everything(
    leftovers: list[ObjectName], store: StoreName, runtime_folder: Path, path: Path
) -> None:
    runtime_folder.chmod(0o755)
    findings = reap([runtime_folder], [path], dry_run=False, unmarked=[store])
    assert set(_verdicts(findings, store).values()) == {Verdict.IN_DOUBT}
    assert all(map(_exists, leftovers))


def test_store_that_no_given_folder_knows_stays_unless_a_person_says_otherwise(
    leftovers: list[ObjectName], store: StoreName, runtime_folder: Path, path: Path
) -> None:
    elsewhere = runtime_folder.with_name("elsewhere")
    elsewhere.mkdir(mode=0o700)
    for folders in ([], [elsewhere], [runtime_folder.with_name("absent")]):
        findings = reap(folders, [path], dry_run=False)
        assert set(_verdicts(findings, store).values()) == {Verdict.UNMARKED}
    assert all(map(_exists, leftovers))
    another = new_store(store.cluster)
    create(another.object(ObjectKind.HOT, 0), size_bytes=4096).close()
    findings = reap([elsewhere], [path], dry_run=False, unmarked=[store])
    assert set(_verdicts(findings, store).values()) == {Verdict.REMOVED}
    assert _verdicts(findings, another) == {"hot.0": Verdict.UNMARKED}


def test_memory_of_another_boot_is_removed(
    store: StoreName, runtime_folder: Path, path: Path
) -> None:
    old = StoreName(store.cluster, store.broker, 0, "00000000", store.generation)
    name = old.object(ObjectKind.CONTROL, 0)
    create(name, size_bytes=4096).close()
    findings = reap([], [path], dry_run=False)
    assert _verdicts(findings, old) == {"control.0": Verdict.REMOVED}


def test_memory_of_another_uid_is_left_alone(
    leftovers: list[ObjectName], store: StoreName, runtime_folder: Path, path: Path
) -> None:
    require_root()
    os.chown(f"{SHM_FOLDER}{leftovers[2]}", children.NOBODY, -1)
    findings = reap([runtime_folder], [path], dry_run=False, unmarked=[store])
    assert _verdicts(findings, store)["hot.1"] is Verdict.OTHER_OWNER
    assert [_exists(name) for name in leftovers] == [False, False, True]
    (finding,) = (one for one in findings if one.name == leftovers[2].file_name)
    assert finding.reason == "owned by uid 65534, not 0"


def test_link_with_our_name_is_neither_followed_nor_removed(
    store: StoreName, runtime_folder: Path, path: Path, tmp_path: Path
) -> None:
    InUseMark.take(runtime_folder, store, timeout_ms=0).release()
    victim = tmp_path / "victim"
    victim.write_text("mine")
    name = store.object(ObjectKind.CONTROL, 0)
    os.symlink(victim, f"{SHM_FOLDER}{name}")
    findings = reap([runtime_folder], [path], dry_run=False, unmarked=[store])
    assert _verdicts(findings, store) == {"control.0": Verdict.IN_DOUBT}
    assert victim.read_text() == "mine"
    assert _exists(name)


def test_foreign_names_are_not_even_mentioned(
    leftovers: list[ObjectName], store: StoreName, runtime_folder: Path, path: Path
) -> None:
    foreign = [f"{leftovers[0].file_name}.x", "psm_shmq_test", f"x{leftovers[0].file_name}"]
    for name in foreign:
        Path(SHM_FOLDER, name).touch()
    try:
        findings = reap([runtime_folder], [path], dry_run=False, unmarked=[store])
        assert not {finding.name for finding in findings} & set(foreign)
        assert all(Path(SHM_FOLDER, name).exists() for name in foreign)
    finally:
        for name in foreign:
            Path(SHM_FOLDER, name).unlink()


def _replaced(name: ObjectName) -> Callable[[int], None]:
    def replace(_: int) -> None:
        os.unlink(f"{SHM_FOLDER}{name}")
        create(name, size_bytes=8192).close()

    return replace


def test_object_replaced_after_it_was_looked_at_stays(
    leftovers: list[ObjectName],
    store: StoreName,
    runtime_folder: Path,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load_all = reaper._load_all

    def load_late(paths: list[Path]) -> list[Manifest]:
        _replaced(leftovers[1])(0)
        os.unlink(f"{SHM_FOLDER}{leftovers[2]}")
        monkeypatch.undo()
        return load_all(paths)

    monkeypatch.setattr(reaper, "_load_all", load_late)
    findings = reap([runtime_folder], [path], dry_run=False)
    assert _verdicts(findings, store) == {
        "control.0": Verdict.REMOVED,
        "hot.0": Verdict.GONE,
        "hot.1": Verdict.GONE,
    }
    assert _exists(leftovers[1])


def test_broker_cannot_start_while_its_memory_is_being_judged(
    leftovers: list[ObjectName],
    store: StoreName,
    runtime_folder: Path,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def load_late(paths: list[Path]) -> list[Manifest]:
        with pytest.raises(OwnerError, match="held by another process"):
            InUseMark.take(runtime_folder, store, timeout_ms=0)
        seen.append(paths)
        return []

    monkeypatch.setattr(reaper, "_load_all", load_late)
    reap([runtime_folder], [path], dry_run=True)
    assert seen
    InUseMark.take(runtime_folder, store, timeout_ms=0).release()


def test_broker_sweeps_what_it_does_not_keep_and_nobody_elses(
    leftovers: list[ObjectName], store: StoreName, runtime_folder: Path, cluster_name: str
) -> None:
    other = new_store(cluster_name).object(ObjectKind.HOT, 0)
    create(other, size_bytes=4096).close()
    with InUseMark.take(runtime_folder, store, timeout_ms=0) as mark:
        assert sweep(mark, keep=leftovers[:1]) != []
        assert [_exists(name) for name in leftovers] == [True, False, False]
        assert sweep(mark, keep=()) == leftovers[:1]
    assert _exists(other)
    with pytest.raises(ShmError, match="mark is not held"):
        sweep(mark, keep=())


@pytest.mark.crash
@pytest.mark.timeout(600)
def test_broker_killed_anywhere_beside_a_busy_reaper_finds_all_that_it_listed(
    tmp_path: Path, runtime_folder: Path, store: StoreName, cluster_name: str
) -> None:
    """Whatever is listed exists, and whatever is left over goes: at every death, in every order."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    path = manifest_path(tmp_path)
    for _ in range(scaled(10, 200)):
        broker = children.start(
            _BROKER
            + """
if not manifest.objects:
    make(ObjectKind.CONTROL, 0)
print("up", flush=True)
n = max(entry.name.n for entry in manifest.objects) + 1
while True:
    make(ObjectKind.HOT, n)
    make(ObjectKind.COMPLETION, n)
    unlink(manifest.store.object(ObjectKind.COMPLETION, max(n - 2, 0)))
    if len(manifest.objects) > 4:
        drop(manifest.objects[1].name)
    n += 1
""",
            runtime_folder,
            tmp_path,
            cluster_name,
        )
        assert broker.stdout is not None
        is_up = dice.random() < 0.8
        if is_up:
            assert broker.stdout.readline() == "up\n"
        for _ in range(dice.randrange(30)):
            reap([runtime_folder], [path], dry_run=False)
        broker.kill()
        reap([runtime_folder], [path], dry_run=False)
        _, errors = broker.communicate()
        assert not errors, errors
        manifest = load(path)
        assert manifest is not None or not is_up
        if manifest is not None:
            assert all(_exists(entry.name) for entry in manifest.objects)
            reap([runtime_folder], [path], dry_run=False)
            seen = _verdicts(reap([runtime_folder], [path], dry_run=False), manifest.store)
            listed = {f"{entry.name.kind}.{entry.name.n}" for entry in manifest.objects}
            assert {key for key in seen if not key.startswith("completion")} == listed
            assert set(seen.values()) <= {Verdict.WANTED}
    path.unlink(missing_ok=True)
    reap([runtime_folder], [path], dry_run=False)
    assert not [name for name in os.listdir(SHM_FOLDER) if store.cluster in name]
    assert marked_stores(runtime_folder) == set()
