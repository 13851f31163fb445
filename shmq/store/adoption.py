"""Adoption: whose memory a store goes on with when it opens, and under which master epoch.

What lives here: `Adoption`: finds what the member that was master last left in memory, or what this
store itself left; judges whether it may go on with it (succession.py); takes it, or writes what it
holds to the files and removes it. Its caller wires what was taken, and recovers from files where
nothing was.

Which process: the broker, while MessageStore opens, with the store's lock held. Writes: the list of
memory (manifest), the record of mastership, the owner's words of memory, CommitLog files that it
salvages to. May fail: FencedError, where only a person or the Controller can decide; OwnerError,
LimitError, LayoutVersionError; StoreError and ShmError.
"""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from shmq.core.fields import control_place
from shmq.errors import (
    FencedError,
    LayoutVersionError,
    LimitError,
    OwnerError,
    ShmError,
    StoreCorruptError,
    StoreError,
)
from shmq.shm import manifest as manifests
from shmq.shm.in_use import InUseMark
from shmq.shm.incarnation import boot_id
from shmq.shm.mastership import living_master, load_record
from shmq.store import boot_files, positions
from shmq.store.cuts import finish_cuts
from shmq.store.durable_file import disk_error, write_fully
from shmq.store.epochs import EpochFile
from shmq.store.left_memory import find_list, has_memory
from shmq.store.log_files import LogFiles
from shmq.store.memory import StoreMemory
from shmq.store.recovery import recover_files
from shmq.store.stopped_log import LogPrefix, leaving_path, remove_leaving
from shmq.store.succession import check_prefix

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from shmq.config import StoreConfig
    from shmq.shm.manifest import Manifest
    from shmq.shm.mastership import Mastership
    from shmq.store.stopped_log import StoppedLog

    AdoptLog = Callable[[StoreMemory, contextlib.ExitStack, LogPrefix | None], None]
    """Takes over attached memory; with a prefix: of our files, where they were another's."""

__all__ = ["Adoption", "MARK_TIMEOUT_MS", "discard"]

_log = logging.getLogger("shmq.store")

MARK_TIMEOUT_MS: Final = 1000
"""How long a reaper that happens to look may keep the in-use mark of a store."""


