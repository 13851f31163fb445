"""Topic tables on a real store that is open and takes nothing."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from shmq.broker.consumer_offsets import OffsetTable, Reports, load_reports
from shmq.broker.topics import TopicTable, changed_attributes
from shmq.config import BrokerConfig
from shmq.errors import ConfigError, SystemBusyError, TopicNotExistError
from shmq.store.config_files import ConfigFiles, ConsumerOffsets, DataVersion
from shmq.store.message_store import MessageStore
from shmq.topic import Permission, TopicConfig
from tests.support.clock import SteppedClock

MIB = 1 << 20


@pytest.fixture
def config(tmp_path: Path, cluster_name: str) -> BrokerConfig:
    return BrokerConfig(
        store_path=tmp_path / "store",
        runtime_path=tmp_path / "run",
        cluster_name=cluster_name,
        commit_log_file_size_bytes=8 * MIB,
        hot_segment_count=3,
        session_count=4,
        arena_bytes=MIB,
    )


@pytest.fixture
def store(config: BrokerConfig) -> Iterator[MessageStore]:
    with MessageStore(config) as opened:
        yield opened


def table(store: MessageStore, config: BrokerConfig) -> TopicTable:
    made = TopicTable(store, ConfigFiles(config.store_path), config, SteppedClock())
    made.load({})
    return made


def no_lag(_topic: str, _queue_id: int) -> list[tuple[str, int]]:
    return []


def put(topics: TopicTable, name: str, nums: int = 2, **more) -> None:
    wanted = TopicConfig(topic_name=name, read_queue_nums=nums, write_queue_nums=nums, **more)
    asyncio.run(topics.update(wanted, lag=no_lag))


def test_attributes_change_as_rocketmq_writes_them() -> None:
    config = TopicConfig(topic_name="t", attributes={"queue.type": "1", "b": "2"})
    changed = changed_attributes(config, "+queue.type=SimpleCQ,-b, +message.type=FIFO")
    assert changed.attributes == {"queue.type": "SimpleCQ", "message.type": "FIFO"}
    assert changed_attributes(config, "") == config
    for bad in ("a=1", "+a", "+=1", "-a=1", "*a", "+a="):
        with pytest.raises(ConfigError, match="attributes"):
            changed_attributes(config, bad)
    with pytest.raises(ConfigError, match="'flush.disk.type', wanted .*shmq.flush.disk.type"):
        changed_attributes(config, "+flush.disk.type=SYNC_FLUSH")


def test_version_counts_changes_and_only_those(store, config) -> None:
    topics = table(store, config)
    told: list[str] = []
    topics.on_changed = told.extend
    before = topics.data_version.counter
    put(topics, "t")
    put(topics, "t")
    assert topics.data_version.counter == before + 1
    assert told == ["t"]
    again = table(store, config)
    assert again.data_version == topics.data_version
    assert again.configs == topics.configs


def test_template_is_no_place_for_messages(store, config) -> None:
    topics = table(store, config)
    assert topics.find("TBW102").perm == 7
    assert topics.read_queues("TBW102") == topics.send_queues("TBW102") == []
    assert "TBW102" not in {topic for topic, _, _ in store.queues}


def test_template_that_is_closed_makes_no_topics(store, config) -> None:
    files = ConfigFiles(config.store_path)
    closed = TopicConfig(topic_name="TBW102", perm=Permission.READ | Permission.WRITE)
    topics = table(store, config)
    files.store(topics._contents().__class__(topics={"TBW102": closed}))
    topics = table(store, config)
    with pytest.raises(TopicNotExistError):
        asyncio.run(topics.create_for_send("new", 4))


def test_read_only_store_tells_routes_without_write(store, config) -> None:
    topics = table(store, config)
    put(topics, "t")
    told: list[str] = []
    topics.on_changed = told.extend
    before = topics.data_version
    topics.set_read_only()
    assert topics.routes()["t"].perm == Permission.READ
    assert topics.find("t").perm == Permission.READ | Permission.WRITE
    assert set(told) == {"t", "TBW102", "SCHEDULE_TOPIC_XXXX"}
    assert topics.data_version.counter == before.counter + 1


def test_topic_is_not_made_while_it_is_being_deleted(store, config) -> None:
    topics = table(store, config)
    put(topics, "t")

    async def scenario() -> None:
        deleting = asyncio.create_task(topics.delete("t"))
        await asyncio.sleep(0)
        with pytest.raises(SystemBusyError):
            await topics.create_for_send("t", 4)
        assert len(await deleting) == 2
        await topics.create_for_send("t", 4)

    asyncio.run(scenario())
    assert len(topics.send_queues("t")) == 4


def test_topic_whose_deletion_cannot_be_written_stays(store, config, monkeypatch) -> None:
    topics = table(store, config)
    put(topics, "t")
    before = orjson.loads((config.store_path / "config/topics.json").read_bytes())

    def refuse(_self: ConfigFiles, _contents: object) -> None:
        raise SystemBusyError("no")

    with monkeypatch.context() as patch:
        patch.setattr(ConfigFiles, "store", refuse)
        with pytest.raises(SystemBusyError):
            asyncio.run(topics.delete("t"))
    assert [store.queues.state(handle)[0] for _, handle in topics.send_queues("t")] == [True, True]
    put(topics, "u")
    after = orjson.loads((config.store_path / "config/topics.json").read_bytes())
    assert after["topicConfigTable"]["t"] == before["topicConfigTable"]["t"]
    assert "shmqDeletedTopics" not in after


def test_deleted_topic_is_remembered_until_the_log_is_past_it(store, config) -> None:
    topics = table(store, config)
    put(topics, "t")
    asyncio.run(topics.delete("t"))
    path = config.store_path / "config/topics.json"
    assert orjson.loads(path.read_bytes())["shmqDeletedTopics"] == {
        "t": {"position": 0, "queues": {"0": 0, "1": 0}}
    }
    table(store, config)  # nothing of the log is kept that is older
    assert "shmqDeletedTopics" not in orjson.loads(path.read_bytes())


def test_foreign_keys_and_topics_of_rocketmq_are_kept(store, config) -> None:
    path = config.store_path / "config/topics.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        '{"dataVersion":{"counter":7,"timestamp":1},"newKey":[1],"topicConfigTable":{"t":'
        '{"topicName":"t","readQueueNums":3,"writeQueueNums":2,"perm":6,"newField":5}}}'
    )
    topics = table(store, config)
    assert topics.data_version.counter == 8  # TBW102 came
    assert [queue_id for queue_id, _ in topics.read_queues("t")] == [0, 1, 2]
    assert [queue_id for queue_id, _ in topics.send_queues("t")] == [0, 1]
    written = orjson.loads(path.read_bytes())
    assert written["newKey"] == [1]
    assert written["topicConfigTable"]["t"]["newField"] == 5


def test_queue_whose_messages_expired_goes_on_where_its_group_was(store, config) -> None:
    """A foreign store: the log has nothing of the queue left, only the group's offset."""
    files = ConfigFiles(config.store_path)
    files.store(ConsumerOffsets(offsets={"t@g": {0: 500}}))
    offsets = OffsetTable(store, files, SteppedClock())
    unknown = offsets.load()
    assert unknown == {("t", 0): 500}
    topics = TopicTable(store, files, config, SteppedClock())
    path = config.store_path / "config/topics.json"
    path.write_text('{"topicConfigTable":{"t":{"topicName":"t","readQueueNums":1,'
                    '"writeQueueNums":1}}}')  # fmt: skip
    topics.load(unknown)
    ((_, handle),) = topics.read_queues("t")
    assert store.queues.offsets(handle).max_queue_offset == 500
    assert offsets.query("g", "t", 0) == 500


