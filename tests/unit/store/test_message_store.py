"""MessageStore from its own interface: opening, refusing, serving, stopping, opening again."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shmq.config import StoreConfig
from shmq.core import core
from shmq.errors import (
    ClosedError,
    ConfigError,
    DiskFullError,
    LayoutVersionError,
    LimitError,
    OwnerError,
    QuotaError,
    ServiceNotAvailableError,
    ShmError,
    ShmFullError,
    ShmqError,
    StoreError,
    StoreLockedError,
    TopicNotExistError,
)
from shmq.shm import manifest as manifests
from shmq.shm.in_use import marked_stores
from shmq.status import FlushDiskType
from shmq.store import positions
from shmq.store.message_store import MessageStore
from shmq.store.queues import QueueHandle
from shmq.store.sessions import SessionOffer
from shmq.tools.fsck import fsck
from tests.support import rocketmq_decoder
from tests.support.mounts import in_dev_shm_of, small_file_system
from tests.support.require import require_root
from tests.support.store_process import ROOT, ClientSide, StoreClient, StoreProcess, wait_until

OK = core.STATUS["OK"][0]
FILE_SIZE = 1 << 20
MESSAGE_SIZE_MAX = 256 << 10
SHM = Path("/dev/shm")


@pytest.fixture
def config(tmp_path: Path, cluster_name: str) -> StoreConfig:
    return StoreConfig(
        store_path=tmp_path / "store",
        runtime_path=tmp_path / "run",
        cluster_name=cluster_name,
        commit_log_file_size_bytes=FILE_SIZE,
        hot_segment_count=3,
        max_message_size_bytes=MESSAGE_SIZE_MAX,
    )


@contextlib.contextmanager
def _client(store: MessageStore, **options: bool) -> Iterator[ClientSide]:
    """A client in this process."""
    offer = store.sessions.open(uid=os.getuid(), pid=os.getpid(), pid_start_time=1, **options)
    fds, offer.fds = offer.fds, {}
    client = ClientSide(offer, fds)  # type: ignore[arg-type] # an Offer is what came over a socket
    try:
        yield client
    finally:
        client.close()
        store.sessions.close(offer.session, offer.generation)


def _send(store: MessageStore, handle: QueueHandle, *bodies: bytes) -> None:
    with _client(store) as client:
        store.sessions.grant(client.offer.session, [handle.row])
        for body in bodies:
            assert client.lanes[0].send(*handle, body)[0] == OK


def _bodies(store: MessageStore, handle: QueueHandle) -> list[bytes]:
    with _client(store, producer=False) as client:
        _, messages, _ = client.reader.read(*handle, 0, 10_000)
        return [message.body_bytes for message in messages]


# ---- opening and stopping ------------------------------------------------------------------------


def test_store_serves_from_start_to_stop_and_leaves_files_only(config: StoreConfig) -> None:
    with MessageStore(config) as store:
        assert not store.is_adopted
        assert store.failure is None
        store.check()
        handle = store.queues.add("orders", 3)
        _send(store, handle, b"one", b"two")
        assert _bodies(store, handle) == [b"one", b"two"]
        assert store.queues.offsets(handle).visible_max == 2
        assert config.cluster_name in "".join(os.listdir(SHM))
    assert config.cluster_name not in "".join(os.listdir(SHM))
    assert not manifests.manifest_path(config.store_path).exists()
    assert not marked_stores(config.runtime_path)  # type: ignore[arg-type] # it is set
    known = positions.load(positions.positions_path(config.store_path))
    assert known is not None
    assert known.is_clean
    frames = list(rocketmq_decoder.decode_commit_log(config.store_path / "commitlog"))
    assert [frame.body for frame in frames] == [b"one", b"two"]
    assert known.flushed_position == frames[-1].physical_offset + frames[-1].total_size


def test_stopped_store_opens_again_with_everything(config: StoreConfig) -> None:
    with MessageStore(config) as store:
        _send(store, store.queues.add("orders", 0), b"one")
        _send(store, store.queues.add("paid", 1), b"two", b"three")
    with MessageStore(config) as store:
        assert not store.is_adopted
        assert store.recovered is not None
        assert store.recovered.holes == ()
        assert {(topic, queue_id) for topic, queue_id, _ in store.queues} == {
            ("orders", 0),
            ("paid", 1),
        }
        handle = store.queues.find("paid", 1)
        assert _bodies(store, handle) == [b"two", b"three"]
        _send(store, handle, b"four")
        assert _bodies(store, handle) == [b"two", b"three", b"four"]


def test_store_that_never_had_a_message_opens_again(config: StoreConfig) -> None:
    for _ in range(3):
        with MessageStore(config) as store:
            assert store.positions.committed_position == 0
            assert len(store.queues) == 0


def test_memory_that_was_kept_is_adopted_with_its_queues_and_sessions(config: StoreConfig) -> None:
    with contextlib.ExitStack() as undo:
        store = MessageStore(config)
        store.open()
        store.start()
        handle = store.queues.add("orders", 0)
        offer = store.sessions.open(uid=os.getuid(), pid=os.getpid(), pid_start_time=1)
        fds = dict(offer.fds)
        client = undo.enter_context(contextlib.closing(ClientSide(offer, fds)))  # type: ignore[arg-type]
        store.sessions.grant(offer.session, [handle.row])
        assert client.lanes[0].send(*handle, b"before")[0] == OK
        store.stop(keep_memory=True)
        with MessageStore(config) as successor:
            assert successor.is_adopted
            assert successor.recovered is None
            assert successor.sessions.lost == [offer.session]
            assert successor.queues.find("orders", 0) == handle
            resumed = successor.sessions.resume(
                session=offer.session,
                generation=offer.generation,
                uid=os.getuid(),
                fds=client.kept_fds,
                send_rows=[handle.row],
            )
            client.resume_with(resumed, dict(resumed.fds))  # type: ignore[arg-type]
            assert client.lanes[0].send(*handle, b"after")[0] == OK
            assert _bodies(successor, handle) == [b"before", b"after"]
            assert successor.sessions.lost == []


def test_lost_session_that_nobody_wants_is_forgotten(config: StoreConfig) -> None:
    store = MessageStore(config)
    store.open()
    store.start()
    offer = store.sessions.open(uid=1, pid=2, pid_start_time=3)
    offer.close()
    store.stop(keep_memory=True)
    with MessageStore(config) as successor:
        assert successor.sessions.lost == [0]
        successor.sessions.forget_lost(0)
        assert successor.sessions.lost == []
        with _client(successor) as client:
            assert client.offer.session == 0
            assert client.offer.generation > offer.generation


def test_stop_flushes_what_was_sent(config: StoreConfig) -> None:
    store = MessageStore(replace(config, flush_interval_ms=60_000))
    store.open()
    store.start()
    _send(store, store.queues.add("orders", 0), b"x" * 1000)
    end = store.positions.committed_position
    store.stop()
    frames = list(rocketmq_decoder.decode_commit_log(config.store_path / "commitlog"))
    assert frames[-1].physical_offset + frames[-1].total_size == end


def test_store_that_was_in_use_is_clean_to_fsck(config: StoreConfig) -> None:
    """What its own threads derived says what the log says, every frame asked for its CRC; and
    nothing is missing, however short before the stop a file was complete."""
    for _ in range(2):
        with MessageStore(config) as store:
            handle = store.queues.add("orders", 0)
            _send(store, handle, *[b"x" * 16_000 for _ in range(150)])
        report = fsck(config.store_path)
        assert report.findings == []
        assert report.file_count >= 3


def test_damaged_newest_message_takes_no_other_with_it(config: StoreConfig) -> None:
    """Its offset is not given out again, and those before it stay in memory."""
    with MessageStore(config) as store:
        handle = store.queues.add("orders", 0)
        bodies = [number.to_bytes(4, "big") * 16_000 for number in range(40)]
        _send(store, handle, *bodies)
        end = store.positions.committed_position
    assert end > 2 * FILE_SIZE
    place = end - 1000
    with (config.store_path / "commitlog" / f"{2 * FILE_SIZE:020d}").open("r+b") as file:
        file.seek(place - 2 * FILE_SIZE)
        file.write(b"damage")
    with MessageStore(config) as store, _client(store) as client:
        # the next files are ready, and what is cold has left memory
        wait_until(lambda: store.appender_state()["ready_end"] == 5 * FILE_SIZE)
        handle = store.queues.find("orders", 0)
        offsets = store.queues.offsets(handle)
        assert (offsets.visible_max, offsets.max_queue_offset) == (40, 40)
        in_memory = offsets.hot_min_queue_offset
        assert in_memory < 39
        _, messages, reached = client.reader.read(*handle, in_memory, 100)
        assert [message.body_bytes for message in messages] == bodies[in_memory:39]
        assert (reached, client.reader.lost_count) == (40, 1)
        store.sessions.grant(client.offer.session, [handle.row])
        assert client.lanes[0].send(*handle, b"next")[2] == 40


# ---- what must be refused, and how ---------------------------------------------------------------


def _assert_opens_after(config: StoreConfig, refused: Callable[[], object]) -> None:
    """What was refused has left nothing behind: not in memory, no lock, no damage."""
    before = _objects(config)
    refused()
    assert _objects(config) == before
    with MessageStore(config):
        pass


def test_second_store_on_a_folder_is_refused_and_names_the_holder(config: StoreConfig) -> None:
    with StoreProcess(config) as process:
        with pytest.raises(StoreLockedError, match=f"{process.pid}") as raised:
            MessageStore(config).open()
        assert raised.value.hint
        handle = process.add_queue("orders")
        with StoreClient(process) as client:
            client.grant(handle)
            assert client.lanes[0].send(*handle, b"the first is unhurt")[0] == OK


def test_second_store_in_the_same_process_is_refused(config: StoreConfig) -> None:
    with MessageStore(config), pytest.raises(StoreLockedError):
        MessageStore(config).open()


def test_other_file_size_is_refused_with_what_the_files_have(config: StoreConfig) -> None:
    with MessageStore(config) as store:
        _send(store, store.queues.add("orders", 0), b"one")
    other = replace(config, commit_log_file_size_bytes=2 * FILE_SIZE)

    def refused() -> None:
        with pytest.raises(ShmError, match=f"{FILE_SIZE} bytes.*{2 * FILE_SIZE}.*auto"):
            MessageStore(other).open()

    _assert_opens_after(config, refused)


def test_file_size_is_taken_from_the_files_where_nobody_says_one(config: StoreConfig) -> None:
    with MessageStore(config) as store:
        _send(store, store.queues.add("orders", 0), b"one")
    with MessageStore(replace(config, commit_log_file_size_bytes=None)) as store:
        assert store.file_size_bytes == FILE_SIZE
        assert _bodies(store, store.queues.find("orders", 0)) == [b"one"]


def test_damaged_positions_are_done_without(config: StoreConfig) -> None:
    with MessageStore(config) as store:
        _send(store, store.queues.add("orders", 0), b"one")
    path = positions.positions_path(config.store_path)
    path.write_bytes(bytes(b ^ 0xFF for b in path.read_bytes()))
    with MessageStore(config) as store:
        assert _bodies(store, store.queues.find("orders", 0)) == [b"one"]


def test_damaged_manifest_is_refused_with_file_line_and_remedy(config: StoreConfig) -> None:
    store = MessageStore(config)
    store.open()
    store.start()
    _send(store, store.queues.add("orders", 0), b"one")
    store.stop(keep_memory=True)
    path = manifests.manifest_path(config.store_path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"broker-a", b"broker-b", 1))
    with pytest.raises(ShmError, match=r"manifest.*line \d+: crc32 .*move it away"):
        MessageStore(config).open()
    path.write_bytes(whole)
    with MessageStore(config) as successor:
        assert successor.is_adopted


# ---- memory that cannot be adopted ---------------------------------------------------------------


@pytest.fixture
def dead(config: StoreConfig) -> Iterator[StoreConfig]:
    """A store whose process was killed: three messages, flushed; its memory is there, as much of it
    as the keeper makes: a successor drops what it finds half made.
    """
    with StoreProcess(config) as process:
        handle = process.add_queue("orders")
        with StoreClient(process) as client:
            client.grant(handle)
            for body in (b"one", b"two", b"three"):
                assert client.lanes[0].send(*handle, body)[0] == OK
            end = process.facts()["positions"]["committed_position"]
            wait_until(lambda: process.facts()["positions"]["flushed_position"] == end)
            wait_until(lambda: process.facts()["state"]["ready_end"] == 3 * FILE_SIZE)
            process.kill()
    yield config
    for name in os.listdir(SHM):
        if config.cluster_name in name:
            (SHM / name).unlink()


def _assert_recovers_from_files(config: StoreConfig) -> None:
    """Nothing of the dead store's memory is used or left."""
    with MessageStore(config) as store:
        assert not store.is_adopted
        assert _bodies(store, store.queues.find("orders", 0)) == [b"one", b"two", b"three"]
        generation = store._memory.manifest.generation
        left = {
            name
            for name in os.listdir(SHM)
            if config.cluster_name in name and generation not in name
        }
        assert left == set(), "left of the dead one"


