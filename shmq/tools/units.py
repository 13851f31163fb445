"""The unit files of systemd/: found, fitted to a prefix, written, held against what is installed.

They are written for the prefix /opt/shmq; for another every such path is replaced. Units and what
belongs to them go to /usr/local/lib, where an administrator's software has them, so that /etc stays
free for what a person overrides (`systemctl edit`). Configuration is made once and never changed:

    /usr/local/lib/systemd/system/shmq*       units
    /usr/local/lib/sysusers.d/shmq.conf       the user and the group shmq
    /usr/local/lib/tmpfiles.d/shmq.conf       /run/shmq, /var/lib/shmq
    /etc/shmq/shmq.env                        settings of all processes
    /etc/shmq/controller.toml                 of shmq-controller.service
    /etc/shmq/brokers/<NAME>.toml             of shmq-broker@<NAME>.service

In the process of `shmq service`, as root; nothing here talks to systemd. May fail: ConfigError for
a prefix that services cannot run from; OSError.
"""

from __future__ import annotations

import os
import re
import stat
import sys
import tomllib
from pathlib import Path

from shmq.config import LISTEN_PORTS
from shmq.errors import ConfigError

__all__ = ["Installation", "PREFIX", "broker_configs", "broker_unit", "installed_prefix", "sources"]

PREFIX = Path("/opt/shmq")
"""Of the files as they are written."""
_BROKER_UNIT = "shmq-broker@.service"
_UNITS = Path("usr/local/lib/systemd/system")
_OTHERS = {
    Path("sysusers.d/shmq.conf"): Path("usr/local/lib/sysusers.d/shmq.conf"),
    Path("tmpfiles.d/shmq.conf"): Path("usr/local/lib/tmpfiles.d/shmq.conf"),
}
_CONFIG = Path("etc/shmq")
_HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp", "/dev/shm")
"""What ProtectHome= and PrivateTmp= hide from the services, and what is gone after a boot."""
_INSTANCE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_EXECUTABLE = re.compile(r"^ExecStart=(/\S+)/bin/shmq-", re.MULTILINE)

_ENVIRONMENT = """\
# Settings of all processes of shmq: SHMQ_<SETTING>=<VALUE>. They count before a broker's own file.
# SHMQ_ACL_FILE=/etc/shmq/acl.toml
"""
_CONTROLLER = """\
# shmq-controller.service. After a change: systemctl restart shmq-controller
[controller]
"""
_BROKER = """\
# shmq-broker@{name}.service. After a change: systemctl restart shmq-broker@{name}
broker_name = "{name}"
store_path = "/var/lib/shmq/brokers/{name}"
listen_port = {port}
"""


def sources() -> Path:
    """The folder of the unit files: of the checkout, or installed beside the package.

    Raises:
        ConfigError: neither is there.
    """
    beside = Path(__file__).resolve().parents[2] / "systemd"
    shared = Path(sys.prefix, "share/shmq/systemd")
    for folder in (beside, shared):
        if (folder / "shmq.target").exists():
            return folder
    raise ConfigError(f"find the unit files: not in {beside}, not in {shared}; install shmq anew")


def broker_configs(root: Path = Path("/")) -> list[Path]:
    """The brokers' files below /etc/shmq, one for each broker that is to run as a service."""
    return sorted((root / _CONFIG / "brokers").glob("*.toml"))


def broker_unit(name: str) -> str:
    """The unit of the broker whose configuration is brokers/<name>.toml.

    Raises:
        ConfigError: a unit cannot have that name.
    """
    if not _INSTANCE.fullmatch(name):
        raise ConfigError(f"broker {name!r}: wanted 1 to 64 of A-Z a-z 0-9 _ -")
    return _BROKER_UNIT.replace("@", f"@{name}")


def installed_prefix(root: Path) -> Path | None:
    """The prefix that the units under `root` run; None if they are not there."""
    try:
        text = (root / _UNITS / _BROKER_UNIT).read_text("utf-8")
    except FileNotFoundError:
        return None
    found = _EXECUTABLE.search(text)
    return None if found is None else Path(found[1])


