/* replica_pair.h: a master and a slave as two stores of one test, and what must hold between them. */
#ifndef SHMQ_REPLICA_PAIR_H
#define SHMQ_REPLICA_PAIR_H

#include "store_truth.h"

#include "shmq/replica.h"

/* The master's file at the slave's log end, as its mapped log would give it. */
static inline void pair_give_file(const struct fixture *master, const struct fixture *slave,
                                  struct shmq_replica_source *source)
{
    uint64_t end = slave->append.log.log_end;
    uint64_t file_position = end - end % slave->append.log.file_size_bytes;
    const uint8_t *base = shmq_commit_log_at(&master->append.log, file_position);
    TRUTH(base != NULL);
    source->base = base;
    source->file_position = file_position;
    source->need = SHMQ_REPLICA_NEED_NOTHING;
}

/* What the keeper of a slave does for a queue: made, or made anew, to go on at the frame's queue_offset. */
static inline void pair_give_queue(struct fixture *slave, struct shmq_replica_source *source)
{
    const struct shmq_message_view *view = &source->view;
    char topic[SHMQ_TOPIC_SIZE_MAX + 1] = {0};
    uint32_t row = truth_row(slave, view);
    uint32_t generation;
    memcpy(topic, view->topic, view->topic_size);
    if (row == UINT32_MAX) {
        fixture_queue(slave, topic, view->queue_id, 0, &row, &generation);
    }
    TRUTH(slave->append.rows[row].next_queue_offset <= view->queue_offset);
    TRUTH(shmq_append_reserve(&slave->append, row, view->queue_offset) == SHMQ_OK);
    source->need = SHMQ_REPLICA_NEED_NOTHING;
}

/* Makes the slave's next file ready, as its keeper does. */
static inline void pair_make_room(struct fixture *slave)
{
    struct shmq_commit_log *log = &slave->append.log;
    uint64_t ready_end = shmq_load_relaxed(&log->ready_end);
    uint64_t old = ready_end - log->hot_slot_count * log->file_size_bytes;
    if (shmq_commit_log_at(log, old) != NULL) {
        shmq_append_retire(&slave->append, old);
    }
    fixture_ready(slave, ready_end);
}

/* Replica turns until the slave has what the master has committed. */
static inline void pair_catch_up(struct fixture *master, struct fixture *slave, struct shmq_replica_source *source)
{
    for (uint32_t steps = 0; slave->append.log.log_end != shmq_load_relaxed(&master->control->append.committed_position);
         ++steps) {
        TRUTH(steps < 100000);
        (void)shmq_replica_turn(&slave->append, source, 1);
        shmq_replica_follow_confirmed(&slave->append, source);
        (void)shmq_turn_settle(&slave->append, 1);
        TRUTH(source->need != SHMQ_REPLICA_NEED_REPAIR && source->need != SHMQ_REPLICA_NEED_MASTER);
        if (source->need == SHMQ_REPLICA_NEED_FILE) {
            pair_give_file(master, slave, source);
        } else if (source->need == SHMQ_REPLICA_NEED_QUEUE) {
            pair_give_queue(slave, source);
        }
        if (slave->append.blocked == (uint32_t)-SHMQ_LOG_FULL) {
            pair_make_room(slave);
        }
        TRUTH(slave->append.blocked == 0);
    }
}

/* Byte for byte, from where both have it in memory; and what is derived from it. */
static inline void pair_compare(struct fixture *master, struct fixture *slave)
{
    static struct truth truth;
    uint64_t end = shmq_load_relaxed(&slave->control->append.committed_position);
    uint64_t file_size = slave->append.log.file_size_bytes;
    uint64_t begin = end;
    TRUTH(end == slave->append.log.log_end);
    TRUTH(end <= shmq_load_relaxed(&master->control->append.committed_position));
    for (uint64_t at = end - end % file_size;; at -= file_size) {
        const uint8_t *ours = shmq_commit_log_at(&slave->append.log, at);
        const uint8_t *theirs = shmq_commit_log_at(&master->append.log, at);
        if (ours == NULL || theirs == NULL) {
            break;
        }
        uint64_t size = end - at < file_size ? end - at : file_size;
        TRUTH(memcmp(ours, theirs, size) == 0);
        begin = at;
        if (at == 0) {
            break;
        }
    }
    truth_check(slave, begin, 1, &truth);
}

static inline struct shmq_replica_source pair_source(const struct fixture *master)
{
    return (struct shmq_replica_source){.control = master->control, .event_fd = -1};
}

#endif
