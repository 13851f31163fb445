"""The calling ends, for threads and for event loops: answers, waiting, and how it ends."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from shmq.errors import (
    ClosedError,
    ForkError,
    QuotaError,
    RequestTimeoutError,
    ServiceNotAvailableError,
    ShmqError,
    TopicNotExistError,
)
from shmq.remoting.aio_client import AsyncClient
from shmq.remoting.client import Client
from shmq.remoting.codes import RequestCode, ResponseCode
from shmq.remoting.command import Command, response_to
from shmq.remoting.loop_thread import LoopThread
from shmq.remoting.runtime_folder import RuntimeFolder
from shmq.remoting.server import Connection, Processor
from tests.unit.remoting.conftest import NAME, Serve, fd_count
from tests.unit.remoting.test_server import echo, on_loop, pipe_with, settle
from tests.unit.shm import children

ECHO, MISSING, WAIT, NOTIFY, GIVE, FALL = 105, 106, 107, 108, 109, 110


class Waiting:
    """Handlers that wait until the test lets them go on."""

    def __init__(self, loop_thread: LoopThread) -> None:
        self._go_on = asyncio.Event()
        self._loop_thread = loop_thread
        self.begun = threading.Semaphore(0)

    async def __call__(self, _connection: Connection, command: Command) -> Command:
        self.begun.release()
        await self._go_on.wait()
        return response_to(command, ext_fields=command.ext_fields)

    def go_on(self) -> None:
        self._loop_thread.loop.call_soon_threadsafe(self._go_on.set)


def missing(_connection: Connection, _command: Command) -> Command:
    raise TopicNotExistError("no t", hint="make it")


def notify(connection: Connection, command: Command) -> None:
    count = command.ext_fields["count"]
    assert isinstance(count, int)
    for number in range(count):
        connection.notify(Command(RequestCode.NOTIFY_CONSUMER_IDS_CHANGED, {"n": number}))


def give(_connection: Connection, command: Command) -> Command:
    return response_to(command, fds=[pipe_with(b"one"), pipe_with(b"two")])


def fall(connection: Connection, _command: Command) -> None:
    connection.close(QuotaError("you have had enough"))


TABLE = {ECHO: echo, MISSING: missing, NOTIFY: notify, GIVE: give, FALL: fall}


@pytest.fixture
def client(serve: Serve, folder: RuntimeFolder, loop_thread: LoopThread) -> Iterator[Client]:
    serve(TABLE)
    with Client(folder, NAME, role="test", timeout_s=10) as made:
        yield made
    settle(loop_thread)


# ---- threads -------------------------------------------------------------------------------------


def test_answer_is_the_one_to_the_question(client: Client) -> None:
    response = client.call(Command(ECHO, {"a": "ä", "n": 5}, b"\x00body"), timeout_s=30)
    assert (response.ext_fields, response.body) == ({"a": "ä", "n": 5}, b"\x00body")
    assert client.identity.pid == os.getpid()


def test_error_is_raised_as_its_class_or_given_back_as_a_response(client: Client) -> None:
    with pytest.raises(TopicNotExistError, match="^no t$") as caught:
        client.call(Command(MISSING), timeout_s=30)
    assert caught.value.hint == "make it"
    assert client.invoke(Command(MISSING), timeout_s=30).code == ResponseCode.TOPIC_NOT_EXIST
    assert client.invoke(Command(777), timeout_s=30).code == 3


def test_many_threads_get_their_own_answers(client: Client) -> None:
    def ask(thread: int) -> None:
        for number in range(100):
            fields = {"thread": thread, "n": number}
            response = client.call(Command(ECHO, fields, bytes(number)), timeout_s=60)
            assert response.ext_fields == fields
            assert len(response.body) == number

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(16)))


def test_thread_that_waits_long_does_not_keep_others_from_their_answers(
    serve: Serve, folder: RuntimeFolder, loop_thread: LoopThread
) -> None:
    """The one that waits is the one that reads for all; when it leaves, another reads."""
    waiting = Waiting(loop_thread)
    serve({WAIT: Processor(handler=waiting, is_concurrent=True), ECHO: echo})
    with Client(folder, NAME, role="x", timeout_s=10) as client, ThreadPoolExecutor(3) as pool:
        first = pool.submit(client.call, Command(WAIT, {"n": 1}), timeout_s=60)
        waiting.begun.acquire()
        short = pool.submit(client.call, Command(WAIT, {"n": 2}), timeout_s=0.05)
        waiting.begun.acquire()
        assert client.call(Command(ECHO, {"n": 3}), timeout_s=60).ext_fields == {"n": 3}
        with pytest.raises(RequestTimeoutError, match="no answer within 0.05 s"):
            short.result()
        assert client.call(Command(ECHO, {"n": 4}), timeout_s=60).ext_fields == {"n": 4}
        waiting.go_on()
        assert first.result().ext_fields == {"n": 1}


def test_reader_that_leaves_hands_its_turn_on(
    serve: Serve, folder: RuntimeFolder, loop_thread: LoopThread
) -> None:
    """The first to wait reads; it gives up, and the second must not sleep on."""
    waiting = Waiting(loop_thread)
    serve({WAIT: Processor(handler=waiting, is_concurrent=True)})
    with Client(folder, NAME, role="x", timeout_s=10) as client, ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.call, Command(WAIT, {"n": 1}), timeout_s=1)
        waiting.begun.acquire()
        second = pool.submit(client.call, Command(WAIT, {"n": 2}), timeout_s=60)
        waiting.begun.acquire()
        with pytest.raises(RequestTimeoutError):
            first.result()
        waiting.go_on()
        assert second.result().ext_fields == {"n": 2}


def test_late_answer_is_dropped_with_its_descriptors(
    serve: Serve, folder: RuntimeFolder, loop_thread: LoopThread
) -> None:
    go_on = asyncio.Event()

    async def late(_connection: Connection, command: Command) -> Command:
        await go_on.wait()
        return response_to(command, fds=[pipe_with(b"late")])

    serve({WAIT: late, ECHO: echo})
    with Client(folder, NAME, role="x", timeout_s=10) as client:
        before = fd_count()
        with pytest.raises(RequestTimeoutError):
            client.call(Command(WAIT), timeout_s=0.01, fd_count_max=1)
        loop_thread.loop.call_soon_threadsafe(go_on.set)
        client.call(Command(ECHO), timeout_s=30)
        settle(loop_thread)
        assert fd_count() == before


def test_descriptors_that_were_not_asked_for_end_the_connection(
    client: Client, loop_thread: LoopThread
) -> None:
    before = fd_count()
    with pytest.raises(ShmqError, match="descriptors"):
        client.call(Command(GIVE), timeout_s=30)
    assert client.is_closed
    settle(loop_thread)
    assert fd_count() == before - 2  # the server's socket and its pidfd


@pytest.mark.parametrize("has_reader", [False, True])
def test_reason_that_the_server_gives_is_what_the_caller_gets(
    serve: Serve, folder: RuntimeFolder, has_reader: bool
) -> None:
    serve(TABLE)
    on_notify: Callable[[Command], None] | None = (lambda _command: None) if has_reader else None
    with Client(folder, NAME, role="x", timeout_s=10, on_notify=on_notify) as client:
        for _ in range(3):
            with pytest.raises(QuotaError, match="^you have had enough$"):
                client.call(Command(FALL), timeout_s=30)
        assert client.is_closed


def test_reason_is_heard_even_if_sending_fails_first(
    serve: Serve, folder: RuntimeFolder, loop_thread: LoopThread
) -> None:
    server = serve(TABLE)
    with Client(folder, NAME, role="x", timeout_s=10) as client:
        (connection,) = server.connections
        on_loop(loop_thread, lambda: connection.close(QuotaError("enough")))
        with pytest.raises(QuotaError, match="^enough$"):
            client.send_oneway(Command(ECHO), timeout_s=30)


def test_server_that_is_killed_is_noticed_by_whoever_waits(folder: RuntimeFolder) -> None:
    child = children.start(
        """
        import asyncio, pathlib, sys
        from shmq.remoting.runtime_folder import RuntimeFolder
        from shmq.remoting.server import Processor, Server

        async def wait(connection, command):
            print("waits", flush=True)
            await asyncio.Event().wait()

        async def main():
            listener = RuntimeFolder.open(pathlib.Path(sys.argv[1])).listen(sys.argv[2])
            Server(listener, {107: Processor(handler=wait)}, role="x")
            print("listens", flush=True)
            await asyncio.Event().wait()

        asyncio.run(main())
        """,
        folder.path,
        NAME,
    )
    assert child.stdout is not None
    child.stdout.readline()
    with Client(folder, NAME, role="x", timeout_s=30) as client, ThreadPoolExecutor(1) as pool:
        assert client.identity.pid == child.pid
        waiting = pool.submit(client.call, Command(WAIT), timeout_s=60)
        child.stdout.readline()
        child.kill()
        with pytest.raises(ClosedError, match="the server closed the connection"):
            waiting.result()
    child.communicate()


def test_stopped_server_is_a_timeout(folder: RuntimeFolder) -> None:
    child = children.start(
        """
        import pathlib, sys
        from shmq.remoting.runtime_folder import RuntimeFolder
        listener = RuntimeFolder.open(pathlib.Path(sys.argv[1])).listen(sys.argv[2])
        print("listens", flush=True)
        input()
        """,
        folder.path,
        NAME,
    )
    assert child.stdout is not None
    child.stdout.readline()
    os.kill(child.pid, signal.SIGSTOP)
    with pytest.raises(RequestTimeoutError, match="HELLO to namesrv-t: no answer"):
        Client(folder, NAME, role="x", timeout_s=0.05)
    child.kill()
    child.communicate()


def test_closed_client_answers_nobody(client: Client) -> None:
    client.close()
    client.close()
    with pytest.raises(ClosedError, match="was closed here"):
        client.call(Command(ECHO), timeout_s=30)
    fd = pipe_with(b"")
    with pytest.raises(ClosedError):
        client.send_oneway(Command(ECHO, fds=[fd]), timeout_s=30)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_close_wakes_whoever_waits(
    serve: Serve, folder: RuntimeFolder, loop_thread: LoopThread
) -> None:
    waiting = Waiting(loop_thread)
    serve({WAIT: Processor(handler=waiting, is_concurrent=True)})
    with Client(folder, NAME, role="x", timeout_s=10) as client, ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(client.call, Command(WAIT), timeout_s=60) for _ in range(2)]
        for _ in calls:
            waiting.begun.acquire()
        client.close()
        for call in calls:
            with pytest.raises(ClosedError, match="was closed here"):
                call.result()
    waiting.go_on()


def test_forked_child_may_not_use_it_and_does_the_parent_no_harm(client: Client) -> None:
    pid = os.fork()
    if not pid:
        status = 1
        try:
            client.call(Command(ECHO), timeout_s=1)
        except ForkError:
            client.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert client.call(Command(ECHO, {"a": 1}), timeout_s=30).ext_fields == {"a": 1}


def test_nobody_listening_is_told(folder: RuntimeFolder) -> None:
    with pytest.raises(ServiceNotAvailableError, match="connect to namesrv-t in .*nothing listens"):
        Client(folder, NAME, role="x", timeout_s=1)


# ---- notices -------------------------------------------------------------------------------------


def test_notices_come_in_order_in_their_own_thread(serve: Serve, folder: RuntimeFolder) -> None:
    serve(TABLE)
    got: list[object] = []
    threads = set()
    all_came = threading.Event()

    def note(command: Command) -> None:
        got.append(command.ext_fields["n"])
        threads.add(threading.current_thread())
        if len(got) == 100:
            all_came.set()
        if len(got) == 5:
            raise ValueError("a bad notice")

    with Client(folder, NAME, role="x", timeout_s=10, on_notify=note) as client:
        client.call(Command(NOTIFY, {"count": 100}), timeout_s=30)
        assert all_came.wait(30)
        assert got == list(range(100))
        assert threading.current_thread() not in threads
        assert len(threads) == 1
        assert client.call(Command(ECHO), timeout_s=30).code == 0


def test_client_may_be_closed_by_a_notice(serve: Serve, folder: RuntimeFolder) -> None:
    serve(TABLE)
    is_closed = threading.Event()

    def close(_command: Command) -> None:
        client.close()
        is_closed.set()

    client = Client(folder, NAME, role="x", timeout_s=10, on_notify=close)
    try:
        client.call(Command(NOTIFY, {"count": 1}), timeout_s=30)
    except ClosedError:
        pass
    assert is_closed.wait(30)
    reader = client._reader
    assert reader is not None
    reader.join()


def test_notices_that_nobody_wants_are_passed_over(client: Client) -> None:
    client.call(Command(NOTIFY, {"count": 1000}), timeout_s=30)
    assert client.call(Command(ECHO, {"a": 1}), timeout_s=30).ext_fields == {"a": 1}


def test_oneway_is_not_answered(serve: Serve, folder: RuntimeFolder) -> None:
    got = threading.Event()

    def note(_connection: Connection, command: Command) -> Command:
        got.set()
        return response_to(command)

    serve({ECHO: note})
    with Client(folder, NAME, role="x", timeout_s=10) as client:
        client.send_oneway(Command(ECHO), timeout_s=30)
        assert got.wait(30)
        assert client.invoke(Command(777), timeout_s=30).code == 3


# ---- event loops ---------------------------------------------------------------------------------


def test_async_client_asks_many_at_a_time(serve: Serve, folder: RuntimeFolder) -> None:
    serve(TABLE)

    async def ask() -> None:
        client = await AsyncClient.connect(folder, NAME, role="x", timeout_s=10)
        calls = [client.call(Command(ECHO, {"n": n}), timeout_s=30) for n in range(100)]
        assert [r.ext_fields["n"] for r in await asyncio.gather(*calls)] == list(range(100))
        with pytest.raises(TopicNotExistError):
            await client.call(Command(MISSING), timeout_s=30)
        assert client.identity.pid == os.getpid()
        response = await client.call(Command(GIVE), timeout_s=30, fd_count_max=2)
        assert [os.read(fd, 9) for fd in response.fds] == [b"one", b"two"]
        response.close()
        client.close()
        with pytest.raises(ClosedError):
            await client.call(Command(ECHO), timeout_s=30)
        assert client.send_oneway(Command(ECHO)) is False

    asyncio.run(ask())


def test_async_client_hears_notices_and_its_end(serve: Serve, folder: RuntimeFolder) -> None:
    serve(TABLE)
    got: list[object] = []
    ended: list[str] = []

    async def listen() -> None:
        client = await AsyncClient.connect(
            folder,
            NAME,
            role="x",
            timeout_s=10,
            on_notify=lambda command: got.append(command.ext_fields["n"]),
            on_close=lambda error: ended.append(str(error)),
        )
        await client.call(Command(NOTIFY, {"count": 50}), timeout_s=30)
        assert got == list(range(50))
        with pytest.raises(QuotaError, match="^you have had enough$"):
            await client.call(Command(FALL), timeout_s=30)
        assert client.is_closed

    asyncio.run(listen())
    assert ended == ["you have had enough"]


def test_async_client_drops_a_late_answer(
    serve: Serve, folder: RuntimeFolder, loop_thread: LoopThread
) -> None:
    waiting = Waiting(loop_thread)
    serve({WAIT: waiting, ECHO: echo})

    async def ask() -> None:
        client = await AsyncClient.connect(folder, NAME, role="x", timeout_s=10)
        with pytest.raises(RequestTimeoutError, match="no answer within 0.01 s"):
            await client.call(Command(WAIT), timeout_s=0.01)
        waiting.go_on()
        response = await client.call(Command(ECHO, {"a": 1}), timeout_s=30)
        assert response.ext_fields == {"a": 1}
        client.close()

    asyncio.run(ask())


def test_async_call_that_is_cancelled_as_its_connection_ends_stays_cancelled(
    serve: Serve, folder: RuntimeFolder, loop_thread: LoopThread
) -> None:
    """A loop that goes on after an error would never end otherwise."""
    serve({WAIT: Waiting(loop_thread)})

    async def ask() -> None:
        client = await AsyncClient.connect(folder, NAME, role="x", timeout_s=10)
        asking = asyncio.create_task(client.call(Command(WAIT), timeout_s=30))
        await asyncio.sleep(0)
        client.close()
        asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled()

    asyncio.run(ask())


def test_async_client_is_refused_with_the_reason(folder: RuntimeFolder, serve: Serve) -> None:
    with pytest.raises(ServiceNotAvailableError):
        asyncio.run(AsyncClient.connect(folder, NAME, role="x", timeout_s=10))
    serve()
    with pytest.raises(ShmqError, match="wanted a word"):
        asyncio.run(AsyncClient.connect(folder, NAME, role="two words", timeout_s=10))


# ---- the loop's thread ---------------------------------------------------------------------------


def test_loop_that_hangs_misses_its_beat(loop_thread: LoopThread) -> None:
    assert loop_thread.beat()
    settle(loop_thread)
    assert loop_thread.beat()
    go_on = threading.Event()
    loop_thread.loop.call_soon_threadsafe(go_on.wait)
    assert [loop_thread.beat() for _ in range(3)][1:] == [False, False]
    go_on.set()
    settle(loop_thread)
    assert loop_thread.beat()


def test_loop_that_waits_for_what_hangs_misses_its_beat(loop_thread: LoopThread) -> None:
    go_on = threading.Event()
    assert loop_thread.beat(go_on.wait)
    assert not loop_thread.beat(go_on.wait)
    go_on.set()
    settle(loop_thread)
    assert loop_thread.beat()


def test_work_that_takes_too_long_is_cancelled(loop_thread: LoopThread) -> None:
    was_cancelled = threading.Event()

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            was_cancelled.set()

    with pytest.raises(TimeoutError):
        loop_thread.run(endless(), timeout_s=0.01)
    assert was_cancelled.wait(30)


def test_error_on_the_loop_that_nobody_awaits_is_logged(
    loop_thread: LoopThread, caplog: pytest.LogCaptureFixture
) -> None:
    loop_thread.loop.call_soon_threadsafe(lambda: 1 // 0)
    settle(loop_thread)
    assert "ZeroDivisionError" in caplog.text


def test_connection_that_another_thread_closes_before_the_request_is_sent_is_closed(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = client._send

    def close_and_send(command: Command, deadline_ns: int) -> None:
        client.close()
        send(command, deadline_ns)

    monkeypatch.setattr(client, "_send", close_and_send)
    with pytest.raises(ClosedError, match="closed here"):
        client.call(Command(ECHO), timeout_s=10)
