"""What brokers print, forwarded line by line to our own stderr with the broker's name before it.

A broker of ours prints into a file, not into a pipe: our death leaves it somebody to print to, and
a successor of ours goes on reading. The file is emptied when all of it was forwarded and it has
grown large; lines printed in that very instant are lost.

One thread of the NameServer for all files, so that a stderr that blocks stops nothing else.
"""

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from shmq.threads import NamedThread

__all__ = ["LogTail", "LogTails"]

_POLL_INTERVAL_S: Final = 0.25
_READ_BYTES: Final = 64 << 10
_EMPTY_AT_BYTES: Final = 16 << 20
_LINE_BYTES_MAX: Final = 16 << 10


class LogTail:
    """One file; owns a descriptor.

    Args:
        path: where the broker appends; must be there.
        name: what stands before each line.
        from_end: whether what the file holds now was forwarded by somebody before us.
    """

    def __init__(self, path: Path, name: str, *, from_end: bool) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._prefix = f"[{name}] "
        self._position = os.fstat(self._fd).st_size if from_end else 0
        self._rest = b""

    def forward(self, write: Callable[[str], object]) -> None:
        """Give the lines that have been added to `write`; blocks as long as that does."""
        if os.fstat(self._fd).st_size < self._position:  # somebody else has emptied it
            self._position, self._rest = 0, b""
        while data := os.pread(self._fd, _READ_BYTES, self._position):
            self._position += len(data)
            *lines, self._rest = (self._rest + data).split(b"\n")
            if len(self._rest) > _LINE_BYTES_MAX:
                lines, self._rest = [*lines, self._rest], b""
            for line in lines:
                write(f"{self._prefix}{line.decode('utf-8', 'backslashreplace')}\n")
        if self._position >= _EMPTY_AT_BYTES and os.fstat(self._fd).st_size == self._position:
            os.ftruncate(self._fd, 0)
            self._position = 0

    def close(self, write: Callable[[str], object]) -> None:
        """Forward the last, unended line too, and let go of the file."""
        if self._rest:
            write(f"{self._prefix}{self._rest.decode('utf-8', 'backslashreplace')}\n")
        os.close(self._fd)


class LogTails:
    """All files, and the thread that reads them.

    Args:
        write: takes a line; None: our stderr.
    """

    def __init__(self, write: Callable[[str], object] | None = None) -> None:
        self._write = write or sys.stderr.write
        self._tails: dict[str, LogTail] = {}
        self._done: list[LogTail] = []
        self._lock = threading.Lock()
        self._is_stopping = threading.Event()
        self._thread = NamedThread(target=self._serve, name="shmq-log-tail", daemon=True)

    def start(self) -> None:
        """Begin to forward."""
        self._thread.start()

    def add(self, name: str, tail: LogTail) -> None:
        """Forward one more file; the one of that name before it is read to its end and closed."""
        with self._lock:
            before = self._tails.get(name)
            if before is not None:
                self._done.append(before)
            self._tails[name] = tail

    def stop(self) -> None:
        """Forward what is there, close all files, end the thread. Twice does nothing."""
        self._is_stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        with self._lock:
            self._done += self._tails.values()
            self._tails.clear()
        self._forward()

    def _serve(self) -> None:
        while not self._is_stopping.wait(_POLL_INTERVAL_S):
            self._forward()

    def _forward(self) -> None:
        with self._lock:
            done, self._done = self._done, []
            tails = tuple(self._tails.values())
        for tail in (*done, *tails):
            try:
                tail.forward(self._write)
            except OSError:
                pass  # our stderr is gone: the lines stay in the file
        for tail in done:
            try:
                tail.close(self._write)
            except OSError:
                pass
