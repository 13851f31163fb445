"""How much a test does: few rounds in the default set, all of them in a full run."""

import os


def is_full_run() -> bool:
    """Whether this is a full run (bin/test --full, or SHMQ_FULL=1)."""
    return os.environ.get("SHMQ_FULL") == "1"


QUICKLY = "-O1" if is_full_run() else "-Og"
"""How C is compiled for a check that does little: half of such a test would be the optimizer's."""


def scaled(default_count: int, full_count: int) -> int:
    """`default_count` in the default set, `full_count` in a full run."""
    return full_count if is_full_run() else default_count
