"""The daemons under this process."""

from pathlib import Path

from programs import descendants

ROLES = {"namesrv": "shmq.namesrv", "broker": "shmq.broker"}


def pids_of() -> dict[str, int]:
    """The NameServer's and the broker's pid; the youngest of each, where one was replaced."""
    found = {}
    for pid in sorted(descendants()):
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        for role, module in ROLES.items():
            if module.encode() in arguments:
                found[role] = pid
    return found
