"""What bin/_setup installs and remembers; pip is a program that notes how it was called."""

import subprocess
from pathlib import Path

from tests.support.repository import ROOT


def install(root: Path, extras: str | None) -> int:
    """Have a verb's packages installed; how often pip was called so far."""
    setup = (ROOT / "bin/_setup").read_text("utf-8")
    body = setup[setup.index("install_packages() {") :]
    function = body[: body.index("\n}\n") + 3]
    told = "" if extras is None else f"EXTRAS={extras}; "
    script = f"{told}install_key() {{ echo KEY; }}\n{function}install_packages"
    pip = root / "python"
    pip.write_text('#!/bin/sh\necho "$@" >> "$ROOT/calls"\n')
    pip.chmod(0o755)
    subprocess.run(
        ["sh", "-c", script],
        env={"PATH": "/usr/bin:/bin", "ROOT": str(root), "PYTHON": str(pip)},
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return len((root / "calls").read_text().splitlines())


def test_verbs_in_turns_install_once(tmp_path: Path) -> None:
    (tmp_path / ".venv").mkdir()
    wanted = [("", 1), ("exporter", 2), ("", 2), ("exporter", 2), (None, 3), ("exporter", 3)]
    assert [(extras, install(tmp_path, extras)) for extras, _ in wanted] == wanted


def test_another_key_installs_anew(tmp_path: Path) -> None:
    (tmp_path / ".venv").mkdir()
    assert install(tmp_path, "exporter") == 1
    (tmp_path / ".venv/shmq-installed").write_text("OLD exporter\n")
    assert install(tmp_path, "exporter") == 2
