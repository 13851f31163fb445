"""A consumer that reads some messages, keeps views of them, and is stopped for a while."""

from __future__ import annotations

from typing import Any

from tests.support.client_process import Talk, client_main
from tests.support.store_process import ClientSide


def _read_and_hold(client: ClientSide, talk: Talk, options: dict[str, Any]) -> None:
    status, messages, _ = client.reader.read(
        *options["handle"], options["queue_offset"], options["max_count"], timeout=5.0
    )
    talk.say(status=status, queue_offsets=[message.queue_offset for message in messages])
    talk.hear()
    talk.say(bodies=[message.body_bytes[:64].hex() for message in messages])
    talk.hear()


if __name__ == "__main__":
    client_main(_read_and_hold)
