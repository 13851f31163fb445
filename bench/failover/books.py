"""What producers were told, held against what was found."""

from collections import Counter
from typing import NamedTuple

from faults import Fault, Struck
from ledger import Outcome, Seen, Told

KINDS = ("lost", "doubled", "out_of_order")


class Round(NamedTuple):
    """One fault, and what it cost."""

    struck: Struck
    first_send_ms: float
    is_taken_over: bool
    """Another member is master now; else the old one was quicker, or it never ended."""


class Books:
    """Of a whole run.

    Where a fault takes memory away, what only that memory had is not owed, a send that was under
    way may be there twice (its producer could not learn its fate), what one member alone had in
    files comes late, and the consumer begins again where it was last known to be.
    """

    def __init__(
        self, told: list[list[Told]], rounds: list[Round], fault: Fault, *, is_sync: bool
    ) -> None:
        self._told = told
        self._rounds = rounds
        self._takes_memory = fault.takes_memory
        gone = frozenset[tuple[int, int]]().union(*(one.struck.gone for one in rounds))
        keeps_confirmed = is_sync and fault.keeps_confirmed
        self._owed = [
            [
                one.sequence
                for one in each
                if one.is_acked
                and (
                    (stream, one.sequence) not in gone
                    or (keeps_confirmed and one.outcome is Outcome.SEND_OK)
                )
            ]
            for stream, each in enumerate(told)
        ]

    def differences(self, what: str, found: dict[int, Seen], problems: list[str]) -> dict[str, int]:
        """How many are lost, doubled and out of order; each kind is a problem with its first ones.

        Args:
            what: "stored" or "consumed".
            found: by stream.
            problems: where they are added.
        """
        count: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
        for stream, told in enumerate(self._told):
            seen = found.get(stream, Seen())
            doubled, out_of_order = seen.doubled, seen.out_of_order
            if self._takes_memory:
                out_of_order = []
                under_way = self._under_way(told) if what == "stored" else set(doubled)
                doubled = [one for one in doubled if one not in under_way]
            lost = seen.lost(self._owed[stream])
            begun = {one.sequence: one.begin_ns for one in told}
            for kind, bad in zip(KINDS, (lost, doubled, out_of_order), strict=True):
                count[kind] += len(bad)
                if bad:
                    numbers = {
                        sum(one.struck.at_ns <= begun.get(each, 0) for one in self._rounds)
                        for each in bad
                    }
                    problems.append(
                        f"{what}: {len(bad)} {kind} of stream {stream}, first {bad[:5]}, sent "
                        f"after the fault of round {sorted(numbers)[:5]}"
                    )
        return dict(count)

    def _under_way(self, told: list[Told]) -> set[int]:
        """Sends that had begun, and were not settled, when memory went."""
        return {
            one.sequence
            for one in told
            for round_ in self._rounds
            if one.begin_ns <= round_.struck.end_ns and one.end_ns >= round_.struck.at_ns
        }

    def memory_gone(self, stored: dict[int, Seen]) -> int:
        """How many that a producer was told are stored went with the memory that went."""
        lost_count = 0
        for stream, told in enumerate(self._told):
            owed = set(self._owed[stream])
            acked = (one.sequence for one in told if one.is_acked and one.sequence not in owed)
            lost_count += len(stored.get(stream, Seen()).lost(acked))
        return lost_count
