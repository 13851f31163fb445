"""Consumers in a real cluster: what is received, settled, delivered again; from where; by whom."""

import ctypes
import gc
import os
import pickle
import re
import signal
import subprocess
import threading
from pathlib import Path

import numpy as np
import orjson
import pytest

import shmq
from shmq import ConsumeFromWhere, MessageModel, MessageQueue
from shmq.errors import (
    ClosedError,
    ConfigError,
    ForkError,
    OffsetIllegalError,
    SubscriptionError,
    TopicNotExistError,
)
from shmq.remoting.codes import RequestCode
from shmq.status import ConsumeStatus, PullStatus
from tests.cluster.namesrv_process import NamesrvProcess
from tests.support.cluster import Cluster, Program, wait_for
from tests.support.footprint import Footprint, differences
from tests.support.require import require_program

pytestmark = pytest.mark.cluster

PATIENCE_S = 30.0


# What a listener refuses comes again after a second, however often it has.
BROKER_SETTINGS = {"message_delay_level": "1s"}

both = pytest.mark.parametrize("client", ["threads", "asyncio"], indirect=True)
"""The client of shmq, and that of shmq.aio."""


def send(client: shmq.Client, topic: str, count: int, **options) -> None:
    producer = client.producer()
    for number in range(count):
        producer.send_oneway(topic, b"%d" % number, **options)
    producer.drain()


def receive(consumer: shmq.Consumer, count: int) -> list[int]:
    """Numbers of the next `count` messages."""
    got: list[int] = []
    while len(got) < count:
        messages = consumer.receive(count - len(got), timeout=PATIENCE_S)
        assert messages, got
        got += [int(bytes(message)) for message in messages]
    return got


def group_offset(client: shmq.Client, topic: str, group: str) -> int:
    """Sum of what the broker has as the group's offsets."""
    link = client.link("broker-a")
    answer = link.call(RequestCode.GET_CONSUME_STATS, {"consumerGroup": group, "topic": topic})
    return sum(max(0, row["consumerOffset"]) for row in answer.json()["queues"])


@both
def test_iteration_gives_each_message_once_and_settles_the_one_before(client, topic, group):
    send(client, topic, 20)
    with client.consumer(topic, group) as consumer:
        got = []
        for message in consumer:
            got.append(int(bytes(message)))
            if len(got) == 20:
                break
        assert sorted(got) == list(range(20))
    with client.consumer(topic, group) as consumer:
        again = receive(consumer, 1)  # the last was not settled
        assert again == got[-1:]
        assert consumer.receive(5, timeout=0.05) == []


@both
def test_process_settles_on_success_and_delivers_again_after_an_exception(client, topic, group):
    send(client, topic, 3)
    seen: list[int] = []
    with client.consumer(topic, group, auto_settle=False) as consumer:
        for message in consumer:
            number = int(bytes(message))
            seen.append(number)
            try:
                with message.process():
                    if number == 1 and seen.count(1) < 3:
                        raise ValueError(number)
            except ValueError:
                continue
            if len(seen) == 5:
                break
        assert sorted(seen) == [0, 1, 1, 1, 2]
        wait_for(lambda: group_offset(client, topic, group) == 3, "the progress")


@both
def test_process_rules_over_auto_settle(client, topic, group):
    send(client, topic, 1)
    with client.consumer(topic, group) as consumer:
        message = consumer.try_next(PATIENCE_S)
        assert message is not None
        with pytest.raises(ValueError, match="no"), message.process():
            raise ValueError("no")
        again = consumer.try_next(PATIENCE_S)  # asking for the next settles nothing here
        assert again is not None
        assert again.message_id == message.message_id
    with client.consumer(topic, group) as consumer:
        assert receive(consumer, 1) == [0]


def test_message_of_no_consumer_cannot_be_processed():
    with pytest.raises(TypeError, match="no consumer"):
        shmq.Message("t", b"x").process()


