"""Which member of a replica set is told to become master: a decision without processes.

The members of a broker_name in a cluster file start as standbys. Nobody is told while one of them
is master, or while one that was told lives and still may become it. Else:

    a master's process ended, and its memory is there: any member that answers will do, since it
        goes on with that memory; at once. One that cannot, for its log is too far behind, says so,
        and another is told: the old master itself, once it is back
    we have just begun, and the last master's memory is there: the same, once all that run have said
        that they are not master
    nobody was master yet in this boot, or its memory was wiped: the member whose files say most, by
        the mastership under which the end of its log was written, and then by its length; once
        all answer, or have had their time. Where a master has just ended, once they have copied
        what they could

Of logs whose ends were written under one mastership each is a part of the longer ones, so the
longest has every message that any of them has, confirmed or not: the SyncStateSet need not be
known. A member that knows of a later mastership and has copied nothing written under it says no
more than its bytes do. What only a member has that does not answer in its time is not in the log
that is chosen; back, that member has those messages appended again (decision 0026).

Telling is no more than that: mastership is the kernel's to give, and a member that is told while a
master lives waits, and gives up.

Pure: times come in as nanoseconds. In the supervisor, in its loop's thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["Candidate", "Election"]

_GRACE_NS: Final = 5_000_000_000
"""For members that start: one with a longer log is worth waiting for, one that hangs is not."""
_TOLD_NS: Final = 10_000_000_000
"""For a member that was told: to adopt memory, or to recover from files at the latest."""
_HANDED_OVER_NS: Final = 3_000_000_000
"""For a person's switch-over, in which for a moment nobody is master."""
_SETTLE_NS: Final = 500_000_000
"""After a master's end its slaves copy what is mapped; an answer from before says less."""
_UNDISTURBED_NS: Final = 1_000_000_000
"""For a member that goes on with a dead one's memory; most often it needs a tenth of that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One member as it is known."""

    broker_id: int
    """Its own."""
    is_alive: bool
    """Its process runs."""
    is_master: bool | None
    """What it said last; None: it has not answered yet."""
    log_epoch: int
    """Of the mastership under which the end of its log was written."""
    log_end: int
    """How long its log is, in bytes."""
    answered_ns: int = 0
    """When it said that, attended time."""
    has_failed: bool = False
    """It was told, and did not become master; it says why."""
    is_async_learner: bool = False
    """It copies, and is never told; a person may have made it master all the same."""


class Election:
    """Of one replica set."""

    def __init__(self) -> None:
        self._is_free = False
        self._is_first = True
        self._since_ns: int | None = None
        self._told_id: int | None = None
        self._told_ns = 0
        self._successor_id: int | None = None

    def master_ended(self) -> None:
        """The process that was master ended: nobody is, whatever was planned."""
        self._is_free = True
        self._told_id = None

    def decide(
        self, members: Sequence[Candidate], *, now_ns: int, has_memory: bool
    ) -> Candidate | None:
        """Whom to tell now; None: nobody.

        Args:
            members: all of them.
            now_ns: attended time.
            has_memory: what the last master left in shared memory is there.
        """
        living = [member for member in members if member.is_alive]
        if any(member.is_master for member in living):
            self._is_free, self._is_first, self._since_ns, self._told_id = False, False, None, None
            return None
        members = [member for member in members if not member.is_async_learner]
        living = [member for member in living if not member.is_async_learner]
        if self._since_ns is None:
            self._since_ns = now_ns
        told_lives = any(
            member.broker_id == self._told_id and not member.has_failed for member in living
        )
        if told_lives and now_ns - self._told_ns < _TOLD_NS:
            return None
        waited_ns = now_ns - self._since_ns
        ready = [member for member in living if member.is_master is not None]
        if has_memory:
            has_asked_all = self._is_first and len(ready) == len(living)
            is_time = self._is_free or has_asked_all or waited_ns >= _HANDED_OVER_NS
        else:
            if not self._is_first:
                fresh_ns = self._since_ns + _SETTLE_NS
                ready = [member for member in ready if member.answered_ns >= fresh_ns]
            is_time = len(ready) == len(members) or waited_ns >= _GRACE_NS
        if not ready or not is_time:
            return None
        chosen = max(ready, key=lambda m: (not m.has_failed, m.log_epoch, m.log_end, -m.broker_id))
        if chosen.has_failed and self._told_id is not None and now_ns - self._told_ns < _TOLD_NS:
            return None  # all have: they are told again now and then
        self._told_id, self._told_ns = chosen.broker_id, now_ns
        self._successor_id = chosen.broker_id if has_memory else None
        return chosen

    def is_succession(self, members: Sequence[Candidate], *, now_ns: int) -> bool:
        """Whether one has just been told to go on with memory, and may be about it: clients wait
        for that, and what else is started takes the processors from it.
        """
        return now_ns - self._told_ns < _UNDISTURBED_NS and any(
            member.broker_id == self._successor_id and member.is_alive and not member.has_failed
            for member in members
        )