def _objects(config: StoreConfig) -> set[str]:
    return {name for name in os.listdir(SHM) if config.cluster_name in name}


def _assert_refused(config: StoreConfig, error: type[ShmqError], remedy: str) -> None:
    """The store does not open, and says what to do; all that the dead one left stays."""
    before = _objects(config)
    with pytest.raises(error, match=remedy):
        MessageStore(config).open()
    assert _objects(config) == before


def test_killed_store_is_adopted(dead: StoreConfig) -> None:
    with MessageStore(dead) as store:
        assert store.is_adopted
        assert _bodies(store, store.queues.find("orders", 0)) == [b"one", b"two", b"three"]


def test_memory_of_another_layout_version_is_refused_and_stays(dead: StoreConfig) -> None:
    path = manifests.manifest_path(dead.store_path)
    manifest = manifests.load(path)
    assert manifest is not None
    manifests.save(replace(manifest, layout_version=core.LAYOUT_VERSION + 1), path)
    _assert_refused(dead, LayoutVersionError, "start the release that wrote it")
    manifests.save(manifest, path)
    test_killed_store_is_adopted(dead)


def test_segment_of_another_layout_version_is_refused_and_stays(dead: StoreConfig) -> None:
    place = next(
        place for name, place, *_ in core.LAYOUT["segment_header"][1] if name == "layout_version"
    )

    def write(version: int) -> None:
        with (_object(dead, "control")).open("r+b") as file:
            file.seek(place)
            file.write(version.to_bytes(4, "little"))

    write(core.LAYOUT_VERSION + 1)
    _assert_refused(dead, LayoutVersionError, "start the release that wrote it")
    write(core.LAYOUT_VERSION)
    test_killed_store_is_adopted(dead)


