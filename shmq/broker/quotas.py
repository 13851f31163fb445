"""How much one uid may have of a broker: sessions, their memory, topics, groups.

What lives here: `Quotas`, which every request that makes one of them asks first. A figure comes
from the ACL file (quota of an account, else of the file) or the broker's settings; for root and the
broker's own uid only from an account that names that very uid. A refusal names the quota, what the
uid has, and the setting.

In the loop's thread; nothing blocks but what writes down who made a topic, which is awaited.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from shmq.errors import QuotaError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shmq.broker.owners import OwnerTable
    from shmq.broker.rights import Rights
    from shmq.broker.sessions import SessionTable
    from shmq.config import BrokerConfig
    from shmq.remoting.identity import Identity

__all__ = ["Quotas"]

_SESSION_SHARE = (3, 4)
"""Of all session slots, what one uid may have where nobody says: the others always find one."""


class Quotas:
    """All quotas of one broker.

    Args:
        config: of the broker.
        rights: whose ACL file may say otherwise.
        owners: who made what.
        sessions: who has which.
        session_count: session slots of the store.

    Attributes:
        session_share: sessions of one uid where neither the ACL file nor the configuration says.
    """

    def __init__(
        self,
        config: BrokerConfig,
        rights: Rights,
        owners: OwnerTable,
        sessions: SessionTable,
        *,
        session_count: int,
    ) -> None:
        self._config = config
        self._rights = rights
        self._owners = owners
        self._sessions = sessions
        numerator, denominator = _SESSION_SHARE
        self.session_share = max(1, session_count * numerator // denominator)

    def require_session(self, identity: Identity, memory_bytes: int) -> None:
        """Return if a uid may have another session with so much memory.

        Raises:
            QuotaError: it may not.
        """
        default = self._config.session_count_max_per_uid or self.session_share
        self._require(
            identity,
            "session_count_max",
            default,
            has=sum(1 for _ in self._sessions.of_uid(identity.uid)),
            more=1,
            what="open a session",
            unit="sessions",
        )
        self.require_memory(identity, memory_bytes, "open a session")

    def require_memory(self, identity: Identity, memory_bytes: int, what: str) -> None:
        """Return if a uid may have so much more memory for its clients.

        Raises:
            QuotaError: it may not.
        """
        self._require(
            identity,
            "ring_bytes_max",
            self._config.ring_bytes_max_per_uid,
            has=sum(session.memory_bytes for session in self._sessions.of_uid(identity.uid)),
            more=memory_bytes,
            what=what,
            unit="bytes of rings, pages and chunk memory",
        )

    @asynccontextmanager
    async def making(self, identity: Identity, kind: str, *names: str) -> AsyncIterator[None]:
        """Around the making of topics or groups that are not there: they count, if it succeeds.

        Args:
            identity: who makes it.
            kind: topic or group.
            names: of them.

        Raises:
            QuotaError: the uid would have more than it may.
            DiskFullError, StoreError: it cannot be written down; they are not made.
        """
        figure = self._figure(identity, f"{kind}_count_max", self._default_count(kind))
        fresh = [name for name in names if self._owners.owner(kind, name) is None]
        if figure is None or not fresh:
            yield
            return
        self._require(
            identity,
            f"{kind}_count_max",
            self._default_count(kind),
            has=self._owners.count(kind, identity.uid),
            more=len(fresh),
            what=f"make {kind} {fresh[0]}" if len(fresh) == 1 else f"make {len(fresh)} {kind}s",
            unit=f"{kind}s",
        )
        self._owners.add(kind, fresh, identity.uid)
        try:
            await self._owners.save()
            yield
        except BaseException:
            await self._owners.remove(kind, *fresh)
            raise

    def _default_count(self, kind: str) -> int:
        config = self._config
        if kind == "topic":
            return config.topic_count_max_per_uid
        return config.group_count_max_per_uid

    def _figure(self, identity: Identity, key: str, default: int) -> tuple[int, str] | None:
        """(figure, setting); None: there is none for this uid."""
        acl, uid = self._rights.acl, identity.uid
        if self._rights.is_exempt(uid) and (acl is None or not acl.names_quota(uid, key)):
            return None
        said = None if acl is None else acl.quota_of(uid, identity.gids, key)
        return said or (default, f"{key}_per_uid")

    def _require(
        self,
        identity: Identity,
        key: str,
        default: int,
        *,
        has: int,
        more: int,
        what: str,
        unit: str,
    ) -> None:
        found = self._figure(identity, key, default)
        if found is not None and has + more > found[0]:
            figure, setting = found
            raise QuotaError(
                f"{what}: uid {identity.uid} has {has} {unit} and wants {more} more; its quota is "
                f"{figure} ({setting})",
                hint="close or delete some, or have the quota raised; see docs/operate/rights.md",
            )
