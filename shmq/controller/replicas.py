"""What the Controller knows for good: replica sets, and the records that change them.

What lives here: `ReplicasInfo`, one replica set; `ReplicasInfoTable`, all of them; the records of
the journal. State changes by `apply` and by nothing else, so that a journal replayed gives the same
state. Each record carries the epoch it leads to, and one that goes back is refused.

Pure: no time, no I/O. In the Controller, in its thread. What may fail: StoreCorruptError, a record
that does not fit the state: the journal is not one of ours.

RocketMQ has ReplicasInfoManager, BrokerReplicaInfo and SyncStateInfo for this, and one thing not:
`is_begun`. An election alone does not touch the SyncStateSet; the elected member does, when it has
taken mastership up and its files hold what it starts with. Until then the members that held every
confirmed message still count as such, so that an election that comes to nothing costs nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from shmq.errors import ConfigError, StoreCorruptError
from shmq.json_fields import Fields
from shmq.status import Elected

__all__ = [
    "BrokerDataCleaned",
    "BrokerIdApplied",
    "BrokerIdentity",
    "BrokerUpdated",
    "MasterElected",
    "Record",
    "ReplicasInfo",
    "ReplicasInfoTable",
    "SyncStateSetAltered",
    "apply_record",
    "decode_record",
    "encode_record",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerIdentity:
    """One member, as it registered."""

    broker_id: int
    """Its own, from 0; no other member has it."""
    address: str
    """Where it is found."""
    register_check_code: str
    """What it says to be the same one again."""
    is_async_learner: bool
    """It copies, and is never elected nor in sync."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicasInfo:
    """One replica set. A value."""

    cluster_name: str
    broker_name: str
    brokers: tuple[BrokerIdentity, ...] = ()
    """By broker_id."""
    next_broker_id: int = 1
    """More than any that was given."""
    master_broker_id: int | None = None
    """Who was elected; None: nobody."""
    master_epoch: int = 0
    """Of the last election; 0: there was none."""
    elected: Elected = Elected.IN_SYNC
    """By what right."""
    is_begun: bool = False
    """The elected member has taken up mastership."""
    sync_state_set: frozenset[int] = frozenset()
    """Members that hold every confirmed message; empty before the first mastership."""
    sync_state_set_epoch: int = 0
    """Grows with each change of it."""

    def find(self, broker_id: int | None) -> BrokerIdentity | None:
        """The member with that broker_id."""
        return next((each for each in self.brokers if each.broker_id == broker_id), None)

    @property
    def electable(self) -> frozenset[int]:
        """The members that are no learners."""
        return frozenset(each.broker_id for each in self.brokers if not each.is_async_learner)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerIdApplied:
    """A member has its broker_id; the first one of a broker_name makes the replica set."""

    cluster_name: str
    broker_name: str
    broker_id: int
    address: str
    register_check_code: str
    is_async_learner: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerUpdated:
    """A member registered from another address, or became a learner or none."""

    broker_name: str
    broker_id: int
    address: str
    is_async_learner: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MasterElected:
    """A member was elected, or nobody is master any more. The SyncStateSet stays."""

    broker_name: str
    master_broker_id: int | None
    master_epoch: int
    elected: Elected


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncStateSetAltered:
    """The master changed the SyncStateSet; the first time to itself alone: it began."""

    broker_name: str
    sync_state_set: tuple[int, ...]
    sync_state_set_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerDataCleaned:
    """Members, or with none named the whole replica set, are forgotten; its epoch is not."""

    broker_name: str
    broker_ids: tuple[int, ...]


Record = BrokerIdApplied | BrokerUpdated | MasterElected | SyncStateSetAltered | BrokerDataCleaned


