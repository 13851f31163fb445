"""The core's protocols under Relacy, over the core's own headers (relacy/shim.hpp).

A model runs its threads in random schedules, in which a load may see whatever the C11 memory model
lets it see. NEEDED lists each ordering and fence that a model cannot do without: weakened, it
must fail. The default set plants the five that were feared most, a full run all of them.
"""

import hashlib
import os
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.support.repository import HEADERS, ROOT
from tests.support.require import require_or_skip, require_program
from tests.support.scale import QUICKLY, is_full_run, scaled

HERE = Path(__file__).parent / "relacy"
RELACY = Path("/usr/include/relacy")
HISTORY = b"atomic_history_size = 3;"
"""How many values of a word Relacy remembers: too few for a block that changes hands."""

MODELS = (
    "send",
    "sleep",
    "levels",
    "blocks",
    "rows",
    "rows-later",
    "ended",
    "commit",
    "remap",
)

FEARED = {
    ("send", "shmq_lane_publish: store_release(&writer->lane->tail)"),
    ("sleep", "shmq_append_sleep: fence_full"),
    ("send", "shmq_turn_publish: store_release(&queue->visible_max)"),
    ("blocks", "shmq_consume_queue_read: fence_acquire"),
    ("commit", "shmq_turn_run: store_release(&control->append.turn_number)"),
}

NEEDED = [
    *sorted(FEARED),
    ("send", "shmq_ring_begin: load_acquire(&ring->lane->tail)"),
    ("send", "shmq_lane_claim: load_acquire(&writer->slot->read_position)"),
    ("send", "shmq_turn_publish: store_release(&ring->slot->read_position)"),
    ("send", "shmq_turn_publish: store_release(&ring->slot->completion_tail)"),
    ("send", "shmq_lane_completion_core: load_acquire(&writer->slot->completion_tail)"),
    ("send", "shmq_ring_settle: store_release(&ring->slot->done_tail)"),
    ("send", "shmq_lane_completion_core: load_acquire(&writer->slot->done_tail)"),
    ("sleep", "shmq_lane_publish: fence_full"),
    ("sleep", "shmq_sleep_begin: fence_full"),
    ("sleep", "shmq_turn_publish: fence_full"),
    ("levels", "shmq_turn_settle: fence_full"),
    ("levels", "shmq_row_settle: store_release(&queue->visible_max)"),
    ("levels", "shmq_turn_publish: store_release(&control->append.committed_position)"),
    ("blocks", "shmq_consume_queue_put: fence_release"),
    ("blocks", "shmq_consume_queue_find: load_acquire(&head->generation)"),
    ("rows-later", "shmq_append_add_row: fence_release"),
    ("rows-later", "shmq_consume_queue_read: fence_acquire"),
    ("ended", "shmq_ring_end: fence_full"),
    ("ended", "shmq_lane_ended: load_acquire(&writer->slot->ended)"),
    ("remap", "shmq_append_ready: fence_release"),
]


@cache
def program() -> Path:
    """The models, built once for each state of their sources."""
    compiler = require_program("g++", "g++")
    if not (RELACY / "relacy.hpp").exists():
        require_or_skip("relacy not found: apt install relacy-dev")
    flags = ["-std=gnu++20", QUICKLY, "-fpermissive", "-w"]  # C headers, read as C++
    c_tests = ROOT / "tests/c"
    digest = hashlib.sha256(repr(flags).encode())
    for source in sorted([*HEADERS.rglob("*.h"), *HERE.iterdir(), c_tests / "store_fixture.h"]):
        digest.update(source.read_bytes())
    folder = ROOT / "build/model" / digest.hexdigest()[:16]
    made = folder / "protocols"
    if made.exists():
        return made
    own = folder.with_name(f"{folder.name}.{os.getpid()}")
    include = own / "include/relacy"
    (include / "stdlib").mkdir(parents=True)
    for header in RELACY.rglob("*.h*"):
        text = header.read_bytes()
        if header.name == "defs.hpp":
            assert HISTORY in text
            text = text.replace(HISTORY, b"atomic_history_size = 8;")
        (include / header.relative_to(RELACY)).write_bytes(text)
    places = [f"-I{own / 'include'}", f"-I{HEADERS}", f"-I{c_tests}", f"-I{HERE}"]
    command = [compiler, *flags, *places, str(HERE / "protocols.cpp"), "-o", str(own / "protocols")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    if not folder.exists():
        own.rename(folder)
    return made


def run(model: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program()), model, *options], capture_output=True, text=True, check=False, timeout=600
    )


@pytest.mark.timeout(900)
@pytest.mark.parametrize("model", MODELS)
def test_protocol_holds_in_every_schedule_tried(model: str) -> None:
    default, full = (500, 30_000) if model.startswith("rows") else (10_000, 2_000_000)
    result = run(model, "--iterations", str(scaled(default, full)))
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("model", "site"), NEEDED if is_full_run() else sorted(FEARED), ids=lambda value: value
)
def test_protocol_fails_without_an_ordering_it_needs(model: str, site: str) -> None:
    result = run(model, "--weaken", site, "--iterations", "200000")
    assert result.returncode == 1, result.stdout[-1000:] + result.stderr
