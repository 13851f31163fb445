"""A client that died is told from one that lives and has lost its connection."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from shmq.broker.reaped import ReapedSessions
from shmq.shm.incarnation import Incarnation
from tests.support.clock import SteppedClock


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as made:
        yield made
        made.kill()


def test_who_dies_a_moment_after_its_socket_counts_once(process: subprocess.Popen[bytes]) -> None:
    reaped = ReapedSessions(SteppedClock())
    reaped.left(Incarnation.of(process.pid))
    reaped.look()
    assert reaped.count == 0
    process.kill()
    process.wait()
    for _ in range(2):
        reaped.look()
        assert reaped.count == 1


def test_who_lives_on_does_not_count_though_it_dies_later(
    process: subprocess.Popen[bytes],
) -> None:
    clock = SteppedClock()
    reaped = ReapedSessions(clock)
    reaped.left(Incarnation.of(process.pid))
    clock.advance(ms=10_000)
    reaped.look()
    process.kill()
    process.wait()
    reaped.look()
    assert reaped.count == 0


def test_who_died_long_before_the_look_counts(process: subprocess.Popen[bytes]) -> None:
    clock = SteppedClock()
    reaped = ReapedSessions(clock)
    reaped.left(Incarnation.of(process.pid))
    process.kill()
    process.wait()
    clock.advance(ms=60_000)
    reaped.look()
    assert reaped.count == 1


def test_who_cannot_be_seen_does_not_count() -> None:
    reaped = ReapedSessions(SteppedClock())
    for life in (None, Incarnation(0, 0), Incarnation(1, 0)):
        reaped.left(life)
    reaped.look()
    assert reaped.count == 0
