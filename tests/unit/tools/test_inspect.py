import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from shmq.config import StoreConfig
from shmq.core import core
from shmq.shm.names import ObjectKind, ObjectName, parse
from shmq.store import boot_files
from shmq.store.config_files import ConfigFiles, ConsumerOffsets
from shmq.store.index_files import index_path, write_index
from shmq.store.log_files import LogFiles
from shmq.store.positions import positions_path
from shmq.store.quarantine import Hole, Quarantine
from shmq.store.recovery import recover_files
from shmq.tools.inspect import main
from tests.support.dev_shm import DEV_SHM, RUN_TOKEN
from tests.support.repository import ROOT
from tests.support.store_process import StoreClient, StoreProcess, wait_until
from tests.unit.store.stores import BASE_MS, FILE_SIZE, Writer, all_bytes
from tests.unit.store.test_recovery import _say_flushed

LIVE_FILE_SIZE = 1 << 20


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    writer = Writer(tmp_path / "store").fill(400)
    _say_flushed(writer.store_path, writer.position)
    recover_files(writer.store_path, FILE_SIZE).consume_queues.close()
    boot_files.make_abort(writer.store_path)
    return writer


def _inspect(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    code = main([*map(str, arguments), "--json"])
    return code, orjson.loads(capsys.readouterr().out)


def _fields(section: dict[str, Any]) -> dict[str, Any]:
    return {field["name"]: field["value"] for field in section["fields"]}


# ---- files ---------------------------------------------------------------------------------------


def test_index_file_is_shown_with_the_places_of_its_entries(
    writer: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    write_index(LogFiles(writer.store_path, FILE_SIZE), 0)
    path = index_path(writer.store_path, 0)
    code, shown = _inspect(capsys, path, "--count", 400)
    header, entries = shown["sections"]
    assert (code, _fields(header)["file_position"]) == (0, 0)
    places = [field["value"]["physical_offset"] for field in entries["fields"]]
    assert sorted(places) == [r.position for r in writer.records if r.position < FILE_SIZE]
    path.write_bytes(path.read_bytes()[:-1])
    code, shown = _inspect(capsys, path)
    assert code == 1


def test_frame_is_shown_field_by_field_at_its_place(
    writer: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    record = writer.records[250]
    for target in (
        writer.store_path,
        writer.store_path / "commitlog",
        writer.path(record.position),
    ):
        code, shown = _inspect(capsys, target, "--at", record.position)
        (section,) = shown["sections"]
        assert (code, section["title"]) == (0, f"record at {record.position}")
        fields = _fields(section)
        assert fields["totalSize"] == record.size
        assert fields["topic"] == record.topic
        assert fields["queueId"] == record.queue_id
        assert fields["queueOffset"] == record.queue_offset
        assert fields["storeTimestamp"] == BASE_MS + 250
        assert fields["storeHost"] == "127.0.0.1:10911"
        assert fields["property UNIQ_KEY"] == "0123456789ABCDEF"
        for field in section["fields"]:
            if field["name"] == "topic":
                place = record.position + field["place"]
                name = writer.read(place, 1 + len(record.topic))
                assert name == bytes([len(record.topic)]) + record.topic.encode()


def test_log_file_is_shown_by_window(writer: Writer, capsys: pytest.CaptureFixture[str]) -> None:
    path = writer.path(0)
    _, shown = _inspect(capsys, path, "--begin", 5, "--count", 3)
    titles = [section["title"] for section in shown["sections"]]
    assert titles == [f"record at {writer.records[index].position}" for index in (5, 6, 7)]
    _, shown = _inspect(capsys, path, "--count", 100_000)
    assert shown["sections"][-1]["title"].startswith("BLANK frame at ")
    _, shown = _inspect(capsys, writer.path(writer.position), "--count", 100_000)
    assert shown["sections"][-1]["title"] == f"end of the log at {writer.position}"


def test_damaged_record_says_what_is_wrong_and_the_walk_goes_on(
    writer: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    victim = writer.records[1]
    writer.damage(victim)
    _, shown = _inspect(capsys, writer.path(0), "--count", 3)
    titles = [section["title"] for section in shown["sections"]]
    assert "BODY_CRC: bodyCRC differs from the body" in titles[1]
    assert titles[2] == f"record at {writer.records[2].position}"
    writer.write(victim.position + 4, b"\xff")
    _, shown = _inspect(capsys, writer.path(0), "--count", 3)
    assert shown["sections"][1]["title"] == f"no frame at {victim.position}"


def test_consume_queue_file_shows_header_runs_and_entries(
    writer: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    path = writer.store_path / "shmq/consumequeue" / f"{0:020d}.cq"
    code, shown = _inspect(capsys, path, "--count", 100_000)
    assert code == 0
    sections = {section["title"]: _fields(section) for section in shown["sections"]}
    assert sections["header"]["file_position"] == 0
    first = next(r for r in writer.records if (r.topic, r.queue_id) == ("topic-2", 1))
    entry = sections["topic-2 queue 1 entries"]["offset 0"]
    assert entry == {"physical_offset": first.position, "tags_code": 0, "size": first.size}
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)
    code, shown = _inspect(capsys, path)
    assert code == 1
    assert "CRC does not hold" in shown["problem"]


def test_every_file_of_a_store_is_shown(writer: Writer, capsys: pytest.CaptureFixture[str]) -> None:
    store = writer.store_path
    Quarantine(holes=(Hole(1, 2, "MAGIC"),)).save(Quarantine.path(store))
    ConfigFiles(store).store(ConsumerOffsets(offsets={"t@g": {0: 1}}))
    (store / "config/topics.json").write_text('{"topicConfigTable":{1:2}}', encoding="utf-8")
    (store / "lock").write_bytes(b"lock")
    boot_files.write_broker_conf(StoreConfig(store_path=store), file_size_bytes=FILE_SIZE)
    before = all_bytes(store)
    for path in sorted(store.rglob("*")):
        if path.is_file():
            code, shown = _inspect(capsys, path)
            assert (code, shown["problem"]) == (0, None), path
            assert shown["sections"], path
            assert main([str(path)]) == 0
            assert capsys.readouterr().out
    code, shown = _inspect(capsys, store)
    titles = [section["title"] for section in shown["sections"]]
    assert "positions: slot 1" in titles
    assert "quarantine.json: checksum holds" in titles
    assert all_bytes(store) == before


def test_what_does_not_hold_is_said_and_the_rest_shown(
    writer: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    path = positions_path(writer.store_path)
    data = bytearray(path.read_bytes())
    data[4096 + 20] ^= 1
    path.write_bytes(data)
    _, shown = _inspect(capsys, path)
    slot = shown["sections"][1]
    assert slot["title"] == "slot 1: does not count"
    assert "CRC" in _fields(slot)["reason"]
    (writer.store_path / "shmq/quarantine.json").write_bytes(b"{}")
    code, shown = _inspect(capsys, writer.store_path)
    assert code == 0
    assert shown["sections"][-1]["title"] == "quarantine.json: does not hold"


def test_any_bytes_of_a_log_file_are_shown(
    writer: Writer, rng: random.Random, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = writer.path(0).read_bytes()
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(20):
            data[rng.randrange(2000)] = rng.randrange(256)
        writer.path(0).write_bytes(data)
        code, _ = _inspect(capsys, writer.path(0), "--count", 50)
        assert code == 0


def test_command_line_says_what_it_takes(writer: Writer, tmp_path: Path) -> None:
    def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "shmq.tools.inspect", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )

    assert run().returncode == 64
    assert run(writer.path(0), "--at", "-1").returncode == 64
    assert "physical_offset" in run("--help").stdout
    for arguments in (
        [tmp_path / "nothing"],
        [tmp_path],
        [writer.path(0), "--at", FILE_SIZE],
        [f"/shmq.{RUN_TOKEN}.b.0.00000000.{1:016x}.control.0"],
    ):
        done = run(*arguments)
        assert (done.returncode, done.stderr[:7]) == (1, "error: "), done
    done = run(writer.path(0), "--count", 1)
    assert done.returncode == 0
    assert "bodyCRC" in done.stdout


# ---- segments ------------------------------------------------------------------------------------


@pytest.fixture
def live(tmp_path: Path, cluster_name: str) -> Iterator[StoreClient]:
    config = StoreConfig(
        store_path=tmp_path / "live",
        runtime_path=tmp_path / "run",
        cluster_name=cluster_name,
        commit_log_file_size_bytes=LIVE_FILE_SIZE,
        hot_segment_count=3,
        max_message_size_bytes=256 * 1024,
    )
    with StoreProcess(config) as store, StoreClient(store) as client:
        handle = store.add_queue("orders", 5)
        client.grant(handle)
        for number in range(10):
            client.lanes[0].send(*handle, f"body {number}", tag="red")
        yield client


def _objects(client: StoreClient) -> dict[ObjectKind, ObjectName]:
    names = {}
    for file_name in os.listdir(DEV_SHM):
        name = parse(file_name)
        if name is not None and name.store.cluster == client.store.config.cluster_name:
            names.setdefault(name.kind, name)
    return names


def test_live_segments_are_shown_while_the_broker_writes(
    live: StoreClient, capsys: pytest.CaptureFixture[str]
) -> None:
    names = _objects(live)
    assert {ObjectKind.CONTROL, ObjectKind.TOPICS, ObjectKind.ARENA, ObjectKind.HOT} <= set(names)
    facts = live.store.facts()
    code, shown = _inspect(capsys, names[ObjectKind.CONTROL])
    assert code == 0, shown["problem"]
    sections = {section["title"]: _fields(section) for section in shown["sections"]}
    assert sections["segment_header"]["magic"] == "shmqctrl"
    assert sections["control_config"]["file_size_bytes"] == LIVE_FILE_SIZE
    committed = facts["positions"]["committed_position"]
    assert sections["append_positions"]["committed_position"] == committed
    assert sections["counters"]["messages_in"] == 10
    row = next(fields for title, fields in sections.items() if title.startswith("queue_row"))
    assert (row["queue_id"], row["max_queue_offset"]) == (5, 10)
    code, shown = _inspect(capsys, names[ObjectKind.TOPICS])
    topics = [_fields(section) for section in shown["sections"][1:]]
    assert [row["topic"] for row in topics] == ["orders"]
    code, shown = _inspect(capsys, names[ObjectKind.ARENA], "--count", 100_000)
    entries = [s for s in shown["sections"] if " entry " in s["title"]]
    assert len(entries) == 10
    assert _fields(entries[0])["size"] > 0
    code, shown = _inspect(capsys, names[ObjectKind.COMPLETION])
    assert code == 0


def test_rings_and_pages_of_a_client_are_shown(
    live: StoreClient, capsys: pytest.CaptureFixture[str]
) -> None:
    """They have no name; whoever may look at the process finds them among its fds."""
    code, shown = _inspect(capsys, f"/proc/self/fd/{live.fds['ingress']}")
    assert code == 0, shown["problem"]
    sections = {section["title"]: _fields(section) for section in shown["sections"]}
    assert sections["segment_header"]["magic"] == "shmqingr"
    assert sections["lane 0"]["tail"] > 0
    code, shown = _inspect(capsys, f"/proc/self/fd/{live.fds['consumer']}", "--all")
    assert code == 0, shown["problem"]
    structs = {section["title"].split()[0] for section in shown["sections"]}
    assert structs == {"segment_header", "sleeper", "claim"}
    foreign = os.memfd_create("foreign")
    try:
        for size in (0, 4096):
            os.truncate(foreign, size)
            code, shown = _inspect(capsys, f"/proc/self/fd/{foreign}")
            assert code == 1
            assert f"/proc/self/fd/{foreign}" in shown["problem"]
    finally:
        os.close(foreign)


def test_every_field_of_layout_has_its_meaning(
    live: StoreClient, capsys: pytest.CaptureFixture[str]
) -> None:
    name = _objects(live)[ObjectKind.CONTROL]
    for struct in ("segment_header", "append_positions", "hot_slot", "session_slot", "queue_row"):
        code, shown = _inspect(capsys, f"/dev/shm{name}", "--struct", struct, "--all")
        assert code == 0
        docs = {field: doc for field, _, _, _, doc in core.LAYOUT[struct][1]}
        for section in shown["sections"]:
            for field in section["fields"]:
                assert docs[field["name"]] in field["meaning"]
    code, shown = _inspect(capsys, name, "--struct", "no_such")
    assert (code, "no struct no_such" in shown["problem"]) == (1, True)


def test_frames_of_hot_memory_are_shown(
    live: StoreClient, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [
        name
        for name in (parse(file_name) for file_name in os.listdir(DEV_SHM))
        if name is not None
        and name.store.cluster == live.store.config.cluster_name
        and name.kind is ObjectKind.HOT
    ]
    bodies = []
    for name in names:
        _, shown = _inspect(capsys, name)
        sections = [s for s in shown["sections"] if s["title"].startswith("record at ")]
        bodies += [_fields(section)["body"] for section in sections]
    assert bodies == [f"body {number}" for number in range(10)]


def test_log_file_is_shown_while_it_is_written(
    live: StoreClient, capsys: pytest.CaptureFixture[str]
) -> None:
    wait_until(
        lambda: (
            live.store.facts()["positions"]["flushed_position"]
            == live.store.facts()["positions"]["committed_position"]
        )
    )
    _, shown = _inspect(capsys, live.store.config.store_path, "--at", 0)
    assert _fields(shown["sections"][0])["property TAGS"] == "red"
