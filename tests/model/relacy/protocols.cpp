// protocols.cpp: the protocols of the core, run by Relacy over the core's own code (shim.hpp).
//
//   send      a producer over a ring too small for it, the append thread's turns, a consumer of what is visible
//   sleep     producers and the append thread that sleep whenever they may: the two Dekkers
//   levels    a SYNC queue: the flusher reads the frames, moves flushed_position, and nudges a sleeping append thread
//   blocks    ConsumeQueue blocks that are trimmed and reused by another queue under two readers
//   rows      a queue that is deleted and another made in its row under a reader
//   ended     a producer whose session is ended in the middle of a turn
//   commit    a broker that dies right behind the commit point, and a successor that redoes the turn
//   remap     a hot segment that is reused once its reader has left it
#include "shim.hpp"

// ---- a small store, made once; each iteration begins with its bytes ---------------------------------------------

struct scene {
    struct fixture *f;
    uint8_t *saved;
    struct shmq_append saved_append;
    struct shmq_lane_writer saved_writers[2];
    void *arrays[8];
    void *saved_arrays[8];
    size_t array_sizes[8];
    int array_count;
    uint32_t rows[2], generations[2];
};

static scene now;
static const uint64_t FILE_SIZE = 4096;
static const uint32_t RING = 256; // four records without a body
static const uint32_t COMPLETIONS = 8;
static const uint32_t FRAME_SIZE = 112; // topic "t", no body, no properties but the CRC

static void keep_array(void *array, size_t size)
{
    now.arrays[now.array_count] = array;
    now.saved_arrays[now.array_count] = fixture_private_memory(size);
    now.array_sizes[now.array_count++] = size;
}

static void scene_make(uint32_t blocks, uint32_t flags)
{
    now.f = fixture_open(FILE_SIZE, 2, blocks);
    for (uint32_t i = 0; i < 2; ++i) {
        fixture_queue(now.f, "t", i, flags, &now.rows[i], &now.generations[i]);
        fixture_attach(now.f, i, 1, RING, COMPLETIONS);
        fixture_writer(now.f, i, 0, &now.saved_writers[i]);
    }
    fixture_attach(now.f, 2, 0, 0, 0); // a consumer
    shmq_append_subscribe(&now.f->append, now.rows[0], 2 * SHMQ_CONSUMER_BELL_MAX, 1);
}

// Rings and completion entries begin close to their ends, so that they wrap.
static void scene_age(uint64_t position, uint64_t sequence)
{
    for (uint32_t i = 0; i < 2; ++i) {
        struct shmq_lane_writer *w = &now.saved_writers[i];
        struct shmq_ring *ring = &now.f->append.rings[i * SHMQ_LANE_MAX];
        w->tail = w->read_position = ring->read_position = position;
        w->sequence = w->completion_read = ring->completion_tail = ring->done_tail = sequence;
        *(uint64_t *)&w->lane->tail = position;
        *(uint64_t *)&w->lane->completion_read = sequence;
        *(uint64_t *)(uintptr_t)&w->slot->read_position = position;
        *(uint64_t *)(uintptr_t)&w->slot->completion_tail = sequence;
        *(uint64_t *)(uintptr_t)&w->slot->done_tail = sequence;
    }
}

static void scene_keep()
{
    struct fixture *f = now.f;
    struct shmq_append *a = &f->append;
    now.saved = fixture_region(f->shared_size);
    fixture_copy_objects(f, now.saved, f->shared);
    now.saved_append = *a;
    keep_array(a->rings, FIXTURE_SESSIONS * SHMQ_LANE_MAX * sizeof *a->rings);
    keep_array(a->rows, 4 * sizeof *a->rows);
    keep_array(a->bells, FIXTURE_SESSIONS * SHMQ_CONSUMER_BELL_MAX * sizeof *a->bells);
    keep_array(a->pending_rows, FIXTURE_ROWS * sizeof(uint32_t));
    keep_array(a->pending_rings, FIXTURE_SESSIONS * SHMQ_LANE_MAX * sizeof(uint32_t));
    keep_array(a->arena.free_blocks, f->control->config.arena_block_max * sizeof(uint32_t));
    keep_array(a->row_index.slots, 4 * FIXTURE_ROWS * sizeof(uint32_t));
    for (int i = 0; i < now.array_count; ++i) {
        memcpy(now.saved_arrays[i], now.arrays[i], now.array_sizes[i]);
    }
}

