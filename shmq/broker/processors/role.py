"""Roles: NOTIFY_BROKER_ROLE_CHANGED, GET_BROKER_EPOCH_CACHE.

In the loop's thread, of a broker or of a standby. A change of role is asked for here and happens
behind the answer: the connection that asked ends with the role that it changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import orjson

from shmq.broker.processors.fields import ranged
from shmq.broker.rights import Action
from shmq.errors import ConfigError
from shmq.remoting.codes import RequestCode
from shmq.remoting.command import Command, Scalar, response_to
from shmq.remoting.server import Connection, Processor
from shmq.store.epochs import EpochFile
from shmq.topic import BROKER_ID_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmq.broker.rights import Rights
    from shmq.config import BrokerConfig

__all__ = ["OnTold", "RoleProcessor"]

_EPOCH_MAX = (1 << 63) - 1


class OnTold(Protocol):
    """Takes what a member was told; see Member.tell."""

    def __call__(self, *, is_master: bool, master_epoch: int | None, is_unclean: bool) -> None:
        """Returns at once."""


class RoleProcessor:
    """Serves the requests about roles and epochs.

    Args:
        config: of the broker.
        rights: those in force.
        on_told: see OnTold.
    """

    def __init__(
        self, config: BrokerConfig, rights: Callable[[], Rights], *, on_told: OnTold
    ) -> None:
        self._config = config
        self._rights = rights
        self._on_told = on_told

    def table(self) -> dict[int, Processor]:
        """By code."""
        return {
            RequestCode.NOTIFY_BROKER_ROLE_CHANGED: Processor(handler=self._notify),
            RequestCode.GET_BROKER_EPOCH_CACHE: Processor(handler=self._epochs),
        }

    def _notify(self, connection: Connection, command: Command) -> Command:
        """MasterBrokerId is master from now on: this one, or another."""
        self._rights().require(connection.identity, Action.ADMIN, "")
        if self._config.enable_controller_mode:
            raise ConfigError(
                f"{command.name} to broker {self._config.broker_name}:{self._config.broker_id}: its"
                " Controller says who is master",
                hint="have that one elect a member: shmq ha elect",
            )
        take = command.fields()
        master_id = ranged(take, "masterBrokerId", 0, BROKER_ID_MAX)
        epoch = ranged(take, "masterEpoch", 0, _EPOCH_MAX, 0)
        self._on_told(
            is_master=master_id == self._config.broker_id,
            master_epoch=epoch or None,
            is_unclean=take.flag("isUnclean", False),
        )
        return response_to(command)

    def _epochs(self, connection: Connection, command: Command) -> Command:
        self._rights().require(connection.identity, Action.ADMIN, "")
        epochs = EpochFile.load(self._config.store_path).epochs
        fields: dict[str, Scalar] = {
            "clusterName": self._config.cluster_name,
            "brokerName": self._config.broker_name,
            "brokerId": self._config.broker_id,
        }
        body = {
            "epochList": [
                {"epoch": epoch.master_epoch, "startOffset": epoch.start_position}
                for epoch in epochs
            ]
        }
        return response_to(command, ext_fields=fields, body=orjson.dumps(body))
