"""Whether a member that is about to be master has the newest log of its replica set, or may not be.

What lives here: `require_newest`, asked before a member becomes master by its id alone, and
`require_own_memory`, before one does that was told. What only other members have would come back
only by being appended again, behind newer messages (resend.py), or, where our own disk is lost and
we begin anew, not at all. A person who wants that says so, and is not asked.

What is looked at: the record of the last master (mastership.json), the memory and the store that it
names, the members that answer, and the locks in the runtime folder, which stay where a member ran
in this boot. A folder on which nobody else ever listened is a broker's on its own: it may begin
anew as it likes.

Which process: a broker's, in the thread that changes its role, with mastership held. Reads only;
blocks for the disk, and a second for a member that does not answer. May fail: FencedError.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from shmq.errors import FencedError, ShmqError
from shmq.remoting.client import Client
from shmq.remoting.codes import RequestCode
from shmq.remoting.command import Command
from shmq.remoting.runtime_folder import RuntimeFolder, broker_socket_name
from shmq.shm import manifest as manifests
from shmq.store.left_memory import has_memory, is_recorded_store
from shmq.store.log_end import LogEnd, log_end

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from shmq.config import BrokerConfig
    from shmq.shm.mastership import MasterRecord

__all__ = ["require_newest", "require_own_memory"]

_log = logging.getLogger("shmq.broker")

_ASK_TIMEOUT_S: Final = 1.0
"""A member that hangs is not waited for: sends do."""


def require_newest(config: BrokerConfig, folder: Path, record: MasterRecord | None) -> None:
    """Return if no other member is known to have more than we.

    Args:
        config: of the member.
        folder: the replica set's own.
        record: what the last master wrote there; None: nobody was master in this boot.

    Raises:
        FencedError: the member that was master last has more on its disk, one that answers has
            more, or it was we, and our log of that time is gone.
    """
    if record is not None and _goes_on_in_memory(config, folder, record):
        return
    with RuntimeFolder.make(config.runtime_folder()) as runtime:
        others = _ids(runtime.locked_names("broker"), config)
        if record is not None and record.broker_id == config.broker_id:
            if others:
                _require_store(config, record, others)
        elif record is not None:
            _require_as_long(config, record)
        for broker_id in _ids(runtime.socket_names("broker"), config):
            _require_as_long_as(runtime, config, broker_id)


def require_own_memory(config: BrokerConfig, folder: Path, record: MasterRecord | None) -> None:
    """Return if we may go on with our own log: what we left in memory as the last master is gone,
    is ours to adopt, or there is nobody else who could go on with it.

    Raises:
        FencedError: it is there, our store of that time is not, and there are other members.
        ShmError: nobody knows.
    """
    if record is None or not _is_left_here(config, record):
        return
    if is_recorded_store(config.store_path, record):
        return
    with RuntimeFolder.make(config.runtime_folder()) as runtime:
        others = _ids(runtime.locked_names("broker"), config)
    if not others or not has_memory(folder, record) or _lists_memory(record):
        return
    name = config.broker_name
    raise FencedError(
        f"become master with {config.store_path}: it is not the store with which this broker was"
        f" master in epoch {record.master_epoch}, and what that one left is still in memory",
        hint=f"have another member go on with it: shmq ha switch {name} --to {others[0]}; or give"
        f" it up: shmq ha switch {name} --to {config.broker_id} --unclean",
    )


def _goes_on_in_memory(config: BrokerConfig, folder: Path, record: MasterRecord) -> bool:
    """Whether the store will open with the last master's memory, or say why not."""
    try:
        if _is_left_here(config, record) and not _lists_memory(record):
            return False  # found by names alone it is for another member
        return has_memory(folder, record)
    except ShmqError as error:  # whose it is says so when the store is opened
        _log.warning("what the last master left in memory is not known: %s", error)
        return False


def _is_left_here(config: BrokerConfig, record: MasterRecord) -> bool:
    return record.manifest_path == manifests.manifest_path(config.store_path).absolute()


def _lists_memory(record: MasterRecord) -> bool:
    return manifests.load(record.manifest_path) is not None


def _require_store(config: BrokerConfig, record: MasterRecord, others: list[int]) -> None:
    """Return if our store is the one with which we were master last."""
    try:
        if is_recorded_store(config.store_path, record):
            return
        ours = log_end(config.store_path)
    except ShmqError:
        return  # the store says so when it is opened
    name = config.broker_name
    raise FencedError(
        f"become master with {config.store_path}: this broker was master last, in epoch"
        f" {record.master_epoch}, and the log there ends at {ours.end_position} in master epoch"
        f" {ours.master_epoch}: that disk is lost, not mounted, or has an older copy",
        hint=f"mount it and start again; or have a member that has the log become master: shmq ha"
        f" switch {name} --to {others[0]}; or go on without what only others have: shmq ha switch"
        f" {name} --to {config.broker_id} --unclean",
    )


def _require_as_long(config: BrokerConfig, record: MasterRecord) -> None:
    """Return if the log of the member that was master last does not go on behind ours."""
    name, number = record.broker_name, record.broker_id
    try:
        theirs, ours = log_end(record.store_path), log_end(config.store_path)
    except ShmqError as error:  # their disk may be lost; ours says so when it is opened
        _log.warning(
            "which log goes further than broker %s:%d's is not known: %s", name, number, error
        )
        return
    if theirs > ours:
        raise _behind(
            config, ours, theirs, number,
            f"broker {name}:{number} was master last, and its log in {record.store_path} goes on",
            f"start broker_id {number}, then ",
        )  # fmt: skip


def _require_as_long_as(runtime: RuntimeFolder, config: BrokerConfig, broker_id: int) -> None:
    """Return if a member's log does not go on behind ours, or it does not say."""
    name = config.broker_name
    try:
        socket_name = broker_socket_name(name, broker_id)
        with Client(runtime, socket_name, role="broker", timeout_s=_ASK_TIMEOUT_S) as client:
            asked = Command(RequestCode.GET_BROKER_STATUS)
            take = client.call(asked, timeout_s=_ASK_TIMEOUT_S).fields()
        theirs = LogEnd(take.number("logEpoch", 0), take.number("committedPosition", 0))
        ours = log_end(config.store_path)
    except ShmqError as error:
        _log.info("broker %s:%d does not say how far its log is: %s", name, broker_id, error)
        return
    if theirs > ours:
        raise _behind(
            config, ours, theirs, broker_id,
            f"broker {name}:{broker_id} answers, and its log goes on", "",
        )  # fmt: skip


def _behind(
    config: BrokerConfig, ours: LogEnd, theirs: LogEnd, broker_id: int, why: str, first: str
) -> FencedError:
    name = config.broker_name
    return FencedError(
        f"become master with {config.store_path}: {why}: it ends at {theirs.end_position} in"
        f" master epoch {theirs.master_epoch}, ours at {ours.end_position} in {ours.master_epoch}",
        hint=f"{first}shmq ha switch {name} --to {broker_id}; or go on"
        " without what only it has, which is appended again behind newer messages once it"
        f" copies: shmq ha switch {name} --to {config.broker_id} --unclean",
    )


def _ids(names: Iterable[str], config: BrokerConfig) -> list[int]:
    """The broker_ids of the other members among sockets' names, sorted."""
    prefix = broker_socket_name(config.broker_name, 0).removesuffix("0")
    ends = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
    return sorted({int(end) for end in ends if end.isdigit()} - {config.broker_id})
