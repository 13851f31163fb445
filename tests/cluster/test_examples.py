"""The examples of the documentation run, and the README shows them as they are."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))


@pytest.mark.cluster
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "order" in done.stdout


def test_readme_shows_the_quickstart() -> None:
    example = (ROOT / "docs" / "examples" / "quickstart.py").read_text(encoding="utf-8")
    body = example.split('"""\n', 1)[1].strip()
    indented = "\n".join(f"    {line}".rstrip() for line in body.splitlines())
    assert indented in (ROOT / "README.md").read_text(encoding="utf-8")
