"""`shmq service install --root`: the units as systemd's own judges see them, without systemd."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click import UsageError

from shmq.errors import ConfigError, ShmqError
from shmq.tools.cli.service import service
from shmq.tools.units import Installation, broker_configs, sources
from tests.support.require import require_program

UNITS = "usr/local/lib/systemd/system"
SERVICES = sorted(path.name for path in sources().glob("*.service"))
SCORE_MAX = "10"  # tenths: 1.0


def run(*arguments: object) -> None:
    service.main(args=[str(argument) for argument in arguments], standalone_mode=False)


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """A system with our programs in /opt/shmq/bin and nothing installed yet."""
    programs = tmp_path / "opt/shmq/bin"
    programs.mkdir(parents=True)
    for path in Path(sys.prefix, "bin").glob("shmq-*"):
        shutil.copy(path, programs)
    return tmp_path


def install(system: Path, *arguments: str, prefix: str = "/opt/shmq") -> None:
    run("install", "--root", system, "--prefix", prefix, *arguments)


def verify(system: Path) -> subprocess.CompletedProcess[str]:
    program = require_program("systemd-analyze", "systemd")
    names = [path.name.replace("@.", "@a.") for path in (system / UNITS).iterdir()]
    return subprocess.run(
        [program, "verify", "--man=no", "--recursive-errors=no", f"--root={system}", *names],
        capture_output=True,
        text=True,
        check=False,
    )


def test_units_are_verified_without_a_word(system: Path) -> None:
    install(system)
    done = verify(system)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("key", "planted"), [("WatchdogSec", "WatchdogSek"), ("bin/shmq-", "bin/shm-")]
)
def test_verifying_finds_what_is_wrong(system: Path, key: str, planted: str) -> None:
    install(system)
    unit = system / UNITS / "shmq-namesrv.service"
    unit.write_text(unit.read_text().replace(key, planted))
    assert verify(system).returncode == 1


@pytest.mark.parametrize("name", SERVICES)
def test_service_is_safe(name: str) -> None:
    program = require_program("systemd-analyze", "systemd")
    done = subprocess.run(
        [program, "security", "--offline=yes", f"--threshold={SCORE_MAX}", sources() / name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_service_that_is_not_safe_is_found(tmp_path: Path) -> None:
    program = require_program("systemd-analyze", "systemd")
    text = (sources() / "shmq-namesrv.service").read_text()
    lax = tmp_path / "lax.service"
    lax.write_text(text.replace("PrivateNetwork=yes", "PrivateNetwork=no"))
    done = subprocess.run(
        [program, "security", "--offline=yes", f"--threshold={SCORE_MAX}", lax],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1


@pytest.mark.parametrize("name", SERVICES)
def test_service_shares_memory_and_sees_its_peers(name: str) -> None:
    text = (sources() / name).read_text()
    assert "\nRemoveIPC=no\n" in text
    assert not re.search(
        r"^(DynamicUser|PrivateUsers|ProtectProc|ProcSubset|PrivateIPC|TemporaryFileSystem"
        r"|InaccessiblePaths|ReadOnlyPaths)=",
        text,
        re.MULTILINE,
    )


def test_hardening_is_the_same_everywhere() -> None:
    """But for one more group of system calls that a broker wants."""
    blocks = set()
    for name in SERVICES:
        block = (sources() / name).read_text().split("\n# Hardening. ")[1].split("\n[Install]")[0]
        block = re.sub(r"\n# The thread .*\nSystemCallFilter=setpriority .*", "", block)
        blocks.add(block.strip())
    assert len(blocks) == 1


def test_another_prefix_is_in_every_unit(system: Path) -> None:
    (system / "opt/shmq").rename(system / "opt/shmq-2")
    install(system, prefix="/opt/shmq-2")
    for path in (system / UNITS).iterdir():
        assert "/opt/shmq/" not in path.read_text()
    assert verify(system).returncode == 0


def test_second_install_writes_what_differs_and_no_configuration(
    system: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(system)
    broker = system / "etc/shmq/brokers/broker-a.toml"
    broker.write_text("# mine\n")
    unit = system / UNITS / "shmq.target"
    before = unit.read_text()
    unit.write_text("# an older one\n")
    assert Installation(Path("/opt/shmq"), system).differing() == [unit]
    capsys.readouterr()
    install(system)
    assert capsys.readouterr().out == f"wrote {unit}\n"
    assert unit.read_text() == before
    assert broker.read_text() == "# mine\n"


def test_each_broker_gets_a_port_of_its_own(system: Path) -> None:
    install(system, "-b", "one", "-b", "two")
    install(system, "-b", "three")
    folder = system / "etc/shmq/brokers"
    texts = {path.stem: path.read_text() for path in folder.iterdir()}
    assert sorted(texts) == ["one", "three", "two"]
    ports = {re.findall(r"^listen_port = (\d+)$", text, re.MULTILINE)[0] for text in texts.values()}
    assert ports == {"10911", "10921", "10931"}
    assert 'store_path = "/var/lib/shmq/brokers/two"' in texts["two"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--prefix", "/opt/none"), "no program shmq-broker"),
        (("--prefix", "opt/shmq"), "wanted a path from /"),
        (("--prefix", "/opt/sh mq"), "blanks or %"),
        (("--prefix", "/opt/shmq", "-b", "a/b"), "wanted 1 to 64 of"),
    ],
)
def test_what_cannot_be_installed_is_refused(
    system: Path, arguments: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        run("install", "--root", system, *arguments)
    assert not (system / "etc").exists()
    assert not (system / "usr").exists()


def test_prefix_that_services_do_not_see_is_refused(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for path in Path(sys.prefix, "bin").glob("*"):
        (programs / path.name).symlink_to(path)
    with pytest.raises(ConfigError, match="services do not see"):
        Installation(tmp_path).require_prefix()


def test_without_systemd_it_is_said(system: Path) -> None:
    if Path("/run/systemd/system").is_dir():
        pytest.skip("systemd runs this machine")
    with pytest.raises(ShmqError, match="systemd does not run this machine|run it as root"):
        run("install", "--prefix", "/opt/shmq")


def test_root_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="does not exist"):
        run("install", "--root", "/none")


def test_brokers_that_are_to_run_are_those_with_a_file(tmp_path: Path) -> None:
    assert broker_configs(tmp_path) == []
    folder = tmp_path / "etc/shmq/brokers"
    folder.mkdir(parents=True)
    for name in ("b.toml", "a.toml", "a.toml.old"):
        (folder / name).touch()
    assert [path.name for path in broker_configs(tmp_path)] == ["a.toml", "b.toml"]