def test_memory_of_another_boot_is_not_adopted(dead: StoreConfig) -> None:
    """Its objects cannot be there after a reboot; a manifest that says so is enough."""
    path = manifests.manifest_path(dead.store_path)
    manifest = manifests.load(path)
    assert manifest is not None
    for name in os.listdir(SHM):
        if dead.cluster_name in name:
            (SHM / name).unlink()
    other = replace(manifest, boot_id=bytes(16), objects=())
    manifests.save(other, path)
    _assert_recovers_from_files(dead)


@pytest.mark.parametrize("kind", ["control", "topics", "arena", "hot"])
def test_memory_with_an_object_missing_is_not_adopted(dead: StoreConfig, kind: str) -> None:
    _object(dead, kind).unlink()
    _assert_recovers_from_files(dead)


@pytest.mark.parametrize("kind", ["control", "topics", "arena", "hot"])
def test_memory_of_another_owner_is_refused_and_stays(dead: StoreConfig, kind: str) -> None:
    require_root()
    path = _object(dead, kind)
    os.chown(path, 65534, -1)
    _assert_refused(dead, OwnerError, "run as the user that made it")
    os.chown(path, os.geteuid(), -1)
    test_killed_store_is_adopted(dead)


def test_successor_raises_its_soft_limit_of_open_files(dead: StoreConfig) -> None:
    low = ("prlimit", "--nofile=128:")
    with StoreProcess(dead, wrapper=low) as process:
        assert process.is_adopted
        limits = Path(f"/proc/{process.pid}/limits").read_text().splitlines()
        soft = next(int(line.split()[3]) for line in limits if line.startswith("Max open files"))
        assert soft > 128