class Installation:
    """What belongs into one system for one prefix.

    Args:
        prefix: has bin/shmq-broker and its like, as the services see it.
        root: the system: /, or the folder of an image.
    """

    def __init__(self, prefix: Path, root: Path = Path("/")) -> None:
        self.prefix = prefix
        self.root = root

    def require_prefix(self) -> None:
        """Return if services can run from the prefix.

        Raises:
            ConfigError: they cannot, or somebody else could change what they run.
        """
        what = f"run services from {self.prefix}"
        if not self.prefix.is_absolute() or self.prefix != Path(os.path.normpath(self.prefix)):
            raise ConfigError(f"{what}: wanted a path from /")
        if str(self.prefix).split() != [str(self.prefix)] or "%" in str(self.prefix):
            raise ConfigError(f"{what}: a unit file cannot name a path with blanks or %")
        place = self.root / self.prefix.relative_to("/")
        for name in self._programs():
            if not os.access(place / "bin" / name, os.X_OK):
                raise ConfigError(
                    f"{what}: no program {name} in {place / 'bin'}; make a virtual environment"
                    " there and install shmq into it"
                )
        if self.root != Path("/"):
            return
        for path in (self.prefix, (place / "bin/python").resolve()):
            hidden = next((folder for folder in _HIDDEN if path.is_relative_to(folder)), None)
            if hidden is not None:
                raise ConfigError(
                    f"{what}: services do not see {path} (in {hidden});"
                    " install shmq below /opt, with the system's own Python"
                )
        for path in (place, place / "bin"):
            status = path.stat()
            if status.st_uid != 0 or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise ConfigError(
                    f"{what}: {path} has mode {stat.S_IMODE(status.st_mode):04o} and owner uid"
                    f" {status.st_uid}; wanted root's, and that nobody else may write it"
                )

    @property
    def unit_folder(self) -> Path:
        """Where the units go."""
        return self.root / _UNITS

    @property
    def units(self) -> list[str]:
        """Names of all units, templates as such."""
        return sorted(path.name for path in sources().glob("shmq*"))

    @property
    def sysusers_file(self) -> Path:
        """For systemd-sysusers."""
        return self.root / _OTHERS[Path("sysusers.d/shmq.conf")]

    @property
    def tmpfiles_file(self) -> Path:
        """For systemd-tmpfiles."""
        return self.root / _OTHERS[Path("tmpfiles.d/shmq.conf")]

    def files(self) -> dict[Path, str]:
        """What belongs into each file, without the configuration."""
        folder = sources()
        found = {self.unit_folder / name: folder / name for name in self.units}
        found |= {self.root / place: folder / name for name, place in _OTHERS.items()}
        return {
            place: source.read_text("utf-8").replace(f"{PREFIX}/", f"{self.prefix}/")
            for place, source in found.items()
        }

    def write(self) -> list[Path]:
        """Write what is not there yet or another; which files. Configuration is not touched."""
        changed = self.differing()
        for place in changed:
            _write(place, self.files()[place])
        return changed

    def differing(self) -> list[Path]:
        """Files that are not what they are to be, or not there."""
        return [place for place, text in self.files().items() if _read(place) != text]

    def remove(self) -> list[Path]:
        """Remove what `write` makes; which files there were."""
        there = [place for place in self.files() if place.exists()]
        for place in there:
            place.unlink()
        return there

    # ---- configuration -----------------------------------------------------------------------

    @property
    def broker_folder(self) -> Path:
        """Of the brokers' configuration."""
        return self.root / _CONFIG / "brokers"

    def brokers(self) -> list[str]:
        """Names of the brokers that have a configuration."""
        return sorted(path.stem for path in self.broker_folder.glob("*.toml"))

    def make_config(self, brokers: list[str]) -> list[Path]:
        """Make the configuration of these brokers where there is none; which files are new."""
        wanted = {
            self.root / _CONFIG / "shmq.env": _ENVIRONMENT,
            self.root / _CONFIG / "controller.toml": _CONTROLLER,
        }
        ports = {self._listen_port(name) for name in self.brokers()}
        free = (port for port in LISTEN_PORTS if port not in ports)
        for name in brokers:
            place = self.broker_folder / f"{name}.toml"
            if not place.exists():
                wanted[place] = _BROKER.format(name=name, port=next(free))
        made = [place for place in wanted if not place.exists()]
        for place in made:
            _write(place, wanted[place])
        return made

    def _listen_port(self, name: str) -> object:
        place = self.broker_folder / f"{name}.toml"
        try:
            table = tomllib.loads(place.read_text("utf-8"))
        except (OSError, ValueError):
            return None  # the broker says what is wrong with it
        return table.get("listen_port", table.get("listenPort", LISTEN_PORTS[0]))

    def _programs(self) -> list[str]:
        folder = sources()
        texts = [(folder / name).read_text("utf-8") for name in self.units]
        return sorted(
            {name for text in texts for name in re.findall(r"^ExecStart=\S+/(\S+)", text, re.M)}
        )


def _read(place: Path) -> str | None:
    try:
        return place.read_text("utf-8")
    except FileNotFoundError:
        return None


def _write(place: Path, text: str) -> None:
    """Beside it, then renamed into place: a reader finds the old or the new."""
    place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    beside = place.with_name(f".{place.name}.new")
    beside.write_text(text, "utf-8")
    beside.chmod(0o644)
    beside.rename(place)
