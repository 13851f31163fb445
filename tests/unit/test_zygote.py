"""The process that the tests' processes come from."""

from __future__ import annotations

import signal
import socket

import pytest

from tests.support.zygote import Zygote


class Interrupted(Exception):
    """As what the watchdog raises in a test."""


def test_test_that_was_ended_while_it_waited_leaves_the_next_its_own_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Zygote() as zygote:
        first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with first, second:
            with monkeypatch.context() as patch:
                patch.setattr("tests.support.zygote.receive_packet", _interrupted)
                with pytest.raises(Interrupted):
                    zygote.fork("worker", second.fileno())
            worker = zygote.fork("worker", second.fileno())
            assert worker.pid > 0
            worker.send_signal(signal.SIGKILL)
            assert worker.wait() == -signal.SIGKILL


def _interrupted(sock: socket.socket) -> None:
    raise Interrupted