static void scene_restore()
{
    struct fixture *f = now.f;
    for (uint32_t i = 0; i < f->object_count; ++i) {
        if (f->shared + f->objects[i].place != f->topics) {
            memcpy(f->shared + f->objects[i].place, now.saved + f->objects[i].place, f->objects[i].size);
        }
    }
    f->append = now.saved_append;
    for (int i = 0; i < now.array_count; ++i) {
        memcpy(now.arrays[i], now.saved_arrays[i], now.array_sizes[i]);
    }
}

static struct shmq_queue_row *queue_of(uint32_t i)
{
    return shmq_control_queue_row(now.f->control, now.rows[i]);
}

static void register_lane(uint32_t session)
{
    struct shmq_lane_writer *w = &now.saved_writers[session];
    struct shmq_ring_slot *slot = (struct shmq_ring_slot *)(uintptr_t)w->slot;
    shim_register(&w->lane->tail);
    shim_register(&w->lane->completion_read);
    shim_register(&w->lane->sleep_epoch);
    shim_register(&w->lane->sleep_reason);
    shim_register(&slot->read_position);
    shim_register(&slot->completion_tail);
    shim_register(&slot->done_tail);
    shim_register(&slot->ended);
    shim_register((uint32_t *)(uintptr_t)&w->bell->bell);
    shim_register(&now.f->control->sleep.append_sleeps);
    shim_track(w->data, RING, 64);
    shim_track(w->completions, COMPLETIONS * sizeof(struct shmq_completion), sizeof(struct shmq_completion));
}

// Words of one queue that its readers load; entries of the first block of the arena that is taken.
static void register_queue(uint32_t i, uint32_t first_block, uint32_t blocks, uint32_t entries)
{
    struct shmq_queue_row *queue = queue_of(i);
    shim_register(&queue->generation);
    shim_register(&queue->visible_max);
    shim_register(&queue->hot_min_queue_offset);
    shim_register(&queue->tail_block);
    for (uint32_t n = first_block; n < first_block + blocks; ++n) {
        struct shmq_block *block = shmq_arena_block(now.f->arena, n);
        shim_register(&block->header.generation);
        shim_register(&block->header.first_queue_offset);
        shim_register(&block->header.queue_row);
        shim_register(&block->header.row_generation);
        shim_register(&block->header.previous_block);
        shim_register(&block->header.next_block);
        shim_register(&block->header.skip_block);
        for (uint32_t e = 0; e < entries; ++e) {
            shim_register(&block->entries[e].physical_offset);
            shim_register(&block->entries[e].tags_code);
            shim_register(&block->entries[e].size);
        }
    }
}

// Puts a message without a body; waits for room by looking again: at read_position alone unless `releases`.
static void put_one(struct shmq_lane_writer *w, uint32_t queue, bool releases = false)
{
    while (fixture_put(w, now.rows[queue], now.generations[queue], NULL, 0, "", SHMQ_RECORD_WAIT) < 0) {
        if (releases) {
            shmq_lane_release(w, UINT64_MAX);
        }
        rl::yield(1, $);
    }
}

// Waits asleep, without a time-out: a wake-up that is lost is a deadlock.
template <typename Look>
static void sleep_until(const struct shmq_bell_line *bell, shmq_word32 *sleep_epoch, Look look)
{
    for (;;) {
        uint32_t seen = shmq_bell_seen(bell);
        shmq_sleep_begin(sleep_epoch);
        bool there = look();
        if (!there) {
            shmq_futex_wait(&bell->bell, seen, 1);
        }
        shmq_sleep_end(sleep_epoch);
        if (there) {
            return;
        }
    }
}

