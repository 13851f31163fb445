"""Every exception of shmq: one tree, and one table that says what each means to a caller.

    ShmqError
    ├── ConfigError                     a setting that cannot be used
    ├── ShmError                        shared memory segments
    │   ├── ShmFullError                no room in /dev/shm or in the memory limit
    │   ├── LayoutVersionError          written by another layout version
    │   ├── OwnerError                  not ours: other uid, boot, store or incarnation
    │   └── LimitError                  a limit of the machine or the process is too low
    ├── StoreError                      the store on disk
    │   ├── StoreLockedError            another broker has it open
    │   ├── StoreVersionError           written by a newer shmq
    │   ├── StoreCorruptError           a file that cannot be read for what it must be
    │   ├── DiskFullError               no room for the next file
    │   ├── DiskReadOnlyError           no file can be made: the file system is read-only
    │   ├── FlushFailedError            the disk refused a write: this store takes no more messages
    │   └── CorruptMessageError         one record that is not what was written
    ├── MessageError                    this message can never be sent as it is
    │   ├── MessageTooLargeError
    │   ├── PropertiesTooLargeError
    │   ├── IllegalTopicError
    │   ├── IllegalPropertyError
    │   ├── ReservedPropertyError
    │   └── BodyTypeError               (a TypeError too)
    ├── IllegalGroupError               a group name that RocketMQ would refuse
    ├── SubscriptionError               a filter expression that does not parse
    ├── TopicNotExistError
    ├── SubscriptionGroupNotExistError
    ├── MessageNotFoundError            no broker has it, or none any more
    ├── OffsetIllegalError              outside [min, max] of its queue
    ├── PermissionDeniedError           a rule denies it
    ├── QuotaError                      more than one client may have
    ├── FencedError                     a newer epoch, generation or incarnation owns this
    ├── ServiceNotAvailableError        the broker or queue takes no messages now
    ├── SystemBusyError                 come back in a moment
    │   └── LogFullError                the disk is slower than the producers
    ├── SendTimeoutError                (a TimeoutError too) nothing was sent
    ├── OutcomeUnknownError             (a TimeoutError too) sent, but its fate is not known yet
    ├── ClosedError                     the handle or session has ended
    ├── RequestTimeoutError             (a TimeoutError too) no answer to a control request in time
    ├── ProtocolError                   bytes on a control socket that no peer of ours would send
    ├── ForkError                       a handle used in a child of the process that opened it
    └── LoopError                       a handle used in another event loop than its own

Ordinary outcomes (nothing new, ring full) are values, see status.py; an exception is for what a
caller cannot expect. A message says what was tried, on what, what was seen and what was wanted,
and what to do next: "attach /shmq.c.b0.log: layout 3, need 4; stop the old broker first".

Pure words: no process writes anything here, nothing blocks, nothing but the names may fail.
"""

from typing import ClassVar, NamedTuple

__all__ = [
    "BodyTypeError",
    "ClosedError",
    "ConfigError",
    "CorruptMessageError",
    "DiskFullError",
    "DiskReadOnlyError",
    "ErrorRow",
    "FencedError",
    "FlushFailedError",
    "ForkError",
    "IllegalGroupError",
    "IllegalPropertyError",
    "IllegalTopicError",
    "LayoutVersionError",
    "LimitError",
    "LogFullError",
    "LoopError",
    "MessageError",
    "MessageNotFoundError",
    "MessageTooLargeError",
    "OffsetIllegalError",
    "OutcomeUnknownError",
    "OwnerError",
    "PermissionDeniedError",
    "PropertiesTooLargeError",
    "ProtocolError",
    "QuotaError",
    "RequestTimeoutError",
    "ReservedPropertyError",
    "SendTimeoutError",
    "ServiceNotAvailableError",
    "ShmError",
    "ShmFullError",
    "ShmqError",
    "StoreCorruptError",
    "StoreError",
    "StoreLockedError",
    "StoreVersionError",
    "SubscriptionError",
    "SubscriptionGroupNotExistError",
    "SystemBusyError",
    "TABLE",
    "TopicNotExistError",
    "for_code",
    "for_name",
    "for_status",
]


