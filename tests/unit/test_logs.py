"""Log lines: one shape, no forging, no flood."""

import io
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmq.logs import LineFormatter, RateLimit, configure
from tests.support.clock import SteppedClock


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The root of shmq's loggers, without what a test added to it."""
    root = logging.getLogger("shmq")
    before = (root.level, root.propagate, list(root.handlers))
    yield logging.getLogger("shmq.store")
    root.setLevel(before[0])
    root.propagate = before[1]
    root.handlers[:] = before[2]


def test_line_has_time_level_room_and_text(logger: logging.Logger) -> None:
    stream = io.StringIO()
    configure(stream=stream, journal=False)
    logger.warning("flush failed errno=%d file=%s", 5, "00000")
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z "
        r"WARNING shmq\.store flush failed errno=5 file=00000\n",
        stream.getvalue(),
    )


def test_journal_gets_the_priority_and_no_time(logger: logging.Logger) -> None:
    stream = io.StringIO()
    configure(logging.DEBUG, stream=stream, journal=True)
    for level in (logging.CRITICAL, logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG):
        logger.log(level, "x")
    assert [line[:4] for line in stream.getvalue().splitlines()] == [
        "<3>s", "<3>s", "<4>s", "<6>s", "<7>s",
    ]  # fmt: skip


def test_environment_tells_of_the_journal(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for path, is_journal in ((tmp_path / "journal", True), (tmp_path / "elsewhere", False)):
        with path.open("w+") as stream:
            status = os.fstat(stream.fileno())
            if is_journal:
                monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
            handler = configure(stream=stream)
            logger.error("x")
            logging.getLogger("shmq").removeHandler(handler)
            stream.seek(0)
            assert stream.read().startswith("<3>shmq.store x\n") is is_journal
    stream = io.StringIO()  # none that the kernel knows
    configure(stream=stream)
    logger.error("x")
    assert " ERROR shmq.store x" in stream.getvalue()


def test_lower_levels_are_not_written(logger: logging.Logger) -> None:
    stream = io.StringIO()
    configure(logging.WARNING, stream=stream, journal=True)
    logger.info("x")
    assert stream.getvalue() == ""


def test_text_from_outside_cannot_forge_a_line(logger: logging.Logger) -> None:
    stream = io.StringIO()
    configure(stream=stream, journal=True)
    logger.info("topic=%s", "a\n<0>shmq.store all is lost\r\x1b[2J\u2028")
    assert stream.getvalue().splitlines() == [
        r"<6>shmq.store topic=a\n<0>shmq.store all is lost\r\x1b[2J\u2028"
    ]


def test_no_line_of_a_traceback_passes_for_a_record() -> None:
    record = logging.LogRecord("shmq.store", logging.ERROR, __file__, 1, "died", None, None)
    try:
        raise ValueError("a\n<0>forged \x1b")
    except ValueError as error:
        record.exc_info = (type(error), error, error.__traceback__)
    first, *rest = LineFormatter(journal=True).format(record).split("\n")
    assert first == "<3>shmq.store died"
    assert rest
    assert all(line.startswith("<3>  | ") for line in rest)  # as urgent as what it belongs to
    assert "\x1b" not in "".join(rest)


def _record(text: str, name: str = "shmq.store") -> logging.LogRecord:
    return logging.LogRecord(name, logging.WARNING, __file__, 1, text, None, None)


def test_flood_of_one_kind_is_cut_and_counted() -> None:
    clock = SteppedClock()
    limit = RateLimit(burst_count=3, interval_ms=1_000, clock=clock)
    assert [limit.filter(_record("full")) for _ in range(5)] == [True, True, True, False, False]
    clock.advance(ms=999)
    assert not limit.filter(_record("full"))
    clock.advance(ms=1)
    record = _record("full")
    assert limit.filter(record)
    assert record.getMessage() == "full suppressed=3"
    record = _record("full")
    assert limit.filter(record)
    assert record.getMessage() == "full"


def test_flood_of_one_kind_leaves_others_alone() -> None:
    limit = RateLimit(burst_count=1, clock=SteppedClock())
    assert limit.filter(_record("a"))
    assert not limit.filter(_record("a"))
    assert limit.filter(_record("b"))
    assert limit.filter(_record("a", name="shmq.shm"))


def test_limit_remembers_a_bounded_number_of_kinds() -> None:
    limit = RateLimit(burst_count=1, clock=SteppedClock())
    for number in range(RateLimit.KIND_COUNT_MAX + 1):
        assert limit.filter(_record(f"kind {number}"))
    assert not limit.filter(_record(f"kind {RateLimit.KIND_COUNT_MAX}"))
    assert limit.filter(_record("kind 0")), "the oldest kind is forgotten first"
