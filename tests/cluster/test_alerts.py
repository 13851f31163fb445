"""Each alert comes by its cause in a real Prometheus, and goes with it.

The rules are those that we ship, with times that a test can wait for; each cause is a real one, in
one life of a master, its slave and a broker whose store is old and small. Causes that leave each
other alone are there together.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

import shmq
from shmq.core import core
from shmq.core.fields import field_place
from shmq.shm.fds import open_files
from tests.cluster.namesrv_process import NamesrvProcess
from tests.cluster.steady_load import SteadyLoad
from tests.support import old_store
from tests.support.broker_process import BrokerClient, BrokerProcess
from tests.support.cluster import Cluster, Program, wait_for
from tests.support.exporter import Exporter, value
from tests.support.limits import set_open_files
from tests.support.memory_group import memory_group
from tests.support.mounts import Ext4OnLoop, in_dev_shm_of, inside, others_file, room_until
from tests.support.prometheus import MONITORING, Prometheus
from tests.support.slave import Pair
from tests.support.standing_still import stopped

pytestmark = [pytest.mark.ci, pytest.mark.cluster]

MIB = 1 << 20
TIMEOUT_S = 30.0
SERIES_MAX = 2000
FLUSH_BEHIND = 256 * MIB
MASTER = {
    "commit_log_file_size_bytes": "128MiB",  # three are ready: more than an alert waits for
    "ha_max_time_slave_not_catchup_ms": "1000",
}
OLD = old_store.SETTINGS | {
    "delete_when": f"{(time.localtime().tm_hour + 12) % 24:02d}",  # when the test says so
    "delete_commit_log_files_interval_ms": "0",
    "disk_ample_free_bytes": "0",
    "clean_file_forcibly_enable": "false",
    "keep_memory": "never",  # so that each start is a new mastership
}
FIRING = (  # what this test sends fills the other disks, too, to go by the last seconds
    'ALERTS{alertstate="firing"} unless ALERTS{alertname="ShmqStoreDiskFills", broker!="broker-b"}'
)


class Scene:
    """A master with a slave and load on it, broker-b, the exporter, and a Prometheus."""

    def __init__(self, folder: Path, cluster_name: str, rng: random.Random) -> None:
        with contextlib.ExitStack() as stack:
            enter = stack.enter_context
            # The store's is in a file of it: where it stands still, writes go on and syncs wait.
            self.disk = enter(Ext4OnLoop(folder / "image", folder / "disk", size=1280 * MIB))
            enter(
                Ext4OnLoop(self.disk.folder / "image", folder / "store-broker-a", size=1024 * MIB)
            )
            self.old_disk = enter(
                Ext4OnLoop(
                    folder / "image-b", folder / "store-broker-b", size=256 * MIB, inodes=2000
                )
            )
            holder = enter(
                Program(
                    "import sys; print('true', flush=True); sys.stdin.read()",
                    wrapper=in_dev_shm_of("1200m"),
                )
            )
            holder.hear()
            self.inside = inside(holder.process.pid)
            self.dev_shm = Path(f"/proc/{holder.process.pid}/root/dev/shm")
            self.cluster = enter(Cluster(folder, cluster_name, wrapper=self.inside, **MASTER))
            self.master = self.cluster.brokers[0]
            (folder / "slave").mkdir()
            self.pair = Pair(folder, self.cluster, wrapper=self.inside, **MASTER)
            self.slave = enter(self.pair.slave)
            self.exporter = enter(
                Exporter(
                    self.cluster.runtime,
                    "--queues",
                    f"--series-max={SERIES_MAX}",
                    wrapper=self.inside,
                )
            )
            self.prometheus = enter(
                Prometheus(folder / "prometheus", rng, target=self.exporter.target)
            )
            self.client = enter(self.cluster.connect())
            self.slave.wait_running()
            self.pair.await_in_sync()
            with shmq.Admin(self.cluster.runtime) as admin:  # here, and not at broker-b
                admin.create_topics(("doomed", "gone", "large"), queues=1)
            self.load = enter(SteadyLoad(self.client))
            self.old: BrokerProcess
            self._stack = stack.pop_all()

    def start_old(self) -> None:
        """Begin broker-b, with messages of days ago, one of them damaged."""
        store = self.old_disk.folder
        old_store.old_store(store)
        with (store / "commitlog" / f"{0:020d}").open("r+b") as file:
            file.seek(100_000)
            file.write(b"!")
        self.old = self._stack.enter_context(
            BrokerProcess(
                store.parent,
                self.master.cluster_name,
                name="broker-b",
                runtime=self.cluster.runtime,
                wrapper=self.inside,
                **OLD,
            )
        )
        wait_for(lambda: len(self.client.routes.brokers()) == 2, "the registration")

    def start_namesrv(self) -> None:
        """A NameServer in place of the one that was ended."""
        self.cluster.namesrv = self._stack.enter_context(NamesrvProcess(self.cluster.runtime))

    def metric(self, name: str, **labels: str) -> float | None:
        return value(self.exporter.look(), name, **labels)

    def asked(self, expr: str) -> list[str]:
        """The values that Prometheus gives for an expression."""
        return [series["value"][1] for series in self.prometheus.query(expr)]

    def firing(self) -> set[str]:
        return {one["metric"]["alertname"] for one in self.prometheus.query(FIRING)}

    def see(self, *waves: tuple[Cause, ...]) -> set[str]:
        """Let the causes of each wave come, see their alerts, and let them go; these alerts."""
        names = set()
        for wave in waves:
            with contextlib.ExitStack() as causes:
                brought = alerts_of(*wave)
                assert not brought & self.firing()
                for cause in wave:
                    causes.enter_context(cause(self))
                self.wait_firing(brought)
            names |= brought
        return names

    def wait_firing(self, names: set[str]) -> None:
        """Return once each has been seen; what was but a moment may be over by then."""
        missing = names

        def is_there() -> bool:
            nonlocal missing
            missing = missing - self.firing()
            return not missing

        with _told(lambda: f"not firing: {missing}"):
            wait_for(is_there)

    def wait_over(self, names: set[str]) -> None:
        left = names

        def is_over() -> bool:
            nonlocal left
            left = names & self.firing()
            return not left

        with _told(lambda: f"firing without their cause: {left}"):
            wait_for(is_over)

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


Cause = Callable[[Scene], AbstractContextManager[None]]
CAUSES: dict[str, Cause] = {}
"""By the alert that it brings: a block in which the cause is there."""
BY_PROMTOOL_ALONE = {
    "ShmqScrapeSlow": "half a second is 50,000 series, or a host with no time for anything: "
    "neither can be made in the seconds that there are",
}
"""Alerts whose cause does not come here, and why; shmq-alerts.test.yml has their series."""


def brings(*alerts: str) -> Callable[[Callable[[Scene], Iterator[None]]], Cause]:
    def register(cause: Callable[[Scene], Iterator[None]]) -> Cause:
        made = contextlib.contextmanager(cause)
        assert not CAUSES.keys() & set(alerts)
        CAUSES.update(dict.fromkeys(alerts, made))
        return made

    return register


def alerts_of(*causes: Cause) -> set[str]:
    return {name for name, cause in CAUSES.items() if cause in causes}


# ---- the slave, the disk of the master, what clients do ------------------------------------------


@brings("ShmqReplicaNotInSync", "ShmqReplicaLag", "ShmqBrokerHung")
def the_slave_stands_still(scene: Scene) -> Iterator[None]:
    with stopped(scene.slave.pid):
        yield


@brings("ShmqFlushBehind")
def the_disk_takes_nothing(scene: Scene) -> Iterator[None]:
    producer = scene.client.producer()
    body = bytes(MIB)
    with scene.disk.frozen():
        for _ in range(FLUSH_BEHIND // len(body) + 1):
            producer.send("large", body, timeout=TIMEOUT_S)
        yield


@brings("ShmqSyncSlow")
def the_disk_stands_still_again_and_again(scene: Scene) -> Iterator[None]:
    def stand_still(pause: Callable[[float], object]) -> None:
        with scene.disk.frozen():
            pause(0.2)

    with _again_and_again(stand_still):
        yield


@brings("ShmqRefused")
def a_stranger_sends_what_it_may_not(scene: Scene) -> Iterator[None]:
    with BrokerClient(scene.master, "stranger") as stranger:
        lane = stranger.lanes[0]
        with _again_and_again(lambda _: lane.put(60, 1, b"into a queue without a grant for it")):
            yield


@brings("ShmqDeadLetters")
def a_message_is_given_up(scene: Scene) -> Iterator[None]:
    scene.client.producer().send("doomed", b"x", timeout=TIMEOUT_S)
    with scene.client.consumer("doomed", group="strict", auto_settle=False) as consumer:
        message = consumer.try_next(TIMEOUT_S)
        assert message is not None
        consumer.send_back(message, -1)
    yield


@brings("ShmqDelayedDropped")
def the_topic_of_a_delayed_message_is_deleted(scene: Scene) -> Iterator[None]:
    scene.client.producer().send("gone", b"x", delay_level=1, timeout=TIMEOUT_S)
    with shmq.Admin(scene.cluster.runtime) as admin:
        admin.delete_topic("gone")
    yield


@brings("ShmqSessionsEnded")
def a_client_breaks_a_rule(scene: Scene) -> Iterator[None]:
    with BrokerClient(scene.master, "hostile") as client:
        assert client.ingress is not None
        with memoryview(client.ingress) as page:
            place = core.LANES_PLACE + field_place("lane", "tail")
            page[place : place + 8] = (1 << 62).to_bytes(8, "little")  # more than the ring holds
        os.eventfd_write(client.fds["event"], 1)
        yield


DIES = """
import json, sys
import shmq