def test_start_that_fails_behind_recovery_leaves_nothing(config: StoreConfig) -> None:
    blocked = config.store_path / "broker.conf"
    blocked.mkdir(parents=True)
    with pytest.raises(StoreError, match=r"broker\.conf"):
        MessageStore(config).open()
    assert _objects(config) == set()
    assert not manifests.manifest_path(config.store_path).exists()
    blocked.rmdir()
    with MessageStore(config) as store:
        assert not store.is_adopted


def test_successor_that_fails_behind_adoption_leaves_everything(dead: StoreConfig) -> None:
    conf = dead.store_path / "broker.conf"
    conf.unlink()
    conf.mkdir()
    # All but what nobody adopts: each broker makes it anew.
    before = {name for name in _objects(dead) if ".stats." not in name}
    with pytest.raises(StoreError, match=r"broker\.conf"):
        MessageStore(dead).open()
    assert _objects(dead) == before
    conf.rmdir()
    test_killed_store_is_adopted(dead)


def _open_objects(config: StoreConfig) -> list[str]:
    """What this process's fds lead to, of the store's memory; other fds come and go."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sorted(path for path in found if f"shmq.{config.cluster_name}." in path)


def test_segment_that_no_manifest_can_list_leaves_nothing(config: StoreConfig) -> None:
    with MessageStore(config) as store:
        wait_until(lambda: store.appender_state()["ready_end"] == 3 * FILE_SIZE)
        before = _objects(config), _open_objects(config)
        path = manifests.manifest_path(config.store_path)
        blocked = path.with_suffix(".json.tmp")
        blocked.mkdir()
        with pytest.raises(ShmqError):
            store._memory.create_hot()
        assert (_objects(config), _open_objects(config)) == before
        blocked.rmdir()
        store._memory.drop_hot(store._memory.create_hot().number)
        assert (_objects(config), _open_objects(config)) == before


@pytest.mark.parametrize("kind", ["control", "topics", "arena", "hot"])
def test_memory_that_was_cut_is_not_adopted(dead: StoreConfig, kind: str) -> None:
    path = _object(dead, kind)
    os.truncate(path, path.stat().st_size - 4096)
    _assert_recovers_from_files(dead)


def test_turn_record_that_does_not_hold_is_not_adopted(dead: StoreConfig) -> None:
    path = _object(dead, "control")
    with path.open("r+b") as file:
        file.seek(2 * core.LINE)  # append_positions.turn_number
        turn = int.from_bytes(file.read(8), "little")
        file.seek(2 * core.LINE)
        file.write((turn + 7).to_bytes(8, "little"))
    _assert_recovers_from_files(dead)


def _object(config: StoreConfig, kind: str) -> Path:
    names = sorted(n for n in os.listdir(SHM) if config.cluster_name in n and f".{kind}." in n)
    return SHM / names[0]


# ---- a small machine -----------------------------------------------------------------------------


def _unasked(config: StoreConfig) -> StoreConfig:
    """The same store, with no size that anybody asked for."""
    return StoreConfig(
        store_path=config.store_path,
        runtime_path=config.runtime_path,
        cluster_name=config.cluster_name,
    )


def test_sizes_nobody_asked_for_shrink_and_a_container_of_64_mib_works(
    config: StoreConfig,
) -> None:
    """Docker's default /dev/shm: small and large messages, several files long, read back."""
    with StoreProcess(_unasked(config), wrapper=in_dev_shm_of("64m")) as store:
        handle = store.add_queue("orders")
        with StoreClient(store) as client:
            client.grant(handle)
            client.grant_chunk(8 << 20)
            lane = client.lanes[0]
            bodies = [number.to_bytes(4, "big") * 1000 for number in range(5000)]
            bodies[::500] = [bytes([number]) * (4 << 20) for number in range(10)]
            received = 0
            for number, body in enumerate(bodies):
                assert lane.send(*handle, body, timeout=30.0)[0] == OK
                if number % 100 == 99:
                    while received <= number:
                        _, messages, received_now = client.reader.read(*handle, received, 16)
                        assert [m.body_bytes for m in messages] == bodies[received:received_now]
                        received = received_now
            facts = store.facts()
    assert facts["positions"]["committed_position"] > 48 << 20
    assert facts["failure"] is None