static void check_frame(uint64_t position, uint32_t size, uint64_t queue_offset)
{
    const uint8_t *frame = now.f->hot[0] + position;
    RL_ASSERT(size == FRAME_SIZE && position + size <= FILE_SIZE);
    shim_touch(frame, size, 0);
    struct shmq_message_view view;
    RL_ASSERT(shmq_message_check(frame, size, position, SHMQ_CHECK_RECORD_CRC, &view) == SHMQ_OK);
    RL_ASSERT(view.queue_offset == queue_offset);
}

// ---- send -------------------------------------------------------------------------------------------------------

static const uint32_t SENDS = 6;

struct send_model : rl::test_suite<send_model, 3> {
    shim_state state;
    struct shmq_lane_writer w;

    static void make()
    {
        scene_make(4, 0);
        scene_age(RING - 64, COMPLETIONS - 1);
        scene_keep();
        register_lane(0);
        register_queue(0, 1, 1, SENDS);
        shim_track(now.f->hot[0], SENDS * FRAME_SIZE, FRAME_SIZE);
    }

    void before()
    {
        scene_restore();
        w = now.saved_writers[0];
        shim_begin_iteration(&state);
    }

    void after()
    {
        shim_end_iteration();
    }

    void thread(unsigned index)
    {
        if (index == 0) {
            uint64_t first = w.sequence;
            for (uint32_t i = 0; i < SENDS; ++i) {
                put_one(&w, 0);
                (void)shmq_lane_publish(&w);
            }
            struct shmq_completion done;
            int status;
            while ((status = shmq_lane_completion(&w, first + SENDS - 1, &done)) == SHMQ_EMPTY) {
                rl::yield(1, $);
            }
            RL_ASSERT(status == SHMQ_OK && done.status == 0 && done.queue_offset == SENDS - 1);
        } else if (index == 1) {
            for (uint32_t taken = 0; taken < SENDS;) {
                uint32_t got = shmq_turn_run(&now.f->append, 1, 1);
                taken += got;
                if (got == 0) {
                    rl::yield(1, $);
                }
            }
        } else {
            struct shmq_cursor cursor = {};
            for (uint64_t next = 0; next < SENDS;) {
                struct shmq_found found[SENDS];
                int count = shmq_consume_queue_read(now.f->arena, 4, queue_of(0), now.rows[0], now.generations[0], next,
                                                    SENDS, &cursor, found);
                RL_ASSERT(count > 0 || count == SHMQ_EMPTY);
                for (int i = 0; i < count; ++i) {
                    check_frame(found[i].physical_offset, found[i].size, next++);
                }
                if (count <= 0) {
                    rl::yield(1, $);
                }
            }
        }
    }
};

// ---- sleep ------------------------------------------------------------------------------------------------------

struct sleep_model : rl::test_suite<sleep_model, 3> {
    shim_state state;
    struct shmq_lane_writer w[2];
    uint32_t left; // records the append thread has not taken; its own

    static void make()
    {
        scene_make(4, 0);
        scene_age(RING - 64, COMPLETIONS - 1);
        scene_keep();
        register_lane(0);
        register_lane(1);
    }

    void before()
    {
        scene_restore();
        w[0] = now.saved_writers[0];
        w[1] = now.saved_writers[1];
        left = 4;
        shim_begin_iteration(&state);
    }

    void after()
    {
        shim_end_iteration();
    }

    void producer(struct shmq_lane_writer *one, uint32_t queue)
    {
        for (uint32_t i = 0; i < 2; ++i) {
            put_one(one, queue, true);
            uint64_t sequence = one->sequence - 1;
            (void)shmq_lane_publish(one);
            struct shmq_completion done;
            int status = SHMQ_EMPTY;
            sleep_until(one->bell, &one->lane->sleep_epoch,
                        [&] { return (status = shmq_lane_completion(one, sequence, &done)) != SHMQ_EMPTY; });
            RL_ASSERT(status == SHMQ_OK && done.status == 0);
            shmq_lane_release(one, one->sequence);
        }
    }

    void thread(unsigned index)
    {
        if (index < 2) {
            producer(&w[index], index);
            return;
        }
        while (left > 0) {
            uint32_t got = shmq_turn_run(&now.f->append, 1, 1);
            left -= got;
            if (got == 0 && shmq_append_sleep(&now.f->append)) {
                shim_event_wait();
                shmq_append_wake(&now.f->append);
            }
        }
    }
};

