"""Who may do what: the one place that is asked.

What lives here: `Rights` of one broker. For now whoever may open the broker's socket, which is its
owner and its group, may do everything. In the broker; never blocks.
"""

from enum import StrEnum, unique

from shmq.errors import PermissionDeniedError
from shmq.remoting.identity import Identity

__all__ = ["Action", "Rights"]


@unique
class Action(StrEnum):
    """What somebody wants to do."""

    MAP = "map"
    """Map the log, and so read everything in it; of the broker."""
    SEND = "send"
    """Send to a topic."""
    PULL = "pull"
    """Read a topic."""
    CONSUME = "consume"
    """Take part in a consumer group."""
    ADMIN = "admin"
    """Change topics, groups and offsets by hand; look at everything."""


class Rights:
    """Asked with every request."""

    def may(self, identity: Identity, action: Action, name: str) -> bool:
        """Whether a peer may do something with a topic (SEND, PULL), a group (CONSUME) or the
        broker itself (MAP, ADMIN; the name is for the message).
        """
        del identity, action, name  # the socket's group is the rule: who got here is in it
        return True

    def require(self, identity: Identity, action: Action, name: str) -> None:
        """Return if it may.

        Raises:
            PermissionDeniedError: it may not.
        """
        if not self.may(identity, action, name):
            raise PermissionDeniedError(f"{action} {name}: no rule allows it to {identity}")
