"""The first 128 bytes of a segment, as whoever attaches to it must see them before mapping it.

What lives here: the reading side of `struct shmq_segment_header` (core/include/shmq/layout.h) and
the judgement whether a segment may be attached to. The core alone writes these bytes, the magic
last; this module reads them through the fd and stores nothing.

Which processes: whoever attaches: a restarted broker, a slave, a tool, the reaper. What may fail:
ShmError for memory that was never finished or holds something else, LayoutVersionError for another
release's, OwnerError for another boot's or store's.

A hot segment has no header: it holds the bytes of its CommitLog file and nothing else, because the
file is mapped over it when it retires. The control segment speaks for it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from shmq.core import core
from shmq.core.fields import read_struct, struct_size
from shmq.errors import LayoutVersionError, OwnerError, ShmError
from shmq.shm.incarnation import Incarnation
from shmq.shm.names import ObjectKind, ObjectName

__all__ = ["GROWING_KINDS", "HEADED_KINDS", "HEADER_SIZE", "SegmentHeader"]

HEADER_SIZE = struct_size("segment_header")
"""Bytes of struct shmq_segment_header."""

# A service's ring is an ingress ring in a named object.
_IDENTITIES = {
    ObjectKind.CONTROL: (core.MAGIC_CONTROL, core.KIND_CONTROL),
    ObjectKind.TOPICS: (core.MAGIC_TOPICS, core.KIND_TOPICS),
    ObjectKind.ARENA: (core.MAGIC_ARENA, core.KIND_ARENA),
    ObjectKind.COMPLETION: (core.MAGIC_COMPLETION, core.KIND_COMPLETION),
    ObjectKind.STATS: (core.MAGIC_STATS, core.KIND_STATS),
    ObjectKind.SERVICE: (core.MAGIC_INGRESS, core.KIND_INGRESS),
}

HEADED_KINDS = frozenset(_IDENTITIES)
"""Kinds whose segments begin with a header: all but hot ones."""

GROWING_KINDS = frozenset(
    {ObjectKind.CONTROL, ObjectKind.TOPICS, ObjectKind.ARENA, ObjectKind.STATS}
)
"""Kinds that grow while in use. The memory is allocated before the core stores the new size, so a
crash in between leaves an object larger than its header says, which harms nobody."""


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What a segment says about itself. Foreign until `check` has passed."""

    magic: int
    """The kind's magic; 0 until the writer has finished the segment."""
    layout_version: int
    """SHMQ_LAYOUT_VERSION of its writer."""
    kind: int
    """enum shmq_segment_kind."""
    size_bytes: int
    """Bytes that the writer knows to be allocated."""
    store_generation: int
    """Random id of the store's memory."""
    boot_id: bytes
    """16 bytes."""
    owner: Incarnation
    """The broker that wrote or last adopted it."""
    owner_uid: int
    """Uid that may write."""
    master_epoch: int
    """Epoch of the mastership under which it is written."""
    number: int
    """Ordinal among its kind."""

    @classmethod
    def read(cls, fd: int, *, name: str) -> SegmentHeader:
        """Read the header of the open object `fd`; `name` is for the message.

        Raises:
            ShmError: the object is too small to have one, or cannot be read.
        """
        try:
            head = os.pread(fd, HEADER_SIZE, 0)
        except OSError as error:
            raise ShmError(f"attach {name}: reading its header: {error.strerror}") from error
        if len(head) < HEADER_SIZE:
            raise ShmError(
                f"attach {name}: {len(head)} bytes, wanted a header of {HEADER_SIZE}; its creator"
                " died before it was finished: let the broker's restart replace it"
            )
        fields = read_struct(head, "segment_header")
        numbers = {key: value for key, value in fields.items() if isinstance(value, int)}
        boot = fields["boot_id"]
        assert isinstance(boot, bytes)
        return cls(
            magic=numbers["magic"],
            layout_version=numbers["layout_version"],
            kind=numbers["kind"],
            size_bytes=numbers["size_bytes"],
            store_generation=numbers["store_generation"],
            boot_id=boot,
            owner=Incarnation(numbers["owner_pid"], numbers["owner_start_time"]),
            owner_uid=numbers["owner_uid"],
            master_epoch=numbers["master_epoch"],
            number=numbers["number"],
        )

    @property
    def is_finished(self) -> bool:
        """False while the creator is at work, or if it died before its last store."""
        return self.magic != 0

    def check(self, name: ObjectName, *, boot_id: bytes, object_size_bytes: int) -> None:
        """Return if this is the header of the finished segment `name` of this boot and layout.

        Args:
            name: what was attached to.
            boot_id: this boot's, 16 bytes.
            object_size_bytes: st_size of the object.

        Raises:
            LayoutVersionError: another release of shmq wrote it.
            OwnerError: it is of another boot or store generation.
            ShmError: it is unfinished, or another segment than its name says.
        """
        magic, kind = _IDENTITIES[name.kind]
        if not self.is_finished:
            raise ShmError(
                f"attach {name}: no magic; its creator died before it was finished: let the"
                " broker's restart replace it"
            )
        if self.magic != magic:
            raise ShmError(
                f"attach {name}: magic {_spell(self.magic)}, wanted {_spell(magic)}: no {name.kind}"
                " segment"
            )
        if self.layout_version != core.LAYOUT_VERSION:
            raise LayoutVersionError(
                f"attach {name}: layout {self.layout_version}, need {core.LAYOUT_VERSION}; start"
                " the release that wrote it and stop it with keep_memory=never, so that its"
                " messages are in files, then start this one"
            )
        for what, seen, wanted in (("kind", self.kind, kind), ("number", self.number, name.n)):
            if seen != wanted:
                raise ShmError(f"attach {name}: {what} {seen}, wanted {wanted}")
        for what, text, text_wanted in (
            ("store generation", f"{self.store_generation:016x}", name.store.generation),
            ("boot id", self.boot_id.hex(), boot_id.hex()),
            ("boot id in the name", name.store.boot8, boot_id.hex()[:8]),
        ):
            if text != text_wanted:
                raise OwnerError(
                    f"attach {name}: {what} {text}, wanted {text_wanted}; to go on from the files"
                    " of the store alone, move its shmq/manifest.json away"
                )
        may_be_larger = name.kind in GROWING_KINDS
        if self.size_bytes > object_size_bytes or (
            self.size_bytes != object_size_bytes and not may_be_larger
        ):
            raise ShmError(
                f"attach {name}: {object_size_bytes} bytes, its header says {self.size_bytes}"
            )


def _spell(magic: int) -> str:
    """Return a magic as the text that it is in memory."""
    return repr(magic.to_bytes(8, "little"))