// ---- levels -----------------------------------------------------------------------------------------------------

struct levels_model : rl::test_suite<levels_model, 4> {
    shim_state state;
    struct shmq_lane_writer w;

    static void make()
    {
        scene_make(4, SHMQ_ROW_FLUSH);
        scene_keep();
        register_lane(0);
        register_queue(0, 1, 1, 2);
        shim_register(&now.f->control->append.committed_position);
        shim_register(&now.f->control->flush.flushed_position);
        shim_register(&fixture_consumer_bell(now.f, 2, 0)->bell);
        shim_register(&fixture_sleeper(now.f, 2, 0)->sleep_epoch);
        shim_track(now.f->hot[0], 2 * FRAME_SIZE, FRAME_SIZE);
    }

    void before()
    {
        scene_restore();
        w = now.saved_writers[0];
        shim_begin_iteration(&state);
    }

    void after()
    {
        shim_end_iteration();
    }

    void thread(unsigned index)
    {
        struct shmq_control *control = now.f->control;
        if (index == 0) {
            for (uint32_t i = 0; i < 2; ++i) {
                put_one(&w, 0);
                (void)shmq_lane_publish(&w);
            }
            struct shmq_completion done;
            int status = SHMQ_EMPTY;
            sleep_until(w.bell, &w.lane->sleep_epoch,
                        [&] { return (status = shmq_lane_completion(&w, 1, &done)) != SHMQ_EMPTY; });
            RL_ASSERT(status == SHMQ_OK && done.status == 0 && done.final_status == 0);
            RL_ASSERT(shmq_load_relaxed(&control->flush.flushed_position) >= done.physical_offset + done.size);
        } else if (index == 1) {
            uint32_t taken = 0;
            while (taken < 2 || now.f->append.pending_ring_count != 0 || now.f->append.pending_row_count != 0) {
                uint32_t got = shmq_turn_run(&now.f->append, 1, 1);
                taken += got;
                int moved = shmq_turn_settle(&now.f->append, 1);
                if (got == 0 && moved == 0 && shmq_append_sleep(&now.f->append)) {
                    shim_event_wait();
                    shmq_append_wake(&now.f->append);
                }
            }
        } else if (index == 2) { // as flush.c does it: frames to the file, then the position, then the nudge
            uint64_t flushed = 0;
            while (flushed < 2 * FRAME_SIZE) {
                uint64_t committed = shmq_load_acquire(&control->append.committed_position);
                if (committed == flushed) {
                    rl::yield(1, $);
                    continue;
                }
                shim_touch(now.f->hot[0] + flushed, committed - flushed, 0);
                flushed = committed;
                shmq_store_release(&control->flush.flushed_position, flushed);
                shmq_fence_full();
                if ((shmq_load_relaxed32(&control->sleep.append_sleeps) & 1) != 0) {
                    shmq_eventfd_signal(-1);
                }
            }
        } else {
            struct shmq_cursor cursor = {};
            for (uint64_t next = 0; next < 2;) {
                struct shmq_found found[2];
                int count = shmq_consume_queue_read(now.f->arena, 4, queue_of(0), now.rows[0], now.generations[0], next,
                                                    2, &cursor, found);
                for (int i = 0; i < count; ++i) {
                    check_frame(found[i].physical_offset, found[i].size, next++);
                    // seen, so it is as safe as its topic promises
                    RL_ASSERT(shmq_load_relaxed(&control->flush.flushed_position) >=
                              found[i].physical_offset + found[i].size);
                }
                if (count <= 0) {
                    sleep_until(fixture_consumer_bell(now.f, 2, 0), &fixture_sleeper(now.f, 2, 0)->sleep_epoch,
                                [&] { return shmq_load_acquire(&queue_of(0)->visible_max) > next; });
                }
            }
        }
    }
};

// ---- blocks -----------------------------------------------------------------------------------------------------

// Entry q of queue i says position i * 2^32 + q; of a block only the entries 0 to 2 are shared words here, the others
// are never read.
static const uint32_t READ_ENTRIES = 3;

