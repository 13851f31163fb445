"""Which living member is elected: a choice without state.

    the last master's memory is there, and a member has not refused it: of these the best, at once
    else: of the living members of the SyncStateSet the best, once all of them live and none may
        still come back to that memory, or the grace time is over
    before the first mastership: of all living ones the best; where one of them has a log already,
        since another arbiter or a lost journal had masters, behind the grace time only
    else, with enableElectUncleanMaster and after the grace time: of all living ones the best

The best has the log that was written under the newest master_epoch, then the longest one, then the
lowest brokerElectionPriority (RocketMQ's DefaultElectPolicy), then the lowest broker_id. Learners
are not among them.

Pure. In the Controller, in its thread.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass

from shmq.controller.replicas import ReplicasInfo
from shmq.status import Elected

__all__ = ["Candidate", "elect"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What the last heartbeat of a living member said."""

    broker_id: int
    log_epoch: int
    """Under which the last byte of its log was written."""
    log_end: int
    """physical_offset behind its log."""
    election_priority: int
    """brokerElectionPriority: the lowest first."""


def elect(
    info: ReplicasInfo,
    living: Mapping[int, Candidate],
    *,
    has_memory: bool,
    refused: Set[tuple[int, Elected]],
    is_grace_over: bool,
    is_unclean_allowed: bool,
) -> tuple[int, Elected] | None:
    """The broker_id that is elected and by what right; None: nobody now.

    Args:
        info: the replica set.
        living: members that send heartbeats.
        has_memory: what the last master left in shared memory is there.
        refused: who said lately that it cannot become master by that right.
        is_grace_over: members that are not there have had their time.
        is_unclean_allowed: enableElectUncleanMaster.
    """
    able = info.electable
    by_memory = [
        each
        for each in able & living.keys()
        if has_memory and (each, Elected.MEMORY) not in refused
    ]
    if by_memory:
        return _best(by_memory, living), Elected.MEMORY
    # Before the first mastership nothing that we know of is confirmed.
    in_sync = able & info.sync_state_set if info.sync_state_set else able
    awaited = able if has_memory else in_sync
    is_first = not info.sync_state_set
    has_log = is_first and any(each.log_epoch or each.log_end for each in living.values())
    if not is_grace_over and (has_log or not awaited <= living.keys()):
        return None
    by_log = [each for each in in_sync & living.keys() if (each, Elected.IN_SYNC) not in refused]
    if by_log:
        return _best(by_log, living), Elected.IN_SYNC
    if is_unclean_allowed and is_grace_over and able & living.keys():
        return _best(able & living.keys(), living), Elected.UNCLEAN
    return None


def _best(broker_ids: Set[int] | list[int], living: Mapping[int, Candidate]) -> int:
    def rank(broker_id: int) -> tuple[int, int, int, int]:
        each = living[broker_id]
        return (-each.log_epoch, -each.log_end, each.election_priority, broker_id)

    return min(broker_ids, key=rank)
