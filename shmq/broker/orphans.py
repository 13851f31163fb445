"""Orphans: sessions whose client died with the broker, and whose rings systemd kept.

What lives here: `take_orphans`. While a broker lives, what a client published before it died is
still taken; where both died, this takes it, so that a message is worth the same either way. The
client is asked for nothing: its uid is in its session's slot, and its rights are those that the
user has now.

In the loop's thread. Blocks for a moment for each orphan. Fails with nothing: an orphan whose
memory is not what it had is logged, and freed at the end of its grace.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
from typing import TYPE_CHECKING

from shmq.broker.rights import Action
from shmq.errors import ShmqError
from shmq.remoting.identity import Identity
from shmq.topic import AUTO_CREATE_TOPIC, Permission, check_sendable_topic

if TYPE_CHECKING:
    from shmq.broker.broker import Broker

__all__ = ["take_orphans"]

_log = logging.getLogger("shmq.broker")

_LOOK_S = 0.25
"""Between two looks for clients that died meanwhile."""


async def take_orphans(broker: Broker) -> None:
    """Take what orphans have published, and end them, until no session waits for its client."""
    sessions = broker.store.sessions
    while sessions.lost:  # bounded by their time of grace
        for slot in sessions.orphans():
            uid = sessions.uid_of(slot)
            try:
                await broker.sessions.drain_orphan(slot, _rows(broker, uid))
            except ShmqError as error:
                _log.warning("orphan not taken session=%d uid=%d: %s", slot, uid, error)
            else:
                _log.info("orphan taken session=%d uid=%d", slot, uid)
        await asyncio.sleep(_LOOK_S)


def _rows(broker: Broker, uid: int) -> set[int]:
    """The rows of every queue that this user may send to."""
    identity = _identity(uid)
    found: set[int] = set()
    for topic, config in broker.topics.configs.items():
        try:
            check_sendable_topic(topic)
        except ShmqError:
            continue
        may_send = broker.rights.may(identity, Action.SEND, topic)
        if may_send and topic != AUTO_CREATE_TOPIC and Permission.WRITE in config.perm:
            found |= {handle.row for _, handle in broker.topics.send_queues(topic)}
    return found


def _identity(uid: int) -> Identity:
    """The user as the machine knows it: which groups its process had went with that."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Identity(uid=uid, gid=-1, pid=0, incarnation=None)
    groups = frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid))
    return Identity(uid=uid, gid=entry.pw_gid, pid=0, incarnation=None, groups=groups)
