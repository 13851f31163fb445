"""The Controller: who gets which broker_id, who is elected and when, who is fenced, who refused."""

import pytest

from shmq.controller.controller import Fence
from shmq.remoting.codes import ResponseCode
from shmq.status import Elected
from tests.unit.controller.machine import NAME, Machine, serving


def test_broker_ids_are_given_once() -> None:
    machine = Machine()
    assert machine.controller.get_next_broker_id(cluster_name="c", broker_name=NAME).broker_id == 1
    machine.register(1, 2)
    machine.register(2)  # the same code: the same member
    assert machine.controller.get_next_broker_id(cluster_name="c", broker_name=NAME).broker_id == 3
    taken = machine.controller.apply_broker_id(
        cluster_name="c",
        broker_name=NAME,
        broker_id=2,
        address="elsewhere",
        register_check_code="another",
    )
    assert taken.code == ResponseCode.CONTROLLER_BROKER_ID_INVALID
    stranger = machine.controller.apply_broker_id(
        cluster_name="d",
        broker_name=NAME,
        broker_id=3,
        address="x",
        register_check_code="x",
    )
    others = [
        machine.controller.get_next_broker_id(cluster_name="d", broker_name=NAME),
        machine.controller.register_broker(
            cluster_name="d", broker_name=NAME, broker_id=1, address="x"
        ),
    ]
    for refused in (stranger, *others):
        assert refused.code == ResponseCode.CONTROLLER_INVALID_REQUEST
        assert f"the broker_ids 1, 2 of {NAME} have registered as of cluster c" in refused.remark
        assert f"shmq ha clean {NAME}" in refused.remark
    machine.beat(1)
    assert machine.clean(2).code == ResponseCode.SUCCESS
    assert machine.controller.get_next_broker_id(cluster_name="c", broker_name=NAME).broker_id == 3


def test_member_registers_from_another_address_and_as_learner() -> None:
    machine = Machine()
    machine.register(1)
    machine.done(
        machine.controller.register_broker(
            cluster_name="c", broker_name=NAME, broker_id=1, address="moved", is_async_learner=True
        )
    )
    member = machine.info.find(1)
    assert member is not None
    assert (member.address, member.is_async_learner) == ("moved", True)
    again = machine.controller.register_broker(
        cluster_name="c", broker_name=NAME, broker_id=1, address="moved", is_async_learner=True
    )
    assert (again.records, again.info) == ((), machine.info)
    unknown = machine.controller.register_broker(
        cluster_name="c", broker_name=NAME, broker_id=7, address="x"
    )
    assert unknown.code == ResponseCode.CONTROLLER_BROKER_NEED_TO_BE_REGISTERED


def test_heartbeat_of_a_stranger_asks_it_to_register() -> None:
    machine = Machine()
    assert machine.beat(1).code == ResponseCode.CONTROLLER_BROKER_NEED_TO_BE_REGISTERED


def test_first_master_is_the_longest_log_once_all_are_there() -> None:
    machine = Machine()
    machine.register(1, 2, 3)
    assert not machine.beat(1, log_end=10).records
    assert not machine.beat(2, log_end=30).records
    # Whoever had masters before may have members that have not registered yet.
    assert not machine.beat(3, log_end=20).records
    outcome = machine.after(5)
    assert machine.info.master_broker_id == 2
    assert machine.info.master_epoch == 1
    assert [notice.broker_id for notice in outcome.notices] == [1, 2, 3]
    assert outcome.notices[0].info == machine.info


def test_absent_member_is_awaited_for_the_grace_time() -> None:
    machine = Machine()
    machine.register(1, 2)
    machine.beat(1)
    assert not machine.after(4.9).records
    assert machine.after(0.1).records
    assert machine.info.master_broker_id == 1


def test_replica_set_that_was_cleaned_and_comes_back_is_new() -> None:
    """However long nobody was master before: the longest log may come last."""
    machine = serving(2)
    machine.end_master(leaves_memory=False)
    machine.after(30)
    assert machine.clean().code == ResponseCode.SUCCESS
    machine.register(1, 2)
    assert not machine.beat(2, log_end=10).records
    assert not machine.beat(1, log_end=30).records
    assert machine.after(5).records
    assert machine.info.master_broker_id == 1


