"""What linters cannot see in a module: room cards, true __all__, who may use which library."""

import ast
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.support.repository import PACKAGE, c_files, place, python_files, tree

ROOM_CARD = ("Purpose:", "Process:", "Writes:", "Reads:", "May import:", "Never:")

# A library has rooms (paths from shmq/; a trailing / is a folder); elsewhere it is refused.
LIBRARY_ROOMS: dict[str, tuple[str, ...]] = {
    "click": ("tools/cli/",),
    "grpc": ("proxy/",),
    "numpy": ("client/batch.py", "client/loan.py", "tools/"),
    "orjson": ("",),
    "posix_ipc": ("shm/",),
    "prometheus_client": ("exporter/",),
    "psutil": ("shm/reaper.py", "tools/"),
    "pytest": ("testing.py",),
}

FILE_LINES_MAX = 1500
FUNCTION_LINES_MAX = 150

MODULES = python_files()
ROOMS = [path for path in MODULES if path.name == "__init__.py" and path.parent != PACKAGE]


def _id(path: Path) -> str:
    return place(path)


@pytest.mark.parametrize("path", ROOMS, ids=_id)
def test_room_opens_with_its_card(path: Path) -> None:
    card = ast.get_docstring(tree(path)) or ""
    missing = [word for word in ROOM_CARD if word not in card]
    assert not missing, f"{place(path)}: its docstring lacks {', '.join(missing)}"


def test_every_folder_with_modules_is_a_room() -> None:
    folders = {path.parent for path in MODULES}
    bare = [place(folder) for folder in folders if not (folder / "__init__.py").exists()]
    assert not bare, f"no __init__.py with a room card in {bare}"


@pytest.mark.parametrize("path", MODULES, ids=_id)
def test_all_is_sorted_and_true(path: Path) -> None:
    names = _listed(path)
    if names is None:
        return
    assert names == sorted(set(names)), f"{place(path)}: __all__ is not sorted: {sorted(names)}"
    module = import_module(_module_name(path))
    absent = [name for name in names if not hasattr(module, name)]
    assert not absent, f"{place(path)}: __all__ lists {absent}, which it does not have"
    public = {node.name for node in tree(path).body if _defines(node)}
    hidden = sorted(name for name in public if not name.startswith("_") and name not in names)
    assert not hidden, (
        f"{place(path)}: {hidden} are public: list them in __all__ or underscore them"
    )


def _listed(path: Path) -> list[str] | None:
    for node in tree(path).body:
        target = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(node, ast.Assign):
            target = node.targets[0]
        if isinstance(target, ast.Name) and target.id == "__all__":
            assert isinstance(node, ast.Assign | ast.AnnAssign)
            assert node.value is not None
            return list(ast.literal_eval(node.value))
    return None


def _defines(node: ast.stmt) -> bool:
    return isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)


def _module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", MODULES, ids=_id)
def test_library_is_imported_in_its_room_only(path: Path) -> None:
    here = str(path.relative_to(PACKAGE))
    for name in _imports(path):
        top = name.split(".")[0]
        if top == "shmq" or top in sys.stdlib_module_names:
            continue
        rooms = LIBRARY_ROOMS.get(top, ())
        allowed = any(
            here == room or (here.startswith(room) and room[-1:] in "/") for room in rooms
        )
        assert allowed, f"{place(path)}: imports {top}, whose rooms are {rooms or 'none'}"


def test_client_sees_of_the_store_only_its_log_reader() -> None:
    for path in PACKAGE.glob("client/**/*.py"):
        seen = {name for name in _imports(path) if name.split(".")[:2] == ["shmq", "store"]}
        allowed = {name for name in seen if name.split(".")[2:3] == ["log_reader"]}
        assert seen == allowed, f"{place(path)}: imports {sorted(seen - allowed)}"


def _imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", [*MODULES, *c_files()], ids=_id)
def test_file_holds_one_noun(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    count = text.count("\n")
    assert count <= FILE_LINES_MAX, f"{place(path)}: {count} lines: more than one noun?"
    unfinished = re.findall(r".*\b(?:FIXME|XXX|TODO)\b.*", text)
    assert not unfinished, f"{place(path)}: {unfinished}"


@pytest.mark.parametrize("path", MODULES, ids=_id)
def test_function_fits_on_two_screens(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            count = node.end_lineno - node.lineno + 1
            assert count <= FUNCTION_LINES_MAX, f"{place(path)}:{node.lineno}: {count} lines"
