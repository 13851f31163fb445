"""The oracle: what shmq left on disk, booted in a real Apache RocketMQ of each kept release.

RocketMQ's own client and mqadmin must find every message, by queue and offset, by key and by id,
with the right body, and every group where it was; then shmq takes the store back.
docs/operate/moving-to-rocketmq.md says to users what is shown here.

The newest release that can be had complete, and the newest of 4.9.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import shmq
from tests.cluster.namesrv_process import NamesrvProcess
from tests.interop import kept_stores
from tests.interop.kept_stores import (
    AGAIN,
    ASYNC,
    BILLING,
    DELAY_LEVELS,
    DELAYS_MS,
    EVENTS,
    LATER,
    LATER_ATTRIBUTES,
    LONG,
    NOTES,
    ORDERS,
    SYNC,
    Kept,
    Sent,
    broker,
    by_topic,
    demo_lines,
    moved,
)
from tests.support.cluster import wait_for
from tests.support.dev_shm import RUN_TOKEN
from tests.support.rocketmq import (
    Place,
    Progress,
    RealMessage,
    Release,
    RocketMQ,
    free_port,
    read_conf,
)

VERSIONS = ("4.9.7", "5.5.0")  # of 4.9.8 Maven Central has no broker and no namesrv
TIMEOUT_S = 30.0
# The first run fetches what it needs.
pytestmark = [pytest.mark.ci, pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1200)]


@dataclass(frozen=True)
class Stores:
    """What shmq left behind."""

    demo: list[Kept]
    shop: Kept
    killed: Kept
    mended: Kept
    lost: Sent
    """Of `mended`."""


@dataclass(frozen=True)
class Real:
    """A real RocketMQ that has booted on copies of them."""

    rocketmq: RocketMQ
    folder: Path
    delayed: dict[bytes, int]
    """By body the delay level of what was sent to topic LATER before."""


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    for version in VERSIONS:
        Release(version).jars()  # fetched, or the reason to skip, before anything else is done
    folder = tmp_path_factory.mktemp("kept")
    rng = random.Random(RUN_TOKEN)
    mended, lost = kept_stores.mended_store(folder, free_port(rng))
    yield Stores(
        demo=kept_stores.demo_stores(folder / "demo"),
        shop=kept_stores.shop_store(folder, free_port(rng)),
        killed=kept_stores.killed_store(folder, free_port(rng)),
        mended=mended,
        lost=lost,
    )
    shutil.rmtree(folder)


@pytest.fixture(scope="module", params=VERSIONS)
def real(
    request: pytest.FixtureRequest, stores: Stores, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Real]:
    folder = tmp_path_factory.mktemp(f"rocketmq-{request.param}")
    rng = random.Random(f"{RUN_TOKEN}{request.param}")
    copies = [
        moved(kept.path, folder / f"store-{kept.path.name.removeprefix('store-')}")
        for kept in (stores.shop, stores.killed, stores.mended)
    ]
    # Its messages name the ports that a cluster of shmq.local has; others may use them here.
    copies += [
        moved(kept.path, folder / f"store-{kept.path.name}", port=free_port(rng))
        for kept in stores.demo
    ]
    with RocketMQ(Release(request.param), folder, rng) as rocketmq:
        # The last thing before: some of its messages wait still when RocketMQ has booted.
        store, delayed = kept_stores.delayed_store(folder, free_port(rng))
        rocketmq.start_brokers([*copies, store])
        yield Real(rocketmq, folder, delayed)
    shutil.rmtree(folder)


# ---- what is found -------------------------------------------------------------------------------


def test_every_line_of_the_demo_is_found_by_offset_and_by_key(real: Real) -> None:
    found = real.rocketmq.read("demo")
    lines = dict(demo_lines())
    assert Counter(m.properties["KEYS"] for m in found.messages) == Counter(list(lines))
    places = {m.properties["KEYS"]: m.place for m in found.messages}
    for message in found.messages:
        assert message.body == lines[message.properties["KEYS"]]
    assert real.rocketmq.find_by_key("demo", list(lines)) == {
        key: {place} for key, place in places.items()
    }
    # A file's lines are in one queue, in their order.
    queues: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
    for key in lines:
        queues[key.rpartition(":")[0]].append(places[key])
    for name, one_file in queues.items():
        assert len({place[:2] for place in one_file}) == 1, name
        assert one_file == sorted(one_file), name


def test_the_group_of_the_demo_has_no_lag_and_mqadmin_says_so(real: Real) -> None:
    progress = real.rocketmq.progress("demo-group")
    ends = real.rocketmq.read("demo").ends
    assert {(broker_name, queue_id) for _, broker_name, queue_id in progress} == ends.keys()
    for (_, broker_name, queue_id), queue in progress.items():
        end = ends[broker_name, queue_id][1]
        assert queue == Progress(max_queue_offset=end, consumer_offset=end)
    printed = real.rocketmq.mqadmin("consumerProgress", "-g", "demo-group")
    total = next(line for line in printed.splitlines() if "Diff Total:" in line)
    assert total.split(":")[1].strip() == "0", printed


@pytest.mark.parametrize("topic", [ORDERS, EVENTS, LONG])
def test_every_message_is_found_by_offset_with_all_it_has(
    real: Real, stores: Stores, topic: str
) -> None:
    sent = by_topic(stores.shop.sent)[topic]
    found = real.rocketmq.read(topic)
    assert {m.place for m in found.messages} == {m.place for m in sent}
    by_place = {m.place: m for m in found.messages}
    for message in sent:
        _check(by_place[message.place], message)


def test_every_message_is_found_by_key_by_message_id_and_by_offset_id(
    real: Real, stores: Stores
) -> None:
    sent = by_topic(stores.shop.sent)[ORDERS]
    keys: dict[str, set[Place]] = defaultdict(set)
    for message in sent:
        for key in message.keys:
            keys[key].add(message.place)
    assert real.rocketmq.find_by_key(ORDERS, list(keys)) == keys
    ids = {message.message_id: {message.place} for message in sent}
    assert real.rocketmq.find_by_unique_key(ORDERS, list(ids)) == ids
    found = real.rocketmq.read(ORDERS)
    offset_ids = {message.offset_id: {message.place} for message in found.messages}
    assert len(offset_ids) == len(sent)
    assert real.rocketmq.find_by_offset_id(ORDERS, list(offset_ids)) == offset_ids


def test_mqadmin_knows_topics_and_queues(real: Real, stores: Stores) -> None:
    printed = real.rocketmq.mqadmin("topicStatus", "-t", ORDERS)
    rows = [line.split() for line in printed.splitlines() if line.startswith("shop ")]
    sent = Counter(m.place.queue_id for m in by_topic(stores.shop.sent)[ORDERS])
    assert {int(row[1]): (int(row[2]), int(row[3])) for row in rows} == {
        queue_id: (0, count) for queue_id, count in sent.items()
    }
    key = stores.shop.sent[0].keys[0]
    assert stores.shop.sent[0].message_id in real.rocketmq.mqadmin(
        "queryMsgByKey", "-t", ORDERS, "-k", key
    )
    assert "gone" not in real.rocketmq.mqadmin("topicList").split()


def test_a_topic_made_again_goes_on_behind_what_was_deleted(real: Real, stores: Stores) -> None:
    sent = by_topic(stores.shop.sent)[AGAIN]
    found = {m.place: m for m in real.rocketmq.read(AGAIN).messages}
    for message in sent:
        _check(found[message.place], message)
    # What the log still holds of the deleted topic is seen again: RocketMQ knows no better.
    earlier = [m for place, m in found.items() if place not in {s.place for s in sent}]
    assert {m.body for m in earlier} == {b"before the topic was deleted"}


def test_a_group_that_is_half_through_has_the_lag_it_had(real: Real, stores: Stores) -> None:
    ends = Counter(m.place.queue_id for m in by_topic(stores.shop.sent)[ORDERS])
    seen = Counter(place.queue_id for place in stores.shop.consumed)
    assert real.rocketmq.progress(BILLING) == {
        (ORDERS, "shop", queue_id): Progress(ends[queue_id], seen[queue_id]) for queue_id in ends
    }


def test_of_a_killed_broker_everything_flushed_is_there_and_nothing_else(
    real: Real, stores: Stores
) -> None:
    sent = by_topic(stores.killed.sent)
    sync = {m.place: m for m in real.rocketmq.read(SYNC).messages}
    assert sync.keys() == {m.place for m in sent[SYNC]}
    for message in sent[SYNC]:
        _check(sync[message.place], message)
    found = real.rocketmq.read(ASYNC)
    wanted = {m.place: m for m in sent[ASYNC]}
    for real_message in found.messages:
        _check(real_message, wanted[real_message.place])
    # The log was flushed up to a point: what was sent before the last SYNC_FLUSH is there.
    last = max(index for index, m in enumerate(stores.killed.sent) if m.topic == SYNC)
    before = {m.place for m in stores.killed.sent[:last] if m.topic == ASYNC}
    assert before <= {m.place for m in found.messages}


def test_behind_a_mended_hole_rocketmq_reads_on(real: Real, stores: Stores) -> None:
    found = {m.place: m for m in real.rocketmq.read(NOTES).messages}
    for message in stores.mended.sent:
        _check(found.pop(message.place), message)
    (lost,) = found.values()
    assert lost.place == stores.lost.place
    assert "SHMQ_LOST" in lost.properties


# ---- and back ------------------------------------------------------------------------------------


def test_rocketmq_goes_on_with_the_group_and_shmq_takes_both_back(
    real: Real, stores: Stores
) -> None:
    rocketmq = real.rocketmq
    old = by_topic(stores.shop.sent)[ORDERS]
    rest = {m.place for m in old} - stores.shop.consumed
    came = rocketmq.consume(ORDERS, BILLING, len(rest))
    assert Counter(m.place for m in came) == Counter(rest), "each of the rest, once"
    ends = Counter(m.place.queue_id for m in old)
    new: dict[Place, bytes] = {}
    for queue_id in range(4):
        bodies = [b"from RocketMQ %d %d" % (queue_id, n) for n in range(3)]
        offsets = rocketmq.send(ORDERS, "shop", queue_id, bodies)
        assert offsets == [ends[queue_id] + n for n in range(3)]
        new |= {Place("shop", queue_id, n): body for n, body in zip(offsets, bodies, strict=True)}
    rocketmq.stop_broker("shop")
    store = real.folder / "store-shop"
    assert {"consumequeue", "checkpoint", "index"} <= {path.name for path in store.iterdir()}

    everything = {m.place: m.body for m in old} | new
    with _taken_back(real, "shop") as client:
        assert _receive(client, ORDERS, BILLING, len(new)) == new
        assert _receive(client, ORDERS, "newcomers", len(everything)) == everything
        result = client.producer().send(ORDERS, b"from shmq", timeout=TIMEOUT_S)
        queue_id = result.message_queue.queue_id
        assert result.queue_offset == ends[queue_id] + 3
        everything[Place("shop", queue_id, result.queue_offset)] = b"from shmq"
    assert not {"consumequeue", "checkpoint", "index"} & {path.name for path in store.iterdir()}

    rocketmq.start_brokers([store])
    assert {m.place: m.body for m in rocketmq.read(ORDERS).messages} == everything
    assert {queue.lag for queue in rocketmq.progress("newcomers").values()} == {0, 1}


def test_shmq_takes_the_store_of_a_killed_rocketmq(real: Real, stores: Stores) -> None:
    bodies = [b"from RocketMQ %d" % number for number in range(20)]
    offsets = real.rocketmq.send(NOTES, "mended", 0, bodies)
    real.rocketmq.kill_broker("mended")
    wanted = {m.place: m.body for m in stores.mended.sent}
    wanted |= {Place("mended", 0, n): body for n, body in zip(offsets, bodies, strict=True)}
    with _taken_back(real, "mended") as client:
        received = _receive(client, NOTES, "readers", len(wanted) + 1)
    assert received.pop(stores.lost.place).startswith(b"shmq: lost")
    assert received == wanted


def test_delayed_messages_come_once_and_in_their_time_whoever_has_the_store(real: Real) -> None:
    rocketmq = real.rocketmq
    levels = dict(real.delayed)
    if not _knows_levels_early(rocketmq):
        levels = {body: level if level < 2 else 0 for body, level in levels.items()}
    _check_delays(_await_later(rocketmq, len(levels)), levels)
    if _knows_attributes(rocketmq):
        address = f"127.0.0.1:{read_conf(real.folder / 'store-delays')['listenPort']}"
        options = ("-b", address, "-t", LATER, "-r", "2", "-w", "2", "-a", "+message.type=FIFO")
        assert "success" in rocketmq.mqadmin("updateTopic", *options)
    for level in (1, 3):
        bodies = [b"of RocketMQ, level %d, %d" % (level, number) for number in range(5)]
        rocketmq.send(LATER, "delays", 0, bodies, delay_level=level)
        levels |= dict.fromkeys(bodies, level)
        if level == 1:
            _await_later(rocketmq, len(levels))
    rocketmq.stop_broker("delays")

    with _taken_back(real, "delays", message_delay_level=DELAY_LEVELS) as client:
        with shmq.Admin(real.folder / "run-delays") as admin:
            attributes = admin.topic(LATER)["delays"].attributes
        if _knows_attributes(rocketmq):
            assert attributes == {**LATER_ATTRIBUTES, "message.type": "FIFO"}
        else:
            assert attributes == {}, "4.9 forgets what it does not know"
        with client.consumer(LATER, "all") as consumer:
            came = [consumer.try_next(TIMEOUT_S) for _ in levels]
            last = b"of shmq again"
            levels[last] = 1
            client.producer().send(LATER, last, delay_level=1, timeout=TIMEOUT_S)
            came.append(consumer.try_next(TIMEOUT_S))
            assert consumer.try_next(0.0) is None
        messages = [message for message in came if message is not None]
        _check_delays(
            [(bytes(m.body), m.born_timestamp, m.store_timestamp) for m in messages], levels
        )
    rocketmq.start_brokers([real.folder / "store-delays"])
    _check_delays(_await_later(rocketmq, len(levels)), levels)


def _knows_attributes(rocketmq: RocketMQ) -> bool:
    return not rocketmq.version.startswith("4.")


def _knows_levels_early(rocketmq: RocketMQ) -> bool:
    """4.9 rebuilds its ConsumeQueues before it has read its levels (DefaultMessageStore.load): an
    entry then says no time, and what waits is delivered as soon as the broker serves.
    """
    return not rocketmq.version.startswith("4.")


def _await_later(rocketmq: RocketMQ, count: int) -> list[tuple[bytes, int, int]]:
    """(body, born_timestamp, store_timestamp) of all that topic LATER holds, once it is so much."""
    found = wait_for(
        lambda: len(messages := rocketmq.read(LATER).messages) >= count and messages,
        f"{count} messages",
    )
    return [(m.body, m.born_timestamp, m.store_timestamp) for m in found]


def _check_delays(came: list[tuple[bytes, int, int]], levels: dict[bytes, int]) -> None:
    """Each came once, and none before it had waited as long as it was to."""
    assert Counter(body for body, _, _ in came) == Counter(list(levels))
    for body, born_timestamp, store_timestamp in came:
        assert store_timestamp - born_timestamp >= DELAYS_MS[levels[body]], body


@contextmanager
def _taken_back(real: Real, name: str, **settings: str) -> Iterator[shmq.Client]:
    """A client of shmq's broker on a store that RocketMQ had."""
    runtime = real.folder / f"run-{name}"
    port = int(read_conf(real.folder / f"store-{name}")["listenPort"])
    with (
        NamesrvProcess(runtime),
        broker(real.folder, name, port, runtime, **settings),
        shmq.connect(runtime) as client,
    ):
        yield client


