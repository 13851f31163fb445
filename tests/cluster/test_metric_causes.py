"""Each metric by its cause: real processes make it move, and a gauge goes back when the cause goes.

Here are those that no other test of clusters has; the last test says if a metric has none.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import shmq
from shmq.core import core
from shmq.core.fields import field_place
from shmq.errors import DiskFullError, OutcomeUnknownError
from shmq.metrics import METRICS
from shmq.remoting.codes import RequestCode
from shmq.shm.fds import open_files
from shmq.version import version_text
from tests.cluster.namesrv_process import NamesrvProcess
from tests.support import old_store
from tests.support.broker_process import BrokerClient, BrokerProcess, ClientProcess
from tests.support.cluster import Cluster, Program, wait_for
from tests.support.dev_shm import SHARED
from tests.support.exporter import TIMEOUT_S, Exporter, value
from tests.support.limits import set_open_files
from tests.support.memory_group import memory_group
from tests.support.mounts import in_dev_shm_of, inside, others_file, small_file_system
from tests.support.shell import Shell
from tests.support.slave import ParentedPair

pytestmark = pytest.mark.cluster

MIB = 1 << 20
FILE_SIZE = MIB
DISK_SIZE = 64 * MIB
BODY_SIZE = 32_000
RING_BODY_SIZE = 16_000
LOOKS = 10
ARENA_BLOCKS = MIB // core.BLOCK_SIZE
SETTINGS = {
    "commit_log_file_size_bytes": "1MiB",
    "max_message_size_bytes": "64KiB",
    "disk_ample_free_bytes": "0",
    "clean_file_forcibly_enable": "false",
    "flush_interval_ms": "60000",  # what is not hurried is seen waiting
}


class Watch:
    """What an exporter shows."""

    def __init__(self, exporter: Exporter) -> None:
        self.exporter = exporter

    def read(self, name: str, **labels: str) -> float:
        """A metric that there is, now."""
        found = value(self.exporter.look(), name, **labels)
        assert found is not None, name
        return found

    def wait(self, name: str, holds: Callable[[float], bool], **labels: str) -> float:
        """Look until there is one that is as wanted; it."""

        def look() -> tuple[float] | None:
            found = value(self.exporter.look(), name, **labels)
            return (found,) if found is not None and holds(found) else None

        (found,) = wait_for(look, f"{name} {labels}")
        return float(found)

    def wait_is(self, name: str, wanted: float, **labels: str) -> None:
        self.wait(name, lambda now: now == wanted, **labels)

    def wait_more(self, name: str, before: float, **labels: str) -> None:
        self.wait(name, lambda now: now > before, **labels)


class Scene(Watch):
    """A cluster, a client, and an exporter."""

    def __init__(self, cluster: Cluster, client: shmq.Client, exporter: Exporter) -> None:
        super().__init__(exporter)
        self.cluster = cluster
        self.broker = cluster.brokers[0]
        self.client = client

    @property
    def root(self) -> Path:
        """What the broker sees as /."""
        return Path(f"/proc/{self.broker.pid}/root")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A broker with a /dev/shm and a disk of its own, both small."""
    folder = tmp_path_factory.mktemp("causes")
    with (
        small_file_system(folder / "store-broker-a", size=DISK_SIZE),
        Cluster(folder, f"{SHARED}causes", wrapper=in_dev_shm_of("256m"), **SETTINGS) as cluster,
        cluster.connect() as client,
        Exporter(cluster.runtime, "--queues", wrapper=inside(cluster.brokers[0].pid)) as exporter,
    ):
        yield Scene(cluster, client, exporter)


# ---- the exporter and the machine ----------------------------------------------------------------


def test_exporter_says_which_it_is_and_what_its_look_took(scene: Scene) -> None:
    assert scene.read("shmq_build_info", version=version_text()) == 1
    begin = time.monotonic()
    took_s = scene.read("shmq_exporter_scrape_seconds")
    assert 0 < took_s < time.monotonic() - begin


