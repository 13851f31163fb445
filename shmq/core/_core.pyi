"""Types of the compiled core. What each verb does is said in its C docstring and in the heads of
include/shmq/*.h; sections follow the files of binding/.
"""

from collections.abc import Collection, Iterable, Sequence
from collections.abc import Mapping as MappingOf
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Final, Literal, Protocol, Self, final, overload

from numpy.typing import NDArray
from typing_extensions import Buffer

# ---- module.c, layout.c --------------------------------------------------------------------------

BUILD: Final[str]
BUILD_FLAGS: Final[str]
LAYOUT_VERSION: Final[int]
LAYOUT: Final[dict[str, tuple[int, list[tuple[str, int, str, int, str]]]]]
STATUS: Final[dict[str, tuple[int, str]]]

LINE: Final[int]
PAGE: Final[int]
TURN_RING_MAX: Final[int]
SERVICE_MAX: Final[int]
HOT_SLOT_MAX: Final[int]
LANE_MAX: Final[int]
CONSUMER_BELL_MAX: Final[int]
TOPIC_SIZE_MAX: Final[int]
BLOCK_SIZE: Final[int]
BLOCK_ENTRIES: Final[int]
MAGIC_CONTROL: Final[int]
MAGIC_TOPICS: Final[int]
MAGIC_ARENA: Final[int]
MAGIC_COMPLETION: Final[int]
MAGIC_INGRESS: Final[int]
MAGIC_CONSUMER: Final[int]
MAGIC_CHUNK: Final[int]
MAGIC_STATS: Final[int]
KIND_CONTROL: Final[int]
KIND_TOPICS: Final[int]
KIND_HOT: Final[int]
KIND_ARENA: Final[int]
KIND_COMPLETION: Final[int]
KIND_INGRESS: Final[int]
KIND_CONSUMER: Final[int]
KIND_CHUNK: Final[int]
KIND_STATS: Final[int]
HOT_FREE: Final[int]
HOT_READY: Final[int]
HOT_LIVE: Final[int]
HOT_RETIRED: Final[int]
SESSION_FREE: Final[int]
SESSION_LIVE: Final[int]
ROW_FREE: Final[int]
ROW_ACTIVE: Final[int]
ROW_READ_ONLY: Final[int]
ROW_DELETED: Final[int]
ROW_FLUSH: Final[int]
ROW_REPLICA: Final[int]
ROW_SCHEDULE: Final[int]
NEED_FLUSH: Final[int]
NEED_REPLICA: Final[int]
RECORD_MESSAGE: Final[int]
RECORD_PAD: Final[int]
RECORD_LARGE: Final[int]
RECORD_WAIT: Final[int]
LANES_PLACE: Final[int]
RING_DATA_PLACE: Final[int]
BELLS_PLACE: Final[int]
COMPLETIONS_PLACE: Final[int]
SLEEPERS_PLACE: Final[int]
CLAIMS_PLACE: Final[int]
CHUNK_DATA_PLACE: Final[int]
TOPIC_ROWS_PLACE: Final[int]
LANE_LATENCY_PLACE: Final[int]
STATS_ROWS_PLACE: Final[int]
STATS_FREE: Final[int]
STATS_CONSUMER_OFFSET: Final[int]
STATS_VALUE: Final[int]
GRANT_SERVICE: Final[int]
GRANT_TRANSACTION: Final[int]
CHECK_RECORD_CRC: Final[int]
PROPERTIES_SIZE_MAX: Final[int]
CRC_PROPERTY_SIZE: Final[int]
WAIT_BLOCKING: Final[int]
WAIT_ADAPTIVE: Final[int]
WAIT_BUSY_SPIN: Final[int]

class CoreError(Exception): ...

# ---- mapping.c -----------------------------------------------------------------------------------

@final
class Mapping:
    def __new__(
        cls,
        fd: int,
        size: int,
        *,
        writable: bool = False,
        reserve: int = 0,
        populate: bool = False,
    ) -> Self: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def reserve_bytes(self) -> int: ...
    @property
    def address(self) -> int: ...
    @property
    def closed(self) -> bool: ...
    def close(self) -> None: ...
    def grow(self, size: int, /) -> None: ...
    def init_header(
        self,
        *,
        kind: int,
        magic: int,
        store_generation: int,
        boot_id: bytes,
        owner_pid: int,
        owner_uid: int,
        owner_start_time: int,
        master_epoch: int,
        number: int,
    ) -> None: ...
    def load64(self, place: int, /) -> int: ...
    def load32(self, place: int, /) -> int: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __release_buffer__(self, buffer: memoryview, /) -> None: ...

