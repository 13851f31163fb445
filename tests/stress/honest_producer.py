"""A producer that does what it should, beside others that do not."""

from __future__ import annotations

from typing import Any

from shmq.core import core
from tests.support.client_process import Talk, client_main
from tests.support.store_process import ClientSide

_OK = core.STATUS["OK"][0]
BATCH = 50
PAUSE_S = 0.002
TIMEOUT_S = 60.0


def body(producer: int, number: int) -> bytes:
    """What it sends: every seventeenth message is large."""
    head = b"%d:%d:" % (producer, number)
    return head * (1 + number % 23 + (2000 if number % 17 == 0 else 0))


def _send_until_told(client: ClientSide, talk: Talk, options: dict[str, Any]) -> None:
    number = 0
    lane = client.lanes[0]
    while not talk.hears(PAUSE_S):
        for _ in range(BATCH):
            sent = lane.put(
                *options["handle"], body(options["producer"], number), timeout=TIMEOUT_S
            )
            assert sent >= 0, sent
            number += 1
        assert lane.drain(TIMEOUT_S) == _OK
    talk.hear()  # left unread it would break the connection before our answer is read
    talk.say(sent=number)


if __name__ == "__main__":
    client_main(_send_until_told)
