"""Bad input is refused by an error of ours with a code and a hint, before a byte is written.

A store process and a client of it, as a broker and a producer have them. What is written is told by
the ring's tail, which is the only word that makes a record count, and by the end of the log.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from shmq.config import StoreConfig
from shmq.core import core
from shmq.core.fields import field_place
from shmq.errors import (
    BodyTypeError,
    ClosedError,
    ForkError,
    IllegalPropertyError,
    IllegalTopicError,
    MessageTooLargeError,
    PropertiesTooLargeError,
    ReservedPropertyError,
    ShmqError,
)
from shmq.store.queues import QueueHandle
from tests.support.dev_shm import RUN_TOKEN
from tests.support.store_process import ROOT, StoreClient, StoreProcess, wait_until

MESSAGE_SIZE_MAX = 256 * 1024
FILE_SIZE = 8 << 20  # more than all tests together send
OK = core.STATUS["OK"][0]
CRC_ROOM = 20
UNIQUE_KEY_ROOM = len("UNIQ_KEY") + 1 + 32 + 1


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreProcess]:
    folder = tmp_path_factory.mktemp("bad_input")
    config = StoreConfig(
        store_path=folder / "store",
        runtime_path=folder / "run",
        cluster_name=f"{RUN_TOKEN}badinput",
        commit_log_file_size_bytes=FILE_SIZE,
        hot_segment_count=3,
        max_message_size_bytes=MESSAGE_SIZE_MAX,
    )
    with StoreProcess(config) as process:
        # all its memory is there before the first test looks at what is in /dev/shm
        wait_until(lambda: process.facts()["state"]["ready_end"] == 3 * FILE_SIZE)
        yield process


@pytest.fixture(scope="module")
def handle(store: StoreProcess) -> QueueHandle:
    return store.add_queue("orders")


@pytest.fixture(scope="module")
def client(store: StoreProcess, handle: QueueHandle) -> Iterator[StoreClient]:
    with StoreClient(store) as opened:
        opened.grant(handle)
        yield opened


@pytest.fixture
def lane(client: StoreClient) -> core.Lane:
    return client.lanes[0]


def _written(client: StoreClient) -> tuple[int, ...]:
    """The published tail of each ring, and the end of the log."""
    assert client.ingress is not None
    lane_size = core.LAYOUT["lane"][0]
    tails = [
        client.ingress.load64(core.LANES_PLACE + lane * lane_size + field_place("lane", "tail"))
        for lane in range(client.offer.lane_count)
    ]
    return (*tails, client.store.facts()["state"]["log_end"])


def _assert_refused(
    client: StoreClient, error: type[ShmqError], call: Callable[[], object]
) -> ShmqError:
    """The call raises `error`, with a code and a hint, and nothing was written."""
    before = _written(client)
    with pytest.raises(error) as raised:
        call()
    assert type(raised.value) is error
    assert raised.value.code > 0
    assert raised.value.hint
    assert str(raised.value)
    assert _written(client) == before
    return raised.value


SENDS: dict[str, Callable[..., object]] = {
    "put": lambda lane, handle, body, **options: lane.put(*handle, body, **options),
    "send": lambda lane, handle, body, **options: lane.send(*handle, body, **options),
    "put_many": lambda lane, handle, body, **options: lane.put_many(*handle, [body], **options),
    "Message": lambda lane, handle, body, **options: lane.put(
        *handle, core.Message("orders", body, **options)
    ),
}


@pytest.fixture(params=SENDS, ids=str)
def verb(request: pytest.FixtureRequest) -> Callable[..., object]:
    found: Callable[..., object] = SENDS[request.param]
    return found


# ---- bodies --------------------------------------------------------------------------------------


def test_body_over_max_message_size_is_refused(
    client: StoreClient,
    lane: core.Lane,
    handle: QueueHandle,
    verb: Callable[..., object],
) -> None:
    too_large = bytes(MESSAGE_SIZE_MAX + 1)
    _assert_refused(client, MessageTooLargeError, lambda: verb(lane, handle, too_large))
    error = _assert_refused(
        client, MessageTooLargeError, lambda: lane.loan(*handle, MESSAGE_SIZE_MAX + 1)
    )
    assert str(MESSAGE_SIZE_MAX) in str(error)
    assert "maxMessageSize" in str(error)


def test_body_of_max_message_size_is_taken(store: StoreProcess, handle: QueueHandle) -> None:
    with StoreClient(store) as client:
        client.grant(handle)
        client.grant_chunk(2 * MESSAGE_SIZE_MAX)  # it is more than fits into a ring
        assert client.lanes[0].send(*handle, bytes(MESSAGE_SIZE_MAX))[0] == OK


BODIES: dict[str, Callable[[], object]] = {
    "int": lambda: 5,
    "None": lambda: None,
    "list": lambda: [b"a"],
    "dict": dict,
    "object": object,
    "strided view": lambda: memoryview(b"abcdef")[::2],
    "strided array": lambda: np.arange(10, dtype="<u4")[::2],
    "array of objects": lambda: np.array([object()]),
    "lone surrogate": lambda: "\ud800",
}


@pytest.mark.parametrize("body", BODIES, ids=str)
def test_body_that_has_no_bytes_is_refused(
    client: StoreClient,
    lane: core.Lane,
    handle: QueueHandle,
    verb: Callable[..., object],
    body: str,
) -> None:
    made = BODIES[body]()
    error = _assert_refused(client, BodyTypeError, lambda: verb(lane, handle, made))
    assert isinstance(error, TypeError)


def test_batch_with_one_bad_body_is_refused_as_a_whole(
    client: StoreClient, lane: core.Lane, handle: QueueHandle
) -> None:
    _assert_refused(
        client,
        BodyTypeError,
        lambda: lane.put_many(*handle, [b"one", b"two", 3]),  # type: ignore[list-item]
    )


def test_received_message_is_no_body(
    client: StoreClient, lane: core.Lane, handle: QueueHandle
) -> None:
    queue_offset = lane.send(*handle, b"to be received")[2]
    _, messages, _ = client.reader.read(*handle, queue_offset)
    _assert_refused(client, BodyTypeError, lambda: lane.put(*handle, messages[0]))


# ---- properties ----------------------------------------------------------------------------------

ILLEGAL_TEXTS = {
    "NUL": "a\0b",
    "name separator": "a\x01b",
    "pair separator": "a\x02b",
    "empty": "",
    "lone surrogate": "\ud800",
    "int": 7,
    "bytes": b"text",
    "None": None,
}


@pytest.mark.parametrize("text", ILLEGAL_TEXTS, ids=str)
@pytest.mark.parametrize("place", ["name", "value", "tag", "key"])
def test_text_that_would_break_the_properties_is_refused(
    client: StoreClient,
    lane: core.Lane,
    handle: QueueHandle,
    verb: Callable[..., object],
    text: str,
    place: str,
) -> None:
    bad = ILLEGAL_TEXTS[text]
    if bad is None and place == "tag":
        return  # no tag at all
    options = {
        "name": {"properties": {bad: "value"}},
        "value": {"properties": {"name": bad}},
        "tag": {"tag": bad},
        "key": {"keys": ["good", bad]},
    }[place]
    _assert_refused(client, IllegalPropertyError, lambda: verb(lane, handle, b"body", **options))


@pytest.mark.parametrize("properties", [7, "name=value", [("a", "b", "c")], {"a"}])
def test_properties_that_are_no_mapping_are_refused(
    client: StoreClient,
    lane: core.Lane,
    handle: QueueHandle,
    verb: Callable[..., object],
    properties: object,
) -> None:
    _assert_refused(
        client, IllegalPropertyError, lambda: verb(lane, handle, b"body", properties=properties)
    )


def test_properties_over_32767_bytes_are_refused_and_the_largest_are_taken(
    client: StoreClient, lane: core.Lane, handle: QueueHandle, verb: Callable[..., object]
) -> None:
    """32,767 is what the format's signed length can say; the unique key and the CRC are in it."""
    room = core.PROPERTIES_SIZE_MAX - CRC_ROOM - UNIQUE_KEY_ROOM - len("n\x01\x02")
    too_large = {"n": "v" * (room + 1)}
    _assert_refused(
        client,
        PropertiesTooLargeError,
        lambda: verb(lane, handle, b"body", properties=too_large),
    )
    status, _, queue_offset, *_ = lane.send(*handle, b"body", properties={"n": "v" * room})
    assert status == OK
    _, messages, _ = client.reader.read(*handle, queue_offset)
    assert messages[0].properties["n"] == "v" * room


