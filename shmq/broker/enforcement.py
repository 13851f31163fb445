"""Keeps the ACL file's rules in force: reads it again when it changes, and takes back what it took.

What lives here: `Enforcement`. A request is judged when it comes (rights.py); what was granted
before lives on in sessions, and is taken back here, at once and for all of them:

    map       the session ends: it had everything, and its connection says why. What the client
              has mapped nobody can take from it: it can read those segments, and what is still
              written into them, until they retire; they are never used again
    send      the rows leave the session: a record that comes behind it gets NOT_GRANTED, and
              whoever asks for the grant anew hears which rule denies it
    pull      bells and claims of the topic end, claims with their last progress
    consume   the client leaves the group, its claims end; also where it may not pull a topic that
              it subscribes to, since it would keep a share of the queues and consume nothing

In the loop's thread; the file is looked at and read in a worker thread. Nothing fails: a file that
is wrong leaves the old rules in force, and the log and GET_BROKER_STATUS say so until it is right.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from shmq.broker.rights import Action

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shmq.acl import AclFile
    from shmq.broker.broker import Broker
    from shmq.broker.claims import Claim
    from shmq.broker.client_registry import Client
    from shmq.broker.sessions import ClientSession
    from shmq.errors import PermissionDeniedError
    from shmq.remoting.identity import Identity

__all__ = ["Enforcement"]

_log = logging.getLogger("shmq.broker")


class Enforcement:
    """Of one broker.

    Args:
        broker: whose sessions are held against the rules.
        file: of the rules.
    """

    def __init__(self, broker: Broker, file: AclFile) -> None:
        self._broker = broker
        self._file = file
        self._busy = asyncio.Lock()

    async def watch(self) -> None:
        """Reload whenever the file changes."""
        interval_s = self._broker.config.acl_check_interval_ms / 1000
        while True:  # until the broker stops
            await asyncio.sleep(interval_s)
            if await asyncio.to_thread(self._file.has_changed):
                await self.reload()

    async def reload(self) -> None:
        """Read the file, and hold every session against it if it is right."""
        async with self._busy:
            is_new = await asyncio.to_thread(self._file.reload)
            if not is_new:
                _log.error("acl file not in force, the old rules stay: %s", self._file.problem)
                return
            _log.info("acl file reloaded path=%s", self._file.path)
            self.apply()
            self._file.reload_count += 1

    def apply(self) -> None:
        """Take back what the rules in force do not allow any more."""
        for client in self._broker.registry.clients():
            self.hold_members(client, tuple(client.consumers))
        for session in self._broker.sessions.sessions:
            self._hold(session)

    def hold_members(self, client: Client, groups: Iterable[str]) -> None:
        """Have a client leave those of its groups that it may not take part in."""
        broker, identity = self._broker, client.connection.identity
        for group in groups:
            member = client.consumers[group]
            denials = [self._denial(identity, Action.CONSUME, group)]
            denials += [self._denial(identity, Action.PULL, one) for one in member.subscriptions]
            denial = next(filter(None, denials), None)
            if denial is not None:
                _log.info("right taken back client=%s: %s", client.client_id, denial)
                session = broker.sessions.find(client.connection)
                if session is not None:
                    broker.notices.claims_revoked(
                        session, broker.claims.end_session(session, group)
                    )
                broker.registry.unregister(client.connection, "", group)

    def _hold(self, session: ClientSession) -> None:
        broker, identity = self._broker, session.connection.identity
        if session.is_mapped:
            denial = self._denial(identity, Action.MAP, "")
            if denial is not None:
                _log.info("right taken back client=%s: %s", session.client_id, denial)
                session.connection.close(denial)
                return
        taken = {
            topic: denial
            for topic in self._topics_of(session)
            if (denial := self._denial(identity, Action.SEND, topic)) is not None
        }
        rows = [row for row in session.send_rows if self._topic(row) in taken]
        broker.sessions.revoke(session, rows)
        unread: dict[str, PermissionDeniedError] = {}
        for bell, row in tuple(session.bells):
            if self._is_unread(identity, self._topic(row), unread):
                broker.sessions.unsubscribe(session, bell, row)
        ended: list[Claim] = []
        for claim in broker.claims.of(session):
            if self._is_unread(identity, claim.queue.topic, unread):
                broker.claims.end(claim)
                ended.append(claim)
        if ended:
            broker.notices.claims_revoked(session, ended)
        for topic, denial in (taken | unread).items():
            _log.info("right taken back client=%s: %s", session.client_id, denial)
            broker.notices.topic_changed(topic, [session.connection])

    def _is_unread(
        self, identity: Identity, topic: str, unread: dict[str, PermissionDeniedError]
    ) -> bool:
        if topic not in unread:
            denial = self._denial(identity, Action.PULL, topic)
            if denial is None:
                return False
            unread[topic] = denial
        return True

    def _topics_of(self, session: ClientSession) -> set[str]:
        return {self._topic(row) for row in session.send_rows}

    def _topic(self, row: int) -> str:
        return self._broker.store.queues.name(row)[0]

    def _denial(
        self, identity: Identity, action: Action, name: str
    ) -> PermissionDeniedError | None:
        rights = self._broker.rights
        said = rights.explain(identity, action, name)
        return None if said.is_allowed else rights.denial(identity, action, name, said)
