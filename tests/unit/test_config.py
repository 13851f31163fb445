"""StoreConfig and its loader: every source, every refusal by name."""

import ast
import itertools
from dataclasses import fields
from pathlib import Path

import pytest

from shmq import config
from shmq.config import (
    BrokerConfig,
    ClusterConfig,
    NamesrvConfig,
    StoreConfig,
    WaitingPolicy,
    load,
    parsed_settings,
)
from shmq.errors import ConfigError
from shmq.status import FlushDiskType
from tests.support.repository import tree

STORE = "/srv/store"


def _file(folder: Path, text: str) -> Path:
    path = folder / "broker.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_are_rocketmqs_where_it_has_them() -> None:
    store = StoreConfig(store_path=Path(STORE))
    assert store.max_message_size_bytes == 4 * 1024 * 1024
    assert store.flush_disk_type is FlushDiskType.ASYNC_FLUSH
    assert store.sync_flush_timeout_ms == 5000
    assert store.file_reserved_hours == 72
    assert store.delete_when == "04"
    assert (store.cluster_name, store.broker_id) == ("DefaultCluster", 0)


def test_sizes_that_nobody_asked_for_are_none() -> None:
    store = StoreConfig(store_path=Path(STORE))
    for name in ("commit_log_file_size_bytes", "hot_segment_count", "arena_bytes", "ring_bytes"):
        assert getattr(store, name) is None


def test_argument_counts_before_environment_before_file(tmp_path: Path) -> None:
    file = _file(
        tmp_path, 'store_path = "s"\nflush_interval_ms = 1\nsession_count = 1\nbroker_id = 1'
    )
    environ = {"SHMQ_FLUSH_INTERVAL_MS": "2", "SHMQ_SESSION_COUNT": "2"}
    store = load(StoreConfig, file=file, environ=environ, flush_interval_ms=3, broker_id=None)
    assert (store.flush_interval_ms, store.session_count, store.broker_id) == (3, 2, 1)


def test_relative_path_in_a_file_counts_from_its_folder(tmp_path: Path) -> None:
    file = _file(tmp_path, 'store_path = "s"\nruntime_path = "/run/x"')
    store = load(StoreConfig, file=file, environ={})
    assert store.store_path == tmp_path / "s"
    assert store.runtime_path == Path("/run/x")


def test_rocketmqs_keys_are_understood(tmp_path: Path) -> None:
    file = _file(
        tmp_path,
        f"""
        [broker]
        storePathRootDir = "{STORE}"
        brokerClusterName = "c"
        brokerName = "b"
        brokerId = 1
        brokerIP1 = "10.0.0.1"
        listenPort = 10915
        mappedFileSizeCommitLog = 1073741824
        flushDiskType = "SYNC_FLUSH"
        flushIntervalCommitLog = 500
        maxMessageSize = 65536
        fileReservedTime = 48
        deleteWhen = "04;16"
        """,
    )
    store = load(StoreConfig, file=file, table="broker", environ={})
    assert store == StoreConfig(
        store_path=Path(STORE),
        cluster_name="c",
        broker_name="b",
        broker_id=1,
        broker_ip="10.0.0.1",
        listen_port=10915,
        commit_log_file_size_bytes=1 << 30,
        flush_disk_type=FlushDiskType.SYNC_FLUSH,
        flush_interval_ms=500,
        max_message_size_bytes=65536,
        file_reserved_hours=48,
        delete_when="04;16",
    )


def test_sizes_may_have_a_unit_and_auto_means_nobody_asked(tmp_path: Path) -> None:
    file = _file(tmp_path, 'commit_log_file_size_bytes = "64MiB"\narena_bytes = "auto"')
    environ = {"SHMQ_STORE_PATH": STORE, "SHMQ_RING_BYTES": "256 KiB"}
    store = load(StoreConfig, file=file, environ=environ)
    assert store.commit_log_file_size_bytes == 64 << 20
    assert store.ring_bytes == 256 << 10
    assert store.arena_bytes is None


def test_policy_is_read_by_its_value() -> None:
    environ = {"SHMQ_STORE_PATH": STORE, "SHMQ_WAITING_POLICY": "busy_spin"}
    assert load(StoreConfig, environ=environ).waiting_policy is WaitingPolicy.BUSY_SPIN


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("flush_intervall_ms = 1", "flush_intervall_ms: no such setting; did you mean flush_inte"),
        ("flushDiskTyp = 1", "flushDiskTyp: no such setting; did you mean flushDiskType"),
        ('flush_interval_ms = "fast"', "flush_interval_ms = 'fast', wanted a whole number"),
        ("flush_interval_ms = 1.5", "flush_interval_ms = 1.5, wanted a whole number"),
        ("flush_interval_ms = true", "flush_interval_ms = True, wanted a whole number"),
        ('flush_interval_ms = "1KiB"', "flush_interval_ms = '1KiB', wanted a whole number"),
        ("flush_interval_ms = -1", "flush_interval_ms = -1, wanted 0 to 60000"),
        ('flush_interval_ms = "-1"', "flush_interval_ms = '-1', wanted a whole number, 0 to 60000"),
        ('flush_interval_ms = "auto"', "flush_interval_ms = 'auto', wanted a whole number"),
        ('flushDiskType = "LATER"', "'LATER', wanted ASYNC_FLUSH or SYNC_FLUSH"),
        ("hot_segment_count = 2", "hot_segment_count = 2, wanted 3 to 64"),
        ('hot_segment_count = "x"', "hot_segment_count = 'x', wanted a whole number or auto"),
        ("arena_bytes = 1048577", "arena_bytes = 1048577, wanted a multiple of 4096"),
        ("arena_bytes = 1", "arena_bytes = 1, wanted at least 1048576"),
        ("completion_count = 100", "completion_count = 100, wanted a power of two"),
        ("store_path = 3", "store_path = 3, wanted a path"),
        ("broker_name = 3", "broker_name = 3, wanted a text"),
        ('broker_name = "a/b"', "broker_name = 'a/b', wanted 1 to 127 printable characters"),
        ('broker_ip = "::1"', "broker_ip = '::1', wanted an IPv4 address"),
        ('delete_when = "24"', "delete_when = '24', wanted hours"),
        ("maxMessageSize = 1\nmax_message_size_bytes = 1", "is set twice, by both of its names"),
        ('mappedFileSizeCommitLog = "1MiB"', "commit_log_file_size_bytes = 1048576, wanted at lea"),
        ("this is not TOML", "not TOML: "),
    ],
)
def test_what_cannot_be_used_is_refused_by_file_key_seen_and_wanted(
    tmp_path: Path, line: str, said: str
) -> None:
    file = _file(tmp_path, line)
    with pytest.raises(ConfigError) as caught:
        load(StoreConfig, file=file, environ={"SHMQ_STORE_PATH": STORE})
    assert str(caught.value).startswith(f"{file}: ")
    assert said in str(caught.value)


