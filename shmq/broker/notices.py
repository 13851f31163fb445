"""What a broker tells its clients unasked: members changed, claims revoked, topics changed.

Notices are one-way and at once. Of a group that changes again and again (a thousand members that
join) the first is told at once and the rest together, at most one each INTERVAL_S, so that joining
does not cost the square of the members.

In the loop's thread. Nothing blocks; a client that does not read is cut off by its connection.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import orjson

from shmq.remoting.codes import RequestCode
from shmq.remoting.command import Command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shmq.broker.claims import Claim
    from shmq.broker.client_registry import Client
    from shmq.broker.sessions import ClientSession
    from shmq.remoting.server import Connection

__all__ = ["Notices"]


class Notices:
    """Sends notices.

    Args:
        members: gives the members of a consumer group.
    """

    INTERVAL_S = 0.01
    """Between two notices of one group."""

    def __init__(self, members: Callable[[str], Iterable[Client]]) -> None:
        self._members = members
        self._waiting: dict[str, bool] = {}
        """Groups that were told within the last interval; True: they changed since."""

    def group_changed(self, group: str) -> None:
        """A member of the group came, went or changed its subscription."""
        if group in self._waiting:
            self._waiting[group] = True
            return
        self._tell_group(group)

    def _tell_group(self, group: str) -> None:
        for client in self._members(group):
            client.connection.notify(
                Command(RequestCode.NOTIFY_CONSUMER_IDS_CHANGED, {"consumerGroup": group})
            )
        self._waiting[group] = False
        asyncio.get_running_loop().call_later(self.INTERVAL_S, self._interval_over, group)

    def _interval_over(self, group: str) -> None:
        if self._waiting.pop(group):
            self._tell_group(group)

    def claims_revoked(self, session: ClientSession, claims: Iterable[Claim]) -> None:
        """Others have the queues now."""
        lists: dict[tuple[str, str], list[dict[str, int]]] = {}
        for claim in claims:
            lists.setdefault((claim.queue.group, claim.queue.topic), []).append(
                {"queueId": claim.queue.queue_id, "slot": claim.slot, "claim": claim.number}
            )
        for (group, topic), shown in lists.items():
            session.connection.notify(
                Command(
                    RequestCode.NOTIFY_CLAIMS_REVOKED,
                    {"consumerGroup": group, "topic": topic},
                    orjson.dumps({"claims": shown}),
                )
            )

    def topic_changed(self, topic: str, connections: Iterable[Connection]) -> None:
        """The topic was changed or deleted."""
        for connection in connections:
            connection.notify(Command(RequestCode.NOTIFY_TOPIC_CHANGED, {"topic": topic}))
