"""The machine of all tests of this folder: each leaves the services running, whatever it did."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.machine import Machine, debian
from tests.support.services import BROKER, build_wheels, copy_checkout, sections

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="package")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine on which nobody has done anything, with the wheels of this checkout at hand."""
    tree = debian()
    folder = tmp_path_factory.mktemp("machine")
    copy_checkout(folder / "checkout")
    build_wheels(sections()["Install"][0], folder / "checkout")
    shown = {"/root/wheels": folder / "checkout/wheels"}
    with Machine(tree, folder / "machine", shown) as machine:
        machine.boot()
        machine.run("useradd --create-home alice")
        machine.run("useradd --create-home bob")
        yield machine


@pytest.fixture(scope="package")
def installed(bare: Machine) -> Machine:
    """The page followed as far as a user sends and receives; it notes what the commands printed."""
    (bare.root / "root/said").mkdir()
    for heading in ("Install", "Let a user in"):
        # The first block was for where the compiler is.
        for number, block in enumerate(sections()[heading][heading == "Install" :]):
            said = bare.run(f"set -e\n{block}")
            (bare.root / f"root/said/{heading}{number}").write_text(said)
    return bare


@pytest.fixture
def machine(installed: Machine) -> Machine:
    """All services run, and have not died lately."""
    installed.run("systemctl reset-failed 'shmq*'; systemctl start shmq.target")
    assert installed.show(BROKER, "ActiveState") == "active", installed.journal()
    return installed