def test_a_look_takes_longer_with_more_topics_and_they_are_counted(scene: Scene) -> None:
    def least_s() -> float:
        return min(scene.read("shmq_exporter_scrape_seconds") for _ in range(LOOKS))

    names = [f"many-{number}" for number in range(60)]
    topics, queues = scene.read("shmq_topics"), scene.read("shmq_queues")
    few_s = least_s()
    with shmq.Admin(scene.cluster.runtime) as admin:
        admin.create_topics(names, queues=8)
        assert scene.read("shmq_topics") == topics + 60
        assert scene.read("shmq_queues") == queues + 480
        many_s = least_s()
        for name in names:
            admin.delete_topic(name)
    scene.wait_is("shmq_topics", topics)
    scene.wait_is("shmq_queues", queues)
    assert many_s > few_s
    assert least_s() < many_s


def test_dev_shm_shows_what_others_take_and_how_large_it_is(scene: Scene) -> None:
    shm = scene.root / "dev/shm"
    assert scene.read("shmq_dev_shm_size_bytes") == 256 * MIB
    free = scene.read("shmq_dev_shm_free_bytes")
    with others_file(shm / "others", 64 * MIB):
        assert scene.read("shmq_dev_shm_free_bytes") <= free - 64 * MIB
        enter = inside(scene.broker.pid)
        with _remounted(Path("/dev/shm"), "size=300m", "size=256m", enter):
            assert scene.read("shmq_dev_shm_size_bytes") == 300 * MIB
    assert scene.read("shmq_dev_shm_size_bytes") == 256 * MIB
    scene.wait("shmq_dev_shm_free_bytes", lambda now: now > free - 64 * MIB)


def test_disk_shows_what_others_take_and_how_large_it_is(scene: Scene) -> None:
    disk = scene.broker.store_path
    files_max = os.statvfs(disk).f_files
    scene.wait_is("shmq_store_disk_size_bytes", DISK_SIZE)
    scene.wait_is("shmq_store_disk_size_files", files_max)
    free = scene.wait("shmq_store_disk_free_bytes", lambda now: now > 8 * MIB)
    free_files = scene.read("shmq_store_disk_free_files")
    small = disk / "small"
    small.mkdir()
    with others_file(disk / "others", 8 * MIB):
        for number in range(100):
            (small / str(number)).touch()
        scene.wait("shmq_store_disk_free_bytes", lambda now: now <= free - 8 * MIB)
        scene.wait("shmq_store_disk_free_files", lambda now: now <= free_files - 100)
    for path in small.iterdir():
        path.unlink()
    small.rmdir()
    larger = f"size={DISK_SIZE + 8 * MIB},nr_inodes={files_max + 1000}"
    with _remounted(disk, larger, f"size={DISK_SIZE},nr_inodes={files_max}"):
        scene.wait_is("shmq_store_disk_size_bytes", DISK_SIZE + 8 * MIB)
        scene.wait_is("shmq_store_disk_size_files", files_max + 1000)
    scene.wait_is("shmq_store_disk_size_bytes", DISK_SIZE)
    scene.wait_is("shmq_store_disk_size_files", files_max)
    scene.wait("shmq_store_disk_free_bytes", lambda now: now > free - 8 * MIB)
    scene.wait("shmq_store_disk_free_files", lambda now: now > free_files - 100)


def test_memory_shows_the_limit_and_what_it_leaves(scene: Scene) -> None:
    size = scene.wait("shmq_memory_size_bytes", lambda now: now > 0)
    assert 0 < scene.read("shmq_memory_free_bytes") <= size
    limit = 256 * MIB
    with memory_group() as group, group.of(scene.broker.pid):
        group.limit(limit)
        scene.wait_is("shmq_memory_size_bytes", limit)
        assert 0 < scene.read("shmq_memory_free_bytes") <= limit
        group.limit(None)
        scene.wait_is("shmq_memory_size_bytes", size)
        scene.wait_more("shmq_memory_free_bytes", limit)


def test_open_files_show_connections_and_their_limit(scene: Scene) -> None:
    limit = open_files(scene.broker.pid).limit
    scene.wait_is("shmq_open_files_limit", limit)
    before = scene.wait("shmq_open_files", lambda now: now > 0)
    with contextlib.ExitStack() as others:
        for number in range(20):
            others.enter_context(BrokerClient(scene.broker, f"idle-{number}", attach=False))
        set_open_files(scene.broker.pid, limit - 1)
        scene.wait("shmq_open_files", lambda now: now >= before + 20)
        scene.wait_is("shmq_open_files_limit", limit - 1)
    set_open_files(scene.broker.pid, limit)
    scene.wait("shmq_open_files", lambda now: now < before + 20)
    scene.wait_is("shmq_open_files_limit", limit)