@both
def test_messages_settled_out_of_order_count_up_to_the_first_gap(client, topic, group):
    client.create_topic(topic, queues=1)
    send(client, topic, 10)
    with client.consumer(topic, group, auto_settle=False) as consumer:
        messages = [consumer.try_next(PATIENCE_S) for _ in range(10)]
        for message in messages[5:]:
            message.settle()
        messages[0].settle()
        wait_for(lambda: group_offset(client, topic, group) == 1, "the progress")
        for message in messages[1:5]:
            message.settle()
        wait_for(lambda: group_offset(client, topic, group) == 10, "the progress")


@both
def test_receive_many_gives_columns_and_stacks_bodies(client, topic, group):
    client.create_topic(topic, queues=1)
    producer = client.producer()
    for number in range(100):
        producer.send_oneway(topic, np.array([number, number * 2], "i4"))
    producer.drain()
    with client.consumer(topic, group) as consumer:
        batch = consumer.receive_many(timeout=PATIENCE_S)
        assert len(batch) == 100
        assert batch.queue_offsets.tolist() == list(range(100))
        assert set(batch.body_sizes.tolist()) == {8}
        stacked = batch.stack("i4")
        assert stacked.shape == (100, 2)
        assert stacked[:, 1].tolist() == list(range(0, 200, 2))
        assert batch.bodies(copy=True) == [bytes(row) for row in stacked] == batch.bodies()
        assert batch[7].array().tolist() == [7, 14]
        assert len(consumer.receive_many(timeout=0.05)) == 0  # settles the first
        wait_for(lambda: group_offset(client, topic, group) == 100, "the progress")


@both
def test_batch_that_failed_is_delivered_again(client, topic, group):
    client.create_topic(topic, queues=1)
    send(client, topic, 3)
    with client.consumer(topic, group, auto_settle=False) as consumer:
        with pytest.raises(ValueError, match="no"), consumer.receive_many(timeout=PATIENCE_S):
            raise ValueError("no")
        assert receive(consumer, 3) == [0, 1, 2]


def test_body_lies_in_the_mapped_log(client, topic, group):
    producer = client.producer()
    producer.send(topic, np.arange(1000, dtype="f8").reshape(10, 100))
    with client.consumer(topic, group) as consumer:
        (message,) = consumer.receive(1, timeout=PATIENCE_S)
        array = message.array()
        assert array.shape == (10, 100)
        assert not array.flags.writeable
        address = array.__array_interface__["data"][0]
        view = np.frombuffer(message.body, "u1")
        assert view.__array_interface__["data"][0] == address
        mapped = Path("/proc/self/maps").read_text()
        for line in mapped.splitlines():
            first, last = (int(part, 16) for part in line.split()[0].split("-"))
            if first <= address < last:
                assert line.split()[1].startswith("r--")
                assert "/dev/shm/shmq." in line
                break
        else:
            raise AssertionError("mapped nowhere")
        assert ctypes.string_at(address, 8) == bytes(message.body[:8])


@both
def test_filter_passes_wanted_tags_only(client, topic, group):
    producer = client.producer()
    for number in range(30):
        producer.send(topic, b"%d" % number, tag="abc"[number % 3])
    # AaAa and BBBB have the same hash: the tag itself is compared
    producer.send(topic, b"100", tag="AaAa")
    producer.send(topic, b"101", tag="BBBB")
    with client.consumer(topic, group, filter="a || c || BBBB") as consumer:
        got = receive(consumer, 21)
        assert sorted(got) == sorted([n for n in range(30) if n % 3 != 1] + [101])
        assert consumer.receive(1, timeout=0.05) == []
        wait_for(lambda: group_offset(client, topic, group) == 32, "what was passed over counts")


def test_new_group_starts_where_it_says(client, topic):
    client.create_topic(topic, queues=1)
    send(client, topic, 5)
    producer = client.producer()
    middle = producer.send(topic, b"5")
    with client.pull_consumer(topic) as pull:
        (queue,) = pull.queues()
        time = pull.pull(queue, middle.queue_offset).messages[0].store_timestamp / 1000
    with (
        client.consumer(topic, f"{topic}-first") as first,
        client.consumer(
            topic, f"{topic}-last", from_where=ConsumeFromWhere.CONSUME_FROM_LAST_OFFSET
        ) as last,
        client.consumer(topic, f"{topic}-time", from_time=time) as timed,
    ):
        producer.send(topic, b"6")
        assert receive(first, 7) == list(range(7))
        assert receive(last, 1) == [6]
        assert receive(timed, 1)[0] <= 5


