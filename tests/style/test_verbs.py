"""What pages, alerts and messages tell people to type is there: every `shmq VERB NOUN`."""

from __future__ import annotations

import ast
import re
from functools import cache
from typing import TYPE_CHECKING

import click
import pytest

from shmq.tools.cli.main import cli
from tests.support.repository import ROOT, documents, place, python_files, tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# With a quote before it the first word has to be a verb, too; "one shmq broker" is prose.
CALL = re.compile(
    r"(`|bin/)?\bshmq ([a-z]+)(?: ([a-z]+(?:-[a-z]+)*)\b(?![=/.:(]))?",
)
OTHER_PROGRAMS = re.compile(r"pip install.*|import shmq.*|-m shmq.*")


@cache
def verbs() -> dict[str, frozenset[str]]:
    """Every verb, with what may follow it; nothing where anything may."""
    found = {}
    with click.Context(cli) as context:
        for name in cli.list_commands(context):
            command = cli.get_command(context, name)
            names = command.list_commands(context) if isinstance(command, click.Group) else ()
            found[name] = frozenset(names)
    return found


def unknown_calls(text: str) -> list[str]:
    found = []
    for quote, verb, noun in CALL.findall(OTHER_PROGRAMS.sub("", text)):
        known = verbs().get(verb)
        if (known is None and quote) or (known and noun and noun not in known):
            found.append(f"shmq {verb} {noun}".rstrip())
    return found


def texts(path: Path) -> Iterator[str]:
    """All of a page, the strings of a module."""
    if path.suffix != ".py":
        yield path.read_text(encoding="utf-8")
        return
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def files() -> list[Path]:
    units = [path for path in (ROOT / "systemd").rglob("*") if path.is_file()]
    return sorted([*documents(), *units, *python_files()])


@pytest.mark.parametrize("path", files(), ids=place)
def test_verbs_that_are_told_exist(path: Path) -> None:
    wrong = [call for text in texts(path) for call in unknown_calls(text)]
    assert not wrong, f"{place(path)}: {wrong}, wanted verbs of docs/reference/cli.md"


def test_tells_a_verb_from_none() -> None:
    assert unknown_calls("ask `shmq broker status`, or shmq ha switch") == ["shmq broker status"]
    assert unknown_calls("`shmq brokers` of one shmq host") == ["shmq brokers"]
    assert unknown_calls("shmq broker show broker-a; shmq check lag; `shmq group lag g`") == []
