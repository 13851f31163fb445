"""A clock that stands still until a test moves it."""


class SteppedClock:
    """Satisfies shmq.clock.Clock; both times move only by the test's hand.

    Args:
        wall_ms: where the wall clock starts, milliseconds since 1970 (default: September 2026).
    """

    def __init__(self, *, wall_ms: int = 1_788_220_800_000) -> None:
        self._monotonic_ns = 1_000_000_000
        self._wall_ms_at_zero = wall_ms - 1_000

    def monotonic_ns(self) -> int:
        return self._monotonic_ns

    def boottime_ns(self) -> int:
        return self._monotonic_ns

    def wall_ms(self) -> int:
        return self._wall_ms_at_zero + self._monotonic_ns // 1_000_000

    def advance(self, *, ms: int) -> None:
        """Let time pass; both clocks move on together."""
        assert ms >= 0, "time does not go back: use jump_wall"
        self._monotonic_ns += ms * 1_000_000

    def jump_wall(self, *, ms: int) -> None:
        """Set the wall clock forward or back, as NTP or a person would."""
        self._wall_ms_at_zero += ms
