"""Who may do what: the one place that is asked.

What lives here: `Rights` of one broker: its ACL file (shmq.acl) or, where none is configured, the
rule that whoever may open the broker's socket, which is its owner and its group, may do everything.
Root and the broker's own uid always may: they can read its memory whatever is written.

In the broker. Asking never blocks; `AclFile.reload` reads a file and belongs in a worker thread.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from shmq.acl import Action, Decision
from shmq.errors import PermissionDeniedError

if TYPE_CHECKING:
    from shmq.acl import Acl, AclFile
    from shmq.remoting.identity import Identity

__all__ = ["Action", "Rights"]

_NO_FILE = "no acl_file is configured: whoever may open the broker's socket may do everything"
_WHAT = {Action.MAP: "map the log of", Action.ADMIN: "administrate", Action.PULL: "pull from topic"}
_WHAT |= {Action.SEND: "send to topic", Action.CONSUME: "consume as group"}


class Rights:
    """Asked with every request.

    Args:
        file: the ACL file as it is in force; None: there is none.
        broker_name: for messages.
    """

    def __init__(self, file: AclFile | None, broker_name: str) -> None:
        self.file = file
        """What is in force; replaced by nobody, it reloads itself."""
        self._broker_name = broker_name
        self._own_uid = os.geteuid()

    @property
    def acl(self) -> Acl | None:
        """The rules in force; None: the socket's group may do everything."""
        return None if self.file is None else self.file.acl

    def is_exempt(self, uid: int) -> bool:
        """Whether no rule is asked for this uid."""
        return uid in (0, self._own_uid)

    def explain(self, identity: Identity, action: Action, name: str) -> Decision:
        """Whether a peer may do something, and which rule says so.

        Args:
            identity: of the peer, from the kernel.
            action: what it wants.
            name: the topic (SEND, PULL) or the group (CONSUME); for MAP and ADMIN only a word for
                the message.
        """
        if self.acl is None:
            return Decision(True, _NO_FILE)
        if self.is_exempt(identity.uid):
            return Decision(True, f"uid {identity.uid} is root's or the broker's own")
        return self.acl.explain(identity.uid, identity.gids, action, name)

    def may(self, identity: Identity, action: Action, name: str) -> bool:
        """Whether a peer may do something; as `explain`."""
        return self.explain(identity, action, name).is_allowed

    def require(self, identity: Identity, action: Action, name: str) -> None:
        """Return if it may; as `explain`.

        Raises:
            PermissionDeniedError: it may not; names the rule.
        """
        said = self.explain(identity, action, name)
        if not said.is_allowed:
            raise self.denial(identity, action, name, said)

    def denial(
        self, identity: Identity, action: Action, name: str, said: Decision
    ) -> PermissionDeniedError:
        """The error that tells a peer what it may not, and by which rule."""
        what = name
        if action in (Action.MAP, Action.ADMIN):
            what = f"broker {self._broker_name}{f' ({name})' if name else ''}"
        return PermissionDeniedError(
            f"{_WHAT[action]} {what}: denied to {identity} by {said.rule}",
            hint="whoever administrates the broker can change its acl_file; see docs/operate/"
            "rights.md and `shmq acl explain`",
        )