# ---- consumer offsets ----------------------------------------------------------------------------


def offset_table(store: MessageStore, config: BrokerConfig) -> OffsetTable:
    made = OffsetTable(store, ConfigFiles(config.store_path), SteppedClock())
    made.load()
    return made


def test_offset_behind_the_end_of_its_queue_is_cut_back(store, config) -> None:
    topics = table(store, config)
    put(topics, "t", 1)
    ConfigFiles(config.store_path).store(ConsumerOffsets(offsets={"t@g": {0: 9}}))
    offsets = offset_table(store, config)
    assert offsets.query("g", "t", 0) == 0
    assert offsets.query("g", "t", 1) is None
    assert offsets.groups_of("t") == {"g"}
    assert offsets.topics_of("g") == {"t"}


def test_claim_numbers_only_ever_rise(store, config) -> None:
    numbers = []
    for _ in range(3):
        offsets = offset_table(store, config)
        numbers += [offsets.new_claim("g", "t", 0) for _ in range(3)]
        # the file is not written: the process dies
    assert numbers == sorted(set(numbers))


def test_claim_from_before_counts_until_a_newer_one_is_known(store, config) -> None:
    offsets = offset_table(store, config)
    old, new = offsets.new_claim("g", "t", 0), offsets.new_claim("g", "t", 0)
    asyncio.run(offsets.save())
    offsets = offset_table(store, config)
    assert not offsets.resume_claim("g", "t", 0, old)
    assert offsets.resume_claim("g", "t", 0, new)
    assert offsets.resume_claim("g", "t", 0, new + 5)  # given out behind the last write
    assert not offsets.resume_claim("g", "t", 0, new)
    assert offsets.new_claim("g", "t", 0) > new + 5
    assert offsets.resume_claim("g", "u", 0, 1)  # nobody knows of another