def test_broadcasting_gives_everything_to_everybody_and_keeps_its_own_offsets(
    cluster, client, tmp_path, topic, group
):
    send(client, topic, 10)
    saved = tmp_path / "offsets.json"
    options = {"model": MessageModel.BROADCASTING, "offset_file": saved}
    with (
        cluster.connect() as other,
        client.consumer(topic, group, **options) as one,
        other.consumer(topic, group, model=MessageModel.BROADCASTING) as two,
    ):
        assert sorted(receive(one, 10)) == list(range(10))
        assert sorted(receive(two, 10)) == list(range(10))
        assert one.receive(1, timeout=0.05) == []
    send(client, topic, 1)
    with client.consumer(topic, group, **options) as one:
        assert receive(one, 1) == [0]
        assert one.receive(1, timeout=0.05) == []


BROADCASTING = """
import json, os, sys, shmq
import shmq.client.instance
shmq.client.instance.SAVE_OFFSETS_S = 0.01
with shmq.connect(sys.argv[1]) as client:
    consumer = client.consumer(*sys.argv[3:], model=shmq.MessageModel.BROADCASTING,
                               offset_file=sys.argv[2], auto_settle=False)
    for number, message in enumerate(consumer, 1):
        message.settle()
        if number == 10:
            print(json.dumps("settled"), flush=True)
"""


def test_killed_broadcasting_member_has_kept_its_offsets(cluster, client, tmp_path, topic, group):
    send(client, topic, 10)
    saved = tmp_path / "offsets.json"

    def kept() -> bool:
        if not saved.exists():
            return False
        rows = orjson.loads(saved.read_bytes())["offsetTable"]
        return sum(row["offset"] for row in rows) == 10

    with Program(BROADCASTING, cluster.runtime, saved, topic, group) as program:
        assert program.hear() == "settled"
        wait_for(kept, "the offsets in the file")
        program.kill()
    send(client, topic, 1)
    options = {"model": MessageModel.BROADCASTING, "offset_file": saved}
    with client.consumer(topic, group, **options) as consumer:
        assert receive(consumer, 1) == [0]
        assert consumer.receive(1, timeout=0.05) == []


def test_pull_reads_any_queue_from_anywhere(client, topic):
    client.create_topic(topic, queues=1)
    send(client, topic, 100, tag="x")
    with client.pull_consumer(topic) as pull:
        (queue,) = pull.queues()
        assert (pull.min_offset(queue), pull.max_offset(queue)) == (0, 100)
        result = pull.pull(queue, 40, 10)
        assert result.pull_status is PullStatus.FOUND
        assert [int(bytes(m)) for m in result.messages] == list(range(40, 50))
        assert result.next_begin_offset == 50
        assert pull.pull(queue, 100).pull_status is PullStatus.NO_NEW_MSG
        assert pull.pull(queue, 101).pull_status is PullStatus.OFFSET_ILLEGAL
        assert pull.pull(queue, 101).next_begin_offset == 100
        sender = threading.Timer(0.1, lambda: send(client, topic, 1))
        sender.start()
        assert len(pull.pull(queue, 100, timeout=PATIENCE_S).messages) == 1
        sender.join()
    with client.pull_consumer(topic, filter="y") as pull:
        assert pull.pull(queue, 0, 10).pull_status is PullStatus.NO_MATCHED_MSG


