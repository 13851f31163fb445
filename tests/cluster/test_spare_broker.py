"""A killed broker's place is taken by a process that was ready; a stopped one's by a new one."""

import os
import signal
from pathlib import Path

import pytest

import shmq
from tests.support.cluster import wait_for

pytestmark = pytest.mark.cluster

PATIENCE_S = 60.0


def spares(run: Path) -> list[int]:
    """Processes that wait to become a broker of this runtime folder, or were started so."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path("/proc", name, "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"shmq.broker.spare" in words and os.fsencode(run) in words:
            found.append(int(name))
    return found


def test_killed_broker_is_replaced_by_the_spare_and_a_stopped_one_is_started_anew():
    with shmq.local() as client:
        run = client.namesrv
        producer = client.producer()
        producer.send("t", b"1", key="k")
        (spare,) = wait_for(lambda: spares(run), "a spare")
        link = client.link("broker-a")
        os.kill(link.connection.identity.pid, signal.SIGKILL)
        assert producer.send("t", b"2", key="k", timeout=PATIENCE_S).queue_offset == 1
        # The send may be done, in memory that both share, before the client has connected again.
        wait_for(lambda: link.connection.identity.pid == spare, "the spare as the broker")

        wait_for(lambda: set(spares(run)) - {spare}, "another spare")
        os.kill(spare, signal.SIGTERM)  # as for another release of shmq
        wait_for(lambda: link.connection.identity.pid != spare, "a broker after the one stopped")
        assert producer.send("t", b"3", key="k", timeout=PATIENCE_S).queue_offset == 2
        assert link.connection.identity.pid not in spares(run)
    wait_for(lambda: not spares(run), "the end of the spare")