class Adoption:
    """Which memory a store goes on with. One for each time that it opens.

    Attributes:
        predecessor_path: folder of the store whose owner was master last, where that is another.
        is_inherited: whether the memory is that of another member of the replica set.
        epochs: which part of the log was written under which mastership.
        master_epoch: of the mastership under which the store is written now; 0: of none.
    """

    def __init__(
        self,
        config: StoreConfig,
        *,
        mastership: Mastership | None,
        given_epoch: int | None,
        is_unclean: bool,
        must_adopt: bool,
        is_slave: bool,
        stopped: StoppedLog | None,
    ) -> None:
        """Nothing happens yet. What the arguments mean is said by MessageStore, of which they are;
        its master_epoch is given_epoch here.
        """
        self._config = config
        self._runtime_path = config.runtime_folder()
        self._manifest_path = manifests.manifest_path(config.store_path)
        self._positions_path = positions.positions_path(config.store_path)
        self._mastership = mastership
        self._given_epoch = given_epoch
        self._stopped = stopped
        self._is_unclean = is_unclean
        self._must_adopt = must_adopt
        self._is_slave = is_slave
        self.predecessor_path: Path | None = None
        self.is_inherited = False
        self.epochs: EpochFile
        self.master_epoch = 0

    def adopt(self, adopt_log: AdoptLog, undo: contextlib.ExitStack) -> bool:
        """Go on with memory that a dead predecessor left; False: with the files alone.

        Args:
            adopt_log: takes over the memory it is given. StoreCorruptError: it does not hold.
            undo: what releases the memory.

        Raises:
            FencedError: there is memory of another member that is not for our files; or none is
                there, and it must be.
            OwnerError: another life is master.
            LayoutVersionError, LimitError, OwnerError: memory is there, and not for this process as
                it is; it stays.
            StoreError, ShmError: it cannot be read.
        """
        if self._mastership is not None and self._mastership.record is None:
            self._refuse_second_master()
        if self._stopped is None:
            self._remove_leaving()
        self.predecessor_path = self._find_predecessor()
        finish_cuts(self._config.store_path)
        self.epochs = EpochFile.load(self._config.store_path)
        if self._try_inherit(adopt_log, undo):
            return True
        own = manifests.load(self._manifest_path)
        if own is not None and self._has_gone_over(own):
            self._manifest_path.unlink()  # the list alone
            own = None
        if self._must_adopt:
            self._require_own_memory(own)
        if own is not None and self._try_adopt(own, adopt_log, undo):
            return True
        if self._must_adopt:
            raise self._not_adopted("it does not hold")
        return False

    def next_epoch(self, memory_epoch: int, *, is_ours: bool) -> int:
        """Return, and keep, the epoch of this mastership: the last one goes on where we were its
        master and have its memory.

        Args:
            memory_epoch: of the memory that the store goes on with; 0: it is new, or a slave's.
            is_ours: that memory is of this member.
        """
        if self._mastership is None:
            self.master_epoch = 0 if self._is_slave else memory_epoch  # 0: the memory of no master
        elif self._given_epoch is not None:
            self.master_epoch = self._given_epoch
        else:
            record = self._mastership.record
            last = max(record.master_epoch if record else 0, self.epochs.last_epoch, memory_epoch)
            goes_on = is_ours and memory_epoch == last > 0
            self.master_epoch = last if goes_on else last + 1
        return self.master_epoch

    def declare(self) -> None:
        """Say in the record of mastership, where there is one, that the memory which our list names
        is ours, of this epoch.
        """
        if self._mastership is not None:
            self._mastership.declare(
                broker_name=self._config.broker_name,
                broker_id=self._config.broker_id,
                master_epoch=self.master_epoch,
                manifest_path=self._manifest_path,
            )

    def _refuse_second_master(self) -> None:
        """Return if no other life is master: its lock and record may have been deleted. Where there
        is a record, that tells: a master that handed over lives on, and owns what it left.

        Raises:
            OwnerError: one is.
        """
        life = living_master(self._runtime_path)
        if life is not None:
            raise OwnerError(
                f"open {self._config.store_path} as master: process {life.pid} is master and lives,"
                " though its lock is free: was it deleted?",
                hint="that process makes its lock again or ends, within a second: try again then",
            )

    def _remove_leaving(self) -> None:
        """Remove what a slave left that became master and was killed at once."""
        try:
            remove_leaving(leaving_path(self._config.store_path), self._runtime_path)
        except ShmError as error:
            _log.warning("memory that nobody needs stays, for shmq shm clean: %s", error)

    def _find_predecessor(self) -> Path | None:
        record = self._mastership.record if self._mastership is not None else None
        if record is None or record.manifest_path == self._manifest_path.absolute():
            return None
        return record.store_path

    def _try_inherit(self, adopt_log: AdoptLog, undo: contextlib.ExitStack) -> bool:
        """Adopt the memory of the member that was master last, if that was another one; False:
        there is none.

        Raises:
            FencedError: it is not for our files: that member can go on with it, we cannot.
        """
        record = self._mastership.record if self._mastership is not None else None
        if record is None or self.predecessor_path is None or not record.is_of_this_boot:
            return False
        name = f"broker {record.broker_name}:{record.broker_id}"
        try:
            manifest = find_list(self._runtime_path, record, cluster_name=self._config.cluster_name)
        except ShmError as error:  # its disk is damaged: the memory may well be there
            self._give_up_memory(f"which memory {name} left cannot be known: {error}")
            return False
        if manifest is None or manifest.boot_id != boot_id():
            return False
        if not manifests.is_in_memory(manifest):
            _log.error(
                "the memory of %s is gone: what only it had is lost, our own log goes on", name
            )
            return False
        own = manifests.load(self._manifest_path)
        if own is not None and own.generation != manifest.generation:
            self._settle(own)
        if not self._try_adopt(manifest, adopt_log, undo, is_inherited=True):
            self._give_up_memory(
                f"the memory of {name} is no continuation of our log (see the line before)"
            )
            return False
        self.is_inherited = True
        try:  # the log is theirs, and so is its history
            theirs = EpochFile.load(self.predecessor_path)
            if theirs.epochs:  # else its disk is gone
                self.epochs = self.epochs.replace(theirs.epochs)
        except StoreError as error:
            _log.warning("epochs of the last master are not known, ours go on: %s", error)
        # Ours alone from here on; where it cannot be removed (a service may not write below another
        # one's folder), its store finds that it counts for nothing: our record, or files_owner.
        with contextlib.suppress(OSError):
            record.manifest_path.unlink(missing_ok=True)
        _log.warning(
            "went on with the memory of broker %s:%d path=%s master_epoch=%d",
            record.broker_name,
            record.broker_id,
            record.manifest_path,
            self.master_epoch,
        )
        return True

    def _require_own_memory(self, own: Manifest | None) -> None:
        """Return if the memory that our list names is what the last master left, and is there.

        Raises:
            FencedError: it is not.
        """
        record = self._mastership.record if self._mastership is not None else None
        if record is None or own is None or not has_memory(self._runtime_path, record):
            raise self._not_adopted("it is gone")
        if record.manifest_path != self._manifest_path.absolute():
            raise self._not_adopted(f"it is that of broker_id {record.broker_id}, and not there")

    def _not_adopted(self, why: str) -> FencedError:
        return FencedError(
            f"become master with {self._config.store_path} and the memory of the last master:"
            f" {why}",
            hint="the Controller elects another member, or this one for its own log",
        )

    def _give_up_memory(self, reason: str) -> None:
        """Return if a person has said that what only the dead master's memory has is given up.

        Raises:
            FencedError: nobody has.
        """
        if not self._is_unclean:
            raise FencedError(
                f"become master with {self._config.store_path}: {reason}",
                hint="have that member become master, or give up what only its memory has:"
                " shmq ha switch --unclean",
            )
        _log.error("what only the memory of the dead master has is given up: %s", reason)

    def _has_gone_over(self, own: Manifest) -> bool:
        """Whether the memory that our list names is that of another member, which is master now and
        could not remove our list.
        """
        if self._mastership is not None:
            return False
        record = load_record(self._runtime_path)
        if record is None or not record.lives:
            return False
        if record.manifest_path == self._manifest_path.absolute():
            return False
        theirs = manifests.load(record.manifest_path)
        return theirs is not None and theirs.generation == own.generation

    def _settle(self, own: Manifest) -> None:
        """Write what our own memory holds to our files, and remove it: a slave's, that died."""
        if own.boot_id != boot_id():
            return
        with (
            contextlib.ExitStack() as held,
            InUseMark.take(self._runtime_path, own.store, timeout_ms=MARK_TIMEOUT_MS) as mark,
        ):
            try:
                memory = StoreMemory.attach(own, self._manifest_path, mark, self._config)
            except ShmError as error:
                _log.warning("own memory cannot be used, its files alone count: %s", error)
                return
            held.callback(memory.close)
            if memory.files_owner == self._config.broker_id:
                begin, end = self._salvage(memory)
                _log.info("own memory goes to our files begin=%d end=%d", begin, end)
        discard(own, self._manifest_path, self._runtime_path)

    def _try_adopt(
        self,
        manifest: Manifest,
        adopt_log: AdoptLog,
        undo: contextlib.ExitStack,
        *,
        is_inherited: bool = False,
    ) -> bool:
        """Adopt the memory that the list names if it is all there; False: recover from files.
        `is_inherited`: it is another member's list.
        """
        if manifest.boot_id != boot_id():
            _log.info("memory of another boot: recovering from files")
            discard(manifest, self._manifest_path, self._runtime_path)
            return False
        if boot_files.derived_by_rocketmq(self._config.store_path):
            _log.error("a real broker has written to this store since: its memory is out of date")
            discard(manifest, self._manifest_path, self._runtime_path)
            return False
        with contextlib.ExitStack() as mine:
            mark = mine.enter_context(
                InUseMark.take(self._runtime_path, manifest.store, timeout_ms=MARK_TIMEOUT_MS)
            )
            try:
                memory = StoreMemory.attach(manifest, self._manifest_path, mark, self._config)
            except (LayoutVersionError, LimitError, OwnerError):
                raise  # it may be whole, and hold what no file has: somebody else can adopt it
            except ShmError as error:
                _log.warning("memory cannot be adopted, recovering from files: %s", error)
                mine.close()
                if not is_inherited:
                    discard(manifest, self._manifest_path, self._runtime_path)
                return False
            mine.callback(memory.close)
            prefix = None
            is_ours = not is_inherited and memory.files_owner == self._config.broker_id
            if not is_ours:
                prefix = self._prefix_of(memory)
                if prefix is None:
                    if not is_inherited:
                        self._manifest_path.unlink()  # the list alone: the memory is another's
                    return False
            epoch = self.next_epoch(memory.master_epoch, is_ours=is_ours)
            if is_inherited:
                manifests.save(manifest, self._manifest_path)
            self.declare()
            memory.take(master_epoch=epoch)
            try:
                adopt_log(memory, mine, prefix)
            except StoreCorruptError as error:
                _log.error("memory is damaged, its log goes to the files as it is: %s", error)
                begin, end = self._salvage(memory)
                _log.error("salvaged begin=%d end=%d", begin, end)
                mine.close()
                discard(manifest, self._manifest_path, self._runtime_path)
                return False
            undo.push(mine.pop_all())
            return True

    def _prefix_of(self, memory: StoreMemory) -> LogPrefix | None:
        """Our files, where the log goes on in memory that another member flushed last; None: it
        does not, or this store is not to be master.
        """
        if self._mastership is None:
            _log.info("memory of another member's: it is left to that one")
            return None
        size = memory.manifest.file_size_bytes
        files = LogFiles(self._config.store_path, size)
        if self._stopped is not None and self._stopped.holds(self._positions_path):
            prefix = self._stopped.prefix
        else:
            files.make_folders()
            recovered = recover_files(
                self._config.store_path, size, delay_levels_ms=self._config.delay_levels_ms
            )
            recovered.consume_queues.close()
            prefix = LogPrefix(
                recovered.end_position, recovered.min_position, recovered.cold_queues
            )
        try:
            check_prefix(memory, files, end_position=prefix.end_position)
        except (ShmError, StoreCorruptError) as error:
            _log.error("memory of the dead master is left alone: %s", error)
            return None
        return prefix

    def _salvage(self, memory: StoreMemory) -> tuple[int, int]:
        """Write what memory holds of the log to its files, as it is: recovery then finds the good
        frames, and enters the others in the quarantine list. From where to where it was.
        """
        size = memory.manifest.file_size_bytes
        files = LogFiles(self._config.store_path, size)
        flushed, committed = (
            memory.control.load64(control_place(struct, name))
            for struct, name in (
                ("flush_positions", "flushed_position"),
                ("append_positions", "committed_position"),
            )
        )
        for file_position, hot in memory.hot_files():
            first, last = max(flushed, file_position), min(committed, file_position + size)
            if first >= last:
                continue
            fd = files.open(file_position, readonly=False)
            try:
                with memoryview(hot.mapping) as view:
                    place = first - file_position
                    write_fully(fd, view[place : last - file_position], place)
                os.fdatasync(fd)
            except OSError as error:
                raise disk_error(f"write the CommitLog file at {file_position}", error) from error
            finally:
                os.close(fd)
        known = positions.load_or_none(self._positions_path)
        if known is not None:
            salvaged = replace(known, flushed_position=max(flushed, committed))
            positions.save(self._positions_path, salvaged, durable=True)
        return flushed, committed


def discard(manifest: Manifest, manifest_path: Path, runtime_path: Path) -> None:
    """Remove the objects of a store generation that will not be used again, and their list; nothing
    of another boot.

    Raises:
        OwnerError, ShmError: they cannot be removed.
    """
    if manifest.boot_id != boot_id():
        return
    with InUseMark.take(runtime_path, manifest.store, timeout_ms=MARK_TIMEOUT_MS) as mark:
        StoreMemory(manifest, manifest_path, mark).drop()
        mark.remove()
