"""Whom a switch-over picks: never a learner that nobody named, nor one that is no choice, nor one
that lacks what another has; and what it says where somebody else switched meanwhile.
"""

import pytest

from shmq.client.ha import HaMember, chosen, switch
from shmq.errors import ConfigError, ServiceNotAvailableError
from shmq.remoting.codes import RequestCode
from shmq.remoting.command import Command, Scalar, response_to
from shmq.status import BrokerRole

NAME = "broker-a"


def member(
    broker_id: int,
    role: BrokerRole,
    *,
    is_learner: bool = False,
    log_epoch: int = 1,
    log_end: int = 0,
) -> HaMember:
    return HaMember(
        *(NAME, broker_id, role, 1, 1, log_end, 0, f"s{broker_id}", "", "RUNNING"),
        is_async_learner=is_learner,
        log_epoch=log_epoch,
    )


MASTER = member(0, BrokerRole.ASYNC_MASTER)
LEARNER = member(1, BrokerRole.SLAVE, is_learner=True)
SLAVE = member(2, BrokerRole.SLAVE)


def test_lowest_id_that_waits_and_is_no_learner_is_picked_and_who_is_named_before_it() -> None:
    known = [MASTER, LEARNER, SLAVE, member(3, BrokerRole.SLAVE)]
    assert chosen(known, NAME, None) is SLAVE
    assert chosen(known, NAME, 1) is LEARNER
    assert chosen(known, NAME, 3).broker_id == 3


def waiting(broker_id: int, log_epoch: int, log_end: int, *, is_learner: bool = False) -> HaMember:
    slave = BrokerRole.SLAVE
    return member(broker_id, slave, log_epoch=log_epoch, log_end=log_end, is_learner=is_learner)


@pytest.mark.parametrize("further", [(1, 9), (2, 4)])
def test_log_that_goes_furthest_is_picked_and_a_shorter_one_only_unclean(
    further: tuple[int, int],
) -> None:
    known = [waiting(0, 1, 8), waiting(1, *further), waiting(2, 3, 99, is_learner=True)]
    assert chosen(known, NAME, None).broker_id == 1
    assert chosen(known, NAME, 1).broker_id == 1
    with pytest.raises(ConfigError, match="ends at 8 in master epoch 1, that of broker_id 1 at"):
        chosen(known, NAME, 0)
    assert chosen(known, NAME, 0, is_unclean=True).broker_id == 0
    assert chosen(known, NAME, 0, is_led=True).broker_id == 0, "the Controller decides that"
    master = member(3, BrokerRole.ASYNC_MASTER)
    assert chosen([*known, master], NAME, 0).broker_id == 0, "it goes on with the master's memory"


def test_who_loses_a_switch_over_to_another_one_is_told_so() -> None:
    """And does not tell the last master to go on: mastership is taken."""
    roles = {0: BrokerRole.ASYNC_MASTER, 1: BrokerRole.SLAVE, 2: BrokerRole.SLAVE}
    told = []

    def call(socket_name: str, command: Command) -> Command:
        broker_id = int(socket_name[1:])
        if command.code == RequestCode.NOTIFY_BROKER_ROLE_CHANGED:
            told.append((broker_id, (command.ext_fields or {})["masterBrokerId"]))
            roles.update({0: BrokerRole.SLAVE, 2: BrokerRole.ASYNC_MASTER})
            return response_to(command)
        is_late = broker_id == 1 and roles[2] is not BrokerRole.SLAVE
        fields: dict[str, Scalar] = {
            "brokerName": NAME,
            "brokerId": broker_id,
            "role": roles[broker_id],
            "phase": "RUNNING",
            "pid": 7,
            "masterEpoch": 5,
            "promotionProblem": "another process holds it" if is_late else None,
        }
        return response_to(command, ext_fields=fields)

    known = [member(number, role) for number, role in roles.items()]
    with pytest.raises(ServiceNotAvailableError, match="broker_id 2 has become master meanwhile"):
        switch(call, known, NAME, 1, is_unclean=False)
    assert told == [(1, 1), (0, 1)]


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


def test_a_learner_is_no_choice_where_a_controller_leads() -> None:
    with pytest.raises(ConfigError) as caught:
        chosen([MASTER, LEARNER], NAME, None, is_led=True)
    assert caught.value.hint == "start one; a Controller elects no learner"
