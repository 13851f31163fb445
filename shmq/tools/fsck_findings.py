"""What fsck can find in a store, and how it says so: the words of its report.

What lives here: the codes, `Finding`, `Loss` and `Report` with their JSON. Codes and keys are
stable: a script may rely on them; `format_version` counts changes that break one. Pure words.
"""

from dataclasses import asdict, dataclass, field
from enum import StrEnum, unique

__all__ = [
    "Code",
    "EXIT_CLEAN",
    "EXIT_FINDINGS",
    "EXIT_REPAIRED",
    "EXIT_UNUSABLE",
    "EXIT_USAGE",
    "FORMAT_VERSION",
    "Finding",
    "Loss",
    "LostMessage",
    "Report",
    "Severity",
]

FORMAT_VERSION = 1

EXIT_CLEAN = 0
"""Nothing to mend; notes do not count."""
EXIT_FINDINGS = 1
"""Something was found that is still there."""
EXIT_REPAIRED = 2
"""Everything that was found is mended."""
EXIT_UNUSABLE = 3
"""In use, not a store, or the disk refuses: the store was not checked to its end."""
EXIT_USAGE = 64
"""The command line is wrong (sysexits(3) EX_USAGE)."""


@unique
class Severity(StrEnum):
    """How much a finding matters."""

    ERROR = "error"
    """Something that was stored is damaged or gone."""
    WARNING = "warning"
    """Nothing is lost, or the broker mends it by itself at its next start."""
    NOTE = "note"
    """Worth knowing; as it should be for such a store."""


@unique
class Code(StrEnum):
    """What was found."""

    LOG_ILLEGAL = "LOG_ILLEGAL"
    """A file of commitlog/ has a name or size that it cannot have, or one is missing."""
    RECORD_DAMAGED = "RECORD_DAMAGED"
    """Bytes of the log in which no record holds, with the log going on behind them."""
    BLANK_DAMAGED = "BLANK_DAMAGED"
    """The frame that ends a file does not hold; no message is concerned."""
    TAIL_NOT_ZERO = "TAIL_NOT_ZERO"
    """Bytes behind the last record: what a crash left unfinished. The next start keeps it aside."""
    QUEUE_OFFSET_MISSING = "QUEUE_OFFSET_MISSING"
    """Queue offsets that no record and no damage accounts for."""
    QUEUE_OFFSET_REPEATED = "QUEUE_OFFSET_REPEATED"
    """Records with a queue offset that was there already: consumers see the first."""
    POSITIONS_DAMAGED = "POSITIONS_DAMAGED"
    """One slot of shmq/positions, or both."""
    POSITIONS_AHEAD = "POSITIONS_AHEAD"
    """shmq/positions says that more was on disk than there is."""
    QUARANTINE_DAMAGED = "QUARANTINE_DAMAGED"
    """shmq/quarantine.json does not hold."""
    QUARANTINE_WRONG = "QUARANTINE_WRONG"
    """It lists a hole that is none, or lacks one."""
    KEPT_BYTES_MISSING = "KEPT_BYTES_MISSING"
    """A file of shmq/quarantine/ that the list names is gone."""
    DERIVED_MISSING = "DERIVED_MISSING"
    """A complete log file has no ConsumeQueue file."""
    DERIVED_DAMAGED = "DERIVED_DAMAGED"
    """A ConsumeQueue file does not hold."""
    DERIVED_WRONG = "DERIVED_WRONG"
    """A ConsumeQueue file holds, but does not say what its log file says."""
    DERIVED_STALE = "DERIVED_STALE"
    """A ConsumeQueue file whose log file is gone or not complete."""
    INDEX_DAMAGED = "INDEX_DAMAGED"
    """An index file does not hold."""
    INDEX_WRONG = "INDEX_WRONG"
    """An index file holds, but does not say what its log file says."""
    INDEX_STALE = "INDEX_STALE"
    """An index file whose log file is gone or not complete."""
    FLOORS_DAMAGED = "FLOORS_DAMAGED"
    """shmq/queue_floors.json does not hold: how far expired queues were is lost."""
    CONFIG_DAMAGED = "CONFIG_DAMAGED"
    """A file of config/ does not hold or is not what it must be."""
    CONFIG_UNCHECKED = "CONFIG_UNCHECKED"
    """A file of config/ has no checksum: RocketMQ or a person wrote it."""
    CONSUMER_OFFSET_AHEAD = "CONSUMER_OFFSET_AHEAD"
    """A consumer offset behind the end of its queue."""
    MANIFEST_DAMAGED = "MANIFEST_DAMAGED"
    """shmq/manifest.json does not hold: the broker would not find its shared memory."""
    ABORT_MISSING = "ABORT_MISSING"
    """No file `abort`: some RocketMQ releases would show empty queues."""
    ROCKETMQ_DERIVED = "ROCKETMQ_DERIVED"
    """checkpoint, consumequeue/ or the like of a real broker lies beside the log."""


@dataclass(slots=True, kw_only=True)
class Finding:
    """One thing that was found."""

    code: Code
    severity: Severity
    path: str
    """File, from the store's folder."""
    message: str
    """For people: seen and wanted."""
    position: int | None = None
    """physical_offset, where it is about the log."""
    size: int | None = None
    """Bytes, where it is about the log."""
    is_repaired: bool = False
    """Mended in this run."""


@dataclass(frozen=True, slots=True)
class LostMessage:
    """A message whose record is damaged."""

    topic: str
    queue_id: int
    queue_offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """One hole of the log and what was in it."""

    position: int
    """physical_offset."""
    size: int
    """Bytes."""
    reason: str
    """What is wrong with its first record."""
    messages: tuple[LostMessage, ...]
    """The messages known to have been there; empty if nothing tells, or none was."""
    kept_as: str | None
    """Its bytes in shmq/quarantine/, once it was rewritten."""


@dataclass(slots=True, kw_only=True)
class Report:
    """What one run of fsck says."""

    store: str
    """The folder."""
    is_foreign: bool = False
    """No shmq wrote it, or RocketMQ wrote it last."""
    file_size_bytes: int = 0
    min_position: int = 0
    end_position: int = 0
    file_count: int = 0
    record_count: int = 0
    queue_count: int = 0
    findings: list[Finding] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    unusable: str | None = None
    """Why it could not be checked to its end."""

    @property
    def exit_code(self) -> int:
        """As the process returns it."""
        if self.unusable is not None:
            return EXIT_UNUSABLE
        counted = [item for item in self.findings if item.severity is not Severity.NOTE]
        if not counted:
            return EXIT_CLEAN
        return EXIT_REPAIRED if all(item.is_repaired for item in counted) else EXIT_FINDINGS

    def to_dict(self) -> dict[str, object]:
        """As --json prints it."""
        return {"format_version": FORMAT_VERSION, **asdict(self), "exit_code": self.exit_code}
