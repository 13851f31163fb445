"""Names of shared memory objects: written here, read here, nowhere else taken apart.

What lives here: the grammar of an object's name and of a store's, the kinds of objects, and the
generation that tells one life of a store's memory from the next.

    /shmq.<cluster>.<broker>.<broker_id>.<boot8>.<generation>.<kind>.<n>
     |     |         |        |           |       |            |      decimal, below 2**32
     |     |         |        |           |       |            a member of ObjectKind
     |     |         |        |           |       16 hex digits, random, never all zero
     |     |         |        |           the first 8 hex digits of the boot id
     |     |         |        decimal, below 2**63
     |     1 to 64 of [A-Za-z0-9_-]: see `label`
     nothing else in /dev/shm is ours

Labels hold no dot, so a name falls apart in one way only, and `parse` takes exactly what `str`
writes: nothing that merely looks like ours is ever attached to or removed. The longest name has
202 characters, below NAME_MAX (255).

Who uses it: every process that makes, finds or removes objects. Pure: nothing here waits or touches
memory. What may fail: ShmError for a name that cannot be made.
"""

from __future__ import annotations

import enum
import hashlib
import re
import secrets
from dataclasses import dataclass

from shmq.errors import ShmError

__all__ = [
    "NAME_SIZE_MAX",
    "ObjectKind",
    "ObjectName",
    "StoreName",
    "label",
    "new_generation",
    "parse",
    "parse_store",
]

NAME_SIZE_MAX = 255
"""Longest file name on Linux (NAME_MAX), without the leading slash."""

_LABEL_SIZE_MAX = 64
_DIGEST_SIZE = 10
_BROKER_ID_LIMIT = 1 << 63
_INDEX_LIMIT = 1 << 32

_LABEL = r"[A-Za-z0-9_-]{1,64}"
_DECIMAL = r"0|[1-9][0-9]{0,18}"
_LABEL_PATTERN = re.compile(_LABEL)
_DIGEST_PATTERN = re.compile(rf".*-[0-9a-f]{{{_DIGEST_SIZE}}}")
_STORE_PATTERN = re.compile(
    rf"shmq\.(?P<cluster>{_LABEL})\.(?P<broker>{_LABEL})\.(?P<broker_id>{_DECIMAL})"
    r"\.(?P<boot8>[0-9a-f]{8})\.(?P<generation>(?!0{16})[0-9a-f]{16})"
)
_OBJECT_PATTERN = re.compile(
    rf"/?(?P<store>{_STORE_PATTERN.pattern})\.(?P<kind>[a-z]+)\.(?P<n>{_DECIMAL})"
)


class ObjectKind(enum.StrEnum):
    """What a named object holds; the member's value is the word in its name."""

    CONTROL = "control"
    """Positions, turn records, session slots, queue rows, counters. One per store, number 0."""
    TOPICS = "topics"
    """Topic rows. One per store, number 0."""
    HOT = "hot"
    """One segment of the hot CommitLog; the number is its hot slot, not its place in the log."""
    ARENA = "arena"
    """One segment of the ConsumeQueue arena, numbered from 0."""
    COMPLETION = "completion"
    """Completions and bell of one client; the number is its session slot."""
    STATS = "stats"
    """Counters that only exporters read. One per store, number 0, made anew by each broker."""
    SERVICE = "service"
    """Internal ingress ring of one service (retry, delay, ...), numbered by service id."""


def label(text: str) -> str:
    """Return `text` as one part of a name: unchanged where possible, else with a digest behind.

    Anything outside [A-Za-z0-9_-] becomes an underscore, what is too long is cut, and ten hex
    digits of the SHA-256 of the whole text follow, so that two names that differ stay different. A
    text that already ends like a digest gets one too: no plain name can pose as a changed one.

    Args:
        text: a cluster or broker name, not empty, any characters.

    Raises:
        ShmError: the text is empty.
    """
    if not text:
        raise ShmError("name a shared memory object: cluster and broker name must not be empty")
    if _LABEL_PATTERN.fullmatch(text) and not _DIGEST_PATTERN.fullmatch(text):
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST_SIZE]
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", text)[: _LABEL_SIZE_MAX - _DIGEST_SIZE - 1]
    return f"{plain}-{digest}"


