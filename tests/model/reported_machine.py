"""State machines of hypothesis whose failure can be read: what went wrong first, where, after what.

What lives here: `ReportedMachine`, `rule`, and `run_reported`, which fails a test with a report of
some thirty lines. Hypothesis runs a failing example again; with real processes it may pass then,
and all hypothesis tells is that it was unreliable, in hundreds of lines. Here the first failure
counts, as it was: its exception, the line of the rule, and the last steps before it.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.stateful
import pytest
from hypothesis import seed, settings

STEPS_SHOWN = 25
_FRAMES_SHOWN = 6
_MESSAGE_MAX = 1000
"""Characters of an exception's message: an assertion may hold two bodies."""


def rule(**strategies: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """hypothesis' rule of a ReportedMachine."""
    return _noted(hypothesis.stateful.rule(**strategies))


def initialize(**strategies: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """hypothesis' initialize of a ReportedMachine."""
    return _noted(hypothesis.stateful.initialize(**strategies))


def _noted(
    decorate: Callable[[Callable[..., None]], Callable[..., None]],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def decorate_noted(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def step(machine: ReportedMachine, **arguments: Any) -> None:
            said = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
            machine.steps.append(f"{function.__name__}({said})")
            machine.step_count += 1
            function(machine, **arguments)

        return decorate(step)

    return decorate_noted


class ReportedMachine(hypothesis.stateful.RuleBasedStateMachine):
    """A machine that ends with `end` if nothing has failed, and lets go of all with `release`."""

    first_failure: str | None = None
    """The report of the first machine of this class that failed; hypothesis tries again then."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: deque[str] = deque(maxlen=STEPS_SHOWN)
        self.step_count = 0
        self._handled_before = sys.exception()

    def end(self) -> None:
        """What must hold at the end."""

    def release(self) -> None:
        """End processes, remove files; called in any case."""

    def last_words(self) -> list[str]:
        """What else to show of a failure, such as the end of a log, in few lines."""
        return []

    def teardown(self) -> None:
        failure = sys.exception()
        is_passing = failure is self._handled_before
        if not is_passing:
            self._note(failure)
        try:
            if is_passing:
                self.steps.append("the end")
                with self._noted():
                    self.end()
        finally:
            with self._noted():
                self.release()

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._note(error)
            raise

    def _note(self, error: BaseException | None) -> None:
        kind = type(self)
        if isinstance(error, Exception) and kind.first_failure is None:
            kind.first_failure = "\n".join(
                [
                    *_story(error),
                    f"the last of {self.step_count} steps:",
                    *(f"  {step}" for step in self.steps),
                    *self.last_words(),
                ]
            )


def run_reported(machine: type[ReportedMachine], *, with_seed: int, how: settings) -> None:
    """Run a machine; the test fails with what failed first, the seed, and the last steps."""
    machine.first_failure = None
    try:
        hypothesis.stateful.run_state_machine_as_test(seed(with_seed)(machine), settings=how)
    except Exception as error:  # noqa: BLE001 # whatever it was, it is reported
        # A machine that could not even be made has noted nothing.
        report = machine.first_failure or "\n".join(_story(_leaf(error)))
        again = "and not when hypothesis ran it again" if _is_flaky(error) else "and again"
    else:
        return
    head, _, rest = report.partition("\n")
    pytest.fail(f"{head}\nSHMQ_SEED={with_seed:#x}, failed once {again}\n{rest}", pytrace=False)


def _is_flaky(error: Exception) -> bool:
    return isinstance(error, hypothesis.errors.FlakyFailure)


def _leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _story(error: BaseException) -> list[str]:
    """Type and message in one line, then the frames of the repository that led there, last one
    first: the line that failed.
    """
    message = " ".join(str(error).split())[:_MESSAGE_MAX]
    root = f"{Path(__file__).parents[2]}/"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.startswith(root) and ".venv" not in frame.filename
        if frame.filename != __file__
    ]
    return [
        f"{type(error).__name__}: {message}",
        *(
            f"  {frame.filename.removeprefix(root)}:{frame.lineno} in {frame.name}: {frame.line}"
            for frame in reversed(frames[-_FRAMES_SHOWN:])
        ),
    ]
