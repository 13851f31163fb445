from pathlib import Path

from shmq.config import StoreConfig
from shmq.status import FlushDiskType
from shmq.store import boot_files


def _properties(text: str) -> dict[str, str]:
    """java.util.Properties for what we write: no continuation lines, \\uXXXX and \\\\ only."""
    values = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            key, _, value = line.partition("=")
            values[key] = value.encode("ascii").decode("unicode_escape")
    return values


def test_abort_is_made_once(tmp_path: Path) -> None:
    boot_files.make_abort(tmp_path)
    first = (tmp_path / "abort").read_bytes()
    assert first.isdigit()
    (tmp_path / "abort").write_bytes(b"1")
    boot_files.make_abort(tmp_path)
    assert (tmp_path / "abort").read_bytes() == b"1"


def test_broker_conf_says_what_a_real_broker_needs(tmp_path: Path) -> None:
    config = StoreConfig(
        store_path=tmp_path / "ein Ördner \\ \U0001f600",
        broker_name="broker-b",
        cluster_name="c1",
        flush_disk_type=FlushDiskType.SYNC_FLUSH,
        listen_port=20911,
        file_reserved_hours=100,
        message_delay_level="1s 5s",
    )
    config.store_path.mkdir()
    boot_files.write_broker_conf(config, file_size_bytes=1 << 20)
    text = (config.store_path / "broker.conf").read_text(encoding="ascii")
    values = _properties(text)
    root = values["storePathRootDir"].encode("utf-16", "surrogatepass").decode("utf-16")
    assert root == str(config.store_path)
    assert values["storePathCommitLog"].endswith("/commitlog")
    del values["storePathRootDir"], values["storePathCommitLog"]
    assert values == {
        "brokerClusterName": "c1",
        "brokerName": "broker-b",
        "brokerId": "0",
        "brokerRole": "ASYNC_MASTER",
        "brokerIP1": "127.0.0.1",
        "listenPort": "20911",
        "mappedFileSizeCommitLog": "1048576",
        "maxMessageSize": "4194304",
        "flushDiskType": "SYNC_FLUSH",
        "fileReservedTime": "100",
        "deleteWhen": "04",
        "diskMaxUsedSpaceRatio": "75",
        "messageDelayLevel": "1s 5s",
        "enableControllerMode": "false",
    }


def test_broker_conf_is_written_only_when_it_changes(tmp_path: Path) -> None:
    config = StoreConfig(store_path=tmp_path)
    boot_files.write_broker_conf(config, file_size_bytes=1 << 20)
    inode = (tmp_path / "broker.conf").stat().st_ino
    boot_files.write_broker_conf(config, file_size_bytes=1 << 20)
    assert (tmp_path / "broker.conf").stat().st_ino == inode
    boot_files.write_broker_conf(config, file_size_bytes=2 << 20)
    assert "mappedFileSizeCommitLog=2097152" in (tmp_path / "broker.conf").read_text("ascii")


def test_what_rocketmq_derived_is_moved_and_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_bytes(b"first")
    (tmp_path / "consumequeue/orders/0").mkdir(parents=True)
    (tmp_path / "consumequeue/orders/0/00000000000000000000").write_bytes(b"entries")
    (tmp_path / "commitlog").mkdir()
    assert boot_files.set_derived_aside(tmp_path) == ["checkpoint", "consumequeue"]
    assert boot_files.derived_by_rocketmq(tmp_path) == []
    aside = tmp_path / "shmq/rocketmq"
    assert (aside / "consumequeue/orders/0/00000000000000000000").read_bytes() == b"entries"
    (tmp_path / "checkpoint").write_bytes(b"second")
    assert boot_files.set_derived_aside(tmp_path) == ["checkpoint"]
    assert (aside / "checkpoint").read_bytes() == b"first"
    assert (aside / "checkpoint.1").read_bytes() == b"second"
    assert boot_files.set_derived_aside(tmp_path) == []
    assert (tmp_path / "commitlog").is_dir()