def new_generation() -> str:
    """Return a fresh store generation: 16 random hex digits, never all zero.

    One is drawn when a store's memory is first created and kept while that memory is adopted. Zero
    is left out because a zeroed header must not pass for any generation.
    """
    return f"{secrets.randbelow((1 << 64) - 1) + 1:016x}"


@dataclass(frozen=True, slots=True)
class StoreName:
    """One generation of one broker's shared memory: what all its objects' names begin with."""

    cluster: str
    """Label of the cluster name."""
    broker: str
    """Label of the broker name."""
    broker_id: int
    """0 = master, others slaves; below 2**63."""
    boot8: str
    """First 8 hex digits of the boot id under which the memory was made."""
    generation: str
    """16 hex digits, random."""

    @classmethod
    def make(
        cls, *, cluster_name: str, broker_name: str, broker_id: int, boot_id: bytes, generation: str
    ) -> StoreName:
        """Name a store's memory from RocketMQ's own names, which may hold any characters.

        Args:
            cluster_name: brokerClusterName.
            broker_name: brokerName.
            broker_id: brokerId, 0 to 2**63 - 1.
            boot_id: the 16 bytes of `incarnation.boot_id()`.
            generation: from `new_generation()` or from a manifest.

        Raises:
            ShmError: a part is out of range.
        """
        name = cls(
            label(cluster_name), label(broker_name), broker_id, boot_id.hex()[:8], generation
        )
        if broker_id >= _BROKER_ID_LIMIT or parse_store(str(name)) != name:
            raise ShmError(
                f"name a store: {str(name)!r} is no store name; wanted a broker id of 0 to"
                " 2**63 - 1, a boot id of 16 bytes and a generation of 16 hex digits"
            )
        return name

    def object(self, kind: ObjectKind, n: int) -> ObjectName:
        """Return the name of this store's object number `n` (0 to 2**32 - 1) of `kind`.

        Raises:
            ShmError: `n` is out of range.
        """
        if not 0 <= n < _INDEX_LIMIT:
            raise ShmError(
                f"name object {kind} of {self}: number {n}, wanted 0 to {_INDEX_LIMIT - 1}"
            )
        return ObjectName(self, kind, n)

    def __str__(self) -> str:
        return f"shmq.{self.cluster}.{self.broker}.{self.broker_id}.{self.boot8}.{self.generation}"


@dataclass(frozen=True, slots=True)
class ObjectName:
    """Name of one shared memory object; `str` gives the form that shm_open takes: with a slash."""

    store: StoreName
    """Whose memory this is."""
    kind: ObjectKind
    """What it holds."""
    n: int
    """Which one of its kind."""

    @property
    def file_name(self) -> str:
        """The name without its slash, as it stands in /dev/shm."""
        return f"{self.store}.{self.kind}.{self.n}"

    def __str__(self) -> str:
        return f"/{self.file_name}"


def parse(text: str) -> ObjectName | None:
    """Return the name that `text` spells, with or without the leading slash; None if not ours.

    The inverse of `str(ObjectName)`: what parses is spelled in the one way we write it.
    """
    match = _OBJECT_PATTERN.fullmatch(text)
    if match is None or match["kind"] not in _KINDS:
        return None
    store = parse_store(match["store"])
    n = int(match["n"])
    if store is None or n >= _INDEX_LIMIT:
        return None
    return ObjectName(store, ObjectKind(match["kind"]), n)


def parse_store(text: str) -> StoreName | None:
    """Return the store that `text` names, or None. The inverse of `str(StoreName)`."""
    match = _STORE_PATTERN.fullmatch(text)
    if match is None or int(match["broker_id"]) >= _BROKER_ID_LIMIT:
        return None
    return StoreName(
        match["cluster"],
        match["broker"],
        int(match["broker_id"]),
        match["boot8"],
        match["generation"],
    )


_KINDS = frozenset(kind.value for kind in ObjectKind)
