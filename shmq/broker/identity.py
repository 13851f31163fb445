"""`<store>/shmq/broker_identity.json`: which member of which replica set a store is.

What lives here: `BrokerIdentity`, RocketMQ's brokerIdentity. It is written at the first start over
a store and compared at each: a folder that another broker filled is not this one's to serve, nor to
cut. A Controller gives a broker_id to whoever applies for it first, and later only to who has the
same check code; so where there is one nothing of the identity may change. Where there is none a
copy, or a backup, may go on under another broker_id or cluster_name: that is logged and written
down, and its log counts as adopted: nobody knows that it ever was a copy of this replica set's.

    {"broker_id": 1, "broker_name": "broker-a", "cluster_name": "c", "format_version": 1,
     "is_adopted": false, "register_check_code": "1f0c..."}       indented by two
    crc32 0a1b2c3d                               CRC-32 of all bytes above

Which process: the broker's, before it opens the store; writes under the store's lock. What may
fail: StoreCorruptError for a file that does not hold, ConfigError for another member's,
StoreLockedError, DiskFullError, StoreError.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from shmq.errors import ConfigError, StoreCorruptError
from shmq.store import checked_json
from shmq.store.durable_file import make_folder
from shmq.store.log_files import find_file_size
from shmq.store.store_lock import StoreLock

if TYPE_CHECKING:
    from pathlib import Path

    from shmq.config import BrokerConfig

__all__ = ["BrokerIdentity"]

_log = logging.getLogger("shmq.broker")

_FILE_NAME: Final = "broker_identity.json"
_FORMAT_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class BrokerIdentity:
    """What a store says of itself."""

    path: Path
    """Where it is written down."""
    register_check_code: str
    """Known to this store and the Controller, to which it is the same one again by that."""
    is_adopted: bool
    """A log was there when it was written, and nothing said that it was this replica set's."""

    @classmethod
    def of(cls, config: BrokerConfig) -> BrokerIdentity:
        """The identity of the store of a broker, made where it has none. Blocks for the disk.

        Raises:
            ConfigError: the store is another broker's; with a Controller, another member's.
            StoreCorruptError: with a Controller, the file does not hold.
            StoreLockedError, DiskFullError, StoreError: it cannot be read or written.
        """
        path = config.store_path / "shmq" / _FILE_NAME
        try:
            take = checked_json.load_fields(path, _FORMAT_VERSION)
        except StoreCorruptError as error:
            if config.enable_controller_mode:
                raise
            _log.warning("whose the store is must be written anew: %s", error)
            take = None
        if take is None:
            return cls._write(config, path)
        seen = (take.text("cluster_name"), take.text("broker_name"), take.number("broker_id"))
        wanted = (config.cluster_name, config.broker_name, config.broker_id)
        if seen == wanted:
            is_adopted = take.flag("is_adopted", False)
            return cls(path, take.text("register_check_code"), is_adopted)
        if config.enable_controller_mode or seen[1] != wanted[1]:
            raise ConfigError(
                f"read {path}: this store is {seen[1]}:{seen[2]} of cluster {seen[0]}, and not"
                f" {wanted[1]}:{wanted[2]} of cluster {wanted[0]}",
                hint="give the broker its own store, or the store its own name; one that was"
                " renamed on purpose loses this file first",
            )
        _log.warning(
            "the store was %s:%d of cluster %s and is %s:%d of cluster %s from now on path=%s",
            *(seen[1], seen[2], seen[0], wanted[1], wanted[2], wanted[0], path),
        )
        return cls._write(config, path)

    @classmethod
    def _write(cls, config: BrokerConfig, path: Path) -> BrokerIdentity:
        make_folder(path.parent)
        with StoreLock(config.store_path):
            is_adopted = find_file_size(config.store_path) is not None
            made = cls(path, secrets.token_hex(16), is_adopted)
            checked_json.save(
                path,
                {
                    "format_version": _FORMAT_VERSION,
                    "cluster_name": config.cluster_name,
                    "broker_name": config.broker_name,
                    "broker_id": config.broker_id,
                    "register_check_code": made.register_check_code,
                    "is_adopted": is_adopted,
                },
            )
        return made
