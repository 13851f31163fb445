"""The key-value configuration: kept, forgotten, on disk as RocketMQ has it."""

from pathlib import Path

import orjson
import pytest

from shmq.errors import ConfigError, QuotaError, StoreError
from shmq.namesrv import kv_config
from shmq.namesrv.kv_config import KvConfig


def test_values_are_kept_by_namespace() -> None:
    kept = KvConfig()
    kept.put("n", "k", "v")
    kept.put("n", "k", "w")
    kept.put("m", "k", "x")
    assert (kept.get("n", "k"), kept.get("m", "k"), kept.get("n", "none")) == ("w", "x", None)
    assert kept.namespace("n") == {"k": "w"}
    kept.delete("n", "k")
    kept.delete("n", "k")
    assert kept.namespace("n") == {}


def test_file_outlives_the_nameserver_in_rocketmqs_shape(tmp_path: Path) -> None:
    path = tmp_path / "namesrv/kvConfig.json"
    kept = KvConfig(path)
    kept.put("ORDER_TOPIC_CONFIG", "t", "a:4;b:4")
    kept.put("n", "k", "")
    kept.delete("n", "k")
    assert orjson.loads(path.read_bytes()) == {
        "configTable": {"ORDER_TOPIC_CONFIG": {"t": "a:4;b:4"}}
    }
    assert KvConfig(path).get("ORDER_TOPIC_CONFIG", "t") == "a:4;b:4"


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"configTable": []}', '{"configTable": {"n": {"k": 1}}}', "{}"]
)
def test_file_of_another_shape_is_refused_by_its_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kv.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"^{path}: "):
        KvConfig(path)


def test_value_that_cannot_be_written_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    kept = KvConfig()
    kept._path = tmp_path / "file/kv.json"
    with pytest.raises(StoreError):
        kept.put("n", "k", "v")
    assert kept.get("n", "k") is None


def test_lengths_and_numbers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_config, "_ENTRY_COUNT_MAX", 2)
    kept = KvConfig()
    for namespace, key, value in (("", "k", "v"), ("n", "k" * 256, "v"), ("n", "k", "v" * 32_769)):
        with pytest.raises(ConfigError):
            kept.put(namespace, key, value)
    kept.put("n", "k", "v")
    kept.put("n", "l", "v")
    with pytest.raises(QuotaError):
        kept.put("n", "m", "v")
    kept.put("n", "l", "w")