# ---- append.c ------------------------------------------------------------------------------------

EVENT_HOT: Final[int]
EVENT_ARENA: Final[int]
EVENT_SESSION: Final[int]
EVENT_STOP: Final[int]
EVENT_REPLICA: Final[int]
REPLICA_MAX: Final[int]
NEED_FILE: Final[int]
NEED_QUEUE: Final[int]
NEED_REPAIR: Final[int]
NEED_MASTER: Final[int]

def control_size(session_slot_count: int, /) -> int: ...
def init_control(
    control: Mapping,
    *,
    file_size_bytes: int,
    hot_slot_count: int,
    session_slot_count: int,
    queue_row_max: int,
    topic_row_max: int,
    arena_block_max: int,
    message_size_max: int,
    store_host: bytes,
    begin_position: int,
) -> None: ...

@final
class Appender:
    def __new__(
        cls,
        control: Mapping,
        topics: Mapping,
        arena: Mapping,
        *,
        delay_ms: Sequence[int] | None = None,
        flush_timeout: float = 5.0,
        replica_timeout: float = 3.0,
        policy: int = ...,
        arena_low: int = 64,
    ) -> Self: ...
    def run(self) -> None: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...
    def wait_events(self, timeout: float, /) -> int: ...
    def stop_events(self) -> None: ...
    def adopt(self) -> int: ...
    def replay(
        self, position: int, limit: int, demands: int, frames_max: int, /
    ) -> tuple[int, int, int, int, bytes | None, int, int, int]: ...
    def begin_at(self, position: int, store_timestamp: int, /) -> None: ...
    def take_files(self, owner: int, flushed_position: int, /) -> None: ...
    def add_topic(self, topic: bytes, /) -> int: ...
    def delete_topic(self, topic_row: int, /) -> None: ...
    def add_queue(
        self, topic_row: int, queue_id: int, flags: int, first_queue_offset: int, /
    ) -> tuple[int, int]: ...
    def set_queue(self, row: int, state: int, flags: int, /) -> None: ...
    def delete_queue(self, row: int, /) -> None: ...
    def reserve(self, row: int, max_queue_offset: int, /) -> int: ...
    def set_min(self, row: int, min_queue_offset: int, /) -> None: ...
    def set_min_position(self, physical_offset: int, /) -> None: ...
    def set_status(self, status: int, /) -> None: ...
    def grow_arena(self, block_count: int, /) -> None: ...
    def trim(self, first_row: int, row_count: int, min_position: int, /) -> int: ...
    def ready(self, file_position: int, hot: Mapping, object_number: int, /) -> None: ...
    def adopt_hot(self, file_position: int, hot: Mapping, /) -> None: ...
    def retire(self, file_position: int, /) -> None: ...
    def attach(
        self,
        session: int,
        *,
        ingress: Mapping | None,
        completion: Mapping,
        consumer: Mapping | None,
        chunk: Mapping | None,
        event_fd: int,
        fresh: bool = False,
        lane_count: int = 0,
        lane_capacity_bytes: int = 0,
        completion_capacity: int = 0,
        claim_capacity: int = 0,
        uid: int = 0,
        pid: int = 0,
        pid_start_time: int = 0,
        ingress_inode: int = 0,
        ingress_size_bytes: int = 0,
        consumer_inode: int = 0,
        consumer_size_bytes: int = 0,
        chunk_inode: int = 0,
        chunk_size_bytes: int = 0,
        completion_number: int = 0,
        service_id: int = 0,
        property_grants: int = 0,
    ) -> int: ...
    def set_chunk(self, session: int, chunk: Mapping, inode: int, /) -> None: ...
    def set_socket(self, session: int, fd: int, /) -> None: ...
    def set_grant(self, session: int, row: int, allowed: bool, /) -> None: ...
    def drained(self, session: int, /) -> bool: ...
    def detach(self, session: int, /) -> None: ...
    def free_session(self, session: int, /) -> None: ...
    def subscribe(self, session: int, bell: int, row: int, /) -> None: ...
    def unsubscribe(self, session: int, bell: int, row: int, /) -> None: ...
    def set_slave(self, is_slave: bool, /) -> None: ...
    def follow(
        self,
        control: Mapping,
        log_map: LogMap,
        *,
        event_fd: int,
        socket_fd: int,
        record_crc_position: int,
    ) -> None: ...
    def unfollow(self) -> None: ...
    def replica_need(self) -> tuple[int, int, bytes | None, int, int, int]: ...
    def replica_go_on(self) -> None: ...
    def add_replica(self, control: Mapping, socket_fd: int, /) -> int: ...
    def remove_replica(self, index: int, /) -> None: ...
    def set_replica(self, index: int, is_in_sync: bool, /) -> bool: ...
    def confirm(
        self, is_confirming: bool, *, needed: int = 0, by_flushed: bool = False, status: int = 0
    ) -> None: ...
    def set_stats(self, stats: Mapping, /) -> None: ...
    def look(self) -> None: ...
    def state(self) -> dict[str, int]: ...

