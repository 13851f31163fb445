"""The golden frames (tests/unit/golden/*.hex), written by hand from the format's description."""

from pathlib import Path

from tests.support.repository import ROOT

FOLDER = ROOT / "tests/unit/golden"
GOLDEN = sorted(FOLDER.glob("*.hex"))


def golden(path: Path) -> tuple[dict[str, str], bytes]:
    """What a golden file wants found, and its bytes; its own places are checked on the way."""
    wanted: dict[str, str] = {}
    data = b""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#= "):
            name, value = line[3:].split(" ", 1)
            wanted[name] = value
        elif line.startswith("@"):
            place, _, field = line[1:].partition("#")[0].partition(" ")
            assert int(place) == len(data), f"{path.name}: @{place} stands at {len(data)}"
            data += bytes.fromhex(field)
        else:
            assert line.startswith("#"), f"{path.name}: {line!r}"
    return wanted, data


def golden_frame(name: str) -> bytes:
    return golden(FOLDER / f"{name}.hex")[1]
