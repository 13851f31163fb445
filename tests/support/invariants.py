"""What must hold after any faults, in one place: the invariants of RELIABILITY.md over a history.

What lives here: `History`, what producers were told and what consumers got, and a check for each
invariant that such a history can show, all in linear time but for sorting. A run fills in what it
has and calls the checks that its roles can break. I11 to I13 are of processes and files, not of a
history: tests/support/dev_shm.py and fsck see to them.

Times are CLOCK_MONOTONIC, which processes of one boot share. Whoever notes one notes it on the safe
side: what a client asked for, before it asked; what it was given, once it had it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

MessageKey = bytes
"""The body of a message, which says who sent it and which it is."""


class Sent(NamedTuple):
    """One send that was begun."""

    begin_ns: int
    """Before it was put anywhere."""
    delay_ns: int
    """How long it was to wait; 0: not at all."""
    is_acked: bool
    """Its producer was told that it is stored."""


class Got(NamedTuple):
    """One delivery."""

    at_ns: int
    """When the listener was called."""
    reconsume_times: int
    """Failures before, as the message said."""


class Place(NamedTuple):
    """Where a message is."""

    topic: str
    queue_id: int
    queue_offset: int


class Stored(NamedTuple):
    """One message as a reader of its queue finds it."""

    topic: str
    queue_id: int
    queue_offset: int
    key: MessageKey

    @property
    def place(self) -> Place:
        return Place(self.topic, self.queue_id, self.queue_offset)


class Appended(NamedTuple):
    """One message of a log, with its number in what one producer sent to one queue."""

    stream: Hashable
    """Who sent it, and where to."""
    sequence: int
    """From 0 on, in the order of the sends."""
    place: Place


class Reign(NamedTuple):
    """One broker as master of a broker_name."""

    broker_name: str
    master_epoch: int
    master: Hashable
    """Which process it is: its incarnation."""
    begin_ns: int
    """When it began to serve, as its route says."""


class Told(NamedTuple):
    """One acknowledgement."""

    broker_name: str
    master_epoch: int
    """Of the master that gave it."""
    begin_ns: int
    """Before the send."""


class Half(NamedTuple):
    """One transaction's message."""

    resolved_ns: int | None
    """Before its producer said what becomes of it; None: it never did."""
    is_committed: bool
    """What it said."""
    check_count: int
    """How often the broker asked back."""


class Popped(NamedTuple):
    """One POP, or one change of what is popped, that hides a message from its group."""

    group: str
    key: MessageKey
    begin_ns: int
    """Before it was asked for."""
    at_ns: int
    """When the message came; of a change, the answer."""
    invisible_ns: int
    """For how long it was to be hidden; 0: not any more."""
    is_delivery: bool = True
    """Whether the message came; False: it was had already, and is hidden for longer, or shown."""


