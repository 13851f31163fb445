import contextlib
import logging
import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from shmq.errors import ConfigError, DiskFullError
from shmq.store import config_files
from shmq.store.config_files import (
    ConfigFile,
    ConfigFiles,
    ConsumerOffsets,
    DataVersion,
    DelayOffsets,
    Source,
    clamp_consumer_offsets,
    unknown_queue_ends,
)
from shmq.store.consume_queue_files import QueueKey
from shmq.subscription import SubscriptionGroupConfig
from shmq.topic import TopicConfig
from tests.support.mounts import small_file_system
from tests.support.scale import scaled

# As fastjson writes it: tabs, and integer keys without quotes.
FASTJSON_OFFSETS = """{
\t"dataVersion":{
\t\t"counter":12,
\t\t"stateVersion":0,
\t\t"timestamp":1788220800000
\t},
\t"offsetTable":{
\t\t"orders@billing":{0:17,1:4,
\t\t\t2 : 9
\t\t},
\t\t"a,{1:b@g":{-1:3}
\t},
\t"later":[1,2,"{3:4}"]
}"""

FASTJSON_TOPICS = """{
\t"dataVersion":{"counter":3,"stateVersion":0,"timestamp":1},
\t"topicConfigTable":{
\t\t"orders":{
\t\t\t"attributes":{"+message.type":"FIFO"},
\t\t\t"order":false,
\t\t\t"perm":6,
\t\t\t"readQueueNums":16,
\t\t\t"topicFilterType":"SINGLE_TAG",
\t\t\t"topicName":"orders",
\t\t\t"topicSysFlag":0,
\t\t\t"writeQueueNums":8,
\t\t\t"newerKey":{"x":1}
\t\t}
\t}
}"""


@pytest.fixture
def files(tmp_path: Path) -> ConfigFiles:
    (tmp_path / "config").mkdir()
    return ConfigFiles(tmp_path)


def test_unquoted_keys_are_read_and_written_quoted(files: ConfigFiles) -> None:
    path = files.folder / "consumerOffset.json"
    path.write_text(FASTJSON_OFFSETS, encoding="utf-8")
    offsets = files.load_consumer_offsets()
    assert offsets == ConsumerOffsets(
        data_version=DataVersion(counter=12, timestamp=1_788_220_800_000),
        offsets={"orders@billing": {0: 17, 1: 4, 2: 9}, "a,{1:b@g": {-1: 3}},
        other={"later": [1, 2, "{3:4}"]},
    )
    files.store(offsets)
    written = orjson.loads(path.read_bytes())
    assert written["offsetTable"]["orders@billing"] == {"0": 17, "1": 4, "2": 9}
    assert written["later"] == [1, 2, "{3:4}"]
    assert files.load_consumer_offsets() == offsets


def test_topics_of_a_real_broker_pass_through_with_what_we_do_not_know(files: ConfigFiles) -> None:
    path = files.folder / "topics.json"
    path.write_text(FASTJSON_TOPICS, encoding="utf-8")
    topics = files.load_topics()
    orders = topics.topics["orders"]
    assert (orders.read_queue_nums, orders.write_queue_nums, int(orders.perm)) == (16, 8, 6)
    files.store(topics)
    ours = orjson.loads(path.read_bytes())
    del ours[config_files.CHECKSUM_KEY]
    assert ours == orjson.loads(FASTJSON_TOPICS)


def test_every_typed_file_survives_being_stored(files: ConfigFiles) -> None:
    version = DataVersion(counter=5, timestamp=9)
    topic = TopicConfig(topic_name="t", attributes={"a": "b"})
    group = SubscriptionGroupConfig(group_name="g")
    topics = config_files.Topics(data_version=version, topics={"t": topic})
    groups = config_files.SubscriptionGroups(
        data_version=version, groups={"g": group}, other={"forbiddenTable": {}}
    )
    delays = DelayOffsets(data_version=version, offsets={1: 7, 18: 0})
    for contents in (topics, groups, delays):
        files.store(contents)
    fresh = ConfigFiles(files.folder.parent)
    assert fresh.load_topics() == topics
    assert fresh.load_subscription_groups() == groups
    assert fresh.load_delay_offsets() == delays
    assert fresh.load_consumer_offsets() == ConsumerOffsets()
    assert list(fresh.names()) == ["delayOffset.json", "subscriptionGroup.json", "topics.json"]


