"""What runs in the background of a daemon's loop cannot end unseen, and may be told to."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from shmq.remoting.loop_thread import LoopThread, in_background

_PATIENCE_S = 30.0


class TaskIsLostError(Exception):
    """What no task of ours expects."""


async def _fail() -> None:
    await asyncio.sleep(0)
    raise TaskIsLostError("the disk fell out")


async def _await_what_is_cancelled() -> None:
    """Somebody cancels what it waits for, not the task."""
    waiting = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(waiting.cancel)
    await waiting


async def _end() -> None:
    await asyncio.sleep(0)


async def _start_and_wait(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    await asyncio.wait([in_background(work())])
    await asyncio.sleep(0)  # its callback has been called


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (_fail, "_fail ended: TaskIsLostError('the disk fell out') at "),
        (_await_what_is_cancelled, "_await_what_is_cancelled ended: CancelledError()"),
    ],
)
def test_task_that_is_gone_is_one_error_in_the_log_and_the_loop_not_well_any_more(
    loop_thread: LoopThread, caplog: pytest.LogCaptureFixture, work: Any, said: str
) -> None:
    assert loop_thread.beat()
    loop_thread.run(_start_and_wait(work), timeout_s=_PATIENCE_S)
    assert loop_thread.problem is not None
    assert loop_thread.problem.startswith(said)
    assert not loop_thread.beat()
    loop_thread.run(_end(), timeout_s=_PATIENCE_S)
    assert not loop_thread.beat(), "though the loop answers"
    (line,) = caplog.record_tuples
    assert line == (
        "shmq.remoting",
        logging.ERROR,
        f"task is gone, restart this process: {loop_thread.problem}",
    )
    assert "\n" not in line[2]


def test_first_task_that_is_gone_is_the_one_that_is_told(loop_thread: LoopThread) -> None:
    for work in (_fail, _await_what_is_cancelled):
        loop_thread.run(_start_and_wait(work), timeout_s=_PATIENCE_S)
    assert (loop_thread.problem or "").startswith("_fail ")


def test_task_that_ends_or_is_told_to_is_no_problem(caplog: pytest.LogCaptureFixture) -> None:
    thread = LoopThread("test-loop")
    thread.start()
    thread.run(_start_and_wait(_end), timeout_s=_PATIENCE_S)

    async def cancel_one() -> None:
        task = in_background(asyncio.sleep(_PATIENCE_S))
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0)

    async def leave_one() -> None:
        left.append(in_background(asyncio.sleep(_PATIENCE_S)))

    left: list[asyncio.Task[None]] = []
    thread.run(cancel_one(), timeout_s=_PATIENCE_S)
    thread.run(leave_one(), timeout_s=_PATIENCE_S)
    thread.stop()
    assert left[0].cancelled()
    assert thread.problem is None
    assert not caplog.records
