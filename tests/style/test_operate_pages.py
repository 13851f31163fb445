"""What a page of docs/operate shows, commands and files, a test types, or it is said why not."""

import re

import pytest

from tests.support.pages import Page, page_names
from tests.support.repository import ROOT
from tests.systemd.typed import FILES, NOT_TYPED, TYPED


@pytest.mark.parametrize("name", page_names())
def test_what_a_page_shows_is_typed_or_says_why_not(name: str) -> None:
    page = Page.read(name)
    shown = {command: command for command in page.commands}
    shown |= {text: text.splitlines()[0] for text in page.texts}
    typed, not_typed = TYPED.get(name, {}), NOT_TYPED.get(name, {})
    used = set()
    for whole in shown:
        key = whole if whole in typed else whole.splitlines()[0]
        if name in FILES and whole.startswith(FILES[name]):
            continue
        assert (key in typed) != (key in not_typed), f"in one of tests/systemd/typed.py: {whole}"
        used.add(key)
    assert used == {*typed, *not_typed}, "only what stands on the page"


@pytest.mark.parametrize("name", FILES)
def test_file_that_is_typed_stands_on_its_page(name: str) -> None:
    assert [text for text in Page.read(name).texts if text.startswith(FILES[name])]


def test_reasons_name_tests_that_are_there() -> None:
    for reasons in NOT_TYPED.values():
        for reason in reasons.values():
            for path in re.findall(r"tests/[\w/]+\.py", reason):
                assert (ROOT / path).exists(), reason
