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
import struct
from dataclasses import dataclass

from shmq.errors import LayoutVersionError, OwnerError, ShmError
from shmq.shm.incarnation import Incarnation
from shmq.shm.names import ObjectKind, ObjectName

__all__ = ["GROWING_KINDS", "HEADED_KINDS", "HEADER_SIZE", "LAYOUT_VERSION", "SegmentHeader"]

LAYOUT_VERSION = 1
"""SHMQ_LAYOUT_VERSION; a test compares it with layout.h, as it does all the constants here."""

HEADER_SIZE = 128
"""sizeof(struct shmq_segment_header)."""

# magic, layout_version, kind, size_bytes, store_generation, boot_id, owner_pid, owner_uid,
# owner_start_time, master_epoch, number; native byte order, which the core asserts is
# little-endian.
_FIELDS = struct.Struct("<8sIIQQ16sIIQQQ")

# SHMQ_MAGIC_* and enum shmq_segment_kind. A service's ring is an ingress ring in a named object.
_IDENTITIES = {
    ObjectKind.CONTROL: (b"shmqctrl", 1),
    ObjectKind.TOPICS: (b"shmqtopc", 2),
    ObjectKind.ARENA: (b"shmqarna", 4),
    ObjectKind.COMPLETION: (b"shmqcomp", 5),
    ObjectKind.SERVICE: (b"shmqingr", 6),
}

HEADED_KINDS = frozenset(_IDENTITIES)
"""Kinds whose segments begin with a header: all but hot ones."""

GROWING_KINDS = frozenset({ObjectKind.CONTROL, ObjectKind.TOPICS, ObjectKind.ARENA})
"""Kinds that grow while in use. The memory is allocated before the core stores the new size, so a
crash in between leaves an object larger than its header says, which harms nobody."""


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What a segment says about itself. Foreign until `check` has passed."""

    magic: bytes
    """The kind's magic as ASCII; zeros until the writer has finished the segment."""
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
        (
            magic, layout_version, kind, size_bytes, store_generation, boot, owner_pid, owner_uid,
            owner_start_time, master_epoch, number,
        ) = _FIELDS.unpack_from(head)  # fmt: skip
        owner = Incarnation(owner_pid, owner_start_time)
        return cls(
            magic=magic,
            layout_version=layout_version,
            kind=kind,
            size_bytes=size_bytes,
            store_generation=store_generation,
            boot_id=boot,
            owner=owner,
            owner_uid=owner_uid,
            master_epoch=master_epoch,
            number=number,
        )

    @property
    def is_finished(self) -> bool:
        """False while the creator is at work, or if it died before its last store."""
        return any(self.magic)

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
                f"attach {name}: magic {self.magic!r}, wanted {magic!r}: no {name.kind} segment"
            )
        if self.layout_version != LAYOUT_VERSION:
            raise LayoutVersionError(
                f"attach {name}: layout {self.layout_version}, need {LAYOUT_VERSION}; stop the"
                " broker with the release that wrote it, so that its messages are in files, then"
                " start this one"
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
                raise OwnerError(f"attach {name}: {what} {text}, wanted {text_wanted}")
        may_be_larger = name.kind in GROWING_KINDS
        if self.size_bytes > object_size_bytes or (
            self.size_bytes != object_size_bytes and not may_be_larger
        ):
            raise ShmError(
                f"attach {name}: {object_size_bytes} bytes, its header says {self.size_bytes}"
            )
