"""The core's headers: a head that is the specification, and no atomic without its pair."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.repository import HEADERS, core_headers, place
from tests.support.require import require_program

# Primitives: they own no memory and follow no protocol, so that a head of one sentence will do.
PRIMITIVES = {"atomics.h", "endian.h", "status.h"}
SECTIONS = ("Byte table", "Validity", "Writer", "Reader", "Crash")
STRICT = ["-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"]

ORDERED = re.compile(r"\bshmq_(?:load_acquire(?:32)?|store_release(?:32)?|fence_\w+)\s*\(")
NAMES_PAIR = re.compile(r"\b(?:pairs? with|pairs|as above|acquire:|release:)", re.IGNORECASE)
# How far above an access its comment may stand: a comment may speak for the few lines below it.
REACH_LINES = 4


def _id(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("path", core_headers(), ids=_id)
def test_head_is_the_specification(path: Path) -> None:
    head = path.read_text(encoding="utf-8").partition("*/")[0]
    assert head.startswith(f"/* {path.name}: "), f"{place(path)}: does not open with its name"
    if path.name in PRIMITIVES:
        return
    missing = [section for section in SECTIONS if section not in head]
    assert not missing, f"{place(path)}: its head lacks {', '.join(missing)}"


@pytest.mark.parametrize("path", core_headers(), ids=_id)
def test_header_compiles_alone(path: Path, tmp_path: Path) -> None:
    compiler = require_program(os.environ.get("CC", "gcc"), "gcc libc6-dev")
    source = tmp_path / "alone.c"
    source.write_text(f'#define _GNU_SOURCE\n#include "shmq/{path.name}"\n', encoding="utf-8")
    command = [compiler, *STRICT, f"-I{HEADERS}", "-fsyntax-only", str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("path", core_headers(), ids=_id)
def test_header_keeps_out_what_the_core_may_not_use(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for banned in ("Python.h", "stdio.h", "malloc.h"):
        assert not re.search(rf"#include\s*[<\"]{re.escape(banned)}", text), banned
    calls = re.findall(r"\b(?:malloc|calloc|realloc|free|printf)\s*\(", _without_comments(text))
    assert not calls, f"{place(path)}: {calls}"


@pytest.mark.parametrize("path", core_headers(), ids=_id)
def test_ordered_access_names_its_pair(path: Path) -> None:
    if path.name == "atomics.h":  # defines them
        return
    bare = _unpaired(path.read_text(encoding="utf-8"))
    assert not bare, f"{place(path)}: say what it pairs with:\n" + "\n".join(bare)


def test_ordered_access_without_its_pair_is_found() -> None:
    code = [
        "/* release: pairs with the acquire in f */",
        "shmq_store_release(&a, 1);",
        "shmq_store_release32(&b, shmq_load_relaxed(&c)); /* as above */",
        *[""] * REACH_LINES,
        "shmq_fence_full();",
        "/* speaks of the pair below */ shmq_load_acquire(&d);",
        "/* shmq_load_acquire(&e) in a comment */",
    ]
    assert _unpaired("\n".join(code)) == ["8: shmq_fence_full();", "9: shmq_load_acquire(&d);"]


def _unpaired(text: str) -> list[str]:
    """The ordered accesses that no comment near them pairs with another."""
    comments = _comments_by_line(text)
    bare = []
    for number, line in enumerate(_without_comments(text).split("\n"), start=1):
        if ORDERED.search(line):
            near = " ".join(comments.get(n, "") for n in range(number - REACH_LINES, number + 1))
            if not NAMES_PAIR.search(near):
                bare.append(f"{number}: {line.strip()}")
    return bare


def _without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/", lambda match: "\n" * match[0].count("\n"), text, flags=re.DOTALL)


def _comments_by_line(text: str) -> dict[int, str]:
    """The comment text of each line that has some; a comment of many lines counts as one text."""
    found: dict[int, str] = {}
    for match in re.finditer(r"/\*.*?\*/", text, flags=re.DOTALL):
        first = text.count("\n", 0, match.start()) + 1
        for number in range(first, first + match[0].count("\n") + 1):
            found[number] = found.get(number, "") + " ".join(match[0].split())
    return found
