"""`<store>/shmq/broker_identity.json`: which member of which replica set a store is, for good.

What lives here: `BrokerIdentity`, RocketMQ's brokerIdentity. A Controller gives a broker_id to
whoever applies for it first, and later only to who has the same check code; so it is written down
before it is applied for. Two stores under one broker_id, or one under two, are refused.

    {"broker_id": 1, "broker_name": "broker-a", "cluster_name": "c", "format_version": 1,
     "register_check_code": "1f0c..."}           indented by two
    crc32 0a1b2c3d                               CRC-32 of all bytes above

Which process: the broker's, where a Controller says who is master. What may fail: StoreCorruptError
for a file that does not hold, ConfigError for another member's, DiskFullError, StoreError.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from shmq.errors import ConfigError
from shmq.json_fields import Fields
from shmq.store import checked_json
from shmq.store.durable_file import make_folder

if TYPE_CHECKING:
    from shmq.config import BrokerConfig

__all__ = ["BrokerIdentity"]

_FILE_NAME: Final = "broker_identity.json"
_FORMAT_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class BrokerIdentity:
    """What a store says to a Controller to be the same one again."""

    register_check_code: str
    """Known to this store and the Controller."""

    @classmethod
    def of(cls, config: BrokerConfig) -> BrokerIdentity:
        """The identity of the store of a broker, made where it has none. Blocks for the disk.

        Raises:
            ConfigError: the store is another member's.
            StoreCorruptError, DiskFullError, StoreError: the file cannot be used.
        """
        folder = config.store_path / "shmq"
        path = folder / _FILE_NAME
        data = checked_json.load(path)
        if data is None:
            made = cls(secrets.token_hex(16))
            make_folder(config.store_path)
            make_folder(folder)
            checked_json.save(
                path,
                {
                    "format_version": _FORMAT_VERSION,
                    "cluster_name": config.cluster_name,
                    "broker_name": config.broker_name,
                    "broker_id": config.broker_id,
                    "register_check_code": made.register_check_code,
                },
            )
            return made
        take = Fields(data, what=f"read {path}")
        seen = (take.text("cluster_name"), take.text("broker_name"), take.number("broker_id"))
        wanted = (config.cluster_name, config.broker_name, config.broker_id)
        version = take.number("format_version")
        if version != _FORMAT_VERSION:
            raise ConfigError(f"read {path}: format {version}, wanted {_FORMAT_VERSION}")
        if seen != wanted:
            raise ConfigError(
                f"read {path}: this store is {seen[1]}:{seen[2]} of cluster {seen[0]}, and not"
                f" {wanted[1]}:{wanted[2]} of cluster {wanted[0]}",
                hint="give the broker its own store, or the store its own name",
            )
        return cls(take.text("register_check_code"))
