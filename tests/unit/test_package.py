"""The package as installed: version said once, importable, typed."""

import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import shmq

ROOT = Path(__file__).resolve().parents[2]


def test_installed_version_is_the_one_in_pyproject() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert version("shmq") == declared["project"]["version"]


def test_package_says_it_is_typed() -> None:
    assert (Path(shmq.__file__).parent / "py.typed").exists()


def test_everything_of_systemd_is_installed() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    installed = {}
    for folder, patterns in declared["tool"]["setuptools"]["data-files"].items():
        for path in (path for pattern in patterns for path in ROOT.glob(pattern)):
            installed[path] = folder
    wanted = {
        path: f"share/shmq/{path.parent.relative_to(ROOT)}"
        for path in (ROOT / "systemd").rglob("*")
        if path.is_file()
    }
    assert installed == wanted


def test_another_system_is_refused_in_one_line() -> None:
    code = "import sys; sys.platform = 'darwin'; import shmq"
    result = _run(code)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("ImportError: shmq runs on Linux only")


def test_free_threaded_interpreter_is_refused_in_one_line() -> None:
    code = "import sysconfig; sysconfig.get_config_var = lambda name: 1; import shmq"
    result = _run(code)
    assert result.returncode == 1
    assert "ImportError: shmq needs a Python with the GIL" in result.stderr.splitlines()[-1]


def _run(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
