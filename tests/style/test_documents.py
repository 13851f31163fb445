"""The pages: every link leads somewhere, every file they name exists, the version is one."""

import re
import tomllib
from pathlib import Path

import pytest

from tests.support.repository import ROOT, documents, place

LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
# A path in backticks that starts in one of our folders; with a * or a < it names a family.
NAMED_FILE = re.compile(r"`((?:shmq|bin|tests|docs|bench|systemd|\.ci)/[\w./-]+)`")


def _id(path: Path) -> str:
    return place(path)


@pytest.mark.parametrize("path", documents(), ids=_id)
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    broken = [
        link
        for link in LINK.findall(text)
        if "://" not in link
        and not link.startswith("mailto:")
        and not (path.parent / link).exists()
    ]
    assert not broken, f"{place(path)}: {broken}"


@pytest.mark.parametrize("path", documents(), ids=_id)
def test_files_that_are_named_exist(path: Path) -> None:
    named = NAMED_FILE.findall(path.read_text(encoding="utf-8"))
    absent = sorted({name for name in named if not (ROOT / name).exists()})
    assert not absent, f"{place(path)}: names {absent}"


def test_readme_opens_with_name_and_one_sentence() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# shmq"
    assert lines[2].endswith(".")


def test_newest_change_is_of_the_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == version