clients = [shmq.connect(sys.argv[1]) for _ in range(5)]
for client in clients:
    client.producer().send("invoices", b"x")
print(json.dumps("sent"), flush=True)
sys.stdin.read()
"""


@brings("ShmqClientsReaped")
def a_program_with_many_clients_is_killed(scene: Scene) -> Iterator[None]:
    with Program(DIES, scene.cluster.runtime) as program:
        program.hear()
        program.kill()
    yield


@brings("ShmqSeriesDropped")
def there_are_more_queues_than_are_shown(scene: Scene) -> Iterator[None]:
    with shmq.Admin(scene.cluster.runtime) as admin:
        admin.create_topic("wide", queues=SERIES_MAX // 2, brokers=["broker-b"])
        yield
        admin.delete_topic("wide")


# ---- an old store --------------------------------------------------------------------------------


@brings("ShmqConsumerLag", "ShmqConsumerStuck", "ShmqCorruptRecords")
def an_old_store_is_damaged_and_hardly_read(scene: Scene) -> Iterator[None]:
    """Until retention and the group come: the next cause."""
    scene.start_old()
    with scene.client.consumer("orders", group="slow") as consumer:
        for _ in range(3):
            _consume(consumer)
    yield


@brings("ShmqExpiredUnread")
def old_files_go_unread(scene: Scene) -> Iterator[None]:
    with shmq.Admin(scene.cluster.runtime) as admin:
        admin.delete_expired_commit_log("broker-b")
        yield
        with scene.client.consumer("orders", group="slow") as consumer:
            _consume(consumer)
        wait_for(lambda: sum(row.lag for row in admin.lag("slow")) == 0, "no lag")


def _consume(consumer: shmq.Consumer) -> None:
    message = consumer.try_next(TIMEOUT_S)
    assert message is not None
    with message.process():
        pass


# ---- what a machine runs out of ------------------------------------------------------------------


@brings("ShmqStoreDiskFull", "ShmqStoreDiskFills")
def others_fill_the_disk(scene: Scene) -> Iterator[None]:
    disk = scene.old_disk.folder
    with others_file(disk / "others", room_until(disk, used_percent=89)):
        yield


@brings("ShmqStoreInodes")
def others_make_many_files(scene: Scene) -> Iterator[None]:
    disk = scene.old_disk.folder
    small = disk / "small"
    small.mkdir()
    for number in range(os.statvfs(disk).f_favail - os.statvfs(disk).f_files // 20):
        (small / str(number)).touch()
    yield
    for path in small.iterdir():
        path.unlink()
    small.rmdir()


@brings("ShmqStoreReadOnly")
def the_store_is_read_only(scene: Scene) -> Iterator[None]:
    """Where it looks up files: what it has open, the kernel lets nobody make read-only."""
    store = scene.old.store_path
    script = f"mount --bind {store} {store} && mount -o remount,ro,bind {store}"
    subprocess.run([*scene.inside, "sh", "-ec", script], check=True)
    yield
    subprocess.run([*scene.inside, "umount", "-l", str(store)], check=True)


@brings("ShmqOpenFiles")
def files_are_few(scene: Scene) -> Iterator[None]:
    before = open_files(scene.old.pid)
    set_open_files(scene.old.pid, before.open_count * 100 // 85)
    yield
    set_open_files(scene.old.pid, before.limit)


HOG = "x = b'x' * (100 << 20); print('true', flush=True); sys.stdin.read()"


@brings("ShmqMemoryFull")
def memory_is_little(scene: Scene) -> Iterator[None]:
    with (
        memory_group() as group,
        group.of(scene.old.pid),
        Program(f"import sys; sys.stdin.readline(); {HOG}") as hog,
        group.of(hog.process.pid),
    ):
        hog.say()
        hog.hear()
        group.limit(group.usage + 6 * MIB)
        yield
        group.limit(None)
        hog.kill()


@brings("ShmqDevShmFull")
def others_fill_dev_shm(scene: Scene) -> Iterator[None]:
    with others_file(scene.dev_shm / "others", room_until(scene.dev_shm, used_percent=95)):
        yield


@brings("ShmqRingFull", "ShmqLogFull")
def the_disk_is_slower_than_a_producer(scene: Scene) -> Iterator[None]:
    def stand_still(pause: Callable[[float], object]) -> None:
        with scene.old_disk.frozen():
            pause(0.2)

    with _flood(scene), _again_and_again(stand_still):
        yield


@brings("ShmqStoreNotWritable", "ShmqProblem")
def the_disk_is_full(scene: Scene) -> Iterator[None]:
    with _flood(scene), others_file(scene.old_disk.folder / "others"):
        yield


@contextlib.contextmanager
def _flood(scene: Scene) -> Iterator[None]:
    """Somebody sends as fast as broker-b takes it."""
    body = bytes(16_000)
    with BrokerClient(scene.old, "floods") as client:
        (where,) = client.send_queues("orders")
        lane = client.lanes[0]

        def put(_: object) -> None:
            lane.put(where.row, where.generation, body, timeout=0.01)

        with _again_and_again(put, pause_s=0.0):
            yield


# ---- starts, ends, and who watches ---------------------------------------------------------------


@brings("ShmqBrokerRestarts", "ShmqElections")
def a_broker_starts_again_and_again(scene: Scene) -> Iterator[None]:
    """Each time it is seen."""
    begun = 'shmq_start_time_seconds{broker="broker-b"}'

    def restart(_: object) -> None:
        (before,) = scene.asked(begun)
        scene.old.stop()
        scene.old.restart()
        wait_for(lambda: scene.asked(begun) not in ([], [before]), "the restart")

    with _again_and_again(restart):
        yield


@brings("ShmqExporterProblems")
def somebody_removes_memory(scene: Scene) -> Iterator[None]:
    """Not for good: it is given back."""
    own = f"shmq.{scene.master.cluster_name}.{scene.master.name}.0."
    (stats,) = [path for path in scene.dev_shm.glob(f"{own}*") if "stats" in path.name]
    others = scene.dev_shm / "others"
    stats.rename(others)
    yield
    others.rename(stats)


@brings("ShmqMemberGone", "ShmqReplicasFewer")
def the_slave_is_stopped(scene: Scene) -> Iterator[None]:
    scene.slave.stop()
    yield
    scene.slave.restart()
    scene.pair.await_in_sync()


@brings("ShmqServiceDown")
def the_name_server_dies(scene: Scene) -> Iterator[None]:
    scene.cluster.namesrv.end(signal.SIGKILL)
    yield
    scene.start_namesrv()


@brings("ShmqBrokerDown", "ShmqNoMaster")
def the_master_dies(scene: Scene) -> Iterator[None]:
    scene.master.kill()
    yield
    scene.master.restart()


@brings("ShmqNoNameServer")
def the_name_server_is_stopped(scene: Scene) -> Iterator[None]:
    assert scene.cluster.namesrv.end() == 0
    yield
    scene.start_namesrv()


@brings("ShmqNoBroker")
def all_brokers_are_stopped(scene: Scene) -> Iterator[None]:
    scene.load.stop()
    scene.client.close()  # for whose sake their memory would stay
    for broker in (scene.slave, scene.master, scene.old):
        broker.stop()
    yield
    scene.old.restart()


@brings("ShmqExporterDown")
def the_exporter_hangs(scene: Scene) -> Iterator[None]:
    with stopped(scene.exporter.process.pid):  # it takes connections and says nothing
        yield


@contextlib.contextmanager
def _again_and_again(
    step: Callable[[Callable[[float], object]], object], *, pause_s: float = 0.05
) -> Iterator[None]:
    """In a thread, until the end of the block; a step is given what waits for a while."""
    is_over = threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            while not is_over.is_set():
                step(threading.Event().wait)
                is_over.wait(pause_s)
        except BaseException as error:  # noqa: BLE001 # shown in the test's thread
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
    if errors:
        raise errors[0]


@contextlib.contextmanager
def _told(what: Callable[[], str]) -> Iterator[None]:
    try:
        yield
    except AssertionError:
        raise AssertionError(what()) from None


# ---- the tests -----------------------------------------------------------------------------------

BEFORE = (
    (
        an_old_store_is_damaged_and_hardly_read,
        there_are_more_queues_than_are_shown,
        a_stranger_sends_what_it_may_not,
        a_client_breaks_a_rule,
    ),
    (
        old_files_go_unread,
        a_message_is_given_up,
        the_topic_of_a_delayed_message_is_deleted,
        a_program_with_many_clients_is_killed,
    ),
    (a_broker_starts_again_and_again, somebody_removes_memory),
)
"""Before the slave stands still: who begins to consume waits for it."""
BESIDE = (
    (the_disk_takes_nothing,),
    (the_disk_stands_still_again_and_again,),
    (
        others_fill_the_disk,
        others_make_many_files,
        the_store_is_read_only,
        files_are_few,
        memory_is_little,
        others_fill_dev_shm,
    ),
    (the_disk_is_slower_than_a_producer,),
    (the_disk_is_full,),
)
"""While it does: that is to take half a minute, in which what was before goes."""
ENDS = (
    (the_slave_is_stopped, the_name_server_dies),
    (the_master_dies, the_name_server_is_stopped),
    (all_brokers_are_stopped,),
    (the_exporter_hangs,),
)
"""One after the other: who is gone has no alerts."""


def test_each_alert_has_a_cause_here_or_a_reason_why_not() -> None:
    alerts = re.findall(r"- alert: (\w+)", (MONITORING / "shmq-alerts.yml").read_text("utf-8"))
    assert sorted([*CAUSES, *BY_PROMTOOL_ALONE]) == sorted(alerts)
    waves = ((the_slave_stands_still,), *BEFORE, *BESIDE, *ENDS)
    assert {cause for wave in waves for cause in wave} == set(CAUSES.values())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_alerts_come_and_go_in_a_real_prometheus(
    tmp_path: Path, cluster_name: str, rng: random.Random
) -> None:
    with Scene(tmp_path, cluster_name, rng) as scene:
        asked = scene.prometheus
        wait_for(lambda: asked.query("cluster_topic:shmq_messages_in:rate1m > 0"), "a rate")
        wait_for(lambda: asked.query('up{job="shmq"} == 1'))
        assert scene.firing() == set()
        rules = [rule for group in asked.ask("rules")["groups"] for rule in group["rules"]]
        wrong = [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] == "err"]
        assert len(rules) > len(CAUSES)
        assert not wrong

        standing = alerts_of(the_slave_stands_still)
        seen = scene.see(*BEFORE)
        with the_slave_stands_still(scene):
            seen |= scene.see(*BESIDE)
            scene.wait_firing(standing)
        scene.wait_over(standing | seen)
        for wave in ENDS:
            scene.wait_over(scene.see(wave))