def test_many_small_properties_are_counted_together(
    client: StoreClient, lane: core.Lane, handle: QueueHandle, verb: Callable[..., object]
) -> None:
    properties = {f"name{number}": "value" * 10 for number in range(600)}
    _assert_refused(
        client,
        PropertiesTooLargeError,
        lambda: verb(lane, handle, b"body", properties=properties),
    )


RESERVED = [
    "__CRC32#",
    "TRAN_MSG",
    "PGROUP",
    "REAL_TOPIC",
    "REAL_QID",
    "RETRY_TOPIC",
    "ORIGIN_MESSAGE_ID",
    "1ST_POP_TIME",
    "POP_CK",
]


@pytest.mark.parametrize("name", RESERVED)
def test_reserved_property_name_is_refused(
    client: StoreClient,
    lane: core.Lane,
    handle: QueueHandle,
    verb: Callable[..., object],
    name: str,
) -> None:
    error = _assert_refused(
        client,
        ReservedPropertyError,
        lambda: verb(lane, handle, b"body", properties={"mine": "1", name: "1"}),
    )
    assert name in str(error)


# ---- topics --------------------------------------------------------------------------------------

ILLEGAL_TOPICS = {
    "empty": "",
    "128 characters": "t" * 128,
    "blank": "my topic",
    "slash": "../../etc/passwd",
    "NUL": "topic\0",
    "separator": "topic\x01",
    "not ASCII": "späti",
    "newline": "topic\n",
}


