"""What everything that a program opens has in common: `with` closes it, and it is not pickled.

What lives here: `Closable`, for threads, and `AsyncClosable`, for tasks. Which process: the
program's. Writes nothing. May fail: as the close() of who is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, Self

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["AsyncClosable", "Closable"]


class _Unpickled:
    def __reduce__(self) -> NoReturn:
        name = type(self).__name__.removeprefix("Async")
        raise TypeError(
            f"pickle a {name}: it holds shared memory or a connection; connect in the other process"
        )


class Closable(_Unpickled):
    """A context manager that closes what it is."""

    def close(self) -> None:
        """Give it up. Twice does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncClosable(_Unpickled):
    """An async context manager that closes what it is."""

    async def close(self) -> None:
        """Give it up. Twice does nothing."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
