"""The daemons under this process: who they are, what they hold."""

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


def memory_mib(pid: int, kind: str = "Private_Dirty") -> float:
    """Memory of its own, without what others share; kind "Pss": with its share of that."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) / 1024
    return 0.0
