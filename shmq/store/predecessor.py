"""What the member that was master last wrote down, beside the log: its config/ and two files more.

What lives here: `take_newer`. A slave copies its master's configuration now and then, so at that
master's death it may lack what was changed since; a change was on the master's disk before anybody
was told that it holds. Where that folder can be read, a successor takes each file that is newer:

    config/topics.json, subscriptionGroup.json, consumerOffset.json, delayOffset.json
                              dataVersion says which is newer: a slave's is that of its master
    shmq/delay_marks.json     of this boot, and written later
    shmq/owners.json          slaves do not have it: as it is

Where that disk is gone too, or a file does not hold, ours counts: it is told of, and no failure.

Which process: a member that holds mastership, once its store is open and before anything reads
config/. Writes our folder only; the other's owner is dead, or waits. May fail: as durable_file says
for our disk.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from shmq.errors import ConfigError, StoreError
from shmq.shm.incarnation import boot_id
from shmq.store import checked_json
from shmq.store.config_files import (
    ConfigFiles,
    ConsumerOffsets,
    DataVersion,
    DelayOffsets,
    SubscriptionGroups,
    Topics,
)
from shmq.store.delay_marks import DELAY_MARKS_FILE, marked_ns

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["OWNERS_FILE", "take_newer"]

_log = logging.getLogger("shmq.store")

OWNERS_FILE: Final = "owners.json"
"""Who made which topic and which group (broker/owners.py)."""
_VERSIONED: Final = (
    Topics.FILE_NAME,
    SubscriptionGroups.FILE_NAME,
    ConsumerOffsets.FILE_NAME,
    DelayOffsets.FILE_NAME,
)


def take_newer(theirs: Path, ours: Path) -> list[str]:
    """Replace each file of the store `ours` that is newer in the store `theirs`. Blocks.

    Returns:
        The names of the files that were taken.

    Raises:
        DiskFullError, StoreError: ours cannot be read or written.
    """
    taken = [name for name in _VERSIONED if _take_config(name, theirs, ours)]
    for name, is_newer in ((DELAY_MARKS_FILE, _are_marks_newer), (OWNERS_FILE, _is_other)):
        found = _load_checked(theirs / "shmq" / name)
        if found is not None and is_newer(found, _load_checked(ours / "shmq" / name)):
            checked_json.save(ours / "shmq" / name, found)
            taken.append(name)
    if taken:
        _log.warning("took what is newer path=%s files=%s", theirs, ",".join(taken))
    return taken


def _take_config(name: str, theirs: Path, ours: Path) -> bool:
    try:
        found = ConfigFiles(theirs).file(name).load().data
        version = DataVersion.from_dict(found.get("dataVersion"))
    except (ConfigError, StoreError) as error:
        _log.warning("of the last master's configuration ours counts: %s", error)
        return False
    file = ConfigFiles(ours).file(name)
    try:
        known = DataVersion.from_dict(file.load().data.get("dataVersion"))
    except ConfigError as error:
        _log.warning("the last master's configuration counts: %s", error)
        known = DataVersion()
    if version.is_newer(known):
        file.store(found)
        return True
    return False


def _load_checked(path: Path) -> dict[str, object] | None:
    """What a file holds; None without one, or where it does not hold."""
    try:
        return checked_json.load(path)
    except StoreError as error:
        _log.warning("passed over: %s", error)
        return None


def _are_marks_newer(theirs: dict[str, object], ours: dict[str, object] | None) -> bool:
    boot = boot_id().hex()
    return marked_ns(theirs, boot) > (marked_ns(ours, boot) if ours is not None else 0)


def _is_other(theirs: dict[str, object], ours: dict[str, object] | None) -> bool:
    return theirs != ours