class ReplicasInfoTable:
    """All replica sets, by broker_name."""

    def __init__(self) -> None:
        self._sets: dict[str, ReplicasInfo] = {}
        self._cleaned_epochs: dict[str, int] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ReplicasInfoTable) and self.snapshot() == other.snapshot()

    __hash__ = None  # type: ignore[assignment]  # it changes

    def get(self, broker_name: str) -> ReplicasInfo | None:
        """A replica set; None: nobody registered under that name."""
        return self._sets.get(broker_name)

    def names(self) -> list[str]:
        """Every broker_name, sorted."""
        return sorted(self._sets)

    def apply(self, record: Record) -> None:
        """Change the state; the only way.

        Raises:
            StoreCorruptError: the record does not fit; nothing changed.
        """
        name = record.broker_name
        info = self._sets.get(name)
        if isinstance(record, BrokerIdApplied) and info is None:
            info = ReplicasInfo(
                cluster_name=record.cluster_name,
                broker_name=name,
                master_epoch=self._cleaned_epochs.get(name, 0),
            )
        if info is None:
            raise _unfit(record, "no such replica set")
        after = apply_record(info, record)
        if after.brokers:
            self._sets[name] = after
            self._cleaned_epochs.pop(name, None)
        else:
            del self._sets[name]
            self._cleaned_epochs[name] = after.master_epoch

    def snapshot(self) -> dict[str, object]:
        """All of it, as JSON holds it."""
        return {
            "sets": [_encode_info(self._sets[name]) for name in self.names()],
            "cleaned_epochs": [
                {"broker_name": name, "master_epoch": epoch}
                for name, epoch in sorted(self._cleaned_epochs.items())
            ],
        }

    @classmethod
    def restore(cls, data: Mapping[str, object]) -> ReplicasInfoTable:
        """What `snapshot` gave.

        Raises:
            ConfigError: it is no snapshot.
        """
        fields = Fields(data, what="snapshot of the Controller")
        table = cls()
        for item in fields.items("sets"):
            info = _decode_info(item)
            table._sets[info.broker_name] = info
        for item in fields.items("cleaned_epochs"):
            cleaned = Fields(item, what="cleaned replica set")
            table._cleaned_epochs[cleaned.text("broker_name")] = cleaned.number("master_epoch")
        return table


def apply_record(info: ReplicasInfo, record: Record) -> ReplicasInfo:
    """The replica set behind one record; without members: it is gone.

    Raises:
        StoreCorruptError: the record does not fit.
    """
    match record:
        case BrokerIdApplied():
            if info.find(record.broker_id) is not None:
                raise _unfit(record, "that broker_id is another's")
            return dataclasses.replace(
                _with_broker(info, _identity(record, record.register_check_code)),
                next_broker_id=max(info.next_broker_id, record.broker_id + 1),
            )
        case BrokerUpdated():
            known = info.find(record.broker_id)
            if known is None:
                raise _unfit(record, "no such member")
            return _with_broker(info, _identity(record, known.register_check_code))
        case MasterElected():
            if record.master_epoch <= info.master_epoch:
                raise _unfit(record, f"master_epoch is {info.master_epoch}")
            if record.master_broker_id is not None and info.find(record.master_broker_id) is None:
                raise _unfit(record, "no such member")
            return dataclasses.replace(
                info,
                master_broker_id=record.master_broker_id,
                master_epoch=record.master_epoch,
                elected=record.elected,
                is_begun=False,
            )
        case SyncStateSetAltered():
            if record.sync_state_set_epoch <= info.sync_state_set_epoch:
                raise _unfit(record, f"sync_state_set_epoch is {info.sync_state_set_epoch}")
            if info.master_broker_id not in record.sync_state_set:
                raise _unfit(record, f"master is {info.master_broker_id}")
            return dataclasses.replace(
                info,
                is_begun=True,
                sync_state_set=frozenset(record.sync_state_set),
                sync_state_set_epoch=record.sync_state_set_epoch,
            )
        case BrokerDataCleaned():
            return _without(info, frozenset(record.broker_ids))


def _identity(record: BrokerIdApplied | BrokerUpdated, check_code: str) -> BrokerIdentity:
    return BrokerIdentity(
        broker_id=record.broker_id,
        address=record.address,
        register_check_code=check_code,
        is_async_learner=record.is_async_learner,
    )


def _with_broker(info: ReplicasInfo, broker: BrokerIdentity) -> ReplicasInfo:
    others = [each for each in info.brokers if each.broker_id != broker.broker_id]
    brokers = tuple(sorted([*others, broker], key=lambda each: each.broker_id))
    return dataclasses.replace(info, brokers=brokers)