@pytest.mark.parametrize("topic", ILLEGAL_TOPICS, ids=str)
def test_illegal_topic_gets_no_queue(client: StoreClient, store: StoreProcess, topic: str) -> None:
    queues = store.facts()["queues"]
    _assert_refused(client, IllegalTopicError, lambda: store.add_queue(ILLEGAL_TOPICS[topic]))
    assert store.facts()["queues"] == queues


# ---- handles that have ended ---------------------------------------------------------------------

LANE_CALLS: dict[str, Callable[[core.Lane, QueueHandle], object]] = {
    "put": lambda lane, handle: lane.put(*handle, b"x"),
    "put_many": lambda lane, handle: lane.put_many(*handle, [b"x"]),
    "send": lambda lane, handle: lane.send(*handle, b"x"),
    "loan": lambda lane, handle: lane.loan(*handle, 10),
    "wait": lambda lane, _: lane.wait(0),
    "wait_many": lambda lane, _: lane.wait_many(0, 1),
    "take": lambda lane, _: lane.take(0),
    "forget": lambda lane, _: lane.forget(0),
    "drain": lambda lane, _: lane.drain(),
    "unique_key": lambda lane, _: lane.unique_key(0),
}

READER_CALLS: dict[str, Callable[[core.Reader, QueueHandle], object]] = {
    "read": lambda reader, handle: reader.read(*handle, 0),
    "read_columns": lambda reader, handle: reader.read_columns(*handle, 0),
    "read_entries": lambda reader, _: reader.read_entries(bytes(24), 0),
    "message_at": lambda reader, _: reader.message_at(0),
    "watch": lambda reader, handle: reader.watch(*handle, 0),
    "unwatch": lambda reader, handle: reader.unwatch(handle.row),
    "wait": lambda reader, _: reader.wait(0.0),
    "claim": lambda reader, handle: reader.claim(0, 1, *handle, 0),
    "report": lambda reader, _: reader.report(0, 0),
    "drop_claim": lambda reader, _: reader.drop_claim(0),
    "visible_max": lambda reader, handle: reader.visible_max(handle.row),
    "max_queue_offset": lambda reader, handle: reader.max_queue_offset(handle.row),
    "min_queue_offset": lambda reader, handle: reader.min_queue_offset(handle.row),
}


def test_closed_lane_takes_nothing(store: StoreProcess, handle: QueueHandle) -> None:
    with StoreClient(store) as client:
        client.grant(handle)
        lane = client.lanes[0]
        lane.close()
        lane.close()  # closing twice is no mistake
        for name, call in LANE_CALLS.items():
            error = _assert_refused(client, ClosedError, lambda call=call: call(lane, handle))
            assert error, name
        assert lane.closed
        assert client.lanes[1].send(*handle, b"its neighbour is open")[0] == OK


def test_closed_reader_reads_nothing(store: StoreProcess, handle: QueueHandle) -> None:
    with StoreClient(store) as client:
        client.reader.close()
        client.reader.close()
        for call in READER_CALLS.values():
            _assert_refused(client, ClosedError, lambda call=call: call(client.reader, handle))