# ---- clients and their messages ------------------------------------------------------------------


def test_a_program_that_connects_is_counted_with_its_memory(scene: Scene) -> None:
    scene.client.producer().send("t", b"x", timeout=TIMEOUT_S)
    scene.wait_is("shmq_sessions", 1)
    scene.wait_is("shmq_clients", 1)
    memory = scene.read("shmq_segment_bytes", kind="completion")
    with scene.cluster.connect() as other:
        other.producer().send("t", b"x", timeout=TIMEOUT_S)
        scene.wait_is("shmq_sessions", 2)
        scene.wait_is("shmq_clients", 2)
        scene.wait_more("shmq_segment_bytes", memory, kind="completion")
    scene.wait_is("shmq_sessions", 1)
    scene.wait_is("shmq_clients", 1)
    scene.wait_is("shmq_segment_bytes", memory, kind="completion")


def test_each_queue_shows_what_came_and_what_a_group_has_before_it(
    scene: Scene, topic: str, group: str
) -> None:
    scene.client.create_topic(topic, queues=1)
    producer = scene.client.producer()
    queue = {"topic": topic, "queue": "0"}
    assert scene.read("shmq_queue_messages_in_total", **queue) == 0
    with scene.client.consumer(topic, group=group) as consumer:
        for count in range(1, 4):
            producer.send(topic, b"x", timeout=TIMEOUT_S)
            assert scene.read("shmq_queue_messages_in_total", **queue) == count
        message = consumer.try_next(TIMEOUT_S)
        assert message is not None
        with message.process():
            pass
        scene.wait_is("shmq_queue_consumer_lag_messages", 2, group=group, **queue)
        for _ in range(2):
            message = consumer.try_next(TIMEOUT_S)
            assert message is not None
            with message.process():
                pass
        scene.wait_is("shmq_queue_consumer_lag_messages", 0, group=group, **queue)


def test_sends_make_turns_and_wake_those_that_sleep(scene: Scene, topic: str, group: str) -> None:
    scene.client.create_topic(topic, queues=1)
    producer = scene.client.producer()
    taken: list[bytes] = []
    names = ("shmq_turns_total", "shmq_wakeups_total", "shmq_append_sleeps_total")
    before = {name: scene.read(name) for name in names}
    took = scene.read("shmq_send_duration_seconds_count")
    with scene.client.push_consumer(group, lambda m: taken.append(m.body_bytes)) as consumer:
        consumer.subscribe(topic)

        def send_to_a_sleeper() -> bool:
            count = len(taken)
            producer.send(topic, b"x", timeout=TIMEOUT_S)
            wait_for(lambda: len(taken) > count, "the message")
            seen = scene.exporter.look()  # meanwhile both sides fall asleep again
            return all((value(seen, name) or 0) > before[name] for name in names)

        wait_for(send_to_a_sleeper, "turns, bells and sleeps")
        scene.wait("shmq_send_duration_seconds_count", lambda now: now >= took + len(taken))