def test_missing_and_empty_files_are_the_defaults(files: ConfigFiles) -> None:
    file = files.file("topics.json")
    assert file.load().source is Source.DEFAULT
    file.path.touch()
    file.backup_path.touch()
    assert file.load().source is Source.DEFAULT
    assert files.load_topics().topics == {}


def test_version_before_is_kept_as_backup(files: ConfigFiles) -> None:
    file = files.file("x.json")
    file.store({"a": 1})
    assert not file.backup_path.exists()
    file.store({"a": 2})
    file.store({"a": 3})
    assert file.load().data == {"a": 3}
    assert ConfigFile(file.backup_path).load().data == {"a": 2}
    assert sorted(os.listdir(files.folder)) == ["x.json", "x.json.bak"]


@pytest.mark.parametrize("contents", [b"", b"\0" * 100, b'{"a": ', b"\xff", b"[1]"])
def test_damaged_file_gives_its_backup_and_never_becomes_one(
    files: ConfigFiles, contents: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file = files.file("x.json")
    file.store({"a": 1})
    file.store({"a": 2})
    file.path.write_bytes(contents)
    with caplog.at_level(logging.WARNING, "shmq"):
        loaded = file.load()
    assert (loaded.data, loaded.source) == ({"a": 1}, Source.BACKUP)
    assert "x.json" in caplog.text
    file.store({"a": 3})
    assert ConfigFile(file.backup_path).load().data == {"a": 1}


def test_unreadable_file_and_backup_stop_with_file_line_column_and_reason(
    files: ConfigFiles,
) -> None:
    file = files.file("consumerOffset.json")
    file.path.write_text('{\n "offsetTable":{0:1,\n  7:oops}}', encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"line 3, column 5: .*there is no consumerOffset.json.bak"
    ):
        file.load()
    file.backup_path.write_text('{"a":\n}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"json, line 3, column 5: .*\.bak, line 2, column 1: "):
        file.load()


def test_wrong_kind_of_value_names_file_and_key(files: ConfigFiles) -> None:
    cases = {
        "topics.json": (files.load_topics, '{"topicConfigTable":{"t":{"topicName":5}}}'),
        "consumerOffset.json": (files.load_consumer_offsets, '{"offsetTable":{"t@g":{"0":"x"}}}'),
        "delayOffset.json": (files.load_delay_offsets, '{"offsetTable":[]}'),
        "subscriptionGroup.json": (files.load_subscription_groups, '{"dataVersion":7}'),
    }
    for name, (load, text) in cases.items():
        (files.folder / name).write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=name):
            load()


def test_every_flipped_bit_of_a_file_of_ours_is_found() -> None:
    data = config_files.encode(
        ConsumerOffsets(
            data_version=DataVersion(counter=2**31 - 1, timestamp=1_788_220_800_000),
            offsets={"orders@billing": {0: 17, 1: 123456}, "%RETRY%g@g": {0: 0}},
        ).to_dict()
    )
    assert config_files.parse(data, Path("x"))[1]
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ConfigError):
            config_files.parse(bytes(flipped), Path("x"))


def test_hand_edited_file_says_which_line_to_remove(files: ConfigFiles) -> None:
    file = files.file("x.json")
    file.store({"count": 1})
    edited = file.path.read_text(encoding="utf-8").replace('"count": 1', '"count": 2')
    file.path.write_text(edited, encoding="utf-8")
    with pytest.raises(ConfigError, match='line 3, .*remove the line with "shmqCrc32"'):
        file.load()
    lines = [line for line in edited.splitlines() if "shmqCrc32" not in line]
    file.path.write_text("\n".join(lines).replace("2,", "2"), encoding="utf-8")
    loaded = file.load()
    assert (loaded.data, loaded.is_checked) == ({"count": 2}, False)


def test_any_bytes_are_contents_or_a_config_error(rng: random.Random) -> None:
    seeds = [FASTJSON_OFFSETS.encode(), FASTJSON_TOPICS.encode(), config_files.encode({"a": {}})]
    for _ in range(scaled(3000, 300_000)):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        with contextlib.suppress(ConfigError):
            config_files.parse(bytes(data), Path("x"))


