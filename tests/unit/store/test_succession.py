"""Which memory a member may go on with: its master's, if its own log is a prefix of that log."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shmq.config import StoreConfig
from shmq.core import core
from shmq.errors import FencedError, OwnerError, ShmError
from shmq.shm import manifest as manifests
from shmq.shm.mastership import Mastership, load_record
from shmq.store.left_memory import has_memory
from shmq.store.message_store import MessageStore
from tests.support.store_process import StoreClient, StoreProcess

FILE_SIZE = 256 * 1024
SHM = Path("/dev/shm")
OK = core.STATUS["OK"][0]


@pytest.fixture
def config(tmp_path: Path, cluster_name: str) -> Iterator[StoreConfig]:
    yield StoreConfig(
        store_path=tmp_path / "member-0",
        runtime_path=tmp_path / "run",
        cluster_name=cluster_name,
        commit_log_file_size_bytes=FILE_SIZE,
        hot_segment_count=4,
        max_message_size_bytes=64 * 1024,
        flush_interval_ms=60_000,  # what comes behind the copy is in memory alone
    )
    for path in SHM.glob(f"shmq.{cluster_name}.*"):
        path.unlink()


def _send(config: StoreConfig, bodies: list[bytes]) -> StoreProcess:
    """A master of this folder that has stored these."""
    process = StoreProcess(config, is_member=True)
    handle = process.add_queue("orders")
    with StoreClient(process) as client:
        client.grant(handle)
        for body in bodies:
            assert client.lanes[0].send(*handle, body)[0] == OK
    return process


@pytest.fixture
def other(config: StoreConfig) -> StoreConfig:
    """A member with a copy of one message; its master, with two, was killed."""
    _send(config, [b"one"]).stop()
    path = config.store_path.with_name("member-1")
    shutil.copytree(config.store_path, path, ignore=shutil.ignore_patterns("lock"))
    _send(config, [b"two"]).abandon()
    return replace(config, store_path=path, broker_id=1)


class Members:
    """Members of the set in this process, each master once it was opened."""

    def __init__(self) -> None:
        self._open: list[tuple[MessageStore, Mastership]] = []

    def open(
        self,
        config: StoreConfig,
        *,
        is_unclean: bool = False,
        must_adopt: bool = False,
        on_flushed: Callable[[MessageStore], None] | None = None,
    ) -> MessageStore:
        assert config.runtime_path is not None
        mastership = Mastership.take(config.runtime_path, timeout_ms=10_000)
        try:
            store = MessageStore(
                config, mastership=mastership, is_unclean=is_unclean, must_adopt=must_adopt
            )
            store.open()
        except BaseException:
            mastership.release()
            raise
        store.start(on_flushed=None if on_flushed is None else lambda: on_flushed(store))
        self._open.append((store, mastership))
        return store

    def stop(self) -> None:
        """All that are open, and they are master no more."""
        while self._open:
            store, mastership = self._open.pop()
            store.stop()
            mastership.release()


@pytest.fixture
def members() -> Iterator[Members]:
    made = Members()
    yield made
    made.stop()


def _count(store: MessageStore) -> int:
    return store.queues.offsets(store.queues.find("orders", 0)).visible_max


def test_member_goes_on_with_what_only_its_masters_memory_had(
    config: StoreConfig,
    other: StoreConfig,
    members: Members,
) -> None:
    store = members.open(other)
    assert store.is_inherited
    assert store.master_epoch == 3
    assert _count(store) == 2
    assert store.epochs.last_epoch == 3
    assert not manifests.manifest_path(config.store_path).exists()
    assert manifests.manifest_path(other.store_path).exists()
    assert config.runtime_path is not None
    record = load_record(config.runtime_path)
    assert record is not None
    assert record.manifest_path == manifests.manifest_path(other.store_path)
    members.stop()
    assert not list(SHM.glob(f"shmq.{config.cluster_name}.*"))


def _flip(config: StoreConfig) -> None:
    """Flip a bit of the last byte that is in memory, and in no file."""
    for path in SHM.glob(f"shmq.{config.cluster_name}.*.hot.*"):
        data = bytearray(path.read_bytes())
        place = data.rfind(b"two")
        if place >= 0:
            data[place] ^= 1
            path.write_bytes(data)


def test_damaged_memory_is_left_alone_and_said(
    config: StoreConfig,
    other: StoreConfig,
    members: Members,
    caplog: pytest.LogCaptureFixture,
) -> None:
    _flip(config)
    with caplog.at_level(logging.ERROR), pytest.raises(FencedError, match="no continuation of"):
        members.open(other)
    assert "memory of the dead master is left alone" in caplog.text
    store = members.open(other, is_unclean=True)
    assert not store.is_adopted
    assert _count(store) == 1
    assert manifests.manifest_path(config.store_path).exists()
    members.stop()
    manifest = manifests.load(manifests.manifest_path(config.store_path))
    assert manifest is not None
    assert all((SHM / entry.name.file_name).exists() for entry in manifest.objects)


def test_list_that_cannot_be_read_is_said_and_a_person_may_give_its_memory_up(
    config: StoreConfig, other: StoreConfig, members: Members
) -> None:
    """The dead master's disk is lost, or lies: its memory may be there, and nobody knows which."""
    path = manifests.manifest_path(config.store_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(FencedError, match="which memory broker .*:0 left cannot be known: read"):
        members.open(other)
    path.write_bytes(whole)
    store = members.open(other)
    assert store.is_inherited
    assert _count(store) == 2


def test_list_that_cannot_be_read_holds_nobody_back_who_gives_its_memory_up(
    config: StoreConfig, other: StoreConfig, members: Members
) -> None:
    manifests.manifest_path(config.store_path).write_bytes(b"lost")
    store = members.open(other, is_unclean=True)
    assert not store.is_adopted
    assert _count(store) == 1
    for path in SHM.glob(f"shmq.{config.cluster_name}.{config.broker_name}.0.*"):
        path.unlink()


def test_memory_is_found_by_its_names_where_its_list_is_gone_with_the_disk(
    config: StoreConfig, other: StoreConfig, members: Members
) -> None:
    shutil.rmtree(config.store_path)
    half_made = sorted(SHM.glob(f"shmq.{config.cluster_name}.*.hot.*"))[0].with_suffix(".999")
    half_made.touch(mode=0o600)  # killed while it made one ahead
    assert config.runtime_path is not None
    record = load_record(config.runtime_path)
    assert record is not None
    assert has_memory(config.runtime_path, record)
    store = members.open(other)
    assert store.is_inherited
    assert _count(store) == 2
    assert [epoch.master_epoch for epoch in store.epochs.epochs] == [1, 3]
    members.stop()
    record = load_record(config.runtime_path)
    assert record is not None
    assert not has_memory(config.runtime_path, record)
    assert not list(SHM.glob(f"shmq.{config.cluster_name}.*"))


def test_memory_is_found_by_its_names_where_its_broker_has_begun_a_new_store(
    config: StoreConfig, other: StoreConfig, members: Members
) -> None:
    """Started again before anybody looked: the folder is there, and never saw that mastership."""
    shutil.rmtree(config.store_path)
    (config.store_path / "shmq").mkdir(parents=True)
    store = members.open(other)
    assert store.is_inherited
    assert _count(store) == 2


def test_memory_whose_list_was_moved_away_is_not_looked_for(
    config: StoreConfig, other: StoreConfig, members: Members
) -> None:
    assert config.runtime_path is not None
    record = load_record(config.runtime_path)
    assert record is not None
    manifests.manifest_path(config.store_path).unlink()
    assert not has_memory(config.runtime_path, record)
    (config.store_path / "shmq" / "epochs.json").write_bytes(b"lost")
    with pytest.raises(ShmError, match="read .*epochs.json"):
        has_memory(config.runtime_path, record)
    for path in SHM.glob(f"shmq.{config.cluster_name}.{config.broker_name}.0.*"):
        path.unlink()


def test_memory_found_by_its_names_is_whole_or_left_alone(
    config: StoreConfig, other: StoreConfig, members: Members, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(config.store_path)
    for path in SHM.glob(f"shmq.{config.cluster_name}.*.hot.*"):
        if b"two" in path.read_bytes():
            path.unlink()
    with pytest.raises(FencedError, match="is no continuation of our log"):
        members.open(other)
    assert "the segment that holds the bytes from" in caplog.text
    store = members.open(other, is_unclean=True)
    assert _count(store) == 1
    members.stop()
    for path in SHM.glob(f"shmq.{config.cluster_name}.{config.broker_name}.0.*"):
        path.unlink()


def test_list_that_a_person_moved_away_counts_no_more_and_names_neither(
    config: StoreConfig, other: StoreConfig, members: Members
) -> None:
    manifests.manifest_path(config.store_path).unlink()
    store = members.open(other)
    assert not store.is_adopted
    assert _count(store) == 1
    members.stop()
    for path in SHM.glob(f"shmq.{config.cluster_name}.{config.broker_name}.0.*"):
        path.unlink()


@pytest.mark.parametrize("kind", ["control", "hot"])
def test_memory_that_somebody_took_away_holds_no_member_back(
    config: StoreConfig,
    other: StoreConfig,
    members: Members,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    for path in SHM.glob(f"shmq.{config.cluster_name}.*.{kind}.*"):
        path.unlink()
    with caplog.at_level(logging.ERROR):
        store = members.open(other)
    assert "is gone: what only it had is lost, our own log goes on" in caplog.text
    assert not store.is_adopted
    assert store.master_epoch == 3
    assert _count(store) == 1


def test_member_elected_for_memory_has_all_of_it_in_its_files_before_it_serves(
    other: StoreConfig, members: Members
) -> None:
    seen: list[bool] = []

    def look(store: MessageStore) -> None:
        now = store.positions
        seen.append(now.flushed_position == now.committed_position > 0)

    store = members.open(other, must_adopt=True, on_flushed=look)
    assert _count(store) == 2
    assert seen == [True], "with an interval of a minute"


def test_member_elected_for_memory_never_goes_on_with_its_own_log(
    config: StoreConfig, other: StoreConfig, members: Members
) -> None:
    for path in SHM.glob(f"shmq.{config.cluster_name}.*"):
        path.unlink()
    for member in (other, config):  # which had a copy of it, and which had made it
        with pytest.raises(FencedError, match="the memory of the last master: it is gone"):
            members.open(member, must_adopt=True)
    assert _count(members.open(other, is_unclean=True)) == 1


def test_member_with_another_history_leaves_the_memory_alone(
    config: StoreConfig,
    other: StoreConfig,
    members: Members,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.rmtree(other.store_path)
    alone = replace(other, runtime_path=other.store_path.with_name("run-alone"))
    _send(alone, [b"eno"]).stop()
    with caplog.at_level(logging.ERROR), pytest.raises(FencedError, match="no continuation of"):
        members.open(other)
    assert "are other ones in our files: the logs are not one" in caplog.text


def test_member_that_lacks_more_than_memory_has_leaves_it_alone(
    config: StoreConfig,
    other: StoreConfig,
    members: Members,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bodies = [os.urandom(60_000) for _ in range(30)]
    _send(replace(config, flush_interval_ms=1), bodies).abandon()
    with caplog.at_level(logging.ERROR), pytest.raises(FencedError, match="no continuation of"):
        members.open(other)
    assert "what is missing is in the files of the dead master" in caplog.text


def test_living_master_keeps_others_out_though_lock_and_record_were_deleted(
    config: StoreConfig, other: StoreConfig, members: Members
) -> None:
    master = StoreProcess(config, is_member=True)
    assert config.runtime_path is not None
    for name in ("mastership.lock", "mastership.json"):
        (config.runtime_path / name).unlink()
    with pytest.raises(OwnerError, match=rf"process {master.pid} is master and lives, though its"):
        members.open(other)
    master.abandon()
    assert members.open(config).is_adopted


def test_own_memory_of_a_dead_slave_goes_to_its_files_first(
    config: StoreConfig,
    other: StoreConfig,
    members: Members,
) -> None:
    """A member that died with messages in memory alone, and is master all the same."""
    slave = MessageStore(other)
    slave.open()
    slave.stop(keep_memory=True)
    own = manifests.load(manifests.manifest_path(other.store_path))
    assert own is not None
    store = members.open(other)
    assert store.is_inherited
    assert not list(SHM.glob(f"{own.store}.*"))


def test_own_memory_of_a_dead_slave_is_of_no_mastership(
    config: StoreConfig, other: StoreConfig, members: Members
) -> None:
    """Its master's is gone: what it writes is told apart from what that one wrote last."""
    theirs = manifests.load(manifests.manifest_path(config.store_path))
    assert theirs is not None
    slave = MessageStore(other, is_slave=True)
    slave.open()
    slave.stop(keep_memory=True)
    for path in SHM.glob(f"{theirs.store}.*"):
        path.unlink()
    assert config.runtime_path is not None
    record = load_record(config.runtime_path)
    assert record is not None
    store = members.open(other)
    assert store.is_adopted
    assert store.master_epoch == record.master_epoch + 1


def test_old_master_begins_as_a_slave_though_its_list_could_not_be_removed(
    config: StoreConfig, other: StoreConfig, members: Members
) -> None:
    """As under systemd, where each member sees the others' folders read-only."""
    path = manifests.manifest_path(config.store_path)
    kept = path.read_bytes()
    store = members.open(other)
    assert store.is_inherited
    assert _count(store) == 2
    path.write_bytes(kept)
    with MessageStore(config, is_slave=True) as slave:
        assert not slave.is_adopted
        theirs = manifests.load(manifests.manifest_path(other.store_path))
        own = manifests.load(path)
        assert theirs is not None
        assert own is not None
        assert own.generation != theirs.generation
    assert list(SHM.glob(f"{theirs.store}.*"))
    assert _count(store) == 2


def test_store_that_is_not_master_uses_no_memory_of_another_member(
    config: StoreConfig,
    other: StoreConfig,
    members: Members,
) -> None:
    theirs = manifests.manifest_path(config.store_path)
    shutil.copy(theirs, manifests.manifest_path(other.store_path))  # died while it took over
    with MessageStore(other) as slave:
        assert not slave.is_adopted
        assert theirs.exists()
    store = members.open(config)
    assert store.is_adopted
    assert not store.is_inherited
    assert _count(store) == 2
