"""The tools of bin/check, each as a test, so that one closing line tells of them too."""

import subprocess

import pytest

from tests.support.repository import ROOT


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", ["format", "lint", "types", "floors", "stubs"])
def test_check_passes(part: str) -> None:
    result = subprocess.run(
        [ROOT / "bin/check", part], capture_output=True, text=True, check=False, cwd="/"
    )
    if result.returncode:
        pytest.fail(f"bin/check {part}\n{result.stdout}{result.stderr}", pytrace=False)
