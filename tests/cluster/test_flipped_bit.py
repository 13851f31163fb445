"""A bit of the master's log in memory flips before its slave has copied it: it is not copied, it is
said, and nobody becomes master with it as if the log were whole.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import shmq
from shmq.errors import ServiceNotAvailableError
from tests.support.cluster import wait_for
from tests.support.slave import Pair, start

pytestmark = pytest.mark.cluster

SENT_AT_LEAST = 200


@pytest.fixture
def pair(tmp_path: Path, cluster_name: str) -> Iterator[Pair]:
    """What is sent is in memory, and in no file."""
    yield from start(tmp_path, cluster_name, flush_interval_ms="60000")


class Sender(threading.Thread):
    """Sends numbers, one after the other, until it is told to stop."""

    def __init__(self, producer: shmq.Producer) -> None:
        super().__init__(daemon=True)
        self.acked: list[int] = []
        self._producer = producer
        self._stopping = threading.Event()
        self._error: shmq.ShmqError | None = None

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                number = len(self.acked)
                assert (
                    self._producer.send("t", body_of(number), timeout=60.0).queue_offset == number
                )
                self.acked.append(number)
        except shmq.ShmqError as error:
            self._error = error

    def go_on(self) -> None:
        until = len(self.acked) + SENT_AT_LEAST
        wait_for(lambda: self._error or len(self.acked) >= until, "sends that go on")
        assert self._error is None

    def stop(self) -> None:
        self._stopping.set()
        self.join()
        assert self._error is None


def body_of(number: int) -> bytes:
    return b"message %08d of them" % number


def flip(cluster_name: str, body: bytes, rng: random.Random) -> None:
    """One bit of that message, wherever the master has it in memory."""
    (path,) = [
        path
        for path in Path("/dev/shm").glob(f"shmq.{cluster_name}.broker-a.0.*.hot.*")
        if body in path.read_bytes()
    ]
    place = path.read_bytes().index(body) + rng.randrange(len(body))
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ (1 << rng.randrange(8))]))


def test_flipped_bit_is_refused_and_said_and_elects_nobody(pair: Pair, rng: random.Random) -> None:
    with pair.cluster.connect() as client, shmq.Admin(pair.cluster.runtime) as admin:
        client.create_topic("t", queues=1)
        sender = Sender(client.producer())
        sender.start()
        sender.go_on()
        os.kill(pair.slave.pid, signal.SIGSTOP)
        sender.go_on()
        flipped = len(sender.acked) - rng.randrange(1, SENT_AT_LEAST // 2)
        flip(pair.master.cluster_name, body_of(flipped), rng)
        os.kill(pair.slave.pid, signal.SIGCONT)

        problem = wait_for(lambda: pair.slave.status()["replicaProblem"], "the slave's problem")
        assert "the master's log is damaged there, it was not copied" in problem
        copied = pair.slave.status()["committedPosition"]
        sender.go_on()  # the master serves on
        (said,) = [one for one in admin.ha_members("broker-a") if not one.is_master]
        assert said.replica_problem == problem
        assert said.committed_position == copied < pair.master.status()["committedPosition"]

        pair.master.kill()
        with pytest.raises(ServiceNotAvailableError, match="it is not master"):
            admin.switch_master("broker-a", 1)
        assert "does not hold" in pair.slave.log
        assert "memory of the dead master is left alone" in pair.slave.log
        pair.master.restart()
        sender.go_on()
        sender.stop()
        assert "memory is damaged" in pair.master.log
        with client.pull_consumer("t") as pull:
            (queue,) = pull.queues()
            found: list[bytes] = []
            at = pull.min_offset(queue)
            while at < pull.max_offset(queue):
                result = pull.pull(queue, at)
                found += [bytes(message.body) for message in result.messages]
                at = result.next_begin_offset
    assert found == [body_of(number) for number in sender.acked if number != flipped]
