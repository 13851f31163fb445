"""What must hold after any faults, in one place: the invariants of RELIABILITY.md over a history.

What lives here: `History`, what producers were told and what consumers got, and a check for each
invariant that such a history can show, all in linear time. I5, I6 and I8 need roles that are not
there yet (replicas, transactions, POP); I4 is shown by tests/crash/witness.py, on the store itself.
Times are CLOCK_MONOTONIC, which processes of one boot share.
"""

from __future__ import annotations

from collections import Counter, defaultdict
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


class Stored(NamedTuple):
    """One message as a reader of its queue finds it."""

    topic: str
    queue_id: int
    queue_offset: int
    key: MessageKey


@dataclass
class History:
    """A run: fill it from all ledgers, then check."""

    sent: dict[MessageKey, Sent] = field(default_factory=dict)
    got: dict[MessageKey, list[Got]] = field(default_factory=lambda: defaultdict(list))
    stored: list[Stored] = field(default_factory=list)
    """In the order in which readers found them."""

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

    def check_queues_are_whole(self) -> None:
        """I3: the offsets of each queue follow each other without a gap, each for one message."""
        ends: dict[tuple[str, int], int] = {}
        for stored in self.stored:
            queue = stored.topic, stored.queue_id
            want = ends.get(queue, stored.queue_offset)
            assert stored.queue_offset == want, f"I3: {stored}, wanted queue_offset {want}"
            ends[queue] = want + 1

    def check_delays(self, *, retry_delay_ns: int, late_ns: int) -> int:
        """I7: nothing delayed came early, nor a retry; the latest first delivery, ns after due.

        Args:
            retry_delay_ns: the shortest time from a failure to the next try.
            late_ns: how late a message may be: what faults held it up, and the stated bound.
        """
        latest = 0
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
            latest = max(latest, first.get(0, due_ns) - due_ns)
        assert latest <= late_ns, f"I7: a message came {latest} ns late, wanted {late_ns} at most"
        return latest

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
