"""The exception tree and its one table."""

import inspect

import pytest

from shmq import errors
from shmq.errors import TABLE, ShmqError, for_code, for_name, for_status
from tests.support.repository import HEADERS

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, ShmqError)
]


def test_every_class_has_exactly_one_row() -> None:
    assert sorted(row.error.__name__ for row in TABLE) == sorted(c.__name__ for c in CLASSES)


def test_names_are_unique() -> None:
    assert len({row.name for row in TABLE}) == len(TABLE)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.error.__name__)
def test_class_says_what_its_row_says(row: errors.ErrorRow) -> None:
    error = row.error("send t: seen 1, wanted 2")
    assert (error.code, error.name) == (row.code, row.name)
    assert (error.retryable, error.refresh_route) == (row.retryable, row.refresh_route)
    assert error.hint == row.hint
    assert row.hint
    assert str(error) == "send t: seen 1, wanted 2"
    assert for_name(row.name) is row.error


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.error.__name__)
def test_class_is_drawn_in_the_tree(row: errors.ErrorRow) -> None:
    tree = (errors.__doc__ or "").split("Ordinary outcomes")[0]
    assert any(row.error.__name__ in line.split() for line in tree.splitlines())


def test_code_shared_by_several_means_the_general_one() -> None:
    assert for_code(13) is errors.MessageError
    assert for_code(2) is errors.SystemBusyError
    assert for_code(14) is errors.ServiceNotAvailableError
    assert for_code(987_654) is ShmqError
    assert for_name("NEWER_THAN_US") is ShmqError


def test_codes_of_rocketmq_are_its_own() -> None:
    """Against RocketMQ's ResponseCode and RemotingSysResponseCode, written down by hand."""
    rocketmq = {
        "SYSTEM_ERROR": 1, "SYSTEM_BUSY": 2, "MESSAGE_ILLEGAL": 13, "SERVICE_NOT_AVAILABLE": 14,
        "VERSION_NOT_SUPPORTED": 15, "NO_PERMISSION": 16, "TOPIC_NOT_EXIST": 17,
        "PULL_OFFSET_MOVED": 21, "SUBSCRIPTION_PARSE_FAILED": 23,
        "SUBSCRIPTION_GROUP_NOT_EXIST": 26, "INVALID_PARAMETER": 29, "FLOW_CONTROL": 215,
        "CONTROLLER_FENCED_MASTER_EPOCH": 2000,
    }  # fmt: skip
    assert {row.name: row.code for row in TABLE if row.name in rocketmq} == rocketmq
    others = [row for row in TABLE if row.name not in rocketmq]
    assert all(row.code >= 9000 or row.code in rocketmq.values() for row in others)


def test_own_hint_counts_before_the_class_hint() -> None:
    assert errors.DiskFullError("x", hint="call the operator").hint == "call the operator"
    assert errors.DiskFullError("x").hint == errors.DiskFullError.hint


def test_timeouts_and_wrong_types_are_what_python_calls_them() -> None:
    assert issubclass(errors.SendTimeoutError, TimeoutError)
    assert issubclass(errors.OutcomeUnknownError, TimeoutError)
    assert issubclass(errors.BodyTypeError, TypeError)


def test_nothing_that_may_be_stored_is_retryable() -> None:
    """A retry of these could store a message twice, or can never succeed."""
    for error in (
        errors.OutcomeUnknownError,
        errors.FlushFailedError,
        *_below(errors.MessageError),
    ):
        assert not error.retryable


def _below(error: type[ShmqError]) -> list[type[ShmqError]]:
    return [c for c in CLASSES if issubclass(c, error)]


def test_every_status_of_the_core_is_an_outcome_or_an_error() -> None:
    ordinary = {
        "OK", "EMPTY", "FULL", "BLANK", "OVERRUN", "STOPPED",
        "FLUSH_DISK_TIMEOUT", "FLUSH_SLAVE_TIMEOUT", "SLAVE_NOT_AVAILABLE",
    }  # fmt: skip
    for name in core_status_names():
        assert (for_status(name) is None) == (name in ordinary), name


def core_status_names() -> list[str]:
    """The rows S(NAME, value, "meaning") of status.h."""
    text = (HEADERS / "shmq/status.h").read_text(encoding="utf-8")
    rows = [line.strip() for line in text.splitlines() if line.strip().startswith("S(")]
    assert rows
    return [row[2:].partition(",")[0] for row in rows]
