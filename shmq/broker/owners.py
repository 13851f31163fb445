"""Who made which topic and which group: what the quotas of topics and groups are counted by.

What lives here: `OwnerTable` and its file, shmq/owners.json of the store (docs/formats/owners.md).
Only what counts is written down: what uids made to which quotas apply. What is deleted is
forgotten, and what is not there when the broker starts.

The loop's thread owns it (`load` runs before there is a loop); the file is written in a worker
thread. May fail: DiskFullError, StoreError. A file that is damaged is told of and begun anew: the
topics stay, and count for nobody.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from shmq.broker.saver import Saver
from shmq.errors import ConfigError, StoreCorruptError, StoreVersionError
from shmq.json_fields import Fields
from shmq.store import checked_json
from shmq.store.predecessor import OWNERS_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

__all__ = ["OwnerTable"]

_log = logging.getLogger("shmq.broker")

FORMAT_VERSION = 1
KINDS = ("topic", "group")


class OwnerTable:
    """Who made what.

    Args:
        store_path: folder of the store.
    """

    def __init__(self, store_path: Path) -> None:
        self._path = store_path / "shmq" / OWNERS_FILE
        self._owners: dict[str, dict[str, int]] = {kind: {} for kind in KINDS}
        self._saver: Saver[dict[str, object]] = Saver(self, self._contents)

    def load(self, exists: Mapping[str, Callable[[str], bool]]) -> None:
        """Read the file. Blocks; no loop runs yet.

        Args:
            exists: by kind: whether there is one of that name.

        Raises:
            StoreError: it cannot be read.
        """
        try:
            fields = checked_json.load_fields(self._path, FORMAT_VERSION)
            if fields is None:
                return
            for kind in KINDS:
                for item in fields.items(f"{kind}s"):
                    owner = Fields(item, what=f"{self._path}: {kind}s")
                    name, uid = owner.text("name"), owner.number("uid")
                    if exists[kind](name):
                        self._owners[kind][name] = uid
        except (ConfigError, StoreCorruptError, StoreVersionError) as error:
            _log.error("who made which topic is not known any more, quotas begin anew: %s", error)
            self._owners = {kind: {} for kind in KINDS}

    def count(self, kind: str, uid: int) -> int:
        """How many topics or groups a uid made."""
        return sum(owner == uid for owner in self._owners[kind].values())

    def owner(self, kind: str, name: str) -> int | None:
        """Who made it, as far as it counts for anybody."""
        return self._owners[kind].get(name)

    def add(self, kind: str, names: Iterable[str], uid: int) -> None:
        """They are being made, and count from now on."""
        self._owners[kind].update(dict.fromkeys(names, uid))

    async def remove(self, kind: str, *names: str) -> None:
        """They are not there (any more)."""
        gone = [name for name in names if self._owners[kind].pop(name, None) is not None]
        if gone:
            await self.save()

    async def save(self) -> None:
        """Return when everything so far is on disk.

        Raises:
            DiskFullError, StoreError: it is not.
        """
        await self._saver.save()

    def store(self, contents: dict[str, object]) -> None:
        """Write the file; for the Saver, in its thread. Blocks."""
        checked_json.save(self._path, contents)

    def _contents(self) -> dict[str, object]:
        return {
            "format_version": FORMAT_VERSION,
            **{
                f"{kind}s": [{"name": name, "uid": uid} for name, uid in sorted(owners.items())]
                for kind, owners in self._owners.items()
            },
        }