def test_newest_epoch_then_longest_log_then_lowest_priority_is_elected() -> None:
    for beats, wanted in (
        ({1: (5, 900, 1), 2: (6, 10, 9)}, 2),
        ({1: (6, 11, 9), 2: (6, 10, 1)}, 1),
        ({1: (6, 10, 9), 2: (6, 10, 1)}, 2),
        ({1: (6, 10, 9), 2: (6, 10, 9)}, 1),
    ):
        machine = Machine()
        machine.register(*beats)
        for broker_id, (epoch, log_end, priority) in beats.items():
            machine.beat(broker_id, epoch=epoch, log_end=log_end, priority=priority)
        machine.after(5)
        assert machine.info.master_broker_id == wanted, beats
        # More than any that a member has seen, whoever counted.
        assert machine.info.master_epoch == max(epoch for epoch, _, _ in beats.values()) + 1


def test_dead_master_with_memory_is_followed_at_once_by_any_member() -> None:
    machine = serving(others=(2,))
    assert machine.end_master(leaves_memory=True).records
    assert (machine.info.master_broker_id, machine.info.elected) == (2, Elected.MEMORY)
    assert machine.info.sync_state_set == {1}, "2 has not begun"


def test_dead_master_without_memory_is_followed_by_a_member_in_sync() -> None:
    machine = serving(2, others=(3,))
    machine.after(30)  # however long ago it was that nobody was master
    machine.beat(3, log_end=999)
    assert not machine.end_master(leaves_memory=False).records, "1 may come back with more"
    machine.beat(2)
    machine.beat(3, log_end=999)
    assert machine.after(5).records
    assert (machine.info.master_broker_id, machine.info.elected) == (2, Elected.IN_SYNC)


def test_nobody_out_of_sync_is_elected_by_its_log() -> None:
    machine = serving(others=(2,))
    machine.end_master(leaves_memory=False)
    machine.after(6)
    machine.beat(2)
    assert not machine.after(1).records
    machine.is_unclean_allowed = True
    machine.take_over()
    machine.beat(2)
    assert machine.after(5).records
    assert (machine.info.master_broker_id, machine.info.elected) == (2, Elected.UNCLEAN)


def test_learner_is_never_elected() -> None:
    machine = Machine(is_unclean_allowed=True)
    machine.register(learners=(1,))
    machine.host.is_memory_there = True
    machine.beat(1)
    assert not machine.after(6).records
    machine.beat(1)
    assert machine.elect(1).code == ResponseCode.CONTROLLER_ELECT_MASTER_FAILED
    machine = serving()
    machine.register(learners=(4,))
    machine.beat(4)
    assert machine.alter(1, 4).code == ResponseCode.CONTROLLER_INVALID_REPLICAS


def test_member_that_refuses_is_followed_by_another_and_asked_again_later() -> None:
    machine = serving(others=(2, 3))
    machine.end_master(leaves_memory=True)
    first = machine.info.master_broker_id
    assert first == 2
    machine.beat(2, refused=machine.info.master_epoch)
    assert machine.info.master_broker_id == 3
    refused_epoch = machine.info.master_epoch
    assert not machine.beat(3, refused=refused_epoch).records, "only 1 is left, and is not there"
    machine.after(9)
    machine.beat(2)
    machine.beat(3, refused=refused_epoch)
    assert machine.info.master_epoch == refused_epoch
    machine.after(1)
    machine.beat(2)
    assert machine.info.master_epoch == refused_epoch + 1


def test_elected_member_that_does_not_begin_is_followed_by_another() -> None:
    machine = serving(2, 3)
    machine.end_master(leaves_memory=True)
    assert machine.info.master_broker_id == 2
    machine.after(9)
    machine.beat(3, log_end=50)
    machine.beat(2)
    assert machine.info.master_broker_id == 2
    machine.after(1)
    assert machine.info.master_broker_id == 3
    assert machine.alter(2, by=2, epoch=2).code == ResponseCode.CONTROLLER_INVALID_MASTER


def test_nobody_is_elected_while_a_living_process_holds_mastership() -> None:
    machine = serving(2)
    for _ in range(30):
        machine.beat(1)
        machine.beat(2, log_end=999)
        assert not machine.after(1).records
    # A holder whom nobody elected (another arbiter did) and who sends heartbeats: it is the one.
    machine.host.holder = 2
    assert machine.after(0).records
    assert machine.info.master_broker_id == 2


def test_hung_holder_whom_nobody_elected_is_fenced_too() -> None:
    machine = serving(2, 3)
    machine.host.holder = 2
    machine.now_ns += 10_000_000_000
    machine.beat(3)
    assert machine.after(0).fences == (Fence(broker_name=NAME, broker_id=2),)
    assert machine.info.master_broker_id == 1, "nobody is elected while it lives"


