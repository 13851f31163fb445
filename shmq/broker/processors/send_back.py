"""CONSUMER_SEND_MSG_BACK: messages that a consumer could not process.

In the loop's thread; the put waits in a thread of its own (shmq.broker.retries).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmq.broker.processors.fields import queue_of, ranged
from shmq.broker.retries import SendBack
from shmq.broker.rights import Action
from shmq.errors import ServiceNotAvailableError
from shmq.remoting.codes import RequestCode
from shmq.remoting.command import Command, response_to
from shmq.remoting.server import Connection, Processor

if TYPE_CHECKING:
    from shmq.broker.broker import Broker

__all__ = ["SendBackProcessor"]

_LONG_MAX = (1 << 63) - 1
_WORD_MAX = (1 << 31) - 1


class SendBackProcessor:
    """Serves one request."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def table(self) -> dict[int, Processor]:
        """By code."""
        code = RequestCode.CONSUMER_SEND_MSG_BACK
        return {code: Processor(handler=self._send_back, is_concurrent=True)}

    async def _send_back(self, connection: Connection, command: Command) -> Command:
        broker = self._broker
        take = command.fields()
        group = take.text("group")
        topic, queue_id = queue_of(command)
        queue_offset = ranged(take, "queueOffset", 0, _LONG_MAX)
        delay_level = ranged(take, "delayLevel", -_WORD_MAX, _WORD_MAX, 0)
        wanted_max = ranged(take, "maxReconsumeTimes", -1, _WORD_MAX, -1)
        broker.rights.require(connection.identity, Action.CONSUME, group)
        broker.rights.require(connection.identity, Action.PULL, topic)
        config = broker.groups.find(group)
        broker.topics.find_readable(topic)
        if broker.retries is None:
            raise ServiceNotAvailableError("send back: the broker is starting")
        wanted = SendBack(
            group=group,
            topic=topic,
            queue_id=queue_id,
            queue_offset=queue_offset,
            delay_level=delay_level,
            max_reconsume_times=config.retry_max_times if wanted_max < 0 else wanted_max,
        )
        went = await broker.retries.send_back(wanted, config.retry_queue_nums)
        return response_to(command, ext_fields={"topic": went})
