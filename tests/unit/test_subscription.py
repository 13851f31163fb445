"""Subscriptions: tag expressions, Java's hash, group configuration."""

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmq.errors import IllegalGroupError, SubscriptionError
from shmq.subscription import (
    SubscriptionData,
    SubscriptionGroupConfig,
    check_group,
    is_system_group,
    java_hash,
    tags_code,
)
from tests.support.require import require_or_skip

# Java's own values: "hello".hashCode() and so on.
JAVA = {
    "": 0,
    "a": 97,
    "hello": 99162322,
    "TagA": 2598919,
    "polygenelubricants": -(2**31),
    "Aa": 2112,
    "BB": 2112,
    "über": 7604755,
    "😀": 1772899,
}


@pytest.mark.parametrize("text", JAVA)
def test_hash_is_javas(text: str) -> None:
    assert java_hash(text) == JAVA[text]


def test_hash_is_what_java_says_itself(tmp_path: Path) -> None:
    if not shutil.which("java"):
        require_or_skip("java not found: apt install default-jdk-headless")
    texts = [*JAVA, "tag-" * 50, "\U0010ffff\ud7ff", "ÿĀ"]
    source = tmp_path / "Hash.java"
    lines = "".join(f"System.out.println({_java(text)}.hashCode());" for text in texts)
    source.write_text(f"class Hash {{ public static void main(String[] a) {{ {lines} }} }}")
    command = ["java", "-XX:-UsePerfData", source]  # else it leaves a folder in /tmp
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [java_hash(text) for text in texts] == [int(line) for line in said.split()]


def _java(text: str) -> str:
    units = text.encode("utf-16-be")
    return (
        '"' + "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2)) + '"'
    )


@given(st.text())
def test_hash_is_a_signed_word_and_zero_only_tells_of_no_tag(text: str) -> None:
    assert -(2**31) <= java_hash(text) < 2**31
    assert tags_code(text or None) == (java_hash(text) if text else 0)


@pytest.mark.parametrize("expression", [None, "", "*", "  ", " * "])
def test_nothing_and_star_let_every_message_pass(expression: str | None) -> None:
    data = SubscriptionData.parse("t", expression)
    assert data.passes_tag(None)
    assert data.passes_tag("x")
    assert data.passes_code(0)
    assert data.passes_code(7)


def test_tags_let_only_their_own_pass() -> None:
    data = SubscriptionData.parse("t", "a || b||c ", sub_version=5)
    assert data.tags_set == {"a", "b", "c"}
    assert data.code_set == {97, 98, 99}
    assert data.sub_version == 5
    assert data.passes_code(98)
    assert not data.passes_code(100)
    assert not data.passes_code(0)
    assert not data.passes_tag(None)


def test_colliding_hash_is_told_apart_by_the_tag() -> None:
    data = SubscriptionData.parse("t", "Aa")
    assert data.passes_code(tags_code("BB"))
    assert not data.passes_tag("BB")


@pytest.mark.parametrize("expression", ["||", "a | b", "a b", "a || b c", "||  ||"])
def test_expression_that_would_match_nothing_is_refused(expression: str) -> None:
    with pytest.raises(SubscriptionError, match="^subscribe t: "):
        SubscriptionData.parse("t", expression)


def test_group_names_follow_rocketmqs_rules() -> None:
    check_group("g" * 120)
    for name in ("", "g" * 121, "a b", "g/../x"):
        with pytest.raises(IllegalGroupError, match="^group "):
            check_group(name)
    assert is_system_group("CID_RMQ_SYS_TRANS")
    assert not is_system_group("billing")


def test_group_of_a_real_broker_round_trips_with_keys_we_do_not_know() -> None:
    written: dict[str, object] = {
        "groupName": "billing", "consumeEnable": True, "consumeFromMinEnable": True,
        "consumeBroadcastEnable": True, "consumeMessageOrderly": False, "retryQueueNums": 1,
        "retryMaxTimes": 16, "groupRetryPolicy": {"type": "CUSTOMIZED"}, "brokerId": 0,
        "whichBrokerWhenConsumeSlowly": 1, "notifyConsumerIdsChangedEnable": True,
        "groupSysFlag": 0, "consumeTimeoutMinute": 15, "attributes": {},
        "subscriptionDataSet": [{"topic": "t"}],
    }  # fmt: skip
    config = SubscriptionGroupConfig.from_dict(written)
    assert config.to_dict() == written
    assert set(config.other) == {"groupRetryPolicy", "subscriptionDataSet"}
    assert SubscriptionGroupConfig.from_dict({"groupName": "g"}).retry_max_times == 16