static void fill(uint32_t i, uint64_t count, int shown)
{
    struct shmq_row *row = &now.f->append.rows[now.rows[i]];
    for (uint64_t n = 0; n < count; ++n) {
        uint64_t q = row->next_queue_offset++;
        shmq_consume_queue_put(&now.f->append.arena, queue_of(i), now.rows[i], &row->chain, q, ((uint64_t)i << 32) + q,
                               7 + (uint32_t)q % 1000, (int64_t)q);
    }
    if (shown) {
        shmq_store_release(&queue_of(i)->max_queue_offset, row->next_queue_offset);
        shmq_store_release(&queue_of(i)->visible_max, row->next_queue_offset);
    }
}

static int read_and_check(uint32_t i, uint64_t queue_offset, uint32_t count, struct shmq_cursor *cursor)
{
    struct shmq_found found[READ_ENTRIES];
    int got = shmq_consume_queue_read(now.f->arena, 4, queue_of(i), now.rows[i], now.generations[i], queue_offset, count,
                                      cursor, found);
    for (int n = 0; n < got; ++n) {
        uint64_t q = queue_offset + (uint64_t)n;
        RL_ASSERT(found[n].physical_offset == ((uint64_t)i << 32) + q);
        RL_ASSERT(found[n].tags_code == (int64_t)q && found[n].size == 7 + (uint32_t)q % 1000);
    }
    return got;
}

struct blocks_model : rl::test_suite<blocks_model, 3> {
    shim_state state;

    // Queue 0 has a full block and one entry more; one block is free.
    static void make()
    {
        scene_make(4, 0);
        fill(0, SHMQ_BLOCK_ENTRIES + 1, 1);
        scene_keep();
        register_queue(0, 1, 3, READ_ENTRIES);
        register_queue(1, 1, 3, READ_ENTRIES);
    }

    void before()
    {
        scene_restore();
        shim_begin_iteration(&state);
    }

    void after()
    {
        shim_end_iteration();
    }

    void thread(unsigned index)
    {
        struct shmq_cursor cursor = {};
        if (index == 0) {
            struct shmq_row *row = &now.f->append.rows[now.rows[0]];
            (void)shmq_consume_queue_trim(&now.f->append.arena, queue_of(0), &row->chain, SHMQ_BLOCK_ENTRIES);
            fill(1, 2, 1); // takes the block that was just freed
        } else if (index == 1) {
            int got = read_and_check(0, 0, READ_ENTRIES, &cursor);
            RL_ASSERT(got == (int)READ_ENTRIES || got == SHMQ_OFFSET_TOO_SMALL);
            got = read_and_check(0, SHMQ_BLOCK_ENTRIES, 1, &cursor);
            RL_ASSERT(got == 1);
        } else {
            int got = read_and_check(1, 0, 2, &cursor);
            RL_ASSERT(got == 2 || got == SHMQ_EMPTY);
        }
    }
};

// ---- rows -------------------------------------------------------------------------------------------------------

template <uint64_t first> // queue_offset of the new queue
struct rows_model : rl::test_suite<rows_model<first>, 2> {
    shim_state state;

    static void make()
    {
        scene_make(4, 0);
        fill(0, 2, 1);
        scene_keep();
        register_queue(0, 1, 2, READ_ENTRIES);
        shim_register(&queue_of(0)->state);
    }

    void before()
    {
        scene_restore();
        shim_begin_iteration(&state);
    }

    void after()
    {
        shim_end_iteration();
    }