def test_explicit_sizes_that_do_not_fit_are_refused_with_the_remedy(config: StoreConfig) -> None:
    asked = replace(_unasked(config), commit_log_file_size_bytes=64 << 20, hot_segment_count=4)
    with pytest.raises(ShmFullError) as raised:
        StoreProcess(asked, wrapper=in_dev_shm_of("64m"))
    message = str(raised.value)
    assert "commit_log_file_size_bytes" in message
    assert "hot_segment_count" in message
    assert "/dev/shm" in message
    assert "remount,size=" in message
    assert "--shm-size" in message
    assert raised.value.retryable


def test_too_little_dev_shm_is_refused_with_the_remedy(config: StoreConfig) -> None:
    with pytest.raises(ShmFullError, match="remount,size="):
        StoreProcess(_unasked(config), wrapper=in_dev_shm_of("4m"))
    with StoreProcess(_unasked(config)) as store:  # nothing was left that would hinder
        assert not store.is_adopted


def test_too_few_files_are_refused_where_sessions_were_asked_for(config: StoreConfig) -> None:
    limited = ("prlimit", "--nofile=256:256")
    with pytest.raises(LimitError, match=r"256.*(LimitNOFILE|ulimit)"):
        StoreProcess(replace(config, session_count=1000), wrapper=limited)
    with StoreProcess(config, wrapper=limited) as store, StoreClient(store) as client:
        handle = store.add_queue("orders")
        client.grant(handle)
        assert client.lanes[0].send(*handle, b"fewer sessions, but it serves")[0] == OK


