"""A client of an event loop that looks like shmq.Client: one test speaks to both.

The loop runs in a thread of its own; each call is a task there, waited for here.
"""

import asyncio
import functools
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import uvloop

import shmq.aio

_PATIENCE_S = 100.0


class LoopThread:
    """A running loop, of asyncio or of uvloop."""

    def __init__(self, kind: str) -> None:
        self.loop = uvloop.new_event_loop() if kind == "uvloop" else asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="test-loop")
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(_PATIENCE_S)

    def end(self) -> None:
        self.run(self.loop.shutdown_default_executor())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Bridged:
    """An object of shmq.aio: what it awaits is waited for."""

    def __init__(self, thread: LoopThread, real: Any) -> None:
        self._thread = thread
        self._real = real

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._real, name)
        if not callable(value):
            return value

        @functools.wraps(value)
        def call(*arguments: Any, **options: Any) -> Any:
            async def work() -> Any:
                found = value(*arguments, **options)
                return await found if hasattr(found, "__await__") else found

            found = self._thread.run(work())
            is_ours = type(found).__module__.startswith("shmq.client.aio")
            return Bridged(self._thread, found) if is_ours else found

        return call

    def __iter__(self) -> Iterator[Any]:
        async def begin() -> Any:
            return aiter(self._real)

        return self._follow(self._thread.run(begin()))

    def _follow(self, messages: Any) -> Iterator[Any]:
        async def following() -> Any:
            return await anext(messages, None)

        while (message := self._thread.run(following())) is not None:
            yield message

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._thread.run(self._real.__aexit__(exc_type, exc, traceback))


class BridgedClient(Bridged):
    """A client with a loop of its own."""

    def __init__(self, runtime: Path, kind: str) -> None:
        thread = LoopThread(kind)

        async def connect() -> shmq.aio.Client:
            return await shmq.aio.connect(runtime)

        super().__init__(thread, thread.run(connect()))

    def link(self, name: str) -> Any:
        """As Client.link: tests look through it at what a broker knows."""
        return self._real.engine.link(name)

    def pull_consumer(self, topic: str) -> shmq.PullConsumer:
        """As Client.pull_consumer: tests look through it at what is stored."""
        found: shmq.PullConsumer = self._real.engine.pull_consumer(topic)
        return found

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._thread.run(self._real.close())
        self._thread.end()
