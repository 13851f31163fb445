"""Clients that died together with their broker: what they had published, in rings that the service
manager kept, as systemd's protocol has it.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmq.remoting.codes import RequestCode
from tests.support.broker_process import BrokerClient, BrokerProcess, ClientProcess
from tests.support.store_process import wait_until

pytestmark = pytest.mark.crash

TOPIC = "orders"
# What it is given goes to 3 and up, whatever lay there; then it is the broker.
_BEGIN = """
import os, sys
count = int(sys.argv[1])
high = [os.dup(int(fd)) for fd in sys.argv[2:2 + count]]
high = [os.dup2(fd, 500 + place) for place, fd in enumerate(high)]
for place, fd in enumerate(high):
    os.dup2(fd, 3 + place)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, *sys.argv[2 + count:]])
"""


class KeptBroker(BrokerProcess):
    """A broker whose service manager keeps what it is told to keep.

    It reads as it is told: its socket holds a dozen messages, and what comes on top is lost.
    """

    def __init__(self, folder: Path, cluster_name: str, **settings: str) -> None:
        self.kept: defaultdict[str, list[int]] = defaultdict(list)
        self._lock = threading.Lock()
        self._is_over = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(folder / "notify"))
        self.socket.setblocking(False)
        self._reader.start()
        environment = {"NOTIFY_SOCKET": str(folder / "notify")}
        super().__init__(folder, cluster_name, environment=environment, **settings)

    def _read(self) -> None:
        while not self._is_over:
            select.select([self.socket], [], [])
            self.take_messages()

    def take_messages(self) -> None:
        """All that has come so far."""
        with self._lock:
            while True:
                try:
                    message, fds, _, _ = socket.recv_fds(self.socket, 4096, 4)
                except BlockingIOError:
                    return
                if not message:  # it is shut down
                    return
                states = dict(line.split("=", 1) for line in message.decode().splitlines())
                if "FDSTORE" in states:
                    self.kept[states["FDNAME"]] += fds
                if "FDSTOREREMOVE" in states:
                    for fd in self.kept.pop(states["FDNAME"], []):
                        os.close(fd)

    def end_reading(self) -> None:
        self._is_over = True
        self.socket.shutdown(socket.SHUT_RD)
        self._reader.join()
        self.socket.close()

    def _start(self) -> subprocess.Popen[bytes]:
        self.take_messages()
        names = [name for name, fds in self.kept.items() for _ in fds]
        fds = [fd for fds in self.kept.values() for fd in fds]
        count = {"LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": ":".join(names)}
        options = [
            "--store", str(self.store_path), "--runtime", str(self.runtime_path),
            "--cluster", self.cluster_name, "--name", self.name,
            *(f"--set={key}={value}" for key, value in self.settings.items()),
        ]  # fmt: skip
        begin = [sys.executable, "-c", _BEGIN, str(len(fds)), *map(str, fds)]
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                [*begin, "-m", self.module, *options],
                env=self.environment | count,
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )


@pytest.fixture
def broker(tmp_path: Path, cluster_name: str) -> Iterator[KeptBroker]:
    with KeptBroker(tmp_path, cluster_name) as started:
        yield started
    started.take_messages()
    started.end_reading()
    assert not started.kept  # an orderly end leaves nothing with the manager


def die_together(broker: KeptBroker, count: int, *, last_perm: int = 6) -> None:
    """A client publishes, with nobody there to take it; then both are dead."""
    with ClientProcess(broker, "dying") as client:
        assert client.run("put", TOPIC, ["0"]) == 1
        with BrokerClient(broker, "admin", attach=False) as admin:
            admin.json(RequestCode.UPDATE_AND_CREATE_TOPIC, {"topic": TOPIC, "perm": last_perm})
        broker.kill()
        assert client.run("put", TOPIC, [str(number) for number in range(1, count)]) == count - 1
        client.kill()


def bodies(broker: KeptBroker) -> list[bytes]:
    with BrokerClient(broker, "reader") as reader:
        queues = reader.send_queues(TOPIC)
        return sorted(body for queue in queues for body in reader.bodies(queue))


def test_what_both_had_is_taken_by_the_successor(broker: KeptBroker) -> None:
    die_together(broker, 50)
    broker.restart()
    wait_until(lambda: "orphan taken" in broker.log)
    assert bodies(broker) == sorted(b"%d" % number for number in range(50))
    broker.take_messages()
    assert broker.status()["lostSessionCount"] == 0


def test_what_nobody_kept_is_gone(broker: KeptBroker) -> None:
    die_together(broker, 50)
    broker.take_messages()
    for fd in [fd for fds in broker.kept.values() for fd in fds]:
        os.close(fd)
    broker.kept.clear()
    broker.restart(session_grace_ms="200")
    wait_until(lambda: broker.status()["lostSessionCount"] == 0)
    assert bodies(broker) in ([], [b"0"])  # that one nobody waited for
    assert "orphan" not in broker.log


def test_client_that_lives_takes_its_ring_back_itself(broker: KeptBroker) -> None:
    with BrokerClient(broker, "c") as client:
        where = client.send_queues(TOPIC)[0]
        broker.kill()
        for number in range(50):
            client.lanes[0].put(where.row, where.generation, b"%d" % number, keep=True)
        broker.restart()
        client.resume(broker, queues=[where])
        assert client.send(where, b"50") == 50
        assert client.bodies(where) == [b"%d" % number for number in range(51)]
    assert "orphan" not in broker.log


def test_topic_that_is_closed_by_now_takes_nothing_of_an_orphan(broker: KeptBroker) -> None:
    die_together(broker, 10, last_perm=4)
    broker.restart()
    wait_until(lambda: "orphan taken" in broker.log)
    assert broker.status()["lostSessionCount"] == 0
    with BrokerClient(broker, "admin", attach=False) as admin:
        table = admin.json(RequestCode.GET_BROKER_RUNTIME_INFO)["table"]
    refused, taken = int(table["recordsRefusedTotal"]), int(table["putMessageTimesTotal"])
    assert (refused, taken) in ((9, 1), (10, 0))  # the first may have come before the change
