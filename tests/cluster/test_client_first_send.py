"""A first send waits for the broker of its topic, as later ones do, for as long as it may."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

import shmq
import shmq.aio
from shmq.client import route_watch
from shmq.client.queue_finder import QueueFinder
from shmq.client.route_watch import RouteWatch
from shmq.errors import ServiceNotAvailableError
from shmq.remoting.runtime_folder import RuntimeFolder
from tests.support.cluster import Cluster, wait_for
from tests.support.scale import scaled

pytestmark = pytest.mark.cluster

PATIENCE_S = 60.0
SEEN = r"send to t: no broker that has it came in 0\.\d+ s, .* seen last: .* knows no broker"

Send = Callable[..., Any]


def by_thread(client: shmq.Client, topic: str, timeout: float, **place: Any) -> Any:
    return client.producer().send(topic, b"x", timeout=timeout, **place)


def by_future(client: shmq.Client, topic: str, timeout: float, **place: Any) -> Any:
    return client.producer().send_async(topic, b"x", timeout=timeout, **place).result(PATIENCE_S)


def by_many(client: shmq.Client, topic: str, timeout: float, **place: Any) -> Any:
    return client.producer().send_many(topic, [b"x"], timeout=timeout, **place)[0]


def by_task(client: shmq.Client, topic: str, timeout: float, **place: Any) -> Any:
    async def send() -> Any:
        async with shmq.aio.connect(client.namesrv) as own:
            return await own.producer().send(topic, b"x", timeout=timeout, **place)

    return asyncio.run(send())


def by_many_tasks(client: shmq.Client, topic: str, timeout: float, **place: Any) -> Any:
    async def send() -> Any:
        async with shmq.aio.connect(client.namesrv) as own:
            return (await own.producer().send_many(topic, [b"x"], timeout=timeout, **place))[0]

    return asyncio.run(send())


SENDS = [by_thread, by_task, by_future, by_many, by_many_tasks]
ALL = pytest.mark.parametrize("send", SENDS[: scaled(2, 5)])
LOOKS_MAX = 10
"""One, one when the watch begins, and one for each change that a broker's return makes."""


@pytest.fixture
def away(own_cluster: Cluster) -> Cluster:
    """A cluster that has a topic, and whose only broker was killed."""
    with shmq.Admin(own_cluster.runtime) as admin:
        admin.create_topic("t", queues=2)
    own_cluster.brokers[0].kill()
    with own_cluster.connect() as client:
        wait_for(lambda: not client.routes.brokers(), "the end of the registration")
    return own_cluster


def sent_meanwhile(send: Send, client: shmq.Client, come_back: Callable[[], None]) -> Any:
    """What a send gives that began before somebody came back, and looked only when told to."""
    outcome: Future[Any] = Future()
    looked = threading.Event()
    look = QueueFinder.find
    looks: list[str] = []

    def seen(finder: QueueFinder, topic: str, **options: Any) -> Any:
        looks.append(topic)
        try:
            return look(finder, topic, **options)
        finally:
            looked.set()

    def work() -> None:
        try:
            outcome.set_result(send(client, "t", PATIENCE_S))
        except BaseException as error:  # noqa: BLE001 # the test's to raise
            outcome.set_exception(error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QueueFinder, "find", seen)
        patch.setattr(route_watch, "_LOOK_S", PATIENCE_S)
        thread = threading.Thread(target=work)
        thread.start()
        assert looked.wait(PATIENCE_S)
        assert not outcome.done()
        come_back()
        thread.join()
    assert len(looks) <= LOOKS_MAX
    return outcome.result()


@ALL
def test_first_send_waits_for_the_broker_that_comes_back(away: Cluster, send: Send) -> None:
    with away.connect() as client:
        result = sent_meanwhile(send, client, away.brokers[0].restart)
        assert result.message_queue.broker_name == "broker-a"
        with client.consumer("t", "g") as consumer:
            assert bytes(consumer.try_next(PATIENCE_S) or b"") == b"x"
            assert consumer.try_next(0.0) is None


@ALL
def test_first_send_says_in_its_time_what_it_saw(away: Cluster, send: Send) -> None:
    with (
        away.connect() as client,
        pytest.raises(ServiceNotAvailableError, match=SEEN) as caught,
    ):
        send(client, "t", 0.2)
    assert "shmq ha status" in caught.value.hint


def test_send_of_a_task_keeps_its_timeout_behind_one_that_waits_longer(away: Cluster) -> None:
    async def send() -> None:
        async with shmq.aio.connect(away.runtime) as client:
            producer = client.producer()
            long = asyncio.ensure_future(producer.send("t", b"long", timeout=PATIENCE_S))
            short = asyncio.ensure_future(producer.send("t", b"short", timeout=0.2))
            with pytest.raises(ServiceNotAvailableError, match="sends before it still wait"):
                await short
            assert not long.done()
            await asyncio.to_thread(away.brokers[0].restart)
            assert (await long).queue_offset == 0

    asyncio.run(send())


def test_watch_is_told_of_a_broker_that_comes_and_of_its_own_end(
    away: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route_watch, "_LOOK_S", PATIENCE_S)
    with RuntimeFolder.open(away.runtime) as folder:
        watch = RouteWatch(folder)
        for happen in (away.brokers[0].restart, watch.close):
            seen = watch.wait(None, PATIENCE_S)
            assert seen is not None
            waiting = threading.Thread(target=watch.wait, args=(seen, PATIENCE_S), daemon=True)
            waiting.start()
            happen()
            waiting.join(PATIENCE_S / 2)  # not by its own clock
            assert not waiting.is_alive()
