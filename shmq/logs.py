"""Log lines of the daemons: one shape, one line each, and no flood.

Loggers are named shmq.<room>; messages are lazy and made of key=value pairs. ERROR: a person must
act; WARNING: we recovered; INFO: a role changed its state; DEBUG: the rest; nothing per message. A
library user's own logging is left alone: only a daemon's main calls `configure`.

Texts that came from outside cannot forge a line: control characters are shown escaped. Writes the
process's stderr; blocks as long as stderr does.
"""

import logging
import os
import re
import sys
import threading
import time
from collections import OrderedDict
from typing import IO

from shmq.clock import SYSTEM_CLOCK, Clock

__all__ = ["LineFormatter", "RateLimit", "configure"]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_LINE_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")
# Priorities of syslog(3), which journald takes from the start of a line (sd-daemon(3)).
_PRIORITY = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))


def configure(
    level: int = logging.INFO, *, stream: IO[str] | None = None, journal: bool | None = None
) -> logging.Handler:
    """Send what the shmq loggers say to `stream`; call it once, in a daemon's main.

    Args:
        level: lowest level that is written.
        stream: where to (default: stderr).
        journal: prefix lines with journald's priority and leave the time to it; None: if stream is
            what the environment says goes there (JOURNAL_STREAM).

    Returns:
        the handler, for `logging.getLogger("shmq").removeHandler`.
    """
    if journal is None:
        journal = _leads_to_journal(stream or sys.stderr)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(LineFormatter(journal=journal))
    handler.addFilter(RateLimit())
    logger = logging.getLogger("shmq")
    logger.setLevel(level)
    logger.addHandler(handler)
    logger.propagate = False
    return handler


def _leads_to_journal(stream: IO[str]) -> bool:
    """Programs that a unit starts inherit JOURNAL_STREAM, a shell in a terminal, say, and may print
    elsewhere (systemd.exec(5)).
    """
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # closed, or none of the kernel's
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class LineFormatter(logging.Formatter):
    """`2026-11-20T12:00:00.123Z WARNING shmq.store flush failed errno=5`; journald: `<4>shmq...`.

    Times are UTC. A traceback follows in lines that start with "  | ", so that none passes for a
    record.
    """

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self, *, journal: bool = False) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line, and its traceback behind it."""
        text = _CONTROL.sub(_escaped, record.getMessage())
        if self._journal:
            priority = next(number for level, number in _PRIORITY if record.levelno >= level)
            begin = f"<{priority}>"
            lines = [f"{begin}{record.name} {text}"]
        else:
            begin = ""
            lines = [f"{self.formatTime(record)} {record.levelname} {record.name} {text}"]
        if record.exc_info:
            trace = _LINE_CONTROL.sub(_escaped, self.formatException(record.exc_info))
            lines += [f"{begin}  | {line}" for line in trace.split("\n")]
        return "\n".join(lines)


class RateLimit(logging.Filter):
    """Lets BURST records of one kind pass in each interval and counts the others.

    A kind is (logger, level, message before its arguments). The next record that passes ends with
    suppressed=<how many did not>. Safe to share between threads; remembers KIND_COUNT_MAX kinds.

    Args:
        burst_count: records of one kind that pass in one interval.
        interval_ms: length of an interval.
        clock: where time comes from.
    """

    BURST_COUNT = 10
    INTERVAL_MS = 10_000
    KIND_COUNT_MAX = 1_000

    def __init__(
        self,
        *,
        burst_count: int = BURST_COUNT,
        interval_ms: int = INTERVAL_MS,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__()
        self._burst_count = burst_count
        self._interval_ns = interval_ms * 1_000_000
        self._clock = clock
        self._kinds: OrderedDict[tuple[str, int, str], _Kind] = OrderedDict()
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written; marks it with what was suppressed before it."""
        now_ns = self._clock.monotonic_ns()
        with self._lock:
            kind = self._kind(record, now_ns)
            if now_ns - kind.begin_ns >= self._interval_ns:
                kind.begin_ns = now_ns
                kind.passed_count = 0
            if kind.passed_count >= self._burst_count:
                kind.suppressed_count += 1
                return False
            kind.passed_count += 1
            suppressed, kind.suppressed_count = kind.suppressed_count, 0
        if suppressed:
            record.msg = f"{record.msg} suppressed={suppressed}"
        return True

    def _kind(self, record: logging.LogRecord, now_ns: int) -> "_Kind":
        key = (record.name, record.levelno, str(record.msg))
        kind = self._kinds.get(key)
        if kind is None:
            if len(self._kinds) >= self.KIND_COUNT_MAX:
                self._kinds.popitem(last=False)
            kind = self._kinds[key] = _Kind(now_ns)
        return kind


class _Kind:
    """How often one kind of record was written in the running interval."""

    __slots__ = ("begin_ns", "passed_count", "suppressed_count")

    def __init__(self, begin_ns: int) -> None:
        self.begin_ns = begin_ns
        self.passed_count = 0
        self.suppressed_count = 0


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
