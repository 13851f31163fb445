"""Locks of queues, for members that consume in order: LOCK_BATCH_MQ, UNLOCK_BATCH_MQ.

In the loop's thread. Nothing waits: what is locked by another is just not in the answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmq.broker.claims import ClaimedQueue
from shmq.broker.processors.fields import client_id_of, fields_of, items_of, json_response, ranged
from shmq.broker.rights import Action
from shmq.errors import OwnerError, PermissionDeniedError, TopicNotExistError
from shmq.remoting.codes import RequestCode
from shmq.remoting.server import Processor

if TYPE_CHECKING:
    from shmq.broker.broker import Broker
    from shmq.json_fields import Fields
    from shmq.remoting.command import Command
    from shmq.remoting.server import Connection

__all__ = ["LockProcessor"]

_WORD_MAX = (1 << 32) - 1


class LockProcessor:
    """Serves the requests about locks. Bodies are RocketMQ's."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def table(self) -> dict[int, Processor]:
        """By code."""
        return {
            RequestCode.LOCK_BATCH_MQ: Processor(handler=self._lock),
            RequestCode.UNLOCK_BATCH_MQ: Processor(handler=self._unlock),
        }

    def _lock(self, connection: Connection, command: Command) -> Command:
        broker = self._broker
        client_id, items = self._asked(connection, command)
        locked = []
        for queue in items:
            broker.rights.require(connection.identity, Action.CONSUME, queue.group)
            broker.rights.require(connection.identity, Action.PULL, queue.topic)
            if not broker.groups.find(queue.group).consume_enable:
                raise PermissionDeniedError(
                    f"lock {queue.topic} for {queue.group}: its consumeEnable is false"
                )
            if self._may_lock(queue, client_id) and broker.locks.try_lock(queue, client_id):
                locked.append(queue)
        return json_response(command, {"lockOKMQSet": [self._shown(queue) for queue in locked]})

    def _may_lock(self, queue: ClaimedQueue, client_id: str) -> bool:
        broker = self._broker
        try:
            broker.topics.read_queue(queue.topic, queue.queue_id)
        except TopicNotExistError:
            return False
        # The predecessor's locks are known to those who had them only: nobody gets a new one while
        # one of them lives and has not come back with its own.
        return broker.locks.holder(queue) == client_id or not broker.sessions.awaits_living()

    def _unlock(self, connection: Connection, command: Command) -> Command:
        client_id, items = self._asked(connection, command)
        for queue in items:
            self._broker.locks.unlock(queue, client_id)
        return json_response(command, {})

    def _asked(self, connection: Connection, command: Command) -> tuple[str, list[ClaimedQueue]]:
        """Who asks, and for which queues of this broker."""
        body = command.json()
        take = fields_of(body, command.name)
        group, client_id = take.text("consumerGroup"), client_id_of(take, "clientId")
        session = self._broker.sessions.require(connection)
        if session.client_id != client_id:
            raise OwnerError(f"{command.name} as {client_id}: {connection} is {session.client_id}")
        name = self._broker.config.broker_name
        return client_id, [
            _queue(group, item)
            for item in items_of(body, "mqSet", command.name)
            if item.text("brokerName", name) == name
        ]

    def _shown(self, queue: ClaimedQueue) -> dict[str, object]:
        return {
            "topic": queue.topic,
            "brokerName": self._broker.config.broker_name,
            "queueId": queue.queue_id,
        }


def _queue(group: str, item: Fields) -> ClaimedQueue:
    return ClaimedQueue(group, item.text("topic"), ranged(item, "queueId", 0, _WORD_MAX))
