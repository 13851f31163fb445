"""When to start, restart, fence, stop and give up a broker: decisions without processes.

    BACKING_OFF --its time has come--> STARTING --first sign of life--> RUNNING
         ^                                | silent too long                | silent too long
         |                                v                                v
         +----------------------------- ended <------------------------ FENCED (killed)
         |   too many ends in a short time: GIVEN_UP
    any of them --the cluster stops--> STOPPING --ended--> STOPPED

The first restart is at once; each further one waits, twice as long as the one before, until a
life was long enough to begin anew. A process that ended for whatever reason ended: a broker that
stops by itself is started again.

Pure: times come in as nanoseconds of attended time (clock.py), so that our own absence
never counts as a broker's silence. In the supervisor, in its loop's thread.
"""

from collections import deque
from enum import StrEnum, unique

from shmq.config import ClusterConfig

__all__ = ["Action", "BrokerWatch", "Phase", "SilenceWatch"]

_MS = 1_000_000


@unique
class Phase(StrEnum):
    """Where a supervised broker is."""

    BACKING_OFF = "BACKING_OFF"
    """Not running; it will be started."""
    STARTING = "STARTING"
    """Its process runs and has given no sign of life yet."""
    RUNNING = "RUNNING"
    """It gave one."""
    FENCED = "FENCED"
    """It hung and was killed; the kernel has not said yet that it ended."""
    GIVEN_UP = "GIVEN_UP"
    """It ended too often; a person must act."""
    STOPPING = "STOPPING"
    """It was asked to end."""
    STOPPED = "STOPPED"
    """It ended, and is not started again."""


@unique
class Action(StrEnum):
    """What is to be done now."""

    START = "START"
    FENCE = "FENCE"
    """Kill it: it hangs."""
    KILL = "KILL"
    """Kill it: it was asked to end and has not."""


class SilenceWatch:
    """Whether a living process has been silent for too long.

    Args:
        now_ns: attended time of its start.
        first_timeout_ms: from there to the first sign of life.
        timeout_ms: from one sign of life to the next.
    """

    __slots__ = ("_due_ns", "_timeout_ns", "was_heard")

    def __init__(self, now_ns: int, *, first_timeout_ms: int, timeout_ms: int) -> None:
        self.was_heard = False
        self._timeout_ns = timeout_ms * _MS
        self._due_ns = now_ns + first_timeout_ms * _MS

    def heard(self, now_ns: int) -> None:
        """It gave a sign of life."""
        self.was_heard = True
        self._due_ns = now_ns + self._timeout_ns

    def is_hung(self, now_ns: int) -> bool:
        """It should have given one by now."""
        return now_ns >= self._due_ns


class BrokerWatch:
    """Decides for one broker of a cluster file.

    Args:
        config: delays, counts and timeouts.
        hung_timeout_ms: silence after which a running broker counts as hung.
    """

    def __init__(self, config: ClusterConfig, *, hung_timeout_ms: int) -> None:
        self.phase = Phase.BACKING_OFF
        self.restart_count = 0
        """Starts after the first, since this watch began."""
        self.start_in_ms: int | None = None
        """After an end: how long after it the next start is; None where there will be none."""
        self._config = config
        self._hung_timeout_ms = hung_timeout_ms
        self._delay_ms = 0
        self._start_at_ns: int | None = None
        self._begun_ns = 0
        self._kill_at_ns = 0
        self._ends_ns: deque[int] = deque(maxlen=config.crash_count_max)
        self._silence: SilenceWatch | None = None

    def tick(self, now_ns: int) -> Action | None:
        """What is to be done now; what was done is told by `started` and `ended`."""
        match self.phase:
            case Phase.BACKING_OFF if self._start_at_ns is None or now_ns >= self._start_at_ns:
                self._begun_ns = now_ns
                return Action.START
            case Phase.STARTING | Phase.RUNNING if self._is_hung(now_ns):
                self.phase = Phase.FENCED
                return Action.FENCE
            case Phase.STOPPING if now_ns >= self._kill_at_ns:
                self._kill_at_ns = 1 << 63  # once
                return Action.KILL
        return None

    def started(self, now_ns: int, *, is_adopted: bool = False) -> None:
        """A process of it runs: we started it, or it ran when we came."""
        if self._ends_ns and not is_adopted:
            self.restart_count += 1
        self.phase = Phase.STARTING
        self._begun_ns = now_ns
        self._silence = SilenceWatch(
            now_ns,
            first_timeout_ms=self._config.start_timeout_ms,
            timeout_ms=self._hung_timeout_ms,
        )

    def heard(self, now_ns: int) -> None:
        """It gave a sign of life."""
        if self._silence is not None and self.phase in (Phase.STARTING, Phase.RUNNING):
            self._silence.heard(now_ns)
            self.phase = Phase.RUNNING

    def ended(self, now_ns: int) -> None:
        """Its process ended, or could not be started."""
        self._silence = None
        self.start_in_ms = None
        if self.phase is Phase.STOPPING:
            self.phase = Phase.STOPPED
            return
        if now_ns - self._begun_ns >= self._config.restart_delay_reset_ms * _MS:
            self._delay_ms = 0
        self._ends_ns.append(now_ns)
        is_full = len(self._ends_ns) == self._config.crash_count_max
        if is_full and now_ns - self._ends_ns[0] <= self._config.crash_window_ms * _MS:
            self.phase = Phase.GIVEN_UP
            return
        self.phase = Phase.BACKING_OFF
        self.start_in_ms = self._delay_ms
        self._start_at_ns = now_ns + self._delay_ms * _MS
        self._delay_ms = min(
            max(2 * self._delay_ms, self._config.restart_delay_ms),
            self._config.restart_delay_max_ms,
        )

    def stop(self, now_ns: int) -> bool:
        """The cluster stops: whether its process is to be asked to end."""
        if self.phase in (Phase.STARTING, Phase.RUNNING, Phase.FENCED):
            self.phase = Phase.STOPPING
            self._kill_at_ns = now_ns + self._config.stop_timeout_ms * _MS
            return True
        if self.phase is not Phase.STOPPING:
            self.phase = Phase.STOPPED
        return False

    def postpone(self, now_ns: int) -> None:
        """It cannot be started now, and that is no end of it: try later."""
        self._start_at_ns = now_ns + self._config.restart_delay_max_ms * _MS

    def _is_hung(self, now_ns: int) -> bool:
        return self._silence is not None and self._silence.is_hung(now_ns)
