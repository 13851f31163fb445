"""A loan: the body of a message filled in the ring itself, without a copy.

What lives here: `Loan`, what `Producer.loan` gives. Which process: the program's; one thread, and
while it is open no other thread sends through the same ring. Writes: the ring, through the core.
May fail: what Producer.send may; BufferError where something made from the memory outlives it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Self

from shmq.errors import ShmqError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from numpy.typing import DTypeLike as DTypeLike  # for whoever offers loans
    from numpy.typing import NDArray

    from shmq.core import core
    from shmq.result import SendResult

__all__ = ["Loan", "array_properties"]

_DTYPE = "__shmq_dtype"
_SHAPE = "__shmq_shape"


def array_properties(dtype: DTypeLike, shape: tuple[int, ...]) -> tuple[dict[str, str], int]:
    """What makes Message.array() give such an array, and how many bytes it has."""
    import numpy as np

    kind = np.dtype(dtype)
    text = ",".join(map(str, shape)) if shape else "()"
    return {_DTYPE: kind.str, _SHAPE: text}, kind.itemsize * math.prod(shape)


class Loan:
    """Room for a body. Leaving the context sends it and waits; an exception sends nothing."""

    def __init__(
        self,
        open_loan: Callable[[], core.Loan],
        settle: Callable[[int], SendResult],
        dtype: DTypeLike | None,
        shape: tuple[int, ...] | None,
    ) -> None:
        """By Producer.loan."""
        self._open_loan = open_loan
        self._settle = settle
        self._dtype = dtype
        self._shape = shape
        self._loan: core.Loan | None = None
        self._view: memoryview | None = None
        self._result: SendResult | None = None

    @property
    def view(self) -> memoryview:
        """The body's bytes, writable; only inside the context."""
        if self._view is None:
            raise ValueError("view a loan: it is not open; use it in its with block")
        return self._view

    def array(
        self, dtype: DTypeLike | None = None, shape: tuple[int, ...] | None = None
    ) -> NDArray[Any]:
        """A writable array on the body; of the dtype and shape it was asked for with, unless told.

        It must be gone when the context ends: write `slot.array()[:] = values`, or del it.
        """
        import numpy as np

        kind = dtype if dtype is not None else self._dtype
        flat = np.frombuffer(self.view, np.dtype("u1" if kind is None else kind))
        wanted = shape if shape is not None else self._shape
        return flat if wanted is None else flat.reshape(wanted)

    @property
    def result(self) -> SendResult:
        """What became of it, once the context has ended."""
        if self._result is None:
            raise ValueError("result of a loan: it was not sent")
        return self._result

    def __enter__(self) -> Self:
        self._loan = self._open_loan()
        self._view = self._loan.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        loan = self._loan
        assert loan is not None
        self._view = None
        try:
            loan.__exit__(exc_type, exc, traceback)
        except BufferError:
            if exc_type is not None:
                return  # what is alive in the traceback holds it; it is aborted when that goes
            raise BufferError(
                "send a loan: an array or view of its memory is alive; del it before the block "
                "ends, or fill it in place: slot.array()[:] = values"
            ) from None
        finally:
            self._loan = None
        if exc_type is not None:
            return
        if not loan.committed:
            raise ShmqError("send a loan: it was not committed")
        self._result = self._settle(loan.sequence)
