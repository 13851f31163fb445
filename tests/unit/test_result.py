"""Results are values: they compare, unpack and cannot be changed."""

import copy
import pickle

import pytest

from shmq.result import MessageQueue, SendResult, SendResults, StoredResults
from shmq.status import SendStatus


def test_queues_sort_as_rocketmqs_do() -> None:
    queues = [MessageQueue("b", "x", 0), MessageQueue("a", "y", 1), MessageQueue("a", "x", 10)]
    assert sorted(queues) == [queues[2], queues[1], queues[0]]


def test_result_is_frozen() -> None:
    result = SendResult(SendStatus.SEND_OK, "00" * 16, MessageQueue("t", "b", 0), 7)
    with pytest.raises(AttributeError):
        result.queue_offset = 8  # type: ignore[misc]
    assert result == (SendStatus.SEND_OK, "00" * 16, ("t", "b", 0), 7)


def test_results_of_send_many_are_copied_and_pickled_as_a_list() -> None:
    class Numbers:
        """As the core's Completions, which no pickle takes."""

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> tuple[int, int, str]:
            return 0, 7 + index, f"{index:032}"

        def __reduce__(self) -> str:
            raise TypeError("cannot pickle")

    part = StoredResults(SendStatus.SEND_OK, MessageQueue("t", "b", 0), Numbers())  # type: ignore[arg-type]
    for results in (part, SendResults([part, part])):
        for made in (
            pickle.loads(pickle.dumps(results)),
            copy.deepcopy(results),
            copy.copy(results),
        ):
            assert type(made) is list
            assert made == list(results) == results
