"""An asyncio event loop in a thread of its own, beside the main thread that waits for signals.

shmq.service takes signals in the main thread without an event loop; the control plane of a daemon
runs here. What is started on the loop stays on it: all but `run`, `submit`, `beat` and `stop`
belongs to the loop's thread. May fail: what runs on the loop; an error that nobody awaits is
logged, and the loop of a daemon one of whose tasks is gone (`in_background`) is not well any more.
"""

import asyncio
import logging
import traceback
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from shmq.threads import NamedThread, thread_pool

__all__ = ["LoopThread", "in_background"]

_log = logging.getLogger("shmq.remoting")
_T = TypeVar("_T")


def in_background(work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
    """Run a coroutine as a task of this loop that nobody awaits; whoever starts it keeps the task.

    If it ends by an error, or by a cancellation that nobody asked it for, one line of the log says
    so, and the `problem` of the LoopThread whose loop this is: the daemon lacks what it did.
    """
    name = getattr(work, "__qualname__", repr(work))  # typing knows it of no Coroutine
    task = asyncio.get_running_loop().create_task(work, name=name)
    task.add_done_callback(_look_at)
    return task


def _look_at(task: asyncio.Task[Any]) -> None:
    if task.cancelled():
        error: BaseException | None = None if task.cancelling() else asyncio.CancelledError()
    else:
        error = task.exception()
    if error is not None:
        message = f"{task.get_name()} ended: {error!r}{_place(error)}"
        task.get_loop().call_exception_handler({"message": message, "background_task": task})


def _place(error: BaseException) -> str:
    """The line that raised it, where there is one."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""


class LoopThread:
    """One event loop and its thread.

    Args:
        name: of the thread, as `ps -L` shows it.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(self._note)
        self._loop.set_default_executor(thread_pool("shmq-pool"))
        self.problem: str | None = None
        """Which task of `in_background` is gone, and why, in one line; None: all run."""
        self._thread = NamedThread(target=self._serve, name=name, daemon=True)
        self._asked_count = 0
        self._answered_count = 0

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop, for `call_soon_threadsafe`."""
        return self._loop

    @property
    def is_running(self) -> bool:
        """Between `start` and `stop`."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to run the loop."""
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, _T], *, timeout_s: float) -> _T:
        """Run a coroutine on the loop and give its result; called from another thread. Blocks.

        Raises:
            TimeoutError: it took longer; it was cancelled.
        """
        future = self.submit(work)
        try:
            return future.result(timeout_s)
        except TimeoutError:
            future.cancel()
            raise

    def submit(self, work: Coroutine[Any, Any, _T]) -> Future[_T]:
        """Have a coroutine run on the loop; called from another thread. Returns at once."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def beat(self, prove: Callable[[], object] | None = None) -> bool:
        """Whether the loop has answered since the last call, and has no problem; never blocks.

        The first call only asks.

        Args:
            prove: called on the loop before it answers; what it waits for must make progress, too.
        """
        is_alive = self._answered_count == self._asked_count and self.problem is None
        self._asked_count += 1
        asked = self._asked_count
        self._loop.call_soon_threadsafe(self._answer, asked, prove)
        return is_alive

    def stop(self) -> None:
        """End the loop and its thread; what still runs on it is cancelled. Twice does nothing."""
        if self._loop.is_closed():
            return
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    def _answer(self, asked: int, prove: Callable[[], object] | None) -> None:
        if prove is not None:
            prove()
        self._answered_count = asked

    def _serve(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(_cancel_others())

    def _note(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        message = context["message"]
        if "background_task" in context:
            self.problem = self.problem or message
            _log.error("task is gone, restart this process: %s", message)
            return
        _log.error("event loop: %s", message, exc_info=context.get("exception"))


async def _cancel_others() -> None:
    """Cancel what still runs on this loop, and wait for it."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
