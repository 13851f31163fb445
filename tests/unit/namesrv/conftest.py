"""What the tests of processes share."""

import time
from collections.abc import Callable

PAUSE_S = 0.005


def until(is_so: Callable[[], object]) -> None:
    """Return once something is so; the test's own timeout is the bound."""
    while not is_so():
        time.sleep(PAUSE_S)  # of this polling; nothing is assumed to happen within it