# ---- stats.c -------------------------------------------------------------------------------------

LATENCY_BOUNDS_NS: Final[tuple[int, ...]]

@final
class StatsRows:
    def __new__(cls, stats: Mapping) -> Self: ...
    def put(
        self,
        index: int,
        kind: int,
        label: bytes,
        *,
        queue_row: int = 0,
        row_generation: int = 0,
    ) -> None: ...
    def set(
        self, index: int, value: int, passed_count: int = 0, waiting_since: int = 0, /
    ) -> None: ...
    def close(self) -> None: ...

# ---- flush.c -------------------------------------------------------------------------------------

@final
class Flusher:
    def __new__(
        cls, appender: Appender, *, interval: float = 0.01, bytes_max: int = ...
    ) -> Self: ...
    def run(self, fd: int, file_position: int, hot: Mapping, /) -> tuple[int, int, str]: ...
    def stop(self) -> None: ...
    def set_interval(self, interval: float, /) -> None: ...

# ---- scan.c --------------------------------------------------------------------------------------

MESSAGE_REASONS: Final[tuple[tuple[str, str], ...]]

def scan(
    buffer: Buffer,
    *,
    position: int,
    begin: int,
    end: int,
    file_end: int,
    topics: dict[bytes, int],
    demands: int = ...,
    frame_limit: int = ...,
    delay_ms: Sequence[int] | None = ...,
) -> tuple[int, int, int, bytes]: ...
def resync(
    buffer: Buffer,
    *,
    position: int,
    begin: int,
    end: int,
    file_end: int,
    demands: int = ...,
) -> tuple[int, int]: ...
def group(
    rows: Buffer, *, gap_limit: int
) -> tuple[list[tuple[int, int, int, int, int, int, int, int]], bytes, int]: ...
def parse_frame(
    buffer: Buffer, *, physical_offset: int, demands: int = ..., believe: bool = ...
) -> tuple[int, int, dict[str, Any] | None]: ...
def encode_frame(
    topic: Buffer,
    *,
    queue_id: int,
    queue_offset: int,
    physical_offset: int,
    store_timestamp: int,
    sys_flag: int,
    born_timestamp: int,
    born_host: bytes,
    store_host: bytes,
    body: Buffer,
    properties: Buffer,
) -> bytes: ...

# ---- index.c -------------------------------------------------------------------------------------

def index_file(
    fd: int,
    *,
    file_position: int,
    file_size: int,
    holes: Sequence[tuple[int, int]],
    low: int,
    high: int,
    entry_limit: int,
    idle: bool,
    stop_fd: int,
) -> tuple[int, int, bytes, int, int, int]: ...
def index_memory(
    buffer: Buffer, *, file_position: int, begin: int, end: int, frame_limit: int
) -> tuple[int, int, bytes, int, int, int]: ...
def index_hash(topic: Buffer, key: Buffer, /) -> int: ...
def index_directory(entries: Buffer, page_size: int, /) -> bytes: ...
def index_find(entries: Buffer, hash: int, /) -> list[tuple[int, int]]: ...
def frame_head(
    buffer: Buffer, *, physical_offset: int, room: int
) -> tuple[int, int, int, int, int, int, int] | None: ...

# ---- log_map.c -----------------------------------------------------------------------------------

@final
class LogMap:
    def __new__(cls, *, file_size: int, cold_max: int = 16) -> Self: ...
    @property
    def remap_count(self) -> int: ...
    @property
    def refused_count(self) -> int: ...
    @property
    def channel_open(self) -> bool: ...
    @property
    def closed(self) -> bool: ...
    def start(self, channel_fd: int, /) -> None: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...
    def add(self, file_position: int, fd: int, *, hot: bool = False) -> None: ...
    def messages(self, frames: Buffer, keeper: _Keeper | None = None) -> list[Message]: ...
    def retire(self, file_position: int, fd: int, /) -> None: ...
    def forget(self, file_position: int, /) -> bool: ...
    def request_file(self, file_position: int, timeout: float = 1.0, /) -> int: ...
    def files(self) -> list[tuple[int, bool, int]]: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...

# ---- message.c -----------------------------------------------------------------------------------

class _Keeper(Protocol):
    def process(self, message: Message, /) -> AbstractContextManager[Message]: ...
    def settle(self, message: Message, /) -> None: ...

