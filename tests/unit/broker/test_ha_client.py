"""What a slave may copy behind its own log, as the epochs of both say."""

from __future__ import annotations

import pytest

from shmq.broker.ha_client import check_epochs
from shmq.errors import StoreCorruptError
from shmq.store.epochs import Epoch

THEIRS = (Epoch(1, 0), Epoch(2, 500), Epoch(4, 900))


@pytest.mark.parametrize(
    ("ours", "our_end"),
    [
        ((), 0),
        ((), 300),
        (THEIRS[:1], 300),
        (THEIRS[:1], 500),
        (THEIRS[:2], 900),
        (THEIRS, 700),  # it has heard of a mastership of which it has nothing yet
        (THEIRS, 1000),
    ],
)
def test_log_that_is_a_part_of_the_masters_is_gone_on_with(
    ours: tuple[Epoch, ...], our_end: int
) -> None:
    check_epochs(ours, our_end, THEIRS, 1000)


@pytest.mark.parametrize(
    ("ours", "our_end", "alone"),
    [
        (THEIRS[:1], 501, 1),  # it went on as master 1, the others did not
        ((*THEIRS[:2], Epoch(3, 900)), 950, 50),
        ((Epoch(7, 0),), 300, 300),
        (THEIRS, 1001, 1),
    ],
)
def test_log_that_has_what_the_master_has_not_is_refused_with_how_much(
    ours: tuple[Epoch, ...], our_end: int, alone: int
) -> None:
    with pytest.raises(StoreCorruptError, match=f"so {alone} bytes are here alone"):
        check_epochs(ours, our_end, THEIRS, 1000)
