"""What a test needs from the machine: skipped by name where it is missing, failed in CI.

CI=true says that everything a test may need was promised, so a missing thing is a fault of the
run and not a reason to look away.
"""

import os
import shutil
from typing import NoReturn

import pytest


def in_ci() -> bool:
    """Whether required things must be there (CI=true in the environment)."""
    return os.environ.get("CI", "").lower() in ("1", "true", "yes")


def require_or_skip(reason: str) -> NoReturn:
    """Skip the running test, naming what is missing; in CI fail it instead.

    Args:
        reason: what is missing and how to get it, e.g. "spin not found: apt install spin".
    """
    if in_ci():
        pytest.fail(f"required in CI: {reason}", pytrace=False)
    pytest.skip(reason)


def require_program(name: str, package: str) -> str:
    """The path of an installed program, else `require_or_skip` naming its Debian package."""
    path = shutil.which(name)
    if path is None:
        require_or_skip(f"{name} not found: apt install {package}")
    return path


def require_root() -> None:
    """Return if the test runs as uid 0, else `require_or_skip`."""
    if os.geteuid() != 0:
        require_or_skip("needs root")