class ShmqError(Exception):
    """The root of the tree; raised itself only for a code that nothing below stands for.

    Args:
        message: what was tried, on what, seen versus wanted, next step.
        hint: what to do next, where this one instance knows better than its class.
    """

    code: ClassVar[int] = 1
    """RocketMQ's ResponseCode where one exists, else a number of ours from 9000 on."""
    name: ClassVar[str] = "SYSTEM_ERROR"
    """The code's name; unique, so that it identifies the class on the wire."""
    retryable: ClassVar[bool] = False
    """The same call may succeed later, and making it again does no harm. Read by retry.py only."""
    refresh_route: ClassVar[bool] = False
    """Ask a NameServer for new routes before trying again. Read by retry.py only."""
    hint: str = "see the log of the broker that answered"
    """What a person can do about it, one line."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        if hint is not None:
            self.hint = hint


class ConfigError(ShmqError):
    """A setting that is unknown, malformed or out of range; names source, key, value, wanted."""


class ShmError(ShmqError):
    """A shared memory segment could not be made, attached or trusted."""


class ShmFullError(ShmError):
    """No room: /dev/shm is full, or the memory limit of the cgroup is reached."""


class LayoutVersionError(ShmError):
    """The segment was written by a build with another layout version."""


class OwnerError(ShmError):
    """The segment belongs to another uid, boot, store generation or incarnation."""


class LimitError(ShmError):
    """A limit (file descriptors, map count, memory) is too low for what was asked."""


class StoreError(ShmqError):
    """The store on disk could not be opened, read or written."""


class StoreLockedError(StoreError):
    """Another process has this store open."""


class StoreVersionError(StoreError):
    """The store was written by a newer shmq."""


class StoreCorruptError(StoreError):
    """A file is not what it must be; names the file, the line or position, and the reason."""


class DiskFullError(StoreError):
    """The file system has no room, or refuses: the next CommitLog file cannot be made."""


class DiskReadOnlyError(StoreError):
    """The file system is read-only: the next CommitLog file cannot be made."""


class FlushFailedError(StoreError):
    """A write or fdatasync failed: the store's writer has stopped for good, readers go on."""


class CorruptMessageError(StoreError):
    """One record whose bytes are not those that were written; its neighbours are unharmed."""


class MessageError(ShmqError):
    """The message breaks a rule of the store; nothing was written."""


class MessageTooLargeError(MessageError):
    """The body is larger than maxMessageSize."""


class PropertiesTooLargeError(MessageError):
    """The properties take more than 32,767 bytes together."""


class IllegalTopicError(MessageError):
    """The topic name is empty, too long, reserved or has a forbidden character."""


class IllegalPropertyError(MessageError):
    """A property name or value is empty or holds NUL, 0x01 or 0x02."""


class ReservedPropertyError(MessageError):
    """A property name that only the broker and its services may set."""


class BodyTypeError(MessageError, TypeError):
    """The body is neither a buffer nor a str."""


class IllegalGroupError(ShmqError):
    """The group name is empty, too long or has a forbidden character."""


class SubscriptionError(ShmqError):
    """The filter expression of a subscription does not parse."""


class TopicNotExistError(ShmqError):
    """No route leads to the topic, or the broker does not have it (any more)."""


class SubscriptionGroupNotExistError(ShmqError):
    """The broker does not know the consumer group and may not create it."""


class MessageNotFoundError(ShmqError):
    """No broker has the message that was looked up: it never was, or retention took it."""


class OffsetIllegalError(ShmqError):
    """The queue_offset lies below the first message kept or above the last."""


class PermissionDeniedError(ShmqError):
    """A permission bit or an ACL rule denies it; the message names the rule."""


