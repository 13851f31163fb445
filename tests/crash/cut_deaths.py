"""Run as `python -m tests.crash.cut_deaths STORE SEED COUNT`: a cut that is killed at its steps.

STORE has a cut that was begun. Each time a child finishes it in a copy and dies at one line of the
code that cuts, the next one at another, and the last one not; in between, every byte of the log is
in the log or kept, and in the end all is as where nobody died. A process of its own, with one
thread: its children are forked. Prints how many lines there are to die at.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shmq.store.cuts import Cut, CutList, finish_cuts

if TYPE_CHECKING:
    from types import FrameType

_TRACED = (
    "store/cuts.py",
    "store/log_files.py",
    "store/positions.py",
    "store/epochs.py",
    "store/consume_queue_files.py",
)


class _Lines:
    def __init__(self, dies_at: int) -> None:
        self.count = 0
        self._dies_at = dies_at

    def trace(self, frame: FrameType, event: str, _: object) -> Any:
        if event == "line":
            self.count += 1
            if self.count == self._dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.trace if frame.f_code.co_filename.endswith(_TRACED) else None


def _finish(store: Path, dies_at: int) -> bool:
    """Finish the cut in a child that dies at a line; whether it did not come so far."""
    pid = os.fork()
    if pid == 0:
        sys.settrace(_Lines(dies_at).trace)
        finish_cuts(store)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return not os.WIFSIGNALED(status)


def _log(store: Path) -> dict[int, bytes]:
    return {int(path.name): path.read_bytes() for path in (store / "commitlog").iterdir()}


def _check_all_is_there(store: Path, before: dict[int, bytes], cut: Cut) -> None:
    """Each part is whole, kept or where it was; what is before the cut is as it was."""
    now = _log(store)
    for file_position, data in before.items():
        part = next(
            (p for p in cut.parts if p.position // len(data) * len(data) == file_position), None
        )
        if part is None:
            assert file_position >= cut.end_position or now[file_position] == data, file_position
            continue
        place = part.position - file_position
        kept = store / "shmq/quarantine" / part.file_name
        found = (
            kept.read_bytes()[: part.size]
            if kept.exists()
            else now[file_position][place:][: part.size]
        )
        assert found == data[place:][: part.size], part
        assert now.get(file_position, data)[:place] == data[:place], part


def _all(store: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.name != "positions"  # it counts its writes
    }


def main(store: Path, seed: int, step_count: int) -> None:
    before = _log(store)
    (cut,) = CutList.load(store).cuts
    whole = store.with_name("whole")
    shutil.copytree(store, whole)
    lines = _Lines(0)
    sys.settrace(lines.trace)
    finish_cuts(whole)
    sys.settrace(None)
    chance = random.Random(seed)
    steps = range(1, lines.count + 1)
    for step in chance.sample(steps, min(step_count, len(steps))):
        copy = store.with_name("copy")
        shutil.copytree(store, copy)
        _finish(copy, step)
        _check_all_is_there(copy, before, cut)
        _finish(copy, chance.choice(steps))
        _check_all_is_there(copy, before, cut)
        assert _finish(copy, 0)
        assert _all(copy) == _all(whole), step
        shutil.rmtree(copy)
    print(lines.count)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
