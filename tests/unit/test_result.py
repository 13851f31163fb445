"""Results are values: they compare, unpack and cannot be changed."""

import pytest

from shmq.result import MessageQueue, SendResult
from shmq.status import SendStatus


def test_queues_sort_as_rocketmqs_do() -> None:
    queues = [MessageQueue("b", "x", 0), MessageQueue("a", "y", 1), MessageQueue("a", "x", 10)]
    assert sorted(queues) == [queues[2], queues[1], queues[0]]


def test_result_is_frozen() -> None:
    result = SendResult(SendStatus.SEND_OK, "00" * 16, MessageQueue("t", "b", 0), 7)
    with pytest.raises(AttributeError):
        result.queue_offset = 8  # type: ignore[misc]
    assert result == (SendStatus.SEND_OK, "00" * 16, ("t", "b", 0), 7)