def test_closed_log_map_and_mapping_refuse(store: StoreProcess) -> None:
    with StoreClient(store) as client:
        log_map = core.LogMap(file_size=client.offer.file_size_bytes)
        log_map.close()
        log_map.close()
        for call in (
            lambda: log_map.add(0, client.fds["control"]),
            lambda: log_map.request_file(0),
            log_map.files,
        ):
            with pytest.raises(ClosedError):
                call()
        mapping = core.Mapping(client.fds["control"], 4096)
        mapping.close()
        mapping.close()
        for call in (lambda: mapping.load64(0), lambda: bytes(mapping), lambda: mapping.grow(8192)):
            with pytest.raises(ClosedError):
                call()


def test_lane_of_a_session_that_ended_says_so(store: StoreProcess, handle: QueueHandle) -> None:
    """The broker has closed the session: sends are answered at once, none is written."""
    with StoreClient(store) as client:
        client.grant(handle)
        lane = client.lanes[0]
        store.call("close_session", session=client.offer.session)
        before = _written(client)
        assert lane.send(*handle, b"too late", timeout=30.0)[0] == core.STATUS["CLOSED"][0]
        assert lane.ended
        assert _written(client)[-1] == before[-1]


# ---- handles of another process ------------------------------------------------------------------

FORKED = """
import os
import sys
from pathlib import Path

import tests.unit.test_bad_input as bad_input
from shmq.config import StoreConfig
from shmq.core import core
from shmq.errors import ForkError
from tests.support.store_process import StoreClient, StoreProcess

config = StoreConfig(
    store_path=Path(sys.argv[1]) / "store",
    runtime_path=Path(sys.argv[1]) / "run",
    cluster_name=sys.argv[2],
    commit_log_file_size_bytes=8 << 20,
)
with StoreProcess(config) as store, StoreClient(store) as client:
    handle = store.add_queue("orders")
    client.grant(handle)
    lane, reader = client.lanes[0], client.reader
    loan = client.lanes[1].loan(*handle, 100)
    calls = [lambda call=call: call(lane, handle) for call in bad_input.LANE_CALLS.values()]
    calls += [lambda call=call: call(reader, handle) for call in bad_input.READER_CALLS.values()]
    calls += [
        loan.commit,
        loan.abort,
        client.log_map.files,
        lambda: client.log_map.request_file(0),
        lambda: client.control.load64(0),
        lambda: bytes(client.control),
    ]
    before = lane.next_sequence
    child = os.fork()
    if child == 0:
        refused = 0
        for number, call in enumerate(calls):
            try:
                call()
            except ForkError as error:
                refused += error.code > 0 and bool(error.hint) and "fork" in str(error)
            except BaseException as error:
                print("call", number, "raised", repr(error))
            else:
                print("call", number, "went through")
        del loan, lane, reader
        sys.stdout.flush()
        os._exit(0 if refused == len(calls) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    loan.commit()
    assert lane.send(*handle, b"the parent goes on")[0] == 0
    assert lane.next_sequence == before + 1
    assert reader.read(*handle, 0)[0] == 0
    print("parent is well")
"""


def test_handles_are_refused_in_a_forked_child_and_go_on_in_the_parent(
    tmp_path: Path, cluster_name: str
) -> None:
    result = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore::DeprecationWarning",
            "-c",
            FORKED,
            str(tmp_path),
            cluster_name,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.stdout, result.returncode) == ("parent is well\n", 0), result.stderr


def test_fork_error_has_code_and_hint() -> None:
    assert (ForkError.code, ForkError.name) == (9403, "FORKED")
    assert "spawn" in ForkError.hint


# ---- interpreters --------------------------------------------------------------------------------


def _as_free_threaded(code: str) -> subprocess.CompletedProcess[str]:
    """Run code under an interpreter that says of itself that it has no GIL."""
    pretend = (
        "import sysconfig, sys, runpy\n"
        "real = sysconfig.get_config_var\n"
        "sysconfig.get_config_var = lambda n: 1 if n == 'Py_GIL_DISABLED' else real(n)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", pretend + code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_free_threaded_interpreter_is_refused_in_one_line_at_import_and_at_build() -> None:
    imported = _as_free_threaded("import shmq")
    assert imported.returncode == 1
    last = imported.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert "free-threaded" in last
    built = _as_free_threaded(
        "sys.argv = ['setup.py', 'build_ext']\nrunpy.run_path('setup.py', run_name='__main__')"
    )
    assert built.returncode == 1
    lines = built.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert "free-threaded" in lines[0]
