"""Handles as they travel in requests."""

import pytest

from shmq.broker.processors.fields import HANDLE_COUNT_MAX, handles_of
from shmq.client.broker_link import _runs_of
from shmq.errors import ConfigError


@pytest.mark.parametrize(
    ("handles", "runs"),
    [
        ([], []),
        ([(3, 1)], [[3, 1, 1]]),
        ([(3, 1), (4, 1), (5, 1)], [[3, 1, 3]]),
        ([(3, 1), (4, 2), (5, 2), (7, 2)], [[3, 1, 1], [4, 2, 2], [7, 2, 1]]),
        ([(3, 1), (3, 2), (4, 2)], [[3, 1, 1], [3, 2, 2]]),
        ([(row, 9) for row in range(100_000)], [[0, 9, 100_000]]),
    ],
)
def test_handles_travel_as_runs_of_rows(handles, runs):
    assert _runs_of(handles) == runs
    assert handles_of(runs, "sends") == handles


@pytest.mark.parametrize(
    "value",
    [
        5,
        {},
        [5],
        [[1, 1]],
        [[1, 1, 0]],
        [[1, 1, -1]],
        [[1, 1, True]],
        [[1, 1, 2**32 - 1]],
        [[1, 1, HANDLE_COUNT_MAX], [1, 1, 1]],
    ],
)
def test_what_is_no_run_is_refused_before_anything_is_made_of_it(value):
    with pytest.raises(ConfigError, match=r"sends: .*wanted .*\[row, generation, count\]"):
        handles_of(value, "sends")