    void thread(unsigned index)
    {
        if (index == 0) {
            shmq_append_delete_row(&now.f->append, now.rows[0]);
            uint32_t row, generation;
            (void)shmq_append_add_row(&now.f->append, 0, 9, 0, first, &row, &generation);
            RL_ASSERT(row == now.rows[0]);
            // entries that no reader of the old one expects
            struct shmq_row *shadow = &now.f->append.rows[row];
            for (uint64_t q = first; q < first + 3; ++q) {
                shmq_consume_queue_put(&now.f->append.arena, queue_of(0), row, &shadow->chain, q, (UINT64_C(1) << 32) + q,
                                       9, 9);
            }
            shmq_store_release(&queue_of(0)->visible_max, first + 3);
        } else {
            struct shmq_cursor cursor = {};
            int got = read_and_check(0, 0, 2, &cursor);
            RL_ASSERT(got == 2 || got == 1 || got == SHMQ_EMPTY || got == SHMQ_FENCED);
            got = read_and_check(0, 1, 1, &cursor);
            RL_ASSERT(got == 1 || got == SHMQ_EMPTY || got == SHMQ_FENCED);
        }
    }
};

// ---- ended ------------------------------------------------------------------------------------------------------

struct ended_model : rl::test_suite<ended_model, 2> {
    shim_state state;
    struct shmq_lane_writer w;

    static void make()
    {
        scene_make(4, 0);
        scene_keep();
        register_lane(0);
    }

    void before()
    {
        scene_restore();
        w = now.saved_writers[0];
        shim_begin_iteration(&state);
    }

    void after()
    {
        shim_end_iteration();
    }

    void thread(unsigned index)
    {
        if (index == 0) {
            put_one(&w, 0);
            uint8_t *at;
            struct shmq_record broken = {};
            broken.size = 64;
            broken.kind = 77;
            RL_ASSERT(shmq_lane_claim(&w, 64, &at) == SHMQ_OK);
            shim_memcpy(at, &broken, sizeof broken);
            (void)shmq_lane_commit(&w, 64);
            (void)shmq_lane_publish(&w);
            struct shmq_completion done;
            int status = SHMQ_EMPTY;
            sleep_until(w.bell, &w.lane->sleep_epoch,
                        [&] { return (status = shmq_lane_completion(&w, 0, &done)) != SHMQ_EMPTY; });
            RL_ASSERT(status == SHMQ_OK && done.status == 0); // taken before the broken one: answered, not CLOSED
            sleep_until(w.bell, &w.lane->sleep_epoch,
                        [&] { return (status = shmq_lane_completion(&w, 1, &done)) != SHMQ_EMPTY; });
            RL_ASSERT(status == SHMQ_CLOSED);
        } else {
            while (shmq_turn_run(&now.f->append, 1, 1) == 0) {
                rl::yield(1, $);
            }
        }
    }
};

// ---- commit -----------------------------------------------------------------------------------------------------

struct dead {};
static int commit_var; // stands for the turn record and the completion entries

static void commit_watch(int after)
{
    if (!after) {
        shim_now->vars[commit_var]($) = 1;
    } else {
        throw dead();
    }
}

struct commit_model : rl::test_suite<commit_model, 2> {
    shim_state state;
    struct shmq_lane_writer w;

    static void make()
    {
        scene_make(4, 0);
        for (uint32_t i = 0; i < 3; ++i) { // published before the iteration begins
            (void)fixture_put(&now.saved_writers[0], now.rows[0], now.generations[0], NULL, 0, "", 0);
        }
        (void)shmq_lane_publish(&now.saved_writers[0]);
        scene_keep();
        shim_register(&now.f->control->append.turn_number);
        shim_track(now.f->hot[0], 3 * FRAME_SIZE, FRAME_SIZE);
        shim_track(now.saved_writers[0].completions, COMPLETIONS * 32, 32);
        commit_var = shim_new_var();
        shim_watched_word = &now.f->control->append.turn_number;
        shim_on_watched = commit_watch;
    }

    void before()
    {
        scene_restore();
        w = now.saved_writers[0];
        shim_begin_iteration(&state);
    }

    void after()
    {
        shim_end_iteration();
    }

    void thread(unsigned index)
    {
        if (index == 0) {
            try {
                (void)shmq_turn_run(&now.f->append, 1, 1);
                RL_ASSERT(false);
            } catch (const dead &) {
            }
            return;
        }
        // The successor looks at once: it may see the turn or not, but never half of it.
        struct shmq_control *control = now.f->control;
        uint64_t turn = shmq_load_acquire(&control->append.turn_number);
        if (turn == 0) {
            return;
        }
        (void)(int)state.vars[commit_var]($);
        const struct shmq_turn_record *record = shmq_control_turn_record(control, turn);
        RL_ASSERT(record->header.turn_number == turn && record->header.ring_count == 1);
        uint64_t position = record->header.log_begin;
        for (uint64_t q = 0; q < 3; ++q) {
            check_frame(position, FRAME_SIZE, q);
            position += FRAME_SIZE;
            shim_note_completion(&now.saved_writers[0].completions[q], 0);
        }
        RL_ASSERT(position == record->header.log_end);
    }
};