def _receive(client: shmq.Client, topic: str, group: str, count: int) -> dict[Place, bytes]:
    """What a group gets of a topic: so many messages, each once, and then nothing more."""
    received: dict[Place, bytes] = {}
    with client.consumer(topic, group) as consumer:
        while len(received) < count:
            message = consumer.try_next(TIMEOUT_S)
            assert message is not None, f"{len(received)} of {count}"
            (broker_name,) = {queue.broker_name for queue in consumer.assigned}
            place = Place(broker_name, message.queue_id, message.queue_offset)
            assert place not in received
            received[place] = bytes(message.body)
        assert consumer.try_next(0.0) is None
    return received


def _check(found: RealMessage, sent: Sent) -> None:
    """A message as RocketMQ's client hands it out is the one that was sent."""
    properties = dict(found.properties)
    assert found.place == sent.place
    assert found.body == sent.body
    assert found.flag == sent.flag
    assert properties.pop("UNIQ_KEY") == sent.message_id
    assert properties.pop("TAGS", None) == sent.tag
    assert tuple(properties.pop("KEYS", "").split()) == sent.keys
    for name in ("MIN_OFFSET", "MAX_OFFSET", "__CRC32#"):  # the client's, the client's, ours
        properties.pop(name, None)
    assert properties == sent.properties
