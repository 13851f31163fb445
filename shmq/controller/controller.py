"""The Controller as a state machine: requests, heartbeats and time go in, decisions come out.

What lives here: `Controller`. Each input gives an `Outcome`: an answer, records, whom to tell, whom
to fence. The order binds: the records are made durable, then `apply` is called with them, then the
rest of the outcome leaves this process, and only then comes the next input. Where the journal
fails, the process ends: the one after it begins with what the journal says.

What is durable is in `ReplicasInfoTable`; who lives, refused or was told is not, and a Controller
that takes over learns it from the heartbeats. It elects nobody while a living process holds
mastership (`Host`, the kernel's word), so a promotion waits for a proven death.

A master that was elected and not begun alters the SyncStateSet to itself alone before it serves,
once its own files hold all of what it starts with. A master that asks for a change counts, until it
knows how that ended, the members of both sets as in sync.

Times are attended nanoseconds: they stand still while this process did, so that heartbeats that
nobody could take are not missed. Pure: nothing is written, nothing blocks. In the Controller, in
its thread. What may fail: nothing but a record that does not fit (StoreCorruptError).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from shmq.controller.election import Candidate, elect
from shmq.controller.replicas import (
    BrokerDataCleaned,
    BrokerIdApplied,
    BrokerUpdated,
    MasterElected,
    Record,
    ReplicasInfo,
    ReplicasInfoTable,
    SyncStateSetAltered,
    apply_record,
)
from shmq.remoting.codes import ResponseCode
from shmq.status import Elected

__all__ = ["Controller", "Fence", "Heartbeat", "Host", "Notice", "Outcome"]

_GRACE_NS: Final = 5_000_000_000
"""For members that are not there: one with a longer log is worth waiting for."""
_TOLD_NS: Final = 10_000_000_000
"""For a member that was elected to begin; and until one that refused is asked again."""
_NOT_ACTIVE_NS: Final = 10_000_000_000
"""brokerNotActiveTimeoutMillis: without a heartbeat for so long a member is not there."""
_FIRST_BROKER_ID: Final = 1
"""RocketMQ's FIRST_SLAVE_ID: what the first one that asks for a broker_id gets."""


