"""The serving end: its state machine, its bounds, its order, and who is noticed dead."""

import asyncio
import os
import resource
import select
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from shmq.errors import (
    ClosedError,
    LayoutVersionError,
    ProtocolError,
    QuotaError,
    RequestTimeoutError,
    ServiceNotAvailableError,
    ShmqError,
    TopicNotExistError,
)
from shmq.remoting.client import Client
from shmq.remoting.codes import RequestCode, ResponseCode
from shmq.remoting.command import Command, FrameParser, encode, error_of, hello, response_to
from shmq.remoting.loop_thread import LoopThread
from shmq.remoting.runtime_folder import RuntimeFolder
from shmq.remoting.server import Connection, Processor, Server, ServerLimits, State
from tests.support.clock import SteppedClock
from tests.unit.remoting.conftest import NAME, Serve, fd_count
from tests.unit.shm import children

ECHO = 105
BAD = 106


def echo(_connection: Connection, command: Command) -> Command:
    return response_to(command, ext_fields=command.ext_fields, body=command.body)


class Raw:
    """A peer that sends what it likes."""

    def __init__(self, folder: RuntimeFolder) -> None:
        self.sock = folder.connect(NAME, timeout_s=10)
        self.sock.settimeout(30)
        self._parser = FrameParser(frame_bytes_max=8 << 20)

    def send(self, *commands: Command) -> None:
        self.sock.sendall(b"".join(map(encode, commands)))

    def receive(self) -> Command | None:
        """The next command of the server; None once it has closed."""
        while (command := self._parser.next()) is None:
            try:
                data = self.sock.recv(1 << 20)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._parser.feed(data)
        return command

    def receive_end(self) -> ShmqError | None:
        """Why the server closed, in its own words; None if it said nothing."""
        last = None
        while (command := self.receive()) is not None:
            last = error_of(command)
        self.sock.close()
        return last

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def connected(folder: RuntimeFolder) -> Iterator[Raw]:
    with Raw(folder) as raw:
        raw.send(hello("test"))
        response = raw.receive()
        assert response is not None
        assert response.code == ResponseCode.SUCCESS
        yield raw


def on_loop(loop_thread: LoopThread, action: object) -> object:
    async def run() -> object:
        assert callable(action)
        return action()

    return loop_thread.run(run(), timeout_s=10)


def settle(loop_thread: LoopThread) -> None:
    """Return once the server has done all of what its peers can see the beginning of."""
    on_loop(loop_thread, lambda: None)


# ---- the state machine ---------------------------------------------------------------------------


def test_hello_is_answered_with_who_serves(serve: Serve, folder: RuntimeFolder) -> None:
    serve()
    with Raw(folder) as raw:
        raw.send(hello("test"))
        response = raw.receive()
        assert response is not None
        assert response.ext_fields == {"version": 1, "role": "test", "name": NAME}


@pytest.mark.parametrize(
    ("first", "error"),
    [
        (Command(ECHO), ProtocolError),
        (Command(0, is_response=True), ProtocolError),
        (Command(RequestCode.HELLO, {"version": 1, "role": "x"}, is_oneway=True), ProtocolError),
        (Command(RequestCode.HELLO, {"version": 2, "role": "x"}), LayoutVersionError),
        (Command(RequestCode.HELLO, {"version": 1, "role": "two words"}), ShmqError),
        (Command(RequestCode.HELLO, {"version": "1", "role": "x"}), ShmqError),
        (Command(RequestCode.HELLO), ShmqError),
    ],
)
def test_connection_that_does_not_begin_with_our_hello_is_ended_with_the_reason(
    serve: Serve,
    folder: RuntimeFolder,
    loop_thread: LoopThread,
    first: Command,
    error: type[ShmqError],
) -> None:
    server = serve({ECHO: echo})
    raw = Raw(folder)
    raw.send(first, Command(ECHO))
    assert isinstance(raw.receive_end(), error)
    settle(loop_thread)
    assert not server.connections


@pytest.mark.parametrize(
    "second", [hello("again"), Command(0, is_response=True)], ids=["HELLO", "response"]
)
def test_command_that_is_wrong_in_its_state_ends_the_connection(
    serve: Serve, folder: RuntimeFolder, second: Command
) -> None:
    serve({ECHO: echo})
    with connected(folder) as raw:
        raw.send(second, Command(ECHO))
        assert isinstance(raw.receive_end(), ProtocolError)


