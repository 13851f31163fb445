"""The one table of what a broker serves, and in which phase of its life.

In the loop's thread; nothing blocks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from shmq.broker.processors.admin import AdminProcessor
from shmq.broker.processors.attach import AttachProcessor
from shmq.broker.processors.claim import ClaimProcessor
from shmq.broker.processors.ha import HAProcessor
from shmq.broker.processors.heartbeat import HeartbeatProcessor
from shmq.broker.processors.lock import LockProcessor
from shmq.broker.processors.message import MessageProcessor
from shmq.broker.processors.offset import OffsetProcessor
from shmq.broker.processors.pull import PullProcessor
from shmq.broker.processors.queues import QueueProcessor
from shmq.broker.processors.role import RoleProcessor
from shmq.broker.processors.send_back import SendBackProcessor
from shmq.remoting.codes import RequestCode
from shmq.service import Phase

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from shmq.broker.broker import Broker
    from shmq.remoting.command import Command
    from shmq.remoting.server import Connection, Handler, Processor

__all__ = ["processor_table"]

_ALWAYS = frozenset({RequestCode.GET_BROKER_STATUS, RequestCode.NOTIFY_BROKER_ROLE_CHANGED})
_WHILE_DRAINING = frozenset(
    {
        RequestCode.DETACH_SESSION,
        RequestCode.UNSUBSCRIBE_BELL,
        RequestCode.READ_ENTRIES,
        RequestCode.PULL_MESSAGE,
        RequestCode.HEART_BEAT,
        RequestCode.UNREGISTER_CLIENT,
        RequestCode.RELEASE_QUEUES,
        RequestCode.UNLOCK_BATCH_MQ,
        RequestCode.QUERY_CONSUMER_OFFSET,
        RequestCode.UPDATE_CONSUMER_OFFSET,
        RequestCode.GET_BROKER_RUNTIME_INFO,
    }
)
"""What ends things, and reads; nothing new begins."""


_MASTER_ONLY = frozenset(
    {
        RequestCode.RESUME_SESSION,
        RequestCode.GRANT_SEND,
        RequestCode.CONSUMER_SEND_MSG_BACK,
        RequestCode.LOCK_BATCH_MQ,
        RequestCode.INVOKE_BROKER_TO_RESET_OFFSET,
        RequestCode.CLONE_GROUP_OFFSET,
        RequestCode.UPDATE_AND_CREATE_TOPIC,
        RequestCode.UPDATE_AND_CREATE_TOPIC_LIST,
        RequestCode.DELETE_TOPIC_IN_BROKER,
        RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP,
        RequestCode.DELETE_SUBSCRIPTIONGROUP,
    }
)
"""What changes the log, or what a slave copies of its master; a slave keeps no session for anybody
to resume, and two members that both gave out locks would give out the same one twice."""

_CONSUMING = frozenset(
    {
        RequestCode.ATTACH_SESSION,
        RequestCode.HEART_BEAT,
        RequestCode.CLAIM_QUEUES,
        RequestCode.UPDATE_CONSUMER_OFFSET,
        RequestCode.READ_ENTRIES,
        RequestCode.PULL_MESSAGE,
    }
)
"""What consumers ask of a slave, too, where it lets them (slaveReadEnable)."""


def processor_table(broker: Broker) -> dict[int, Processor]:
    """All processors by code, each refused where the broker's phase does not allow it."""
    table: dict[int, Processor] = {}
    for part in (
        AttachProcessor(broker),
        QueueProcessor(broker),
        PullProcessor(broker),
        HeartbeatProcessor(broker),
        ClaimProcessor(broker),
        LockProcessor(broker),
        OffsetProcessor(broker),
        MessageProcessor(broker),
        SendBackProcessor(broker),
        AdminProcessor(broker),
        RoleProcessor(broker.config, lambda: broker.rights, on_told=broker.on_told),
        HAProcessor(broker),
    ):
        for code, row in part.table().items():
            if code not in _ALWAYS:
                row = replace(row, handler=_guarded(broker, row.handler, code))
            table[code] = row
    return table


def _guarded(broker: Broker, handler: Handler, code: int) -> Handler:
    while_draining = code in _WHILE_DRAINING
    is_masters, is_consuming = code in _MASTER_ONLY, code in _CONSUMING

    def handle(
        connection: Connection, command: Command
    ) -> Command | Awaitable[Command | None] | None:
        if not (while_draining and broker.phase is Phase.DRAINING):
            broker.require_running()
        if is_masters:
            broker.require_master()
        if is_consuming:
            broker.require_readable()
        return handler(connection, command)

    return handle