class QuotaError(ShmqError):
    """One client or uid would have more sessions, rings, topics or groups than it may."""


class FencedError(ShmqError):
    """A newer epoch, generation or incarnation owns what was to be written."""


class ServiceNotAvailableError(ShmqError):
    """The broker or the queue takes no messages now: starting, draining, or not writable."""


class SystemBusyError(ShmqError):
    """The broker has too much to do; nothing was written."""


class LogFullError(SystemBusyError):
    """The hot log stayed full for the whole timeout: the disk is slower than the producers."""


class SendTimeoutError(ShmqError, TimeoutError):
    """The timeout ran out before the message was published: nothing was sent."""


class OutcomeUnknownError(ShmqError, TimeoutError):
    """The timeout ran out after the message was published: it may be stored, or be yet.

    It is settled by the broker of its ring or by that broker's successor and is not sent elsewhere
    meanwhile; sending it again by hand may store it twice.
    """


class ClosedError(ShmqError):
    """The handle was closed, or the broker ended the session; the message says why."""


class RequestTimeoutError(ShmqError, TimeoutError):
    """No answer to a control request came in time; it may have been carried out all the same."""


class ProtocolError(ShmqError):
    """A frame that breaks the rules of the control plane; the connection that it came on ends."""


class ForkError(ShmqError):
    """The handle was opened by the parent process; memory maps and rings do not survive a fork."""


class LoopError(ShmqError):
    """The handle belongs to one event loop and was used in another, or in a thread without it."""


class ErrorRow(NamedTuple):
    """What one class means to a caller."""

    error: type[ShmqError]
    """The class."""
    code: int
    """RocketMQ's ResponseCode where one exists, else ours from 9000 on; may be shared."""
    name: str
    """RocketMQ's name of the code where the class is all of it, else ours; unique."""
    retryable: bool
    """The same call may succeed later, and making it again does no harm."""
    refresh_route: bool
    """Ask for new routes first."""
    hint: str
    """What a person can do about it."""


_AGAIN = True
_FINAL = False
_ROUTE = True
_STAY = False

