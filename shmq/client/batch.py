"""MessageBatch: many messages of one queue as columns, for numpy.

What lives here: what `Consumer.receive_many` gives. The columns and the bodies are read out of the
log in one call; Message objects are made only of those that are asked for. numpy is imported when
a column is first used. Which process: the program's. Writes nothing but progress, when the batch
is settled. May fail: ValueError where bodies of different sizes are stacked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from shmq.core import core

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    import numpy as np
    from numpy.typing import DTypeLike, NDArray

    from shmq.client.process_queue import ProcessQueue

__all__ = ["MessageBatch"]


class MessageBatch:
    """Messages of one queue, in order. Its length says how many; batch[i] is a Message.

    Example:
        with consumer.receive_many() as batch:
            prices = batch.stack("f8")
    """

    __slots__ = ("_columns", "_messages", "_queue", "body_bytes", "offset_list", "topic")

    def __init__(
        self,
        topic: str,
        queue: ProcessQueue | None,
        columns: core.Batch | None,
        messages: Sequence[core.Message],
    ) -> None:
        """By receive_many."""
        self.topic = topic
        """The topic."""
        self._queue = queue
        self._columns = columns
        self._messages = messages
        self.offset_list: Sequence[int]
        """queue_offset of each, a range where none is missing."""
        self.body_bytes: int
        """Bytes of all bodies."""
        if columns is not None:
            places = columns.queue_offsets
            self.offset_list = _offsets(places[0], places[-1], places) if len(places) else ()
            self.body_bytes = sum(columns.body_sizes)
        else:
            self.offset_list = [message.queue_offset for message in messages]
            self.body_bytes = sum(map(len, messages))

    @classmethod
    def empty(cls, topic: str) -> MessageBatch:
        """No messages."""
        return cls(topic, None, None, ())

    @classmethod
    def of_columns(cls, queue: ProcessQueue, columns: core.Batch) -> MessageBatch:
        """What a reader read as columns."""
        return cls(queue.message_queue.topic, queue, columns, ())

    @classmethod
    def of_messages(cls, queue: ProcessQueue, messages: Sequence[core.Message]) -> MessageBatch:
        """What it read as messages."""
        return cls(queue.message_queue.topic, queue, None, messages)

    # ---- columns ---------------------------------------------------------------------------------

    @property
    def queue_id(self) -> int:
        """The queue that all of them come from; -1 for an empty batch."""
        return -1 if self._queue is None else self._queue.message_queue.queue_id

    @property
    def queue_offsets(self) -> NDArray[np.uint64]:
        """(n,) uint64: the place of each in its queue."""
        return self._column("queue_offsets", "queue_offset")

    @property
    def physical_offsets(self) -> NDArray[np.uint64]:
        """(n,) uint64: the byte position of each frame in the CommitLog."""
        return self._column("physical_offsets", "physical_offset")

    @property
    def sizes(self) -> NDArray[np.uint64]:
        """(n,) uint64: bytes of each frame."""
        return self._column("sizes", "size")

    @property
    def body_sizes(self) -> NDArray[np.uint64]:
        """(n,) uint64: bytes of each body."""
        import numpy as np

        if self._columns is None:
            return np.fromiter(map(len, self._messages), np.uint64, len(self._messages))
        return np.asarray(self._columns.body_sizes)

    @overload
    def bodies(self, *, copy: Literal[False] = False) -> list[memoryview]: ...
    @overload
    def bodies(self, *, copy: Literal[True]) -> list[bytes]: ...
    def bodies(self, *, copy: bool = False) -> list[memoryview] | list[bytes]:
        """A read-only view of each body, in place; or with `copy` each as bytes of its own, which
        is quicker where bodies are small, and lasts.
        """
        if self._columns is None:
            views = [message.body for message in self._messages]
            return [bytes(view) for view in views] if copy else views
        return self._columns.bodies(copy=True) if copy else self._columns.bodies()

    def stack(self, dtype: DTypeLike = "u1") -> NDArray[Any]:
        """All bodies as one array of shape (n, items of one body): a copy, one after the other.

        Raises:
            ValueError: the bodies have different sizes, or are no whole number of items.
        """
        import numpy as np

        kind = np.dtype(dtype)
        sizes = self.body_sizes
        if len(sizes) and int(sizes.min()) != int(sizes.max()):
            raise ValueError(
                f"stack {len(sizes)} bodies of {self.topic}: of {sizes.min()} to {sizes.max()} "
                "bytes, wanted one size; take bodies() one by one"
            )
        if self._columns is None:
            data = b"".join(self.bodies())
        else:
            data, _ = self._columns.copy_bodies()
        body_bytes = int(sizes[0]) if len(sizes) else 0
        if body_bytes % kind.itemsize:
            raise ValueError(
                f"stack bodies of {self.topic}: of {body_bytes} bytes, no whole number of "
                f"{kind.str} items"
            )
        return np.frombuffer(data, kind).reshape(len(sizes), body_bytes // kind.itemsize)

    def _column(self, column: str, attribute: str) -> NDArray[np.uint64]:
        import numpy as np

        if self._columns is None:
            values = [getattr(message, attribute) for message in self._messages]
            return np.array(values, np.uint64)
        return np.asarray(getattr(self._columns, column))

    def __len__(self) -> int:
        return len(self.offset_list)

    def __getitem__(self, index: int) -> core.Message:
        return self._messages[index] if self._columns is None else self._columns[index]

    def __iter__(self) -> Iterator[core.Message]:
        return (self[index] for index in range(len(self)))

    # ---- settling --------------------------------------------------------------------------------

    def settle(self) -> None:
        """All of them are done with."""
        if self._queue is not None:
            self._queue.held.difference_update(self.offset_list)
            self._queue.settle_run(self.offset_list)

    def __enter__(self) -> MessageBatch:
        if self._queue is not None:
            self._queue.held.update(self.offset_list)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Settles all; after an exception all are delivered again."""
        if exc_type is None:
            self.settle()
        elif self._queue is not None:
            queue = self._queue
            for index, offset in enumerate(self.offset_list):
                message = self[index]
                if self._columns is not None:  # one that knows whom to tell
                    _, again, _ = queue.reader.read(
                        queue.row, queue.generation, offset, 1, keeper=queue
                    )
                    message = again[0]
                queue.failed(message)


def _offsets(first: int, last: int, places: memoryview) -> Sequence[int]:
    return range(first, last + 1) if last - first + 1 == len(places) else places.tolist()