def test_environment_is_refused_by_its_variable() -> None:
    environ = {"SHMQ_STORE_PATH": STORE, "SHMQ_HOT_SEGMENT_COUNT": "many"}
    with pytest.raises(
        ConfigError, match="^SHMQ_HOT_SEGMENT_COUNT = 'many', wanted a whole number"
    ):
        load(StoreConfig, environ=environ)


def test_setting_that_is_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="maxMessageSize: max_message_size_bytes is set twice"):
        load(StoreConfig, environ={}, max_message_size_bytes=1, maxMessageSize=2)
    with pytest.raises(ConfigError, match="--set brokerId=2: brokerId is set twice"):
        parsed_settings(["brokerId=1", "brokerId=2"])


def test_missing_setting_says_where_to_give_it() -> None:
    with pytest.raises(
        ConfigError, match="store_path: not set; give it there or as SHMQ_STORE_PATH"
    ):
        load(StoreConfig, environ={})


def test_unknown_argument_and_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such setting; did you mean flush_interval_ms"):
        load(StoreConfig, environ={}, store_path=STORE, flush_interval=1)
    with pytest.raises(ConfigError, match="No such file or directory"):
        load(StoreConfig, file=tmp_path / "none.toml", environ={})
    with pytest.raises(ConfigError, match="wanted a table"):
        load(StoreConfig, file=_file(tmp_path, "broker = 1"), table="broker", environ={})


def test_direct_construction_is_checked_as_well() -> None:
    with pytest.raises(ConfigError, match="StoreConfig: hot_segment_count = 65, wanted 3 to 64"):
        StoreConfig(store_path=Path(STORE), hot_segment_count=65)


def test_runtime_folder_follows_systemd_then_the_user() -> None:
    store = StoreConfig(store_path=Path(STORE))
    both = {"RUNTIME_DIRECTORY": "/run/shmq:/run/x", "XDG_RUNTIME_DIR": "/run/user/1"}
    assert store.runtime_folder(both) == Path("/run/shmq")
    assert store.runtime_folder({"XDG_RUNTIME_DIR": "/run/user/1"}) == Path("/run/user/1/shmq")
    assert store.runtime_folder({}).parent == Path("/tmp")
    given = StoreConfig(store_path=Path(STORE), runtime_path=Path("/run/own"))
    assert given.runtime_folder(both) == Path("/run/own")


def test_client_looks_at_home_first_then_at_the_services(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, services = tmp_path / "shmq", tmp_path / "services"
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    monkeypatch.setattr(config, "SERVICES_FOLDER", services)
    assert config.default_namesrv_folder(environ) == home
    services.mkdir()
    assert config.default_namesrv_folder(environ) == services
    home.mkdir()
    assert config.default_namesrv_folder(environ) == services
    (home / "namesrv-ns0.sock").touch()
    assert config.default_namesrv_folder(environ) == home
    assert config.default_namesrv_folder({**environ, "SHMQ_NAMESRV": "/x"}) == Path("/x")


@pytest.mark.parametrize("role", [StoreConfig, BrokerConfig, NamesrvConfig, ClusterConfig])
def test_every_setting_has_a_docstring(role: type) -> None:
    """Meaning, unit, default and why stand under each field: the reference page is made of them."""
    body = next(
        node.body
        for node in tree(Path(config.__file__)).body
        if isinstance(node, ast.ClassDef) and node.name == role.__name__
    )
    documented = {
        node.target.id
        for node, after in itertools.pairwise(body)
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
    }
    inherited = {spec.name for base in role.__mro__[1:-1] for spec in fields(base)}
    assert {spec.name for spec in fields(role)} - inherited == documented


def test_table_may_lie_in_a_table(tmp_path: Path) -> None:
    file = _file(tmp_path, '[broker.a]\nstore_path = "s"\nbroker_id = 7')
    store = load(StoreConfig, file=file, table=("broker", "a"), environ={})
    assert (store.broker_id, store.store_path) == (7, tmp_path / "s")
    with pytest.raises(ConfigError, match=r"\[broker.a.broker_id\]: 7, wanted a table"):
        load(StoreConfig, file=file, table=("broker", "a", "broker_id"), environ={})