@dataclass
class History:
    """A run: fill it from all ledgers, then check."""

    sent: dict[MessageKey, Sent] = field(default_factory=dict)
    got: dict[MessageKey, list[Got]] = field(default_factory=lambda: defaultdict(list))
    stored: list[Stored] = field(default_factory=list)
    """In the order in which readers found them."""
    seen: dict[Place, MessageKey] = field(default_factory=dict)
    """What clients saw of queues, or were told is there, before a fault."""
    reigns: list[Reign] = field(default_factory=list)
    """In the order in which the masters began."""
    told: list[Told] = field(default_factory=list)
    halves: dict[MessageKey, Half] = field(default_factory=dict)
    popped: list[Popped] = field(default_factory=list)

    # ---- the invariants ----------------------------------------------------------------------

    def check_acked_is_delivered(self) -> None:
        """I1: what a producer was told is stored came at least once."""
        lost = [key for key, sent in self.sent.items() if sent.is_acked and not self.got.get(key)]
        assert not lost, f"I1: {len(lost)} acknowledged messages never came, first {lost[:5]}"

    def check_nothing_is_invented(self) -> None:
        """I2: nothing came, and nothing is stored, that was not sent."""
        strange = [key for key in self.got if key not in self.sent]
        strange += [stored.key for stored in self.stored if stored.key not in self.sent]
        assert not strange, f"I2: {len(strange)} messages that nobody sent, first {strange[:5]}"

    def check_queues_are_whole(self, *, begin: int | None = None) -> None:
        """I3: the offsets of each queue follow each other without a gap, each for one message.

        Args:
            begin: queue_offset of each queue's first message; None: whichever was found.
        """
        ends: dict[tuple[str, int], int] = {}
        for stored in self.stored:
            queue = stored.topic, stored.queue_id
            want = ends.get(queue, stored.queue_offset if begin is None else begin)
            assert stored.queue_offset == want, f"I3: {stored}, wanted queue_offset {want}"
            ends[queue] = want + 1

    def check_seen_is_kept(self) -> None:
        """I3, I4: what anybody saw in a queue is in the same place when all is over: nobody saw
        what was not safe yet, and no offset was used again. Needs `stored` of those topics.
        """
        kept = {stored.place: stored.key for stored in self.stored}
        for place, key in self.seen.items():
            assert place in kept, f"I4: {key!r} was seen at {place} and is lost"
            assert kept[place] == key, f"I3: {place} was {key!r} and is {kept[place]!r}"

    def check_epochs(self) -> None:
        """I5: one master in each epoch, epochs grow, and none acknowledges once there is a next."""
        last: dict[str, Reign] = {}
        ends_ns: dict[tuple[str, int], int] = {}
        for reign in self.reigns:
            before = last.get(reign.broker_name)
            if before is not None and reign.master != before.master:
                grows = reign.master_epoch > before.master_epoch
                assert grows, f"I5: {reign} is master beside or before {before}"
                ends_ns[before.broker_name, before.master_epoch] = reign.begin_ns
            last[reign.broker_name] = reign
        epochs = {(reign.broker_name, reign.master_epoch) for reign in self.reigns}
        for told in self.told:
            epoch = told.broker_name, told.master_epoch
            assert epoch in epochs, f"I5: {told} is of an epoch without a master"
            end_ns = ends_ns.get(epoch)
            is_fenced = end_ns is not None and told.begin_ns > end_ns
            assert not is_fenced, f"I5: {told}, but it had a successor from {end_ns} on"

    def check_transactions(self) -> None:
        """I6: no half message comes before it is committed, nor one that is rolled back or never
        resolved; and of the last the broker asked what becomes of it.
        """
        for key, half in self.halves.items():
            calls = self.got.get(key, ())
            if half.resolved_ns is None:
                assert half.check_count > 0, f"I6: {key!r} was left open and never asked about"
            if half.resolved_ns is None or not half.is_committed:
                assert not calls, f"I6: {key!r} came, and was never committed"
                continue
            first_ns = min((call.at_ns for call in calls), default=half.resolved_ns)
            early_ns = half.resolved_ns - first_ns
            assert early_ns <= 0, f"I6: {key!r} came {early_ns} ns before it was committed"

    def check_delays(self, *, retry_delay_ns: int, late_ns: int) -> int:
        """I7: nothing delayed came early, nor a retry; the latest first delivery, ns after due.

        Args:
            retry_delay_ns: the shortest time from a failure to the next try.
            late_ns: how late a message may be: what faults held it up, and the stated bound.
        """
        for key, calls in self.got.items():
            sent = self.sent[key]
            first: dict[int, int] = {}
            for at_ns, times in calls:
                first[times] = min(at_ns, first.get(times, at_ns))
            due_ns = sent.begin_ns + sent.delay_ns
            early_ns = due_ns - first.get(0, due_ns)
            assert early_ns <= 0, f"I7: {key!r} came {early_ns} ns early"
            for times, at_ns in first.items():
                before_ns = first.get(times - 1)
                if before_ns is not None:
                    gap_ns = at_ns - before_ns
                    assert gap_ns >= retry_delay_ns, f"I7: {key!r}: try {times} after {gap_ns} ns"
        latest = max(self.late_ns(), default=0)
        assert latest <= late_ns, f"I7: a message came {latest} ns late, wanted {late_ns} at most"
        return latest

    def late_ns(self) -> list[int]:
        """How much later than it was due each message first came, in ns, sorted."""
        late = []
        for key, calls in self.got.items():
            sent = self.sent[key]
            firsts = [call.at_ns for call in calls if call.reconsume_times == 0]
            if firsts:
                late.append(min(firsts) - sent.begin_ns - sent.delay_ns)
        return sorted(late)

    def check_invisibility(self) -> None:
        """I8: what one member of a group has popped comes to nobody of it before its time is up."""
        until_ns: dict[tuple[str, MessageKey], int] = {}
        for pop in sorted(self.popped, key=lambda pop: pop.at_ns):
            what = pop.group, pop.key
            early_ns = until_ns.get(what, pop.at_ns) - pop.at_ns
            is_early = pop.is_delivery and early_ns > 0
            assert not is_early, f"I8: {pop.key!r} came again to {pop.group} {early_ns} ns early"
            until_ns[what] = pop.begin_ns + pop.invisible_ns

    def check_order(self, sequences: dict[str, list[int]]) -> None:
        """I9: of each key's messages none is processed before an earlier one was.

        Args:
            sequences: by key the sequence numbers in the order in which they were processed.
        """
        for key, numbers in sequences.items():
            seen = -1
            for number in numbers:
                assert number <= seen + 1, f"I9: key {key}: {number} came, {seen + 1} had not"
                seen = max(seen, number)

    def check_drained(self, expected: set[MessageKey]) -> None:
        """I10: once the faults are over, everything that is expected to end somewhere has."""
        missing = expected - self.got.keys()
        assert not missing, f"I10: {len(missing)} messages are left over"

    def doubled_count(self) -> int:
        """I14: deliveries beyond the first of each try."""
        tries = Counter(
            (key, call.reconsume_times) for key, all_ in self.got.items() for call in all_
        )
        return sum(tries.values()) - len(tries)

    def check_doubled(self, at_most: int) -> int:
        """I14: no more came twice than was in flight at the faults; how many did."""
        doubled = self.doubled_count()
        assert doubled <= at_most, f"I14: {doubled} came twice, wanted {at_most} at most"
        return doubled


def check_appended(appended: Iterable[Appended]) -> Counter[Hashable]:
    """I1, I3: a log has each stream's messages once and in their order, and each queue's offsets
    are 0, 1, 2...; how many each stream has.

    Args:
        appended: all messages of a log, in its order.
    """
    counts: Counter[Hashable] = Counter()
    ends: Counter[tuple[str, int]] = Counter()
    for message in appended:
        stream, place = message.stream, message.place
        want = counts[stream]
        assert message.sequence == want, f"I1: lost or doubled: {message}, wanted {want}"
        counts[stream] += 1
        queue = place.topic, place.queue_id
        assert place.queue_offset == ends[queue], f"I3: {message}, wanted {ends[queue]}"
        ends[queue] += 1
    return counts