def test_the_log_shows_what_waits_for_the_disk_and_the_files_it_begins(
    scene: Scene, topic: str
) -> None:
    scene.client.create_topic(topic, queues=1)
    safe = f"{topic}-safe"
    attributes = {"shmq.flush.disk.type": "SYNC_FLUSH"}
    with shmq.Admin(scene.cluster.runtime) as admin:
        admin.create_topic(safe, queues=1, attributes=attributes)
    producer = scene.client.producer()
    producer.send(safe, b"all so far", timeout=TIMEOUT_S)
    scene.wait_is("shmq_flush_behind_bytes", 0)
    syncs = scene.read("shmq_fsync_duration_seconds_count")
    kept = scene.read("shmq_log_kept_bytes")
    producer.send(topic, bytes(BODY_SIZE), timeout=TIMEOUT_S)
    assert scene.read("shmq_flush_behind_bytes") > BODY_SIZE
    assert scene.read("shmq_log_kept_bytes") > kept + BODY_SIZE
    producer.send(safe, b"the disk hurries", timeout=TIMEOUT_S)
    scene.wait_is("shmq_flush_behind_bytes", 0)
    scene.wait_more("shmq_fsync_duration_seconds_count", syncs)
    rolled = scene.read("shmq_files_rolled_total")
    before = scene.read("shmq_log_hot_bytes")
    assert 0 < before < 3 * FILE_SIZE
    producer.send(topic, bytes(BODY_SIZE), timeout=TIMEOUT_S)
    assert scene.read("shmq_log_hot_bytes") != before
    for _ in range(4 * FILE_SIZE // BODY_SIZE):
        producer.send(topic, bytes(BODY_SIZE), timeout=TIMEOUT_S)
    assert scene.read("shmq_files_rolled_total") >= rolled + 4
    scene.wait("shmq_log_hot_bytes", lambda now: now < 3 * FILE_SIZE)  # the oldest have left memory
    assert scene.read("shmq_log_kept_bytes") > kept + 4 * FILE_SIZE


def test_a_ring_fills_and_turns_are_cut_short_while_the_disk_is_full(
    scene: Scene, topic: str
) -> None:
    scene.client.create_topic(topic, queues=1)
    full_turns = scene.read("shmq_log_full_turns_total")
    scene.wait_is("shmq_ring_used_ratio", 0)
    with BrokerClient(scene.broker, "floods") as client:
        (where,) = client.send_queues(topic)
        lane = client.lanes[0]
        with others_file(scene.broker.store_path / "others"):
            body = bytes(RING_BODY_SIZE)
            while (status := lane.put(where.row, where.generation, body, timeout=0.5)) >= 0:
                pass
            assert status in {core.STATUS["DISK_FULL"][0], core.STATUS["TIMED_OUT"][0]}
            scene.wait_more("shmq_log_full_turns_total", full_turns)
            scene.wait_more("shmq_ring_used_ratio", 0.5)
        assert lane.drain(TIMEOUT_S) == 0
        scene.wait_is("shmq_ring_used_ratio", 0)


def test_a_session_that_breaks_a_rule_is_ended_and_counted(scene: Scene) -> None:
    before = scene.read("shmq_sessions_ended_total")
    with BrokerClient(scene.broker, "hostile") as client:
        assert client.ingress is not None
        with memoryview(client.ingress) as page:
            place = core.LANES_PLACE + field_place("lane", "tail")
            page[place : place + 8] = (1 << 62).to_bytes(8, "little")  # more than the ring holds
        os.eventfd_write(client.fds["event"], 1)
        scene.wait_is("shmq_sessions_ended_total", before + 1)


SENDS_AND_WAITS = """
import json, sys
import shmq

with shmq.connect(sys.argv[1]) as client:
    client.producer().send("t", b"x")
    print(json.dumps("sent"), flush=True)
    sys.stdin.read()
"""


def test_a_program_that_dies_is_counted_and_one_that_closes_is_not(scene: Scene) -> None:
    reaped = scene.read("shmq_sessions_reaped_total")
    sessions = scene.read("shmq_sessions")
    with contextlib.ExitStack() as stack:
        closes, *die = [
            stack.enter_context(Program(SENDS_AND_WAITS, scene.cluster.runtime)) for _ in range(3)
        ]
        assert [one.hear() for one in (closes, *die)] == ["sent"] * 3
        assert closes.end() == 0
        scene.wait_is("shmq_sessions", sessions + 2)
        for one in die:
            one.kill()
        scene.wait_is("shmq_sessions", sessions)
        count = scene.wait("shmq_sessions_reaped_total", lambda now: now >= reaped + 2)
        assert count == reaped + 2


def test_a_program_that_dies_while_its_broker_is_dead_is_counted(
    tmp_path: Path, cluster_name: str
) -> None:
    with (
        BrokerProcess(tmp_path, cluster_name, session_grace_ms="500") as broker,
        Exporter(broker.runtime_path) as exporter,
        ClientProcess(broker, "dies") as dies,
    ):
        shows = Watch(exporter)
        shows.wait_is("shmq_sessions", 1)
        broker.kill()
        dies.kill()
        broker.restart()
        shows.wait_is("shmq_sessions_reaped_total", 1)


# ---- groups and delays ---------------------------------------------------------------------------


def test_dead_letters_wait_until_they_are_replayed(scene: Scene, topic: str, group: str) -> None:
    scene.client.create_topic(topic, queues=1)
    scene.client.producer().send(topic, b"poison", timeout=TIMEOUT_S)
    with scene.client.consumer(topic, group=group, auto_settle=False) as consumer:
        message = consumer.try_next(TIMEOUT_S)
        assert message is not None
        consumer.send_back(message, -1)
    scene.wait_is("shmq_dead_letters_waiting", 1, group=group)
    done = Shell(scene.cluster.runtime).run("dlq", "replay", group, "--yes")
    assert done.returncode == 0, done.stderr
    scene.wait_is("shmq_dead_letters_waiting", 0, group=group)


def test_a_delayed_message_whose_topic_is_deleted_is_dropped(scene: Scene, topic: str) -> None:
    before = scene.wait("shmq_delayed_dropped_total", lambda now: now >= 0)
    scene.client.create_topic(topic, queues=1)
    scene.client.producer().send(topic, b"gone", delay_level=1, timeout=TIMEOUT_S)
    with shmq.Admin(scene.cluster.runtime) as admin:
        admin.delete_topic(topic)
    scene.wait_is("shmq_delayed_dropped_total", before + 1)


# ---- services and deaths -------------------------------------------------------------------------


def test_a_service_is_up_then_dead_then_up_then_none(scene: Scene) -> None:
    name, labels = "shmq_service_up", {"service": "namesrv-ns1"}
    runtime = scene.cluster.runtime
    with NamesrvProcess(runtime, name="ns1") as first:
        assert scene.read(name, **labels) == 1
        first.end(signal.SIGKILL)
        assert scene.read(name, **labels) == 0
    with NamesrvProcess(runtime, name="ns1") as second:
        assert scene.read(name, **labels) == 1
        assert second.end() == 0
        assert value(scene.exporter.look(), name, **labels) is None
    assert scene.read(name, service="namesrv-ns0") == 1


def test_sessions_are_lost_until_resumed_and_another_life_has_another_epoch(
    broker: BrokerProcess,
) -> None:
    with Exporter(broker.runtime_path) as exporter:
        shows = Watch(exporter)
        with BrokerClient(broker, "c") as client:
            where = client.send_queues("t")[0]
            client.send(where, b"x")
            shows.wait_is("shmq_sessions_lost", 0)
            epoch = shows.read("shmq_master_epoch")
            broker.kill()
            broker.restart()
            shows.wait_is("shmq_sessions_lost", 1)
            assert shows.read("shmq_master_epoch") == epoch  # the same memory
            client.resume(broker, queues=[where])
            shows.wait_is("shmq_sessions_lost", 0)
        broker.stop()
        broker.restart(keep_memory="never")
        broker.stop()
        broker.restart()
        assert shows.read("shmq_master_epoch") > epoch


# ---- what a small arena has no room for, what is old, what is damaged ----------------------------


def test_turns_are_cut_short_while_the_arena_is_full(tmp_path: Path, cluster_name: str) -> None:
    """Until a topic goes: no file can leave memory for the sake of its blocks."""
    with (
        BrokerProcess(tmp_path, cluster_name, arena_bytes="1MiB") as broker,
        BrokerClient(broker, "c") as client,
        Exporter(broker.runtime_path) as exporter,
    ):
        shows = Watch(exporter)
        assert shows.read("shmq_arena_full_turns_total") == 0
        lane = client.lanes[0]
        for topic in ("gone", "t"):
            client.create_topic(topic, ARENA_BLOCKS // 2)
            for where in client.send_queues(topic):  # a block each: there is none for the last
                lane.put(where.row, where.generation, b"x")
        shows.wait_is("shmq_arena_full_turns_total", 1)
        shows.wait_is("shmq_problem", 1)
        shows.wait_is("shmq_store_writable", 0)
        assert shows.read("shmq_store_waits", status="SHM_FULL") == 1
        assert "1048576 bytes; raise arena_bytes and start" in broker.log
        client.call(RequestCode.DELETE_TOPIC_IN_BROKER, {"topic": "gone"})
        assert lane.drain(TIMEOUT_S) == 0
        shows.wait_is("shmq_problem", 0)
        shows.wait_is("shmq_store_writable", 1)
        assert shows.read("shmq_messages_in_total", topic="t") == ARENA_BLOCKS // 2


def test_turns_cut_short_for_want_of_dev_shm_go_on_when_there_is_room(scene: Scene) -> None:
    before = scene.read("shmq_arena_full_turns_total")
    size = scene.read("shmq_segment_bytes", kind="arena")
    with BrokerClient(scene.broker, "wide") as client:
        client.create_topic("wide", int(size) // core.BLOCK_SIZE)
        queues = client.send_queues("wide")
        lane = client.lanes[0]
        with others_file(scene.root / "dev/shm/others"):
            for where in queues:
                lane.put(where.row, where.generation, b"x")
            scene.wait_more("shmq_arena_full_turns_total", before)
            scene.wait_is("shmq_store_waits", 1, status="SHM_FULL")
        assert lane.drain(TIMEOUT_S) == 0
        scene.wait_is("shmq_store_writable", 1)
        assert scene.read("shmq_segment_bytes", kind="arena") > size


def test_old_files_that_go_are_counted_with_what_was_unread_and_damaged(
    tmp_path: Path, cluster_name: str
) -> None:
    store = tmp_path / "store-broker-a"
    gone = old_store.old_store(store)
    with (store / "commitlog" / f"{0:020d}").open("r+b") as file:
        file.seek(100_000)
        file.write(b"!")
    noon = (time.localtime().tm_hour + 12) % 24
    settings = old_store.SETTINGS | {
        "delete_when": f"{noon:02d}",
        "delete_commit_log_files_interval_ms": "0",
    }
    with (
        Cluster(tmp_path, cluster_name, **settings) as cluster,
        cluster.connect() as client,
        shmq.Admin(cluster.runtime) as admin,
        Exporter(cluster.runtime) as exporter,
    ):
        shows = Watch(exporter)
        with client.consumer("orders", group="slow") as consumer:
            for _ in range(3):
                message = consumer.try_next(TIMEOUT_S)
                assert message is not None
                with message.process():
                    pass
        shows.wait_is("shmq_corrupt_records", 1)
        shows.wait_is("shmq_expired_files_total", 0)
        shows.wait_is("shmq_expired_bytes_total", 0)
        kept = shows.read("shmq_log_kept_bytes")
        admin.delete_expired_commit_log("broker-a")
        shows.wait_is("shmq_expired_files_total", gone)
        shows.wait_is("shmq_expired_bytes_total", gone * old_store.FILE_SIZE)
        shows.wait_is("shmq_expired_unread_messages_total", old_store.OLD_COUNT - 3, group="slow")
        shows.wait_is("shmq_corrupt_records", 0)
        assert shows.read("shmq_log_kept_bytes") == kept - gone * old_store.FILE_SIZE


def test_what_was_cut_is_pending_while_the_new_master_takes_nothing(
    tmp_path: Path, cluster_name: str
) -> None:
    folder = tmp_path / "slave"
    folder.mkdir()
    with (
        small_file_system(folder / "store-broker-a", size=DISK_SIZE) as disk,
        Cluster(tmp_path, cluster_name, **SETTINGS) as cluster,
        Exporter(cluster.runtime) as exporter,
    ):
        shows = Watch(exporter)
        name, member = "shmq_cut_pending_bytes", {"broker_id": "0"}
        pair = ParentedPair(tmp_path, cluster, **SETTINGS)
        with pair.slave:
            pair.slave.wait_running()
            pair.await_in_sync()
            pair.begin()
            shows.wait_is(name, 0, **member)
            pair.part(("alone",), ("after",))
            with (
                others_file(disk / "others"),
                cluster.connect() as client,
            ):
                producer = client.producer()
                with pytest.raises((DiskFullError, OutcomeUnknownError)):
                    _send_for_ever(producer)
                pair.master.restart()
                shows.wait_more(name, 0, **member)
            shows.wait_is(name, 0, **member)
            assert shows.read("shmq_cut_messages_total", outcome="resent", **member) == 1


# ---- all of them ---------------------------------------------------------------------------------


def test_each_metric_is_in_a_test_of_clusters() -> None:
    texts = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("*.py"))
    tested = set(re.findall(r'"(shmq_\w+?)(?:_bucket|_sum|_count)?"', texts))
    assert METRICS.keys() - tested == set()


@contextlib.contextmanager
def _remounted(
    folder: Path, options: str, before: str, enter: tuple[str, ...] = ()
) -> Iterator[None]:
    """A file system has other options; behind the block those from before."""
    command = [*enter, "mount", "-o"]
    subprocess.run([*command, f"remount,{options}", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run([*command, f"remount,{before}", str(folder)], check=True)


def _send_for_ever(producer: shmq.Producer) -> None:
    while True:  # until the log has no room left
        producer.send("t", bytes(BODY_SIZE), timeout=0.5)
