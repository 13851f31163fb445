"""Clients of event loops in a real cluster: what waiting costs, what ends it, and who may wait.

What a send, a receive and a poll do is tested with both kinds of client in
test_client_producer.py, test_client_consumer.py and test_client_lite_pull.py.
"""

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import psutil
import pytest
import uvloop

import shmq.aio
from shmq import Message, MessageQueue
from shmq.errors import ClosedError, LoopError, SendTimeoutError, TopicNotExistError
from tests.support.cluster import WAIT_S, Cluster, Program
from tests.support.scale import scaled
from tests.support.standing_still import stop_process

pytestmark = pytest.mark.cluster

PATIENCE_S = 30.0
HOT_BYTES = 3 * 8 << 20
"""What the memory of a broker of the tests holds (SMALL)."""

Work = Callable[[shmq.aio.Client], Coroutine[Any, Any, Any]]


def _runner(cluster: Cluster, kind: str) -> Callable[[Work], Any]:
    async def main(work: Work) -> Any:
        async with shmq.aio.connect(cluster.runtime) as client:
            return await asyncio.wait_for(work(client), 3 * PATIENCE_S)

    def run(work: Work) -> Any:
        factory = uvloop.new_event_loop if kind == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(main(work))

    return run


def _runs(cluster: str, kinds: list[str]) -> Any:
    """A fixture that runs a coroutine function with a client of a cluster, in a loop of its own:
    once in each of these kinds of loop.
    """

    @pytest.fixture(params=kinds)
    def made(request: pytest.FixtureRequest) -> Callable[[Work], Any]:
        return _runner(request.getfixturevalue(cluster), request.param)

    return made


BOTH = ["asyncio", "uvloop"]
FEW = BOTH[: scaled(1, 2)]
"""uvloop in full runs only."""
run_both = _runs("cluster", BOTH)
run = _runs("cluster", FEW)
run_once = _runs("cluster", BOTH[:1])
run_own_both = _runs("own_cluster", BOTH)  # which the test may kill


