"""A producer of test_store_format.py, in a process of its own."""

from __future__ import annotations

from typing import Any

from shmq.core import core
from tests.interop import format_messages
from tests.interop.format_messages import TAGS
from tests.support.client_process import Talk, client_main
from tests.support.store_process import ClientSide

_OK = core.STATUS["OK"][0]
TIMEOUT_S = 60.0


def _send_all(client: ClientSide, talk: Talk, options: dict[str, Any]) -> None:
    """Send the planned messages: singly, in batches and as Message objects, through one lane, so
    that each queue has them in order.
    """
    pool = memoryview(format_messages.pool(options["seed"]))
    plan = format_messages.plan(
        options["seed"],
        options["producer"],
        count=options["count"],
        queue_count=len(options["handles"]),
        body_bytes=options["body_bytes"],
    )
    handles = options["handles"]
    lane = client.lanes[0]
    queues, tags = plan.queues.tolist(), plan.tags.tolist()
    places, sizes = plan.places.tolist(), plan.sizes.tolist()
    for number in range(len(plan)):
        flag = plan.producer << 24 | number
        body = pool[places[number] : places[number] + sizes[number]]
        handle = handles[queues[number]]
        tag = TAGS[tags[number]] or None
        keys, properties = plan.keys(number), plan.properties(number)
        if number % 8 == 7:
            message = core.Message("format", body, tag=tag, keys=keys, flag=flag)
            status, _, count = lane.put_many(*handle, [message], timeout=TIMEOUT_S)
            assert (status, count) == (_OK, 1), number
            continue
        sequence = lane.put(*handle, body, tag, keys, properties, flag, timeout=TIMEOUT_S)
        assert sequence >= 0, (number, sequence)
    assert lane.drain(TIMEOUT_S) == _OK
    talk.say(sent=len(plan))
    talk.hear()


if __name__ == "__main__":
    client_main(_send_all)
