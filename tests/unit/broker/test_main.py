"""The broker's options: where a setting may stand, and what is said of one that makes no sense."""

import argparse
import logging
from pathlib import Path

import pytest

from shmq.broker.__main__ import _config, _parser, main
from shmq.config import BrokerConfig, KeepMemory
from shmq.errors import ConfigError


def parsed(*arguments: str) -> BrokerConfig:
    options: argparse.Namespace = _parser().parse_args(arguments)
    return _config(options)


def test_plain_options_are_enough() -> None:
    config = parsed("--store", "/s", "--name", "b", "--runtime", "/r", "--cluster", "c")
    assert (config.store_path, config.broker_name) == (Path("/s"), "b")
    assert (config.runtime_path, config.cluster_name) == (Path("/r"), "c")
    assert config.broker_id == 0


def test_any_setting_may_be_set_by_either_name() -> None:
    config = parsed(
        "--store", "/s",
        "--set", "keep_memory=always",
        "--set", "autoCreateTopicEnable=false",
        "--set", "ring_bytes=256KiB",
    )  # fmt: skip
    assert config.keep_memory is KeepMemory.ALWAYS
    assert config.auto_create_topic_enable is False
    assert config.ring_bytes == 256 << 10


def test_file_is_read_and_options_count_before_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("SHMQ_CLUSTER_NAME")  # counts before a file
    file = tmp_path / "broker.toml"
    file.write_text('store_path = "s"\nbrokerName = "from-file"\nbrokerClusterName = "c"\n')
    config = parsed("--config", str(file), "--name", "from-option")
    assert config.store_path == tmp_path / "s"
    assert (config.broker_name, config.cluster_name) == ("from-option", "c")


def test_table_of_a_cluster_file_names_its_broker(tmp_path: Path) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text('[broker.a]\nstore_path = "a"\n[broker.b]\nstore_path = "b"\n'
                    'broker_name = "other"\n')  # fmt: skip
    assert parsed("--config", str(file), "--broker", "a").broker_name == "a"
    assert parsed("--config", str(file), "--broker", "b").broker_name == "other"
    assert parsed("--config", str(file), "--broker", "b", "--name", "n").broker_name == "n"
    with pytest.raises(ConfigError, match=r"no \[broker.c\]"):
        parsed("--config", str(file), "--broker", "c")
    with pytest.raises(ConfigError, match="--config"):
        parsed("--broker", "c")


@pytest.fixture
def log_as_before():
    """`main` sets the daemon's logging up: put it back."""
    logger = logging.getLogger("shmq")
    before = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.mark.usefixtures("log_as_before")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "store_path"),
        (("--store", "/s", "--set", "nonsense=1"), "no such setting"),
        (("--store", "/s", "--set", "keep_memory"), "KEY=VALUE"),
        (("--store", "/s", "--id", "-1"), "broker_id"),
        (("--store", "/s", "--set", "auto_create_topic_enable=maybe"), "true or false"),
    ],
)
def test_option_that_makes_no_sense_is_one_line_and_code_2(arguments, said, capsys) -> None:
    assert main(list(arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