# A row stays a row.
# fmt: off
TABLE: tuple[ErrorRow, ...] = (
    ErrorRow(ShmqError, 1, "SYSTEM_ERROR", _FINAL, _STAY, ShmqError.hint),
    ErrorRow(ConfigError, 29, "INVALID_PARAMETER", _FINAL, _STAY,
             "correct the setting that is named"),
    ErrorRow(ShmError, 9100, "SHM_ERROR", _FINAL, _STAY,
             "look at it with: python -m shmq.tools.inspect"),
    ErrorRow(ShmFullError, 9101, "SHM_FULL", _AGAIN, _STAY,
             "enlarge /dev/shm (mount -o remount,size=...), or ask for a smaller hot log"),
    ErrorRow(LayoutVersionError, 15, "VERSION_NOT_SUPPORTED", _FINAL, _STAY,
             "run one shmq version on both sides; stop the old broker before starting the new"),
    ErrorRow(OwnerError, 9102, "SHM_OWNER", _FINAL, _STAY,
             "run as the user that owns the broker"),
    ErrorRow(LimitError, 9103, "SHM_LIMIT", _FINAL, _STAY, "raise the limit that is named"),
    ErrorRow(StoreError, 9200, "STORE_ERROR", _FINAL, _STAY,
             "check it with: python -m shmq.tools.fsck"),
    ErrorRow(StoreLockedError, 9201, "STORE_LOCKED", _FINAL, _STAY,
             "stop the broker that has the store open, or choose another folder"),
    ErrorRow(StoreVersionError, 9202, "STORE_VERSION", _FINAL, _STAY,
             "open the store with the shmq version that wrote it, or a newer one"),
    ErrorRow(StoreCorruptError, 9203, "STORE_CORRUPT", _FINAL, _STAY,
             "copy the store away, then run: python -m shmq.tools.fsck --repair"),
    ErrorRow(DiskFullError, 9204, "DISK_FULL", _AGAIN, _STAY,
             "free space on the store's file system, or see the broker's log; sending goes on by "
             "itself"),
    ErrorRow(FlushFailedError, 9205, "FLUSH_FAILED", _FINAL, _ROUTE,
             "the disk may be failing: check it, then restart the broker"),
    ErrorRow(DiskReadOnlyError, 9207, "DISK_READ_ONLY", _AGAIN, _STAY,
             "see the kernel's log for why, then mount -o remount,rw; sending goes on by itself"),
    ErrorRow(CorruptMessageError, 9206, "CORRUPT_MESSAGE", _FINAL, _STAY,
             "the record is damaged on this broker: try a replica, run fsck"),
    ErrorRow(MessageError, 13, "MESSAGE_ILLEGAL", _FINAL, _STAY,
             "correct the message that is named"),
    ErrorRow(MessageTooLargeError, 13, "MESSAGE_TOO_LARGE", _FINAL, _STAY,
             "send smaller bodies, or raise max_message_size_bytes (maxMessageSize) of the broker"),
    ErrorRow(PropertiesTooLargeError, 13, "PROPERTIES_SIZE_EXCEEDED", _FINAL, _STAY,
             "keep properties under 32,767 bytes together; put more into the body"),
    ErrorRow(IllegalTopicError, 13, "TOPIC_ILLEGAL", _FINAL, _STAY,
             "topic names have 1 to 127 characters of A-Z a-z 0-9 % | _ -"),
    ErrorRow(IllegalPropertyError, 13, "PROPERTY_ILLEGAL", _FINAL, _STAY,
             "property names and values are not empty and hold no NUL, 0x01 or 0x02"),
    ErrorRow(ReservedPropertyError, 13, "PROPERTY_RESERVED", _FINAL, _STAY,
             "choose another property name; shmq sets the reserved ones itself"),
    ErrorRow(BodyTypeError, 13, "BODY_TYPE", _FINAL, _STAY,
             "give bytes, any contiguous buffer or a str; serialise anything else first"),
    ErrorRow(IllegalGroupError, 9300, "GROUP_ILLEGAL", _FINAL, _STAY,
             "group names have 1 to 120 characters of A-Z a-z 0-9 % | _ -"),
    ErrorRow(SubscriptionError, 23, "SUBSCRIPTION_PARSE_FAILED", _FINAL, _STAY,
             'write tags as "a || b", or "*" for all'),
    ErrorRow(TopicNotExistError, 17, "TOPIC_NOT_EXIST", _AGAIN, _ROUTE,
             "create the topic first"),
    ErrorRow(SubscriptionGroupNotExistError, 26, "SUBSCRIPTION_GROUP_NOT_EXIST", _FINAL, _STAY,
             "create the group on the broker, or allow it to create groups"),
    ErrorRow(MessageNotFoundError, 9301, "MESSAGE_NOT_FOUND", _FINAL, _STAY,
             "see what is kept: shmq topic show, and look for it: shmq msg find"),
    ErrorRow(OffsetIllegalError, 21, "PULL_OFFSET_MOVED", _FINAL, _STAY,
             "seek to an offset between the queue's min and max"),
    ErrorRow(PermissionDeniedError, 16, "NO_PERMISSION", _FINAL, _STAY,
             "ask the broker's administrator for the right that is named"),
    ErrorRow(QuotaError, 215, "FLOW_CONTROL", _FINAL, _STAY,
             "close what is not used, or raise the quota that is named"),
    ErrorRow(FencedError, 2000, "CONTROLLER_FENCED_MASTER_EPOCH", _AGAIN, _ROUTE,
             "nothing: clients follow the new owner by themselves"),
    ErrorRow(ServiceNotAvailableError, 14, "SERVICE_NOT_AVAILABLE", _AGAIN, _ROUTE,
             "wait for the broker; its log says why"),
    ErrorRow(SystemBusyError, 2, "SYSTEM_BUSY", _AGAIN, _STAY, "send more slowly, or add a broker"),
    ErrorRow(LogFullError, 2, "LOG_FULL", _AGAIN, _STAY,
             "give the store a faster disk, or a larger hot log (hot_segment_count)"),
    ErrorRow(SendTimeoutError, 9400, "SEND_TIMEOUT", _AGAIN, _STAY,
             "raise the timeout, or see what keeps the broker busy"),
    ErrorRow(OutcomeUnknownError, 9401, "OUTCOME_UNKNOWN", _FINAL, _STAY,
             "look it up by its UNIQ_KEY before sending it again"),
    ErrorRow(ClosedError, 9402, "CLOSED", _FINAL, _STAY, "open a new one"),
    ErrorRow(RequestTimeoutError, 9404, "REQUEST_TIMEOUT", _FINAL, _STAY,
             "see whether the server that is named hangs; ask for the state before asking again"),
    ErrorRow(ProtocolError, 9405, "PROTOCOL_ERROR", _FINAL, _STAY,
             "run one shmq version on both sides"),
    ErrorRow(ForkError, 9403, "FORKED", _FINAL, _STAY,
             "open it in the process that uses it; start workers with spawn, not fork"),
    ErrorRow(LoopError, 9406, "OTHER_LOOP", _FINAL, _STAY,
             "connect in the loop that uses it: one shmq.aio client for each loop"),
)
# fmt: on

