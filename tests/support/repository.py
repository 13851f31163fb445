"""The repository as the style tests read it: its files, and its Python as syntax trees."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "shmq"
HEADERS = ROOT / "shmq/core/include"


def python_files() -> list[Path]:
    """Every module of the package."""
    return sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def core_headers() -> list[Path]:
    """Every header of the core."""
    return sorted(HEADERS.glob("shmq/*.h"))


def c_files() -> list[Path]:
    """Every C file of the core, headers included."""
    return sorted([*core_headers(), *PACKAGE.glob("core/binding/*.[ch]")])


def documents() -> list[Path]:
    """Every page that a reader may open."""
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md")])


def place(path: Path) -> str:
    """The path as messages show it, from the repository's root."""
    return str(path.relative_to(ROOT))


@cache
def tree(path: Path) -> ast.Module:
    """The module as a syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
