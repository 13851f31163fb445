"""Names: one spelling, one reading, nothing foreign taken for ours."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmq.errors import ShmError
from shmq.shm.names import (
    NAME_SIZE_MAX,
    ObjectKind,
    StoreName,
    label,
    new_generation,
    parse,
    parse_store,
)

BOOT = bytes(range(16))
_names = st.text(min_size=1, max_size=300)


@given(
    cluster=_names,
    broker=_names,
    broker_id=st.integers(0, 2**63 - 1),
    boot=st.binary(min_size=16, max_size=16),
    generation=st.integers(1, 2**64 - 1),
    kind=st.sampled_from(ObjectKind),
    n=st.integers(0, 2**32 - 1),
)
def test_every_name_reads_back_as_what_it_was_made_of(
    cluster: str,
    broker: str,
    broker_id: int,
    boot: bytes,
    generation: int,
    kind: ObjectKind,
    n: int,
) -> None:
    store = StoreName.make(
        cluster_name=cluster,
        broker_name=broker,
        broker_id=broker_id,
        boot_id=boot,
        generation=f"{generation:016x}",
    )
    name = store.object(kind, n)
    assert parse(str(name)) == name
    assert parse(name.file_name) == name
    assert parse_store(str(store)) == store
    assert len(name.file_name.encode()) <= NAME_SIZE_MAX
    assert re.fullmatch(r"/[A-Za-z0-9_.-]+", str(name))


@given(st.text(max_size=80) | st.from_regex(r"/?shmq(\.[a-z0-9_-]{1,20}){5,9}", fullmatch=True))
def test_what_reads_as_ours_is_spelled_as_we_spell_it(text: str) -> None:
    name = parse(text)
    assert name is None or str(name) == f"/{text.removeprefix('/')}"


def test_name_looks_as_documented() -> None:
    store = StoreName.make(
        cluster_name="DefaultCluster",
        broker_name="broker-a",
        broker_id=1,
        boot_id=bytes.fromhex("0123456789abcdef0123456789abcdef"),
        generation="00000000deadbeef",
    )
    assert str(store.object(ObjectKind.HOT, 12)) == (
        "/shmq.DefaultCluster.broker-a.1.01234567.00000000deadbeef.hot.12"
    )


def test_longest_name_is_as_long_as_documented() -> None:
    store = StoreName.make(
        cluster_name="c" * 500,
        broker_name="b" * 500,
        broker_id=2**63 - 1,
        boot_id=BOOT,
        generation="f" * 16,
    )
    assert len(store.object(ObjectKind.COMPLETION, 2**32 - 1).file_name) == 202


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "shmq",
        "psm_1234",
        "sem.shmq.c.b.0.01234567.00000000deadbeef.hot.1",
        "shmq.c.b.0.01234567.00000000deadbeef.hot",
        "shmq.c.b.0.01234567.00000000deadbeef.hot.1.lock",
        "shmq.c.b.0.01234567.00000000deadbeef.cold.1",
        "shmq.c.b.0.01234567.00000000deadbeef.HOT.1",
        "shmq.c.b.0.01234567.00000000DEADBEEF.hot.1",
        "shmq.c.b.0.01234567.0000000000000000.hot.1",
        "shmq.c.b.0.01234567.deadbeef.hot.1",
        "shmq.c.b.00.01234567.00000000deadbeef.hot.1",
        "shmq.c.b.-1.01234567.00000000deadbeef.hot.1",
        "shmq.c.b.9223372036854775808.01234567.00000000deadbeef.hot.1",
        "shmq.c.b.0.01234567.00000000deadbeef.hot.01",
        "shmq.c.b.0.01234567.00000000deadbeef.hot.4294967296",
        "shmq.c.b.0.01234567.00000000deadbeef.hot.\u0661",
        "shmq.c.b.0.01234567.00000000deadbeef.hot.1\n",
        "shmq..b.0.01234567.00000000deadbeef.hot.1",
        f"shmq.{'c' * 65}.b.0.01234567.00000000deadbeef.hot.1",
        "//shmq.c.b.0.01234567.00000000deadbeef.hot.1",
        "../shmq.c.b.0.01234567.00000000deadbeef.hot.1",
        "shmq.c/d.b.0.01234567.00000000deadbeef.hot.1",
    ],
)
def test_foreign_name_is_not_ours(text: str) -> None:
    assert parse(text) is None


def test_plain_label_stays_as_it_is() -> None:
    assert label("broker-a_7") == "broker-a_7"
    assert label("x" * 64) == "x" * 64


@given(_names, _names)
def test_different_names_have_different_labels(one: str, other: str) -> None:
    assert (label(one) == label(other)) == (one == other)


def test_plain_name_cannot_pose_as_a_changed_one() -> None:
    changed = label("my.host")
    assert re.fullmatch(r"my_host-[0-9a-f]{10}", changed)
    assert label(changed) != changed
    assert label("x" * 65) != label("x" * 66)


def test_empty_name_is_refused() -> None:
    with pytest.raises(ShmError, match="must not be empty"):
        label("")


@pytest.mark.parametrize(
    ("broker_id", "boot", "generation"),
    [
        (-1, BOOT, "f" * 16),
        (2**63, BOOT, "f" * 16),
        (0, b"abc", "f" * 16),
        (0, BOOT, "0" * 16),
        (0, BOOT, "F" * 16),
        (0, BOOT, "../../../etc/shm"),
    ],
)
def test_part_out_of_range_is_refused(broker_id: int, boot: bytes, generation: str) -> None:
    with pytest.raises(ShmError, match="no store name"):
        StoreName.make(
            cluster_name="c",
            broker_name="b",
            broker_id=broker_id,
            boot_id=boot,
            generation=generation,
        )


@pytest.mark.parametrize("n", [-1, 2**32])
def test_number_out_of_range_is_refused(n: int) -> None:
    store = parse_store("shmq.c.b.0.01234567.00000000deadbeef")
    assert store is not None
    with pytest.raises(ShmError, match="number"):
        store.object(ObjectKind.HOT, n)


def test_generations_differ_and_are_never_zero() -> None:
    drawn = {new_generation() for _ in range(1000)}
    assert len(drawn) == 1000
    assert all(re.fullmatch(r"[0-9a-f]{16}", one) and int(one, 16) for one in drawn)
