"""What a member has in shared memory, read from outside, and its end."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ledger import BODY

from shmq.core import core
from shmq.core.fields import control_place, read_ints, struct_size
from shmq.shm.manifest import Manifest, load, manifest_path
from shmq.shm.names import ObjectKind
from shmq.shm.segment import SHM_FOLDER

_BLANK = core.STATUS["BLANK"][0]
_OK = core.STATUS["OK"][0]
_LIVE = (core.HOT_READY, core.HOT_LIVE)


class Frame(NamedTuple):
    """One message in the log in memory."""

    physical_offset: int
    size_bytes: int
    key: tuple[int, int]
    """Stream and sequence."""
    path: Path
    """Of the hot segment."""
    place: int
    """Of its first byte there."""


class Memory:
    """Of one member, as its list has it; whoever writes it stands still, or is dead."""

    def __init__(self, store_path: Path) -> None:
        self._manifest: Manifest = load(manifest_path(store_path)) or _no_list(store_path)
        folder = Path(SHM_FOLDER)
        self._paths = {
            entry.name: folder / entry.name.file_name for entry in self._manifest.objects
        }
        self._control = next(
            path.read_bytes()
            for name, path in self._paths.items()
            if name.kind is ObjectKind.CONTROL
        )

    @property
    def committed_position(self) -> int:
        return self._word("append_positions", "committed_position")

    @property
    def flushed_position(self) -> int:
        return self._word("flush_positions", "flushed_position")

    def _word(self, struct: str, field: str) -> int:
        place = control_place(struct, field)
        return int.from_bytes(self._control[place : place + 8], "little")

    def frames(self, begin: int, end: int, topic: str) -> Iterator[Frame]:
        """The messages of a topic, from one frame's begin to another's."""
        size = self._manifest.file_size_bytes
        for file_position, path in self._hot_files():
            position, last = max(begin, file_position), min(end, file_position + size)
            if position >= last:
                continue
            with path.open("rb") as file:
                file.seek(position - file_position)
                data = file.read(last - position)
            at = 0
            while at < len(data):
                frame = data[at : at + int.from_bytes(data[at : at + 4], "big")]
                status, _, said = core.parse_frame(
                    frame, physical_offset=position + at, demands=0, believe=True
                )
                if status == _BLANK:
                    break
                if said is None:
                    raise ValueError(f"{path}: no frame at {position + at}: status {status}")
                if said["topic"] == topic.encode():
                    key = BODY.unpack_from(said["body"])
                    place = position + at - file_position
                    yield Frame(position + at, len(frame), key, path, place)
                at += len(frame)

    def _hot_files(self) -> list[tuple[int, Path]]:
        config = read_ints(self._control, "control_config", struct_size("segment_header"))
        numbers = {
            name.n: path for name, path in self._paths.items() if name.kind is ObjectKind.HOT
        }
        found = []
        for index in range(config["hot_slot_count"]):
            place = config["hot_slots_place"] + index * struct_size("hot_slot")
            slot = read_ints(self._control, "hot_slot", place)
            if slot["state"] in _LIVE and slot["object_number"] in numbers:
                found.append((slot["file_position"], numbers[slot["object_number"]]))
        return sorted(found)

    def wipe(self) -> None:
        """As a cleaner of /dev/shm does: every object of it, also of its clients."""
        for path in Path(SHM_FOLDER).glob(f"{self._manifest.store}.*"):
            path.unlink(missing_ok=True)


def _no_list(store_path: Path) -> Manifest:
    raise FileNotFoundError(f"{manifest_path(store_path)}: the member lists no memory")