_BY_CODE: dict[int, type[ShmqError]] = {}
_BY_NAME: dict[str, type[ShmqError]] = {}
for _row in TABLE:
    _row.error.code = _row.code
    _row.error.name = _row.name
    _row.error.retryable = _row.retryable
    _row.error.refresh_route = _row.refresh_route
    _row.error.hint = _row.hint
    _BY_CODE.setdefault(_row.code, _row.error)  # parents stand first: the general class wins
    _BY_NAME[_row.name] = _row.error

# What a verb of the core gave back (core status.h, by name) as an exception, where it is one.
_BY_STATUS: dict[str, type[ShmqError]] = {
    "TIMED_OUT": OutcomeUnknownError,
    "CORRUPT": CorruptMessageError,
    "ILLEGAL": MessageError,
    "TOO_LARGE": MessageTooLargeError,
    "FENCED": FencedError,
    "CLOSED": ClosedError,
    "LOG_FULL": LogFullError,
    "DISK_FULL": DiskFullError,
    "FLUSH_FAILED": FlushFailedError,
    "NO_TOPIC": TopicNotExistError,
    "NOT_GRANTED": PermissionDeniedError,
    "RESERVED": ReservedPropertyError,
    "PROPERTIES_TOO_LARGE": PropertiesTooLargeError,
    "ARENA_FULL": ShmFullError,
    "SHM_FULL": ShmFullError,
    "LIMIT": LimitError,
    "DISK_READ_ONLY": DiskReadOnlyError,
    "NOT_WRITABLE": ServiceNotAvailableError,
    "OFFSET_TOO_SMALL": OffsetIllegalError,
    "IN_SYNC_REPLICAS_NOT_ENOUGH": SystemBusyError,
}


def for_code(code: int) -> type[ShmqError]:
    """The most general class with RocketMQ's (or our) code; ShmqError if none has it."""
    return _BY_CODE.get(code, ShmqError)


def for_name(name: str) -> type[ShmqError]:
    """The class whose `name` this is, as it travels on the control plane; ShmqError if none."""
    return _BY_NAME.get(name, ShmqError)


def for_status(status_name: str) -> type[ShmqError] | None:
    """The class for a status of the core ("LOG_FULL"); None where it is an ordinary outcome."""
    return _BY_STATUS.get(status_name)