def test_message_size_that_no_file_can_hold_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_message_size_bytes"):
        StoreConfig(
            store_path=Path("/nowhere"),
            commit_log_file_size_bytes=1 << 20,
            max_message_size_bytes=1 << 20,
        )


_AS_NOBODY = """
import os, sys
from pathlib import Path
from shmq.config import StoreConfig
from shmq.errors import ShmqError
from shmq.store.message_store import MessageStore
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    MessageStore(StoreConfig(store_path=Path(sys.argv[1]), runtime_path=Path(sys.argv[2]))).open()
except ShmqError as error:
    print(type(error).__name__, error.code > 0, bool(error.hint), str(error))
"""


def test_store_of_another_user_is_refused_by_name(config: StoreConfig, tmp_path: Path) -> None:
    require_root()
    with MessageStore(config):
        pass
    config.store_path.chmod(0o700)
    result = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, str(config.store_path), str(tmp_path / "other_run")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.startswith("StoreError True True "), result
    assert str(config.store_path) in result.stdout
    assert "no right for uid 65534" in result.stdout


# ---- queues --------------------------------------------------------------------------------------


def test_queues_are_made_found_changed_and_deleted(config: StoreConfig) -> None:
    with MessageStore(config) as store:
        handle = store.queues.add("orders", 0)
        assert store.queues.add("orders", 0) == handle, "made once"
        assert store.queues.name(handle.row) == ("orders", 0)
        assert store.queues.state(handle) == (True, 0)
        with _client(store) as client:
            store.sessions.grant(client.offer.session, [handle.row])
            lane = client.lanes[0]
            assert lane.send(*handle, b"one")[0] == OK
            flags = store.default_flags(FlushDiskType.SYNC_FLUSH)
            store.queues.set("orders", 0, flags=flags, is_writable=False)
            assert store.queues.state(handle) == (False, core.ROW_FLUSH)
            assert lane.send(*handle, b"refused")[0] == core.STATUS["NOT_WRITABLE"][0]
            store.queues.set("orders", 0, flags=flags)
            assert lane.send(*handle, b"two")[0] == OK
            store.queues.delete("orders", 0)
            assert lane.send(*handle, b"stale")[0] == core.STATUS["NO_TOPIC"][0]
            assert client.reader.read(*handle, 0)[0] == core.STATUS["FENCED"][0]
        with pytest.raises(TopicNotExistError):
            store.queues.find("orders", 0)
        with pytest.raises(TopicNotExistError):
            store.queues.delete("orders", 0)
        with pytest.raises(StoreError):
            store.queues.name(handle.row)


def test_row_that_is_used_again_has_another_generation(config: StoreConfig) -> None:
    """A handle to a deleted queue never sends to, or reads, the queue that has its row now."""
    with MessageStore(config) as store, _client(store) as client:
        old = store.queues.add("old", 0)
        store.sessions.grant(client.offer.session, [old.row])
        assert client.lanes[0].send(*old, b"old")[0] == OK
        store.queues.delete("old", 0)
        new = store.queues.add("new", 0)
        assert new.row == old.row
        assert new.generation != old.generation
        assert client.lanes[0].send(*old, b"stale")[0] != OK
        assert client.reader.read(*new, 0)[1] == []
        assert client.reader.read(*old, 0)[0] == core.STATUS["FENCED"][0]


def test_rows_grow_under_clients_that_are_attached(config: StoreConfig) -> None:
    with MessageStore(config) as store, _client(store) as client:
        handles = [store.queues.add(f"topic-{n}", q) for n in range(700) for q in range(4)]
        store.sessions.grant(client.offer.session, [handle.row for handle in handles])
        for handle in (handles[0], handles[-1]):
            assert client.lanes[0].send(*handle, b"here")[0] == OK
            assert [m.body_bytes for m in client.reader.read(*handle, 0)[1]] == [b"here"]
    with MessageStore(config) as store:
        assert {(topic, queue_id) for topic, queue_id, _ in store.queues} == {
            ("topic-0", 0),
            ("topic-699", 3),
        }, "queues without a message are the broker's to remember"


