"""What programs give to the client and what makes no sense: one clear line each."""

import math

import pytest

from shmq.client import arguments
from shmq.config import WaitingPolicy
from shmq.errors import ConfigError, SubscriptionError
from shmq.result import MessageQueue


@pytest.mark.parametrize("timeout", [0, 0.0, 3, 1e9, True])
def test_seconds_to_wait_are_any_number_from_zero_on(timeout: float):
    arguments.check_timeout("send", timeout)


@pytest.mark.parametrize("timeout", [None, "3", b"3"])
def test_what_is_no_number_is_no_time_to_wait(timeout: object):
    with pytest.raises(TypeError, match="^send: timeout .* wanted seconds as a number"):
        arguments.check_timeout("send", timeout)  # type: ignore[arg-type] # what is tested


@pytest.mark.parametrize("timeout", [-1, -0.001, math.inf, -math.inf, math.nan, 1e10])
def test_no_wait_is_negative_or_without_an_end(timeout: float):
    with pytest.raises(ValueError, match="wanted 0 to 1000000000 seconds"):
        arguments.check_timeout("send", timeout)


@pytest.mark.parametrize("time", [-1.0, math.nan, math.inf, 1e15])
def test_time_that_no_calendar_has_is_refused(time: float):
    with pytest.raises(ValueError, match="since 1970"):
        arguments.check_time("seek", time)


@pytest.mark.parametrize("time", [None, "2026-01-01"])
def test_time_is_a_number(time: object):
    with pytest.raises(TypeError, match="seconds since 1970 as a number"):
        arguments.check_time("seek", time)  # type: ignore[arg-type] # what is tested


@pytest.mark.parametrize("count", ["8", 1.0, True, None])
def test_count_is_a_whole_number(count: object):
    with pytest.raises(TypeError, match="queues .* wanted a whole number, 1 to 9"):
        arguments.check_count("create topic t", "queues", count, most=9)  # type: ignore[arg-type] # what is tested


@pytest.mark.parametrize("count", [0, -1, 10])
def test_count_out_of_range_is_told_in_the_callers_words(count: int):
    with pytest.raises(ConfigError, match=f"^create topic t: queues {count}: wanted 1 to 9$"):
        arguments.check_count("create topic t", "queues", count, most=9)


def test_key_and_queue_are_not_given_together():
    arguments.check_one_place("send", "k", None)
    arguments.check_one_place("send", None, "least-loaded")
    with pytest.raises(TypeError, match="key and queue: .* give one"):
        arguments.check_one_place("send", "k", MessageQueue("t", "broker-a", 0))


@pytest.mark.parametrize("bodies", ["text", b"bytes", bytearray(2), memoryview(b"x")])
def test_one_body_is_not_several(bodies: object):
    with pytest.raises(TypeError, match=r"give \[body\]"):
        arguments.check_bodies("send_many to t", bodies)


def test_what_cannot_be_gone_through_holds_no_bodies():
    arguments.check_bodies("send_many to t", iter([b"x"]))
    with pytest.raises(TypeError, match="bodies is a int: wanted several"):
        arguments.check_bodies("send_many to t", 5)


@pytest.mark.parametrize("expression", ["a ||", "|| a", "a || || b", "||"])
def test_filter_with_an_empty_tag_is_refused(expression: str):
    with pytest.raises(SubscriptionError, match="holds an empty tag"):
        arguments.check_filter("t", expression)


@pytest.mark.parametrize("expression", [None, "*", "", "a", "a||b", " a || b "])
def test_filter_without_an_empty_tag_passes(expression: str | None):
    arguments.check_filter("t", expression)


def test_filter_is_text():
    with pytest.raises(TypeError, match="wanted a str"):
        arguments.check_filter("t", ["a", "b"])  # type: ignore[arg-type] # what is tested


def test_member_of_an_enumeration_is_known_by_its_text_and_others_are_told():
    assert arguments.member("connect", "policy", WaitingPolicy, "blocking") == "blocking"
    with pytest.raises(
        ConfigError, match="^connect: policy 'lazy': wanted blocking, adaptive, busy_spin$"
    ):
        arguments.member("connect", "policy", WaitingPolicy, "lazy")


@pytest.mark.parametrize("queue", [3, "t", ("t", "broker-a", 0), None])
def test_queue_is_a_message_queue(queue: object):
    with pytest.raises(TypeError, match="wanted a MessageQueue"):
        arguments.check_message_queue("pull", queue)


@pytest.mark.parametrize("place", ["1", 1.0, None, True])
def test_place_in_a_queue_is_a_whole_number(place: object):
    with pytest.raises(TypeError, match="wanted a whole number"):
        arguments.check_queue_offset("pull", place)
