"""Deliberate mistakes in the core's headers, each of which a named C test must find (full runs).

The headers are copied, one line is changed, the test program is built over the copy and must fail
in the test that is named. Orderings that only a weak memory model can miss are planted in
tests/model/test_relacy.py, mistakes of the protocol in tests/model/*.pml.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.c.conftest import fixed_layout
from tests.support.repository import HEADERS
from tests.support.require import require_program

HERE = Path(__file__).parent
BUILDS = {
    "plain": ["-O2"],
    "asan": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "tsan": ["-O1", "-fsanitize=thread"],
}


class Bug(NamedTuple):
    """One mistake: `old` in the header becomes `new`; the program fails in `test`."""

    name: str
    header: str
    old: str
    new: str
    program: str
    test: str
    build: str = "plain"


BUGS = [
    # --- stats.h
    Bug(
        "counts a latency that is the bound in the next bucket",
        "stats.h",
        "took_ns > bounds[index]",
        "took_ns >= bounds[index]",
        "test_stats",
        "test_each_latency_counts_in_the_first_bucket_whose_bound_it_does_not_pass",
    ),
    Bug(
        "takes what a lane has counted again and again",
        "stats.h",
        "    *seen = now;\n",
        "",
        "test_stats",
        "test_what_a_lane_has_counted_is_taken_once",
    ),
    Bug(
        "believes a count that goes back",
        "stats.h",
        "if (grown < SHMQ_LATENCY_LEAP_MAX) {",
        "if (1) {",
        "test_stats",
        "test_a_count_that_goes_back_or_leaps_adds_nothing",
    ),
    Bug(
        "leaves the values of a row's last use",
        "stats.h",
        "    shmq_store_relaxed(&row->passed_count, 0);\n",
        "",
        "test_stats",
        "test_a_row_that_changes_hands_is_whole_under_its_next_even_generation",
    ),
    # --- ingress.h
    Bug(
        "sends without a free completion entry",
        "ingress.h",
        "if (writer->sequence - writer->completion_read >= writer->completion_capacity) {",
        "if (0) {",
        "test_ingress",
        "test_no_record_is_sent_without_a_free_completion_entry",
    ),
    Bug(
        "forgets the PAD when it counts room",
        "ingress.h",
        "uint64_t need = size <= to_end ? size : to_end + size;",
        "uint64_t need = size;",
        "test_ingress",
        "test_random_traffic_round_many_laps_keeps_order_and_bytes",
    ),
    Bug(
        "believes an unaligned tail",
        "ingress.h",
        " || (tail & (SHMQ_RECORD_ALIGN - 1)) != 0",
        "",
        "test_ingress",
        "test_impossible_tail_is_corrupt",
    ),
    Bug(
        "gives away an entry that is not settled",
        "ingress.h",
        "(taken < ring->done_tail ? taken : ring->done_tail)",
        "taken",
        "test_ingress",
        "test_broker_takes_nothing_without_a_free_completion_entry",
    ),
    Bug(
        "adds lengths in 32 bits",
        "ingress.h",
        "if (sizeof *head + (uint64_t)head->body_size + head->properties_size > head->size)",
        "if ((uint32_t)(sizeof *head + head->body_size + head->properties_size) > head->size)",
        "test_ingress",
        "test_head_that_no_producer_of_ours_writes_is_corrupt",
    ),
    Bug(
        "reads a record past what is published",
        "ingress.h",
        "if (head->size > left_here || ",
        "if (",
        "test_ingress",
        "test_head_that_no_producer_of_ours_writes_is_corrupt",
    ),
    Bug(
        "lets a large body leave its chunk memory",
        "ingress.h",
        "head->body_size > ring->chunk_size - head->chunk_place",
        "0",
        "fuzz_ring",
        "test_scribbles_between_turns_hurt_nobody_else",
        "asan",
    ),
    Bug(
        "publishes its tail relaxed",
        "ingress.h",
        "shmq_store_release(&writer->lane->tail, writer->tail);",
        "shmq_store_relaxed(&writer->lane->tail, writer->tail);",
        "test_threads",
        "test_everybody_at_once_over_reused_memory",
        "tsan",
    ),
    Bug(
        "reads the broker's read position relaxed",
        "ingress.h",
        "shmq_load_acquire(&writer->slot->read_position)",
        "shmq_load_relaxed(&writer->slot->read_position)",
        "test_threads",
        "test_everybody_at_once_over_reused_memory",
        "tsan",
    ),
    # --- turn.h
    Bug(
        "publishes before it commits",
        "turn.h",
        "shmq_store_release(&control->append.turn_number, turn);\n"
        "    shmq_turn_publish(append, record, now_ns);",
        "shmq_turn_publish(append, record, now_ns);\n"
        "    shmq_store_release(&control->append.turn_number, turn);",
        "test_death_turn",
        "test_death_in_a_turn_loses_doubles_and_tears_nothing",
    ),
    Bug(
        "shows a SYNC message at once",
        "turn.h",
        "        if (need == 0) {",
        "        if (1) {",
        "test_turn",
        "test_sync_message_is_seen_and_answered_only_once_flushed",
    ),
    Bug(
        "answers a SYNC send at once",
        "turn.h",
        "if (entry->need != 0 && entry->physical_offset",
        "if (0 && entry->physical_offset",
        "test_turn",
        "test_detached_session_leaves_the_turns|test_sync_message_is_seen",
    ),
    Bug(
        "lets one ring have the whole turn",
        "turn.h",
        "ring->read_position + head.size - begin > SHMQ_TURN_RING_BYTES ||",
        "",
        "test_turn",
        "test_flooding_rings_do_not_delay_another_by_more_than_their_share",
    ),
    Bug(
        "begins every turn at the first ring",
        "turn.h",
        "append->ring_cursor = at; /* begins the next turn */",
        "append->ring_cursor = 0;",
        "test_turn",
        "test_every_ring_is_served_within_its_bound_of_turns",
    ),
    Bug(
        "reserves no blocks for what is staged",
        "turn.h",
        "append->arena_reserved >= append->arena.free_count) {\n            return SHMQ_ARENA_FULL",
        "append->arena.free_count == 0) {\n            return SHMQ_ARENA_FULL",
        "test_turn",
        "test_staged_messages_reserve_their_blocks|test_arena_without_blocks",
        "asan",
    ),
    Bug(
        "takes sysFlag from anybody",
        "turn.h",
        "(service ? SHMQ_SYS_FLAG_SERVICE : SHMQ_SYS_FLAG_CLIENT)",
        "SHMQ_SYS_FLAG_SERVICE",
        "test_turn",
        "test_fields_a_client_may_not_choose_are_masked",
    ),
    Bug(
        "takes reconsumeTimes from anybody",
        "turn.h",
        ".reconsume_times = service ? head->reconsume_times : 0,",
        ".reconsume_times = head->reconsume_times,",
        "test_turn",
        "test_fields_a_client_may_not_choose_are_masked",
    ),
    Bug(
        "does not look at the handle's generation",
        "turn.h",
        "if (shmq_load_relaxed32(&queue->generation) != head->row_generation) {",
        "if (0) {",
        "test_turn",
        "test_stale_handle_is_refused",
    ),
    Bug(
        "does not look at the grants",
        "turn.h",
        "(ring->grants[row / 64] >> (row % 64) & 1) == 0",
        "0",
        "test_turn",
        "test_queue_without_a_grant_is_refused",
    ),
    Bug(
        "rings nobody for a visible message",
        "turn.h",
        "shmq_store_release(&queue->visible_max, row->next_queue_offset);\n"
        "            shmq_append_mark_bells(append, row);",
        "shmq_store_release(&queue->visible_max, row->next_queue_offset);",
        "test_consumer",
        "test_sleeping_consumer_is_rung_once_a_turn_for_all_its_queues",
    ),
    Bug(
        "times out one send after the other",
        "turn.h",
        "ring->pending_since_ns == 0 || done >= ring->pending_tail",
        "ring->pending_since_ns == 0 || done != ring->done_tail",
        "test_turn",
        "test_sends_that_wait_together_time_out_together",
    ),
    Bug(
        "ends a session before its tails are final",
        "turn.h",
        "            ring->state = SHMQ_RING_ENDED;\n            ended = 1;",
        "            shmq_ring_end(append, ring, SHMQ_CORRUPT);\n            ended = 1;",
        "test_death_turn",
        "test_death_while_a_session_is_ended_keeps_what_came_before",
    ),
    Bug(
        "shows messages relaxed",
        "turn.h",
        "shmq_store_release(&queue->visible_max, row->next_queue_offset);",
        "shmq_store_relaxed(&queue->visible_max, row->next_queue_offset);",
        "test_threads",
        "test_everybody_at_once_over_reused_memory",
        "tsan",
    ),
    Bug(
        "answers relaxed",
        "turn.h",
        "shmq_store_release(&ring->slot->done_tail, done);",
        "shmq_store_relaxed(&ring->slot->done_tail, done);",
        "test_threads",
        "test_everybody_at_once_over_reused_memory",
        "tsan",
    ),
    # --- layout.h, commit_log.h, waiter.h
    Bug(
        "has one turn record",
        "layout.h",
        "control->config.turn_records_place) + (turn & 1)",
        "control->config.turn_records_place) + (turn & 0)",
        "test_death_turn",
        "test_death_in_a_turn_loses_doubles_and_tears_nothing",
    ),
    Bug(
        "ends a file before there is a next one",
        "commit_log.h",
        "if (next >= ready_end || at == NULL || shmq_commit_log_at(log, next) == NULL) {",
        "if (at == NULL) {",
        "test_commit_log",
        "test_frame_and_its_blank_may_fill_a_whole_file|test_log_is_full",
    ),
    Bug(
        "leaves no room for the BLANK",
        "commit_log.h",
        "    if ((uint64_t)size + SHMQ_BLANK_ROOM > room) {",
        "    if ((uint64_t)size > room) {",
        "test_commit_log",
        "test_frame_rolls_to_the_next_file_at_every_room_left",
    ),
    Bug(
        "rings a sleeper again and again",
        "waiter.h",
        " || epoch == *answered",
        "",
        "test_waiter",
        "test_bell_is_rung_once_for_each_sleep",
    ),
    # --- consume_queue.h
    Bug(
        "trims what is not visible yet",
        "consume_queue.h",
        " ||\n            first + used > visible",
        "",
        "test_consume_queue",
        "test_trim_keeps_what_is_not_visible_yet",
    ),
    Bug(
        "trims and does not say so",
        "consume_queue.h",
        "        shmq_store_relaxed(&row->hot_min_queue_offset, first + used);",
        "",
        "test_consume_queue",
        "test_trim_frees_blocks|test_queue_whose_whole_chain_is_cold",
    ),
    Bug(
        "skips past the place it looks for",
        "consume_queue.h",
        "far_first < first &&\n                queue_offset < far_first + SHMQ_BLOCK_ENTRIES",
        "far_first < first",
        "test_consume_queue",
        "test_cold_reader_skips_most_of_a_long_chain",
    ),
    Bug(
        "never skips",
        "consume_queue.h",
        "candidate = skip;",
        "candidate = previous;",
        "test_consume_queue",
        "test_cold_reader_skips_most_of_a_long_chain",
    ),
    Bug(
        "does not ask whose a block is",
        "consume_queue.h",
        "owner != row_index || owner_generation != row_generation) {",
        "0) {",
        "test_threads",
        "test_everybody_at_once|test_readers_of_queues_that_come_and_go",
        "asan",  # slow enough that a reader is overtaken every time
    ),
    Bug(
        "does not look twice at a block's generation",
        "consume_queue.h",
        "shmq_load_relaxed(&block->header.generation) != cursor->block_generation || here == 0",
        "here == 0",
        "test_threads",
        "test_everybody_at_once|test_readers_of_queues_that_come_and_go",
        "tsan",  # slow enough that a reader is overtaken every time
    ),
    # --- append.h, row_index.h
    Bug(
        "keeps the generation of a deleted row",
        "append.h",
        "shmq_store_release32(&queue->generation, shmq_load_relaxed32(&queue->generation) + 1);",
        "",
        "test_consume_queue",
        "test_handle_of_a_queue_that_is_gone_is_fenced",
    ),
    Bug(
        "does not seal before it deletes a row",
        "append.h",
        "    shmq_turn_seal(append); /* a queue of the same name",
        "    /* a queue of the same name",
        "test_recovery",
        "test_last_turn_is_not_redone_into_a_queue_made_anew",
    ),
    Bug(
        "does not seal before it retires a file",
        "append.h",
        "    shmq_turn_seal(append); /* the last turn may",
        "    /* the last turn may",
        "test_recovery",
        "test_last_turn_is_not_looked_for_in_a_retired_file",
    ),
    Bug(
        "deletes a row without saying that it began",
        "append.h",
        "    shmq_store_release32(&queue->state, SHMQ_ROW_DELETED);",
        "",
        "test_death_verbs",
        "test_death_while_a_row_is_deleted_deletes_it_or_not",
    ),
    Bug(
        "takes an ended session back into the turns",
        "append.h",
        "shmq_load_relaxed32(&ring->slot->ended) == 0 ? SHMQ_RING_LIVE : SHMQ_RING_ENDED;",
        "SHMQ_RING_LIVE;",
        "test_recovery",
        "test_session_that_was_ended_stays_ended",
    ),
    Bug(
        "leaves deleted rows in the index",
        "append.h",
        "    shmq_row_index_remove(&append->row_index, index);",
        "",
        "test_turn",
        "test_row_of_a_deleted_queue|test_row_index_keeps_up",
    ),
    Bug(
        "removes from the index without closing the gap",
        "row_index.h",
        "            index->slots[at] = index->slots[next];\n            at = next;",
        "            break;",
        "test_turn",
        "test_row_index_keeps_up_with_rows_that_come_and_go",
    ),
    # --- recovery.h
    Bug(
        "does not redo read positions",
        "recovery.h",
        "        shmq_store_release(&slot->read_position, entry->read_position);",
        "",
        "test_death_turn",
        "test_death_in_a_turn_loses_doubles_and_tears_nothing",
    ),
    Bug(
        "does not redo completions",
        "recovery.h",
        "        shmq_store_release(&slot->completion_tail, entry->completion_tail);",
        "",
        "test_death_turn",
        "test_death_in_a_turn_loses_doubles_and_tears_nothing",
    ),
    Bug(
        "loses the blocks nobody had linked yet",
        "recovery.h",
        "        if (marks[number] == 0) {\n            shmq_arena_free(arena, number);",
        "        if (marks[number] == 0 && number > 8) {\n"
        "            shmq_arena_free(arena, number);",
        "test_death_turn",
        "test_death_in_a_turn_loses_doubles_and_tears_nothing",
    ),
    Bug(
        "stages again what is there already",
        "recovery.h",
        "            if (queue_offset == row->next_queue_offset) {",
        "            if (queue_offset <= row->next_queue_offset) {",
        "test_death_turn",
        "test_death_in_a_turn_loses_doubles_and_tears_nothing",
    ),
    Bug(
        "fills any hole",
        "recovery.h",
        "                return SHMQ_CORRUPT; /* no damage explains such a hole",
        "                ; /* no damage explains such a hole",
        "test_recovery",
        "test_replay_refuses_a_hole_that_no_damage_explains",
    ),
    Bug(
        "waits for a flush to show what was left half shown",
        "recovery.h",
        "            append->settle_rows = 1;",
        "",
        "test_recovery",
        "test_message_left_between_max_and_visible_is_shown_after_adoption",
    ),
]


def _planted(bug: Bug) -> str:
    """The header with the mistake in it."""
    text = (HEADERS / "shmq" / bug.header).read_text(encoding="utf-8")
    assert text.count(bug.old) == 1, f"{bug.header}: {text.count(bug.old)} times: {bug.old}"
    return text.replace(bug.old, bug.new)


def _tests(bug: Bug) -> list[str]:
    """The tests of its program, in their order."""
    source = HERE / f"{bug.program}.c"
    return re.findall(r"RUN\((\w+)\)", source.read_text(encoding="utf-8"))


@pytest.mark.full
@pytest.mark.timeout(400)
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "_"))
def test_planted_bug_is_found(bug: Bug, tmp_path: Path) -> None:
    compiler = require_program(os.environ.get("CC", "gcc"), "gcc libc6-dev")
    shutil.copytree(HEADERS, tmp_path / "include")
    (tmp_path / "include/shmq" / bug.header).write_text(_planted(bug), encoding="utf-8")
    program = tmp_path / "program"
    source = HERE / f"{bug.program}.c"
    places = [f"-I{tmp_path / 'include'}", f"-I{HERE}"]
    command = [compiler, "-std=c11", "-w", "-g", *BUILDS[bug.build], *places, str(source)]
    subprocess.run([*command, "-o", str(program), "-lpthread", "-lm"], check=True, timeout=120)
    run = [str(program)]
    if bug.build == "tsan":
        run = [*fixed_layout(), *run]
    env = {key: value for key, value in os.environ.items() if key != "SHMQ_FULL"}
    env["TSAN_OPTIONS"] = "halt_on_error=1"
    result = subprocess.run(
        run, capture_output=True, text=True, env=env, timeout=200, errors="replace", check=False
    )
    assert result.returncode != 0, f"not found: {bug.name}\n{result.stdout[-2000:]}"
    passed = set(re.findall(r"^ok (\w+)", result.stdout, flags=re.MULTILINE))
    failed = next(test for test in _tests(bug) if test not in passed)
    assert re.search(bug.test, failed), f"found by {failed}\n{result.stderr[-2000:]}"


def test_planted_bugs_have_their_line_and_their_test() -> None:
    """So that who moves a line mends the list at once, not in the next full run."""
    assert len(BUGS) >= 30
    for bug in BUGS:
        _planted(bug)
        tests = _tests(bug)
        for pattern in bug.test.split("|"):
            assert any(re.search(pattern, test) for test in tests), f"{bug.program}.c: {pattern}"