def test_offsets_wait_for_the_flusher(store, config, monkeypatch) -> None:
    """What is written is what held when the save began, once the disk has come that far."""
    offsets = offset_table(store, config)
    path = config.store_path / "config/consumerOffset.json"

    def written() -> dict:
        return orjson.loads(path.read_bytes())["offsetTable"]

    now = store.positions._replace(committed_position=100, flushed_position=0)
    monkeypatch.setattr(MessageStore, "positions", property(lambda _self: now))

    async def scenario() -> None:
        nonlocal now
        offsets.commit("g", "t", 0, 5)
        saving = asyncio.create_task(offsets.save())
        await asyncio.sleep(0)
        now = now._replace(committed_position=200)
        offsets.commit("g", "t", 0, 6)
        for _ in range(3):
            await asyncio.sleep(0.01)
        assert written() == {}
        now = now._replace(flushed_position=150)
        await saving
        assert written() == {"t@g": {"0": 5}}
        now = now._replace(flushed_position=200)
        await offsets.save()
        assert written() == {"t@g": {"0": 6}}

    asyncio.run(scenario())


def test_deleted_topics_and_groups_leave_no_offsets(store, config) -> None:
    offsets = offset_table(store, config)
    for group in ("g", "h"):
        for topic in ("t", "u"):
            offsets.commit(group, topic, 0, 1)
    offsets.remove_topic("t")
    assert offsets.topics_of("g") == {"u"}
    offsets.remove_group("g")
    assert offsets.query("g", "u", 0) is None
    assert offsets.query("h", "u", 0) == 1
    asyncio.run(offsets.save())
    assert offset_table(store, config).groups_of("u") == {"h"}


def test_claims_in_the_file_that_are_none_are_told(store, config) -> None:
    files = ConfigFiles(config.store_path)
    for bad in (5, {"next": "x"}, {"claims": {"t@g": {"x": 1}}}):
        files.store(ConsumerOffsets(data_version=DataVersion(), other={"shmqClaims": bad}))
        with pytest.raises(ConfigError, match="shmqClaims"):
            OffsetTable(store, ConfigFiles(config.store_path), SteppedClock()).load()


def test_a_copy_has_the_version_of_the_table_it_was_copied_from_and_never_a_later_one(
    store: MessageStore, config: BrokerConfig
) -> None:
    """A successor compares versions: a slave that counted its own changes would keep old ones."""
    files = ConfigFiles(config.store_path)
    topics = TopicTable(store, files, config, SteppedClock(), is_copy=True)
    topics.load({})  # makes topics of its own
    assert topics.data_version == DataVersion()
    version = DataVersion(counter=7, timestamp=1)
    asyncio.run(topics.copy({"t": TopicConfig(topic_name="t")}, version))
    asyncio.run(topics.delete("t"))
    assert files.load_topics().data_version == version == topics.data_version
    offsets = OffsetTable(store, files, SteppedClock(), is_copy=True)
    offsets.load()
    offsets.copy({"t@g": {0: 0}}, version, next_claim=1)
    asyncio.run(offsets.save())
    found = files.load_consumer_offsets()
    assert (found.data_version, found.offsets) == (version, {"t@g": {0: 0}})


