"""The Controller's processor table: requests to the state machine, its outcomes to responses.

Everybody who may connect may ask; who may administrate the ACL file says, without one everybody
too; only processes of the Controller's own uid (or root) are members of a replica set. A standby
answers GET_METADATA_INFO and refuses everything else with CONTROLLER_NOT_LEADER.

In the Controller, in its loop's thread. Writes nothing but what the machine decides.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final, Protocol

import orjson

from shmq.acl import Action
from shmq.controller.controller import Controller, Heartbeat, Outcome
from shmq.errors import ConfigError, PermissionDeniedError
from shmq.remoting import controller_requests as requests
from shmq.remoting.codes import RequestCode, ResponseCode
from shmq.remoting.command import Command, Scalar, response_to
from shmq.remoting.server import Connection, Processor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shmq.acl import AclFile
    from shmq.controller.replicas import ReplicasInfo
    from shmq.json_fields import Fields

__all__ = ["Active", "ControllerProcessor", "shown"]

_BROKER_NAME: Final = re.compile(r"[^\s/\x00-\x1f\x7f]{1,127}")
_ADDRESS: Final = re.compile(r"broker-[A-Za-z0-9_-]{1,72}")
_ID_MAX: Final = 1_000_000
_COUNT_MAX: Final = 10_000


class Active(Protocol):
    """The Controller around the machine."""

    @property
    def machine(self) -> Controller | None:
        """None: this one is a standby."""

    @property
    def name(self) -> str:
        """Of this instance."""

    def now_ns(self) -> int:
        """Attended time."""

    def obey(self, outcome: Outcome) -> bool:
        """Make an outcome durable, apply it, tell and fence; False: the journal failed, and
        nothing was decided.
        """

    def seen(self, connection: Connection, broker_name: str, broker_id: int) -> None:
        """A member has spoken through this connection."""

    def settings(self) -> Mapping[str, object]:
        """Its settings as they are."""

    def set_settings(self, settings: Mapping[str, object]) -> None:
        """Change some until it ends; ConfigError where one cannot be."""


class ControllerProcessor:
    """Serves one Controller's requests.

    Args:
        active: the Controller.
        acl_file: gives the rules of who may administrate; None: everybody.
    """

    def __init__(self, active: Active, acl_file: AclFile | None) -> None:
        self._active = active
        self._acl_file = acl_file

    def table(self) -> dict[int, Processor]:
        """By code."""
        code = RequestCode
        handlers: dict[int, Callable[[Controller, Connection, Command], Command]] = {
            code.CONTROLLER_GET_NEXT_BROKER_ID: self._next_broker_id,
            code.CONTROLLER_APPLY_BROKER_ID: self._apply_broker_id,
            code.CONTROLLER_REGISTER_BROKER: self._register,
            code.BROKER_HEARTBEAT: self._heartbeat,
            code.CONTROLLER_ALTER_SYNC_STATE_SET: self._alter,
            code.CONTROLLER_ELECT_MASTER: self._elect,
            code.CONTROLLER_GET_REPLICA_INFO: self._replica_info,
            code.CONTROLLER_GET_SYNC_STATE_DATA: self._sync_state_data,
            code.CLEAN_BROKER_DATA: self._clean,
            code.GET_CONTROLLER_CONFIG: self._get_config,
            code.UPDATE_CONTROLLER_CONFIG: self._update_config,
        }
        return {
            **{
                number: Processor(handler=self._of_active(each))
                for number, each in handlers.items()
            },
            code.CONTROLLER_GET_METADATA_INFO: Processor(handler=self._metadata),
        }

    def _of_active(
        self, handle: Callable[[Controller, Connection, Command], Command]
    ) -> Callable[[Connection, Command], Command]:
        def served(connection: Connection, command: Command) -> Command:
            machine = self._active.machine
            if machine is None:
                return self._not_leader(command)
            return handle(machine, connection, command)

        return served

    def _not_leader(self, command: Command) -> Command:
        return response_to(
            command,
            code=ResponseCode.CONTROLLER_NOT_LEADER,
            remark=f"{command.name}: Controller {self._active.name} is not the active one; ask the"
            " others of this runtime folder",
        )

    def _metadata(self, _connection: Connection, command: Command) -> Command:
        is_leader = self._active.machine is not None
        fields: dict[str, Scalar] = {
            "controllerName": self._active.name,
            "isLeader": is_leader,
            "controllerLeaderId": self._active.name if is_leader else None,
            "pid": os.getpid(),
        }
        return response_to(command, ext_fields=fields)

    # ---- members -----------------------------------------------------------------------------

    def _next_broker_id(
        self, machine: Controller, connection: Connection, command: Command
    ) -> Command:
        _check_is_member(connection, command)
        take = command.fields()
        name = _broker_name(take)
        outcome = machine.get_next_broker_id(
            cluster_name=take.text("clusterName"), broker_name=name
        )
        return self._answer(command, outcome, broker_name=name)

    def _apply_broker_id(
        self, machine: Controller, connection: Connection, command: Command
    ) -> Command:
        _check_is_member(connection, command)
        take = command.fields()
        outcome = machine.apply_broker_id(
            cluster_name=take.text("clusterName"),
            broker_name=_broker_name(take),
            broker_id=_broker_id(take, "appliedBrokerId"),
            address=_address(take),
            register_check_code=take.text("registerCheckCode"),
            is_async_learner=take.flag("asyncLearner", False),
        )
        return self._answer(command, outcome)

    def _register(self, machine: Controller, connection: Connection, command: Command) -> Command:
        _check_is_member(connection, command)
        take = command.fields()
        name, broker_id = _broker_name(take), _broker_id(take)
        outcome = machine.register_broker(
            cluster_name=take.text("clusterName"),
            broker_name=name,
            broker_id=broker_id,
            address=_address(take),
            is_async_learner=take.flag("asyncLearner", False),
        )
        if outcome.code == ResponseCode.SUCCESS:
            self._active.seen(connection, name, broker_id)
        return self._answer(command, outcome)

    def _heartbeat(self, machine: Controller, connection: Connection, command: Command) -> Command:
        _check_is_member(connection, command)
        take = command.fields()
        beat = Heartbeat(
            broker_name=_broker_name(take),
            broker_id=_broker_id(take),
            master_epoch=take.number("epoch"),
            log_epoch=take.number("logEpoch"),
            log_end=take.number("maxOffset"),
            election_priority=take.number("electionPriority", 2**31 - 1),
            refused_epoch=take.number("refusedEpoch", 0),
        )
        self._active.seen(connection, beat.broker_name, beat.broker_id)
        return self._answer(command, machine.heartbeat(beat, now_ns=self._active.now_ns()))

    def _alter(self, machine: Controller, connection: Connection, command: Command) -> Command:
        _check_is_member(connection, command)
        take = command.fields()
        epoch = command.json().get("syncStateSetEpoch")
        if type(epoch) is not int:
            raise ConfigError(f"{command.name}: syncStateSetEpoch: wanted a whole number")
        outcome = machine.alter_sync_state_set(
            broker_name=_broker_name(take),
            master_broker_id=_broker_id(take, "masterBrokerId"),
            master_epoch=take.number("masterEpoch"),
            sync_state_set=requests.broker_ids_of(command),
            sync_state_set_epoch=epoch,
            now_ns=self._active.now_ns(),
        )
        return self._answer(command, outcome)

    # ---- administrators ----------------------------------------------------------------------

    def _elect(self, machine: Controller, connection: Connection, command: Command) -> Command:
        self._require_admin(connection, command)
        take = command.fields()
        is_by_hand = take.flag("designateElect", False)
        outcome = machine.elect_master(
            broker_name=_broker_name(take),
            broker_id=_broker_id(take) if is_by_hand else None,
            now_ns=self._active.now_ns(),
        )
        return self._answer(command, outcome)

    def _clean(self, machine: Controller, connection: Connection, command: Command) -> Command:
        self._require_admin(connection, command)
        take = command.fields()
        text = take.text("brokerControllerIdsToClean", "")
        ids = [part for part in text.split(";") if part]
        if not all(part.isdigit() for part in ids):
            raise ConfigError(
                f"{command.name}: brokerControllerIdsToClean: {text[:60]!r}, wanted numbers joined"
                ' by ";"'
            )
        outcome = machine.clean_broker_data(
            broker_name=_broker_name(take),
            broker_ids=[int(part) for part in ids],
            is_living_cleaned=take.flag("isCleanLivingBroker", False),
            now_ns=self._active.now_ns(),
        )
        return self._answer(command, outcome)

    def _get_config(self, _: Controller, _connection: Connection, command: Command) -> Command:
        shown_settings = {key: str(value) for key, value in self._active.settings().items()}
        return response_to(command, body=orjson.dumps(shown_settings))

    def _update_config(self, _: Controller, connection: Connection, command: Command) -> Command:
        self._require_admin(connection, command)
        self._active.set_settings(command.json())
        return response_to(command)

    # ---- whoever asks ------------------------------------------------------------------------

    def _replica_info(self, machine: Controller, _: Connection, command: Command) -> Command:
        return self._answer(command, machine.get_replica_info(_broker_name(command.fields())))

    def _sync_state_data(self, machine: Controller, _: Connection, command: Command) -> Command:
        names = orjson.loads(command.body or b"[]")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"{command.name}: body: wanted a list of broker_names")
        now_ns = self._active.now_ns()
        found = [
            requests.SyncStateData(info=shown(info), members=_members(machine, info, now_ns))
            for info in machine.get_sync_state_data(names[:_COUNT_MAX])
        ]
        return response_to(command, body=requests.sync_state_data_to_json(found))

    # ---- answering ---------------------------------------------------------------------------

    def _answer(self, command: Command, outcome: Outcome, *, broker_name: str = "") -> Command:
        if not self._active.obey(outcome):
            return self._not_leader(command)
        fields: dict[str, Scalar] = {}
        body = b""
        if outcome.broker_id is not None:
            fields |= {"nextBrokerId": outcome.broker_id, "brokerName": broker_name}
        if outcome.info is not None:
            info = shown(outcome.info)
            fields |= info.to_fields()
            body = info.to_body()
        return response_to(
            command,
            code=outcome.code,
            ext_fields=fields,
            body=body,
            remark=outcome.remark or None,
        )

    def _require_admin(self, connection: Connection, command: Command) -> None:
        file, identity = self._acl_file, connection.identity
        if file is None or identity.uid in (0, os.geteuid()):
            return
        said = file.acl.explain(identity.uid, identity.gids, Action.ADMIN, "")
        if not said.is_allowed:
            raise PermissionDeniedError(
                f"{command.name}: denied to {identity} by {said.rule}",
                hint="whoever administrates the Controller can change its acl_file; see"
                " docs/operate/rights.md",
            )


def shown(info: ReplicasInfo) -> requests.ReplicaInfo:
    """A replica set as it is told."""
    master = info.find(info.master_broker_id)
    return requests.ReplicaInfo(
        cluster_name=info.cluster_name,
        broker_name=info.broker_name,
        master_broker_id=info.master_broker_id,
        master_address="" if master is None else master.address,
        master_epoch=info.master_epoch,
        elected=info.elected,
        is_begun=info.is_begun,
        sync_state_set=info.sync_state_set,
        sync_state_set_epoch=info.sync_state_set_epoch,
    )


def _members(
    machine: Controller, info: ReplicasInfo, now_ns: int
) -> tuple[requests.MemberState, ...]:
    found = []
    for each in info.brokers:
        beat = machine.last_heartbeat(info.broker_name, each.broker_id)
        found.append(
            requests.MemberState(
                broker_id=each.broker_id,
                broker_address=each.address,
                is_alive=machine.is_active(info.broker_name, each.broker_id, now_ns=now_ns),
                is_in_sync=each.broker_id in info.sync_state_set,
                is_async_learner=each.is_async_learner,
                log_epoch=beat.log_epoch if beat else 0,
                log_end=beat.log_end if beat else 0,
                election_priority=beat.election_priority if beat else 2**31 - 1,
            )
        )
    return tuple(found)


def _check_is_member(connection: Connection, command: Command) -> None:
    uid = connection.identity.uid
    if uid not in (os.geteuid(), 0):
        raise PermissionDeniedError(
            f"{command.name}: {connection.identity}; wanted uid {os.geteuid()}, whose replica sets"
            " they are"
        )


def _broker_name(take: Fields) -> str:
    name = take.text("brokerName")
    if not _BROKER_NAME.fullmatch(name):
        raise ConfigError(
            f"{take.what}: brokerName: {name[:130]!r}, wanted 1 to 127 printable characters without"
            " blanks and /"
        )
    return name


def _broker_id(take: Fields, key: str = "brokerId") -> int:
    value = take.number(key)
    if not 0 <= value <= _ID_MAX:
        raise ConfigError(f"{take.what}: {key}: {value}, wanted 0 to {_ID_MAX}")
    return value


def _address(take: Fields) -> str:
    address = take.text("brokerAddress")
    if not _ADDRESS.fullmatch(address):
        raise ConfigError(
            f"{take.what}: brokerAddress: {address[:100]!r}, wanted the name of a broker's socket"
        )
    return address