def test_too_many_queues_are_refused_and_those_there_go_on(config: StoreConfig) -> None:
    small = replace(config, queue_row_count_max=64)
    with MessageStore(small) as store:
        made = [store.queues.add("orders", queue_id) for queue_id in range(64)]
        with pytest.raises(ShmFullError, match="largest size"):
            store.queues.add("orders", 64)
        _send(store, made[-1], b"one")
        assert _bodies(store, made[-1]) == [b"one"]


# ---- the hot log ---------------------------------------------------------------------------------


class _Watched:
    """The appender, looked at when a file is made ready for appends."""

    def __init__(self, store: MessageStore) -> None:
        self._appender = store._appender
        self._channel = store.channel
        self.offered: list[bool] = []
        self.announced: list[bool] = []

    def ready(self, file_position: int, *rest: object) -> None:
        self.offered.append(file_position in self._channel._hot)
        self.announced.append(file_position in self._channel._announced)
        self._appender.ready(file_position, *rest)  # type: ignore[arg-type] # as they came

    def __getattr__(self, name: str) -> object:
        return getattr(self._appender, name)


def test_clients_get_the_memory_of_a_file_before_anything_is_appended_there(
    config: StoreConfig,
) -> None:
    """One that asked for it in between got the file on disk, where its messages were not yet, and
    took them for lost. But nobody is told of it unasked: a successor makes it anew, and one who had
    mapped it took the messages there for lost.
    """
    store = MessageStore(config)
    store.open()
    watched = _Watched(store)
    store._hot_log._appender = watched  # type: ignore[assignment] # it passes everything on
    store.start()
    try:
        _send(store, store.queues.add("orders", 0), *[b"x" * 20_000 for _ in range(200)])
        assert len(watched.offered) >= 3
        assert all(watched.offered)
        assert not any(watched.announced)
    finally:
        store.stop()


# ---- sessions ------------------------------------------------------------------------------------


def test_all_slots_taken_is_a_quota_error_and_a_closed_one_is_free_again(
    config: StoreConfig,
) -> None:
    with MessageStore(replace(config, session_count=2)) as store, contextlib.ExitStack() as undo:
        offers: list[SessionOffer] = []
        for _ in range(2):
            offer = store.sessions.open(uid=1, pid=1, pid_start_time=1)
            undo.callback(offer.close)
            offers.append(offer)
        with pytest.raises(QuotaError, match="session_count"):
            store.sessions.open(uid=1, pid=1, pid_start_time=1)
        own = [name for name in os.listdir(SHM) if config.cluster_name in name]
        assert len([name for name in own if ".completion." in name]) == 2
        assert store.sessions.live == [0, 1]
        store.sessions.close(0)
        again = store.sessions.open(uid=1, pid=1, pid_start_time=1)
        undo.callback(again.close)
        assert (again.session, again.generation > offers[0].generation) == (0, True)
        store.sessions.close(0, offers[0].generation)
        assert store.sessions.live == [0, 1], "a late close of the slot's last session"


def test_session_without_a_grant_may_not_send(config: StoreConfig) -> None:
    with MessageStore(config) as store, _client(store) as client:
        mine, other = store.queues.add("mine", 0), store.queues.add("other", 0)
        store.sessions.grant(client.offer.session, [mine.row])
        assert client.lanes[0].send(*mine, b"one")[0] == OK
        refused = core.STATUS["NOT_GRANTED"][0]
        assert client.lanes[0].send(*other, b"two")[0] == refused
        assert client.lanes[0].send(10_000, 1, b"no such row")[0] == refused
        store.sessions.revoke(client.offer.session, [mine.row])
        assert client.lanes[0].send(*mine, b"three")[0] == refused
        assert _bodies(store, mine) == [b"one"]
        assert store.queues.offsets(other).max_queue_offset == 0


def test_closed_session_is_used_by_nobody(config: StoreConfig) -> None:
    with MessageStore(config) as store:
        row = store.queues.add("orders", 0).row
        for call in (
            lambda: store.sessions.grant(5, [row]),
            lambda: store.sessions.revoke(5, [row]),
            lambda: store.sessions.subscribe(5, 0, row),
            lambda: store.sessions.grant_chunk(5),
        ):
            with pytest.raises(ClosedError, match="session 5"):
                call()
        store.sessions.close(5)
        assert store.sessions.is_drained(5)