def _without(info: ReplicasInfo, broker_ids: frozenset[int]) -> ReplicasInfo:
    if not broker_ids:
        return dataclasses.replace(info, brokers=())
    is_master_gone = info.master_broker_id in broker_ids
    in_sync = info.sync_state_set - broker_ids
    return dataclasses.replace(
        info,
        brokers=tuple(each for each in info.brokers if each.broker_id not in broker_ids),
        master_broker_id=None if is_master_gone else info.master_broker_id,
        is_begun=info.is_begun and not is_master_gone,
        sync_state_set=in_sync,
        sync_state_set_epoch=info.sync_state_set_epoch + (in_sync != info.sync_state_set),
    )


def _unfit(record: Record, why: str) -> StoreCorruptError:
    return StoreCorruptError(
        f"apply {record}: {why}; this journal was put together from several ones: restore one"
    )


_KINDS = [kind.__name__ for kind in Record.__args__]


def encode_record(record: Record) -> dict[str, object]:
    """The record as JSON holds it."""
    return {"kind": type(record).__name__, **dataclasses.asdict(record)}


def decode_record(data: Mapping[str, object]) -> Record:
    """What `encode_record` gave.

    Raises:
        ConfigError: it is no record.
    """
    fields = Fields(data, what="record of the Controller")
    kind, name = fields.text("kind"), fields.text("broker_name")
    match kind:
        case "BrokerIdApplied":
            return BrokerIdApplied(
                cluster_name=fields.text("cluster_name"),
                broker_name=name,
                broker_id=fields.number("broker_id"),
                address=fields.text("address"),
                register_check_code=fields.text("register_check_code"),
                is_async_learner=fields.flag("is_async_learner"),
            )
        case "BrokerUpdated":
            return BrokerUpdated(
                broker_name=name,
                broker_id=fields.number("broker_id"),
                address=fields.text("address"),
                is_async_learner=fields.flag("is_async_learner"),
            )
        case "MasterElected":
            return MasterElected(
                broker_name=name,
                master_broker_id=_optional_number(fields, data, "master_broker_id"),
                master_epoch=fields.number("master_epoch"),
                elected=_elected(fields.text("elected")),
            )
        case "SyncStateSetAltered":
            return SyncStateSetAltered(
                broker_name=name,
                sync_state_set=_numbers(data, "sync_state_set"),
                sync_state_set_epoch=fields.number("sync_state_set_epoch"),
            )
        case "BrokerDataCleaned":
            return BrokerDataCleaned(broker_name=name, broker_ids=_numbers(data, "broker_ids"))
    raise ConfigError(f"record of the Controller: kind {kind[:40]!r}, wanted one of {_KINDS}")


def _encode_info(info: ReplicasInfo) -> dict[str, object]:
    data = dataclasses.asdict(info)
    return {**data, "sync_state_set": sorted(info.sync_state_set)}


def _decode_info(data: Mapping[str, object]) -> ReplicasInfo:
    fields = Fields(data, what="replica set of the Controller")
    return ReplicasInfo(
        cluster_name=fields.text("cluster_name"),
        broker_name=fields.text("broker_name"),
        brokers=tuple(_decode_broker(item) for item in fields.items("brokers")),
        next_broker_id=fields.number("next_broker_id"),
        master_broker_id=_optional_number(fields, data, "master_broker_id"),
        master_epoch=fields.number("master_epoch"),
        elected=_elected(fields.text("elected")),
        is_begun=fields.flag("is_begun"),
        sync_state_set=frozenset(_numbers(data, "sync_state_set")),
        sync_state_set_epoch=fields.number("sync_state_set_epoch"),
    )


def _decode_broker(data: Mapping[str, object]) -> BrokerIdentity:
    fields = Fields(data, what="member of a replica set")
    return BrokerIdentity(
        broker_id=fields.number("broker_id"),
        address=fields.text("address"),
        register_check_code=fields.text("register_check_code"),
        is_async_learner=fields.flag("is_async_learner"),
    )


def _elected(text: str) -> Elected:
    try:
        return Elected(text)
    except ValueError:
        raise ConfigError(f"elected: {text[:40]!r}, wanted one of {[*Elected]}") from None


def _optional_number(fields: Fields, data: Mapping[str, object], key: str) -> int | None:
    return None if data.get(key) is None else fields.number(key)


def _numbers(data: Mapping[str, object], key: str) -> tuple[int, ...]:
    value = data.get(key)
    if not isinstance(value, list | tuple) or not all(type(each) is int for each in value):
        raise ConfigError(f"{key}: {value!r}, wanted a list of whole numbers")
    return tuple(value)