def test_garbage_ends_its_connection_and_no_other(serve: Serve, folder: RuntimeFolder) -> None:
    serve({ECHO: echo})
    with connected(folder) as well, connected(folder) as raw:
        raw.sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert isinstance(raw.receive_end(), ProtocolError)
        well.send(Command(ECHO, {"a": 1}))
        response = well.receive()
        assert response is not None
        assert response.ext_fields == {"a": 1}


def test_unknown_code_is_told_and_harmless(serve: Serve, folder: RuntimeFolder) -> None:
    serve({ECHO: echo})
    with connected(folder) as raw:
        raw.send(Command(777, opaque=1), Command(777, is_oneway=True), Command(ECHO, opaque=2))
        first, second = raw.receive(), raw.receive()
        assert first is not None
        assert second is not None
        assert (first.code, first.opaque) == (ResponseCode.REQUEST_CODE_NOT_SUPPORTED, 1)
        assert first.remark == "request type 777 not supported"
        assert second.opaque == 2


def test_error_of_a_handler_is_the_answer_and_an_unforeseen_one_is_not_told(
    serve: Serve, folder: RuntimeFolder, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(_connection: Connection, _command: Command) -> Command:
        raise TopicNotExistError("no t")

    async def broken(_connection: Connection, _command: Command) -> Command:
        raise KeyError("a secret")

    serve({ECHO: missing, BAD: broken})
    with connected(folder) as raw:
        raw.send(Command(ECHO), Command(BAD), Command(ECHO, is_oneway=True), Command(ECHO))
        errors = [error_of(raw.receive() or Command(0)) for _ in range(3)]
    assert [type(error) for error in errors] == [TopicNotExistError, ShmqError, TopicNotExistError]
    assert str(errors[1]) == "GET_BROKER_CLUSTER_INFO: KeyError in a server"
    assert "a secret" in caplog.text


# ---- order ---------------------------------------------------------------------------------------


def test_requests_of_one_connection_are_handled_one_after_the_other(
    serve: Serve, folder: RuntimeFolder, loop_thread: LoopThread
) -> None:
    begun: list[object] = []
    has_begun = threading.Event()
    go_on = asyncio.Event()

    async def slow(_connection: Connection, command: Command) -> Command:
        begun.append(command.opaque)
        has_begun.set()
        await go_on.wait()
        return response_to(command)

    serve({BAD: slow, ECHO: echo})
    with connected(folder) as raw, connected(folder) as other:
        raw.send(Command(BAD, opaque=1), Command(ECHO, opaque=2), Command(BAD, opaque=3))
        assert has_begun.wait(30)
        other.send(Command(ECHO))
        assert other.receive() is not None  # others do not wait
        assert begun == [1]
        loop_thread.loop.call_soon_threadsafe(go_on.set)
        answered = [(raw.receive() or Command(0)).opaque for _ in range(3)]
    assert answered == [1, 2, 3]


def test_concurrent_processor_lets_later_requests_pass(
    serve: Serve, folder: RuntimeFolder, loop_thread: LoopThread
) -> None:
    go_on = asyncio.Event()

    async def poll(_connection: Connection, command: Command) -> None:
        await go_on.wait()

    serve({BAD: Processor(handler=poll, is_concurrent=True), ECHO: echo})
    with connected(folder) as raw:
        raw.send(Command(BAD, opaque=1), Command(ECHO, opaque=2))
        first = raw.receive()
        loop_thread.loop.call_soon_threadsafe(go_on.set)
        second = raw.receive()
    assert first is not None
    assert second is not None
    assert (first.opaque, second.opaque, second.code) == (2, 1, 0)


def test_end_is_noticed_while_a_request_is_still_being_handled(
    serve: Serve, folder: RuntimeFolder, loop_thread: LoopThread
) -> None:
    ended = threading.Event()
    never = asyncio.Event()

    async def slow(connection: Connection, _command: Command) -> None:
        connection.on_close(lambda _connection, _error: ended.set())
        await never.wait()

    server = serve({BAD: slow})
    with connected(folder) as raw:
        raw.send(Command(BAD))
        raw.close()
        assert ended.wait(30)
    assert not server.connections
    loop_thread.loop.call_soon_threadsafe(never.set)


# ---- death ---------------------------------------------------------------------------------------

CONNECT_AND_SAY_HELLO = """
import os, pathlib, subprocess, sys
from shmq.remoting.client import Client
from shmq.remoting.runtime_folder import RuntimeFolder
client = Client(RuntimeFolder.open(pathlib.Path(sys.argv[1])), sys.argv[2], role="x", timeout_s=10)
if sys.argv[3] == "leave a copy":
    os.set_inheritable(client._sock.fileno(), True)
    none = subprocess.DEVNULL
    other = subprocess.Popen(["sleep", "60"], close_fds=False, stdin=none, stdout=none, stderr=none)
    print(other.pid, flush=True)
else:
    print(0, flush=True)
input()
"""


@pytest.mark.parametrize("how", ["alone", "leave a copy"])
def test_killed_process_is_gone_at_once_even_if_another_has_its_socket(
    serve: Serve, folder: RuntimeFolder, loop_thread: LoopThread, how: str
) -> None:
    ended: list[str] = []
    is_ended = threading.Event()

    def note(_connection: Connection, error: ShmqError) -> None:
        ended.append(str(error))
        is_ended.set()

    server = serve()
    child = children.start(CONNECT_AND_SAY_HELLO, folder.path, NAME, how)
    assert child.stdout is not None
    other_pid = int(child.stdout.readline())
    (connection,) = server.connections
    assert connection.identity.pid == child.pid
    on_loop(loop_thread, lambda: connection.on_close(note))
    child.kill()
    child.communicate()
    assert is_ended.wait(30)
    assert connection.state is State.CLOSED
    if other_pid:
        assert ended == [f"the process of pid {child.pid} of uid {os.geteuid()} has ended"]
        os.kill(other_pid, signal.SIGKILL)


def test_what_a_process_sent_before_it_died_is_handled(
    serve: Serve, folder: RuntimeFolder, loop_thread: LoopThread
) -> None:
    """One-way commands and then the end, all before the server looked; more than one receive."""
    got: list[object] = []
    is_ended = threading.Event()

    def note(connection: Connection, command: Command) -> None:
        got.append(command.ext_fields["n"])
        connection.on_close(lambda _connection, _error: is_ended.set())

    serve({ECHO: note})
    is_looking, looks = threading.Event(), threading.Event()

    def stop_looking() -> None:
        is_looking.set()
        looks.wait()

    loop_thread.loop.call_soon_threadsafe(stop_looking)
    is_looking.wait()
    children.run(
        """
        import pathlib, sys
        from shmq.remoting.command import Command, encode, hello
        from shmq.remoting.runtime_folder import RuntimeFolder
        sock = RuntimeFolder.open(pathlib.Path(sys.argv[1])).connect(sys.argv[2], timeout_s=10)
        sock.sendall(encode(hello("x")))
        for n in range(7):
            sock.sendall(encode(Command(105, {"n": n}, bytes(20_000), is_oneway=True)))
        """,
        folder.path,
        NAME,
    )
    looks.set()
    assert is_ended.wait(30)
    assert got == list(range(7))


def test_callback_on_a_closed_connection_is_called_at_once(
    serve: Serve, folder: RuntimeFolder, loop_thread: LoopThread
) -> None:
    server = serve()
    reasons: list[str] = []
    with connected(folder):
        (connection,) = server.connections
        on_loop(loop_thread, lambda: connection.close(ClosedError("enough")))
    on_loop(loop_thread, lambda: connection.on_close(lambda _c, error: reasons.append(str(error))))
    assert reasons == ["enough"]
    assert on_loop(loop_thread, lambda: connection.notify(Command(40))) is False


def test_process_that_connected_can_be_killed(
    serve: Serve, folder: RuntimeFolder, loop_thread: LoopThread
) -> None:
    server = serve()
    child = children.start(CONNECT_AND_SAY_HELLO, folder.path, NAME, "alone")
    assert child.stdout is not None
    child.stdout.readline()
    (connection,) = server.connections
    assert on_loop(loop_thread, connection.kill_peer) is True
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert on_loop(loop_thread, connection.kill_peer) is False


# ---- bounds --------------------------------------------------------------------------------------


def test_silence_before_hello_is_bounded(serve: Serve, folder: RuntimeFolder) -> None:
    clock = SteppedClock()
    server = serve({ECHO: echo}, clock=clock)
    with Raw(folder) as raw, connected(folder) as well:
        raw.sock.sendall(encode(hello("slow"))[:5])
        clock.advance(ms=server.limits.handshake_timeout_ms - 1)
        well.send(Command(ECHO))
        assert well.receive() is not None
        clock.advance(ms=1)
        assert isinstance(raw.receive_end(), RequestTimeoutError)
        well.send(Command(ECHO))
        assert well.receive() is not None


def test_frame_that_trickles_in_is_bounded(serve: Serve, folder: RuntimeFolder) -> None:
    clock = SteppedClock()
    server = serve({ECHO: echo}, clock=clock)
    data = encode(Command(ECHO, body=bytes(50)))
    with connected(folder) as raw, connected(folder) as well:
        for byte in data:  # in time: harmless
            raw.sock.sendall(bytes([byte]))
        assert raw.receive() is not None
        raw.sock.sendall(data[:30])
        well.send(Command(ECHO))
        assert well.receive() is not None
        clock.advance(ms=server.limits.frame_timeout_ms)
        raw.sock.sendall(data[30:31])
        assert isinstance(raw.receive_end(), RequestTimeoutError)
        clock.advance(ms=10 * server.limits.frame_timeout_ms)  # idle is no crime
        well.send(Command(ECHO))
        assert well.receive() is not None


def test_connections_of_one_uid_are_bounded_and_the_reason_is_told(
    serve: Serve, folder: RuntimeFolder
) -> None:
    server = serve(limits=ServerLimits(connection_count_max_per_uid=3))
    with connected(folder), connected(folder), connected(folder):
        with pytest.raises(QuotaError, match="has 3 connections; wanted at most 3"):
            Client(folder, NAME, role="x", timeout_s=10)
        assert len(server.connections) == 3


def test_connections_in_all_are_bounded(
    serve: Serve, folder: RuntimeFolder, loop_thread: LoopThread
) -> None:
    serve(limits=ServerLimits(connection_count_max=2))
    with connected(folder):
        with connected(folder), pytest.raises(QuotaError, match="2 connections; wanted at most 2"):
            Client(folder, NAME, role="x", timeout_s=10)
        settle(loop_thread)
        with connected(folder):  # room again
            pass


def test_peer_that_does_not_read_is_not_served_on_and_nothing_piles_up(
    serve: Serve, folder: RuntimeFolder
) -> None:
    """Requests stay in the kernel while a megabyte of answers waits; then all are answered."""
    handled = []
    has_begun = threading.Event()

    def big(_connection: Connection, command: Command) -> Command:
        handled.append(command.opaque)
        has_begun.set()
        return response_to(command, body=bytes(300_000))

    serve({ECHO: echo, BAD: big}, limits=ServerLimits(outstanding_bytes_max=1_000_000))
    with connected(folder) as raw, connected(folder) as well:
        raw.send(*(Command(BAD, opaque=number) for number in range(50)))
        assert has_begun.wait(30)
        for _ in range(10):
            well.send(Command(ECHO))
            assert well.receive() is not None
        assert 3 <= len(handled) < 10
        got = [(raw.receive() or Command(0)).opaque for _ in range(50)]
    assert got == handled == list(range(50))


def test_peer_that_does_not_read_notices_is_cut_off(
    serve: Serve, folder: RuntimeFolder, loop_thread: LoopThread
) -> None:
    server = serve(limits=ServerLimits(outstanding_bytes_max=100_000))
    with connected(folder):
        (connection,) = server.connections

        def flood() -> int:
            count = 0
            while connection.notify(Command(40, body=bytes(10_000))):
                count += 1
                assert count < 1000
            return count

        on_loop(loop_thread, flood)
        assert connection.is_closed


def test_bytes_kept_for_one_uid_are_bounded(serve: Serve, folder: RuntimeFolder) -> None:
    serve({ECHO: echo}, limits=ServerLimits(kept_bytes_max_per_uid=1_000_000))
    half = encode(Command(ECHO, body=bytes(900_000)))[:600_000]
    with connected(folder) as first, connected(folder) as second, connected(folder) as well:
        for raw in (first, second):
            try:
                raw.sock.sendall(half)
            except BrokenPipeError:  # cut off already
                pass
        ready, _, _ = select.select([first.sock, second.sock], [], [], 30)
        assert len(ready) == 1
        loser = first if first.sock in ready else second
        assert isinstance(loser.receive_end(), QuotaError)
        well.send(Command(ECHO))
        assert well.receive() is not None


@pytest.mark.parametrize("free_count", [0, 1, 2])
def test_server_without_descriptors_to_give_refuses_and_recovers(
    serve: Serve, folder: RuntimeFolder, caplog: pytest.LogCaptureFixture, free_count: int
) -> None:
    """F15: nothing crashes or leaks, nothing spins, those who are connected are served."""
    serve({ECHO: echo})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    child = children.start(
        """
        import pathlib, sys
        from shmq.remoting.runtime_folder import RuntimeFolder
        folder = RuntimeFolder.open(pathlib.Path(sys.argv[1]))
        print("ready", flush=True)
        input()
        socks = [folder.connect(sys.argv[2], timeout_s=30) for _ in range(20)]
        for sock in socks:
            sock.setblocking(True)
            sock.recv(100)
        print("all refused", flush=True)
        """,
        folder.path,
        NAME,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    taken: list[int] = []
    with connected(folder) as well:
        resource.setrlimit(resource.RLIMIT_NOFILE, (fd_count() + 10, hard))
        try:
            while (fd := _one_more_fd()) is not None:
                taken.append(fd)
            for _ in range(free_count):
                os.close(taken.pop())
            child.stdin.write("\n")
            child.stdin.flush()
            assert child.stdout.readline() == "all refused\n"
            well.send(Command(ECHO))
            assert well.receive() is not None
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in taken:
                os.close(fd)
        child.communicate()
        with connected(folder):
            pass
    assert "LimitNOFILE=" in caplog.text or "Too many open files" in caplog.text


def _one_more_fd() -> int | None:
    try:
        return os.open("/dev/null", os.O_RDONLY)
    except OSError:
        return None


# ---- descriptors ---------------------------------------------------------------------------------

TAKE = 9101


def take(_connection: Connection, command: Command) -> Command:
    """Says what the descriptors are, by reading them."""
    found = b"".join(os.read(fd, 10) for fd in command.fds)
    return response_to(command, body=found)


def pipe_with(data: bytes) -> int:
    readable, writable = os.pipe()
    os.write(writable, data)
    os.close(writable)
    return readable


def test_descriptors_travel_both_ways_and_none_is_left_open(
    serve: Serve, folder: RuntimeFolder, loop_thread: LoopThread
) -> None:
    def give(_connection: Connection, command: Command) -> Command:
        return response_to(command, fds=[pipe_with(b"one"), pipe_with(b"two")])

    serve({TAKE: Processor(handler=take, fd_count_max=2), ECHO: give})
    with Client(folder, NAME, role="x", timeout_s=10) as client:
        before = fd_count()
        request = Command(TAKE, fds=[pipe_with(b"uno"), pipe_with(b"due")])
        assert client.call(request, timeout_s=30).body == b"unodue"
        response = client.call(Command(ECHO), timeout_s=30, fd_count_max=2)
        fds = response.take_fds()
        assert [os.read(fd, 10) for fd in fds] == [b"one", b"two"]
        assert not any(map(os.get_inheritable, fds))
        for fd in fds:
            os.close(fd)
        settle(loop_thread)
        assert fd_count() == before


def test_descriptors_that_never_left_are_closed_with_the_connection(
    serve: Serve, folder: RuntimeFolder, loop_thread: LoopThread
) -> None:
    """The peer asks for them again and again, reads nothing and goes."""
    given = []

    def give(_connection: Connection, command: Command) -> Command:
        given.append(pipe_with(b"x"))
        return response_to(command, fds=given[-1:])

    serve({ECHO: give}, limits=ServerLimits(outstanding_bytes_max=10_000))
    before = fd_count()
    with connected(folder) as raw:
        raw.sock.settimeout(0.2)
        try:
            while True:
                raw.send(Command(ECHO))
        except TimeoutError:  # the server handles no more of them
            pass
        assert fd_count() > before + 10
    settle(loop_thread)
    settle(loop_thread)
    assert fd_count() == before
    assert len(given) > 10


@pytest.mark.parametrize("where", ["wrong request", "too many", "not announced", "refused since"])
def test_descriptors_that_may_not_come_are_closed_and_end_the_connection(
    serve: Serve, folder: RuntimeFolder, loop_thread: LoopThread, where: str
) -> None:
    server = serve({TAKE: Processor(handler=take, fd_count_max=1), ECHO: echo})
    with connected(folder) as raw:
        before = fd_count()
        sent = [os.open("/dev/null", os.O_RDONLY) for _ in range(2 if where == "too many" else 1)]
        announced = [] if where == "not announced" else sent
        if where == "refused since":
            (connection,) = server.connections
            on_loop(loop_thread, connection.refuse_fds)
        command = Command(ECHO if where == "wrong request" else TAKE, fds=announced)
        socket.send_fds(raw.sock, [encode(command)], sent)
        for fd in sent:
            os.close(fd)
        assert isinstance(raw.receive_end(), ProtocolError)
        settle(loop_thread)
        # The connection's socket, our end of it and the server's pidfd are gone with it.
        assert fd_count() == before - 3


def test_server_that_takes_no_descriptors_never_has_any(
    serve: Serve, folder: RuntimeFolder
) -> None:
    serve({ECHO: echo})
    with connected(folder) as raw, connected(folder) as well:
        before = fd_count()
        try:
            socket.send_fds(raw.sock, [encode(Command(ECHO))], [0] * 250)
        except PermissionError:  # Linux 6.16: refused to the sender
            raw.close()
            before -= 1
        else:
            assert isinstance(raw.receive_end(), ProtocolError)
            before -= 1
        well.send(Command(ECHO))
        assert well.receive() is not None
        well.send(Command(ECHO))
        assert well.receive() is not None
        assert fd_count() == before - 2


# ---- stopping ------------------------------------------------------------------------------------


def test_stop_finishes_what_is_being_handled_and_says_why(
    serve: Serve, folder: RuntimeFolder, loop_thread: LoopThread
) -> None:
    go_on = asyncio.Event()
    has_begun = threading.Event()

    async def slow(_connection: Connection, command: Command) -> Command:
        has_begun.set()
        await go_on.wait()
        return response_to(command, body=b"done")

    server = serve({BAD: slow})
    with connected(folder) as raw:
        raw.send(Command(BAD))
        assert has_begun.wait(30)

        async def stop() -> None:
            stopping = asyncio.ensure_future(server.stop(timeout_s=30))
            await asyncio.sleep(0)
            go_on.set()
            await stopping

        loop_thread.run(stop(), timeout_s=30)
        response = raw.receive()
        assert response is not None
        assert response.body == b"done"
        assert isinstance(raw.receive_end(), ServiceNotAvailableError)
    with pytest.raises(ServiceNotAvailableError):
        folder.connect(NAME, timeout_s=1)


def test_stop_cancels_what_takes_too_long(
    serve: Serve, folder: RuntimeFolder, loop_thread: LoopThread
) -> None:
    has_begun = threading.Event()

    async def endless(_connection: Connection, command: Command) -> None:
        has_begun.set()
        await asyncio.Event().wait()

    server = serve({TAKE: Processor(handler=endless, fd_count_max=1)})
    with connected(folder) as raw:
        fd = os.open("/dev/null", os.O_RDONLY)
        socket.send_fds(raw.sock, [encode(Command(TAKE, fds=[fd]))], [fd])
        os.close(fd)
        assert has_begun.wait(30)
        loop_thread.run(server.stop(timeout_s=0.01), timeout_s=30)
        assert isinstance(raw.receive_end(), ServiceNotAvailableError)


def test_server_is_made_in_its_loop(folder: RuntimeFolder) -> None:
    with folder.listen(NAME) as listener, pytest.raises(RuntimeError, match="no running event"):
        Server(listener, {}, role="x")
