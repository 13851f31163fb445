"""Notices to a group: the first at once, the rest together."""

import asyncio
from dataclasses import dataclass, field
from typing import cast

from shmq.broker.client_registry import Client
from shmq.broker.notices import Notices
from shmq.remoting.command import Command
from shmq.remoting.server import Connection


@dataclass(eq=False)
class Ear:
    """A connection as far as notices go."""

    heard: list[Command] = field(default_factory=list)

    def notify(self, command: Command) -> bool:
        self.heard.append(command)
        return True


def test_first_change_is_told_at_once_and_a_storm_of_them_once_more() -> None:
    ear = Ear()
    client = Client("a", cast("Connection", ear), 0)

    async def scenario() -> None:
        notices = Notices(lambda _group: [client])
        notices.group_changed("g")
        assert len(ear.heard) == 1
        for _ in range(1000):
            notices.group_changed("g")
        assert len(ear.heard) == 1
        notices.group_changed("other")
        assert len(ear.heard) == 2
        while len(ear.heard) < 3:
            await asyncio.sleep(0)
        for _ in range(3):  # intervals without a change tell nothing
            await asyncio.sleep(Notices.INTERVAL_S)
        assert [command.ext_fields["consumerGroup"] for command in ear.heard] == ["g", "other", "g"]

    asyncio.run(scenario())