@both
def test_seek_goes_back_and_forth(client, topic, group):
    client.create_topic(topic, queues=1)
    send(client, topic, 50)
    with client.consumer(topic, group) as consumer:
        assert receive(consumer, 50) == list(range(50))
        (queue,) = consumer.assigned
        assert consumer.seek(queue, 10) == 10
        assert receive(consumer, 40) == list(range(10, 50))
        assert consumer.seek(queue, where=ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET) == 0
        assert receive(consumer, 1) == [0]
        assert consumer.seek(queue, where=ConsumeFromWhere.CONSUME_FROM_LAST_OFFSET) == 50
        assert consumer.receive(1, timeout=0.05) == []
        with pytest.raises(OffsetIllegalError, match="0 to 50"):
            consumer.seek(queue, 51)
        with pytest.raises(OffsetIllegalError, match="not assigned"):
            consumer.seek(queue._replace(queue_id=9), 0)
        wait_for(lambda: group_offset(client, topic, group) == 50, "the progress")


@both
def test_queue_that_is_full_is_read_on_when_something_is_settled(client, topic, group):
    client.create_topic(topic, queues=1)
    for _ in range(4):
        send(client, topic, 1000)
    with client.consumer(topic, group, auto_settle=False) as consumer:
        taken = [consumer.try_next(PATIENCE_S) for _ in range(1000)]
        assert consumer.try_next(0.05) is None
        settler = threading.Timer(0.1, lambda: [message.settle() for message in taken])
        settler.start()
        more = [consumer.try_next(PATIENCE_S) for _ in range(1000)]
        settler.join()
        assert None not in more
        for message in more[1:]:
            message.settle()
        # One that is never settled does not let all that come behind it pile up.
        behind = 0
        while (message := consumer.try_next(0.05)) is not None:
            message.settle()
            behind += 1
        assert behind == 1000


def test_full_queue_counts_bytes(client, topic, group):
    client.create_topic(topic, queues=1)
    producer = client.producer()
    for _ in range(30):
        producer.send(topic, bytes(4_000_000))
    with client.consumer(topic, group, auto_settle=False) as consumer:
        count = 0
        while consumer.try_next(0.05 if count else PATIENCE_S) is not None:
            count += 1
        assert count == 30  # of one read; the next waits for room
        producer.send(topic, b"small")
        assert consumer.try_next(0.05) is None


@pytest.mark.parametrize("allocation", ["average", "circle"])
def test_members_share_the_queues(cluster, client, allocation, topic, group):
    client.create_topic(topic, queues=6)
    with (
        cluster.connect() as other,
        client.consumer(topic, group, allocation=allocation) as one,
        other.consumer(topic, group, allocation=allocation) as two,
    ):
        wait_for(lambda: len(one.assigned) == 3 and len(two.assigned) == 3, "equal shares")
        ids = sorted(queue.queue_id for queue in one.assigned)
        assert ids in (
            [[0, 1, 2], [3, 4, 5]] if allocation == "average" else [[0, 2, 4], [1, 3, 5]]
        )
        two.close()
        wait_for(lambda: len(one.assigned) == 6, "everything")


