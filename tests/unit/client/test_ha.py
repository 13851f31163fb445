"""Whom a switch-over picks: never a learner that nobody named, nor one that is no choice."""

import pytest

from shmq.client.ha import HaMember, chosen
from shmq.errors import ConfigError
from shmq.status import BrokerRole

NAME = "broker-a"


def member(broker_id: int, role: BrokerRole, *, is_learner: bool = False) -> HaMember:
    return HaMember(
        NAME, broker_id, role, 1, 1, 0, 0, "s", "", "RUNNING", is_async_learner=is_learner
    )


MASTER = member(0, BrokerRole.ASYNC_MASTER)
LEARNER = member(1, BrokerRole.SLAVE, is_learner=True)
SLAVE = member(2, BrokerRole.SLAVE)


def test_lowest_id_that_waits_and_is_no_learner_is_picked_and_who_is_named_before_it() -> None:
    known = [MASTER, LEARNER, SLAVE, member(3, BrokerRole.SLAVE)]
    assert chosen(known, NAME, None) is SLAVE
    assert chosen(known, NAME, 1) is LEARNER
    assert chosen(known, NAME, 3).broker_id == 3


@pytest.mark.parametrize(
    ("known", "to_id", "said", "hint"),
    [
        ([MASTER, LEARNER], None, "another member: members that wait: 1 (a learner);", "--to"),
        ([MASTER, SLAVE], 0, "broker_id 0: it is master already", "name another member"),
        ([SLAVE], 0, "broker_id 0: it does not answer; members that wait: 2;", "start it"),
    ],
)
def test_what_is_wrong_with_a_choice_is_said(
    known: list[HaMember], to_id: int | None, said: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        chosen(known, NAME, to_id)
    assert said in str(caught.value)
    assert hint in caught.value.hint