def test_learner_that_holds_mastership_is_not_elected_for_it() -> None:
    machine = serving()
    machine.register(learners=(4,))
    machine.host.holder = 4
    machine.beat(4)
    assert machine.info.master_broker_id == 1


def test_member_that_is_silent_is_not_elected() -> None:
    machine = serving(2)
    machine.after(10)
    machine.end_master(leaves_memory=True)
    assert machine.info.master_broker_id == 1
    machine.beat(2)
    assert machine.info.master_broker_id == 2


def test_member_that_goes_on_refusing_is_asked_again_after_ten_seconds() -> None:
    machine = serving(others=(2,))
    machine.end_master(leaves_memory=True)
    epoch = machine.info.master_epoch
    for _ in range(10):
        machine.beat(2, refused=epoch)
        assert machine.info.master_epoch == epoch
        machine.now_ns += 1_000_000_000
    machine.beat(2, refused=epoch)
    assert machine.info.master_epoch == epoch + 1


def test_member_that_refused_and_starts_anew_is_asked_at_once() -> None:
    machine = serving(others=(2, 3))
    machine.end_master(leaves_memory=True)
    machine.beat(2, refused=machine.info.master_epoch)
    assert machine.info.master_broker_id == 3
    machine.controller.register_broker(
        cluster_name="c", broker_name=NAME, broker_id=2, address="socket-2"
    )
    machine.beat(2)
    machine.beat(3, refused=machine.info.master_epoch)
    assert machine.info.master_broker_id == 2


def test_hung_master_is_fenced_and_followed_only_once_it_is_dead() -> None:
    machine = serving(2)
    machine.now_ns += 9_900_000_000
    machine.beat(2)
    assert not machine.after(0).fences
    assert machine.after(0.1).fences == (Fence(broker_name=NAME, broker_id=1),)
    assert machine.after(60).fences == (Fence(broker_name=NAME, broker_id=1),)
    assert machine.info.master_broker_id == 1
    machine.beat(2)
    machine.end_master(leaves_memory=True)
    assert machine.info.master_broker_id == 2


def test_controller_that_takes_over_fences_nobody_before_it_could_hear_of_it() -> None:
    machine = serving(2)
    machine.now_ns += 3600_000_000_000
    machine.take_over()
    assert not machine.after(9.9).fences
    assert machine.after(0.1).fences


def test_election_by_hand_hands_over_to_a_member_in_sync() -> None:
    machine = serving(2)
    assert machine.elect().code == ResponseCode.CONTROLLER_MASTER_STILL_EXIST
    assert machine.elect(1).code == ResponseCode.CONTROLLER_MASTER_STILL_EXIST
    outcome = machine.elect(2)
    assert outcome.code == ResponseCode.SUCCESS
    assert outcome.info == machine.info
    assert (machine.info.master_broker_id, machine.info.master_epoch) == (2, 2)
    assert machine.info.elected == Elected.MEMORY, "what only the memory has is not given up"
    assert machine.alter(1, by=1, epoch=1).code == ResponseCode.CONTROLLER_INVALID_MASTER
    machine.host.holder = None
    assert not machine.after(1).records, "2 was told"
    machine.begin(2)
    assert machine.info.sync_state_set == {2}


def test_election_by_hand_of_who_is_not_there_fails() -> None:
    machine = Machine()
    assert machine.elect(1).code == ResponseCode.CONTROLLER_BROKER_NEED_TO_BE_REGISTERED
    machine.register(1, 2)
    assert machine.elect(2).code == ResponseCode.CONTROLLER_ELECT_MASTER_FAILED
    assert machine.elect().code == ResponseCode.CONTROLLER_MASTER_NOT_AVAILABLE
    machine.beat(2)
    assert machine.elect(2).code == ResponseCode.SUCCESS


@pytest.mark.parametrize("stranger", [-1, 0])
def test_nobody_is_elected_by_hand_under_a_process_that_has_not_registered(stranger: int) -> None:
    """A member without enableControllerMode is master: the elected one could never begin."""
    machine = Machine()
    machine.register(1, 2)
    machine.host.holder = stranger
    machine.beat(1)
    for broker_id in (1, None):
        outcome = machine.elect(broker_id)
        assert outcome.code == ResponseCode.CONTROLLER_ELECT_MASTER_FAILED
        assert "that has not registered with this Controller is master" in outcome.remark
    assert machine.info.master_epoch == 0
    machine.host.holder = None
    assert machine.elect(1).code == ResponseCode.SUCCESS


