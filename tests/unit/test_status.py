"""Statuses: RocketMQ's spellings, and how one becomes another."""

import pytest

from shmq import status
from shmq.errors import for_status
from shmq.status import (
    GetMessageStatus,
    PullStatus,
    PutMessageStatus,
    SendStatus,
    pull_status,
    put_message_status,
    send_status,
)

ROCKETMQ = {
    "SendStatus": "SEND_OK FLUSH_DISK_TIMEOUT FLUSH_SLAVE_TIMEOUT SLAVE_NOT_AVAILABLE",
    "PutMessageStatus": (
        "PUT_OK FLUSH_DISK_TIMEOUT FLUSH_SLAVE_TIMEOUT SLAVE_NOT_AVAILABLE SERVICE_NOT_AVAILABLE "
        "CREATE_MAPPED_FILE_FAILED MESSAGE_ILLEGAL PROPERTIES_SIZE_EXCEEDED OS_PAGE_CACHE_BUSY "
        "UNKNOWN_ERROR IN_SYNC_REPLICAS_NOT_ENOUGH PUT_TO_REMOTE_BROKER_FAIL "
        "LMQ_CONSUME_QUEUE_NUM_EXCEEDED WHEEL_TIMER_FLOW_CONTROL WHEEL_TIMER_MSG_ILLEGAL "
        "WHEEL_TIMER_NOT_ENABLE"
    ),
    "GetMessageStatus": (
        "FOUND NO_MATCHED_MESSAGE MESSAGE_WAS_REMOVING OFFSET_FOUND_NULL OFFSET_OVERFLOW_BADLY "
        "OFFSET_OVERFLOW_ONE OFFSET_TOO_SMALL NO_MATCHED_LOGIC_QUEUE NO_MESSAGE_IN_QUEUE "
        "OFFSET_RESET"
    ),
    "PullStatus": "FOUND NO_NEW_MSG NO_MATCHED_MSG OFFSET_ILLEGAL",
    "ConsumeStatus": "CONSUME_SUCCESS RECONSUME_LATER",
    "BrokerRole": "ASYNC_MASTER SYNC_MASTER SLAVE",
    "FlushDiskType": "ASYNC_FLUSH SYNC_FLUSH",
}


@pytest.mark.parametrize("name", ROCKETMQ)
def test_members_are_spelled_as_in_rocketmq(name: str) -> None:
    members = list(getattr(status, name))
    assert [member.name for member in members] == ROCKETMQ[name].split()
    assert all(member == member.name for member in members)


def test_stored_climbs_to_a_send_status_and_nothing_else_does() -> None:
    stored = {status: send_status(status) for status in PutMessageStatus if send_status(status)}
    assert stored == {
        PutMessageStatus.PUT_OK: SendStatus.SEND_OK,
        PutMessageStatus.FLUSH_DISK_TIMEOUT: SendStatus.FLUSH_DISK_TIMEOUT,
        PutMessageStatus.FLUSH_SLAVE_TIMEOUT: SendStatus.FLUSH_SLAVE_TIMEOUT,
        PutMessageStatus.SLAVE_NOT_AVAILABLE: SendStatus.SLAVE_NOT_AVAILABLE,
    }


def test_core_status_that_is_an_error_is_never_a_stored_message() -> None:
    for name in ("LOG_FULL", "DISK_FULL", "FLUSH_FAILED", "TOO_LARGE", "ILLEGAL", "NO_TOPIC"):
        assert for_status(name) is not None
        assert send_status(put_message_status(name)) is None
    assert put_message_status("OK") is PutMessageStatus.PUT_OK
    assert put_message_status("NEWER_THAN_US") is PutMessageStatus.UNKNOWN_ERROR


@pytest.mark.parametrize("answer", GetMessageStatus)
def test_every_answer_of_the_store_is_a_pull_status(answer: GetMessageStatus) -> None:
    assert isinstance(pull_status(answer, 0), PullStatus)


def test_empty_queue_is_nothing_new_at_zero_and_illegal_elsewhere() -> None:
    for answer in (GetMessageStatus.NO_MESSAGE_IN_QUEUE, GetMessageStatus.NO_MATCHED_LOGIC_QUEUE):
        assert pull_status(answer, 0) is PullStatus.NO_NEW_MSG
        assert pull_status(answer, 7) is PullStatus.OFFSET_ILLEGAL
    assert pull_status(GetMessageStatus.OFFSET_OVERFLOW_ONE, 7) is PullStatus.NO_NEW_MSG
    assert pull_status(GetMessageStatus.OFFSET_OVERFLOW_BADLY, 7) is PullStatus.OFFSET_ILLEGAL