async def until(is_there: Callable[[], Any]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not is_there():
            await asyncio.sleep(0.005)


def test_message_gets_up_a_task_that_waits(run_both, topic, group):
    async def work(client: shmq.aio.Client) -> None:
        producer = client.producer()
        async with client.consumer(topic, group) as consumer:
            for number in range(200):
                waiting = asyncio.create_task(consumer.receive(timeout=PATIENCE_S))
                await asyncio.sleep(0)
                sent = await producer.send(topic, b"%d" % number)
                (message,) = await waiting
                assert bytes(message) == b"%d" % number
                assert message.message_id == sent.message_id
            got: list[bytes] = []
            await producer.send(topic, b"last")
            async for message in consumer:
                got.append(bytes(message))
                break
            assert got == [b"last"]

    run_both(work)


def test_thousand_sends_at_once_keep_the_order_of_each_key(run, topic):
    async def work(client: shmq.aio.Client) -> None:
        producer = client.producer()
        body = bytes(900)  # together more than the ring holds: most of them wait for room
        async with asyncio.TaskGroup() as group:
            sends = [
                group.create_task(producer.send(topic, body + b"%d" % n, key=f"k{n % 5}"))
                for n in range(1000)
            ]
        for first in range(5):
            results = [send.result() for send in sends[first::5]]
            assert len({result.message_queue for result in results}) == 1
            offsets = [result.queue_offset for result in results]
            assert offsets == sorted(set(offsets))
        assert len({send.result().message_id for send in sends}) == 1000

    run(work)


def test_sends_that_wait_for_room_are_not_overtaken(run, cluster, topic):
    """Some find the ring full; others come while those are waiting, when there is room again."""

    async def work(client: shmq.aio.Client) -> None:
        await client.create_topic(topic, queues=2)
        producer = client.producer()
        for key in "ab":
            await producer.send(topic, b"x", key=key)
        broker = psutil.Process(cluster.brokers[0].process.pid)
        stop_process(broker.pid)
        sends: dict[str, list[asyncio.Task[shmq.SendResult]]] = {"a": [], "b": []}
        try:
            for number in range(600):
                key = "ab"[number % 2]
                send = producer.send(topic, bytes(4000), key=key, timeout=PATIENCE_S)
                sends[key].append(asyncio.create_task(send))
            await asyncio.sleep(0.01)
            assert not any(send.done() for send in sends["a"] + sends["b"])
        finally:
            broker.resume()
        for number in range(2000):
            key = "ab"[number % 2]
            send = producer.send(topic, bytes(4000), key=key, timeout=PATIENCE_S)
            sends[key].append(asyncio.create_task(send))
            await asyncio.sleep(0)
        for tasks in sends.values():
            offsets = [(await send).queue_offset for send in tasks]
            assert offsets == sorted(set(offsets))

    run(work)


async def _cancel_over_and_over(
    wait: Callable[[], Coroutine[Any, Any, list[Message]]],
    send: Callable[[bytes], Coroutine[Any, Any, Any]],
    count: int,
) -> None:
    """Whatever moment a waiting call is cancelled at, what comes meanwhile comes with the next."""
    got: list[int] = []
    for number in range(count):
        waiting = asyncio.create_task(wait())
        for _ in range(number % 4):
            await asyncio.sleep(0)
        sending = asyncio.create_task(send(b"%d" % number))
        for _ in range(number % 7):
            await asyncio.sleep(0)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            got += [int(bytes(message)) for message in await waiting]
        await sending
    while len(got) < count:
        messages = await wait()
        assert messages
        got += [int(bytes(message)) for message in messages]
    assert sorted(got) == list(range(count))


def test_cancelled_receive_loses_nothing(run, topic, group):
    async def work(client: shmq.aio.Client) -> None:
        producer = client.producer()
        async with client.consumer(topic, group) as consumer:
            await _cancel_over_and_over(
                lambda: consumer.receive(timeout=PATIENCE_S),
                lambda body: producer.send(topic, body),
                300,
            )

    run(work)


def test_cancelled_send_frees_its_place(run, topic):
    async def work(client: shmq.aio.Client) -> None:
        producer = client.producer()
        await producer.send(topic, b"first")
        (lane, *_) = client.engine.links()[0].lanes
        for _ in range(2 * lane.completion_capacity // 50):
            tasks = [asyncio.create_task(producer.send(topic, b"x", key="k")) for _ in range(100)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        await producer.send(topic, b"last", key="k")  # each completion that leaked took a place
        await producer.drain(PATIENCE_S)

    run(work)


def test_timeouts_end_waiting_with_nothing(run_once, topic, group):
    async def work(client: shmq.aio.Client) -> None:
        await client.create_topic(topic, queues=1)
        async with client.consumer(topic, group) as consumer:
            assert await consumer.receive(timeout=0.0) == []
            assert await consumer.receive(timeout=0.05) == []
            assert await consumer.try_next(0.05) is None
            assert len(await consumer.receive_many(timeout=0.05)) == 0
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(consumer.receive(timeout=PATIENCE_S), 0.05)

    run_once(work)


def test_closing_gets_up_whoever_waits(run_once, topic, group, other_group):
    async def work(client: shmq.aio.Client) -> None:
        consumer = await client.consumer(topic, group)
        waiting = asyncio.create_task(consumer.receive(timeout=PATIENCE_S))

        async def follow() -> list[shmq.Message]:
            return [message async for message in other]

        other = await client.consumer(topic, other_group)
        following = asyncio.create_task(follow())
        await asyncio.sleep(0.05)
        await consumer.close()
        assert await waiting == []
        with pytest.raises(ClosedError, match="this consumer is closed"):
            await consumer.receive()
        await client.close()
        assert await following == []
        with pytest.raises(ClosedError, match="this client is closed"):
            await client.producer().send(topic, b"x")
        await client.close()  # twice does nothing

    run_once(work)


def test_sends_under_way_are_settled_before_a_producer_closes(run_once, topic):
    async def work(client: shmq.aio.Client) -> None:
        producer = client.producer()
        await producer.send(topic, b"x")
        sends = [asyncio.create_task(producer.send(topic, b"x")) for _ in range(50)]
        await asyncio.sleep(0)
        await producer.close()
        done = await asyncio.gather(*sends, return_exceptions=True)
        assert all(isinstance(one, shmq.SendResult | ClosedError) for one in done)
        with pytest.raises(ClosedError, match="this producer is closed"):
            await producer.send(topic, b"x")

    run_once(work)


def test_pushed_messages_are_handled_by_tasks_and_what_fails_is_a_dead_letter(
    run_both, topic, group
):
    async def work(client: shmq.aio.Client) -> None:
        await client.create_topic(topic, queues=2)
        producer = client.producer()
        for number in range(40):
            await producer.send(topic, b"%d" % number)
        done: list[int] = []
        counts = [0, 0]
        gate = asyncio.Event()

        async def listen(message: Message) -> None:
            counts[0] += 1
            counts[1] = max(counts)
            if counts[0] == 3:
                gate.set()
            await gate.wait()  # three at once, or never
            counts[0] -= 1
            if bytes(message) == b"7":
                raise ValueError("seven")
            done.append(int(bytes(message)))

        pushing = client.push_consumer(group, listen, tasks=3, max_reconsume_times=0)
        async with pushing, client.consumer(f"%DLQ%{group}", f"{group}-letters") as letters:
            await pushing.subscribe(topic)
            letter = await letters.try_next(PATIENCE_S)
            assert letter is not None
            assert (bytes(letter), letter.reconsume_times) == (b"7", 1)
            await until(lambda: len(done) == 39)
        assert sorted(done) == [n for n in range(40) if n != 7]
        assert counts[1] == 3
        with pytest.raises(ClosedError, match="this push consumer is closed"):
            await pushing.subscribe(topic)

    run_both(work)


def test_push_consumer_that_closes_ends_what_it_began_and_leaves_the_rest(run_once, topic, group):
    async def work(client: shmq.aio.Client) -> None:
        await client.create_topic(topic, queues=1)
        for number in range(5):
            await client.producer().send(topic, b"%d" % number)
        begun: list[bytes] = []
        ended: list[bytes] = []
        gate = asyncio.Event()

        async def listen(message: Message) -> None:
            begun.append(bytes(message))
            await gate.wait()
            ended.append(bytes(message))

        pushing = client.push_consumer(group, listen, tasks=2)
        await pushing.subscribe(topic)
        await until(lambda: len(begun) == 2)
        closing = asyncio.create_task(pushing.close())
        await asyncio.sleep(0)
        assert not ended
        gate.set()
        await closing
        assert ended == begun == [b"0", b"1"]
        async with client.consumer(topic, group) as consumer:
            rest = []
            while len(rest) < 3:
                rest += await consumer.receive(3, timeout=PATIENCE_S)
            assert [bytes(message) for message in rest] == [b"2", b"3", b"4"]

    run_once(work)


def test_message_of_any_topic_gets_up_a_task_that_polls(run_both, topic, other_topic, group):
    async def work(client: shmq.aio.Client) -> None:
        producer = client.producer()
        told: list[tuple[str, int]] = []

        async def listen(topic: str, _: list[MessageQueue], now: list[MessageQueue]) -> None:
            await asyncio.sleep(0)
            told.append((topic, len(now)))

        async with client.lite_pull_consumer(group) as consumer:
            waiting = asyncio.create_task(consumer.poll(PATIENCE_S))
            await asyncio.sleep(0)
            for one in (topic, other_topic):  # while a poll waits, which has them from now on
                await client.create_topic(one, queues=2)
                await consumer.subscribe(one, listener=listen)
            for number in range(100):
                sent = await producer.send((topic, other_topic)[number % 2], b"%d" % number)
                (message,) = await waiting
                assert bytes(message) == b"%d" % number
                assert message.message_id == sent.message_id
                waiting = asyncio.create_task(consumer.poll(PATIENCE_S))
                await asyncio.sleep(0)
            assert sorted(told) == [(other_topic, 2), (topic, 2)]
        assert await waiting == []  # closing gets it up

    run_both(work)


def test_cancelled_poll_loses_nothing(run, topic, group):
    async def work(client: shmq.aio.Client) -> None:
        producer = client.producer()
        async with client.lite_pull_consumer(group, auto_commit_interval=0.001) as consumer:
            await client.create_topic(topic, queues=2)
            await consumer.assign(await consumer.fetch_queues(topic))
            await _cancel_over_and_over(
                lambda: consumer.poll(PATIENCE_S), lambda body: producer.send(topic, body), 200
            )

    run(work)


def test_cancelled_subscription_is_given_back_by_close(run_once, topic, group):
    async def work(client: shmq.aio.Client) -> None:
        await client.create_topic(topic, queues=2)
        leaving = client.lite_pull_consumer(group)
        subscribing = asyncio.create_task(leaving.subscribe(topic))
        await asyncio.sleep(0)
        subscribing.cancel()
        await asyncio.wait([subscribing])
        await leaving.close()
        async with client.consumer(topic, group) as consumer:
            assert len(consumer.assigned) == 2
        with pytest.raises(ClosedError, match="this lite pull consumer is closed"):
            await leaving.subscribe(topic)

    run_once(work)


FORKED = """
import asyncio, json, os, sys, shmq.aio

async def main():
    async with shmq.aio.connect(sys.argv[1]) as client:
        producer = client.producer()
        pushing = client.push_consumer("g-forked", print)
        await producer.send(sys.argv[2], b"x")
        if os.fork() == 0:
            async def child():
                for call in (producer.send(sys.argv[2], b"y"), pushing.subscribe(sys.argv[2])):
                    try:
                        await call
                    except Exception as error:
                        print(json.dumps(type(error).__name__), flush=True)
                await client.close()
            try:
                asyncio.run(child())
            finally:
                os._exit(0)
        os.wait()
        print(json.dumps((await producer.send(sys.argv[2], b"z")).send_status), flush=True)

asyncio.run(main())
"""


def test_child_of_a_fork_is_told_so_and_its_parent_goes_on(cluster, topic):
    with Program(FORKED, cluster.runtime, topic) as program:
        assert [program.hear() for _ in range(3)] == ["ForkError", "ForkError", "SEND_OK"]


def test_another_loop_is_refused_in_one_line(cluster, topic):
    async def work() -> shmq.aio.Client:
        return await shmq.aio.connect(cluster.runtime)

    async def misuse(client: shmq.aio.Client) -> None:
        producer = client.producer()
        await producer.send(topic, b"x")

    with asyncio.Runner() as one:
        client = one.run(work())
        with asyncio.Runner() as other, pytest.raises(LoopError, match="another event loop"):
            other.run(misuse(client))
        one.run(misuse(client))
        one.run(client.close())


def test_missing_topic_and_missing_cluster_are_told(run_once, tmp_path, topic):
    async def work(client: shmq.aio.Client) -> None:
        with pytest.raises(TopicNotExistError, match="no such queue"):
            await client.producer().send(topic, b"x", queue=shmq.MessageQueue(topic, "nobody", 0))
        with pytest.raises(shmq.ShmqError):
            await shmq.aio.connect(tmp_path / "nowhere")

    run_once(work)


def test_loop_that_was_closed_with_a_client_in_it_leaves_a_program_that_ends(cluster, topic, group):
    program = """
import asyncio, sys, shmq.aio
async def main():
    other = f"{sys.argv[2]}-other"
    client = await shmq.aio.connect(sys.argv[1])
    consumer = await client.consumer(*sys.argv[2:])
    task = asyncio.create_task(consumer.receive(timeout=60))
    await client.producer().send(other, b"x")
    print(len(await client.producer().queues(other)), flush=True)
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore::ResourceWarning", "-c", program,
         str(cluster.runtime), topic, group],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert int(done.stdout) > 0


def test_killed_broker_is_waited_for_by_tasks_too(run_own_both, own_cluster):
    async def work(client: shmq.aio.Client) -> None:
        broker = own_cluster.brokers[0]
        await client.create_topic("t", queues=2)
        producer = client.producer()
        async with client.consumer("t", "g") as consumer:
            await producer.send("t", b"-1", key="k")
            assert await consumer.receive(timeout=PATIENCE_S)
            waiting = asyncio.create_task(consumer.receive(1, timeout=3 * PATIENCE_S))
            await asyncio.sleep(0.02)
            broker.kill()
            sends = [
                asyncio.create_task(producer.send("t", b"%d" % n, key="k", timeout=PATIENCE_S))
                for n in range(300)
            ]
            await asyncio.sleep(0.05)
            assert not waiting.done()
            await asyncio.to_thread(broker.restart)
            results = await asyncio.gather(*sends)
            offsets = [result.queue_offset for result in results]
            assert offsets == sorted(set(offsets))
            got = [int(bytes(message)) for message in await waiting]
            while len(got) < 300:
                messages = await consumer.receive(300, timeout=PATIENCE_S)
                assert messages
                got += [int(bytes(message)) for message in messages]
            assert got == list(range(300))

    run_own_both(work)


def test_stopped_broker_makes_a_send_time_out_and_the_loop_goes_on(run_once, cluster, topic):
    async def work(client: shmq.aio.Client) -> None:
        producer = client.producer()
        await producer.send(topic, b"x")
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.005)
                ticks += 1

        async def fill(producer: shmq.aio.Producer) -> None:
            while True:  # until the ring is full
                await producer.send_oneway(topic, bytes(10_000), key="k", timeout=0.1)

        ticking = asyncio.create_task(tick())
        broker = psutil.Process(cluster.brokers[0].process.pid)
        stop_process(broker.pid)
        try:
            with pytest.raises(TimeoutError):
                await producer.send(topic, b"x", timeout=0.2)
            with pytest.raises(SendTimeoutError, match="took nothing"):
                await fill(producer)
        finally:
            broker.resume()
        assert ticks > 5
        ticking.cancel()
        await producer.send(topic, b"x", key="k", timeout=PATIENCE_S)

    run_once(work)


def test_what_has_left_memory_is_read_without_stopping_the_loop(
    run_once, topic, group, other_group
):
    count = 2 * HOT_BYTES // 100_000

    async def work(client: shmq.aio.Client) -> None:
        await client.create_topic(topic, queues=1)
        producer = client.producer()
        for number in range(count):
            await producer.send_oneway(topic, b"%d " % number + bytes(100_000), timeout=60)
        await producer.drain(60)
        async with client.consumer(topic, group) as consumer:
            got: list[int] = []
            while len(got) < count:
                messages = await consumer.receive(50, timeout=PATIENCE_S)
                assert messages
                got += [int(bytes(message).split()[0]) for message in messages]
        assert got == list(range(count))
        async with client.lite_pull_consumer(other_group) as lite:
            await lite.subscribe(topic)
            got = []
            async for message in lite:
                got.append(int(bytes(message).split()[0]))
                if len(got) == count:
                    break
        assert got == list(range(count))

    run_once(work)


IDLE = """
import asyncio, json, os, sys, threading, time
import shmq.aio
async def main():
    runtime, count, topic = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    async with shmq.aio.connect(runtime) as client:
        await client.create_topic(topic, queues=1)
        await client.producer().send(topic, b"x")
        consumers = [
            await client.consumer(
                topic, f"{topic}-{n}", from_where="CONSUME_FROM_LAST_OFFSET"
            )
            for n in range(count)
        ]
        polling = [
            client.lite_pull_consumer(f"{topic}-lite-{n}", from_where="CONSUME_FROM_LAST_OFFSET")
            for n in range(10)
        ]
        for consumer in polling:
            await consumer.subscribe(topic)
        got = []
        async def wait(receiving):
            got.extend(await receiving)
        receiving = [consumer.receive(timeout=3600) for consumer in consumers]
        receiving += [consumer.poll(3600) for consumer in polling]
        tasks = [asyncio.create_task(wait(one)) for one in receiving]
        await asyncio.sleep(1.0)
        begin = time.process_time()
        await asyncio.sleep(2.0)
        used = time.process_time() - begin
        threads = threading.active_count()
        await client.producer().send(topic, b"y")
        await asyncio.wait(tasks)
        print(json.dumps([threads, used, len(got), len(os.listdir("/proc/self/fd"))]))
        os._exit(0)  # leaving a thousand groups one by one is not what is tested
asyncio.run(main())
"""


def test_idle_consumers_cost_no_threads_and_hardly_any_time(cluster, topic):
    count = scaled(100, 1000)
    done = subprocess.run(
        [sys.executable, "-c", IDLE, str(cluster.runtime), str(count), topic],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    threads, used_s, received, fds = json.loads(done.stdout)
    assert received == count + 10
    assert threads < 12
    assert fds < 60
    assert used_s < 1.0
