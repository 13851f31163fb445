"""Outcomes as values, spelled as RocketMQ spells them, and how one becomes another.

A send's status climbs three floors: what the core says (status.h, by name), what the store answers
(PutMessageStatus), what the producer's caller sees (SendStatus). Reading climbs from
GetMessageStatus to PullStatus. Members are strings equal to their names, so that JSON, logs and
the wire need no table of their own.

Pure words: no process writes anything here and nothing blocks; a name that is none of these raises
ValueError.
"""

from enum import StrEnum, unique

__all__ = [
    "BrokerRole",
    "ConsumeOrderlyStatus",
    "ConsumeStatus",
    "Elected",
    "FlushDiskType",
    "GetMessageStatus",
    "PullStatus",
    "PutMessageStatus",
    "SendStatus",
    "pull_status",
    "put_message_status",
    "send_status",
]


@unique
class SendStatus(StrEnum):
    """What a completed send promises; in all four the message is stored and is not sent again."""

    SEND_OK = "SEND_OK"
    """As safe as topic and broker promise."""
    FLUSH_DISK_TIMEOUT = "FLUSH_DISK_TIMEOUT"
    """Stored, but the disk did not confirm within syncFlushTimeout."""
    FLUSH_SLAVE_TIMEOUT = "FLUSH_SLAVE_TIMEOUT"
    """Stored, but no slave confirmed within slaveTimeout."""
    SLAVE_NOT_AVAILABLE = "SLAVE_NOT_AVAILABLE"
    """Stored, but no slave is in sync."""


@unique
class PutMessageStatus(StrEnum):
    """What the store answers to put_message."""

    PUT_OK = "PUT_OK"
    FLUSH_DISK_TIMEOUT = "FLUSH_DISK_TIMEOUT"
    FLUSH_SLAVE_TIMEOUT = "FLUSH_SLAVE_TIMEOUT"
    SLAVE_NOT_AVAILABLE = "SLAVE_NOT_AVAILABLE"
    SERVICE_NOT_AVAILABLE = "SERVICE_NOT_AVAILABLE"
    CREATE_MAPPED_FILE_FAILED = "CREATE_MAPPED_FILE_FAILED"
    MESSAGE_ILLEGAL = "MESSAGE_ILLEGAL"
    PROPERTIES_SIZE_EXCEEDED = "PROPERTIES_SIZE_EXCEEDED"
    OS_PAGE_CACHE_BUSY = "OS_PAGE_CACHE_BUSY"
    UNKNOWN_ERROR = "UNKNOWN_ERROR"
    IN_SYNC_REPLICAS_NOT_ENOUGH = "IN_SYNC_REPLICAS_NOT_ENOUGH"
    PUT_TO_REMOTE_BROKER_FAIL = "PUT_TO_REMOTE_BROKER_FAIL"
    LMQ_CONSUME_QUEUE_NUM_EXCEEDED = "LMQ_CONSUME_QUEUE_NUM_EXCEEDED"
    WHEEL_TIMER_FLOW_CONTROL = "WHEEL_TIMER_FLOW_CONTROL"
    WHEEL_TIMER_MSG_ILLEGAL = "WHEEL_TIMER_MSG_ILLEGAL"
    WHEEL_TIMER_NOT_ENABLE = "WHEEL_TIMER_NOT_ENABLE"


@unique
class GetMessageStatus(StrEnum):
    """What the store answers to get_message."""

    FOUND = "FOUND"
    NO_MATCHED_MESSAGE = "NO_MATCHED_MESSAGE"
    """Messages are there, none passes the filter: go on behind them."""
    MESSAGE_WAS_REMOVING = "MESSAGE_WAS_REMOVING"
    """The file went by retention meanwhile: ask again."""
    OFFSET_FOUND_NULL = "OFFSET_FOUND_NULL"
    OFFSET_OVERFLOW_BADLY = "OFFSET_OVERFLOW_BADLY"
    """Behind the next queue_offset to be assigned."""
    OFFSET_OVERFLOW_ONE = "OFFSET_OVERFLOW_ONE"
    """Exactly the next to be assigned: nothing new."""
    OFFSET_TOO_SMALL = "OFFSET_TOO_SMALL"
    """Below the first queue_offset that is kept."""
    NO_MATCHED_LOGIC_QUEUE = "NO_MATCHED_LOGIC_QUEUE"
    NO_MESSAGE_IN_QUEUE = "NO_MESSAGE_IN_QUEUE"
    OFFSET_RESET = "OFFSET_RESET"


@unique
class PullStatus(StrEnum):
    """What a consumer's pull gives."""

    FOUND = "FOUND"
    NO_NEW_MSG = "NO_NEW_MSG"
    NO_MATCHED_MSG = "NO_MATCHED_MSG"
    OFFSET_ILLEGAL = "OFFSET_ILLEGAL"


@unique
class ConsumeStatus(StrEnum):
    """What a concurrent listener answers for its messages."""

    CONSUME_SUCCESS = "CONSUME_SUCCESS"
    RECONSUME_LATER = "RECONSUME_LATER"


@unique
class ConsumeOrderlyStatus(StrEnum):
    """What an orderly listener answers for its messages."""

    SUCCESS = "SUCCESS"
    SUSPEND_CURRENT_QUEUE_A_MOMENT = "SUSPEND_CURRENT_QUEUE_A_MOMENT"


