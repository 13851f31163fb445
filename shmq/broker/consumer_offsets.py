"""How far each group has consumed each queue, and who may say so.

What lives here: `OffsetTable`, config/consumerOffset.json. Offsets come by claim (claims.py), by
request, or by a reset by hand. What is written is never ahead of the disk: a snapshot is taken with
the committed position of that moment and written once the flusher has passed it, so that a message
that a power cut takes is not one that counts as consumed.

Beside RocketMQ's table the file holds a key of ours that RocketMQ passes over:

    "shmqClaims": {"next": number, "claims": {"topic@group": {queueId: claim}}, "resets": likewise}

the claim that was current when the offset was written, so that a consumer which slept through a
restart cannot take up an older one, and a bound above all claim numbers given out. "resets" are
those of them that a person took to set the offset, and "reports" what consumers said to a slave
and its master has not heard: {"next": the master's bound then, "offsets": {"topic@group": {...}}}.
A report never moves an offset back, and counts for nothing where a person has set it since.

The loop's thread owns it (`load` runs before there is a loop). May fail: what writing may raise.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from shmq.errors import ConfigError, SystemBusyError
from shmq.json_fields import Fields
from shmq.store.config_files import (
    ConfigFiles,
    ConsumerOffsets,
    DataVersion,
    clamp_consumer_offsets,
    numbers_by_number,
    offset_key,
    split_offset_key,
    unknown_queue_ends,
)
from shmq.store.consume_queue_files import QueueKey

if TYPE_CHECKING:
    from shmq.clock import Clock
    from shmq.store.message_store import MessageStore

__all__ = ["OffsetTable", "Reports", "load_reports"]

_log = logging.getLogger("shmq.broker")

_CLAIMS_KEY = "shmqClaims"
_CLAIM_NUMBERS_AHEAD = 1 << 20
"""Claim numbers that may be given out before the file must be written again; thousands of
consumers that re-balance for days."""
_FLUSH_LOOK_S = 0.01
"""Between two looks whether the flusher has come far enough: its own interval."""


class Reports(NamedTuple):
    """What consumers said to a slave, and its master has not heard."""

    copied_claim: int
    """The master's next claim number when the slave copied its offsets last."""
    offsets: Mapping[str, Mapping[int, int]]
    """By topic@group and queue_id."""


_NO_REPORTS = Reports(0, {})


def load_reports(files: ConfigFiles) -> Reports:
    """The reports in a store's consumerOffset.json; none where it cannot be read. Blocks."""
    try:
        claims = files.load_consumer_offsets().other.get(_CLAIMS_KEY)
        reports = claims.get("reports") if isinstance(claims, Mapping) else None
        if not isinstance(reports, Mapping):
            return _NO_REPORTS
        take = Fields(reports, what=f"{_CLAIMS_KEY}: reports")
        offsets = reports.get("offsets")
        return Reports(
            take.number("next", 0), _numbers(offsets) if isinstance(offsets, Mapping) else {}
        )
    except ConfigError as error:
        _log.warning("reports of consumers do not count: %s", error)
        return _NO_REPORTS