def mapped_objects() -> int:
    return sum("/dev/shm/shmq" in line for line in Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.parametrize("way", ["receive", "receive_many", "try_next", "for"])
def test_client_that_was_closed_maps_nothing_any_more(cluster, topic, group, way):
    """What a message that was not settled keeps would stay for good, the log's memory with it."""
    gc.collect()  # of tests before
    before = mapped_objects()
    with cluster.connect() as client, client.consumer(topic, group) as consumer:
        send(client, topic, 3)
        if way == "receive":
            assert consumer.receive(2, timeout=PATIENCE_S)
        elif way == "receive_many":
            assert len(consumer.receive_many(2, timeout=PATIENCE_S))
        elif way == "try_next":
            assert consumer.try_next(PATIENCE_S)
        else:
            assert next(iter(consumer))
        assert mapped_objects() > before
    del client, consumer
    gc.collect()
    assert mapped_objects() == before


def test_clients_that_come_and_go_leave_no_mapping_to_the_garbage_collector(cluster, topic):
    """A program that connects for each message would map more and more until it looks."""
    with cluster.connect() as client:
        client.create_topic(topic, queues=1)
    gc.collect()
    before = Footprint.of(os.getpid())
    gc.disable()
    try:
        for _ in range(5):
            with cluster.connect() as client, client.pull_consumer(topic) as pull:
                send(client, topic, 1)
                (queue,) = pull.queues()
                assert pull.pull(queue, 0).messages
        after = Footprint.of(os.getpid())
    finally:
        gc.enable()
    assert list(differences(before.counts, after.counts)) == []


def test_second_member_in_one_client_is_refused(client, topic, group):
    with client.consumer(topic, group), pytest.raises(ConfigError, match="another client"):
        client.consumer(topic, group)


@both
def test_topic_that_comes_later_is_consumed(client, topic, group):
    with client.consumer(topic, group) as consumer:
        sender = threading.Timer(0.1, lambda: send(client, topic, 1))
        sender.start()
        assert receive(consumer, 1) == [0]
        sender.join()


# ---- push ----------------------------------------------------------------------------------------


def test_push_calls_a_listener_in_several_threads_at_once(client, topic, group):
    together = threading.Barrier(4)
    names: set[str] = set()

    def listener(message: shmq.Message) -> None:
        together.wait(PATIENCE_S)
        names.add(threading.current_thread().name)

    with client.push_consumer(group, listener, threads=4) as push:
        push.subscribe(topic)
        send(client, topic, 8)
        wait_for(lambda: group_offset(client, topic, group) == 8, "the progress")
    assert len(names) == 4


def test_push_delivers_again_what_a_listener_refuses_or_raises_over(
    client, topic, other_topic, group
):
    calls: list[int] = []
    lock = threading.Lock()

    def listener(message: shmq.Message) -> ConsumeStatus | None:
        number = int(bytes(message))
        with lock:
            calls.append(number)
            tries = calls.count(number)
        if number == 0 and tries == 1:
            raise ValueError(number)
        return ConsumeStatus.RECONSUME_LATER if number == 1 and tries < 3 else None

    send(client, topic, 3)
    send(client, other_topic, 1, tag="no")
    with client.push_consumer(group, listener, threads=2) as push:
        push.subscribe(topic)
        push.subscribe(other_topic, "yes")
        wait_for(lambda: group_offset(client, topic, group) == 3, "the progress")
        wait_for(lambda: group_offset(client, other_topic, group) == 1, "what was passed over")
        wait_for(lambda: len(calls) == 6, "what comes again")
    assert sorted(calls) == [0, 0, 1, 1, 1, 2]


def test_push_waits_for_calls_that_are_on(client, topic, group):
    begun, ended = threading.Event(), threading.Event()

    def listener(message: shmq.Message) -> None:
        begun.set()
        ended.wait(PATIENCE_S)

    send(client, topic, 1)
    push = client.push_consumer(group, listener)
    push.subscribe(topic)
    assert begun.wait(PATIENCE_S)
    threading.Timer(0.1, ended.set).start()
    push.close()
    assert ended.is_set()
    with client.consumer(topic, group) as consumer:
        assert consumer.receive(1, timeout=0.05) == []


# ---- waiting -------------------------------------------------------------------------------------

WAITING = """
import sys, threading, shmq
with shmq.connect(sys.argv[1]) as client, client.consumer("t", "g") as consumer:
    print(len(consumer.assigned), flush=True)
    for message in consumer:
        print(message.queue_id, flush=True)
"""


@pytest.mark.slow
def test_waiting_consumer_of_two_brokers_makes_hardly_a_system_call(tmp_path, cluster_name):
    strace = require_program("strace", "strace")
    with Cluster(tmp_path, cluster_name, brokers=2) as cluster, cluster.connect() as client:
        client.create_topic("t", queues=2)
        with Program(WAITING, cluster.runtime) as program:
            while program.hear() != 4:
                continue
            trace = tmp_path / "trace"
            tracer = subprocess.Popen(
                [strace, "-qq", "-o", str(trace), "-p", str(program.process.pid)],
                stderr=subprocess.DEVNULL,
            )
            threading.Event().wait(10.0)  # the figure is of ten seconds
            tracer.terminate()
            tracer.wait()
            calls = [line for line in trace.read_text().splitlines() if re.match(r"\w+\(", line)]
            # A futex() hands the interpreter over, between this thread and the program's others.
            waits = [call for call in calls if not call.startswith("futex(")]
            assert len(waits) < 20, calls
            assert len(calls) < 200, calls
            producer = client.producer()
            for queue in producer.queues("t"):  # either broker wakes it
                producer.send("t", b"x", queue=queue)
                assert program.hear() == queue.queue_id


# ---- forks and pickles ---------------------------------------------------------------------------


def test_forked_child_gets_an_error_and_the_parent_goes_on(client, topic, group, other_group):
    send(client, topic, 1)
    producer = client.producer()
    producer.send(topic, b"1")
    with client.consumer(topic, group) as consumer:
        receive(consumer, 2)
        pid = os.fork()
        if pid == 0:
            signal.alarm(30)  # a child that hangs is no success either
            code = 0
            for use in (
                lambda: consumer.receive(1),
                lambda: producer.send(topic, b"x"),
                lambda: client.consumer(topic, other_group),
            ):
                try:
                    use()
                except ForkError:
                    code += 1
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
        producer.send(topic, b"2")
        assert receive(consumer, 1) == [2]


@both
def test_closed_consumer_says_so(client, topic, group):
    send(client, topic, 1)
    consumer = client.consumer(topic, group)
    consumer.close()
    for call in (
        lambda: iter(consumer),
        lambda: consumer.try_next(0.0),
        lambda: consumer.receive(1, timeout=0.0),
        lambda: consumer.receive_many(1, timeout=0.0),
        lambda: consumer.seek(MessageQueue(topic, "broker-a", 0), 0),
    ):
        with pytest.raises(ClosedError, match="this consumer is closed"):
            call()


def test_nothing_is_pickled(client, topic, group):
    send(client, topic, 1)
    with client.consumer(topic, group) as consumer, client.pull_consumer(topic) as pull:
        for what in (client, client.producer(), consumer, pull):
            with pytest.raises(TypeError, match="connect"):
                pickle.dumps(what)


def test_member_that_filters_differently_is_refused_and_the_first_goes_on(
    cluster, client, topic, group
):
    client.create_topic(topic, queues=2)
    with cluster.connect() as other, client.consumer(topic, group, filter="a || b") as one:
        with pytest.raises(SubscriptionError) as caught:
            other.consumer(topic, group, filter="a")
        said = str(caught.value)
        assert client.client_id in said
        assert other.client_id in said
        assert "'a'" in said
        assert "'a || b'" in said
        assert len(one.assigned) == 2
        send(client, topic, 3, tag="a")
        assert sorted(receive(one, 3)) == [0, 1, 2]
        with other.consumer(topic, group, filter="b||a") as two:
            assert len(two.assigned) == 1


def test_members_with_different_topics_share_only_what_both_have(
    cluster, client, topic, other_topic, group
):
    for name in (topic, other_topic):
        client.create_topic(name, queues=2)
    with (
        cluster.connect() as other,
        client.consumer(topic, group) as one,
        client.consumer(other_topic, group) as alone,
        other.consumer(topic, group) as two,
    ):
        wait_for(lambda: [len(c.assigned) for c in (one, two, alone)] == [1, 1, 2], "the shares")


def test_members_with_listed_queues_have_those(cluster, client, topic, group):
    client.create_topic(topic, queues=4)
    queues = [MessageQueue(topic, "broker-a", queue_id) for queue_id in range(4)]
    with (
        cluster.connect() as other,
        client.consumer(topic, group, allocation=queues[:3]) as one,
        other.consumer(topic, group, allocation=queues[3:]) as two,
    ):
        assert one.assigned == queues[:3]
        assert two.assigned == queues[3:]


def test_queues_of_a_topic_are_an_error_while_no_broker_is_known(tmp_path):
    """Not an empty list: a program would take that for a topic without queues."""
    with (
        NamesrvProcess(tmp_path) as namesrv,
        shmq.connect(namesrv.runtime) as client,
        pytest.raises(TopicNotExistError, match="orders"),
    ):
        client.pull_consumer("orders")
