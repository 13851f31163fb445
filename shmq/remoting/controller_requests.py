"""What a Controller is asked and what it tells, as commands: the one place that spells its fields.

Brokers register and beat here, tools ask here, the Controller's processor takes apart what these
functions put together. Fields and bodies are RocketMQ's where it has them; `elected`, `isBegun`,
`logEpoch` and `refusedEpoch` are ours (decision 0024), and so is that a member says with its
heartbeat what it could not do. An address is the name of a socket in the runtime folder, never a
path.

Pure: nothing is sent, nothing blocks. An answer of another shape raises ConfigError.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import orjson

from shmq.errors import ConfigError
from shmq.json_fields import Fields
from shmq.remoting.codes import RequestCode
from shmq.remoting.command import Command, Scalar
from shmq.status import Elected

__all__ = [
    "MemberState",
    "ReplicaInfo",
    "SyncStateData",
    "alter_sync_state_set",
    "apply_broker_id",
    "broker_heartbeat",
    "broker_ids_of",
    "clean_broker_data",
    "elect_master",
    "get_controller_config",
    "get_metadata_info",
    "get_next_broker_id",
    "get_replica_info",
    "get_sync_state_data",
    "register_broker",
    "sync_state_data_of",
    "sync_state_data_to_json",
    "update_controller_config",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaInfo:
    """One replica set as the Controller tells it."""

    cluster_name: str
    broker_name: str
    master_broker_id: int | None
    """Who was elected; None: nobody."""
    master_address: str
    """Its socket; empty where there is none."""
    master_epoch: int
    """Of that election."""
    elected: Elected
    """By what right."""
    is_begun: bool
    """It has taken up mastership."""
    sync_state_set: frozenset[int]
    """Members that hold every confirmed message."""
    sync_state_set_epoch: int
    """Grows with each change of it."""

    @property
    def age(self) -> tuple[int, bool, int]:
        """Of two that were told of one replica set, the greater is the newer."""
        return (self.master_epoch, self.is_begun, self.sync_state_set_epoch)

    def to_fields(self) -> dict[str, Scalar]:
        """The fields of an answer or of a notice."""
        return {
            "clusterName": self.cluster_name,
            "brokerName": self.broker_name,
            "masterBrokerId": self.master_broker_id,
            "masterAddress": self.master_address,
            "masterEpoch": self.master_epoch,
            "elected": self.elected,
            "isBegun": self.is_begun,
            "syncStateSetEpoch": self.sync_state_set_epoch,
        }

    def to_body(self) -> bytes:
        """Its body: RocketMQ's SyncStateSet."""
        return _sync_state_set(self.sync_state_set, self.sync_state_set_epoch)

    @classmethod
    def of(cls, command: Command) -> ReplicaInfo | None:
        """What an answer or a notice tells; None: it tells of none, as a refusal may."""
        if "masterEpoch" not in command.ext_fields:
            return None
        take = command.fields()
        master = command.ext_fields.get("masterBrokerId")
        try:
            elected = Elected(take.text("elected"))
        except ValueError:
            raise ConfigError(f"{command.name}: elected: wanted one of {[*Elected]}") from None
        return cls(
            cluster_name=take.text("clusterName"),
            broker_name=take.text("brokerName"),
            master_broker_id=None if master is None else take.number("masterBrokerId"),
            master_address=take.text("masterAddress", ""),
            master_epoch=take.number("masterEpoch"),
            elected=elected,
            is_begun=take.flag("isBegun"),
            sync_state_set=broker_ids_of(command),
            sync_state_set_epoch=take.number("syncStateSetEpoch"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberState:
    """One member as the Controller knows it."""

    broker_id: int
    broker_address: str
    """Its socket."""
    is_alive: bool
    """It sends heartbeats."""
    is_in_sync: bool
    """It is in the SyncStateSet."""
    is_async_learner: bool
    """It is never elected."""
    log_epoch: int
    """Under which its log's last byte was written, as it said last; 0: none, or it said nothing."""
    log_end: int
    """physical_offset behind its log, as it said last."""
    election_priority: int
    """brokerElectionPriority, as it said last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncStateData:
    """One replica set with its members."""

    info: ReplicaInfo
    members: tuple[MemberState, ...]
    """By broker_id."""


def get_metadata_info() -> Command:
    """Which Controller is active; every one answers."""
    return Command(RequestCode.CONTROLLER_GET_METADATA_INFO)


def get_next_broker_id(cluster_name: str, broker_name: str) -> Command:
    """Which broker_id is free."""
    return Command(
        RequestCode.CONTROLLER_GET_NEXT_BROKER_ID,
        {"clusterName": cluster_name, "brokerName": broker_name},
    )


def apply_broker_id(
    *,
    cluster_name: str,
    broker_name: str,
    broker_id: int,
    address: str,
    register_check_code: str,
    is_async_learner: bool,
) -> Command:
    """Have a broker_id for good."""
    return Command(
        RequestCode.CONTROLLER_APPLY_BROKER_ID,
        {
            "clusterName": cluster_name,
            "brokerName": broker_name,
            "appliedBrokerId": broker_id,
            "brokerAddress": address,
            "registerCheckCode": register_check_code,
            "asyncLearner": is_async_learner,
        },
    )


def register_broker(
    *, cluster_name: str, broker_name: str, broker_id: int, address: str, is_async_learner: bool
) -> Command:
    """A member starts."""
    return Command(
        RequestCode.CONTROLLER_REGISTER_BROKER,
        {
            "clusterName": cluster_name,
            "brokerName": broker_name,
            "brokerId": broker_id,
            "brokerAddress": address,
            "asyncLearner": is_async_learner,
        },
    )


def broker_heartbeat(
    *,
    broker_name: str,
    broker_id: int,
    master_epoch: int,
    log_epoch: int,
    log_end: int,
    election_priority: int,
    refused_epoch: int,
) -> Command:
    """A member lives; answered with how its replica set is."""
    return Command(
        RequestCode.BROKER_HEARTBEAT,
        {
            "brokerName": broker_name,
            "brokerId": broker_id,
            "epoch": master_epoch,
            "logEpoch": log_epoch,
            "maxOffset": log_end,
            "electionPriority": election_priority,
            "refusedEpoch": refused_epoch,
        },
    )


def alter_sync_state_set(
    *,
    broker_name: str,
    master_broker_id: int,
    master_epoch: int,
    sync_state_set: Iterable[int],
    sync_state_set_epoch: int,
) -> Command:
    """The master says who is in sync; `sync_state_set_epoch`: of the set that it changes."""
    return Command(
        RequestCode.CONTROLLER_ALTER_SYNC_STATE_SET,
        {
            "brokerName": broker_name,
            "masterBrokerId": master_broker_id,
            "masterEpoch": master_epoch,
        },
        _sync_state_set(sync_state_set, sync_state_set_epoch),
    )


def elect_master(broker_name: str, broker_id: int | None) -> Command:
    """Have a member elected by hand, or with None whom the Controller would."""
    return Command(
        RequestCode.CONTROLLER_ELECT_MASTER,
        {
            "brokerName": broker_name,
            "brokerId": broker_id,
            "designateElect": broker_id is not None,
        },
    )


def get_replica_info(broker_name: str) -> Command:
    """How one replica set is."""
    return Command(RequestCode.CONTROLLER_GET_REPLICA_INFO, {"brokerName": broker_name})


def get_sync_state_data(broker_names: Sequence[str] = ()) -> Command:
    """How these replica sets and their members are; with none named, all."""
    return Command(
        RequestCode.CONTROLLER_GET_SYNC_STATE_DATA, body=orjson.dumps(list(broker_names))
    )


def clean_broker_data(
    broker_name: str, broker_ids: Iterable[int] = (), *, is_living_cleaned: bool = False
) -> Command:
    """Have members forgotten, or with none named the whole replica set."""
    return Command(
        RequestCode.CLEAN_BROKER_DATA,
        {
            "brokerName": broker_name,
            "brokerControllerIdsToClean": ";".join(str(each) for each in broker_ids),
            "isCleanLivingBroker": is_living_cleaned,
        },
    )


def get_controller_config() -> Command:
    """Its settings."""
    return Command(RequestCode.GET_CONTROLLER_CONFIG)


def update_controller_config(settings: Mapping[str, str]) -> Command:
    """Change settings until it ends, by their own names or RocketMQ's."""
    return Command(RequestCode.UPDATE_CONTROLLER_CONFIG, body=orjson.dumps(dict(settings)))


def broker_ids_of(command: Command) -> frozenset[int]:
    """The SyncStateSet of a body."""
    value = command.json().get("syncStateSet")
    if not isinstance(value, list) or not all(type(each) is int for each in value):
        raise ConfigError(f"{command.name}: syncStateSet: wanted a list of whole numbers")
    return frozenset(value)


def sync_state_data_to_json(found: Iterable[SyncStateData]) -> bytes:
    """The body of an answer to `get_sync_state_data`: RocketMQ's BrokerReplicasInfo."""
    table = {}
    for each in found:
        members = [
            {
                "brokerName": each.info.broker_name,
                "brokerId": member.broker_id,
                "brokerAddress": member.broker_address,
                "alive": member.is_alive,
                "inSync": member.is_in_sync,
                "asyncLearner": member.is_async_learner,
                "logEpoch": member.log_epoch,
                "maxOffset": member.log_end,
                "electionPriority": member.election_priority,
            }
            for member in each.members
        ]
        table[each.info.broker_name] = {
            **each.info.to_fields(),
            "inSyncReplicas": [member for member in members if member["inSync"]],
            "notInSyncReplicas": [member for member in members if not member["inSync"]],
        }
    return orjson.dumps({"replicasInfoTable": table})


def sync_state_data_of(answer: Command) -> list[SyncStateData]:
    """What the answer to `get_sync_state_data` tells, by broker_name."""
    table = answer.json().get("replicasInfoTable")
    if not isinstance(table, dict):
        raise ConfigError("GET_SYNC_STATE_DATA: replicasInfoTable: wanted an object")
    return [_sync_state_data(name, table[name]) for name in sorted(table)]


def _sync_state_data(name: str, data: Mapping[str, object]) -> SyncStateData:
    take = Fields(data, what=f"replica set {name}")
    members = sorted(
        (_member(item) for key in _LISTS for item in take.items(key)),
        key=lambda member: member.broker_id,
    )
    in_sync = [member.broker_id for member in members if member.is_in_sync]
    info = ReplicaInfo.of(
        Command(
            RequestCode.CONTROLLER_GET_SYNC_STATE_DATA,
            {key: value for key, value in data.items() if isinstance(value, str | int)},
            _sync_state_set(in_sync, take.number("syncStateSetEpoch")),
        )
    )
    if info is None:
        raise ConfigError(f"replica set {name}: masterEpoch: missing")
    return SyncStateData(info=info, members=tuple(members))


_LISTS = ("inSyncReplicas", "notInSyncReplicas")


def _member(data: Mapping[str, object]) -> MemberState:
    take = Fields(data, what="member of a replica set")
    return MemberState(
        broker_id=take.number("brokerId"),
        broker_address=take.text("brokerAddress"),
        is_alive=take.flag("alive"),
        is_in_sync=take.flag("inSync"),
        is_async_learner=take.flag("asyncLearner"),
        log_epoch=take.number("logEpoch"),
        log_end=take.number("maxOffset"),
        election_priority=take.number("electionPriority"),
    )


def _sync_state_set(broker_ids: Iterable[int], epoch: int) -> bytes:
    return orjson.dumps({"syncStateSet": sorted(broker_ids), "syncStateSetEpoch": epoch})