@unique
class BrokerRole(StrEnum):
    """What a broker is to its replicas."""

    ASYNC_MASTER = "ASYNC_MASTER"
    """A send completes without waiting for slaves."""
    SYNC_MASTER = "SYNC_MASTER"
    """A send completes when the slaves in sync have the message."""
    SLAVE = "SLAVE"
    """Takes no message: copies a master's log."""


@unique
class FlushDiskType(StrEnum):
    """When a message counts as stored."""

    ASYNC_FLUSH = "ASYNC_FLUSH"
    """In the CommitLog's shared memory: survives every process, not a power cut."""
    SYNC_FLUSH = "SYNC_FLUSH"
    """On disk: fdatasync has returned."""


@unique
class Elected(StrEnum):
    """By what right a member becomes master."""

    MEMORY = "memory"
    """The last master's memory is there: it goes on with that, or not at all."""
    IN_SYNC = "in_sync"
    """It is in the SyncStateSet: its own log will do where the memory will not."""
    UNCLEAN = "unclean"
    """Confirmed messages may be lost: enableElectUncleanMaster."""


# The core's status (status.h, by name) as the store's. What is not here never ends a put.
_PUT_OF_CORE: dict[str, PutMessageStatus] = {
    "OK": PutMessageStatus.PUT_OK,
    "FLUSH_DISK_TIMEOUT": PutMessageStatus.FLUSH_DISK_TIMEOUT,
    "FLUSH_SLAVE_TIMEOUT": PutMessageStatus.FLUSH_SLAVE_TIMEOUT,
    "SLAVE_NOT_AVAILABLE": PutMessageStatus.SLAVE_NOT_AVAILABLE,
    "ILLEGAL": PutMessageStatus.MESSAGE_ILLEGAL,
    "TOO_LARGE": PutMessageStatus.MESSAGE_ILLEGAL,
    "RESERVED": PutMessageStatus.MESSAGE_ILLEGAL,
    "PROPERTIES_TOO_LARGE": PutMessageStatus.PROPERTIES_SIZE_EXCEEDED,
    "LOG_FULL": PutMessageStatus.OS_PAGE_CACHE_BUSY,
    "ARENA_FULL": PutMessageStatus.SERVICE_NOT_AVAILABLE,
    "DISK_FULL": PutMessageStatus.SERVICE_NOT_AVAILABLE,
    "FLUSH_FAILED": PutMessageStatus.SERVICE_NOT_AVAILABLE,
    "SHM_FULL": PutMessageStatus.SERVICE_NOT_AVAILABLE,
    "LIMIT": PutMessageStatus.SERVICE_NOT_AVAILABLE,
    "DISK_READ_ONLY": PutMessageStatus.SERVICE_NOT_AVAILABLE,
    "NOT_WRITABLE": PutMessageStatus.SERVICE_NOT_AVAILABLE,
    "IN_SYNC_REPLICAS_NOT_ENOUGH": PutMessageStatus.IN_SYNC_REPLICAS_NOT_ENOUGH,
}

# The four that mean "stored"; all others reach the caller as exceptions (errors.for_status).
_SEND_OF_PUT: dict[PutMessageStatus, SendStatus] = {
    PutMessageStatus.PUT_OK: SendStatus.SEND_OK,
    PutMessageStatus.FLUSH_DISK_TIMEOUT: SendStatus.FLUSH_DISK_TIMEOUT,
    PutMessageStatus.FLUSH_SLAVE_TIMEOUT: SendStatus.FLUSH_SLAVE_TIMEOUT,
    PutMessageStatus.SLAVE_NOT_AVAILABLE: SendStatus.SLAVE_NOT_AVAILABLE,
}

_PULL_OF_GET: dict[GetMessageStatus, PullStatus] = {
    GetMessageStatus.FOUND: PullStatus.FOUND,
    GetMessageStatus.NO_MATCHED_MESSAGE: PullStatus.NO_MATCHED_MSG,
    GetMessageStatus.MESSAGE_WAS_REMOVING: PullStatus.NO_MATCHED_MSG,
    GetMessageStatus.OFFSET_FOUND_NULL: PullStatus.NO_NEW_MSG,
    GetMessageStatus.OFFSET_OVERFLOW_ONE: PullStatus.NO_NEW_MSG,
    GetMessageStatus.OFFSET_OVERFLOW_BADLY: PullStatus.OFFSET_ILLEGAL,
    GetMessageStatus.OFFSET_TOO_SMALL: PullStatus.OFFSET_ILLEGAL,
    GetMessageStatus.OFFSET_RESET: PullStatus.OFFSET_ILLEGAL,
}


def put_message_status(core_status: str) -> PutMessageStatus:
    """The store's answer for a status of the core, by name; UNKNOWN_ERROR for one that is none."""
    return _PUT_OF_CORE.get(core_status, PutMessageStatus.UNKNOWN_ERROR)


def send_status(status: PutMessageStatus) -> SendStatus | None:
    """What the caller of send sees, or None where the message is not stored (an exception)."""
    return _SEND_OF_PUT.get(status)


def pull_status(status: GetMessageStatus, queue_offset: int) -> PullStatus:
    """What the consumer sees for the store's answer to a pull at `queue_offset`.

    As RocketMQ's PullMessageProcessor: an empty or unknown queue is nothing new at queue_offset 0
    and an illegal offset anywhere else.
    """
    empty = (GetMessageStatus.NO_MATCHED_LOGIC_QUEUE, GetMessageStatus.NO_MESSAGE_IN_QUEUE)
    if status in empty:
        return PullStatus.NO_NEW_MSG if queue_offset == 0 else PullStatus.OFFSET_ILLEGAL
    return _PULL_OF_GET[status]