def test_second_chunk_memory_is_refused(config: StoreConfig) -> None:
    with MessageStore(config) as store, _client(store) as client:
        session = client.offer.session
        os.close(store.sessions.grant_chunk(session, 1 << 20))
        with pytest.raises(ShmError, match=f"session {session}: it has some already"):
            store.sessions.grant_chunk(session, 1 << 20)


# ---- what the store says of itself ---------------------------------------------------------------


def test_check_tells_why_no_message_is_taken(config: StoreConfig) -> None:
    with MessageStore(config) as store:
        store.check()
        store._appender.set_status(-core.STATUS["DISK_FULL"][0])
        with pytest.raises(ServiceNotAvailableError, match="appends wait"):
            store.check()


def test_cold_entries_are_those_of_the_log(config: StoreConfig) -> None:
    """Enough messages to fill several files: entries of the first are in files only."""
    with MessageStore(config) as store:
        handle = store.queues.add("orders", 0)
        with _client(store) as client:
            store.sessions.grant(client.offer.session, [handle.row])
            for number in range(600):
                body = number.to_bytes(4, "big") * 2048
                assert client.lanes[0].put(*handle, body, timeout=30.0) >= 0
            assert client.lanes[0].drain(30.0) == OK
            wait_until(lambda: store.queues.offsets(handle).hot_min_queue_offset > 0)
            found = store.read_cold("orders", 0, 0, 10)
            assert found is not None
            first, entries = found
            assert (first, len(entries)) == (0, 240)
            status, messages, reached = client.reader.read_entries(entries, first, 10)
            assert (status, reached) == (OK, 10)
            assert [int.from_bytes(m.body_bytes[:4], "big") for m in messages] == list(range(10))
        assert store.read_cold("orders", 0, 10_000, 1) is None
        assert store.read_cold("nothing", 0, 0, 1) is None


SQUATTED = """
import encodings.ascii, os, sys  # later this uid may not read them
from pathlib import Path
from shmq.config import StoreConfig
from shmq.errors import QuotaError
from shmq.store.message_store import MessageStore
folder = Path(sys.argv[1])
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
config = StoreConfig(
    store_path=folder / "store", runtime_path=folder / "run", cluster_name=sys.argv[2],
    commit_log_file_size_bytes=1 << 20, max_message_size_bytes=1 << 16, hot_segment_count=3,
    session_count=4,
)
with MessageStore(config) as store:
    print("open", flush=True)
    sys.stdin.readline()  # the stranger was there
    print(store.sessions.open(uid=1, pid=1, pid_start_time=1).session)
    try:
        store.sessions.open(uid=1, pid=1, pid_start_time=1)
    except QuotaError as error:
        print(error)
"""


def test_stranger_that_takes_a_sessions_name_first_takes_that_slot_and_no_more(
    cluster_name: str,
) -> None:
    """This process, root, plays the stranger who makes objects in the sticky /dev/shm first."""
    require_root()
    squatted = []
    with tempfile.TemporaryDirectory() as folder:  # where another uid may go
        os.chown(folder, 65534, 65534)
        with subprocess.Popen(
            [sys.executable, "-c", SQUATTED, folder, cluster_name],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "open\n"
                name = next(name for name in os.listdir(SHM) if cluster_name in name)
                store = name.rsplit(".", 2)[0]
                squatted = [SHM / f"{store}.completion.{number}" for number in (0, 1, 3)]
                for path in squatted:
                    path.touch(mode=0o600, exist_ok=False)
                said, _ = process.communicate("go on\n")
            finally:
                for path in squatted:
                    path.unlink(missing_ok=True)
    assert process.returncode == 0
    slot, refusal = said.splitlines()
    assert slot == "2"
    assert "all 4 slots are taken, 3 by objects that another uid put in their places" in refusal


def test_memory_that_a_full_disk_does_not_let_go_goes_when_there_is_room(
    config: StoreConfig, tmp_path: Path
) -> None:
    with (
        small_file_system(tmp_path / "disk", size=32 << 20) as disk,
        MessageStore(replace(config, store_path=disk / "store")) as store,
    ):
        made = store._memory.create_hot()
        filler = disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:  # until the disk is full
                file.write(bytes(4096))
        for _ in range(2):
            with pytest.raises(DiskFullError):
                store._memory.drop_hot(made.number)
            assert Path(f"/dev/shm{made.segment.name}").exists()
        filler.unlink()
        store._memory.drop_hot(made.number)
        assert made.number not in store._memory.hot_numbers()
        assert not Path(f"/dev/shm{made.segment.name}").exists()