@final
class Message:
    def __new__(
        cls,
        topic: str,
        body: Buffer | str,
        *,
        tag: str | None = None,
        keys: str | Iterable[str] | None = (),
        properties: MappingOf[str, str] | None = None,
        flag: int = 0,
    ) -> Self: ...
    @property
    def topic(self) -> str: ...
    @property
    def body(self) -> memoryview: ...
    @property
    def body_bytes(self) -> bytes: ...
    @property
    def tag(self) -> str | None: ...
    @property
    def keys(self) -> tuple[str, ...]: ...
    @property
    def properties(self) -> dict[str, str]: ...
    @property
    def flag(self) -> int: ...
    @property
    def keeper(self) -> _Keeper | None: ...
    @property
    def message_id(self) -> str: ...
    @property
    def offset_message_id(self) -> str: ...
    @property
    def queue_id(self) -> int: ...
    @property
    def queue_offset(self) -> int: ...
    @property
    def physical_offset(self) -> int: ...
    @property
    def store_timestamp(self) -> int: ...
    @property
    def born_timestamp(self) -> int: ...
    @property
    def sys_flag(self) -> int: ...
    @property
    def reconsume_times(self) -> int: ...
    @property
    def size(self) -> int: ...
    def array(self) -> NDArray[Any]: ...
    def process(self) -> AbstractContextManager[Message]: ...
    def settle(self) -> None: ...
    def __len__(self) -> int: ...
    def __bool__(self) -> Literal[True]: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

# ---- lane.c, lane_batch.c, completions.c, loan.c, chunk.c ----------------------------------------

@final
class ChunkMemory:
    def __new__(cls, control: Mapping, memory: Mapping, *, session: int) -> Self: ...
    @property
    def capacity_bytes(self) -> int: ...
    @property
    def used_bytes(self) -> int: ...
    def resume(self, control: Mapping, /) -> None: ...

@final
class Loan:
    @property
    def view(self) -> memoryview: ...
    @property
    def sequence(self) -> int: ...
    @property
    def committed(self) -> bool: ...
    def commit(self, nbytes: int | None = None) -> int: ...
    def abort(self) -> None: ...
    def __enter__(self) -> memoryview: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __release_buffer__(self, buffer: memoryview, /) -> None: ...

@final
class Completions:
    @property
    def status(self) -> int | None: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> tuple[int, int, str | None]: ...

class Oneway:
    def send_oneway(
        self,
        topic: str,
        body: Buffer | str,
        *,
        tag: str | None = None,
        keys: str | Iterable[str] | None = None,
        properties: MappingOf[str, str] | None = None,
        flag: int = 0,
        key: str | None = None,
        queue: object | None = None,
        delay_level: int = 0,
        timeout: float = 3.0,
    ) -> None: ...

@final
class Lane:
    def __new__(
        cls,
        control: Mapping,
        ingress: Mapping,
        completion: Mapping,
        *,
        session: int,
        lane: int,
        event_fd: int,
        chunk: ChunkMemory | None = None,
        policy: int = ...,
    ) -> Self: ...
    @property
    def closed(self) -> bool: ...
    @property
    def ended(self) -> int: ...
    @property
    def next_sequence(self) -> int: ...
    @property
    def done_sequence(self) -> int: ...
    @property
    def appended_sequence(self) -> int: ...
    @property
    def capacity_bytes(self) -> int: ...
    @property
    def completion_capacity(self) -> int: ...
    @property
    def record_size_max(self) -> int: ...
    def put(
        self,
        row: int,
        generation: int,
        body: Buffer | str | Message,
        tag: str | None = None,
        keys: str | Iterable[str] | None = None,
        properties: MappingOf[str, str] | None = None,
        flag: int = 0,
        wait: bool = True,
        timeout: float | None = 3.0,
        keep: bool = False,
    ) -> int: ...
    def put_many(
        self,
        row: int,
        generation: int,
        bodies: Iterable[Buffer | str | Message],
        tag: str | None = None,
        keys: str | Iterable[str] | None = None,
        properties: MappingOf[str, str] | None = None,
        flag: int = 0,
        wait: bool = True,
        timeout: float | None = 3.0,
        keep: bool = False,
    ) -> tuple[int, int, int]: ...
    def send(
        self,
        row: int,
        generation: int,
        body: Buffer | str | Message,
        tag: str | None = None,
        keys: str | Iterable[str] | None = None,
        properties: MappingOf[str, str] | None = None,
        flag: int = 0,
        wait: bool = True,
        timeout: float | None = 3.0,
    ) -> tuple[int, int, int, int, int, str | None]: ...
    def loan(
        self,
        row: int,
        generation: int,
        nbytes: int,
        tag: str | None = None,
        keys: str | Iterable[str] | None = None,
        properties: MappingOf[str, str] | None = None,
        flag: int = 0,
        wait: bool = True,
        timeout: float | None = 3.0,
        keep: bool = False,
    ) -> Loan | int: ...
    def wait(self, sequence: int, timeout: float | None = 3.0) -> tuple[int, int, int, int]: ...
    def wait_many(
        self, first_sequence: int, count: int, timeout: float | None = 3.0
    ) -> Completions: ...
    def take(self, sequence: int, /) -> tuple[int, int, int, int] | None: ...
    def spin(self, sequence: int, /) -> tuple[int, int, int, int] | None: ...
    def arm(self, for_space: bool, /) -> None: ...
    def disarm(self) -> None: ...
    def forget(self, sequence: int, /) -> None: ...
    def drain(self, timeout: float | None = 3.0) -> int: ...
    def unique_key(self, sequence: int, /) -> str | None: ...
    def attach_chunk(self, chunk: ChunkMemory, /) -> None: ...
    def set_service(
        self,
        *,
        progress: int = 0,
        sys_flag: int = 0,
        reconsume_times: int = 0,
        born_timestamp: int = 0,
        service_index: int = 0,
    ) -> None: ...
    def resume(self, control: Mapping, completion: Mapping, event_fd: int, /) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...