class Host(Protocol):
    """What the kernel and the runtime folder say now."""

    def mastership_holder(self, broker_name: str) -> int | None:
        """The broker_id of the living process that holds mastership; None: nobody does."""

    def has_memory(self, broker_name: str) -> bool:
        """Whether the shared memory of the last mastership is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """What a member says each second (BROKER_HEARTBEAT)."""

    broker_name: str
    broker_id: int
    master_epoch: int
    """The newest that it knows: the next election counts on from the highest."""
    log_epoch: int
    """Under which the last byte of its log was written."""
    log_end: int
    """physical_offset behind its log."""
    election_priority: int = 2**31 - 1
    """brokerElectionPriority; RocketMQ's default, the last."""
    refused_epoch: int = 0
    """It was elected in this epoch and cannot become master; 0: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Tell a member how its replica set is (NOTIFY_BROKER_ROLE_CHANGED)."""

    broker_id: int
    info: ReplicasInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """Kill the process that holds mastership: it hangs. Said with each tick until it is dead."""

    broker_name: str
    broker_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What follows from one input."""

    code: ResponseCode = ResponseCode.SUCCESS
    remark: str = ""
    """Why not, for a person."""
    info: ReplicasInfo | None = None
    """The replica set asked about, as it is with `records`."""
    broker_id: int | None = None
    """GET_NEXT_BROKER_ID: the one to apply for."""
    records: tuple[Record, ...] = ()
    notices: tuple[Notice, ...] = ()
    fences: tuple[Fence, ...] = ()


class Controller:
    """The active one.

    Args:
        table: what its journal says.
        host: what the kernel says.
        now_ns: when it became active.
        is_unclean_allowed: enableElectUncleanMaster.
        not_active_ns: without a heartbeat for so long a member is not there.
        grace_ns: how long an election waits for members that are not there.
    """

    def __init__(
        self,
        table: ReplicasInfoTable,
        host: Host,
        *,
        now_ns: int,
        is_unclean_allowed: bool = False,
        not_active_ns: int = _NOT_ACTIVE_NS,
        grace_ns: int = _GRACE_NS,
    ) -> None:
        self._table = table
        self._host = host
        self._start_ns = now_ns
        self.is_unclean_allowed = is_unclean_allowed
        """enableElectUncleanMaster, as it is now."""
        self.not_active_ns = not_active_ns
        """brokerNotActiveTimeoutMillis, as it is now."""
        self.grace_ns = grace_ns
        """election_grace_ms, as it is now."""
        self._heartbeats: dict[tuple[str, int], tuple[int, Heartbeat]] = {}
        self._refused: dict[tuple[str, int, Elected], tuple[int, int]] = {}
        self._masterless_ns: dict[str, int] = {}
        self._told_ns: dict[str, int] = {}

    def apply(self, records: Iterable[Record]) -> None:
        """The records of the last outcome are durable.

        Raises:
            StoreCorruptError: they are of another state.
        """
        for record in records:
            self._table.apply(record)

    # ---- identity and registration

    def get_next_broker_id(self, *, cluster_name: str, broker_name: str) -> Outcome:
        """GET_NEXT_BROKER_ID: which one a new member may apply for."""
        info = self._table.get(broker_name)
        if info is not None and info.cluster_name != cluster_name:
            return _of_another_cluster(info, cluster_name)
        return Outcome(broker_id=info.next_broker_id if info else _FIRST_BROKER_ID)

    def apply_broker_id(
        self,
        *,
        cluster_name: str,
        broker_name: str,
        broker_id: int,
        address: str,
        register_check_code: str,
        is_async_learner: bool = False,
    ) -> Outcome:
        """APPLY_BROKER_ID: it is this member's from now on, whoever asks again with its code."""
        info = self._table.get(broker_name)
        if info is not None and info.cluster_name != cluster_name:
            return _of_another_cluster(info, cluster_name)
        known = info.find(broker_id) if info else None
        if known is not None and known.register_check_code == register_check_code:
            return Outcome(info=info)
        if known is not None or broker_id < 0:
            return _refuse(
                ResponseCode.CONTROLLER_BROKER_ID_INVALID,
                f"{broker_name}: broker_id {broker_id} is not free: another store registered as"
                " that; is this the same member on a new or emptied disk, have the old one"
                f" forgotten: shmq ha clean {broker_name} --id {broker_id}, and this one registers"
                " by itself; else give it a broker_id of its own",
            )
        record = BrokerIdApplied(
            cluster_name=cluster_name,
            broker_name=broker_name,
            broker_id=broker_id,
            address=address,
            register_check_code=register_check_code,
            is_async_learner=is_async_learner,
        )
        return Outcome(records=(record,))

    def register_broker(
        self,
        *,
        cluster_name: str,
        broker_name: str,
        broker_id: int,
        address: str,
        is_async_learner: bool = False,
    ) -> Outcome:
        """REGISTER_BROKER: a member that has its broker_id starts; where it is, and what it is."""
        info = self._table.get(broker_name)
        known = info.find(broker_id) if info else None
        if info is None or known is None:
            return _unregistered(broker_name, broker_id)
        if info.cluster_name != cluster_name:
            return _of_another_cluster(info, cluster_name)
        self._forget(broker_name, [broker_id])
        if (known.address, known.is_async_learner) == (address, is_async_learner):
            return Outcome(info=info)
        record = BrokerUpdated(
            broker_name=broker_name,
            broker_id=broker_id,
            address=address,
            is_async_learner=is_async_learner,
        )
        return Outcome(info=apply_record(info, record), records=(record,))

    # ---- who lives

    def heartbeat(self, beat: Heartbeat, *, now_ns: int) -> Outcome:
        """BROKER_HEARTBEAT: answered with how the replica set is, so that no notice is missed."""
        info = self._table.get(beat.broker_name)
        if info is None or info.find(beat.broker_id) is None:
            return _unregistered(beat.broker_name, beat.broker_id)
        self._heartbeats[beat.broker_name, beat.broker_id] = (now_ns, beat)
        if self._has_refused(info, beat):
            key = (beat.broker_name, beat.broker_id, info.elected)
            epoch, _ = self._refused.get(key, (0, 0))
            if epoch != beat.refused_epoch:  # said again and again, counted from the first time
                self._refused[key] = (beat.refused_epoch, now_ns)
        return self._decided(info, now_ns=now_ns)

    def broker_ended(self, broker_name: str, broker_id: int, *, now_ns: int) -> Outcome:
        """The process of a member is dead: its pidfd says so."""
        self._heartbeats.pop((broker_name, broker_id), None)
        info = self._table.get(broker_name)
        return Outcome() if info is None else self._decided(info, now_ns=now_ns)

    def tick(self, *, now_ns: int) -> Outcome:
        """Time has passed: call it once a second, and whenever mastership changed hands."""
        outcomes = []
        for name in self._table.names():
            info = self._table.get(name)
            assert info is not None
            outcomes.append(self._decided(info, now_ns=now_ns))
        return Outcome(
            records=tuple(record for each in outcomes for record in each.records),
            notices=tuple(notice for each in outcomes for notice in each.notices),
            fences=tuple(fence for each in outcomes for fence in each.fences),
        )

    # ---- SyncStateSet and election by hand

    def alter_sync_state_set(
        self,
        *,
        broker_name: str,
        master_broker_id: int,
        master_epoch: int,
        sync_state_set: Iterable[int],
        sync_state_set_epoch: int,
        now_ns: int,
    ) -> Outcome:
        """ALTER_SYNC_STATE_SET, of the master. The first of a mastership names itself alone."""
        info = self._table.get(broker_name)
        wanted = frozenset(sync_state_set)
        if info is None:
            return _refuse(
                ResponseCode.CONTROLLER_ALTER_SYNC_STATE_SET_FAILED,
                f"{broker_name} is not registered",
            )
        refusal = _refuse_alteration(
            info, master_broker_id, master_epoch, wanted, sync_state_set_epoch
        )
        if refusal is not None:
            return refusal
        absent = [
            each
            for each in sorted(wanted - info.sync_state_set - {master_broker_id})
            if not self._lives(broker_name, each, now_ns)
        ]
        if absent:
            return _refuse(
                ResponseCode.CONTROLLER_BROKER_NOT_ALIVE,
                f"{broker_name}: {absent} send no heartbeat",
            )
        record = SyncStateSetAltered(
            broker_name=broker_name,
            sync_state_set=tuple(sorted(wanted)),
            sync_state_set_epoch=info.sync_state_set_epoch + 1,
        )
        after = apply_record(info, record)
        return Outcome(info=after, records=(record,), notices=self._notices(after, now_ns))

    def elect_master(
        self, *, broker_name: str, broker_id: int | None = None, now_ns: int
    ) -> Outcome:
        """ELECT_MASTER: with a broker_id that member, by hand; else as time would decide.

        A master that lives is told, hands over, and the elected member begins then.
        """
        info = self._table.get(broker_name)
        if info is None or (broker_id is not None and info.find(broker_id) is None):
            return _unknown(info, broker_name, broker_id)
        holder = self._host.mastership_holder(broker_name)
        if holder is not None and info.find(holder) is None:
            return _refuse(
                ResponseCode.CONTROLLER_ELECT_MASTER_FAILED,
                f"{broker_name}: {'a process' if holder < 0 else f'broker_id {holder}'} that has"
                " not registered with this Controller is master and lives: nobody is elected under"
                " it; set enableControllerMode at all members or at none, and stop that one first",
            )
        if broker_id is None or broker_id == info.master_broker_id:
            decided = self._decided(info, now_ns=now_ns)
            if decided.records:
                return decided
            master = info.master_broker_id
            if master is not None and self._lives(broker_name, master, now_ns):
                return Outcome(
                    code=ResponseCode.CONTROLLER_MASTER_STILL_EXIST,
                    remark=f"{broker_name}: {master} is master",
                    info=info,
                )
            return _refuse(
                ResponseCode.CONTROLLER_MASTER_NOT_AVAILABLE,
                f"{broker_name}: no member that lives may be elected now",
            )
        chosen = elect(
            info,
            {
                each: known
                for each, known in self._living(info, now_ns).items()
                if each == broker_id
            },
            has_memory=self._host.has_memory(broker_name),
            refused=self._refusals(broker_name, [broker_id], now_ns),
            is_grace_over=True,
            is_unclean_allowed=self.is_unclean_allowed,
        )
        if chosen is None:
            return _refuse(
                ResponseCode.CONTROLLER_ELECT_MASTER_FAILED,
                f"{broker_name}: {broker_id} is not there, a learner, or not in sync",
            )
        return self._elected(info, *chosen, now_ns=now_ns)

    def clean_broker_data(
        self,
        *,
        broker_name: str,
        broker_ids: Sequence[int] = (),
        is_living_cleaned: bool = False,
        now_ns: int,
    ) -> Outcome:
        """CLEAN_BROKER_DATA: forget members, or with none named the replica set."""
        info = self._table.get(broker_name)
        code = ResponseCode.CONTROLLER_INVALID_CLEAN_BROKER_METADATA
        if info is None:
            return _refuse(code, f"{broker_name} is not registered")
        known = {each.broker_id for each in info.brokers}
        gone = set(broker_ids) or known
        if not gone <= known:
            return _refuse(code, f"{broker_name}: {sorted(gone - known)} are not registered")
        living = [each for each in sorted(gone) if self._lives(broker_name, each, now_ns)]
        if living and not is_living_cleaned:
            return _refuse(code, f"{broker_name}: {living} live; stop them first")
        if self._host.mastership_holder(broker_name) in gone:
            return _refuse(code, f"{broker_name}: a living process has mastership; stop it first")
        if gone != known and info.sync_state_set and info.sync_state_set <= gone:
            return _refuse(
                code,
                f"{broker_name}: nobody else has every confirmed message; bring"
                f" {sorted(info.sync_state_set)} back, or clean the whole replica set",
            )
        self._forget(broker_name, gone)
        for broker_id in gone:
            self._heartbeats.pop((broker_name, broker_id), None)
        ids = () if gone == known else tuple(sorted(gone))
        if not ids:  # what comes back under this name is new, and has its grace time
            self._masterless_ns.pop(broker_name, None)
            self._told_ns.pop(broker_name, None)
        return Outcome(records=(BrokerDataCleaned(broker_name=broker_name, broker_ids=ids),))

    # ---- queries

    def get_replica_info(self, broker_name: str) -> Outcome:
        """GET_REPLICA_INFO: one replica set."""
        info = self._table.get(broker_name)
        if info is None:
            return _refuse(
                ResponseCode.CONTROLLER_BROKER_METADATA_NOT_EXIST,
                f"{broker_name} is not registered",
            )
        return Outcome(info=info)

    def get_sync_state_data(self, broker_names: Iterable[str]) -> list[ReplicasInfo]:
        """GET_SYNC_STATE_DATA: those of the named that there are; with none named, all."""
        infos = [self._table.get(name) for name in list(broker_names) or self._table.names()]
        return [info for info in infos if info is not None]

    def last_heartbeat(self, broker_name: str, broker_id: int) -> Heartbeat | None:
        """What a member said last; None: nothing, since this Controller became active."""
        known = self._heartbeats.get((broker_name, broker_id))
        return None if known is None else known[1]

    def is_active(self, broker_name: str, broker_id: int, *, now_ns: int) -> bool:
        """Whether a member sends heartbeats."""
        return self._lives(broker_name, broker_id, now_ns)

    # ---- deciding

    def _decided(self, info: ReplicasInfo, *, now_ns: int) -> Outcome:
        name, master = info.broker_name, info.master_broker_id
        holder = self._host.mastership_holder(name)
        if info.is_begun and holder == master:
            self._masterless_ns.pop(name, None)
            self._told_ns.pop(name, None)
            return self._fenced(info, holder, now_ns)
        since_ns = self._masterless_ns.setdefault(name, now_ns)
        living = self._living(info, now_ns)
        if master is not None and not info.is_begun and master in living:
            told_ns = self._told_ns.setdefault(name, now_ns)
            is_refused = self._is_refused(info, master, now_ns)
            if not is_refused and (holder == master or now_ns - told_ns < _TOLD_NS):
                return Outcome(info=info)
        if holder is not None:
            if holder in living and holder != master:
                return self._elected(info, holder, Elected.MEMORY, now_ns=now_ns)
            return self._fenced(info, holder, now_ns)
        chosen = elect(
            info,
            living,
            has_memory=self._host.has_memory(name),
            refused=self._refusals(name, living, now_ns),
            is_grace_over=now_ns - since_ns >= self.grace_ns,
            is_unclean_allowed=self.is_unclean_allowed,
        )
        if chosen is None:
            return Outcome(info=info)
        return self._elected(info, *chosen, now_ns=now_ns)

    def _fenced(self, info: ReplicasInfo, holder: int | None, now_ns: int) -> Outcome:
        if holder is None:
            return Outcome(info=info)
        last_ns, _ = self._heartbeats.get((info.broker_name, holder), (self._start_ns, None))
        if now_ns - last_ns < self.not_active_ns or info.find(holder) is None:
            return Outcome(info=info)  # it may live, or it is no member: not ours to kill
        return Outcome(info=info, fences=(Fence(broker_name=info.broker_name, broker_id=holder),))

    def _elected(
        self, info: ReplicasInfo, broker_id: int, elected: Elected, *, now_ns: int
    ) -> Outcome:
        epochs = [beat.master_epoch for _, beat in self._beats(info)]
        record = MasterElected(
            broker_name=info.broker_name,
            master_broker_id=broker_id,
            # Members may have had masters that another arbiter counted, or a journal that was lost.
            master_epoch=max(info.master_epoch, *epochs, 0) + 1,
            elected=elected,
        )
        self._told_ns[info.broker_name] = now_ns
        after = apply_record(info, record)
        return Outcome(info=after, records=(record,), notices=self._notices(after, now_ns))

    def _notices(self, info: ReplicasInfo, now_ns: int) -> tuple[Notice, ...]:
        return tuple(
            Notice(broker_id=each.broker_id, info=info)
            for each in info.brokers
            if self._lives(info.broker_name, each.broker_id, now_ns)
        )

    # ---- what the heartbeats say

    def _beats(self, info: ReplicasInfo) -> list[tuple[int, Heartbeat]]:
        keys = [(info.broker_name, each.broker_id) for each in info.brokers]
        return [self._heartbeats[key] for key in keys if key in self._heartbeats]

    def _lives(self, broker_name: str, broker_id: int, now_ns: int) -> bool:
        known = self._heartbeats.get((broker_name, broker_id))
        return known is not None and now_ns - known[0] < self.not_active_ns

    def _living(self, info: ReplicasInfo, now_ns: int) -> dict[int, Candidate]:
        return {
            beat.broker_id: Candidate(
                broker_id=beat.broker_id,
                log_epoch=beat.log_epoch,
                log_end=beat.log_end,
                election_priority=beat.election_priority,
            )
            for at_ns, beat in self._beats(info)
            if now_ns - at_ns < self.not_active_ns and beat.broker_id in info.electable
        }

    def _has_refused(self, info: ReplicasInfo, beat: Heartbeat) -> bool:
        is_elected = info.master_broker_id == beat.broker_id and not info.is_begun
        return is_elected and beat.refused_epoch == info.master_epoch

    def _is_refused(self, info: ReplicasInfo, broker_id: int, now_ns: int) -> bool:
        known = self._heartbeats.get((info.broker_name, broker_id))
        return known is not None and self._has_refused(info, known[1])

    def _refusals(
        self, broker_name: str, broker_ids: Iterable[int], now_ns: int
    ) -> set[tuple[int, Elected]]:
        return {
            (each, elected)
            for each in broker_ids
            for elected in Elected
            if self._refused_lately(broker_name, each, elected, now_ns)
        }

    def _refused_lately(
        self, broker_name: str, broker_id: int, elected: Elected, now_ns: int
    ) -> bool:
        known = self._refused.get((broker_name, broker_id, elected))
        return known is not None and now_ns - known[1] < _TOLD_NS

    def _forget(self, broker_name: str, broker_ids: Iterable[int]) -> None:
        for broker_id in broker_ids:
            for elected in Elected:
                self._refused.pop((broker_name, broker_id, elected), None)