def test_election_by_hand_of_an_unknown_replica_set_says_so() -> None:
    machine = Machine()
    assert machine.elect().remark == f"{NAME}: the Controller knows no such replica set"
    machine.register(1, 2)
    assert machine.elect(7).remark.endswith("broker_id 7 is not registered; those that are: 1, 2")


def test_master_that_keeps_its_mastership_is_elected_again() -> None:
    machine = serving(2)
    machine.elect(2)
    machine.after(9)
    machine.beat(1)
    machine.beat(2)
    machine.after(1)
    assert (machine.info.master_broker_id, machine.info.master_epoch) == (1, 3)


def test_sync_state_set_changes_by_its_master_in_its_epochs_only() -> None:
    machine = serving(2, others=(3,))
    assert machine.info.sync_state_set_epoch == 2
    for refused, code in (
        (machine.alter(2, 3, by=2), ResponseCode.CONTROLLER_INVALID_MASTER),
        (machine.alter(1, epoch=9), ResponseCode.CONTROLLER_FENCED_MASTER_EPOCH),
        (machine.alter(1, 7), ResponseCode.CONTROLLER_INVALID_REPLICAS),
        (machine.alter(2, 3), ResponseCode.CONTROLLER_ALTER_SYNC_STATE_SET_FAILED),
        (machine.alter(1, 2), ResponseCode.CONTROLLER_ALTER_SYNC_STATE_SET_FAILED),
    ):
        assert refused.code == code, refused.remark
    old = machine.controller.alter_sync_state_set(
        broker_name=NAME,
        master_broker_id=1,
        master_epoch=1,
        sync_state_set=(1, 2, 3),
        sync_state_set_epoch=1,
        now_ns=machine.now_ns,
    )
    assert old.code == ResponseCode.CONTROLLER_FENCED_SYNC_STATE_SET_EPOCH
    none = machine.controller.alter_sync_state_set(
        broker_name="other",
        master_broker_id=1,
        master_epoch=1,
        sync_state_set=(1,),
        sync_state_set_epoch=1,
        now_ns=machine.now_ns,
    )
    assert none.code == ResponseCode.CONTROLLER_ALTER_SYNC_STATE_SET_FAILED
    assert machine.alter(1, 2, 3).code == ResponseCode.SUCCESS
    assert machine.info.sync_state_set_epoch == 3


def test_who_sends_no_heartbeat_comes_not_in_but_may_stay() -> None:
    machine = serving(2, others=(3,))
    machine.after(30)
    assert machine.alter(1, 2, 3).code == ResponseCode.CONTROLLER_BROKER_NOT_ALIVE
    machine.beat(3)
    assert machine.alter(1, 2, 3).code == ResponseCode.SUCCESS, "2 was in already"


def test_mastership_begins_with_the_master_alone() -> None:
    machine = serving(2)
    machine.end_master(leaves_memory=True)
    machine.host.holder = 2
    machine.beat(1)
    assert machine.alter(1, 2).code == ResponseCode.CONTROLLER_ALTER_SYNC_STATE_SET_FAILED
    assert machine.alter(2).code == ResponseCode.SUCCESS


def test_members_are_forgotten_but_not_who_alone_has_what_was_confirmed() -> None:
    machine = serving(2)
    failed = ResponseCode.CONTROLLER_INVALID_CLEAN_BROKER_METADATA
    assert machine.clean(2).code == failed, "it lives"
    assert machine.clean(5).code == failed, "nobody knows it"
    assert machine.clean(1, living=True).code == failed, "it is master"
    assert machine.clean(2, living=True).code == ResponseCode.SUCCESS
    assert (machine.info.sync_state_set, machine.info.sync_state_set_epoch) == ({1}, 3)
    machine.register(3)
    machine.end_master(leaves_memory=False)
    assert machine.clean(1).code == failed, "only 1 has every confirmed message"
    assert machine.clean().code == ResponseCode.SUCCESS
    assert machine.clean().code == failed
    assert machine.controller.get_replica_info(NAME).code == (
        ResponseCode.CONTROLLER_BROKER_METADATA_NOT_EXIST
    )


def test_epoch_outlives_the_members() -> None:
    machine = serving()
    machine.end_master(leaves_memory=False)
    machine.clean()
    machine.register(1)
    machine.beat(1)
    assert machine.info.master_epoch == 2


def test_queries_tell_what_is_there() -> None:
    machine = serving(2)
    assert machine.controller.get_replica_info(NAME).info == machine.info
    assert machine.controller.get_sync_state_data([NAME, "other"]) == [machine.info]
