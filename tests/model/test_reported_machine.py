"""The report of a state machine's failure names what failed first, in few lines."""

from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant

from tests.model.reported_machine import STEPS_SHOWN, ReportedMachine, rule, run_reported

HOW = settings(
    max_examples=3,
    stateful_step_count=60,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


class Failing(ReportedMachine):
    """Fails where it is told to, as often as it is told to."""

    where = ""
    times_left = 0
    released_count: ClassVar[list[str]] = []

    def _fail(self, where: str) -> None:
        if where == self.where and self.step_count >= 40 and type(self).times_left > 0:
            type(self).times_left -= 1
            raise LookupError(f"planted in {where}:\n{'x' * 50}")

    @rule(number=st.integers(0, 9))
    def step(self, number: int) -> None:
        self._fail("rule")

    @invariant()
    def always(self) -> None:
        self._fail("invariant")

    def end(self) -> None:
        self._fail("end")

    def last_words(self) -> list[str]:
        return ["said last"]

    def release(self) -> None:
        self.released_count.append("")
        self._fail("release")
        if self.where == "rule" and self.step_count >= 40:
            raise OSError("what follows from the failure")


@pytest.mark.parametrize("where", ["rule", "invariant", "end", "release"])
@pytest.mark.parametrize("times", [1, 1000], ids=["once", "always"])
def test_report_begins_with_the_first_failure_and_its_seed(where: str, times: int) -> None:
    Failing.where, Failing.times_left = where, times
    with pytest.raises(pytest.fail.Exception) as caught:
        run_reported(Failing, with_seed=0x51, how=HOW)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"LookupError: planted in {where}: xxx")
    assert "SHMQ_SEED=0x51" in lines[1]
    assert ("not when" in lines[1]) == (times == 1 and where != "rule")
    assert lines[2].startswith("  tests/model/test_reported_machine.py:")
    assert "self._fail(" in lines[3]
    begin = next(number for number, line in enumerate(lines) if line.startswith("the last of"))
    assert begin < 15
    assert lines.pop() == "said last"
    assert len(lines) - begin - 1 == STEPS_SHOWN
    if where in ("end", "release"):
        assert lines[begin] == "the last of 60 steps:"
        assert lines[-1] == "  the end"
    else:
        assert lines[begin] == "the last of 40 steps:"
        assert lines[-1].startswith("  step(number=")


def test_machine_that_cannot_be_made_is_reported_too() -> None:
    class Unmakeable(ReportedMachine):
        def __init__(self) -> None:
            raise LookupError("planted in __init__")

        @rule()
        def step(self) -> None:
            pass

    with pytest.raises(pytest.fail.Exception, match=r"\ALookupError: planted in __init__\n"):
        run_reported(Unmakeable, with_seed=1, how=HOW)


def test_machine_that_passes_says_nothing_and_is_released() -> None:
    Failing.where, Failing.times_left = "", 0
    Failing.released_count.clear()
    run_reported(Failing, with_seed=1, how=HOW)
    assert len(Failing.released_count) == HOW.max_examples
