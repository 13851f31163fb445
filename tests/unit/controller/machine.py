"""A Controller whose outcomes are applied as soon as they are there, and a host that is told."""

from __future__ import annotations

from shmq.controller.controller import Controller, Heartbeat, Outcome
from shmq.controller.replicas import ReplicasInfo, ReplicasInfoTable
from shmq.remoting.codes import ResponseCode

SECOND = 1_000_000_000
NAME = "broker-a"


class ToldHost:
    """What a test says of the kernel."""

    def __init__(self) -> None:
        self.holder: int | None = None
        self.is_memory_there = False

    def mastership_holder(self, broker_name: str) -> int | None:
        assert broker_name
        return self.holder

    def has_memory(self, broker_name: str) -> bool:
        assert broker_name
        return self.is_memory_there


class Machine:
    """The Controller of one replica set, with its time."""

    def __init__(self, *, is_unclean_allowed: bool = False) -> None:
        self.host = ToldHost()
        self.table = ReplicasInfoTable()
        self.now_ns = 100 * SECOND
        self.is_unclean_allowed = is_unclean_allowed
        self.take_over()

    def take_over(self) -> None:
        """Another Controller with the same journal."""
        self.controller = Controller(
            self.table,
            self.host,
            now_ns=self.now_ns,
            is_unclean_allowed=self.is_unclean_allowed,
        )

    @property
    def info(self) -> ReplicasInfo:
        info = self.table.get(NAME)
        assert info is not None
        return info

    def done(self, outcome: Outcome) -> Outcome:
        self.controller.apply(outcome.records)
        return outcome

    def register(self, *broker_ids: int, learners: tuple[int, ...] = ()) -> None:
        for broker_id in (*broker_ids, *learners):
            outcome = self.controller.apply_broker_id(
                cluster_name="c",
                broker_name=NAME,
                broker_id=broker_id,
                address=f"socket-{broker_id}",
                register_check_code=f"code-{broker_id}",
                is_async_learner=broker_id in learners,
            )
            assert self.done(outcome).code == ResponseCode.SUCCESS, outcome.remark

    def beat(
        self,
        broker_id: int,
        *,
        log_end: int = 0,
        epoch: int = 0,
        priority: int = 9,
        refused: int = 0,
    ) -> Outcome:
        beat = Heartbeat(
            broker_name=NAME,
            broker_id=broker_id,
            master_epoch=epoch,
            log_epoch=epoch,
            log_end=log_end,
            election_priority=priority,
            refused_epoch=refused,
        )
        return self.done(self.controller.heartbeat(beat, now_ns=self.now_ns))

    def after(self, seconds: float) -> Outcome:
        self.now_ns += int(seconds * SECOND)
        return self.done(self.controller.tick(now_ns=self.now_ns))

    def alter(self, *broker_ids: int, epoch: int | None = None, by: int | None = None) -> Outcome:
        info = self.info
        master = by if by is not None else info.master_broker_id
        assert master is not None
        return self.done(
            self.controller.alter_sync_state_set(
                broker_name=NAME,
                master_broker_id=master,
                master_epoch=info.master_epoch if epoch is None else epoch,
                sync_state_set=broker_ids,
                sync_state_set_epoch=info.sync_state_set_epoch,
                now_ns=self.now_ns,
            )
        )

    def elect(self, broker_id: int | None = None) -> Outcome:
        return self.done(
            self.controller.elect_master(broker_name=NAME, broker_id=broker_id, now_ns=self.now_ns)
        )

    def clean(self, *broker_ids: int, living: bool = False) -> Outcome:
        return self.done(
            self.controller.clean_broker_data(
                broker_name=NAME,
                broker_ids=broker_ids,
                is_living_cleaned=living,
                now_ns=self.now_ns,
            )
        )

    def begin(self, broker_id: int) -> None:
        """The elected one takes the lock, and the SyncStateSet is itself."""
        assert self.info.master_broker_id == broker_id
        self.host.holder, self.host.is_memory_there = broker_id, True
        assert self.alter(broker_id).code == ResponseCode.SUCCESS

    def end_master(self, *, leaves_memory: bool) -> Outcome:
        master = self.host.holder
        assert master is not None
        self.host.holder, self.host.is_memory_there = None, leaves_memory
        ended = self.controller.broker_ended(NAME, master, now_ns=self.now_ns)
        return self.done(ended)


def serving(*in_sync: int, others: tuple[int, ...] = ()) -> Machine:
    """1 is master in epoch 1, `in_sync` are in sync with it, all live."""
    machine = Machine()
    machine.register(1, *in_sync, *others)
    for broker_id in (1, *in_sync, *others):
        machine.beat(broker_id)
    machine.begin(1)
    machine.beat(1, log_end=100)
    if in_sync:
        assert machine.alter(1, *in_sync).code == ResponseCode.SUCCESS
    return machine
