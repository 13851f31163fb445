"""Who is elected: the choice alone, where the Controller seldom comes to it."""

from __future__ import annotations

from typing import Any

from shmq.controller.election import Candidate, elect
from shmq.controller.replicas import BrokerIdentity, ReplicasInfo
from shmq.status import Elected

INFO = ReplicasInfo(
    cluster_name="c",
    broker_name="a",
    brokers=tuple(
        BrokerIdentity(broker_id=each, address="s", register_check_code="k", is_async_learner=False)
        for each in (1, 2, 3)
    ),
    master_broker_id=1,
    master_epoch=4,
    sync_state_set=frozenset({1, 2}),
    sync_state_set_epoch=6,
)
NOBODY: frozenset[tuple[int, Elected]] = frozenset()


def _elect(*living: int, **how: Any) -> tuple[int, Elected] | None:
    candidates = {
        each: Candidate(broker_id=each, log_epoch=4, log_end=each, election_priority=0)
        for each in living
    }
    plain: dict[str, Any] = {
        "has_memory": False,
        "refused": NOBODY,
        "is_grace_over": False,
        "is_unclean_allowed": False,
    }
    return elect(INFO, candidates, **{**plain, **how})


def test_memory_that_all_who_are_there_refused_waits_for_the_one_who_is_not() -> None:
    refused = {(1, Elected.MEMORY), (2, Elected.MEMORY)}
    assert _elect(1, 2, has_memory=True, refused=refused) is None
    assert _elect(1, 2, 3, has_memory=True, refused=refused) == (3, Elected.MEMORY)
    later = _elect(1, 2, has_memory=True, refused=refused, is_grace_over=True)
    assert later == (2, Elected.IN_SYNC)
    assert _elect(1, 2) == (2, Elected.IN_SYNC), "without memory 3 has nothing to offer"


def test_member_in_sync_that_refused_leaves_it_to_another() -> None:
    assert _elect(1, 2, refused={(2, Elected.IN_SYNC)}) == (1, Elected.IN_SYNC)


def test_unclean_election_waits_for_those_in_sync() -> None:
    assert _elect(3, is_unclean_allowed=True) is None
    assert _elect(1, 3, is_unclean_allowed=True, is_grace_over=True) == (1, Elected.IN_SYNC)
    assert _elect(3, is_unclean_allowed=True, is_grace_over=True) == (3, Elected.UNCLEAN)
    both = {(1, Elected.IN_SYNC), (2, Elected.IN_SYNC)}
    assert _elect(1, 2, 3, is_unclean_allowed=True, refused=both) is None