class OffsetTable:
    """Consumer offsets of one broker, and the numbers of claims.

    Args:
        store: open.
        files: config/ of the store.
        clock: for dataVersion.
        is_copy: a slave's: its dataVersion is that of the master's table it was copied from, and
            what is committed here its master is to hear.
    """

    def __init__(
        self, store: MessageStore, files: ConfigFiles, clock: Clock, *, is_copy: bool = False
    ) -> None:
        self._store = store
        self._files = files
        self._clock = clock
        self._is_copy = is_copy
        self._offsets: dict[str, dict[int, int]] = {}
        self._claims: dict[str, dict[int, int]] = {}
        self._resets: dict[str, dict[int, int]] = {}
        self._reports: dict[str, dict[int, int]] = {}
        self._copied_claim = 0
        self._topic_groups: dict[str, set[str]] = {}
        self._begun: dict[tuple[str, int], int] = {}
        self._other: Mapping[str, object] = {}
        self._next_claim = 1
        self._claim_bound = 0
        self._is_changed = False
        self._lock = asyncio.Lock()
        self.data_version = DataVersion()
        """Of the last change that was written."""

    # ---- opening -----------------------------------------------------------------------------

    def load(self, reports: Reports = _NO_REPORTS) -> dict[tuple[str, int], int]:
        """Read the file and cut back what lies behind a queue's end. Blocks.

        Args:
            reports: what the file had, before a predecessor's took its place: a slave keeps them
                for its master, a slave that is master now heeds them.

        Returns:
            where queues were that the log does not know (any more), by what was consumed of them.

        Raises:
            ConfigError: the file and its backup cannot be read.
        """
        found = self._files.load_consumer_offsets()
        ends = {
            QueueKey(topic, queue_id): self._store.queues.offsets(handle).max_queue_offset
            for topic, queue_id, handle in self._store.queues
        }
        unknown = unknown_queue_ends(found.offsets, ends)
        offsets, clamped = clamp_consumer_offsets(found.offsets, ends)
        for cut in clamped:
            _log.warning(
                "consumer offset cut back key=%s queue_id=%d seen=%d end=%d",
                cut.key,
                cut.queue_id,
                cut.seen,
                cut.end,
            )
        self._offsets = {key: dict(queues) for key, queues in offsets.items()}
        for key, queues in self._offsets.items():
            self._note(key)
            self._begun |= {(key, queue_id): offset for queue_id, offset in queues.items()}
        self._is_changed = bool(clamped)
        self._load_claims(found.other.get(_CLAIMS_KEY))
        self._other = {key: value for key, value in found.other.items() if key != _CLAIMS_KEY}
        self.data_version = found.data_version
        if self._is_copy:
            self._copied_claim = reports.copied_claim
            self._reports = {key: dict(queues) for key, queues in reports.offsets.items()}
        else:
            self._heed(reports, ends)
        self._claim_bound = self._next_claim + _CLAIM_NUMBERS_AHEAD
        # Numbers of claims are of this boot, as the pages are in which they stand.
        self._files.store(self._contents(self._offsets, self._marks()), is_synced=False)
        return {(queue.topic, queue.queue_id): end for queue, end in unknown.items()}

    def _heed(self, reports: Reports, ends: Mapping[QueueKey, int]) -> None:
        for key, queues in reports.offsets.items():
            topic, group = split_offset_key(key) or ("", "")
            for queue_id, consumer_offset in queues.items():
                end = ends.get(QueueKey(topic, queue_id))
                if end is not None:  # else its topic was deleted
                    seen = min(consumer_offset, end)
                    self.advance(group, topic, queue_id, seen, copied_claim=reports.copied_claim)

    def _load_claims(self, data: object) -> None:
        if data is None:
            return
        if not isinstance(data, Mapping):
            raise ConfigError(f"consumerOffset.json: {_CLAIMS_KEY}: {data!r}, wanted an object")
        self._next_claim = max(1, Fields(data, what=_CLAIMS_KEY).number("next", 1))
        claims = data.get("claims")
        if isinstance(claims, Mapping):
            self._claims = _numbers(claims)
        resets = data.get("resets")
        if isinstance(resets, Mapping):
            self._resets = _numbers(resets)

    # ---- offsets -----------------------------------------------------------------------------

    def query(self, group: str, topic: str, queue_id: int) -> int | None:
        """The next queue_offset to consume; None if the group never consumed the queue."""
        return self._offsets.get(offset_key(topic, group), {}).get(queue_id)

    def commit(self, group: str, topic: str, queue_id: int, consumer_offset: int) -> None:
        """Set it. The caller has checked its range and who may set it."""
        key = offset_key(topic, group)
        queues = self._offsets.get(key)
        if queues is None:
            queues = self._offsets[key] = {}
            self._note(key)
        if queue_id not in queues:
            self._begun[key, queue_id] = consumer_offset
        if queues.get(queue_id) != consumer_offset:
            queues[queue_id] = consumer_offset
            if self._is_copy:
                self._reports.setdefault(key, {})[queue_id] = consumer_offset
            self._is_changed = True

    def reset(self, group: str, topic: str, queue_id: int, consumer_offset: int) -> None:
        """Set it as a person wants it; the caller has checked its range. It has a claim number that
        nobody has: whoever slept with an older one stays out, and so do reports from before.
        """
        number = self.new_claim(group, topic, queue_id)
        self._resets.setdefault(offset_key(topic, group), {})[queue_id] = number
        self.commit(group, topic, queue_id, consumer_offset)

    @property
    def table(self) -> Mapping[str, Mapping[int, int]]:
        """All of them, by topic@group and queue_id."""
        return self._offsets

    def take_begun(self) -> Mapping[tuple[str, int], int]:
        """Queues that have an offset since this was asked last (as this life began, or as a group
        did), by topic@group and queue_id: the first one, from which progress counts.
        """
        begun, self._begun = self._begun, {}
        return begun

    @property
    def next_claim(self) -> int:
        """Of the next claim: a slave that becomes master goes on behind it."""
        return self._next_claim

    def copy(
        self, wanted: Mapping[str, Mapping[int, int]], version: DataVersion, *, next_claim: int
    ) -> None:
        """Have the offsets of the master, and no other but those that it has not heard yet."""
        self._next_claim = max(self._next_claim, next_claim)
        self._copied_claim = next_claim
        offsets = {key: dict(queues) for key, queues in wanted.items()}
        for key, queues in self._reports.items():
            known = offsets.setdefault(key, {})
            for queue_id, consumer_offset in queues.items():
                known[queue_id] = max(consumer_offset, known.get(queue_id, 0))
        if (self._offsets, self.data_version) == (offsets, version):
            return
        self.data_version = version
        self._offsets = offsets
        self._topic_groups = {}
        for key in self._offsets:
            self._note(key)
        self._is_changed = True

    # ---- reports ---------------------------------------------------------------------------------

    @property
    def reports(self) -> Reports:
        """What was committed at a slave and its master has not heard yet; as of now."""
        offsets = {key: dict(queues) for key, queues in self._reports.items()}
        return Reports(self._copied_claim, offsets)

    def heard(self, reports: Mapping[str, Mapping[int, int]]) -> None:
        """The master has heard these."""
        for key, queues in reports.items():
            kept = self._reports.get(key, {})
            for queue_id, consumer_offset in queues.items():
                if kept.get(queue_id) == consumer_offset:
                    del kept[queue_id]
            if not kept:
                self._reports.pop(key, None)
        self._is_changed = True

    def advance(
        self, group: str, topic: str, queue_id: int, consumer_offset: int, *, copied_claim: int
    ) -> bool:
        """Set it as a slave has heard it, which had our offsets as of `copied_claim`, unless it is
        further, or was reset since; whether it was set. The caller has checked its range.
        """
        key = offset_key(topic, group)
        if self._resets.get(key, {}).get(queue_id, -1) >= copied_claim:
            return False
        known = self.query(group, topic, queue_id)
        if known is not None and known >= consumer_offset:
            return False
        self.commit(group, topic, queue_id, consumer_offset)
        return True

    # ---- topics and groups -----------------------------------------------------------------------

    def queues_of(self, group: str, topic: str) -> Mapping[int, int]:
        """All offsets of a group in a topic, by queue_id."""
        return self._offsets.get(offset_key(topic, group), {})

    def groups_of(self, topic: str) -> set[str]:
        """Groups that ever consumed a topic."""
        return set(self._topic_groups.get(topic, ()))

    def topics_of(self, group: str) -> set[str]:
        """Topics that a group ever consumed."""
        return {topic for topic, groups in self._topic_groups.items() if group in groups}

    def remove_topic(self, topic: str) -> None:
        """Forget the offsets of all groups in a topic: it was deleted."""
        for group in self._topic_groups.pop(topic, ()):
            self._forget(offset_key(topic, group))

    def remove_group(self, group: str) -> None:
        """Forget the offsets of a group: it was deleted, and its progress with it."""
        for topic in self.topics_of(group):
            self._topic_groups[topic].discard(group)
            self._forget(offset_key(topic, group))

    def _forget(self, key: str) -> None:
        self._offsets.pop(key, None)
        self._claims.pop(key, None)
        self._resets.pop(key, None)
        self._reports.pop(key, None)
        self._is_changed = True

    def _note(self, key: str) -> None:
        names = split_offset_key(key)
        if names is not None:
            self._topic_groups.setdefault(names[0], set()).add(names[1])

    # ---- claim numbers -----------------------------------------------------------------------

    def new_claim(self, group: str, topic: str, queue_id: int) -> int:
        """A claim number above all that were ever given out, now the current one of the queue."""
        number = self._next_claim
        if number >= self._claim_bound:
            raise SystemBusyError(
                f"claim {topic} for {group}: the disk refuses to keep claim numbers; see the log"
            )
        self._next_claim += 1
        if self._next_claim + _CLAIM_NUMBERS_AHEAD // 2 > self._claim_bound:
            self._is_changed = True  # the next write raises the bound
        self._claims.setdefault(offset_key(topic, group), {})[queue_id] = number
        self._is_changed = True
        return number

    def current_claim(self, group: str, topic: str, queue_id: int) -> int:
        """The newest claim number of a queue; 0: none was ever given out."""
        return self._claims.get(offset_key(topic, group), {}).get(queue_id, 0)

    def resume_claim(self, group: str, topic: str, queue_id: int, number: int) -> bool:
        """Whether a claim from before the restart is still the newest one known; it is now."""
        if number < self.current_claim(group, topic, queue_id):
            return False
        self._claims.setdefault(offset_key(topic, group), {})[queue_id] = number
        self._next_claim = max(self._next_claim, number + 1)
        self._is_changed = True
        return True

    # ---- the file ----------------------------------------------------------------------------

    async def save(self) -> None:
        """Write what holds now, once everything consumed is on disk; returns when that is done.

        Raises:
            DiskFullError, FlushFailedError, StoreError: the old file stands; the next save tries
                again.
        """
        async with self._lock:
            if not self._is_changed:
                return
            self._is_changed = False
            offsets = {key: dict(queues) for key, queues in self._offsets.items()}
            marks = self._marks()
            committed_position = self._store.positions.committed_position
            try:
                while self._store.positions.flushed_position < committed_position:
                    if self._store.failure is not None:
                        raise self._store.failure
                    await asyncio.sleep(_FLUSH_LOOK_S)  # the flusher comes, or fails for good
                bound = self._next_claim + _CLAIM_NUMBERS_AHEAD
                contents = self._contents(offsets, marks)
                await asyncio.to_thread(self._files.store, contents)
                self._claim_bound = bound
            except BaseException:
                self._is_changed = True
                raise

    def save_flushed(self, *, is_synced: bool = True) -> None:
        """The same where the store has stopped and everything is flushed; no loop runs. Blocks.

        Args:
            is_synced: False where another table takes it up at once.
        """
        if self._is_changed:
            contents = self._contents(self._offsets, self._marks())
            self._files.store(contents, is_synced=is_synced)
            self._is_changed = False

    def _marks(self) -> dict[str, object]:
        """What goes with the offsets, as of now."""
        reports = {"next": self._copied_claim, "offsets": _shown(self._reports)}
        return {
            "claims": _shown(self._claims),
            "resets": _shown(self._resets),
            **({"reports": reports} if self._reports else {}),
        }

    def _contents(
        self, offsets: Mapping[str, Mapping[int, int]], marks: Mapping[str, object]
    ) -> ConsumerOffsets:
        if not self._is_copy:
            self.data_version = self.data_version.following(wall_ms=self._clock.wall_ms())
        bound = self._next_claim + _CLAIM_NUMBERS_AHEAD
        return ConsumerOffsets(
            data_version=self.data_version,
            offsets=offsets,
            other={**self._other, _CLAIMS_KEY: {"next": bound, **marks}},
        )


def _shown(table: Mapping[str, Mapping[int, int]]) -> dict[str, dict[str, int]]:
    return {
        key: {str(queue_id): number for queue_id, number in queues.items()}
        for key, queues in table.items()
    }


def _numbers(table: Mapping[str, object]) -> dict[str, dict[int, int]]:
    return {
        key: numbers_by_number(f"{_CLAIMS_KEY}: {key}", queues) for key, queues in table.items()
    }
