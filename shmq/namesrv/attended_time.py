"""Time that passes only while we are there to look.

Who was stopped, or starved of its processor, for a minute has not seen anybody for a minute, and
that says nothing about them. Silence is therefore counted in attended time: of the time between two
looks no more counts than the pause that is usual between them. Fencing and expiry come late after
such a minute; never too early.

Pure: in whichever thread uses it, nothing is written, nothing blocks.
"""

__all__ = ["AttendedTime"]


class AttendedTime:
    """Nanoseconds of attended time, from a start at zero.

    Args:
        pause_ms_max: what counts at most of the time between two looks; a few times the interval
            in which somebody looks.
    """

    __slots__ = ("_attended_ns", "_last_ns", "_pause_ns_max")

    def __init__(self, *, pause_ms_max: int) -> None:
        self._pause_ns_max = pause_ms_max * 1_000_000
        self._attended_ns = 0
        self._last_ns: int | None = None

    def look(self, monotonic_ns: int) -> int:
        """Attended time now, in nanoseconds.

        Args:
            monotonic_ns: the clock's time now; it does not go back.
        """
        if self._last_ns is not None:
            self._attended_ns += min(monotonic_ns - self._last_ns, self._pause_ns_max)
        self._last_ns = monotonic_ns
        return self._attended_ns