# ---- reader.c, batch.c ---------------------------------------------------------------------------

@final
class Batch:
    @property
    def queue_offsets(self) -> memoryview: ...
    @property
    def physical_offsets(self) -> memoryview: ...
    @property
    def sizes(self) -> memoryview: ...
    @property
    def body_addresses(self) -> memoryview: ...
    @property
    def body_sizes(self) -> memoryview: ...
    @overload
    def bodies(self, copy: Literal[False] = False) -> list[memoryview]: ...
    @overload
    def bodies(self, copy: Literal[True]) -> list[bytes]: ...
    def copy_bodies(self) -> tuple[bytes, memoryview]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Message: ...

@final
class Reader:
    def __new__(
        cls,
        control: Mapping,
        arena: Mapping | None,
        log_map: LogMap,
        *,
        consumer: Mapping | None = None,
        completion: Mapping | None = None,
        session: int = 0,
        bell: int = 0,
        policy: int = ...,
    ) -> Self: ...
    @property
    def lost_count(self) -> int: ...
    @property
    def missing_file_position(self) -> int: ...
    @property
    def claim_capacity(self) -> int: ...
    @property
    def closed(self) -> bool: ...
    def read(
        self,
        row: int,
        generation: int,
        queue_offset: int,
        max_count: int = 32,
        tag_codes: Collection[int] | None = None,
        verify: bool = False,
        timeout: float | None = 1.0,
        keeper: _Keeper | None = None,
    ) -> tuple[int, list[Message], int]: ...
    def read_columns(
        self,
        row: int,
        generation: int,
        queue_offset: int,
        max_count: int = 32,
        tag_codes: Collection[int] | None = None,
        verify: bool = False,
        timeout: float | None = 1.0,
    ) -> tuple[int, Batch, int]: ...
    def read_entries(
        self,
        entries: Buffer,
        queue_offset: int,
        max_count: int = 32,
        tag_codes: Collection[int] | None = None,
        verify: bool = False,
        timeout: float | None = 1.0,
        keeper: _Keeper | None = None,
    ) -> tuple[int, list[Message], int]: ...
    def message_at(self, physical_offset: int, timeout: float | None = 1.0) -> Message | None: ...
    def watch(self, row: int, generation: int, queue_offset: int) -> None: ...
    def unwatch(self, row: int, /) -> None: ...
    def wait(self, timeout: float | None) -> int: ...
    def arm(self) -> None: ...
    def disarm(self) -> None: ...
    def rings(self) -> int: ...
    @staticmethod
    def wait_any(readers: Sequence[Reader], timeout: float | None) -> int: ...
    def share(self) -> Reader: ...
    def wake(self) -> None: ...
    def claim(
        self, index: int, claim: int, row: int, generation: int, consumer_offset: int
    ) -> None: ...
    def report(self, index: int, consumer_offset: int) -> None: ...
    def drop_claim(self, index: int, /) -> None: ...
    def visible_max(self, row: int, /) -> int: ...
    def max_queue_offset(self, row: int, /) -> int: ...
    def min_queue_offset(self, row: int, /) -> int: ...
    def hot_min_queue_offset(self, row: int, /) -> int: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...