def _of_another_cluster(info: ReplicasInfo, cluster_name: str) -> Outcome:
    """A replica set is its broker_name's, as in RocketMQ; so are its sockets and its mastership."""
    name, ids = info.broker_name, ", ".join(str(each.broker_id) for each in info.brokers)
    return _refuse(
        ResponseCode.CONTROLLER_INVALID_REQUEST,
        f"{name} of cluster {cluster_name}: the broker_ids {ids} of {name} have registered as of"
        f" cluster {info.cluster_name}, and a runtime folder has one {name}: if these are wrong,"
        f" stop them and forget them (shmq ha clean {name}); else give this one their"
        " brokerClusterName, another brokerName, or a runtime folder of its own",
    )


def _refuse_alteration(
    info: ReplicasInfo,
    master_broker_id: int,
    master_epoch: int,
    wanted: frozenset[int],
    sync_state_set_epoch: int,
) -> Outcome | None:
    """What is wrong with an alteration; RocketMQ's codes."""
    name = info.broker_name
    if info.master_broker_id != master_broker_id:
        return _refuse(
            ResponseCode.CONTROLLER_INVALID_MASTER,
            f"{name}: master is {info.master_broker_id}, not {master_broker_id}",
        )
    if info.master_epoch != master_epoch:
        return _refuse(
            ResponseCode.CONTROLLER_FENCED_MASTER_EPOCH,
            f"{name}: master_epoch is {info.master_epoch}, not {master_epoch}",
        )
    if info.sync_state_set_epoch != sync_state_set_epoch:
        return _refuse(
            ResponseCode.CONTROLLER_FENCED_SYNC_STATE_SET_EPOCH,
            f"{name}: sync_state_set_epoch is {info.sync_state_set_epoch},"
            f" not {sync_state_set_epoch}",
        )
    if not wanted <= info.electable:
        return _refuse(
            ResponseCode.CONTROLLER_INVALID_REPLICAS,
            f"{name}: {sorted(wanted - info.electable)} are no members, or learners",
        )
    if master_broker_id not in wanted:
        return _refuse(
            ResponseCode.CONTROLLER_ALTER_SYNC_STATE_SET_FAILED,
            f"{name}: the master is in its own SyncStateSet",
        )
    if not info.is_begun and wanted != {master_broker_id}:
        return _refuse(
            ResponseCode.CONTROLLER_ALTER_SYNC_STATE_SET_FAILED,
            f"{name}: mastership begins with the master alone in the SyncStateSet",
        )
    if info.is_begun and wanted == info.sync_state_set:
        return _refuse(
            ResponseCode.CONTROLLER_ALTER_SYNC_STATE_SET_FAILED,
            f"{name}: the SyncStateSet is that already",
        )
    return None


def _refuse(code: ResponseCode, remark: str) -> Outcome:
    return Outcome(code=code, remark=remark)


def _unknown(info: ReplicasInfo | None, broker_name: str, broker_id: int | None) -> Outcome:
    """For a person who names whom the Controller does not know."""
    ids = ", ".join(str(each.broker_id) for each in info.brokers) if info else ""
    return _refuse(
        ResponseCode.CONTROLLER_BROKER_NEED_TO_BE_REGISTERED,
        f"{broker_name}: the Controller knows no such replica set"
        if info is None
        else f"{broker_name}: broker_id {broker_id} is not registered; those that are: {ids}",
    )


def _unregistered(broker_name: str, broker_id: int) -> Outcome:
    return _refuse(
        ResponseCode.CONTROLLER_BROKER_NEED_TO_BE_REGISTERED,
        f"{broker_name}: broker_id {broker_id} is not registered; register first",
    )