def test_counter_stays_within_32_bits() -> None:
    version = DataVersion(counter=2**31 - 2)
    version = version.following(wall_ms=5)
    assert (version.counter, version.timestamp) == (2**31 - 1, 5)
    assert version.following(wall_ms=6).counter == 0
    assert DataVersion(counter=2**40 + 3).to_dict()["counter"] == 3


def test_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    with small_file_system(tmp_path / "disk", size=4 * 4096) as disk:
        file = ConfigFile(disk / "x.json")
        file.store({"a": 1})
        with pytest.raises(DiskFullError):
            file.store({"a": "x" * 32_000})
        assert os.listdir(disk) == ["x.json"]
        assert file.load().data == {"a": 1}


def test_offsets_behind_their_queue_are_cut_back_and_counted() -> None:
    offsets = {"orders@billing": {0: 17, 1: 4}, "old@billing": {0: 50}, "nonsense": {0: 9}}
    ends = {QueueKey("orders", 0): 10, QueueKey("orders", 1): 4}
    cut, clamped = clamp_consumer_offsets(offsets, ends)
    assert cut == {"orders@billing": {0: 10, 1: 4}, "old@billing": {0: 50}, "nonsense": {0: 9}}
    assert [tuple(item) for item in clamped] == [("orders@billing", 0, 17, 10)]
    assert clamp_consumer_offsets(cut, ends) == (cut, [])


def test_queue_without_messages_goes_on_where_it_was_consumed() -> None:
    offsets = {"old@a": {0: 50, 1: 0}, "old@b": {0: 70}, "orders@a": {0: 99}, "bad": {0: 1}}
    assert unknown_queue_ends(offsets, {QueueKey("orders", 0): 10}) == {QueueKey("old", 0): 70}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"topicConfigTable": {"orders": 5}}', "topics.json: orders: 5, wanted an object"),
        ('{"topicConfigTable": 5}', "topics.json: topicConfigTable: int, wanted an object"),
    ],
)
def test_content_of_another_shape_is_named(tmp_path: Path, text: str, said: str) -> None:
    files = ConfigFiles(tmp_path)
    files.folder.mkdir()
    (files.folder / "topics.json").write_text(text)
    with pytest.raises(ConfigError, match=said):
        files.load_topics()


def test_digits_of_other_scripts_are_no_numbers(tmp_path: Path) -> None:
    files = ConfigFiles(tmp_path)
    files.folder.mkdir()
    (files.folder / "consumerOffset.json").write_text('{"offsetTable": {"a@b": {"\u0663": 4}}}')
    with pytest.raises(ConfigError, match="wanted a whole number"):
        files.load_consumer_offsets()


@pytest.mark.parametrize(
    ("name", "text", "load", "wanted"),
    [
        (
            "topics.json",
            '{\n "topicConfigTable": {\n  "a": {"topicName":"a", "perm": 6},\n'
            '  "b": {\n   "topicName":"b",\n   "perm": "x"}}}\n',
            ConfigFiles.load_topics,
            "topics.json line 6: topic b: perm: 'x', wanted a whole number",
        ),
        (
            "consumerOffset.json",
            '{\n"offsetTable":{\n"t@g":{0:1,\n1:"x"}}}\n',
            ConfigFiles.load_consumer_offsets,
            "consumerOffset.json line 4: t@g: 1: 'x', wanted a whole number",
        ),
    ],
)
def test_value_of_another_kind_is_told_with_its_line(
    tmp_path: Path, name: str, text: str, load: Callable[[ConfigFiles], object], wanted: str
) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / name).write_text(text)
    with pytest.raises(ConfigError, match=re.escape(wanted)):
        load(ConfigFiles(tmp_path))


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b'{"a": 1, "shmqCrc32": "00000000"}', "line 1, column 10"),
        (b'{\n  "a": 1,\n  "shmqCrc32": "00000000"\n}\n', "line 3, column 3"),
    ],
)
def test_damaged_checksum_is_told_where_it_is(data: bytes, place: str) -> None:
    with pytest.raises(ConfigError, match=f"{place}: checksum") as caught:
        config_files.parse(data, Path("topics.json"))
    assert caught.value.hint.startswith("otherwise restore")