# ---- reports to a slave --------------------------------------------------------------------------


def slave_table(store: MessageStore, config: BrokerConfig) -> OffsetTable:
    """A slave's, which has its reports from before."""
    files = ConfigFiles(config.store_path)
    made = OffsetTable(store, files, SteppedClock(), is_copy=True)
    made.load(load_reports(files))
    return made


def test_slave_keeps_what_was_reported_to_it_until_its_master_has_heard(store, config) -> None:
    put(table(store, config), "t", 2)
    offsets = slave_table(store, config)
    offsets.copy({"t@g": {0: 0, 1: 0}}, DataVersion(), next_claim=7)
    assert offsets.reports.offsets == {}, "what was copied is the master's own"
    offsets.commit("g", "t", 0, 5)
    offsets.commit("h", "t", 1, 0)
    sent = offsets.reports
    assert (sent.copied_claim, sent.offsets) == (7, {"t@g": {0: 5}, "t@h": {1: 0}})
    offsets.commit("g", "t", 0, 6)  # while it is sent
    offsets.heard(sent.offsets)
    assert offsets.reports.offsets == {"t@g": {0: 6}}
    offsets.copy({"t@g": {0: 5, 1: 9}}, DataVersion(), next_claim=8)
    assert (offsets.query("g", "t", 0), offsets.query("g", "t", 1)) == (6, 9)
    asyncio.run(offsets.save())
    assert slave_table(store, config).reports == Reports(8, {"t@g": {0: 6}})
    offsets.heard({"t@g": {0: 6}})
    asyncio.run(offsets.save())
    assert slave_table(store, config).reports.offsets == {}


def test_report_moves_no_offset_back_and_no_reset_aside(store, config) -> None:
    put(table(store, config), "t", 1)
    offsets = offset_table(store, config)
    copied = offsets.next_claim
    offsets.commit("g", "t", 0, 5)
    assert not offsets.advance("g", "t", 0, 5, copied_claim=copied)
    assert not offsets.advance("g", "t", 0, 4, copied_claim=copied)
    assert offsets.advance("g", "t", 0, 8, copied_claim=copied)
    offsets.new_claim("g", "t", 0)  # a consumer came: no reset
    assert offsets.advance("g", "t", 0, 9, copied_claim=copied)
    offsets.reset("g", "t", 0, 2)
    assert not offsets.advance("g", "t", 0, 9, copied_claim=copied)
    assert offsets.query("g", "t", 0) == 2
    asyncio.run(offsets.save())
    later = offset_table(store, config)  # the mark outlives the process
    assert not later.advance("g", "t", 0, 9, copied_claim=copied)
    assert later.advance("g", "t", 0, 9, copied_claim=later.next_claim), "the slave knows of it"


def test_slave_that_becomes_master_heeds_reports_over_its_predecessors_file(store, config) -> None:
    """Its own file had them; the one in its place, which is newer, has not."""
    files = ConfigFiles(config.store_path)
    path = config.store_path / "config/topics.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        '{"topicConfigTable":{"t":{"topicName":"t","readQueueNums":1,"writeQueueNums":1}}}'
    )
    TopicTable(store, files, config, SteppedClock()).load({("t", 0): 500})  # its log ends at 500
    files.store(ConsumerOffsets(offsets={"t@g": {0: 100}, "t@h": {0: 100}, "t@i": {0: 100}}))
    offsets = OffsetTable(store, files, SteppedClock())
    offsets.load(Reports(3, {"t@g": {0: 400}, "t@h": {0: 50}, "t@i": {0: 600}, "gone@g": {0: 1}}))
    assert [offsets.query(group, "t", 0) for group in "ghi"] == [400, 100, 500]
    assert offsets.query("g", "gone", 0) is None