// ---- remap ------------------------------------------------------------------------------------------------------

// The channel between broker and client is a socket: the kernel orders what goes through it.
struct remap_model : rl::test_suite<remap_model, 2> {
    shim_state state;
    int announced; // under the kernel's lock
    int answered;

    static void make()
    {
        scene_make(4, 0);
        scene_keep();
        for (uint32_t i = 0; i < 2; ++i) {
            struct shmq_hot_slot *slot = shmq_control_hot_slot(now.f->control, i);
            shim_register(&slot->generation);
            shim_register(&slot->file_position);
            shim_register(&slot->object_number);
            shim_register(&slot->state);
        }
        shim_register(&now.f->control->append.hot_min_position);
        shim_track(now.f->hot[0], 128, 128);
    }

    void before()
    {
        scene_restore();
        announced = answered = 0;
        shim_begin_iteration(&state);
    }

    void after()
    {
        shim_end_iteration();
    }

    void thread(unsigned index)
    {
        if (index == 0) {
            shmq_append_retire(&now.f->append, 0);
            state.kernel.lock($);
            announced = 1;
            state.kernel_wakes.notify_all($);
            while (answered == 0) {
                state.kernel_wakes.wait(state.kernel, $);
            }
            state.kernel.unlock($);
            fixture_ready(now.f, 2 * FILE_SIZE);
            uint8_t byte = 1; // the first append into the reused memory
            shim_touch(now.f->hot[0], 1, 1);
            memcpy(now.f->hot[0], &byte, 1);
            return;
        }
        // The client: looks at the segment while its view is on it; leaves it when told; then looks at the slot.
        for (int looks = 0; looks < 3; ++looks) {
            shim_touch(now.f->hot[0], 1, 0);
        }
        state.kernel.lock($);
        while (announced == 0) {
            state.kernel_wakes.wait(state.kernel, $);
        }
        shim_touch(now.f->hot[0], 1, 0); // the last look, before the file is mapped over it
        answered = 1;
        state.kernel_wakes.notify_all($);
        state.kernel.unlock($);
        // A tool that reads the slot without asking: what it believes belongs together.
        struct shmq_hot_slot *slot = shmq_control_hot_slot(now.f->control, 0);
        uint64_t generation = shmq_load_acquire(&slot->generation);
        uint64_t position = shmq_load_relaxed(&slot->file_position);
        uint64_t number = shmq_load_relaxed(&slot->object_number);
        shmq_fence_acquire();
        if (generation % 2 == 0 && shmq_load_relaxed(&slot->generation) == generation) {
            RL_ASSERT(position == number * FILE_SIZE);
            RL_ASSERT(position == (generation == shim_first_generation ? 0 : 2 * FILE_SIZE));
        }
    }

    static uint64_t shim_first_generation;
};
uint64_t remap_model::shim_first_generation = 2;

template <typename Model>
static bool simulate(rl::test_params &params)
{
    Model::make();
    return rl::simulate<Model>(params);
}

int main(int argc, char **argv)
{
    static const shim_model models[] = {
        {"send", simulate<send_model>, 20000},     {"sleep", simulate<sleep_model>, 20000},
        {"levels", simulate<levels_model>, 20000}, {"blocks", simulate<blocks_model>, 20000},
        {"rows", simulate<rows_model<0>>, 2000},   {"rows-later", simulate<rows_model<100>>, 2000},
        {"ended", simulate<ended_model>, 20000},   {"commit", simulate<commit_model>, 20000},
        {"remap", simulate<remap_model>, 20000},   {NULL, NULL, 0},
    };
    return shim_main(argc, argv, models);
}
